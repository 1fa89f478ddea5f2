"""The messages, the MLOps course's, and what a consumer answers to a batch of them: plain functions of a model and bytes."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar, get_args

import msgspec

from ride_duration.inputs import Columns
from ride_duration.model import LinearModel
from ride_duration.ride import InvalidRide, Ride, RideId, Target, check_ride

RIDES, PREDICTIONS, DECISIONS, DEAD_LETTERS = "rides", "predictions", "decisions", "rides.dlq"
TOPICS = (RIDES, PREDICTIONS, DECISIONS, DEAD_LETTERS)
DECISION = "decision"
"""The consumer group that decides."""

TARGETS: tuple[Target, ...] = get_args(Target)

MAX_DEAD_BYTES = 500_000
"""A dead letter has the event itself up to so many bytes, and a digest of it beyond: it must fit into any broker's limit."""

MAX_BYTES = 900_000
"""Of a prediction, which repeats the ride: a broker takes a megabyte, if nobody has changed that."""

MAX_ERROR = 1000


class RideEvent(msgspec.Struct):
    """`{"ride_id": 156, "ride": {…}}`, a message of `rides`; the ride is the one that `POST /predict` takes."""

    ride_id: RideId
    ride: msgspec.Raw


class Prediction(msgspec.Struct, omit_defaults=True):
    """What is predicted of a ride; of the three only the model's target is there."""

    ride_id: RideId
    ride_duration: float | None = None
    """Minutes."""
    ride_fare: float | None = None
    """Dollars, as is the tip."""
    ride_tip: float | None = None
    interval: tuple[float, float] | None = None

    def value(self, target: Target) -> float | None:
        """Of a target."""
        found: float | None = getattr(self, f"ride_{target}")
        return found


class PredictionEvent(msgspec.Struct):
    """`{"model": …, "version": …, "prediction": {…}, "ride": {…}}`, a message of `predictions`; the ride is as it came."""

    model: str
    version: str
    prediction: Prediction
    ride: msgspec.Raw


class Offer(msgspec.Struct, omit_defaults=True):
    """What a passenger is told; what no model has said is left out."""

    duration: float | None = None
    """Minutes."""
    interval: tuple[float, float] | None = None
    fare: float | None = None
    """Dollars, as is the tip."""
    tip: float | None = None
    versions: dict[Target, str] = {}
    """Of the models that have said it."""


class Decision(msgspec.Struct):
    """`{"ride_id": 156, "offer": {"duration": 18.2, …}, "missing": ["tip"]}`, a message of `decisions`."""

    ride_id: RideId
    offer: Offer
    missing: tuple[Target, ...] = ()


class Event(NamedTuple):
    """A message as it was read."""

    topic: str
    partition: int
    offset: int
    value: bytes | None
    key: bytes | None = None
    at: float = 0.0
    """When it was published, seconds since the epoch."""
    headers: Mapping[str, str] = MappingProxyType({})


class Output(NamedTuple):
    """A message to publish."""

    topic: str
    key: str
    value: bytes | None
    partition: int
    """Of the event that it answers."""
    once: str | None = None
    """Published no more than once by this name: the group's, a colon, and the ride's."""
    headers: Mapping[str, str] = MappingProxyType({})


_decode = msgspec.json.Decoder(RideEvent).decode
_decode_ride = msgspec.json.Decoder(Ride).decode
_decode_prediction = msgspec.json.Decoder(PredictionEvent).decode
_encode = msgspec.json.Encoder().encode

Message = TypeVar("Message")


class _Named(msgspec.Struct):
    model: str


_decode_name = msgspec.json.Decoder(_Named).decode


def name_of_message(topic: str, key: bytes | None, value: bytes | None) -> str:
    """The name that a prediction or a decision was published once by, its group and its ride; empty for what is neither."""
    try:
        group = DECISION if topic == DECISIONS else _decode_name(value or b"").model
        return f"{group}:{(key or b'').decode()}"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


class BadEvent(ValueError):
    """An event that can't be answered, and why."""


def name_of(target: Target) -> str:
    """A model's name in messages, and its consumer group: `ride_duration_prediction_model`."""
    return f"ride_{target}_prediction_model"


