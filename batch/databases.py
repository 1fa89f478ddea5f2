"""Rides and predictions in SQLite and PostgreSQL, through Arrow (ADBC), so that columns stay columns.

Both are asked in SQL for the same columns of the same types, whatever theirs are, so that one reader serves both. SQLite's
cells have any type: one that a ride can't have comes back as JSON, for the reason that it is refused with.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from adbc_driver_manager import Error as DatabaseError
from adbc_driver_manager import dbapi

from batch.stores import KEYS, MISSING, NUMBERS, TABLES, Address, Span, StoreError, find_columns, of_seconds, seconds, shown
from ride_duration.model import LinearModel
from ride_duration.slices import BANDS, BOROUGHS, EDGES, USUAL_MINUTES
from ride_duration.zones import ZONES

LOCK_SECONDS = 60
"""How long a SQLite file that another process holds is waited for."""

_BATCH_ROWS = 65_536
_TYPES = {pa.string(): "text", pa.timestamp("s"): "timestamp", pa.int64(): "bigint", pa.float64(): "double precision"}

_ERROR = "(predicted_duration - actual_duration)"
_USUAL = f"actual_duration between {USUAL_MINUTES[0]} and {USUAL_MINUTES[1]}"


def _sum(of: str, where: str = _USUAL) -> str:
    return f"sum(case when {where} then {of} else 0 end)"


SUMS = {
    "rides": "count(*)",
    "predicted": "sum(predicted_duration)",
    "ended": "count(actual_duration)",
    "squared_error_of_all": f"sum(coalesce({_ERROR} * {_ERROR}, 0))",
    "usual": _sum("1"),
    "actual": _sum("actual_duration"),
    "error": _sum(_ERROR),
    "absolute_error": _sum(f"abs({_ERROR})"),
    "squared_error": _sum(f"{_ERROR} * {_ERROR}"),
    "ranged": _sum("1", f"{_USUAL} and low is not null"),
    "covered": _sum("1", f"{_USUAL} and actual_duration between low and high"),
}
"""The columns of `hourly`: predictions by hour of pickup, model version, borough of pickup and band of miles. A dashboard asks
them of ten million predictions, so they are added up as these are written. `ended` are rides whose duration is known, `usual`
and all that follow are of those that took usual minutes, `ranged` of those that were given an interval."""


class Database:
    """A connection to a SQLite file or a PostgreSQL database.

    Parameters
    ----------
    address
        Where it is.
    create
        Whether a SQLite file that isn't there is made.
    read_only
        Whether writing is refused.

    Raises
    ------
    StoreError
        If it can't be reached.
    """

    def __init__(self, address: Address, create: bool = False, read_only: bool = False) -> None:
        self.address = address
        self.sqlite = address.kind == "sqlite"
        file = Path(address.url.removeprefix("sqlite:///"))
        if self.sqlite and not file.is_file() and not (create and file.parent.is_dir()):
            raise StoreError(f"there is no file {file} (looked in {file.absolute().parent})")
        with self._told():
            if self.sqlite:
                from adbc_driver_sqlite import dbapi as sqlite

                self._connection = sqlite.connect(str(file))
                self.run(f"pragma busy_timeout = {LOCK_SECONDS * 1000}")
                self._connection.commit()
                self._connection.adbc_connection.set_autocommit(True)  # pragmas want no transaction
                self.run("pragma cache_size = -65536")
                if create:  # who reads doesn't stop who writes
                    self.run("pragma journal_mode = wal")
                if read_only:
                    self.run("pragma query_only = on")
                self._connection.adbc_connection.set_autocommit(False)
            else:
                from adbc_driver_postgresql import dbapi as postgresql

                self._connection = postgresql.connect(address.url)
                self.run("set time zone 'America/New_York'")
                if read_only:
                    self.run("set default_transaction_read_only = on")
            self._connection.commit()

    def close(self) -> None:
        """End the connection; what was not committed is gone."""
        with suppress(DatabaseError, dbapi.Error):  # it may be lost already
            self._connection.close()

    def schema(self, table: str) -> pa.Schema:
        """The names and types of a table's columns."""
        with self._told(), self._connection.cursor() as cursor:
            cursor.execute(f"select * from {table} where 1 = 0")
            return cursor.fetch_record_batch().schema

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[pa.RecordBatch]:
        """The rows of a query, a batch at a time."""
        with self._told(), self._connection.cursor() as cursor:
            if self.sqlite:
                cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(_BATCH_ROWS)})
            cursor.execute(sql, parameters or None)
            yield from cursor.fetch_record_batch()

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The few rows of a query."""
        return [row for batch in self.read(sql, parameters) for row in batch.to_pylist()]

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """A statement without an answer."""
        with self._told(), self._connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            cursor.fetchall() if cursor.description else None

    def stage(self, rows: pa.Table) -> None:
        """Put rows into a new temporary table, `staged`."""
        with self._told(), self._connection.cursor() as cursor:
            # PostgreSQL's driver quotes names, and its tables' own are lower case
            rows = rows.rename_columns([name.lower() for name in rows.column_names])
            cursor.adbc_ingest("staged", rows, mode="create", temporary=True)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing: what is written within is there afterwards, or none of it."""
        try:
            yield
            with self._told():
                self._connection.commit()
        except BaseException:
            with suppress(DatabaseError, dbapi.Error):  # the connection may be lost, and the transaction with it
                self._connection.rollback()
            raise

    def lock(self, name: str) -> None:
        """Wait for others that have locked `name`, until this transaction ends."""
        if self.sqlite:  # has one writer at most; it can be waited for only before reading
            self.run("update runs set seconds = seconds where 1 = 0")
        else:
            self.run("select pg_advisory_xact_lock(hashtextextended($1, 0))", (name,))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The driver's errors as a sentence without a password."""
        try:
            yield
        except (DatabaseError, dbapi.Error) as error:
            text = re.sub(r"\s+", " ", str(error)).removesuffix(". SQLSTATE: ").strip()
            hint = "; another process writes to it, so try again" if "database is locked" in text else ""
            raise StoreError(f"{shown(self.address.url)}: {shown(text)}{hint}") from None


