"""A ride, its limits, and the two passes that read it.

msgspec reads the common case in C. It stops at the first error and knows no whole floats or minutes, so whatever it
refuses is read again, field by field, and that second pass decides and names every error. `FIELDS` is the definition;
the annotations of `Ride` are its fast subset, made of the same limits.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ride_duration.zones import FIRST_ZONE, LAST_ZONE

MAX_MILES = 200
FIRST_YEAR, LAST_YEAR = 2009, 2100
MAX_RIDE_ID = 64
MAX_RIDES = 10_000
MAX_ERRORS = 20

Target = Literal["duration", "fare", "tip"]
"""What a model may predict of a ride: minutes, or dollars."""

NEW_YORK = ZoneInfo("America/New_York")

EXAMPLE = {"PULocationID": 130, "DOLocationID": 205, "trip_distance": 3.66, "pickup_datetime": "2021-02-01T08:15:00"}

_INT64 = 2**63

ZoneId = Annotated[int, Meta(ge=FIRST_ZONE, le=LAST_ZONE)]
Miles = Annotated[float, Meta(ge=0, le=MAX_MILES)]
PickupTime = Annotated[datetime, Meta(extra_json_schema={"format": "date-time"})]
RideId = Annotated[str, Meta(min_length=1, max_length=MAX_RIDE_ID)] | Annotated[int, Meta(ge=-_INT64, le=_INT64 - 1)]


class Ride(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True, gc=False):
    """One ride, as every door takes it.

    Attributes
    ----------
    PULocationID, DOLocationID
        TLC taxi zones of pickup and drop-off.
    trip_distance
        Miles; None or 0 when unknown.
    pickup_datetime
        New York local time without an offset, or None when unknown. An aware time is converted.
    ride_id
        The caller's name for the ride: echoed and logged, never a feature.
    """

    PULocationID: ZoneId
    DOLocationID: ZoneId
    trip_distance: Miles | None
    pickup_datetime: PickupTime | None = None
    ride_id: RideId | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.pickup_datetime is not None:
            self.pickup_datetime = _new_york(self.pickup_datetime)


class FieldError(msgspec.Struct, omit_defaults=True, frozen=True):
    """What is wrong with one field; `index` is the ride's place in an array, `field` is empty for the whole ride."""

    field: str
    detail: str
    index: int | None = None


class InvalidRide(ValueError):
    """A ride, or an array of them, that the contract refuses; `errors` names each reason (the first 20)."""

    def __init__(self, errors: list[FieldError]) -> None:
        self.errors = errors
        first = errors[0]
        where = "" if first.index is None else f"ride {first.index}: "
        super().__init__(f"{where}{first.field + ' ' if first.field else ''}{first.detail}")


class NotJSON(ValueError):
    """Bytes that are not JSON."""


def decode_rides(body: bytes) -> Ride | list[Ride]:
    """Read a JSON ride object, or an array of 1 to 10,000 of them, all or none.

    Raises
    ------
    NotJSON
        If `body` is not one JSON value in UTF-8.
    InvalidRide
        If it is not a ride or an array of rides within the limits.
    """
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_slowly(body)


def check_ride(value: object) -> Ride:
    """Read a ride from plain Python data, field by field.

    Raises
    ------
    InvalidRide
        With every error of the ride, not only the first.
    """
    errors = []
    fields: dict[str, Any] = {}
    if not isinstance(value, Mapping):
        raise InvalidRide([FieldError("", f"must be a ride object; got {_shown(value)}")])
    for name, field in FIELDS.items():
        if name in value:
            try:
                fields[name] = field.read(value[name])
            except ValueError:
                errors.append(FieldError(name, f"must be {field.allowed}; got {_shown(value[name])}"))
        elif field.required:
            errors.append(FieldError(name, f"is missing; it must be {field.allowed}"))
    errors += [FieldError(str(name)[:MAX_RIDE_ID], _unknown(str(name))) for name in value if name not in FIELDS]
    if errors:
        raise InvalidRide(errors)
    return Ride(**fields)


