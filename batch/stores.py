"""Where rides come from and predictions go: SQLite and PostgreSQL, through Arrow (ADBC), so that columns stay columns.

Both are asked in SQL for the same columns of the same types, whatever theirs are, so that one reader serves both. SQLite's
cells have any type: one that a ride can't have comes back as JSON, for the reason that it is refused with.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
from adbc_driver_manager import Error as DatabaseError
from adbc_driver_manager import dbapi

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

TABLES = {
    "predictions": """
        ride_id text, model_version text, pickup_datetime timestamp, PULocationID integer, DOLocationID integer,
        trip_distance double precision, predicted_duration double precision, low double precision, high double precision,
        scored_at timestamp, actual_duration double precision, primary key (ride_id, model_version)""",
    "rejects": """
        ride_id text, model_version text, pickup_datetime timestamp, field text, reason text, scored_at timestamp,
        primary key (ride_id, model_version)""",
    "runs": """
        interval_start timestamp, interval_end timestamp, model_version text, rides_read bigint, predicted bigint,
        rejected bigint, seconds double precision, finished_at timestamp,
        primary key (interval_start, interval_end, model_version)""",
}


class StoreError(ValueError):
    """A store that can't be used, and why, in a sentence; never with its password."""


class Address(NamedTuple):
    """A store's URL, taken apart: `sqlite:///rides.db#table`, `postgresql://user@host/database#table`."""

    kind: str
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
        parts = urlsplit(text)
        kind = {"postgres": "postgresql"}.get(parts.scheme, parts.scheme)
        if kind not in ("sqlite", "postgresql") or (kind == "sqlite" and not parts.path.strip("/")):
            raise StoreError(f"{shown(text)} is not a store: give sqlite:///FILE.db or postgresql://USER@HOST/DATABASE")
        if parts.fragment and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?", parts.fragment):
            raise StoreError(f"{shown(text)}: {parts.fragment[:60]!r} is not the name of a table")
        return cls(kind, text.partition("#")[0], parts.fragment)

    @property
    def file(self) -> Path:
        """The file of a SQLite database: `sqlite:///here.db`, `sqlite:////absolute.db`."""
        return Path(self.url.removeprefix("sqlite:///"))


def shown(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"(//[^/:@]*):[^@/]*@", r"\1:…@", url)


class Database:
    """A connection to a SQLite file or a PostgreSQL database.

    Parameters
    ----------
    address
        Where it is.
    create
        Whether a SQLite file that isn't there is made.

    Raises
    ------
    StoreError
        If it can't be reached.
    """

    def __init__(self, address: Address, create: bool = False) -> None:
        self.address = address
        self.sqlite = address.kind == "sqlite"
        if self.sqlite and not address.file.is_file() and not (create and address.file.parent.is_dir()):
            raise StoreError(f"there is no file {address.file} (looked in {address.file.absolute().parent})")
        with self._told():
            if self.sqlite:
                from adbc_driver_sqlite import dbapi as sqlite

                self._connection = sqlite.connect(str(address.file))
                self._run("pragma busy_timeout = 60000")
            else:
                from adbc_driver_postgresql import dbapi as postgresql

                self._connection = postgresql.connect(address.url)
                self._run("set time zone 'America/New_York'")
            self._connection.commit()

    def close(self) -> None:
        """End the connection; what was not committed is gone."""
        self._connection.close()

    def columns(self, table: str) -> list[str]:
        """The names of a table's columns."""
        with self._told(), self._connection.cursor() as cursor:
            cursor.execute(f"select * from {table} where 1 = 0")
            return [column[0] for column in cursor.description or ()]

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[pa.RecordBatch]:
        """The rows of a query, a batch at a time."""
        with self._told(), self._connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            yield from cursor.fetch_record_batch()

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The few rows of a query."""
        return [row for batch in self.read(sql, parameters) for row in batch.to_pylist()]

    @contextmanager
    def transaction(self, name: str) -> Iterator[None]:
        """All or nothing: what is written within is there afterwards, or none of it. Another that has `name` waits for it."""
        with self._told():
            if self.sqlite:
                self._run("update runs set seconds = seconds where 1 = 0")  # takes the write lock while it can be waited for
            else:
                self._run("select pg_advisory_xact_lock(hashtextextended($1, 0))", (name,))
            try:
                yield
                self._connection.commit()
            except BaseException:
                self._connection.rollback()
                raise

    def create_tables(self) -> None:
        """Make the tables of the predictions database that aren't there."""
        with self._told():
            for table, columns in TABLES.items():
                self._run(f"create table if not exists {table} ({columns})")
            self._run("create index if not exists predictions_by_pickup on predictions (pickup_datetime)")
            self._connection.commit()

    def insert(self, table: str, rows: pa.Table) -> None:
        """Add the rows whose key is not there yet, within a transaction."""
        columns = ", ".join(rows.column_names)
        self._stage(rows)
        self._run(f"insert into {table} ({columns}) select {columns} from staged where true on conflict do nothing")
        self._run("drop table staged")

    def fill_actuals(self, rows: pa.Table) -> int:
        """Write `actual_duration` by `ride_id` where it is not known yet, within a transaction; how many it was written to."""
        self._stage(rows)
        missing = "staged.ride_id = predictions.ride_id and predictions.actual_duration is null"
        (found,) = self.rows(f"select count(*) as n from predictions, staged where {missing}")
        self._run(f"update predictions set actual_duration = staged.actual_duration from staged where {missing}")
        self._run("drop table staged")
        return int(found["n"])

    def _stage(self, rows: pa.Table) -> None:
        with self._connection.cursor() as cursor:
            # PostgreSQL's driver quotes names, and its tables' own are lower case
            rows = rows.rename_columns([name.lower() for name in rows.column_names])
            cursor.adbc_ingest("staged", rows, mode="create", temporary=True)

    def _run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            cursor.fetchall() if cursor.description else None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The driver's errors as a sentence without a password."""
        try:
            yield
        except (DatabaseError, dbapi.Error) as error:
            text = re.sub(r"\s+", " ", str(error)).removesuffix(". SQLSTATE: ").strip()
            raise StoreError(f"{shown(self.address.url)}: {shown(text)}") from None


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
        theirs = [
            by_lower[name.lower()] for name in ([mapping[ours]] if ours in mapping else names) if name.lower() in by_lower
        ]
        if theirs:
            found[ours] = theirs[0]
        elif ours in mapping or ours not in ("ride_id", "dropoff_datetime"):
            raise StoreError(
                f"the rides have no column {mapping.get(ours, ours)}; they have {', '.join(present)} "
                f"(--column {ours}=NAME tells which it is)"
            )
    return found