class DatabaseRides:
    """The rides of a database's table: `stores.Rides`."""

    def __init__(self, database: Database, mapping: Mapping[str, str]) -> None:
        self.database = database
        self.table = database.address.table or "rides"
        self.schema = database.schema(self.table)
        self.columns = find_columns(self.schema.names, mapping)

    def close(self) -> None:
        """End the connection."""
        self.database.close()

    def span(self) -> Span:
        """What times there are."""
        pickup = self._seconds("pickup_datetime")
        sql = f"select min({pickup}) as first, max({pickup}) as last, count(*) - count({pickup}) as timeless from {self.table}"
        (row,) = self.database.rows(sql)
        if row["first"] is None:
            return Span(None, None, row["timeless"])
        return Span(of_seconds(row["first"]), of_seconds(row["last"]), row["timeless"])

    def exist(self, start: datetime, end: datetime) -> bool:
        """Whether any was picked up within [start, end)."""
        return bool(self.database.rows(f"select 1 as found from {self.table} where {self._within(start, end)} limit 1"))

    def read(self, start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        """Those picked up within [start, end), as `stores.RIDES`."""
        pickup = self._seconds("pickup_datetime")
        actual = f"({self._seconds('dropoff_datetime')} - {pickup}) / 60.0" if "dropoff_datetime" in self.columns else "null"
        ride_id = f"coalesce(cast({self.columns['ride_id']} as text), '')" if "ride_id" in self.columns else "''"
        select = [
            f"{ride_id} as ride_id",
            f"coalesce({pickup}, {seconds(start)}) as pickup",
            *(f'{self._number(name)} as "{name}"' for name in NUMBERS),
            f"coalesce(cast({actual} as double precision), {MISSING}) as actual",
            f"{self._odd()} as odd",
        ]
        sql = f"select {', '.join(select)} from {self.table} where {self._within(start, end)} order by pickup"
        yield from self.database.read(sql)

    def _within(self, start: datetime, end: datetime) -> str:
        theirs, pickup = self.columns["pickup_datetime"], self._seconds("pickup_datetime")
        within = f"{pickup} >= {seconds(start)} and {pickup} < {seconds(end)}"
        # by the column itself too, which an index serves, and a day wider
        if self.database.sqlite:  # T sorts after a space; what looks like a time of these days and is none is read, and refused
            low, high = f"{start:%Y-%m-%d}", f"{end:%Y-%m-%d}~"
            return f"{theirs} between '{low}' and '{high}' and ({within} or ({pickup} is null and {theirs} < '{end}'))"
        low, high = str(start - timedelta(days=1)), str(end + timedelta(days=1))
        return f"{theirs} between '{low}'::timestamp and '{high}'::timestamp and {within}"

    def _seconds(self, name: str) -> str:
        theirs = self.columns[name]
        if self.database.sqlite:
            return f"cast(strftime('%s', {theirs}) as integer)"
        if getattr(self.schema.field(theirs).type, "tz", None):
            theirs = f"timezone('America/New_York', {theirs})"
        return f"floor(extract(epoch from {theirs}::timestamp))::bigint"

    def _number(self, name: str) -> str:
        theirs = self.columns[name]
        if self.database.sqlite:
            return f"case when typeof({theirs}) in ('integer', 'real') then {theirs} * 1.0 else {MISSING} end"
        return f"coalesce(cast({theirs} as double precision), {MISSING})"

    def _odd(self) -> str:
        if not self.database.sqlite:
            return "''"
        odd = " or ".join(f"typeof({self.columns[name]}) in ('text', 'blob')" for name in NUMBERS)
        cells = ", ".join(
            f"'{name}', case typeof({theirs}) when 'blob' then 'blob ' || hex({theirs}) else {theirs} end"
            for name, theirs in ((name, self.columns[name]) for name in (*NUMBERS, "pickup_datetime"))
        )
        return f"case when {odd} or {self._seconds('pickup_datetime')} is null then json_object({cells}) else '' end"


class DatabasePredictions:
    """Predictions, rejects and runs in a database: `stores.Predictions`."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.transaction():
            if not database.sqlite:
                database.lock("tables")  # two jobs may both be the first
            for table, schema in TABLES.items():
                columns = ", ".join(f"{name} {_TYPES[type_]}" for name, type_ in zip(schema.names, schema.types, strict=True))
                database.run(f"create table if not exists {table} ({columns}, primary key ({', '.join(KEYS[table])}))")
            sums = ", ".join(f"{name} double precision" for name in SUMS)
            database.run(
                f"create table if not exists hourly (hour timestamp, model_version text, borough text, miles text, {sums}, "
                "primary key (hour, model_version, borough, miles))"
            )
            database.run("create table if not exists models (model_version text primary key, trained_on text, inputs text)")
            database.run("create index if not exists predictions_by_pickup on predictions (pickup_datetime)")

    def close(self) -> None:
        """End the connection."""
        self.database.close()

    def last_end(self) -> datetime | None:
        """The end of the last interval that is done."""
        (row,) = self.database.rows("select cast(max(interval_end) as text) as done from runs")
        return datetime.fromisoformat(row["done"]) if row["done"] else None

    def introduce(self, model: LinearModel) -> None:
        """Keep what a dashboard wants to know of a model: the months and the shares of the rides that it was trained on."""
        metadata = model.metadata
        months, inputs = (", ".join(metadata.trained_on), metadata.inputs) if metadata else ("", {})
        row = {"model_version": [model.version], "trained_on": [months], "inputs": [msgspec.json.encode(inputs).decode()]}
        with self.database.transaction():
            self.database.lock("models")
            _insert(self.database, "models", pa.table(row))

    @contextmanager
    def writing(self, start: datetime, end: datetime, version: str) -> Iterator["_Interval"]:
        """An interval to write, in one transaction."""
        with self.database.transaction():
            self.database.lock(f"{start} {end} {version}")
            yield _Interval(self.database, start, end)

    @contextmanager
    def filling(self, start: datetime, end: datetime) -> Iterator["_Interval"]:
        """An interval to fill, in one transaction."""
        with self.database.transaction():
            self.database.lock(f"{start} {end}")
            interval = _Interval(self.database, start, end)
            yield interval
            if interval.filled:
                interval.add_up()


class _Interval:
    """An open transaction: `stores.Writing` and `stores.Filling`."""

    def __init__(self, database: Database, start: datetime, end: datetime) -> None:
        self.database, self.start, self.end = database, start, end
        self.filled = 0

    def add(self, predictions: pa.Table, rejects: pa.Table) -> None:
        """Add rows whose key isn't there yet."""
        _insert(self.database, "predictions", predictions)
        _insert(self.database, "rejects", rejects)

    def finish(self, run: pa.Table) -> None:
        """Add the run, or what has come late to it."""
        self.add_up()
        counts = ", ".join(f"{name} = excluded.{name}" for name in run.column_names if name not in KEYS["runs"])
        more = f"({', '.join(KEYS['runs'])}) do update set {counts} where runs.rides_read <> excluded.rides_read"
        _insert(self.database, "runs", run, more)

    def fill(self, actuals: pa.Table) -> None:
        """Write `actual_duration` by `ride_id` where it isn't known yet."""
        self.database.stage(actuals)
        missing = "staged.ride_id = predictions.ride_id and predictions.actual_duration is null"
        (found,) = self.database.rows(f"select count(*) as n from predictions, staged where {missing}")
        self.database.run(f"update predictions set actual_duration = staged.actual_duration from staged where {missing}")
        self.database.run("drop table staged")
        self.filled += found["n"]

    def add_up(self) -> None:
        """Make the rows of `hourly` anew for the hours that this interval touches."""
        first = self.start.replace(minute=0, second=0, microsecond=0)
        last = (self.end + timedelta(hours=1, microseconds=-1)).replace(minute=0, second=0, microsecond=0)
        self.database.lock("hourly")  # who comes next must see these rows before it adds up the same hour
        sqlite = self.database.sqlite
        hour = "substr(pickup_datetime, 1, 13) || ':00:00'" if sqlite else "date_trunc('hour', pickup_datetime)"
        between = [f"'{time:%Y-%m-%dT%H:%M:%S}'" for time in (first, last)]
        self.database.run(f"delete from hourly where hour >= {between[0]} and hour < {between[1]}")
        self.database.run(
            f"insert into hourly select {hour} as hour, model_version, {_BOROUGH} as borough, {_MILES} as miles, "
            f"{', '.join(SUMS.values())} from predictions "
            f"where pickup_datetime >= {between[0]} and pickup_datetime < {between[1]} group by 1, 2, 3, 4"
        )


def _insert(database: Database, table: str, rows: pa.Table, otherwise: str = "do nothing") -> None:
    """Add rows; `otherwise` is what becomes of one whose key is there."""
    if not len(rows):
        return
    columns = ", ".join(rows.column_names)
    database.stage(rows)
    database.run(f"insert into {table} ({columns}) select {columns} from staged where true on conflict {otherwise}")
    database.run("drop table staged")


def _borough(name: str) -> str:
    zones = ", ".join(str(zone.zone_id) for zone in ZONES.values() if zone.borough == name)
    return f"when PULocationID in ({zones}) then '{name}'"


_BOROUGH = f"case {' '.join(map(_borough, BOROUGHS))} end"
_MILES = (
    f"case when coalesce(trip_distance, 0) <= 0 then '{BANDS[0]}' "
    + " ".join(f"when trip_distance < {edge} then '{band}'" for edge, band in zip(EDGES, BANDS[1:], strict=False))
    + f" else '{BANDS[-1]}' end"
)
