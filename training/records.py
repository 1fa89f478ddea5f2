"""TLC trip records: read and cleaned, as much as memory should hold."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from ride_duration.inputs import Columns, hours_of_week
from ride_duration.ride import FIRST_YEAR, LAST_YEAR, MAX_MILES, Target
from ride_duration.slices import USUAL_MINUTES
from ride_duration.zones import FIRST_ZONE, LAST_ZONE

PREFIXES = {"green": "lpep", "yellow": "tpep"}
MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")

CARD = 1
"""TLC's payment_type of a card: a tip is recorded for those only."""


class TargetInfo(NamedTuple):
    """A target's unit, the range of records trained on (predictions are held within it), and the columns it comes from."""

    unit: str
    low: float
    high: float
    columns: tuple[str, ...] = ()


TARGETS: dict[Target, TargetInfo] = {
    "duration": TargetInfo("minutes", *USUAL_MINUTES),
    "fare": TargetInfo("dollars", 2.5, 200, ("fare_amount",)),
    "tip": TargetInfo("dollars", 0, 100, ("tip_amount", "payment_type")),
}


class RecordsError(ValueError):
    """Trip records that can't be found or read, with what to do about it."""


class Trips(NamedTuple):
    """Cleaned trips, each array of shape (trips,)."""

    rides: Columns
    """Distances that no ride may have are unknown."""
    pickup: NDArray[np.datetime64]
    recorded_distance: NDArray[np.float64]
    """Miles as the meter recorded them, meter errors included."""
    actual: NDArray[np.float64]
    """What is to be predicted, as recorded: minutes of duration, or dollars."""

    def part(self, rows: Any) -> "Trips":
        """The trips that a numpy index names."""
        return Trips(self.rides.part(rows), *(column[rows] for column in self[1:]))

    def months(self) -> list[str]:
        """Months of the pickups, like 2021-01, in order."""
        return [str(month) for month in np.unique(self.pickup.astype("datetime64[M]"))]

    @classmethod
    def join(cls, parts: list["Trips"]) -> "Trips":
        """All trips of several."""
        rides = Columns(*map(np.concatenate, zip(*(part.rides for part in parts), strict=True)))
        return cls(rides, *map(np.concatenate, zip(*(part[1:] for part in parts), strict=True)))


def read_trips(
    paths: Iterable[Path], target: Target = "duration", max_rows: int = 1_000_000, what: str = "records"
) -> tuple[Trips, Counter[str]]:
    """Read and clean Parquet files of trips, as TLC publishes them, for green or yellow taxis, row group by row group.

    A file named like `…_2021-01.parquet` gives the trips of that month.

    Parameters
    ----------
    max_rows
        Of more trips than this, a uniform sample (always the same) is kept, and never more than twice as many in memory.

    Returns
    -------
    The trips that a model can be tested on, whatever the target's value, and the account: how many rows were `read`, how many
    were dropped under each reason.

    Raises
    ------
    RecordsError
        If a file isn't Parquet, lacks a column, has one of another type, or if nothing is left.
    """
    paths = list(paths)
    random = np.random.default_rng(1)
    account: Counter[str] = Counter()
    held: list[Trips] = []
    lots: list[NDArray[np.float64]] = []
    for path in paths:
        for trips in _file_trips(path, target, account, what):
            held.append(trips)
            lots.append(random.random(len(trips.actual)))
            if sum(map(len, lots)) > 2 * max_rows:
                held, lots = _sample(held, lots, max_rows)
    if not sum(map(len, lots)):
        raise RecordsError(f"nothing is left of the {what} after cleaning: {', '.join(map(str, paths))}")
    held, lots = _sample(held, lots, max_rows)
    dropped = sum(count for reason, count in account.items() if reason != "read")
    account["left out of the sample"] = account["read"] - dropped - sum(map(len, lots))
    return Trips.join(held), account


def _sample(held: list[Trips], lots: list[NDArray[np.float64]], count: int) -> tuple[list[Trips], list[NDArray[np.float64]]]:
    """The trips that drew the lowest lots, in their order."""
    drawn = np.concatenate(lots)
    if len(drawn) <= count:
        return held, lots
    kept = np.sort(np.argpartition(drawn, count - 1)[:count])
    return [Trips.join(held).part(kept)], [drawn[kept]]


