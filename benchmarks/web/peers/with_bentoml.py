"""BentoML with our scorer. Coroutines, not functions: a ride costs less than the hop to BentoML's thread pool."""

import bentoml

from benchmarks.web.peers import rides
from benchmarks.web.peers.rides import Prediction, Predictions, Ride


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Durations:
    """The service."""

    @bentoml.api
    async def predict(self, ride: Ride, /) -> Prediction:
        """One ride."""
        return rides.predict(ride)

    @bentoml.api
    async def predict_rides(self, several: list[Ride], /) -> Predictions:
        """A list of rides."""
        return rides.predict_rides(several)
