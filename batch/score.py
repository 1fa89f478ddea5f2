"""Score the rides of a database, an interval at a time, into the predictions database.

`python -m batch.score --rides sqlite:///rides.db --predictions sqlite:///predictions.db --from 2021-02-01 --to 2021-03-01`

An interval's predictions, rejects and run are written in one transaction: all of them are there, or none. A prediction that is
there stays as it is, so running an interval again changes nothing but what was missing.
"""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from batch.stores import MISSING, Address, Database, Rides, StoreError
from ride_duration.inputs import Columns, hours_of_week
from ride_duration.model import LinearModel, ModelError
from ride_duration.model_file import load_model
from ride_duration.ride import MAX_MILES, NEW_YORK, InvalidRide, check_ride
from ride_duration.zones import FIRST_ZONE, LAST_ZONE

NUMBERS = ("PULocationID", "DOLocationID", "trip_distance")
EXIT_STORE, EXIT_MODEL = 3, 4


class Counts(NamedTuple):
    """What became of an interval's rides: read = predicted + rejected."""

    read: int
    predicted: int
    rejected: int


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


def score_interval(model: LinearModel, rides: Rides, predictions: Database, start: datetime, end: datetime) -> Counts:
    """Score the rides of one interval, in one transaction."""
    began, counts = time.monotonic(), np.zeros(3, np.int64)
    ids = Ids()
    with predictions.transaction(f"{start} {end} {model.version}"):
        for batch in rides.read(start, end):
            scored, rejected = score(model, batch, ids)
            predictions.insert("predictions", scored)
            if len(rejected):
                predictions.insert("rejects", rejected)
            counts += (len(batch), len(scored), len(rejected))
        run = {
            "interval_start": [start],
            "interval_end": [end],
            "model_version": [model.version],
            "rides_read": [int(counts[0])],
            "predicted": [int(counts[1])],
            "rejected": [int(counts[2])],
            "seconds": [time.monotonic() - began],
            "finished_at": [_now()],
        }
        predictions.insert("runs", pa.table(run))
    return Counts(*counts.tolist())


def fill_interval(rides: Rides, predictions: Database, start: datetime, end: datetime) -> int:
    """Write how long the rides of one interval took into their predictions; how many of these did not know it before."""
    ids, filled = Ids(), 0
    with predictions.transaction(f"actuals {start} {end}"):
        for batch in rides.read(start, end):
            known = pa.array(np.flatnonzero(batch["actual"].to_numpy() != MISSING))
            actual = {"ride_id": ids.of(batch).take(known), "actual_duration": batch["actual"].take(known)}
            filled += predictions.fill_actuals(pa.table(actual))
    return filled


def score(model: LinearModel, batch: pa.RecordBatch, ids: "Ids") -> tuple[pa.Table, pa.Table]:
    """Predictions, and rejects, of a batch of rides as `Rides.read` gives them."""
    pickup = batch["pickup"].to_numpy()
    *zones, distance = (batch[name].to_numpy() for name in NUMBERS)
    miles = np.where(distance == MISSING, np.nan, distance)
    good = pc.equal(batch["odd"], "").to_numpy(zero_copy_only=False)
    for zone in zones:
        good &= (zone >= FIRST_ZONE) & (zone <= LAST_ZONE) & (zone == np.floor(zone))
    good &= np.isnan(miles) | ((miles >= 0) & (miles <= MAX_MILES))
    ride_ids = ids.of(batch)
    when, scored_at = pickup.astype("datetime64[s]"), _now()

    rows = np.flatnonzero(good)
    columns = Columns(zones[0][rows].astype(np.int64), zones[1][rows].astype(np.int64), miles[rows], hours_of_week(when[rows]))
    durations = model.predict_columns(columns)
    table = {
        "ride_id": ride_ids.take(pa.array(rows)),
        "model_version": _same(model.version, len(rows)),
        "pickup_datetime": when[rows],
        "PULocationID": columns.PULocationID,
        "DOLocationID": columns.DOLocationID,
        "trip_distance": pa.array(columns.trip_distance, from_pandas=True),
        "predicted_duration": durations,
        "scored_at": _same(scored_at, len(rows)),
    }
    if model.has_interval:
        table["low"], table["high"] = model.interval_columns(columns, durations)
    bad = np.flatnonzero(~good)
    reasons = [_reason(batch.slice(row, 1).to_pylist()[0]) for row in bad.tolist()]
    rejects = {
        "ride_id": ride_ids.take(pa.array(bad)),
        "model_version": _same(model.version, len(bad)),
        "pickup_datetime": when[bad],
        "field": pa.array([field for field, _ in reasons], pa.string()),
        "reason": pa.array([reason for _, reason in reasons], pa.string()),
        "scored_at": _same(scored_at, len(bad)),
    }
    return pa.table(table), pa.table(rejects)


def _reason(row: dict[str, Any]) -> tuple[str, str]:
    """The first field that the contract refuses, and why: in the words of every door."""
    ride: dict[str, Any] = {name: None if row[name] == MISSING else row[name] for name in NUMBERS}
    if row["odd"]:
        ride |= msgspec.json.decode(row["odd"])
    try:
        check_ride(ride)
    except InvalidRide as error:
        return error.errors[0].field, "; ".join(f"{e.field} {e.detail}" for e in error.errors)
    raise AssertionError(f"a ride that the contract takes was not scored: {ride}")


