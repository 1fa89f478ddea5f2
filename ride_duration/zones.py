"""TLC's 265 taxi zones: name, borough, centroid, and the straight line between any two."""

import csv
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FIRST_ZONE, LAST_ZONE = 1, 265
UNKNOWN_ZONE, OUTSIDE_ZONE = 264, 265

# Straight miles where centroids don't give them: within one zone, to or from the unknown zone, to or from outside
# the city. Median trip_distance of such TLC green records of 2021-01 (0.78, 2.4 and 12.3), over ROAD_FACTOR.
SAME_ZONE_MILES, UNKNOWN_ZONE_MILES, OUTSIDE_ZONE_MILES = 0.6, 1.8, 9.0

ROAD_FACTOR = 1.36
"""Miles driven per straight mile, the median of TLC green records of 2021-01."""

AIRPORTS = {1: "EWR", 132: "JFK", 138: "LGA"}

_MILES_PER_DEGREE = 69.0
_NEW_YORK_LATITUDE = 40.73


class Zone(NamedTuple):
    """A row of `zones.csv`; latitude and longitude are degrees, None for zones 264 and 265."""

    zone_id: int
    name: str
    borough: str
    latitude: float | None
    longitude: float | None


def _read() -> dict[int, Zone]:
    # as a resource: the package may be in a zip, as Spark ships it
    text = files("ride_duration").joinpath("zones.csv").read_text("utf-8")
    return {
        int(row["zone_id"]): Zone(
            int(row["zone_id"]),
            row["zone"],
            row["borough"],
            float(row["latitude"]) if row["latitude"] else None,
            float(row["longitude"]) if row["longitude"] else None,
        )
        for row in csv.DictReader(text.splitlines())
    }


def _places() -> NDArray[np.float64]:
    """Miles north and east of each zone's centroid on a plane, shape (266, 2)."""
    degrees = np.full((LAST_ZONE + 1, 2), np.nan)
    for zone in ZONES.values():
        if zone.latitude is not None:
            degrees[zone.zone_id] = zone.latitude, zone.longitude
    return degrees * _MILES_PER_DEGREE * (1.0, np.cos(np.radians(_NEW_YORK_LATITUDE)))


def _straight_miles() -> NDArray[np.float64]:
    table = np.hypot(*(PLACES[:, None, axis] - PLACES[None, :, axis] for axis in (0, 1)))
    table[OUTSIDE_ZONE] = table[:, OUTSIDE_ZONE] = OUTSIDE_ZONE_MILES
    table[UNKNOWN_ZONE] = table[:, UNKNOWN_ZONE] = table[OUTSIDE_ZONE, OUTSIDE_ZONE] = UNKNOWN_ZONE_MILES
    return np.maximum(table, SAME_ZONE_MILES)


def map_cells(width: float, shift: float = 0.0) -> list[str]:
    """The square of a map that each zone's centroid lies in, by zone id: a letter to the east, a number to the north.

    Airports, and zones without a place on the map, have cells of their own.

    Parameters
    ----------
    width
        Miles across a square.
    shift
        Widths by which the grid is moved to the north and east.
    """
    north, east = (np.floor((axis - np.nanmin(axis)) / width + shift) for axis in PLACES.T)
    return [
        AIRPORTS.get(zone) or (str(zone) if np.isnan(north[zone]) else f"{chr(ord('A') + int(east[zone]))}{north[zone]:.0f}")
        for zone in range(LAST_ZONE + 1)
    ]


ZONES = _read()

PLACES = _places()
"""Miles north and east of each zone's centroid, on a plane, shape (266, 2), by zone id; NaN for zones without a place."""

STRAIGHT_MILES = _straight_miles()
"""Miles from centroid to centroid on a plane (good to 0.5 % across the city), shape (266, 266), by zone ids."""
