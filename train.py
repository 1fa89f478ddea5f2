"""TLC trip records → model.bin: a DictVectorizer and a linear regression, with their evaluation.

See `python train.py --help`, and `ride_duration/features.py` for what the model sees of a ride.
"""

import hashlib
import pickle
import platform
import sys
from collections import Counter
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

try:
    import click
    import msgspec
    import numpy as np
    import sklearn
    from sklearn.pipeline import Pipeline
    from threadpoolctl import threadpool_limits

    from registry.embedded import open_registry
    from registry.mlflow import Registry, RegistryError
    from registry.options import checked_registry, default_registry
    from registry.runs import CANDIDATE, EXPERIMENT, NotRegisteredError, Training, keep
    from training.evaluation import BOOSTING, Evaluation, evaluate, in_range
    from training.fetch import TLC_URL, find, month_file
    from training.fit import SETTINGS, Estimator, bounds, calibrate, fit, linear_model
    from training.records import PREFIXES, TARGETS, RecordsError, Trips, read_trips
except ModuleNotFoundError as error:
    sys.exit(f"train.py needs {error.name}: run `make venv CATEGORIES=train`, then .venv/bin/python train.py")

from ride_duration.logs import shown
from ride_duration.model import Interval, LinearModel, ModelError
from ride_duration.model_file import load_model, parse_model, write_whole
from ride_duration.ride import Target, check_ride
from ride_duration.slices import shares

GOLDEN_RIDES = 24


def describe(
    estimator: Estimator, train: Trips, target: Target, interval: Interval | None, tested: dict[str, Any]
) -> dict[str, Any]:
    """The metadata that goes into the file, plain data, the same for the same records; `tested` is its part on the test."""
    vectorizer, regression = estimator
    model = linear_model(estimator, target)
    golden = []
    for number, row in enumerate(np.linspace(0, len(train.actual) - 1, GOLDEN_RIDES).astype(int)):
        zones = {name: int(getattr(train.rides, name)[row]) for name in ("PULocationID", "DOLocationID")}
        distance = None if number % 4 == 3 else float(np.nan_to_num(train.rides.trip_distance[row]))
        time = {"pickup_datetime": str(train.pickup[row].astype("datetime64[s]"))} if number % 3 else {}
        ride = zones | {"trip_distance": distance} | time
        golden.append({"ride": ride, "prediction": model.predict(check_ride(ride))})
    metadata = {
        "target": target,
        "trained_on": train.months(),
        "trained_until": str(train.pickup.max().astype("datetime64[s]")),
        "rows": len(train.actual),
        **tested,
        **bounds(target),
        "interval": msgspec.to_builtins(interval),
        "golden": golden,
        "inputs": shares(train.rides),
        "libraries": {"python": platform.python_version(), "scikit-learn": sklearn.__version__, "numpy": np.__version__},
    }
    digest = hashlib.sha256(msgspec.json.encode([metadata, vectorizer.feature_names_, regression.intercept_.hex()]))
    digest.update(regression.coef_.tobytes())
    # msgspec makes lists of tuples: nothing but plain data goes into the pickle
    return {"version": f"{span(train.months())}-{digest.hexdigest()[:8]}"} | msgspec.to_builtins(metadata)  # type: ignore[no-any-return]


def span(months: list[str]) -> str:
    """2021-01, or the first and the last of several."""
    return months[0] if len(months) == 1 else f"{months[0]}..{months[-1]}"


def account_for(trips: Trips, account: Counter[str], target: Target, what: str) -> list[tuple[int, str]]:
    """How many rows were read, dropped under each reason, and kept."""
    usable = in_range(trips, target)
    unknown = int((usable & ~(trips.rides.trip_distance > 0)).sum())
    info = TARGETS[target]
    dropped = {reason: rows for reason, rows in account.items() if reason != "read"}
    dropped[f"{target} outside {info.low:g} to {info.high:g} {info.unit}"] = int((~usable).sum())
    if not usable.any():
        raise RecordsError(f"nothing is left of the {what} records after cleaning")
    return [
        (account["read"], "rows read"),
        *((-rows, reason) for reason, rows in dropped.items() if rows),
        (int(usable.sum()), f"kept, {unknown:,} of them with distance unknown"),
    ]