class Ids:
    """The ids of an interval's rides: their own, or a digest of what is known before a ride ends.

    Rides that are alike to the second are numbered; they come one after the other, sorted by time.
    """

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._second = -1

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        """Ids as text, one a row."""
        own, pickup = batch["ride_id"], batch["pickup"].to_numpy()
        digests = pickup.astype(np.uint64)
        for name in NUMBERS:
            digests = _mixed(digests ^ batch[name].to_numpy().view(np.uint64))
        digests = self._numbered(digests, pickup)
        text = digests.byteswap().tobytes().hex().encode()
        offsets = np.arange(0, 16 * len(batch) + 1, 16, dtype=np.int32)
        made = pa.StringArray.from_buffers(len(batch), pa.py_buffer(offsets), pa.py_buffer(text))
        return pc.if_else(pc.equal(own, ""), made, own)

    def _numbered(self, digests: NDArray[np.uint64], pickup: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Digests that are all different: the second of the same is mixed with a 1, the third with a 2."""
        if not len(digests):
            return digests
        order = np.argsort(digests, kind="stable")
        ordered = digests[order]
        first = np.r_[True, ordered[1:] != ordered[:-1]]
        start = np.flatnonzero(first)
        number = np.arange(len(ordered)) - np.repeat(start, np.diff(np.r_[start, len(ordered)]))
        numbers = np.empty(len(digests), np.int64)
        numbers[order] = number
        for row in np.flatnonzero(pickup == self._second):  # those that the last batch has begun
            numbers[row] += self._last.get(int(digests[row]), 0)
        if self._second != pickup[-1]:
            self._second, self._last = int(pickup[-1]), {}
        last = pickup == self._second
        # the last of each is numbered highest
        self._last |= dict(zip(digests[last].tolist(), (numbers[last] + 1).tolist(), strict=True))
        numbered = digests.copy()
        for row in np.flatnonzero(numbers):
            numbered[row] = _mixed(digests[row : row + 1] + np.uint64(numbers[row]))[0]
        return numbered


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of 64 spread over all: the finalizer of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _same(value: Any, count: int) -> pa.Array:
    return pa.array([value]).take(pa.array(np.zeros(count, np.int64)))


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None, microsecond=0)


def next_intervals(rides: Rides, predictions: Database, every: str, now: datetime) -> list[tuple[datetime, datetime]]:
    """Every complete interval since the last one done, or since the first ride, until the last ride or `now`."""
    span = rides.span()
    if span is None:
        return []
    first, last = span
    (row,) = predictions.rows("select cast(max(interval_end) as text) as done from runs")
    start = datetime.fromisoformat(row["done"]) if row["done"] else beginning(first, every)
    found = []
    while start <= last and (end := following(start, every)) <= now:
        found.append((start, end))
        start = end
    return found


@click.command(context_settings={"show_default": True})
@click.option(
    "--rides",
    "rides_url",
    required=True,
    metavar="URL",
    help="Where rides are: sqlite:///FILE.db, postgresql://…; #TABLE names the table.",
)
@click.option(
    "--predictions", "predictions_url", required=True, metavar="URL", help="Where predictions go; may be another database."
)
@click.option(
    "--from", "start", type=click.DateTime(), help="First pickup time, New York's. Without it: since the last interval done."
)
@click.option("--to", "end", type=click.DateTime(), help="End of the pickup times, itself not in.")
@click.option("--every", type=click.Choice(["hour", "day", "week", "month"]), default="day", help="Length of an interval.")
@click.option(
    "--column", "columns", multiple=True, metavar="OURS=THEIRS", help="A column that is called otherwise in the rides' table."
)
@click.option("--actuals", is_flag=True, help="Fill in how long rides took, where that is known by now, instead of scoring.")
@click.option("--model", "model_path", envvar="MODEL", default="model.bin", help="The model file.")
def main(
    rides_url: str,
    predictions_url: str,
    start: datetime | None,
    end: datetime | None,
    every: str,
    columns: tuple[str, ...],
    actuals: bool,
    model_path: str,
) -> None:
    """Score the rides picked up within each interval of a time, and write predictions, rejects and a run for each.

    Without --from and --to it scores every complete interval since the last one done, then ends: what cron calls.

    Exit codes: 0 done, 2 wrong options, 3 a database can't be used, 4 the model can't.
    """
    if (start is None) != (end is None):
        raise click.UsageError("--from and --to go together")
    mapping = dict(_pair(column) for column in columns)
    try:
        model = load_model(model_path, "duration")
        source = Database(Address.of(rides_url))
        rides = Rides(source, mapping)
        predictions = Database(Address.of(predictions_url), create=True)
        predictions.create_tables()
        now = datetime.now(NEW_YORK).replace(tzinfo=None)
        todo = list(intervals(start, end, every)) if start and end else next_intervals(rides, predictions, every, now)
        with tqdm(todo, unit=every, disable=None) as progress:
            if actuals:
                filled = sum(fill_interval(rides, predictions, *interval) for interval in progress)
            else:
                counts = [score_interval(model, rides, predictions, *interval) for interval in progress]
    except ModelError as error:
        click.echo(f"batch.score: {error}", err=True)
        sys.exit(EXIT_MODEL)
    except StoreError as error:
        click.echo(f"batch.score: {error}", err=True)
        sys.exit(EXIT_STORE)
    if actuals:
        click.echo(f"{len(todo):,} intervals of a {every}: {filled:,} predictions have got their actual duration")
        return
    read, predicted, rejected = (sum(column) for column in zip(Counts(0, 0, 0), *counts, strict=True))
    click.echo(
        f"{len(todo):,} intervals of a {every}: {read:,} rides read = {predicted:,} predicted + {rejected:,} rejected, "
        f"by {model.version}"
    )


def _pair(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not (equals and ours and theirs):
        raise click.BadParameter(f"{text!r} is not OURS=THEIRS", param_hint="--column")
    return ours, theirs


if __name__ == "__main__":
    main()