def _file_trips(path: Path, target: Target, account: Counter[str], what: str) -> Iterator[Trips]:
    named = re.search(rf"({MONTH.pattern})\.parquet$", path.name)
    month = np.datetime64(named[1]) if named else None
    try:
        with pq.ParquetFile(path) as file, tqdm(total=file.metadata.num_rows, unit="row", unit_scale=True, leave=False) as bar:
            bar.set_description(f"{what}: {path.name}")
            for columns in _read_columns(file, path, target):
                yield _clean(columns, month, account, target)
                bar.update(len(columns[0]))
    except pa.ArrowException as error:
        raise RecordsError(f"{path} can't be read as TLC trip records: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise RecordsError(f"{path} can't be read: {error.strerror or error}") from None


def _read_columns(file: pq.ParquetFile, path: Path, target: Target) -> Iterator[list[NDArray[Any]]]:
    """Pickup and drop-off time, zones, distance and the target's columns of each batch of rows."""
    names = set(file.schema_arrow.names)
    prefix = next((prefix for prefix in PREFIXES.values() if f"{prefix}_pickup_datetime" in names), "lpep")
    schema = pa.schema(
        [
            (f"{prefix}_pickup_datetime", pa.timestamp("us")),
            (f"{prefix}_dropoff_datetime", pa.timestamp("us")),
            ("PULocationID", pa.float64()),
            ("DOLocationID", pa.float64()),
            ("trip_distance", pa.float64()),
            *((name, pa.float64()) for name in TARGETS[target].columns),
        ]
    )
    missing = [name for name in schema.names if name not in names]
    if missing:
        raise RecordsError(f"{path} lacks the columns {', '.join(missing)}: it isn't a file of TLC's green or yellow trips")
    for field in schema:
        kind = file.schema_arrow.field(field.name).type
        if pa.types.is_timestamp(kind) != pa.types.is_timestamp(field.type) or getattr(kind, "tz", None):
            raise RecordsError(f"{path}: {field.name} is {kind} where TLC's files have {field.type}")
    for batch in file.iter_batches(columns=schema.names):
        yield [
            column.cast(field.type, safe=False).to_numpy(zero_copy_only=False)
            for column, field in zip(batch.select(schema.names).columns, schema, strict=True)
        ]


def _clean(columns: list[NDArray[Any]], month: np.datetime64 | None, account: Counter[str], target: Target) -> Trips:
    pickup, dropoff, pickup_zone, dropoff_zone, distance, *rest = columns
    duration = (dropoff - pickup) / np.timedelta64(1, "m")
    actual = rest[0] if rest else duration
    outside = np.zeros(len(pickup), bool) if month is None else pickup.astype("datetime64[M]") != month
    years = pickup.astype("datetime64[Y]").astype(np.int64) + 1970
    zones = np.stack([pickup_zone, dropoff_zone])
    kept = np.ones(len(pickup), bool)
    unrecorded = np.isnan(actual)
    if target == "tip":
        unrecorded |= rest[1] != CARD
    account["read"] += len(pickup)
    for reason, bad in {
        "no pickup or drop-off time": np.isnan(duration),
        f"pickup outside {FIRST_YEAR} to {LAST_YEAR}": (years < FIRST_YEAR) | (years > LAST_YEAR),
        f"pickup outside {month}": outside,
        "zone null or not of TLC's": ~((zones >= FIRST_ZONE) & (zones <= LAST_ZONE) & (zones == np.floor(zones))).all(axis=0),
        f"{target} not recorded": unrecorded,
    }.items():
        account[reason] += int((kept & bad).sum())
        kept &= ~bad
    rides = Columns(
        pickup_zone[kept].astype(np.int64),
        dropoff_zone[kept].astype(np.int64),
        np.where((distance >= 0) & (distance <= MAX_MILES), distance, np.nan)[kept],
        hours_of_week(pickup[kept]),
    )
    return Trips(rides, pickup[kept], distance[kept], actual[kept])