def echo_metrics(metrics: dict[str, dict[str, float]], unit: str, heading: str) -> None:
    """A table of errors."""
    columns = list(dict.fromkeys(column for row in metrics.values() for column in row))
    click.echo(f"\n{heading}\n{unit:40}" + "".join(f"{column:>9}" for column in columns))
    for name, row in metrics.items():
        click.echo(f"{name:40}" + "".join(f"{row[column]:9.2f}" if column in row else " " * 9 for column in columns))


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.argument("records", nargs=-1)
@click.option("--taxi", type=click.Choice(sorted(PREFIXES)), default="green", help="Whose records --month means.")
@click.option("--month", "months", multiple=True, metavar="YYYY-MM", help="A month to train on; may be repeated.")
@click.option("--test-month", "test_months", multiple=True, metavar="YYYY-MM", help="A later month to test on.")
@click.option("--test", "tests", multiple=True, metavar="RECORDS", help="Records to test on: a path, a glob or a URL.")
@click.option("--test-from", type=click.DateTime(), help="Test on the trips from this pickup time on, train on those before.")
@click.option("--target", type=click.Choice(list(TARGETS)), default="duration", help="What to predict.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default="data", help="Folder of the months' files.")
@click.option("--source", default=TLC_URL, envvar="TLC_URL", metavar="URL", help="Where missing months are fetched from.")
@click.option("--max-rows", type=click.IntRange(1000), default=1_000_000, help="Train on a sample of so many trips at most.")
@click.option("--final", is_flag=True, help="After testing, fit again on all months given, tests included.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write a page of plots and tables too.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="model.bin", help="The file to write.")
@click.option(
    "--mlflow",
    "registry_uri",
    metavar="URI",
    callback=checked_registry,
    help="Log the training in MLflow: http://HOST:PORT or sqlite:///FILE.db.",
)
@click.option(
    "--register",
    "name",
    metavar="NAME",
    help=f"Log it, there or where MLFLOW_TRACKING_URI says, and register the model as its newest version and its {CANDIDATE}.",
)
def main(
    records: tuple[str, ...],
    taxi: str,
    months: tuple[str, ...],
    test_months: tuple[str, ...],
    tests: tuple[str, ...],
    test_from: datetime | None,
    target: Target,
    data: Path,
    source: str,
    max_rows: int,
    final: bool,
    report: Path | None,
    out: Path,
    registry_uri: str | None,
    name: str | None,
) -> None:
    """Train a model on TLC trip records and write model.bin.

    RECORDS are Parquet files as TLC publishes them, green or yellow: paths, globs or URLs. Months are looked for in the data
    folder, and fetched from TLC when they aren't there.

    \b
    python train.py --month 2021-01 --test-month 2021-02            train on January, test on February
    python train.py --month 2021-01 --test-month 2021-02 --final    the same, then fit on both
    python train.py 'data/green_*.parquet'                          train on files, test on nothing
    python train.py --month 2021-01 --test-from 2021-01-25          train on January before the 25th, test on the rest
    python train.py --month 2021-01 --register ride-duration        the same as train.py alone, and kept in MLflow

    Exit codes: 0 done, 2 wrong options or records, 3 the registry can't be used.
    """
    if name is not None:
        if not name.strip():
            raise click.UsageError("--register needs a name")
        registry_uri = registry_uri or default_registry()
    accounts: dict[str, list[tuple[int, str]]] = {}
    files: dict[str, list[str]] = {"training": [], "test": []}

    def load(names: tuple[str, ...], wanted: tuple[str, ...], what: str) -> Trips | None:
        paths = [path for name in names for path in find(name, data)] + [month_file(taxi, m, data, source) for m in wanted]
        if not paths:
            return None
        files[what] = [path.name for path in paths]
        trips, account = read_trips(paths, target, max_rows, what)
        accounts[what] = account_for(trips, account, target, what)
        click.echo(f"{what}: {', '.join(path.name for path in paths)}")
        for rows, reason in accounts[what]:
            click.echo(f"{rows:12,} {reason}")
        return trips

    with ExitStack() as opened:
        try:
            wants_page = bool(report or registry_uri)
            if wants_page:
                from training.report import render  # needs what training alone doesn't
            registry = opened.enter_context(open_registry(registry_uri)) if registry_uri else None
            if registry:
                registry.takes(EXPERIMENT, name)  # else an hour of training would be lost on a typo
            train, test = load(records, months, "training"), load(tests, test_months, "test")
            if train is None:
                raise RecordsError("nothing to train on; give records, or --month 2021-01")
            if test_from:
                if test:
                    raise RecordsError("--test-from takes the test from the training records: no --test, no --test-month")
                train, test = parted(train, test_from)
            train = train.part(in_range(train, target))
            if final and test is None:
                raise RecordsError("--final fits again after a test; give --test-month, --test or --test-from, or leave it out")
            if test and test.pickup.min() <= train.pickup.max():
                raise RecordsError(
                    f"a test must be of later months than training, else it proves nothing; "
                    f"got training on {span(train.months())}, test on {span(test.months())}"
                )
            with threadpool_limits(1):  # the same sums in the same order give the same bytes
                estimator, interval = fit(train), calibrate(train, target)
                evaluation: Evaluation | None = None
                tested: dict[str, Any] = {"tested_on": [], "metrics": {}, "metrics_trained_on": []}
                if test:
                    evaluation = evaluate(train, test, estimator, interval, target, boosting=wants_page)
                    # what is installed must not change the file
                    metrics = {name: row for name, row in evaluation.metrics.items() if not name.startswith(BOOSTING)}
                    tested = {"tested_on": test.months(), "metrics": metrics, "metrics_trained_on": train.months()}
                    heading = f"errors: trained on {span(train.months())}, tested on {span(test.months())}"
                    echo_metrics(evaluation.metrics, TARGETS[target].unit, heading)
                else:
                    click.echo("\nno errors to show: give --test-month, --test or --test-from with later trips")
                if test and final:
                    train = Trips.join([train, test.part(in_range(test, target))])
                    estimator, interval = fit(train), calibrate(train, target)
                estimator[1].metadata_ = describe(estimator, train, target, interval, tested)
            content = pickle.dumps(estimator, protocol=4)
            model = parse_model(content)
            page = render(model, load_old(out), train, evaluation, accounts) if wants_page else b""
            if report:
                write_whole(page, report)
            write_whole(content, out)
        except (RecordsError, OSError, ModelError) as error:
            raise Refused(str(error)) from None
        except RegistryError as error:
            raise NotLogged(str(error)) from None
        click.echo(
            f"\n{out}: version {model.version}, trained on {span(train.months())} ({len(train.actual):,} rides), "
            f"{model.coefficients:,} coefficients, {len(content) / 1e6:.2f} MB"
        )
        if registry:
            options = {
                "records": shown(" ".join([*records, *months])),
                "taxi": taxi,
                "training_files": files["training"],
                "test_files": files["test"],
                "max_rows": max_rows,
                "final": final,
                "test_from": test_from,
            }
            metrics = evaluation.metrics if evaluation else {}
            try:
                click.echo(log_training(registry, name, estimator, model, content, options, metrics, page))
            except NotRegisteredError as error:
                raise NotLogged(f"{out} is written, {error}") from None
            except RegistryError as error:
                raise NotLogged(f"{out} is written, but not logged: {error}") from None


def parted(trips: Trips, time: datetime) -> tuple[Trips, Trips]:
    """The trips before a time, and those from it on; RecordsError if either has none."""
    later = trips.pickup >= np.datetime64(time)
    if later.all() or not later.any():
        span = f"{trips.pickup.min().astype('datetime64[s]')} to {trips.pickup.max().astype('datetime64[s]')}"
        raise RecordsError(f"no trip is {'before' if later.all() else 'from'} {time}: the training records go from {span}")
    return trips.part(~later), trips.part(later)


def log_training(
    registry: Registry,
    name: str | None,
    estimator: Estimator,
    model: LinearModel,
    content: bytes,
    options: dict[str, Any],
    metrics: dict[str, dict[str, float]],
    page: bytes,
) -> str:
    """Keep a training in the registry, see `registry.runs.keep`; what was done, in words."""
    assert model.metadata is not None
    facts = msgspec.to_builtins(model.metadata)
    told = {key: facts[key] for key in ("trained_on", "trained_until", "tested_on", "rows")} | {
        "coefficients": model.coefficients
    }
    pipeline = Pipeline([("vectorizer", estimator[0]), ("regression", estimator[1])])
    training = Training(
        model.version,
        model.target,
        content,
        pickle.dumps(pipeline, protocol=4),
        model.metadata.libraries,
        options | told | SETTINGS,
        metrics,
        page,
    )
    run, number = keep(registry, training, name)
    return f"logged as run {run}" + (f", registered as {name}, version {number}, its {CANDIDATE}" if number else "")


def load_old(path: Path) -> Any:
    """The model that is about to be replaced, or None."""
    try:
        return load_model(path)
    except ModelError:
        return None


class Refused(click.ClickException):
    """Records or options that can't be trained on."""

    exit_code = 2


class NotLogged(click.ClickException):
    """A registry that can't be used."""

    exit_code = 3


if __name__ == "__main__":
    main()
