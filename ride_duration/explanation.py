"""Why a ride's prediction is what it is: the parts that it is the sum of, in words."""

from datetime import datetime

import msgspec

from ride_duration.inputs import inputs_of_ride
from ride_duration.model import LinearModel
from ride_duration.ride import Ride
from ride_duration.zones import ZONES


class Part(msgspec.Struct, frozen=True):
    """A part of a prediction: all features of one group. `minutes` = `value` x `coefficient`.

    Between two nodes of a distance scale the coefficient is what lies between theirs.
    """

    feature: str
    """What it is, in words."""
    value: float
    coefficient: float
    minutes: float


def explain(model: LinearModel, ride: Ride) -> list[Part]:
    """The parts of a prediction, largest first; their `minutes` add up to it."""
    words = _words(ride)
    linear = model.intercept
    parts = [_part("an average ride, before its details", 1.0, model.intercept)]
    for group, amount, minutes in model.parts(ride):
        linear += minutes
        if minutes:
            parts.append(_part(group.words.format_map(words), amount, minutes))
    held = model.predict(ride) - linear
    if abs(held) > 1e-9:
        parts.append(_part("held within what rides can last", 1.0, held))
    return sorted(parts, key=lambda part: -abs(part.minutes))


def _part(feature: str, value: float, minutes: float) -> Part:
    return Part(feature, value, minutes / value if value else 0.0, minutes)


def _words(ride: Ride) -> dict[str, str]:
    pickup, dropoff = ZONES[ride.PULocationID].name, ZONES[ride.DOLocationID].name
    inputs = inputs_of_ride(ride)
    miles = f"{ride.trip_distance or inputs.miles:.3g} miles"
    return {
        "pickup": pickup,
        "dropoff": dropoff,
        "around": f"around {pickup} → around {dropoff}",
        "wide": f"{pickup} and beyond → {dropoff} and beyond",
        "miles": miles if ride.trip_distance else f"about {miles} by the map",
        "detour": f"{inputs.detour:.2g} times the straight line",
        "time": _time(ride.pickup_datetime),
    }


def _time(pickup: datetime | None) -> str:
    return "time unknown" if pickup is None else f"{pickup:%A} {pickup.hour}:00"
