"""Connections to SQLite and PostgreSQL, and the rides there, through Arrow (ADBC), so that columns stay columns.

They are asked in SQL for columns of the types that are wanted, whatever theirs are. SQLite's cells have any type: one that a
ride can't have comes back as JSON, for the reason that it is refused with.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from adbc_driver_manager import Error as DatabaseError
from adbc_driver_manager import dbapi

from ride_duration.logs import shown
from ride_duration.ride import NEW_YORK
from ride_duration.stores import MISSING, NUMBERS, RIDES, Address, Span, StoreError, find_columns, of_seconds, seconds

LOCK_SECONDS = 60
"""How long a SQLite file that another process holds is waited for."""

_BATCH_ROWS = 65_536
_DAY = timedelta(days=1)
_ERRORS = (DatabaseError, dbapi.Error, OSError, pa.ArrowException)
"""The driver's: those of Arrow's two come when a connection is lost in the middle of an answer."""


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
        with suppress(*_ERRORS):  # it may be lost already
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

    def rows_among(self, sql: str, texts: Iterable[str]) -> list[dict[str, Any]]:
        """The rows of a query that ends with `in`, for these texts: one parameter, however many they are."""
        each = "value from json_each($1)" if self.sqlite else "json_array_elements_text($1::text::json)"
        return self.rows(f"{sql} (select {each})", (msgspec.json.encode(list(texts)).decode(),))

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """A statement without an answer."""
        with self._told(), self._connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            cursor.fetchall() if cursor.description else None

    def insert(self, table: str, rows: pa.Table, otherwise: str = "do nothing") -> int:
        """Add rows, and tell how many; `otherwise` is what becomes of one whose key is there."""
        columns = ", ".join(rows.column_names)
        if not self.sqlite:
            added = f"insert into {table} ({columns}) select {columns} from staged on conflict {otherwise} returning 1"
            return self._staged(rows, added)
        places = ", ".join("?" * rows.num_columns)
        return self._each(f"insert into {table} ({columns}) values ({places}) on conflict {otherwise}", rows)

    def fill(self, column: str, rows: pa.Table) -> int:
        """Write a column of `predictions` by `ride_id` where it isn't known yet, and tell to how many."""
        rows = rows.select([column, "ride_id"])
        if not self.sqlite:
            return self._staged(
                rows,
                f"update predictions set {column} = staged.{column} from staged "
                f"where staged.ride_id = predictions.ride_id and predictions.{column} is null returning 1",
            )
        return self._each(f"update predictions set {column} = ? where ride_id = ? and {column} is null", rows)

    def _staged(self, rows: pa.Table, sql: str) -> int:
        """Copy rows into a temporary table, `staged`, for a statement that returns a row for each that it changes."""
        with self._told(), self._connection.cursor() as cursor:
            # PostgreSQL's driver quotes names, and its tables' own are lower case
            rows = rows.rename_columns([name.lower() for name in rows.column_names])
            cursor.adbc_ingest("staged", rows, mode="create", temporary=True)
        (changed,) = self.rows(f"with changed as ({sql}) select count(*) as n from changed")
        self.run("drop table staged")
        return int(changed["n"])

    def _each(self, sql: str, rows: pa.Table) -> int:
        """Run a statement with each row's cells; how many rows it changed."""
        # times as text: the driver makes text of them one by one
        texts = [column.cast(pa.string()) if pa.types.is_timestamp(column.type) else column for column in rows.columns]
        before = self.rows("select total_changes() as n")[0]["n"]
        with self._told(), self._connection.cursor() as cursor:
            for batch in pa.table(texts, names=rows.column_names).to_batches():
                cursor.executemany(sql, batch)
        return int(self.rows("select total_changes() as n")[0]["n"] - before)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing: what is written within is there afterwards, or none of it."""
        try:
            yield
            with self._told():
                self._connection.commit()
        except BaseException:
            with suppress(*_ERRORS):  # the connection may be lost, and the transaction with it
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
        except _ERRORS as error:
            text = re.sub(r"\s+", " ", str(error)).removesuffix(". SQLSTATE: ").strip()
            hint = "; another process writes to it, so try again" if "database is locked" in text else ""
            raise StoreError(f"{shown(self.address.url)}: {shown(text)}{hint}") from None


def open_rides(database: Database, mapping: Mapping[str, str]) -> "_TableRides":
    """The rides of a database's table; `mapping` has their names of columns that are called otherwise there."""
    return (SqliteRides if database.sqlite else PostgresqlRides)(database, mapping)


