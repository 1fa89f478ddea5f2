"""What the service answers, as types: what the routes send and what `/openapi.json` says are these."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ride_duration.explanation import Part
from ride_duration.model import Interval
from ride_duration.ride import FieldError, RideId

Minutes = Annotated[float, Meta(description="Minutes, unrounded.")]
Version = Annotated[str, Meta(description="The model that answered.", examples=["2021-01..2021-02-825bf825"])]
Ends = Annotated[tuple[float, float], Meta(description="Low and high end, in minutes, of what 80 % of such rides last.")]


class Prediction(msgspec.Struct, kw_only=True):
    """The answer to one ride."""

    duration: Minutes
    model_version: Version
    interval: Ends | UnsetType = UNSET
    explanation: list[Part] | UnsetType = UNSET
    ride_id: RideId | UnsetType = UNSET


class Predictions(msgspec.Struct, kw_only=True):
    """The answer to an array of rides, in its order."""

    durations: list[Minutes]
    model_version: Version
    intervals: list[Ends] | UnsetType = UNSET


class Refused(msgspec.Struct):
    """A model file that was not taken."""

    reason: str
    at: str


class Description(msgspec.Struct, kw_only=True):
    """What the model says of itself; null where its file doesn't say."""

    version: Version
    target: str
    trained_on: list[str] | None = None
    trained_until: str | None = None
    rows: int | None = None
    metrics: dict[str, dict[str, float]] | None = None
    metrics_trained_on: list[str] | None = None
    tested_on: list[str] | None = None
    interval: Interval | None = None
    libraries: dict[str, str] | None = None
    coefficients: int
    sha256: str
    loaded_at: str
    refused: Refused | None


class Health(msgspec.Struct):
    """The process lives."""

    status: str = "alive"


class Readiness(msgspec.Struct, kw_only=True):
    """The model just answered a ride."""

    status: str = "ready"
    model_version: Version


class ProblemDetails(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An error (RFC 9457): what was wrong, and what is allowed."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = msgspec.field(default_factory=list)


ANSWERS: list[Any] = [Prediction, Predictions, Description, Health, Readiness, ProblemDetails]
