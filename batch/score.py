"""Score rides, an interval at a time, into predictions: databases or files, see `stores`.

`python -m batch.score --rides sqlite:///rides.db --predictions sqlite:///predictions.db --from 2021-02-01 --to 2021-03-01`

An interval's predictions, rejects and run are all there, or none of them. A prediction that is there stays as it is, so running
an interval again changes nothing but what was missing.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

import click
import numpy as np

try:
    import pyarrow as pa
    from tqdm import tqdm

    from batch.scoring import score
    from ride_duration.stores import (
        KINDS,
        MISSING,
        TABLES,
        Predictions,
        Rides,
        Span,
        StoreError,
        now,
        open_predictions,
        open_rides,
        pickup_now,
    )
    from ride_duration.stores.ids import Ids
    from ride_duration.stores.options import column_option
except ModuleNotFoundError as error:
    sys.exit(f"batch.score needs {error.name}: run `make venv CATEGORIES=batch`, then .venv/bin/python -m batch.score")

from ride_duration.model import LinearModel, ModelError
from ride_duration.model_file import load_model

EXIT_STORE, EXIT_MODEL, EXIT_EMPTY = 3, 4, 5


GAP = timedelta(days=31)
"""Real records have rides whose clock is years wrong: what is between these and the others is not gone through."""


class Counts(NamedTuple):
    """What became of an interval's rides: read = predicted + rejected, when they are scored."""

    read: int
    predicted: int = 0
    rejected: int = 0
    filled: int = 0
    """Predictions that have got their actual duration."""


Work = Callable[[Rides, Predictions, datetime, datetime], Counts]
"""What is done with the rides of an interval, and their predictions."""


def intervals(start: datetime, end: datetime, every: str) -> Iterator[tuple[datetime, datetime]]:
    """The intervals from `start` to `end`, half-open, the last one cut short at `end`.

    >>> [f"{a:%d}-{b:%d}" for a, b in intervals(datetime(2021, 2, 1), datetime(2021, 2, 17), "week")]
    ['01-08', '08-15', '15-17']
    """
    while start < end:
        after = following(start, every)
        yield start, min(after, end)
        start = after


def following(start: datetime, every: str) -> datetime:
    """The end of the interval that begins at `start`."""
    if every == "month":
        return (start.replace(day=1) + timedelta(days=32)).replace(day=1)
    return start + {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}[every]


def beginning(time: datetime, every: str) -> datetime:
    """The beginning of the interval that `time` is in; weeks begin on Mondays."""
    if every == "hour":
        return time.replace(minute=0, second=0, microsecond=0)
    day = time.replace(hour=0, minute=0, second=0, microsecond=0)
    if every == "month":
        return day.replace(day=1)
    return day - timedelta(days=day.weekday()) if every == "week" else day


def score_interval(model: LinearModel, rides: Rides, predictions: Predictions, start: datetime, end: datetime) -> Counts:
    """Score the rides of one interval: all that comes of it is written, or nothing."""
    began, counts = time.monotonic(), np.zeros(3, np.int64)
    ids = Ids()
    with predictions.writing(start, end, model.version) as writing:
        for batch in rides.read(start, end):
            scored, rejected = score(model, batch, ids)
            writing.add(scored, rejected)
            counts += (len(batch), len(scored), len(rejected))
        run = [start, end, model.version, *counts.tolist(), time.monotonic() - began, now()]
        writing.finish(pa.table([[value] for value in run], schema=TABLES["runs"]))
    return Counts(*counts.tolist())


def fill_interval(rides: Rides, predictions: Predictions, start: datetime, end: datetime) -> Counts:
    """Write how long the rides of one interval took into their predictions."""
    ids, read = Ids(), 0
    with predictions.filling(start, end) as filling:
        for batch in rides.read(start, end):
            read += len(batch)
            known = pa.array(np.flatnonzero(batch["actual"].to_numpy() != MISSING))
            columns = {
                "ride_id": ids.of(batch),
                "actual_duration": batch["actual"],
                "pickup_datetime": batch["pickup"].cast(pa.timestamp("s")),
            }
            filling.fill(pa.table(columns).take(known))
    return Counts(read, filled=filling.filled)


def next_intervals(span: Span, done: datetime | None, every: str, until: datetime) -> list[tuple[datetime, datetime]]:
    """Every complete interval since `done`, the end of the last one, or since the first ride; to the last ride or `until`."""
    if span.first is None or span.last is None:
        return []
    start = done or beginning(span.first, every)
    found = []
    while start <= span.last and (end := following(start, every)) <= until:
        found.append((start, end))
        start = end
    return found