class _TableRides(ABC):
    """The rides of a table: `stores.Rides`."""

    def __init__(self, database: Database, mapping: Mapping[str, str]) -> None:
        self.database = database
        self.table = database.address.table or "rides"
        self.schema = database.schema(self.table)
        self.columns = find_columns(self.schema.names, mapping)
        self.pickup = self.columns["pickup_datetime"]

    def close(self) -> None:
        """End the connection."""
        self.database.close()

    def exist(self, start: datetime, end: datetime) -> bool:
        """Whether any was picked up within [start, end)."""
        return bool(self.database.rows(f"select 1 as found from {self.table} where {self._within(start, end)} limit 1"))

    def span(self, since: datetime | None) -> Span:
        """What times there are since a time."""
        pickup = self._seconds(self.pickup)
        later = f"where {self.pickup} >= '{since - _DAY}' or {self.pickup} is null" if since else ""
        exactly = f"filter (where {pickup} >= {seconds(since)})" if since else ""
        what = f"min({pickup}) {exactly} as first, max({pickup}) {exactly} as last, count(*) - count({pickup}) as timeless"
        (row,) = self.database.rows(f"select {what} from {self.table} {later}")
        if row["first"] is None:
            return Span(None, None, row["timeless"])
        return Span(of_seconds(row["first"]), of_seconds(row["last"]), row["timeless"])

    def _id(self) -> str:
        return f"coalesce(cast({self.columns['ride_id']} as text), '')" if "ride_id" in self.columns else "''"

    def _within(self, start: datetime, end: datetime) -> str:
        """In SQL; by the column itself too, which an index serves."""
        pickup = self._seconds(self.pickup)
        within = f"{pickup} >= {seconds(start)} and {pickup} < {seconds(end)}"
        return f"{self.pickup} >= '{start - _DAY}' and {self.pickup} < '{end + 2 * _DAY}' and {within}"

    @abstractmethod
    def read(self, start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        """Those picked up within [start, end), as `stores.RIDES`."""

    @abstractmethod
    def _seconds(self, theirs: str) -> str:
        """Seconds of New York's clock, in SQL; null for what is no time."""


class PostgresqlRides(_TableRides):
    """The rides of a table in PostgreSQL."""

    def read(self, start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        """Those picked up within [start, end), as `stores.RIDES`."""
        pickup, actual = self._seconds(self.pickup), "null"
        if "dropoff_datetime" in self.columns:
            actual = f"({self._seconds(self.columns['dropoff_datetime'])} - {pickup}) / 60.0"
        select = [
            f"{self._id()} as ride_id",
            f"{pickup} as pickup",
            *(f'coalesce(cast({self.columns[name]} as double precision), {MISSING}) as "{name}"' for name in NUMBERS),
            f"coalesce(cast({actual} as double precision), {MISSING}) as actual",
            "'' as odd",
        ]
        sql = f"select {', '.join(select)} from {self.table} where {self._within(start, end)} order by pickup"
        yield from self.database.read(sql)

    def _seconds(self, theirs: str) -> str:
        if getattr(self.schema.field(theirs).type, "tz", None):
            theirs = f"timezone('America/New_York', {theirs})"
        return f"floor(extract(epoch from {theirs}::timestamp))::bigint"


class SqliteRides(_TableRides):
    """The rides of a table in SQLite, where times are text and a cell may be of any type."""

    def read(self, start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        """Those picked up within [start, end), as `stores.RIDES`."""
        days = [start.date() + place * _DAY for place in range(-1, (end - start).days + 3)]
        lows, highs, lengths = zip(*map(self._writing, days), strict=True)
        (separator, *others) = {text for text in lows + highs if text is not None} or {""}
        if not others and max(lengths) <= len("2021-02-01 08:15:00"):
            # all are written alike, so that they sort as the times do, and an index gives them in order
            low, high = (_shortest(time).replace(" ", separator) for time in (start, end))
            within = f"{self.pickup} >= '{low}' and {self.pickup} < '{high}'"
            for batch in self._select(f"{within} order by {self.pickup}"):
                yield self._rides(batch, start, end).combine_chunks().to_batches()[0]
            return
        wide = f"{self.pickup} >= '{days[0]}' and {self.pickup} < '{days[-1]}'"
        parts = [self._rides(batch, start, end) for batch in self._select(wide)]
        if parts:
            yield from pa.concat_tables(parts).sort_by("pickup").combine_chunks().to_batches(_BATCH_ROWS)

    @cache  # noqa: B019  # it lives as long as the job
    def _writing(self, day: date) -> tuple[str | None, str | None, int]:
        """How the times of a day are written: the least and the greatest character between date and time, the longest."""
        separator = f"substr({self.pickup}, 11, 1)"
        (row,) = self.database.rows(
            f"select min({separator}) as low, max({separator}) as high, coalesce(max(length({self.pickup})), 0) as longest "
            f"from {self.table} where {self.pickup} >= '{day}' and {self.pickup} < '{day + _DAY}'"
        )
        return row["low"], row["high"], row["longest"]

    def _select(self, where: str) -> Iterator[pa.RecordBatch]:
        def text(name: str) -> str:
            return f"coalesce(cast({self.columns[name]} as text), '')" if name in self.columns else "''"

        def number(theirs: str) -> str:
            return f"case when typeof({theirs}) in ('integer', 'real') then {theirs} * 1.0 else {MISSING} end"

        of = {name: self.columns[name] for name in NUMBERS}
        odd = " or ".join(f"typeof({theirs}) in ('text', 'blob')" for theirs in of.values())
        cells = ", ".join(
            f"'{name}', case typeof({theirs}) when 'blob' then 'blob ' || hex({theirs}) else {theirs} end"
            for name, theirs in of.items()
        )
        select = [
            f"{self._id()} as ride_id",
            f"{text('pickup_datetime')} as pickup",
            *(f'{number(theirs)} as "{name}"' for name, theirs in of.items()),
            f"{text('dropoff_datetime')} as dropoff",
            f"case when {odd} then json_object({cells}) else '' end as odd",
        ]
        return self.database.read(f"select {', '.join(select)} from {self.table} where {where}")

    def _rides(self, batch: pa.RecordBatch, start: datetime, end: datetime) -> pa.Table:
        """A batch as `stores.RIDES`; what looks like a time of the interval and is none is in it, and odd."""
        pickup, dropoff = _seconds_of(batch["pickup"]), _seconds_of(batch["dropoff"])
        odd = batch["odd"]
        bad = pc.is_null(pickup)
        if pc.any(bad).as_py():
            odds = odd.to_pylist()
            for row in np.flatnonzero(bad.to_numpy(zero_copy_only=False)).tolist():
                cells = batch.slice(row, 1).to_pylist()[0]
                text = cells["pickup"]
                if str(start) <= text.replace("T", " ") < str(end):
                    known = {name: None if cells[name] == MISSING else cells[name] for name in NUMBERS}
                    known |= msgspec.json.decode(odds[row] or "{}")
                    odds[row] = msgspec.json.encode(known | {"pickup_datetime": text}).decode()
                    pickup = pc.replace_with_mask(pickup, pa.array(np.arange(len(pickup)) == row), pa.scalar(seconds(start)))
            odd = pa.array(odds, pa.string())
        actual = pc.fill_null(pc.divide(pc.cast(pc.subtract(dropoff, pickup), pa.float64()), 60.0), MISSING)
        columns = [batch["ride_id"], pickup, *(batch[name] for name in NUMBERS), actual, odd]
        inside = pc.and_(pc.greater_equal(pickup, seconds(start)), pc.less(pickup, seconds(end)))
        return pa.table(columns, schema=RIDES).filter(inside)

    def _seconds(self, theirs: str) -> str:
        return f"cast(strftime('%s', {theirs}) as integer)"


def _shortest(time: datetime) -> str:
    """A time as the shortest text of it, which sorts before the longer ones."""
    return str(time).removesuffix(":00").removesuffix(" 00:00")


def _seconds_of(texts: pa.Array) -> pa.Array:
    """Seconds of New York's clock, null where a text is no time."""
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    try:
        return texts.cast(pa.timestamp("us")).cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    except pa.ArrowInvalid:  # one of them is no time, or has a zone
        return pa.array([None if text is None else _seconds_of_one(text) for text in texts.to_pylist()], pa.int64())


def _seconds_of_one(text: str) -> int | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return seconds((time.astimezone(NEW_YORK) if time.tzinfo else time).replace(tzinfo=None, microsecond=0))
