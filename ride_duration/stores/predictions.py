"""Predictions, rejects and runs in a database, and what they add up to by the hour."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ride_duration.inputs import Columns, hours_of_week
from ride_duration.logs import shown
from ride_duration.model import LinearModel
from ride_duration.ride import Ride, RideId
from ride_duration.slices import BANDS, BOROUGHS, EDGES, USUAL_MINUTES, slices
from ride_duration.stores import KEYS, TABLES, Address, StoreError
from ride_duration.stores.databases import Database
from ride_duration.zones import ZONES

_TYPES = {pa.string(): "text", pa.timestamp("s"): "timestamp", pa.int64(): "bigint", pa.float64(): "double precision"}

_ERROR = "(predicted_duration - actual_duration)"
USUAL = f"actual_duration between {USUAL_MINUTES[0]} and {USUAL_MINUTES[1]}"
"""The predictions, in SQL, of rides that took usual minutes."""


def _sum(of: str, where: str = USUAL) -> str:
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
    "ranged": _sum("1", f"{USUAL} and low is not null"),
    "covered": _sum("1", f"{USUAL} and actual_duration between low and high"),
}
"""The columns of `hourly`: predictions by hour of pickup, model version, borough of pickup and band of miles. A dashboard asks
them of ten million predictions, so they are added up as these are written. `ended` are rides whose duration is known, `usual`
and all that follow are of those that took usual minutes, `ranged` of those that were given an interval."""


MAX_MINUTES = 1_000_000
"""More than any model answers."""


def row_of(
    ride_id: RideId, version: str, ride: Ride, duration: float, interval: tuple[float, float] | None, scored_at: datetime
) -> dict[str, Any]:
    """What a service has answered, as a row of `predictions`.

    Raises
    ------
    ValueError
        If a text of it has a NUL, or its minutes are none: sums of them would overflow.
    """
    if "\0" in f"{ride_id}{version}":
        raise ValueError("its ride_id has a NUL, which PostgreSQL does not take")
    low, high = interval or (None, None)
    if not all(abs(minutes) <= MAX_MINUTES for minutes in (duration, low or 0.0, high or 0.0)):
        raise ValueError(f"its duration or interval is not of at most {MAX_MINUTES:,} minutes")
    if low is not None and high is not None and low > high:
        raise ValueError("its interval ends before it begins")
    return {
        "ride_id": str(ride_id),
        "model_version": version,
        "pickup_datetime": ride.pickup_datetime and ride.pickup_datetime.replace(microsecond=0),
        "PULocationID": ride.PULocationID,
        "DOLocationID": ride.DOLocationID,
        "trip_distance": ride.trip_distance,
        "predicted_duration": duration,
        "low": low,
        "high": high,
        "scored_at": scored_at,
    }


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
            database.run("create table if not exists versions (model_version text primary key, answered_at timestamp)")
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
            self.database.insert("models", pa.table(row))

    @contextmanager
    def _interval(self, start: datetime, end: datetime, *names: str) -> Iterator["_Interval"]:
        with self.database.transaction():
            self.database.lock(" ".join([str(start), str(end), *names]))
            first = _hour(start)
            hours = {first + timedelta(hours=place) for place in range(-(-(end - first) // timedelta(hours=1)))}
            yield _Interval(self.database, hours)

    def writing(self, start: datetime, end: datetime, version: str) -> AbstractContextManager["_Interval"]:
        """An interval to write, in one transaction."""
        return self._interval(start, end, version)

    def add(self, rows: Iterable[dict[str, Any]], shadow: bool = False) -> int:
        """Add predictions, see `row_of`, whose key isn't there yet, in one transaction and without a run; tell how many.

        Those of a shadow were nobody's answer.
        """
        first: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows:
            first.setdefault((row["ride_id"], row["model_version"]), row)
        with self.database.transaction():
            self.database.lock("adding")  # two that add the same rides in another order would wait for each other
            there = "select ride_id, model_version from predictions where ride_id in"
            for row in self.database.rows_among(there, {ride_id for ride_id, _ in first}):
                first.pop((row["ride_id"], row["model_version"]), None)
            table = pa.Table.from_pylist(list(first.values()), schema=TABLES["predictions"])
            adding = _Interval(self.database, {_hour(time) for time in table["pickup_datetime"].to_pylist() if time})
            adding.add(table, TABLES["rejects"].empty_table())
            adding.settle()
            if not shadow:
                adding.answered(table["model_version"], table["scored_at"])
        return adding.added

    @contextmanager
    def filling(self, start: datetime, end: datetime) -> Iterator["_Interval"]:
        """An interval to fill, in one transaction."""
        with self._interval(start, end) as interval:
            yield interval
            if interval.filled:
                interval.add_up()


def open_for_rows(url: str, what: str) -> DatabasePredictions:
    """The predictions database at an address, made if there is none, to write `what` into, row by row.

    Raises
    ------
    StoreError
        If it can't be reached, or is no database.
    """
    address = Address.of(url)
    if address.kind == "parquet":
        raise StoreError(f"{shown(url)}: {what} is written into a database; give sqlite:///… or postgresql://…")
    return DatabasePredictions(Database(address, create=True))


class _Interval:
    """An open transaction: `stores.Writing` and `stores.Filling`; `hours` are those that it touches."""

    def __init__(self, database: Database, hours: set[datetime]) -> None:
        self.database, self.hours = database, hours
        self.added = self.filled = 0
        self._all_new = True
        self._sums: list[pa.Table] = []
        self._hour = "substr(pickup_datetime, 1, 13) || ':00:00'" if database.sqlite else "date_trunc('hour', pickup_datetime)"

    def add(self, predictions: pa.Table, rejects: pa.Table) -> None:
        """Add rows whose key isn't there yet."""
        if len(predictions):
            added = self.database.insert("predictions", predictions)
            self.added += added
            self._all_new &= added == len(predictions)
            self._sums.append(_hourly(predictions))
        if len(rejects):
            self.database.insert("rejects", rejects)

    def settle(self) -> None:
        """Bring `hourly` up to what was added."""
        self.database.lock("hourly")  # another that adds up the same hour must see these rows
        if not self._all_new:
            self.add_up()
        elif self._sums:
            sums = _added_up(pa.concat_tables(self._sums))
            zeros = pa.array(np.zeros(len(sums)))
            for name in SUMS.keys() - {"rides", "predicted"}:  # of rides that have ended: none has
                sums = sums.append_column(name, zeros)
            more = ", ".join(f"{name} = hourly.{name} + excluded.{name}" for name in SUMS)
            self.database.insert("hourly", sums, f"({', '.join(_HOURLY)}) do update set {more}")

    def answered(self, versions: pa.ChunkedArray, times: pa.ChunkedArray) -> None:
        """Keep when each version has answered last."""
        last = pa.table({"model_version": versions, "at": times}).group_by("model_version").aggregate([("at", "max")])
        last = last.select(["model_version", "at_max"]).rename_columns(["model_version", "answered_at"])
        later = "versions.answered_at < excluded.answered_at"
        self.database.insert(
            "versions", last, f"(model_version) do update set answered_at = excluded.answered_at where {later}"
        )

    def finish(self, run: pa.Table) -> None:
        """Add the run, or what has come late to it."""
        self.settle()
        self.answered(run["model_version"], run["finished_at"])
        counts = ", ".join(f"{name} = excluded.{name}" for name in run.column_names if name not in KEYS["runs"])
        more = f"({', '.join(KEYS['runs'])}) do update set {counts} where runs.rides_read <> excluded.rides_read"
        self.database.insert("runs", run, more)

    def fill(self, actuals: pa.Table) -> None:
        """Write `actual_duration` by `ride_id` where it isn't known yet, and with it the pickup of rides asked without."""
        filled = self.database.fill("actual_duration", actuals)
        if not filled:
            return
        self.filled += filled
        # a caller's pickup may be of another hour than the record's: that hour has another error now
        hours = self.database.rows_among(
            f"select distinct cast({self._hour} as text) as hour from predictions "
            "where actual_duration is not null and ride_id in",
            actuals["ride_id"].to_pylist(),
        )
        self.hours |= {datetime.fromisoformat(row["hour"]) for row in hours if row["hour"]}
        if any(row["hour"] is None for row in hours):
            self.database.fill("pickup_datetime", actuals)

    def add_up(self) -> None:
        """Make the rows of `hourly` anew for the hours that this transaction touches."""
        self.database.lock("hourly")
        for first, last in _spans(self.hours):
            self.database.run(f"delete from hourly where hour >= '{first}' and hour < '{last}'")
            self.database.run(
                f"insert into hourly select {self._hour} as hour, model_version, {_BOROUGH} as borough, {_MILES} as miles, "
                f"{', '.join(SUMS.values())} from predictions "
                f"where pickup_datetime >= '{first}' and pickup_datetime < '{last}' group by 1, 2, 3, 4"
            )


