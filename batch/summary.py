"""What the predictions database says of rides, errors and drift, added up by the database: what the dashboard shows."""

import math
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from ride_duration.slices import BANDS, BOROUGHS, DAYS, HOURS, SLICES, USUAL_MINUTES
from ride_duration.stores import pickup_now
from ride_duration.stores.databases import Database
from ride_duration.stores.predictions import SUMS, USUAL
from ride_duration.zones import ZONES

NEWEST = 200_000
"""Zones, pairs of them and pairs of versions are looked for among so many predictions, the newest."""

FEWEST = 20
"""Rides that a pair or a zone must have to be among the worst."""

Row = dict[str, Any]


class Scope(NamedTuple):
    """Which predictions are looked at: days, the last one included, and a model's version; None is all."""

    first: date | None = None
    last: date | None = None
    version: str | None = None

    def where(self, time: str, also: str = "true") -> str:
        """The same in SQL; `time` is the column that has the time."""
        parts = [also]
        if self.first:
            parts.append(f"{time} >= '{self.first}'")
        if self.last and self.last < date.max:
            parts.append(f"{time} < '{self.last + timedelta(days=1)}'")
        if self.version:
            parts.append("model_version = '{}'".format(self.version.replace("'", "''")))
        return " and ".join(parts)


class Known(NamedTuple):
    """What there is to choose from."""

    first: date | None
    last: date | None
    versions: list[str]
    """Those that answered last first, and shadows, which never did, last."""
    answered: dict[str, datetime]
    """As the function of that name."""


class Errors(NamedTuple):
    """Errors in minutes over rides that took usual minutes, None without any; coverage is of those with an interval."""

    rides: int
    rmse: float | None
    mae: float | None
    bias: float | None
    coverage: float | None


def known(database: Database) -> Known:
    """The days and versions that there are predictions of."""
    (span,) = database.rows("select cast(min(hour) as text) as first, cast(max(hour) as text) as last from hourly")
    last_answers = answered(database)
    seen = {row["model_version"] for row in database.rows("select distinct model_version from hourly")}
    versions = sorted(seen, key=lambda version: (last_answers.get(version, datetime.min), version), reverse=True)
    first, last = (datetime.fromisoformat(time).date() if time else None for time in (span["first"], span["last"]))
    return Known(first, last, versions, last_answers)


def answered(database: Database) -> dict[str, datetime]:
    """When each version has answered last, UTC, but for shadows, which never did."""
    rows = database.rows("select model_version, cast(answered_at as text) as at from versions")
    return {row["model_version"]: datetime.fromisoformat(row["at"]) for row in rows}


def sums(database: Database, scope: Scope, by: str) -> list[Row]:
    """`stores.predictions.SUMS` by `day`, `hour` (of the day), `borough` or `miles`, and by version; as `key`, in order."""
    sqlite = database.sqlite
    expression = {
        "day": "substr(hour, 1, 10)" if sqlite else "to_char(hour, 'YYYY-MM-DD')",
        "hour": "substr(hour, 12, 2)" if sqlite else "to_char(hour, 'HH24')",
        "borough": "borough",
        "miles": "miles",
    }[by]
    columns = ", ".join(f"sum({name}) as {name}" for name in SUMS)
    sql = (
        f"select {expression} as key, model_version, {columns} from hourly where {scope.where('hour')} group by 1, 2 order by 1"
    )
    order = {"hour": HOURS, "borough": BOROUGHS, "miles": BANDS}.get(by)
    rows = database.rows(sql)
    return sorted(rows, key=lambda row: order.index(row["key"])) if order else rows


def total(rows: list[Row]) -> Row:
    """The sums of all rows."""
    return {name: sum(row[name] for row in rows) for name in SUMS}


def errors(row: Row) -> Errors:
    """Errors of a row of sums."""
    n, ranged = row["usual"], row["ranged"]
    if not n:
        return Errors(0, None, None, None, None)
    coverage = row["covered"] / ranged if ranged else None
    return Errors(int(n), math.sqrt(row["squared_error"] / n), row["absolute_error"] / n, row["error"] / n, coverage)


def worst_pairs(database: Database, scope: Scope, count: int = 12) -> list[Row]:
    """The pairs of zones with the largest RMSE among the newest rides that have ended, by version."""
    error = "predicted_duration - actual_duration"
    rows = database.rows(
        f"select pickup, dropoff, model_version, count(*) as rides, avg(error * error) as squared, avg(error) as bias from "
        f"(select PULocationID as pickup, DOLocationID as dropoff, model_version, {error} as error from predictions "
        f"where {scope.where('pickup_datetime', USUAL)} order by pickup_datetime desc limit {NEWEST}) as newest "
        f"group by 1, 2, 3 having count(*) >= {FEWEST} order by 5 desc limit {count}"
    )
    return [
        {
            "pickup": ZONES[row["pickup"]].name,
            "dropoff": ZONES[row["dropoff"]].name,
            "model_version": row["model_version"],
            "rides": row["rides"],
            "rmse": math.sqrt(row["squared"]),
            "bias": row["bias"],
        }
        for row in rows
    ]


class Drift(NamedTuple):
    """How an input's values are spread, then and now, and how far apart that is."""

    name: str
    labels: tuple[str, ...]
    trained: list[float]
    """Share of the rides trained on, by label."""
    now: list[float]
    """Share of the rides looked at."""
    stability_index: float
    """Population stability index, Σ (now - trained) ln(now / trained): below 0.1 is small, above 0.25 large."""