def _new_york(time: datetime) -> datetime:
    # An aware time of year 1 or 9999 can't be converted, so it is refused before; the years beside the range stay,
    # for an offset may bring them into it.
    if time.tzinfo is not None and FIRST_YEAR - 1 <= time.year <= LAST_YEAR + 1:
        time = time.astimezone(NEW_YORK).replace(tzinfo=None, fold=0)
    if time.tzinfo is not None or not FIRST_YEAR <= time.year <= LAST_YEAR:
        raise ValueError(f"outside {FIRST_YEAR} to {LAST_YEAR}")
    return time


_decode: Callable[[bytes], Ride | list[Ride]] = msgspec.json.Decoder(
    Ride | Annotated[list[Ride], Meta(min_length=1, max_length=MAX_RIDES)]
).decode


def _decode_slowly(body: bytes) -> Ride | list[Ride]:
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise NotJSON("the body is not a ride: its JSON is nested too deeply") from None
    except ValueError as error:
        raise NotJSON(f"the body is not JSON: {str(error).removeprefix('JSON is malformed: ')}") from None
    if not isinstance(value, list):
        return check_ride(value)
    if not 1 <= len(value) <= MAX_RIDES:
        raise InvalidRide([FieldError("", f"an array must hold 1 to {MAX_RIDES:,} rides; got {len(value):,}")])
    rides = []
    errors: list[FieldError] = []
    for index, item in enumerate(value):
        try:
            rides.append(check_ride(item))
        except InvalidRide as error:
            errors += [FieldError(e.field, e.detail, index) for e in error.errors]
            if len(errors) >= MAX_ERRORS:
                break
    if errors:
        raise InvalidRide(errors[:MAX_ERRORS])
    return rides


def _integer(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError
    return value


def _zone(value: object) -> int:
    return msgspec.convert(_integer(value), ZoneId)


def _miles(value: object) -> float | None:
    return msgspec.convert(value, Miles | None)


def _pickup(value: object) -> datetime | None:
    # msgspec reads RFC 3339 and wants seconds
    if isinstance(value, str) and len(value) >= 16 and value[16:17] in ("", "Z", "z", "+", "-"):
        value = f"{value[:16]}:00{value[16:]}"
    time = msgspec.convert(value, datetime | None)
    return time and _new_york(time)


def _ride_id(value: object) -> str | int:
    ride_id: str | int = msgspec.convert(value if isinstance(value, str) else _integer(value), RideId)
    return ride_id


class Field(NamedTuple):
    """A field of the ride: its reader (ValueError when refused), what it allows, in words, and whether it must be there."""

    read: Callable[[object], object]
    allowed: str
    required: bool


FIELDS = {
    "PULocationID": Field(_zone, f"an integer from {FIRST_ZONE} to {LAST_ZONE}, the pickup's TLC taxi zone", True),
    "DOLocationID": Field(_zone, f"an integer from {FIRST_ZONE} to {LAST_ZONE}, the drop-off's TLC taxi zone", True),
    "trip_distance": Field(_miles, f"a number of miles from 0 to {MAX_MILES}, or null when unknown", True),
    "pickup_datetime": Field(
        _pickup,
        f"an ISO 8601 date and time like 2021-02-01T08:15 in {FIRST_YEAR} to {LAST_YEAR} (New York time, or with an offset), "
        "null or left out when unknown",
        False,
    ),
    "ride_id": Field(_ride_id, f"a string of 1 to {MAX_RIDE_ID} characters or a 64-bit integer", False),
}


def _unknown(name: str) -> str:
    near = get_close_matches(name[:MAX_RIDE_ID], FIELDS, 1)
    return f"is not a field of a ride{f'; did you mean {near[0]}?' if near else ''} (they are {', '.join(FIELDS)})"


def _shown(value: object) -> str:
    """The refused value as JSON, cut where a person stops reading."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "an array"
    text = msgspec.json.encode(value, enc_hook=repr).decode()
    return text if len(text) <= 60 else f"{text[:60]}…"
