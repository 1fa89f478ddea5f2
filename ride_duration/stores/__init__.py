"""Where rides come from and predictions go, whatever holds them: the addresses, the columns, the tables.

A database is `databases`, files are `files`; `open_rides` and `open_predictions` choose by the address.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import pyarrow as pa

from ride_duration.logs import shown
from ride_duration.model import LinearModel
from ride_duration.ride import NEW_YORK

MISSING = -1e300
"""Stands for NULL among numbers: SQLite's driver takes a column's type from its first cells, and NULL has none."""

COLUMNS = {
    "ride_id": ("ride_id",),
    "pickup_datetime": ("pickup_datetime", "lpep_pickup_datetime", "tpep_pickup_datetime"),
    "PULocationID": ("PULocationID",),
    "DOLocationID": ("DOLocationID",),
    "trip_distance": ("trip_distance",),
    "dropoff_datetime": ("dropoff_datetime", "lpep_dropoff_datetime", "tpep_dropoff_datetime"),
}
"""A ride's columns, and the names that they are looked for by; `ride_id` and `dropoff_datetime` may be missing."""

NUMBERS = ("PULocationID", "DOLocationID", "trip_distance")

RIDES = pa.schema(
    [
        ("ride_id", pa.string()),
        ("pickup", pa.int64()),
        *((name, pa.float64()) for name in NUMBERS),
        ("actual", pa.float64()),
        ("odd", pa.string()),
    ]
)
"""Rides as they are read from any store: ride_id (empty without one), pickup (seconds, of New York's clock), the numbers and
actual (minutes), where `MISSING` is NULL, and odd: JSON of the fields that are of no type that a ride has, else empty."""

_TIME, _TEXT, _NUMBER, _COUNT = pa.timestamp("s"), pa.string(), pa.float64(), pa.int64()
TABLES = {
    "predictions": pa.schema(
        {
            "ride_id": _TEXT,
            "model_version": _TEXT,
            "pickup_datetime": _TIME,
            "PULocationID": _COUNT,
            "DOLocationID": _COUNT,
            "trip_distance": _NUMBER,
            "predicted_duration": _NUMBER,
            "low": _NUMBER,
            "high": _NUMBER,
            "scored_at": _TIME,
            "actual_duration": _NUMBER,
        }
    ),
    "rejects": pa.schema(
        {
            "ride_id": _TEXT,
            "model_version": _TEXT,
            "pickup_datetime": _TIME,
            "field": _TEXT,
            "reason": _TEXT,
            "scored_at": _TIME,
        }
    ),
    "runs": pa.schema(
        {
            "interval_start": _TIME,
            "interval_end": _TIME,
            "model_version": _TEXT,
            "rides_read": _COUNT,
            "predicted": _COUNT,
            "rejected": _COUNT,
            "seconds": _NUMBER,
            "finished_at": _TIME,
        }
    ),
}
"""What the job writes: minutes, miles, times of New York's clock, but for `scored_at` and `finished_at`, which are UTC."""

KEYS = {
    "predictions": ("ride_id", "model_version"),
    "rejects": ("ride_id", "model_version"),
    "runs": ("interval_start", "interval_end", "model_version"),
}

_KINDS = {"sqlite": "sqlite", "postgresql": "postgresql", "postgres": "postgresql"} | dict.fromkeys(
    ("", "file", "s3", "gs"), "parquet"
)
KINDS = "sqlite:///FILE.db, postgresql://USER@HOST/DATABASE, or Parquet: a path, s3://BUCKET/KEY, gs://BUCKET/KEY"


class StoreError(ValueError):
    """A store that can't be used, and why, in a sentence; never with its password."""


class Address(NamedTuple):
    """A store's URL, taken apart: `sqlite:///rides.db#table`, `postgresql://user@host/database#table`, `s3://bucket/rides`."""

    kind: str
    """`sqlite`, `postgresql` or `parquet`."""
    url: str
    table: str

    @classmethod
    def of(cls, text: str) -> "Address":
        """Read a URL.

        Raises
        ------
        StoreError
            If it is of no kind that there is, or names a table that SQL can't.
        """
        scheme = urlsplit(text).scheme
        kind = _KINDS.get(scheme, "")
        url, _, table = text.partition("#")
        if not kind or not url or (kind == "sqlite" and not url[len("sqlite:///") :]):
            raise StoreError(f"{shown(text)!r} is not a store: give {KINDS}")
        if table and kind == "parquet":
            raise StoreError(f"{shown(text)}: files have no tables, so leave #{table} out")
        if table and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?", table):
            raise StoreError(f"{shown(text)}: {table[:60]!r} is not the name of a table")
        return cls(kind, url, table)


