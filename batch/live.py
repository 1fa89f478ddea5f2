"""What Prometheus is told of the predictions database: how wrong the model is, live, by version, zone and hour.

It is computed from the database, of the newest days of pickup, so however many dashboards answer, all come to say the same.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from batch import summary
from batch.summary import FEWEST, Row, Scope, errors, total
from ride_duration.ride import NEW_YORK
from ride_duration.stores import Address
from ride_duration.stores.databases import Database

KEPT_SECONDS = 30.0
"""So long what was computed is told again."""

SERVING = timedelta(hours=1)
"""A version that has not answered for so long, while others have, serves no more."""

BASELINE = timedelta(weeks=4)
ENOUGH = 1000
"""Rides that there must be of a version before the window, for a baseline."""

_ERRORS = {
    "rmse_minutes": "Root mean square error of rides that have ended and took usual minutes",
    "bias_minutes": "Mean of predicted - actual minutes of the same rides",
    "coverage_ratio": "Share of them that took as long as their interval said",
}


class Live(Collector):
    """The figures of a predictions database.

    Parameters
    ----------
    address
        Where it is.
    days
        How many days of pickup they are of, the newest.
    """

    def __init__(self, address: Address, days: int) -> None:
        self.address, self.days = address, days
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._lock = threading.Lock()
        self._text, self._until = b"", 0.0

    def text(self) -> bytes:
        """What a scrape is answered.

        Raises
        ------
        StoreError
            If the database can't be read.
        """
        with self._lock:
            if time.monotonic() >= self._until:
                self._text = generate_latest(self._registry)
                self._until = time.monotonic() + KEPT_SECONDS
            return self._text

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: the database is asked when a scrape is, not before."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The figures."""
        with closing(Database(self.address, read_only=True)) as database:
            yield from figures(database, self.days)


def figures(database: Database, days: int) -> list[GaugeMetricFamily]:
    """The figures of the newest days of pickup; no label has a value that a caller has sent, but for versions of models."""
    found: dict[str, GaugeMetricFamily] = {}

    def family(name: str, help_: str, *labels: str) -> GaugeMetricFamily:
        found[name] = GaugeMetricFamily(f"ride_duration_live_{name}", f"{help_}.", labels=labels)
        return found[name]

    newest_at = family("newest_pickup_timestamp_seconds", "Hour of the newest pickup of a predicted ride")
    predictions = family("predictions", "Predictions of rides picked up within the newest days", "version")
    waiting = family("waiting", "Those whose actual duration is not known yet", "version")
    serving = family("serving", "1 where the version has answered within an hour of the newest answer, 0 of others", "version")
    rides = family("rides", "Those that have ended, after usual minutes: the live error is theirs", "version")
    baseline = family("rmse_baseline_minutes", "The same as rmse_minutes of the four weeks before", "version")
    drift = family("drift_index", "Population stability index of an input against the training records", "version", "input")
    for name, help_ in _ERRORS.items():
        family(name, help_, "version")
        family(f"hour_{name}", f"{help_}, by hour of pickup", "version", "hour")
        family(f"zone_{name}", f"{help_}, by zone of pickup, of {FEWEST} rides or more", "version", "zone")

    def add_errors(row: Row, *labels: str, prefix: str = "") -> None:
        of = errors(row)
        for name, value in zip(_ERRORS, (of.rmse, of.bias, of.coverage), strict=True):
            if value is not None:
                found[f"{prefix}{name}"].add_metric(labels, value)

    newest = summary.newest_hour(database)
    first = newest.date() - timedelta(days=days - 1) if newest else None
    timeless = summary.timeless(database, first)
    by: dict[str, list[Row]] = {}
    if newest and first:
        newest_at.add_metric([], newest.replace(tzinfo=NEW_YORK).timestamp())
        window = Scope(first, newest.date())
        by = {what: summary.sums(database, window, what) for what in ("day", "hour", "borough", "miles")}
        before = summary.sums(database, Scope(first - BASELINE, first - timedelta(days=1)), "day")
        for version, row in _by_version(before).items():
            if row["usual"] >= ENOUGH:
                baseline.add_metric([version], errors(row).rmse or 0.0)
        for row in by["hour"]:
            add_errors(row, row["model_version"], row["key"], prefix="hour_")
        for row in summary.zones(database, window):
            if row["usual"] >= FEWEST:
                add_errors(row, row["model_version"], str(row["key"]), prefix="zone_")
    of_versions = _by_version(by.get("day", []))
    answered = summary.answered(database)
    since = max(answered.values()) - SERVING if answered else datetime.min
    for version in sorted(of_versions.keys() | timeless.keys()):
        row = of_versions.get(version, total([]))
        serving.add_metric([version], float(answered.get(version, datetime.min) > since))
        predictions.add_metric([version], row["rides"] + timeless.get(version, 0))
        waiting.add_metric([version], row["rides"] - row["ended"] + timeless.get(version, 0))
        rides.add_metric([version], row["usual"])
        add_errors(row, version)
    for version in of_versions:
        own = {what: [row for row in rows if row["model_version"] == version] for what, rows in by.items()}
        for one in summary.drift(database, version, own) or []:
            drift.add_metric([version, one.name], one.stability_index)
    return list(found.values())


def _by_version(rows: list[Row]) -> dict[str, Row]:
    versions = dict.fromkeys(row["model_version"] for row in rows)
    return {version: total([row for row in rows if row["model_version"] == version]) for version in versions}
