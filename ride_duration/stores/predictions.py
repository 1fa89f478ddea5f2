"""Predictions, rejects and runs in a database, and what they add up to by the hour."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ride_duration.inputs import Columns, hours_of_week
from ride_duration.model import LinearModel
from ride_duration.slices import BANDS, BOROUGHS, EDGES, USUAL_MINUTES, slices
from ride_duration.stores import KEYS, TABLES
from ride_duration.stores.databases import Database
from ride_duration.zones import ZONES

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
            self.database.insert("models", pa.table(row))

    @contextmanager
    def _interval(self, start: datetime, end: datetime, *names: str) -> Iterator["_Interval"]:
        with self.database.transaction():
            self.database.lock(" ".join([str(start), str(end), *names]))
            yield _Interval(self.database, start, end)

    def writing(self, start: datetime, end: datetime, version: str) -> AbstractContextManager["_Interval"]:
        """An interval to write, in one transaction."""
        return self._interval(start, end, version)

    @contextmanager
    def adding(self, start: datetime, end: datetime) -> Iterator["_Interval"]:
        """Predictions to add of rides picked up within [start, end), without a run, in one transaction."""
        with self._interval(start, end) as interval:
            yield interval
            interval.settle()

    @contextmanager
    def filling(self, start: datetime, end: datetime) -> Iterator["_Interval"]:
        """An interval to fill, in one transaction."""
        with self._interval(start, end) as interval:
            yield interval
            if interval.filled:
                interval.add_up()


class _Interval:
    """An open transaction: `stores.Writing` and `stores.Filling`."""

    def __init__(self, database: Database, start: datetime, end: datetime) -> None:
        self.database, self.start, self.end = database, start, end
        self.filled = 0
        self._all_new = True
        self._sums: list[pa.Table] = []

    def add(self, predictions: pa.Table, rejects: pa.Table) -> None:
        """Add rows whose key isn't there yet."""
        if len(predictions):
            self._all_new &= self.database.insert("predictions", predictions) == len(predictions)
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

    def finish(self, run: pa.Table) -> None:
        """Add the run, or what has come late to it."""
        self.settle()
        counts = ", ".join(f"{name} = excluded.{name}" for name in run.column_names if name not in KEYS["runs"])
        more = f"({', '.join(KEYS['runs'])}) do update set {counts} where runs.rides_read <> excluded.rides_read"
        self.database.insert("runs", run, more)

    def fill(self, actuals: pa.Table) -> None:
        """Write `actual_duration` by `ride_id` where it isn't known yet."""
        if len(actuals):
            self.filled += self.database.fill_actuals(actuals)

    def add_up(self) -> None:
        """Make the rows of `hourly` anew for the hours that this interval touches."""
        first = self.start.replace(minute=0, second=0, microsecond=0)
        last = (self.end + timedelta(hours=1, microseconds=-1)).replace(minute=0, second=0, microsecond=0)
        self.database.lock("hourly")
        hour = "substr(pickup_datetime, 1, 13) || ':00:00'" if self.database.sqlite else "date_trunc('hour', pickup_datetime)"
        self.database.run(f"delete from hourly where hour >= '{first}' and hour < '{last}'")
        self.database.run(
            f"insert into hourly select {hour} as hour, model_version, {_BOROUGH} as borough, {_MILES} as miles, "
            f"{', '.join(SUMS.values())} from predictions "
            f"where pickup_datetime >= '{first}' and pickup_datetime < '{last}' group by 1, 2, 3, 4"
        )


_HOURLY = ("hour", "model_version", "borough", "miles")


def _hourly(predictions: pa.Table) -> pa.Table:
    """The sums of predictions that are new, of rides that may not have ended; one without a time is in no hour."""
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
