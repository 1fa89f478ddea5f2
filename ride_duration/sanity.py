"""Whether a model's predictions make sense where its errors don't show it: swept over distances, zones and hours."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ride_duration.inputs import UNKNOWN_HOUR, Columns
from ride_duration.model import LinearModel
from ride_duration.slices import USUAL_MINUTES
from ride_duration.zones import LAST_ZONE

FLOOR = 0.8
"""Minutes a mile below which no ride is predicted: 75 miles an hour."""

STEPS = np.arange(0.5, 15.25, 0.25)
"""Miles that a ride is swept over."""

RIDES = 2000
ZONES = np.arange(1, LAST_ZONE + 1)
LARGE_FALL = 1.0
MOST_FALLING, LARGEST_FALL, LARGEST_JUMP = 0.02, 5.0, 0.5


class Sanity(NamedTuple):
    """What a sweep found, in minutes."""

    falling: float
    """Share of rides with a step of a quarter mile at which the prediction falls by over a minute."""
    largest_fall: float
    jump_at_50: float
    """Largest difference between 49.9 and 50.1 miles."""
    lowest: float
    highest: float
    lowest_a_mile: float
    """Over pairs of zones, distances to 200 miles (scored as 50) and hours."""

    def faults(self) -> list[str]:
        """What is not as it should be, in words."""
        low, high = USUAL_MINUTES
        return [
            words
            for words, wrong in {
                f"{self.falling:.1%} of rides get shorter with distance": self.falling > MOST_FALLING,
                f"a quarter mile more makes a ride {self.largest_fall:.1f} minutes shorter": self.largest_fall > LARGEST_FALL,
                f"there is a jump of {self.jump_at_50:.2f} minutes at 50 miles": self.jump_at_50 > LARGEST_JUMP,
                f"predictions go from {self.lowest:.1f} to {self.highest:.1f}": self.lowest < low or self.highest > high,
                f"a ride takes {self.lowest_a_mile:.2f} minutes a mile": self.lowest_a_mile < FLOOR - 1e-9,
            }.items()
            if wrong
        ]


def examine(model: LinearModel, rides: Columns) -> Sanity:
    """Sweep rides over distances, and pairs of zones over distances and hours."""
    falling, largest_fall = falls(model, rides)
    near = _at(model, _some(rides), np.array([49.9, 50.1]))
    every = np.array([(p, d) for p in ZONES for d in ZONES[:: 1 + p % 3]])
    miles = np.array([0, 0.1, 1, 3, 8, 20, 40, 50, 120, 200])
    lows, highs, a_mile = [], [], []
    for predicted in _between(model, every, range(0, UNKNOWN_HOUR, 13), miles):
        lows.append(predicted.min())
        highs.append(predicted.max())
        a_mile.append((predicted[:, 1:] / np.minimum(miles[1:], 50)).min())
    return Sanity(
        falling,
        largest_fall,
        float(np.abs(np.diff(near, axis=1)).max()),
        float(min(lows)),
        float(max(highs)),
        float(min(a_mile)),
    )


def falls(model: LinearModel, rides: Columns) -> tuple[float, float]:
    """The share of rides that get over a minute shorter by a quarter of a mile more, and the most that any does, in minutes."""
    found = -np.diff(_at(model, _some(rides), STEPS), axis=1).min(axis=1)
    return float((found > LARGE_FALL).mean()), float(max(found.max(), 0))


def extremes(model: LinearModel) -> tuple[float, float]:
    """The lowest and the highest prediction, in minutes, of rides between all zones, each with a few, near, far and unknown."""
    every = np.array([(p, d) for p in ZONES for d in ZONES[p % 16 :: 16]])
    found = list(_between(model, every, range(5, UNKNOWN_HOUR, 54), np.array([0, 0.1, 3, 20, 50])))
    return float(np.min(found)), float(np.max(found))


def _between(
    model: LinearModel, every: NDArray[np.int64], hours: range, miles: NDArray[np.float64]
) -> Iterator[NDArray[np.float64]]:
    """Predictions of pairs of zones at each distance, shape (pairs, miles), by hour of the week, and by none."""
    for hour in (*hours, UNKNOWN_HOUR):
        yield _at(model, Columns(every[:, 0], every[:, 1], np.zeros(len(every)), np.full(len(every), hour)), miles)


def _some(rides: Columns) -> Columns:
    return rides.part(np.linspace(0, len(rides.trip_distance) - 1, min(RIDES, len(rides.trip_distance))).astype(int))


def _at(model: LinearModel, rides: Columns, miles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Predictions of each ride at each distance, shape (rides, miles)."""
    many = rides.part(np.repeat(np.arange(len(rides.trip_distance)), len(miles)))
    swept = many._replace(trip_distance=np.tile(miles, len(rides.trip_distance)))
    return model.predict_columns(swept).reshape(-1, len(miles))
