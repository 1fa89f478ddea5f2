"""What peers with our scorer share: the ride with our limits, as a pydantic model, and its prediction."""

import os
from datetime import datetime
from typing import Annotated, cast

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from ride_duration import ride as ours
from ride_duration.inputs import Columns
from ride_duration.model_file import load_model
from ride_duration.zones import FIRST_ZONE, LAST_ZONE

MODEL = load_model(os.environ["MODEL"], "duration")


def _local(time: datetime) -> datetime:
    """New York local time, within the years that our service takes."""
    local = time.astimezone(ours.NEW_YORK).replace(tzinfo=None) if time.tzinfo else time
    if not ours.FIRST_YEAR <= local.year <= ours.LAST_YEAR:
        raise ValueError(f"must be in {ours.FIRST_YEAR} to {ours.LAST_YEAR}")
    return local


Zone = Annotated[int, Field(ge=FIRST_ZONE, le=LAST_ZONE, strict=True)]
Miles = Annotated[float, Field(ge=0, le=ours.MAX_MILES, strict=True, allow_inf_nan=False)]


class Ride(BaseModel):
    """A ride with the limits of `ride_duration.ride.Ride`; the scorer takes it for one."""

    model_config = ConfigDict(extra="forbid")

    PULocationID: Zone
    DOLocationID: Zone
    trip_distance: Miles | None
    pickup_datetime: Annotated[datetime, AfterValidator(_local)] | None = None


class Prediction(TypedDict):
    """What one ride is answered with."""

    duration: float
    model_version: str


class Predictions(TypedDict):
    """What a list of rides is answered with."""

    durations: list[float]
    model_version: str


def predict(ride: Ride) -> Prediction:
    """Minutes of one ride."""
    return {"duration": MODEL.predict(cast(ours.Ride, ride)), "model_version": MODEL.version}


def predict_rides(rides: list[Ride]) -> Predictions:
    """Minutes of each ride, scored as columns."""
    durations = MODEL.predict_columns(Columns.of(cast(list[ours.Ride], rides)))
    return {"durations": np.asarray(durations).tolist(), "model_version": MODEL.version}
