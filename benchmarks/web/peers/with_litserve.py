"""LitServe with our scorer; a body is a ride or a list of them. `python -m` with this module's name serves it on PORT.

The worker checks the rides, not the API server: a dict crosses between the two for less than a pydantic model does.
The answer's annotation has pydantic write its JSON, which is faster than FastAPI's encoder.
"""

import os
from typing import Any

from fastapi import HTTPException
from litserve import LitAPI, LitServer
from pydantic import TypeAdapter, ValidationError

from benchmarks.web.peers import rides
from benchmarks.web.peers.rides import Prediction, Predictions, Ride

RIDES = TypeAdapter(list[Ride])


class Durations(LitAPI):
    """The service."""

    def decode_request(self, request, **kwargs: Any) -> Ride | list[Ride]:  # type: ignore[no-untyped-def] # an annotation would be the body's
        try:
            return RIDES.validate_python(request) if isinstance(request, list) else Ride.model_validate(request)
        except ValidationError as error:
            raise HTTPException(422, error.errors(include_url=False, include_context=False)) from None

    def predict(self, x: Ride | list[Ride], **kwargs: Any) -> Prediction | Predictions:
        return rides.predict_rides(x) if isinstance(x, list) else rides.predict(x)

    def encode_response(self, output: Any, **kwargs: Any) -> Prediction | Predictions:
        return output


if __name__ == "__main__":
    server = LitServer(Durations(), accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True)
    # the client file would be written to the current folder
    server.run("127.0.0.1", os.environ["PORT"], log_level="warning", generate_client_file=False)