def go_through(
    todo: Iterable[tuple[datetime, datetime]], work: Work, rides: Rides, predictions: Predictions, leaps: bool
) -> Iterator[Counts]:
    """Work on an interval after the other; after an empty one `leaps` to the next ride, if it is far away."""
    ahead = datetime.min
    for start, end in todo:
        if end <= ahead:
            continue
        counts = work(rides, predictions, start, end)
        yield counts
        if leaps and not (counts.read or rides.exist(end, end + GAP)):
            ahead = rides.span(end).first or end


class Failure(click.ClickException):
    """What went wrong, and the exit code that tells which."""

    def __init__(self, message: object, exit_code: int) -> None:
        super().__init__(str(message))
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it of the instance too


every_option = click.option(
    "--every", type=click.Choice(["hour", "day", "week", "month"]), default="day", help="Length of an interval."
)


def account(intervals: int, every: str, read: int, predicted: int, rejected: int, version: str) -> str:
    """What became of the rides, in a line."""
    return (
        f"{intervals:,} intervals, {every} by {every}: {read:,} rides read = {predicted:,} predicted + {rejected:,} rejected, "
        f"by {version}"
    )


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option(
    "--rides",
    "rides_url",
    required=True,
    metavar="URL",
    envvar="RIDES",
    help=f"Where rides are: {KINDS}. #TABLE names a table.",
)
@click.option(
    "--predictions",
    "predictions_url",
    required=True,
    metavar="URL",
    envvar="PREDICTIONS",
    help="Where predictions go, made if there are none.",
)
@click.option(
    "--from", "start", type=click.DateTime(), help="First pickup time, New York's. Without it: since the last interval done."
)
@click.option("--to", "end", type=click.DateTime(), help="End of the pickup times, itself not in.")
@every_option
@column_option
@click.option("--actuals", is_flag=True, help="Fill in how long rides took, where that is known by now, instead of scoring.")
@click.option("--model", "model_path", envvar="MODEL", default="model.bin", help="The model file.")
def main(
    rides_url: str,
    predictions_url: str,
    start: datetime | None,
    end: datetime | None,
    every: str,
    mapping: dict[str, str],
    actuals: bool,
    model_path: str,
) -> None:
    """Score the rides picked up within each interval of a time, and write predictions, rejects and a run for each.

    Without --from and --to it scores every complete interval since the last one done, then ends: what cron calls.
    A URL with a password belongs in the environment, RIDES and PREDICTIONS: other users see a process's options.

    \b
    python -m batch.score --rides 'data/*.parquet' --predictions sqlite:///predictions.db --from 2021-02-01 --to 2021-03-01
    python -m batch.score --rides postgresql://me@host/rides#trips --predictions s3://bucket/predictions --every hour

    Exit codes: 0 done, 2 wrong options, 3 a store can't be used, 4 the model can't, 5 no ride is in the time given.
    """
    if (start is None) != (end is None):
        raise click.UsageError("--from and --to go together")
    if start and end and start >= end:
        raise click.UsageError(f"--from must be before --to; got {start} and {end}")
    try:
        model = None if actuals else load_model(model_path, "duration")
        with ExitStack() as opened:
            rides = opened.enter_context(closing(open_rides(rides_url, mapping)))
            if start and end and not rides.exist(start, end):
                raise Failure(f"{_of(rides.span(None))}; none is from {start} to {end}", EXIT_EMPTY)
            predictions = opened.enter_context(closing(open_predictions(predictions_url)))
            if model:
                predictions.introduce(model)
            if start and end:
                todo = list(intervals(start, end, every))
            else:
                done = None if actuals else predictions.last_end()
                span = rides.span(done)
                todo = next_intervals(span, done, every, pickup_now())
                if span.timeless:
                    click.echo(f"{span.timeless:,} rides in no interval: their pickup time can't be read", err=True)
            progress = opened.enter_context(tqdm(todo, unit=every, disable=None))
            work: Work = partial(score_interval, model) if model else fill_interval
            counts = list(go_through(progress, work, rides, predictions, leaps=start is None))
    except ModelError as error:
        raise Failure(error, EXIT_MODEL) from None
    except StoreError as error:
        raise Failure(error, EXIT_STORE) from None
    read, predicted, rejected, filled = (sum(column) for column in zip(Counts(0), *counts, strict=True))
    if model is None:
        click.echo(f"{len(counts):,} intervals, {every} by {every}: {filled:,} predictions have got their actual duration")
    else:
        click.echo(account(len(counts), every, read, predicted, rejected, model.version))


def _of(span: Span) -> str:
    return f"the rides' pickup times are from {span.first} to {span.last}" if span.first else "there are no rides"


if __name__ == "__main__":
    main()
