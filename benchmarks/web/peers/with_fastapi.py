"""FastAPI with our scorer. Coroutines, not functions: a ride costs less than the hop to FastAPI's thread pool."""

from fastapi import FastAPI

from benchmarks.web.peers import rides
from benchmarks.web.peers.rides import Prediction, Predictions, Ride

app = FastAPI()


@app.post("/predict")
async def predict(ride: Ride) -> Prediction:
    """One ride."""
    return rides.predict(ride)


@app.post("/predict_rides")
async def predict_rides(several: list[Ride]) -> Predictions:
    """A list of rides."""
    return rides.predict_rides(several)
