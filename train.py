"""TLC trip records → model.bin: a DictVectorizer and a linear regression, with their evaluation.

See `python train.py --help`, and `ride_duration/features.py` for what the model sees of a ride.
"""

import hashlib
import os
import pickle
import platform
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import click
    import numpy as np
    import scipy.sparse as sp
    import sklearn
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LinearRegression, Ridge
    from threadpoolctl import threadpool_limits
    from tqdm import tqdm

    from ride_duration.records import PREFIXES, TLC_URL, RecordsError, Trips, find, month_file, read_trips
except ModuleNotFoundError as error:
    sys.exit(f"train.py needs {error.name}: run `make venv CATEGORIES=train`, then .venv/bin/python train.py")

import msgspec
from numpy.typing import NDArray

from ride_duration.features import GROUP, MODEL_GROUPS, Group
from ride_duration.inputs import MAX_SCORED_MILES, UNKNOWN_HOUR, Columns, inputs_of_columns
from ride_duration.model import LinearModel
from ride_duration.model_file import load_model, parse_model
from ride_duration.ride import check_ride

COURSE_GROUPS = [GROUP["PU_DO"], GROUP["trip_distance"]]

MINUTES = (1.0, 60.0)
"""Durations trained on, and the bounds that predictions are held within; the course's filter."""

# Chosen on 2021-01 → 2021-02. Flat around these values: half or twice of any moves RMSE by less than 0.01 minutes.
ALPHA = 9.0
TIMELESS_WEIGHT = 0.1
FEWEST_ROWS = 7

GOLDEN_RIDES = 24

ANY_DURATION = ", any duration"

Durations = NDArray[np.float64]
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
            there = np.flatnonzero(value)
            rows.append(there)
            columns.append(np.broadcast_to(index, count)[there] + first)
            values.append(value[there])
        first += group.size
    return sp.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(count, first))


def fit(rides: Columns, durations: Durations) -> Estimator:
    """Fit the vectorizer and the regression.

    Each ride is seen twice, once without its time, so that one model answers both. The weights of the feature list go into the
    penalty and out of the coefficients again: `dv.transform` of `features(ride)` is what the regression takes.
    """
    meter_errors = rides.trip_distance > MAX_SCORED_MILES
    rides = rides._replace(trip_distance=np.where(meter_errors, np.nan, rides.trip_distance))
    x = sp.vstack([design(rides, MODEL_GROUPS), design(without_time(rides), MODEL_GROUPS)], format="csc")
    vectorizer, order = vectorize(x, MODEL_GROUPS, FEWEST_ROWS)
    weights = np.concatenate([np.full(group.size, group.weight) for group in MODEL_GROUPS])[order]
    ridge = Ridge(alpha=ALPHA, solver="sparse_cg", tol=1e-4)
    ridge.fit(
        x[:, order] @ sp.diags(weights),
        np.concatenate([durations, durations]),
        sample_weight=np.repeat([1.0, TIMELESS_WEIGHT], len(durations)),
    )
    ridge.coef_ = ridge.coef_ * weights
    return vectorizer, ridge


def fit_course(rides: Columns, durations: Durations) -> Estimator:
    """The MLOps course's regression, as it fits it: PU_DO and the raw trip_distance, nothing regularised."""
    x = design(rides, COURSE_GROUPS)
    vectorizer, order = vectorize(x, COURSE_GROUPS, 1)
    return vectorizer, LinearRegression().fit(x[:, order], durations)


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


def without_time(rides: Columns) -> Columns:
    """The same rides, each at an unknown time."""
    return rides._replace(hour_of_week=np.full_like(rides.hour_of_week, UNKNOWN_HOUR))


def linear_model(estimator: Estimator) -> LinearModel:
    """The estimator as the doors score it, without bounds."""
    vectorizer, regression = estimator
    return LinearModel(regression.intercept_, dict(zip(vectorizer.feature_names_, regression.coef_.tolist(), strict=True)))


def errors(predicted: Durations, actual: Durations) -> dict[str, float]:
    """How wrong predictions are, in minutes: positive bias is too long."""
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


