"""Trips → a fitted DictVectorizer and linear regression, with the interval around their predictions."""

from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LinearRegression, Ridge

from ride_duration.features import GROUP, MODEL_GROUPS, Group
from ride_duration.inputs import MAX_SCORED_MILES, Columns, inputs_of_columns, without_time
from ride_duration.model import Interval, LinearModel, Metadata
from ride_duration.ride import Target
from ride_duration.sanity import FLOOR
from training.records import TARGETS, RecordsError, Trips

COURSE_GROUPS = [GROUP["PU_DO"], GROUP["trip_distance"]]

# Chosen on time-blocked folds of 2021-01 and 2021-02 (benchmarks/ablation.py). Flat around these values: half or twice of any
# moves RMSE by about 0.01 minutes.
ALPHA = 9.0
TIMELESS_WEIGHT = 0.1
FEWEST_ROWS, RIDES_A_ROW = 7, 40_000
"""A feature that fewer rows than this have is dropped (each ride is two rows); more rows when there are many rides, which keeps
the file of millions of rides small."""

FEWEST_RIDES = 100
"""Rides that can be learnt from at all."""

LEVEL, OFFSET = 0.8, 5.0

SETTINGS = {"alpha": ALPHA, "timeless_weight": TIMELESS_WEIGHT, "fewest_rows": FEWEST_ROWS, "floor": FLOOR, "level": LEVEL}
"""What a training is told apart by when it is logged."""

Values = NDArray[np.float64]
Estimator = tuple[DictVectorizer, Ridge | LinearRegression]


def design(rides: Columns, groups: list[Group]) -> sp.csr_matrix:
    """The features of rides as a sparse matrix of shape (rides, all features of the groups), one group after another."""
    inputs = inputs_of_columns(rides)
    count = len(rides.trip_distance)
    rows, columns, values = [], [], []
    first = 0
    for group in groups:
        for index, value in group.of_columns(inputs):
            value = np.broadcast_to(np.asarray(value, np.float64), count)
            there = np.flatnonzero(value).astype(np.int32)
            rows.append(there)
            columns.append((np.broadcast_to(index, count)[there] + first).astype(np.int32))
            values.append(value[there])
        first += group.size
    return sp.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(count, first))


def fit(trips: Trips, groups: list[Group] = MODEL_GROUPS) -> Estimator:
    """Fit the vectorizer and the regression; RecordsError when there are too few trips.

    Each ride is seen twice, once without its time, so that one model answers both. The weights of the feature list go into the
    penalty and out of the coefficients again: `dv.transform` of `features(ride)` is what the regression takes.
    """
    if len(trips.actual) < FEWEST_RIDES:
        raise RecordsError(f"{len(trips.actual):,} rides are too few to train on; give at least {FEWEST_RIDES:,}")
    rides = trips.rides
    meter_errors = rides.trip_distance > MAX_SCORED_MILES
    rides = rides._replace(trip_distance=np.where(meter_errors, np.nan, rides.trip_distance))
    x = sp.vstack([design(rides, groups), design(without_time(rides), groups)], format="csc")
    vectorizer, order = vectorize(x, groups, max(FEWEST_ROWS, len(trips.actual) // RIDES_A_ROW))
    weights = np.concatenate([np.full(group.size, group.weight) for group in groups])[order]
    ridge = Ridge(alpha=ALPHA, solver="sparse_cg", tol=1e-4)
    ridge.fit(
        x[:, order] @ sp.diags(weights),
        np.concatenate([trips.actual, trips.actual]),
        sample_weight=np.repeat([1.0, TIMELESS_WEIGHT], len(trips.actual)),
    )
    ridge.coef_ = ridge.coef_ * weights
    return vectorizer, ridge


def fit_course(trips: Trips) -> Estimator:
    """The MLOps course's regression, as it fits it: PU_DO and the raw trip_distance, nothing regularised."""
    x = design(as_recorded(trips), COURSE_GROUPS)
    vectorizer, order = vectorize(x, COURSE_GROUPS, 1)
    return vectorizer, LinearRegression().fit(x[:, order], trips.actual)


def vectorize(x: sp.csr_matrix, groups: list[Group], fewest: int) -> tuple[DictVectorizer, NDArray[np.int64]]:
    """A DictVectorizer of the features that enough rows have, and those features' columns of `x` in its order.

    The vectorizer is fitted on one dict with all their tokens, which gives what a dict a ride would in a hundredth of the time.
    """
    kept = np.flatnonzero(x.getnnz(axis=0) >= fewest)
    first = np.cumsum([0, *(group.size for group in groups)])
    owner = np.searchsorted(first, kept, side="right") - 1
    tokens = [groups[g].token(int(column - first[g])) for g, column in zip(owner, kept, strict=True)]
    vectorizer = DictVectorizer().fit([dict.fromkeys(tokens, 1.0)])
    place = dict(zip(tokens, kept, strict=True))
    return vectorizer, np.array([place[token] for token in vectorizer.feature_names_])


def as_recorded(trips: Trips) -> Columns:
    """The rides with their distances as the meter recorded them, as the course takes them."""
    return trips.rides._replace(trip_distance=np.nan_to_num(trips.recorded_distance))


def calibrate(trips: Trips, target: Target) -> Interval | None:
    """The interval that held 80 % of later rides: three times, a model fitted on what came before is asked for what came next.

    None when there are too few trips for that.
    """
    cuts = np.quantile(trips.pickup.astype(np.int64), [1 / 3, 5 / 9, 7 / 9, 1]).astype(trips.pickup.dtype)
    ends: dict[str, tuple[float, float]] = {}
    relative: dict[str, list[Values]] = {"time_known": [], "time_unknown": []}
    for start, end in pairwise(cuts):
        before = trips.part(trips.pickup < start)
        after = trips.part((trips.pickup >= start) & (trips.pickup < end))
        if min(len(before.actual), len(after.actual)) < FEWEST_RIDES:
            return None
        model = linear_model(fit(before), target)
        for name, rides in (("time_known", after.rides), ("time_unknown", without_time(after.rides))):
            predicted = model.predict_columns(rides)
            relative[name].append((after.actual - predicted) / (predicted + OFFSET))
    for name, parts in relative.items():
        below, above = np.quantile(np.concatenate(parts), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        ends[name] = min(float(below), 0.0), max(float(above), 0.0)
    return Interval(LEVEL, OFFSET, **ends)


def linear_model(estimator: Estimator, target: Target | None = None, interval: Interval | None = None) -> LinearModel:
    """The estimator as the doors score it; with a target, within its bounds."""
    vectorizer, regression = estimator
    metadata = None if target is None else Metadata(**bounds(target), interval=interval, **_NOTHING_ELSE, target=target)
    tokens = dict(zip(vectorizer.feature_names_, regression.coef_.tolist(), strict=True))
    return LinearModel(regression.intercept_, tokens, metadata)


def bounds(target: Target) -> dict[str, Any]:
    """What predictions of a target are held within."""
    return {"bounds": (TARGETS[target].low, TARGETS[target].high), "floor": FLOOR if target == "duration" else 0.0}


_NOTHING_ELSE: dict[str, Any] = {
    "version": "none",
    "trained_on": [],
    "rows": 0,
    "metrics": {},
    "metrics_trained_on": [],
    "tested_on": [],
    "golden": [],
    "libraries": {},
}