def target_of(name: str) -> Target:
    """What the model of that name predicts.

    Raises
    ------
    BadEvent
        If it is no model's name.
    """
    for target in TARGETS:
        if name == name_of(target):
            return target
    raise BadEvent(f"{name[:60]!r} is not a model; they are {', '.join(map(name_of, TARGETS))}")


def read_ride(value: bytes) -> Ride:
    """The ride of an event.

    Raises
    ------
    BadEvent
        With every reason, in the words of every door.
    """
    try:
        return _decode_ride(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # once more, for every reason or for what only looks wrong
    ride = _read(msgspec.json.decode, value, "a ride is wanted")
    try:
        return check_ride(ride)
    except InvalidRide as error:
        raise BadEvent(
            "; ".join(f"ride.{e.field} {e.detail}" if e.field else f"ride {e.detail}" for e in error.errors)
        ) from None


def read_event(value: bytes | None) -> tuple[RideEvent, Ride]:
    """A message of `rides`, and its ride.

    Raises
    ------
    BadEvent
    """
    event = _read(_decode, value, 'a ride event is {"ride_id": 156, "ride": {…}}')
    return event, read_ride(event.ride)


def read_prediction(value: bytes | None) -> tuple[Target, PredictionEvent]:
    """A message of `predictions`, and what it predicts.

    Raises
    ------
    BadEvent
    """
    event = _read(_decode_prediction, value, 'a prediction is {"model": …, "version": …, "prediction": {…}, "ride": {…}}')
    target = target_of(event.model)
    if event.prediction.value(target) is None:
        raise BadEvent(f"it has no ride_{target}, which {event.model} predicts")
    return target, event


def _read(decode: Callable[[bytes], Message], value: bytes | None, wanted: str) -> Message:
    if value is None:
        raise BadEvent(f"the message is null; {wanted}")
    try:
        return decode(value)
    except msgspec.ValidationError as error:
        raise BadEvent(f"{error}; {wanted}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadEvent(f"it is not JSON: {error}") from None


def answer(model: LinearModel, events: Sequence[Event], group: str) -> list[Output]:
    """A prediction, or a dead letter, for each event.

    Parameters
    ----------
    group
        The consumer group, for the dead letters' headers.
    """
    good: list[tuple[Event, RideEvent, Ride]] = []
    outputs = []
    for event in events:
        try:
            ride_event, ride = read_event(event.value)
            if model.needs_distance and ride.trip_distance is None:
                model.predict(ride)  # tells why not
            good.append((event, ride_event, ride))
        except (BadEvent, InvalidRide) as error:
            outputs.append(dead_letter(event, str(error), group))
    if not good:
        return outputs
    columns = Columns.of([ride for *_, ride in good])
    values = model.predict_columns(columns)
    intervals: list[tuple[float, float]] | list[None] = [None] * len(good)
    if model.has_interval:
        lows, highs = model.interval_columns(columns, values)
        intervals = list(zip(lows.tolist(), highs.tolist(), strict=True))
    name, field = name_of(model.target), f"ride_{model.target}"
    for (event, came, _), value, interval in zip(good, values.tolist(), intervals, strict=True):
        prediction = Prediction(came.ride_id, interval=interval, **{field: value})
        message = _encode(PredictionEvent(name, model.version, prediction, came.ride))
        key = str(came.ride_id)
        if len(message) > MAX_BYTES:
            outputs.append(dead_letter(event, f"its prediction would have {len(message):,} bytes, of {MAX_BYTES:,}", group))
            continue
        outputs.append(Output(PREDICTIONS, key, message, event.partition, f"{name}:{key}"))
    return outputs


def dead_letter(event: Event, error: str, group: str) -> Output:
    """An event that can't be answered, with the reason in its headers."""
    place = f"{event.topic}:{event.partition}:{event.offset}"
    headers = {
        "error": error[:MAX_ERROR],
        "topic": event.topic,
        "partition": str(event.partition),
        "offset": str(event.offset),
        "group": group,
    }
    if "replayed" in event.headers:
        headers["replayed"] = event.headers["replayed"]
    value = event.value
    if value is not None and len(value) > MAX_DEAD_BYTES:
        headers |= {"bytes": str(len(value)), "sha256": hashlib.sha256(value).hexdigest()}
        value = None
    return Output(DEAD_LETTERS, f"{group}:{place}", value, event.partition, f"{group}:{place}", headers)