def drift(database: Database, version: str, by: Mapping[str, list[Row]]) -> list[Drift] | None:
    """Inputs against the training records of a version; None if its model doesn't tell what these were.

    Parameters
    ----------
    by
        `sums` of the rides looked at by day, hour, borough and miles.
    """
    found = database.rows("select inputs from models where model_version = $1", (version,))
    trained = msgspec.json.decode(found[0]["inputs"], type=dict[str, dict[str, float]]) if found else {}
    if not trained:
        return None
    rides: dict[str, dict[str, float]] = {name: dict.fromkeys(labels, 0.0) for name, labels in SLICES.items()}
    for name, source in {"hour": "hour", "weekday": "day", "borough": "borough", "miles": "miles"}.items():
        for row in by[source]:
            label = DAYS[date.fromisoformat(row["key"]).weekday()] if name == "weekday" else row["key"]
            rides[name][label] += row["rides"]
    drifts = []
    for name, labels in SLICES.items():
        before = [trained[name].get(label, 0.0) for label in labels]
        counts = list(rides[name].values())
        now = [count / max(sum(counts), 1) for count in counts]
        held = [(max(share, 1e-4), max(past, 1e-4)) for share, past in zip(now, before, strict=True)]
        index = sum((share - past) * math.log(share / past) for share, past in held)
        drifts.append(Drift(name, labels, before, now, index))
    return drifts


def zones(database: Database, scope: Scope) -> list[Row]:
    """`stores.predictions.SUMS` by zone of pickup, as `key`, and by version: of the newest rides that took usual minutes."""
    columns = ", ".join(f"{sql} as {name}" for name, sql in SUMS.items())
    return database.rows(
        f"select PULocationID as key, model_version, {columns} from (select * from predictions "
        f"where {scope.where('pickup_datetime', USUAL)} order by pickup_datetime desc limit {NEWEST}) as newest group by 1, 2"
    )


def side_by_side(database: Database, scope: Scope, answered: Mapping[str, datetime]) -> list[Row]:
    """Versions that have answered the same rides, two by two, among the newest predictions; a shadow is the other.

    Each row has `one` and `other`, their common `rides`, the `mean` and the root mean square (`rms`) of other - one in minutes,
    how many of these rides have `ended`, after usual minutes, and `rmse_of_one` and `rmse_of_other` on them, else None.
    """
    newest = scope._replace(version=None).where("pickup_datetime", "pickup_datetime is not null")
    actual = "coalesce(one.actual_duration, other.actual_duration)"  # the one may have been asked since it was filled in
    usual = f"{actual} between {USUAL_MINUTES[0]} and {USUAL_MINUTES[1]}"
    more = "(other.predicted_duration - one.predicted_duration)"

    def squared(name: str) -> str:
        error = f"({name}.predicted_duration - {actual})"
        return f"avg(case when {usual} then {error} * {error} end)"

    rows = database.rows(
        f"with newest as (select ride_id, model_version, predicted_duration, actual_duration from predictions where {newest} "
        f"order by pickup_datetime desc limit {NEWEST}) "
        f"select one.model_version as one, other.model_version as other, count(*) as rides, avg({more}) as mean, "
        f"avg({more} * {more}) as squared, sum(case when {usual} then 1 else 0 end) as ended, "
        f"{squared('one')} as squared_of_one, {squared('other')} as squared_of_other "
        "from newest as one join newest as other on one.ride_id = other.ride_id and one.model_version < other.model_version "
        "group by 1, 2 order by 3 desc, 1, 2"
    )
    for row in rows:
        if (row["one"] not in answered, answered.get(row["one"])) > (row["other"] not in answered, answered.get(row["other"])):
            row["one"], row["other"], row["mean"] = row["other"], row["one"], -row["mean"]
            row["squared_of_one"], row["squared_of_other"] = row["squared_of_other"], row["squared_of_one"]
        row["rms"] = math.sqrt(row["squared"])
        for name in ("one", "other"):
            found = row[f"squared_of_{name}"]
            row[f"rmse_of_{name}"] = None if found is None else math.sqrt(found)
    return [row for row in rows if scope.version in (None, row["one"], row["other"])]


def timeless(database: Database, since: date | None = None) -> dict[str, int]:
    """Predictions of rides that were asked for without a time and haven't ended, by version: they are in no hour."""
    scored = f" and scored_at >= '{since}'" if since else ""
    rows = database.rows(
        f"select model_version, count(*) as rides from predictions where pickup_datetime is null{scored} group by 1 order by 1"
    )
    return {row["model_version"]: row["rides"] for row in rows}


def newest_hour(database: Database) -> datetime | None:
    """The last hour of New York's clock with a ride that was predicted; a pickup yet to come doesn't count."""
    (row,) = database.rows(f"select cast(max(hour) as text) as newest from hourly where hour <= '{pickup_now()}'")
    return datetime.fromisoformat(row["newest"]) if row["newest"] else None


def rejects(database: Database, scope: Scope) -> list[Row]:
    """How many rides were refused by field, with the newest reason."""
    return database.rows(
        f"select field, count(*) as rides, max(reason) as reason from rejects where {scope.where('pickup_datetime')} "
        "group by 1 order by 2 desc"
    )


def runs(database: Database, scope: Scope, count: int = 12) -> list[Row]:
    """The newest runs."""
    return database.rows(
        "select cast(interval_start as text) as interval_start, cast(interval_end as text) as interval_end, model_version, "
        "rides_read, predicted, rejected, seconds, cast(finished_at as text) as finished_at from runs "
        f"where {scope.where('interval_start')} order by finished_at desc, interval_start desc limit {count}"
    )
