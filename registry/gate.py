"""Whether a candidate may take the champion's place: both asked for rides that neither was trained on, side by side.

Every check is a figure, the lower the better, and a limit. Where the champion itself is beyond a limit, a candidate that is
no worse passes, but for cost and size: what has drifted for both must not keep the better one out. How much two equally good
models differ by chance, `python -m benchmarks.gate` measures; the limits leave twice that and more.
"""

import statistics
import time
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ride_duration.inputs import Columns, without_time
from ride_duration.model import GoldenRide, LinearModel
from ride_duration.ride import EXAMPLE, InvalidRide, Ride, check_ride
from ride_duration.sanity import LARGEST_FALL, MOST_FALLING, extremes, falls
from ride_duration.slices import SLICES, USUAL_MINUTES, slices

FEWEST = 1000
"""Labelled rides that can tell two models apart at all; with few, what chance can do is let go with RMSE's limit."""

FEWEST_IN_SLICE = 300
ROUNDS, CALLS = 15, 200
"""Of measuring what a ride costs."""

Values = NDArray[np.float64]


class Limits(NamedTuple):
    """What a candidate is held to."""

    rmse: float = 1.005
    """Of the champion's, and one standard error of the difference between the two more."""
    bias: float = 0.5
    """Minutes, either way; or 0.05 more than the champion's."""
    coverage: float = 0.05
    """How far the share of rides within the interval may be from what it promises; or 0.01 farther than the champion's."""
    worst_slice: float = 1.1
    """RMSE in any hour, weekday, borough or band of miles, of the champion's there."""
    golden: float = 0.75
    """How far an answer to one of the champion's golden rides may be from the champion's: of that and 5 minutes more."""
    falling: float = MOST_FALLING
    """Share of rides that get over a minute shorter by a quarter of a mile more; or 0.015 more than the champion's."""
    fall: float = LARGEST_FALL
    """Minutes that any gets shorter by it; or 1.5 more than the champion's."""
    beyond: float = 0.0
    """Minutes that any answer, whatever the zones, is beyond the usual; or one more than the champion's."""
    microseconds: float = 50.0
    """CPU time of one ride; whatever the champion's is, like the next."""
    megabytes: float = 8.0


