"""What rides are told apart by when errors and drift are looked at: hour, weekday, borough, miles."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ride_duration.inputs import UNKNOWN_HOUR, Columns
from ride_duration.zones import ZONES

EDGES = (0.5, 1, 2, 3, 5, 8, 12, 20)
"""Miles: a band ends below each of these."""

BANDS = (
    "unknown",
    f"under {EDGES[0]:g}",
    *(f"{low:g} to {high:g}" for low, high in pairwise(EDGES)),
    f"over {EDGES[-1]:g}",
)
"""Names of the bands of miles; without miles, or with 0, they are unknown."""

USUAL_MINUTES = (1, 60)
"""Rides that took less or longer are mostly meter errors: models are neither trained nor tested on them."""

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = tuple(f"{hour:02}" for hour in range(24))
BOROUGHS = tuple(sorted({zone.borough for zone in ZONES.values()}))

SLICES = {"hour": HOURS, "weekday": DAYS, "borough": BOROUGHS, "miles": BANDS}
"""What there is of each, in order; the borough is the pickup's."""

_BOROUGH_OF_ZONE = np.array([0] + [BOROUGHS.index(ZONES[zone].borough) for zone in sorted(ZONES)])


def slices(rides: Columns) -> dict[str, NDArray[np.int64]]:
    """Where each ride belongs: the places in `SLICES`, each of shape (rides,); -1 when its time is unknown."""
    known = rides.hour_of_week < UNKNOWN_HOUR
    miles = np.nan_to_num(rides.trip_distance)
    return {
        "hour": np.where(known, rides.hour_of_week % 24, -1),
        "weekday": np.where(known, rides.hour_of_week // 24, -1),
        "borough": _BOROUGH_OF_ZONE[rides.PULocationID],
        "miles": np.where(miles > 0, 1 + np.digitize(miles, EDGES), 0),
    }


def shares(rides: Columns) -> dict[str, dict[str, float]]:
    """The share of rides in each, rounded to 6 places; of those whose time is known, where that is the question."""
    found = {}
    for name, places in slices(rides).items():
        counts = np.bincount(places[places >= 0], minlength=len(SLICES[name]))
        of_all = np.round(counts / max(counts.sum(), 1), 6).tolist()
        found[name] = dict(zip(SLICES[name], of_all, strict=True))
    return found