def evaluate(train: Trips, test: Trips, estimator: Estimator) -> dict[str, dict[str, float]]:
    """Errors on the test trips of the model and of baselines fitted on the same trips."""
    ours, course = linear_model(estimator), linear_model(fit_course(as_recorded(train), train.duration))
    mean = float(train.duration.mean())
    predictors: dict[str, Callable[[Trips], Durations]] = {
        "model": lambda trips: np.clip(ours.linear_columns(trips.rides), *MINUTES),
        "model, time unknown": lambda trips: np.clip(ours.linear_columns(without_time(trips.rides)), *MINUTES),
        "mean": lambda trips: np.full(len(trips.duration), mean),
        "course": lambda trips: course.linear_columns(as_recorded(trips)),
    }
    filtered = test.part(in_range(test))
    return {
        f"{name}{note}": errors(predict(trips), trips.duration)
        for trips, note in ((filtered, ""), (test, ANY_DURATION))
        for name, predict in predictors.items()
    }


def as_recorded(trips: Trips) -> Columns:
    """The rides with their distances as the meter recorded them, as the course takes them."""
    return trips.rides._replace(trip_distance=np.nan_to_num(trips.recorded_distance))


def in_range(trips: Trips) -> NDArray[np.bool_]:
    """Which trips last 1 to 60 minutes."""
    return (trips.duration >= MINUTES[0]) & (trips.duration <= MINUTES[1])


def describe(estimator: Estimator, train: Trips, test: dict[str, Any]) -> dict[str, Any]:
    """The metadata that goes into the file: plain data, the same for the same records and options; `test` tells of the test."""
    vectorizer, regression = estimator
    model = linear_model(estimator)
    golden = []
    for number, row in enumerate(np.linspace(0, len(train.duration) - 1, GOLDEN_RIDES).astype(int)):
        zones = {name: int(getattr(train.rides, name)[row]) for name in ("PULocationID", "DOLocationID")}
        distance = None if number % 4 == 3 else float(np.nan_to_num(train.rides.trip_distance[row]))
        time = {"pickup_datetime": str(train.pickup[row].astype("datetime64[s]"))} if number % 3 else {}
        ride = zones | {"trip_distance": distance} | time
        golden.append({"ride": ride, "prediction": float(np.clip(model.linear(check_ride(ride)), *MINUTES))})
    metadata = {
        "target": "duration",
        "trained_on": train.months(),
        "rows": len(train.duration),
        **test,
        "bounds": list(MINUTES),
        "golden": golden,
        "libraries": {"python": platform.python_version(), "scikit-learn": sklearn.__version__, "numpy": np.__version__},
    }
    digest = hashlib.sha256(msgspec.json.encode([metadata, vectorizer.feature_names_, regression.intercept_.hex()]))
    digest.update(regression.coef_.tobytes())
    return {"version": f"{span(train.months())}-{digest.hexdigest()[:8]}"} | metadata


def span(months: list[str]) -> str:
    """2021-01, or the first and the last of several."""
    return months[0] if len(months) == 1 else f"{months[0]}..{months[-1]}"


def write(estimator: Estimator, path: Path) -> None:
    """Put the pair in the file's place in one step, when it is whole and loads."""
    data = pickle.dumps(estimator, protocol=4)
    parse_model(data)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_trips(paths: list[Path], what: str) -> Trips:
    """Read, clean and account for trip records, on standard output."""
    account: Counter[str] = Counter()
    parts = []
    for path in tqdm(paths, desc=f"reading {what}", unit="file", leave=False):
        trips, counts = read_trips(path)
        parts.append(trips)
        account += counts
    trips = Trips.join(parts)
    usable = int(in_range(trips).sum())
    click.echo(f"{what}: {', '.join(path.name for path in paths)}")
    click.echo(f"{account.pop('read'):12,} rows read")
    for reason, rows in account.items():
        click.echo(f"{-rows:12,} {reason}")
    click.echo(f"{usable - len(trips.duration):12,} duration outside {MINUTES[0]:g} to {MINUTES[1]:g} minutes")
    unknown = int((in_range(trips) & ~(trips.rides.trip_distance > 0)).sum())
    click.echo(f"{usable:12,} kept, {unknown:,} of them with distance unknown")
    if not usable:
        raise RecordsError(f"nothing is left of the {what} records after cleaning")
    return trips