class Check(msgspec.Struct):
    """A figure of both, the lower the better."""

    name: str
    candidate: float | None
    """None where it has none: a ride without an answer, an interval that is missing."""
    champion: float | None
    limit: float
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is within the limit."""
        return self.candidate is not None and self.candidate <= self.limit

    def reason(self) -> str:
        """What is wrong, in words."""
        beside = "" if self.champion is None else f"; the champion's is {self.champion:.4g}"
        found = "there is none" if self.candidate is None else f"{self.candidate:.4g} is over {self.limit:.4g}"
        return f"{self.name}{f' ({self.where})' if self.where else ''}: {found}{beside}"


class Figures(NamedTuple):
    """What is found of a model by itself, the lower the better."""

    off: Values
    """Predicted less actual, minutes."""
    timeless_off: Values
    """Of the same rides, asked for without their time."""
    bias: float
    """Minutes, without its sign."""
    coverage_off: float | None
    """How far the share of rides within the interval is from what is promised; None without an interval."""
    timeless_coverage_off: float | None
    falling: float
    fall: float
    beyond: float


def figures(model: LinearModel, rides: Columns, actual: Values, level: float) -> Figures:
    """Ask a model for rides whose duration is known, and sweep it; `level` is what an interval should hold of rides."""

    def asked(rides: Columns) -> tuple[Values, float | None]:
        predicted = model.predict_columns(rides)
        if not model.has_interval:
            return predicted - actual, None
        low, high = model.interval_columns(rides, predicted)
        return predicted - actual, abs(float(((low <= actual) & (actual <= high)).mean()) - level)

    off, coverage_off = asked(rides)
    timeless_off, timeless_coverage_off = asked(without_time(rides))
    lowest, highest = extremes(model)
    beyond = max(USUAL_MINUTES[0] - lowest, highest - USUAL_MINUTES[1], 0.0)
    bias = abs(float(off.mean()))
    return Figures(off, timeless_off, bias, coverage_off, timeless_coverage_off, *falls(model, rides), beyond)


def compare(
    candidate: LinearModel,
    champion: LinearModel | None,
    rides: Columns,
    actual: Values,
    sizes: tuple[int, int] = (0, 0),
    limits: Limits = Limits(),  # noqa: B008  # it can't be changed
) -> list[Check]:
    """The checks of a candidate.

    Parameters
    ----------
    champion
        None when there is none yet: then RMSE is held against answering every ride with the mean, and what has only the
        champion for a measure is left out.
    rides, actual
        Rides that usual durations are known of, in minutes, and which neither model has seen.
    sizes
        Bytes of the candidate's file, and of the champion's.
    """
    unknown = np.isnan(rides.trip_distance)
    unanswered = [float(unknown.mean()) if model and model.needs_distance else 0.0 for model in (candidate, champion)]
    if any(unanswered):
        rides, actual = rides.part(~unknown), actual[~unknown]
    if len(actual) < FEWEST:
        return [Check("rides that both answer", None, None, 0.0)]
    tables = [
        model.metadata.interval for model in (champion, candidate) if model and model.metadata and model.metadata.interval
    ]
    level = tables[0].level if tables else 0.0
    own, other = figures(candidate, rides, actual, level), figures(champion, rides, actual, level) if champion else None

    def held(name: str, value: float | None, before: float | None, limit: float, slack: float = 0.0) -> Check:
        """A check with a limit of its own, or what the champion has and a little more."""
        return Check(name, value, before, limit if before is None else max(limit, before + slack))

    checks = [held("rides without an answer", unanswered[0], unanswered[1] if champion else None, 0.0)]
    for name, errors, errors_before in (
        ("RMSE, minutes", own.off, other and other.off),
        ("RMSE without time, minutes", own.timeless_off, other and other.timeless_off),
    ):
        if errors_before is None:
            checks.append(Check(name, _rmse(errors), None, float(actual.std())))
        else:
            before = _rmse(errors_before)
            chance = float((errors**2 - errors_before**2).std()) / len(actual) ** 0.5 / (2 * before)
            checks.append(Check(name, _rmse(errors), before, before * limits.rmse + chance))
    checks.append(held("bias, minutes", own.bias, other and other.bias, limits.bias, slack=0.05))
    if tables:
        off, timeless = other and other.coverage_off, other and other.timeless_coverage_off
        checks.append(held("coverage off by", own.coverage_off, off, limits.coverage, slack=0.01))
        checks.append(held("coverage without time off by", own.timeless_coverage_off, timeless, limits.coverage, slack=0.01))
    if other and (worst := _worst_slice(rides, own.off, other.off)):
        checks.append(Check("RMSE in the worst slice, of the champion's", worst[0], 1.0, limits.worst_slice, worst[1]))
    if champion and champion.metadata and champion.metadata.golden:
        checks.append(_golden(candidate, champion.metadata.golden, limits))
    cost, cost_before = _costs(candidate, champion)
    size, size_before = (bytes_ / 1e6 for bytes_ in sizes)
    return [
        *checks,
        held("rides that get shorter with distance", own.falling, other and other.falling, limits.falling, slack=0.015),
        held("largest fall with distance, minutes", own.fall, other and other.fall, limits.fall, slack=1.5),
        held("minutes beyond 1 to 60, anywhere", own.beyond, other and other.beyond, limits.beyond, slack=1.0),
        Check("cost of a ride, CPU µs", cost, cost_before, limits.microseconds),
        Check("size, MB", size, size_before if champion else None, limits.megabytes),
    ]


def _rmse(off: Values) -> float:
    return float(np.sqrt((off**2).mean()))


def _worst_slice(rides: Columns, off: Values, before: Values) -> tuple[float, str] | None:
    """The largest ratio of RMSEs, and where."""
    found = []
    for name, places in slices(rides).items():
        for place, label in enumerate(SLICES[name]):
            rows = places == place
            if rows.sum() >= FEWEST_IN_SLICE:
                found.append((_rmse(off[rows]) / _rmse(before[rows]), f"{name} {label}"))
    return max(found, default=None)


def _golden(candidate: LinearModel, rides: list[GoldenRide], limits: Limits) -> Check:
    worst, where = 0.0, ""
    for golden in rides:
        told = f"{golden.ride.PULocationID} to {golden.ride.DOLocationID}, {golden.ride.trip_distance} miles"
        try:
            apart = abs(candidate.predict(golden.ride) - golden.prediction) / (golden.prediction + 5)
        except InvalidRide:
            return Check("golden rides", None, 0.0, limits.golden, told)
        if apart > worst:
            worst, where = apart, told
    return Check("golden rides, apart from the champion", worst, 0.0, limits.golden, where)


def _costs(candidate: LinearModel, champion: LinearModel | None) -> tuple[float, float | None]:
    """CPU µs of one ride, both measured in turns."""
    ride: Ride = check_ride(EXAMPLE)
    models = [model for model in (candidate, champion) if model]
    found: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for model, costs in zip(models, found, strict=True):
            began = time.thread_time()
            for _ in range(CALLS):
                model.predict(ride)
            costs.append((time.thread_time() - began) / CALLS * 1e6)
    medians = [statistics.median(costs) for costs in found]
    return medians[0], medians[1] if champion else None