class Span(NamedTuple):
    """The first and the last pickup of a store's rides, None without any, and how many rides have none that can be read."""

    first: datetime | None
    last: datetime | None
    timeless: int


class Rides(Protocol):
    """Rides by their pickup time."""

    def close(self) -> None:
        """Let go of what holds them."""

    def span(self, since: datetime | None) -> Span:
        """What times there are since a time."""

    def exist(self, start: datetime, end: datetime) -> bool:
        """Whether any was picked up within [start, end)."""

    def read(self, start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        """Those picked up within [start, end) in order of time, as `RIDES`; rides of the same second in no order."""


class Writing(Protocol):
    """An interval that is being written."""

    def add(self, predictions: pa.Table, rejects: pa.Table) -> None:
        """Add rows whose key isn't there yet."""

    def finish(self, run: pa.Table) -> None:
        """Add the run, of one row: all of the interval is there from now on."""


class Filling(Protocol):
    """An interval whose actual durations are being filled in."""

    filled: int
    """Predictions that did not know it before; counted when the interval is closed."""

    def fill(self, actuals: pa.Table) -> None:
        """Write `actual_duration` by `ride_id` where it isn't known yet, and `pickup_datetime` of rides predicted without."""


class Predictions(Protocol):
    """Predictions, rejects and runs: `TABLES`."""

    def close(self) -> None:
        """Let go of what holds them."""

    def last_end(self) -> datetime | None:
        """The end of the last interval that is done."""

    def introduce(self, model: LinearModel) -> None:
        """Keep what a dashboard wants to know of a model."""

    def writing(self, start: datetime, end: datetime, version: str) -> AbstractContextManager[Writing]:
        """An interval to write, all or nothing. Another job that writes the same waits."""

    def filling(self, start: datetime, end: datetime) -> AbstractContextManager[Filling]:
        """An interval to fill, all or nothing."""


def open_rides(url: str, mapping: Mapping[str, str]) -> Rides:
    """The rides at an address; `mapping` has their names of columns that are called otherwise there.

    Raises
    ------
    StoreError
        If they can't be reached, or have no such column.
    """
    address = Address.of(url)
    if address.kind == "parquet":
        from ride_duration.stores.files import FileRides

        return FileRides(address, mapping)
    from ride_duration.stores import databases

    return databases.open_rides(databases.Database(address), mapping)


def open_predictions(url: str) -> Predictions:
    """The predictions at an address, made if there are none.

    Raises
    ------
    StoreError
        If they can't be reached.
    """
    address = Address.of(url)
    if address.kind == "parquet":
        from ride_duration.stores.files import FilePredictions

        return FilePredictions(address)
    from ride_duration.stores.databases import Database
    from ride_duration.stores.predictions import DatabasePredictions

    return DatabasePredictions(Database(address, create=True))


def find_columns(present: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Their name of each of a ride's columns.

    Raises
    ------
    StoreError
        If one that must be there isn't.
    """
    unknown = mapping.keys() - COLUMNS.keys()
    if unknown:
        raise StoreError(f"{', '.join(sorted(unknown))} is not a column of a ride; they are {', '.join(COLUMNS)}")
    by_lower = {name.lower(): name for name in present}
    found = {}
    for ours, names in COLUMNS.items():
        wanted = [mapping[ours]] if ours in mapping else names
        theirs = [by_lower[name.lower()] for name in wanted if name.lower() in by_lower]
        if theirs:
            found[ours] = theirs[0]
        elif ours in mapping or ours not in ("ride_id", "dropoff_datetime"):
            raise StoreError(
                f"the rides have no column {mapping.get(ours, ours)}; they have {', '.join(present)} "
                f"(--column {ours}=NAME tells which it is)"
            )
    return found


def seconds(time: datetime) -> int:
    """A time of New York's clock as seconds, of the same clock."""
    return int((time - datetime(1970, 1, 1)).total_seconds())


def of_seconds(seconds: int) -> datetime:
    """The inverse of `seconds`."""
    return datetime(1970, 1, 1) + timedelta(seconds=seconds)


def now() -> datetime:
    """The time as the tables have it: UTC, to the second."""
    return datetime.now(UTC).replace(tzinfo=None, microsecond=0)


def pickup_now() -> datetime:
    """The time as pickups have it: New York's clock, to the second."""
    return datetime.now(NEW_YORK).replace(tzinfo=None, microsecond=0)
