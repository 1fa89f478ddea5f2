"""What features are made of: the quantities of a ride, and of rides as columns."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ride_duration.ride import Ride
from ride_duration.zones import ROAD_FACTOR, STRAIGHT_MILES

MAX_SCORED_MILES = 50
"""A longer distance is scored as this one; in training it is taken as unknown: such records are mostly meter errors."""

UNKNOWN_HOUR = 168
"""`hour_of_week` of a ride whose time is unknown; the others are 0 (Monday, midnight) to 167."""

_STRAIGHT_MILES_OF_ONE = STRAIGHT_MILES.tolist()


class Inputs(NamedTuple):
    """The quantities that features are made of: each a number for one ride, or an array for a column of rides."""

    PULocationID: Any
    DOLocationID: Any
    hour_of_week: Any
    trip_distance: Any
    """Miles as they came: NaN unknown, 0 and 120 included."""
    miles: Any
    """Miles to score: at most 50; the road between the zones when the trip's are unknown."""
    log_miles: Any
    detour: Any
    """Miles per straight mile between the zones."""


class Columns(NamedTuple):
    """Rides as columns, valid by the limits of `Ride`, each of shape (rides,)."""

    PULocationID: NDArray[np.integer[Any]]
    DOLocationID: NDArray[np.integer[Any]]
    trip_distance: NDArray[np.float64]
    """Miles; NaN or 0 when unknown."""
    hour_of_week: NDArray[np.integer[Any]]
    """See `hours_of_week`."""

    @classmethod
    def of(cls, rides: Sequence[Ride]) -> "Columns":
        """The same rides as columns."""
        count = len(rides)
        return cls(
            np.fromiter((r.PULocationID for r in rides), np.int64, count),
            np.fromiter((r.DOLocationID for r in rides), np.int64, count),
            np.array([r.trip_distance for r in rides], np.float64),
            np.fromiter(map(_hour_of_week, rides), np.int64, count),
        )

    def part(self, rows: Any) -> "Columns":
        """The rows that a numpy index names."""
        return Columns(*(column[rows] for column in self))


def hours_of_week(pickup: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """Hours since Monday, midnight, of New York local times; NaT is `UNKNOWN_HOUR`."""
    hours = pickup.astype("datetime64[h]").astype(np.int64) + 3 * 24  # 1970-01-01 was a Thursday
    return np.where(np.isnat(pickup), UNKNOWN_HOUR, hours % UNKNOWN_HOUR)


def _hour_of_week(ride: Ride) -> int:
    pickup = ride.pickup_datetime
    return UNKNOWN_HOUR if pickup is None else pickup.weekday() * 24 + pickup.hour


def inputs_of_ride(ride: Ride) -> Inputs:
    """What features are made of, for one ride."""
    pickup_zone, dropoff_zone, came = ride.PULocationID, ride.DOLocationID, ride.trip_distance
    straight = _STRAIGHT_MILES_OF_ONE[pickup_zone][dropoff_zone]
    miles = min(came, MAX_SCORED_MILES) if came else straight * ROAD_FACTOR
    return Inputs(
        pickup_zone,
        dropoff_zone,
        _hour_of_week(ride),
        math.nan if came is None else came,
        miles,
        math.log1p(miles),
        miles / straight,
    )


def inputs_of_columns(columns: Columns) -> Inputs:
    """What features are made of, for columns: the same as `inputs_of_ride` of each row."""
    came = columns.trip_distance
    known = came > 0
    straight = STRAIGHT_MILES[columns.PULocationID, columns.DOLocationID]
    miles = np.where(known, np.minimum(came, MAX_SCORED_MILES), straight * ROAD_FACTOR)
    return Inputs(
        columns.PULocationID,
        columns.DOLocationID,
        columns.hour_of_week,
        came,
        miles,
        np.log1p(miles),
        miles / straight,
    )


def without_time(rides: Columns) -> Columns:
    """The same rides, each at an unknown time."""
    return rides._replace(hour_of_week=np.full_like(rides.hour_of_week, UNKNOWN_HOUR))