def echo_metrics(metrics: dict[str, dict[str, float]], heading: str) -> None:
    """A table of errors."""
    click.echo(f"\n{heading}\n{'minutes':36}" + "".join(f"{name:>9}" for name in next(iter(metrics.values()))))
    for name, row in metrics.items():
        click.echo(f"{name:36}" + "".join(f"{value:9.2f}" for value in row.values()))


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.argument("records", nargs=-1)
@click.option("--taxi", type=click.Choice(sorted(PREFIXES)), default="green", help="Whose records --month means.")
@click.option("--month", "months", multiple=True, metavar="YYYY-MM", help="A month to train on; may be repeated.")
@click.option(
    "--test-month", "test_months", multiple=True, metavar="YYYY-MM", help="A later month to test on; may be repeated."
)
@click.option("--test", "tests", multiple=True, metavar="RECORDS", help="Records to test on: a path, a glob or a URL.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default="data", help="Folder of the months' files.")
@click.option("--source", default=TLC_URL, envvar="TLC_URL", metavar="URL", help="Where missing months are fetched from.")
@click.option("--final", is_flag=True, help="After testing, fit again on all months given, tests included.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="model.bin", help="The file to write.")
def main(
    records: tuple[str, ...],
    taxi: str,
    months: tuple[str, ...],
    test_months: tuple[str, ...],
    tests: tuple[str, ...],
    data: Path,
    source: str,
    final: bool,
    out: Path,
) -> None:
    """Train the ride duration model on TLC trip records and write model.bin.

    RECORDS are Parquet files as TLC publishes them, green or yellow: paths, globs or URLs. Months are looked for in the data
    folder, and fetched from TLC when they aren't there.

    \b
    python train.py --month 2021-01 --test-month 2021-02            train on January, test on February
    python train.py --month 2021-01 --test-month 2021-02 --final    the same, then fit on both
    python train.py 'data/green_*.parquet'                          train on files, test on nothing
    """

    def files(names: tuple[str, ...], wanted: tuple[str, ...]) -> list[Path]:
        return [path for name in names for path in find(name, data)] + [month_file(taxi, m, data, source) for m in wanted]

    try:
        train_files, test_files = files(records, months), files(tests, test_months)
        if not train_files:
            raise RecordsError("nothing to train on; give records, or --month 2021-01")
        train = load_trips(train_files, "training")
        train = train.part(in_range(train))
        test = load_trips(test_files, "test") if test_files else None
        if test and test.months()[0] <= train.months()[-1]:
            raise RecordsError(
                f"a test must be of later months than training, else it proves nothing; "
                f"got training on {span(train.months())}, test on {span(test.months())}"
            )
        with threadpool_limits(1):  # the same sums in the same order give the same bytes
            estimator = fit(train.rides, train.duration)
            tested: dict[str, Any] = {"tested_on": [], "metrics": {}, "metrics_trained_on": []}
            if test:
                metrics = evaluate(train, test, estimator)
                tested = {"tested_on": test.months(), "metrics": metrics, "metrics_trained_on": train.months()}
                echo_metrics(metrics, f"errors: trained on {span(train.months())}, tested on {span(test.months())}")
            else:
                click.echo("\nno errors to show: give --test-month or --test with later months")
            if test and final:
                train = Trips.join([train, test.part(in_range(test))])
                estimator = fit(train.rides, train.duration)
            estimator[1].metadata_ = describe(estimator, train, tested)
            write(estimator, out)
    except (RecordsError, OSError) as error:
        raise Refused(str(error)) from None
    model = load_model(out)
    click.echo(
        f"\n{out}: version {model.version}, trained on {span(train.months())} ({len(train.duration):,} rides), "
        f"{model.coefficients:,} coefficients, {out.stat().st_size / 1e6:.2f} MB"
    )


class Refused(click.ClickException):
    """Records or options that can't be trained on."""

    exit_code = 2


if __name__ == "__main__":
    main()