class Rides:
    """The rides of a database's table, by pickup time.

    Parameters
    ----------
    database
        Where they are.
    mapping
        Their names of columns that are called otherwise there.
    """

    def __init__(self, database: Database, mapping: Mapping[str, str]) -> None:
        self.database = database
        self.table = database.address.table or "rides"
        self.columns = find_columns(database.columns(self.table), mapping)

    def span(self) -> tuple[datetime, datetime] | None:
        """The first and the last pickup; None when there are no rides."""
        pickup = self._seconds("pickup_datetime")
        (row,) = self.database.rows(f"select min({pickup}) as first, max({pickup}) as last from {self.table}")
        if row["first"] is None:
            return None
        return _time(row["first"]), _time(row["last"])

    def read(self, start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        """The rides picked up within [start, end), in order of time.

        Columns: ride_id (text, empty without one), pickup (seconds, of New York's clock), PULocationID, DOLocationID,
        trip_distance and actual (minutes), numbers of which `MISSING` is NULL, and odd: JSON of a row with a cell that is no
        number, else empty.
        """
        pickup = self._seconds("pickup_datetime")
        actual = f"({self._seconds('dropoff_datetime')} - {pickup}) / 60.0" if "dropoff_datetime" in self.columns else "null"
        ride_id = f"coalesce(cast({self.columns['ride_id']} as text), '')" if "ride_id" in self.columns else "''"
        numbers = ("PULocationID", "DOLocationID", "trip_distance")
        select = [
            f"{ride_id} as ride_id",
            f"{pickup} as pickup",
            *(f'{self._number(name)} as "{name}"' for name in numbers),
            f"coalesce(cast({actual} as double precision), {MISSING}) as actual",
            f"{self._odd(numbers)} as odd",
        ]
        within = f"{pickup} >= {_seconds(start)} and {pickup} < {_seconds(end)}"
        if self.database.sqlite:  # by text too, which an index serves; a day more, since T sorts after a space
            low, high = f"{start:%Y-%m-%d}", f"{end:%Y-%m-%d}~"
            within = f"{self.columns['pickup_datetime']} between '{low}' and '{high}' and {within}"
        else:
            theirs = self.columns["pickup_datetime"]
            within += f" and {theirs} between '{start}'::timestamp - interval '1 day' and '{end}'::timestamp + interval '1 day'"
        yield from self.database.read(f"select {', '.join(select)} from {self.table} where {within} order by pickup")

    def _seconds(self, name: str) -> str:
        theirs = self.columns[name]
        if self.database.sqlite:
            return f"cast(strftime('%s', {theirs}) as integer)"
        # a time with a zone becomes New York's, one without is New York's
        return f"floor(extract(epoch from cast(timezone('America/New_York', {theirs}::timestamptz) as timestamp)))::bigint"

    def _number(self, name: str) -> str:
        theirs = self.columns[name]
        if self.database.sqlite:
            return f"case when typeof({theirs}) in ('integer', 'real') then {theirs} * 1.0 else {MISSING} end"
        return f"coalesce(cast({theirs} as double precision), {MISSING})"

    def _odd(self, names: Sequence[str]) -> str:
        if not self.database.sqlite:
            return "''"
        odd = " or ".join(f"typeof({self.columns[name]}) in ('text', 'blob')" for name in names)
        cells = ", ".join(
            f"'{name}', case typeof({theirs}) when 'blob' then 'blob ' || hex({theirs}) else {theirs} end"
            for name, theirs in ((name, self.columns[name]) for name in names)
        )
        return f"case when {odd} then json_object({cells}) else '' end"


def _seconds(time: datetime) -> int:
    return int((time - datetime(1970, 1, 1)).total_seconds())


def _time(seconds: int) -> datetime:
    return datetime(1970, 1, 1) + timedelta(seconds=seconds)
