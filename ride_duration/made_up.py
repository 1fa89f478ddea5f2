"""Rides that never were, for demonstrations on a machine without TLC's records."""

import numpy as np

from ride_duration.zones import LAST_ZONE, ROAD_FACTOR, STRAIGHT_MILES

MadeUp = tuple[str, str, int, int, float]
"""Pickup, dropoff, PULocationID, DOLocationID, trip_distance."""


def made_up(rides: int) -> list[MadeUp]:
    """Rides of February 2021: more by day than by night, slower in rush hours; a few that can't be scored."""
    chance = np.random.default_rng(1)
    by_hour = 1 + np.sin((np.arange(24) - 9) / 24 * 2 * np.pi)
    hours = np.sort(chance.integers(0, 28, rides) * 24 + chance.choice(24, rides, p=by_hour / by_hour.sum()))
    pickup = np.datetime64("2021-02-01", "s") + (hours * 3600 + chance.integers(0, 3600, rides)).astype("timedelta64[s]")
    zones = chance.integers(1, LAST_ZONE + 1, (2, rides))
    zones[1] = np.where(chance.random(rides) < 0.6, np.clip(zones[0] + chance.integers(-3, 4, rides), 1, LAST_ZONE), zones[1])
    miles = STRAIGHT_MILES[zones[0], zones[1]] * ROAD_FACTOR * chance.normal(1, 0.1, rides).clip(0.7)
    rush = np.isin(hours % 24, [8, 9, 16, 17, 18])
    minutes = (3 + miles * np.where(rush, 4.2, 3.2)) * chance.lognormal(0, 0.25, rides)
    zones[1, :: rides // 7] = LAST_ZONE + 1
    dropoff = pickup + (minutes * 60).astype("timedelta64[s]")
    times = (np.datetime_as_string(column).tolist() for column in (pickup, dropoff))
    return list(zip(*times, *zones.tolist(), miles.round(2).tolist(), strict=True))
