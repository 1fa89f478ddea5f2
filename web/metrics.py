"""What Prometheus scrapes: right across workers, and no label takes a value that a caller sends."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import pairwise

import numpy as np
from flask import Flask, Response
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ride_duration.ride import FIELDS, FieldError
from ride_duration.watch import WatchedModel

REQUESTS = Counter("ride_duration_requests_total", "Requests answered.", ["route", "status"])
SECONDS = Histogram(
    "ride_duration_request_seconds",
    "Time from a request's headers to its answer.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
REFUSALS = Counter("ride_duration_refused_fields_total", "Fields of rides that were refused.", ["field"])
RIDES = Counter("ride_duration_rides_total", "Rides scored, by the minutes predicted.", ["minutes"])
MODEL = Gauge(
    "ride_duration_model_workers", "Workers that serve a model, by its version.", ["version"], multiprocess_mode="livesum"
)
LOADED = Gauge(
    "ride_duration_model_loaded_timestamp_seconds", "When the model that serves was loaded.", multiprocess_mode="livemin"
)
MODEL_REFUSALS = Gauge(
    "ride_duration_model_refusals", "Model files refused since the worker started.", multiprocess_mode="livemax"
)


_EDGES = [2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0]
_RANGES = ["0-2", *(f"{low:g}-{high:g}" for low, high in pairwise(_EDGES)), "60-"]
_RIDES = [RIDES.labels(minutes) for minutes in _RANGES]

_requests = lru_cache(1000)(REQUESTS.labels)


def register(app: Flask, models: WatchedModel) -> None:
    """Serve the counts at /metrics, the models' among them."""
    show_version = version_shown(MODEL)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(_registry()), content_type=CONTENT_TYPE_LATEST)

    def show_model() -> None:
        model, at = models.current
        show_version(model.version)
        LOADED.set(at)
        MODEL_REFUSALS.set(models.refusals)

    models.on_look = show_model


def version_shown(gauge: Gauge) -> Callable[[str], None]:
    """What sets a gauge of workers by `version` to the one version that this worker has, or to none, if it is empty."""
    shown = ""

    def show(version: str) -> None:
        nonlocal shown
        if shown and shown != version:
            gauge.labels(shown).set(0)
        shown = version
        if shown:
            gauge.labels(shown).set(1)

    return show


def observe_all(histogram: Histogram, values: NDArray[np.float64]) -> None:
    """`observe` each of the values, at once: one by one takes three times as long as a model takes to score them."""
    for place, count in enumerate(np.bincount(np.searchsorted(histogram._upper_bounds, values))):
        if count:
            histogram._buckets[place].inc(int(count))
    histogram._sum.inc(float(values.sum()))


def count_request(route: str | None, status: int, seconds: float) -> None:
    """Count a request that was answered; those of no route are counted together."""
    _requests(route or "none", status).inc()
    SECONDS.observe(seconds)


def count_rides(minutes: float | NDArray[np.float64]) -> None:
    """Count rides that were scored, by their durations."""
    if isinstance(minutes, float):
        _RIDES[bisect_right(_EDGES, minutes)].inc()
    else:
        for place, rides in enumerate(np.bincount(np.searchsorted(_EDGES, minutes, side="right"))):
            if rides:
                _RIDES[place].inc(int(rides))


def count_refusals(errors: Iterable[FieldError]) -> None:
    """Count refused fields; names that no ride has are counted together."""
    for error in errors:
        REFUSALS.labels(error.field if error.field in FIELDS else "other").inc()


def _registry() -> CollectorRegistry:
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:  # one process: the development server, a test
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
