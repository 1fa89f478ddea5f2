"""How wrong a model is on later rides, beside baselines fitted on the same rides."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ride_duration.inputs import Columns, inputs_of_columns, without_time
from ride_duration.model import Interval
from ride_duration.ride import Target
from ride_duration.zones import STRAIGHT_MILES, ZONES
from training.fit import Estimator, Values, as_recorded, fit_course, linear_model
from training.records import TARGETS, Trips

ANY = ", any "

Predictor = Callable[[Trips], Values]


class Evaluation(NamedTuple):
    """Errors by model, and what the model and its baselines predicted for the test trips within the target's range."""

    metrics: dict[str, dict[str, float]]
    test: Trips
    predictions: dict[str, Values]
    intervals: dict[str, tuple[Values, Values]]
    """Lows and highs of the model, by name."""


def errors(predicted: Values, actual: Values) -> dict[str, float]:
    """How wrong predictions are, in the target's unit: positive bias is too much."""
    off = predicted - actual
    return {
        name: round(float(value), 4)
        for name, value in {
            "rmse": np.sqrt((off**2).mean()),
            "mae": np.abs(off).mean(),
            "median": np.median(np.abs(off)),
            "p90": np.percentile(np.abs(off), 90),
            "bias": off.mean(),
        }.items()
    }


def evaluate(
    train: Trips, test: Trips, estimator: Estimator, interval: Interval | None, target: Target, boosting: bool = False
) -> Evaluation:
    """Measure the model and baselines on test trips, which are later than those trained on; LightGBM if `boosting`."""
    model = linear_model(estimator, target, interval)
    predictors: dict[str, Predictor] = {
        "model": lambda trips: model.predict_columns(trips.rides),
        "model, time unknown": lambda trips: model.predict_columns(without_time(trips.rides)),
        "model, distance unknown": lambda trips: model.predict_columns(without_distance(trips.rides)),
        **baselines(train),
        **(boosted(train) if boosting else {}),
    }
    filtered = test.part(in_range(test, target))
    predictions = {name: predict(filtered) for name, predict in predictors.items()}
    metrics = {name: errors(values, filtered.actual) for name, values in predictions.items()}
    intervals = {}
    if interval:
        for name, rides in (("model", filtered.rides), ("model, time unknown", without_time(filtered.rides))):
            intervals[name] = low, high = model.interval_columns(rides, predictions[name])
            metrics[name]["coverage"] = round(float(((low <= filtered.actual) & (filtered.actual <= high)).mean()), 4)
    metrics |= {f"{name}{ANY}{target}": errors(predict(test), test.actual) for name, predict in predictors.items()}
    return Evaluation(metrics, filtered, predictions, intervals)


def baselines(train: Trips) -> dict[str, Predictor]:
    """Other ways to predict, fitted on the same trips."""
    course = linear_model(fit_course(train))
    mean = float(train.actual.mean())
    medians = pair_medians(train)
    return {
        "mean": lambda trips: np.full(len(trips.actual), mean),
        "median of the zone pair": lambda trips: medians[trips.rides.PULocationID, trips.rides.DOLocationID],
        "course": lambda trips: course.linear_columns(as_recorded(trips)),
    }


BOOSTING = "LightGBM"


def boosted(train: Trips) -> dict[str, Predictor]:
    """Gradient boosting on the same four fields, hour and weekday, and on them with geography; nothing where LightGBM isn't."""
    try:
        import lightgbm
    except ModuleNotFoundError:
        return {}
    predictors: dict[str, Predictor] = {}
    for name, geography in ((BOOSTING, False), (f"{BOOSTING} with geography", True)):
        model = lightgbm.train(
            {"objective": "l2", "learning_rate": 0.05, "num_leaves": 63, "min_data_in_leaf": 40, "feature_fraction": 0.8,
             "bagging_fraction": 0.8, "bagging_freq": 1, "cat_smooth": 20, "seed": 1, "num_threads": 1, "verbose": -1,
             "deterministic": True, "force_row_wise": True},
            lightgbm.Dataset(_fields(train.rides, geography), train.actual, categorical_feature=[0, 1]),
            num_boost_round=400,
        )  # fmt: skip
        predictors[name] = lambda trips, model=model, geography=geography: model.predict(_fields(trips.rides, geography))  # type: ignore[misc]
    return predictors


def pair_medians(train: Trips) -> Values:
    """The median of each pair of zones, shape (266, 266); of all trips where a pair has none."""
    table = np.full(STRAIGHT_MILES.shape, np.median(train.actual))
    pair = train.rides.PULocationID * len(table) + train.rides.DOLocationID
    order = np.argsort(pair, kind="stable")
    pairs, starts = np.unique(pair[order], return_index=True)
    table.flat[pairs] = [np.median(values) for values in np.split(train.actual[order], starts[1:])]
    return table


def without_distance(rides: Columns) -> Columns:
    """The same rides, each of unknown distance."""
    return rides._replace(trip_distance=np.full_like(rides.trip_distance, np.nan))


def in_range(trips: Trips, target: Target) -> "np.typing.NDArray[np.bool_]":
    """Which trips' target is in its range: durations of 1 to 60 minutes."""
    return (trips.actual >= TARGETS[target].low) & (trips.actual <= TARGETS[target].high)


_PLACES = np.array([(np.nan, np.nan)] + [(z.latitude or np.nan, z.longitude or np.nan) for z in ZONES.values()])


def _fields(rides: Columns, geography: bool) -> Values:
    hour = rides.hour_of_week
    columns = [rides.PULocationID, rides.DOLocationID, rides.trip_distance, hour % 24, hour // 24]
    if geography:
        inputs = inputs_of_columns(rides)
        straight = STRAIGHT_MILES[rides.PULocationID, rides.DOLocationID]
        columns += [straight, inputs.miles, inputs.detour, *_PLACES[rides.PULocationID].T, *_PLACES[rides.DOLocationID].T]
    return np.column_stack(columns).astype(np.float64)