def _hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


def _spans(hours: Iterable[datetime]) -> Iterator[tuple[datetime, datetime]]:
    """Hours as spans without gaps, half-open."""
    first = last = None
    for hour in sorted(hours):
        if hour != last:
            if first and last:
                yield first, last
            first = hour
        last = hour + timedelta(hours=1)
    if first and last:
        yield first, last


_HOURLY = ("hour", "model_version", "borough", "miles")


def _hourly(predictions: pa.Table) -> pa.Table:
    """The sums of predictions that are new, of rides that may not have ended; one without a time is in none, until it ends."""
    predictions = predictions.filter(pc.is_valid(predictions["pickup_datetime"]))
    miles = pc.fill_null(predictions["trip_distance"], 0).to_numpy()
    pickup = predictions["pickup_datetime"].to_numpy()
    pickup_zone, dropoff_zone = predictions["PULocationID"].to_numpy(), predictions["DOLocationID"].to_numpy()
    places = slices(Columns(pickup_zone, dropoff_zone, miles, hours_of_week(pickup)))
    columns = [
        pickup.astype("datetime64[h]").astype("datetime64[s]"),
        predictions["model_version"],
        pa.array(BOROUGHS).take(pa.array(places["borough"])),
        pa.array(BANDS).take(pa.array(places["miles"])),
        np.ones(len(predictions)),
        predictions["predicted_duration"],
    ]
    return _added_up(pa.table(columns, names=[*_HOURLY, "rides", "predicted"]))


def _added_up(rows: pa.Table) -> pa.Table:
    """Rides and predicted minutes, one row a key."""
    sums = rows.group_by(list(_HOURLY)).aggregate([("rides", "sum"), ("predicted", "sum")])
    return sums.rename_columns([*_HOURLY, "rides", "predicted"])


def _borough(name: str) -> str:
    zones = ", ".join(str(zone.zone_id) for zone in ZONES.values() if zone.borough == name)
    return f"when PULocationID in ({zones}) then '{name}'"


_BOROUGH = f"case {' '.join(map(_borough, BOROUGHS))} end"
_MILES = (
    f"case when coalesce(trip_distance, 0) <= 0 then '{BANDS[0]}' "
    + " ".join(f"when trip_distance < {edge} then '{band}'" for edge, band in zip(EDGES, BANDS[1:], strict=False))
    + f" else '{BANDS[-1]}' end"
)
