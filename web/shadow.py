"""A candidate that scores the rides of live requests beside the model that answers them.

A request hands its rides over when they are answered, and waits for nothing. A thread scores them later, many at a time, and
counts how far the two models are apart.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import Counter, Gauge, Histogram

from ride_duration import logs
from ride_duration.inputs import Columns
from ride_duration.logs import log
from ride_duration.model import LinearModel
from ride_duration.ride import Ride
from ride_duration.watch import WatchedModel, identity
from web import metrics

SECONDS = 1.0
"""How often the thread takes what waits."""

MAX_WAITING = 20_000
"""Rides that may wait; more are dropped. It bounds the memory, and what a worker's shadow costs in a second: 5 % of a CPU, 15 %
when the log has the rides."""

CHUNK, LOGGED_CHUNK = 500, 125
"""Rides scored at a time, and when the log has them too: a request waits about a millisecond for either at most."""

PAUSE = 0.001
"""Seconds between two chunks, in which the threads that wait get their turn."""

RIDES = Counter("ride_duration_shadow_rides_total", "Rides handed to the shadow model, by what became of them.", ["outcome"])
DIFFERENCE = Histogram(
    "ride_duration_shadow_difference_minutes",
    "How far the shadow model's durations are from those that were answered, and to which side.",
    ["shadow"],
    buckets=(0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60),
)
MODEL = Gauge(
    "ride_duration_shadow_model_workers", "Workers with a shadow, by its version.", ["version"], multiprocess_mode="livesum"
)
REFUSALS = Gauge(
    "ride_duration_shadow_model_refusals", "Shadow files refused since the service started.", multiprocess_mode="livemax"
)


class Shadow:
    """The candidate in a file, which may be missing or bad, at the start or later: that is told, and no answer depends on it.

    Rides that still wait when a process ends are not scored.

    Parameters
    ----------
    path
        A model file of duration, watched like the one that serves.
    with_rides
        Whether the log has each ride that the shadow scored.
    """

    def __init__(self, path: str | os.PathLike[str], with_rides: bool) -> None:
        self.path, self.with_rides = Path(path), with_rides
        self.models: WatchedModel | None = None
        self._seen: tuple[int, ...] | None = ()  # no file is like this: the first look finds one, or that there is none
        self._refused = 0
        self._said = ""
        self._lock = threading.Lock()  # held for a few assignments
        self._rides: list[Ride] = []
        self._durations: list[float] = []
        self._dropped = 0
        self._scored, self._unanswered, self._lost = map(RIDES.labels, ("scored", "unanswered", "dropped"))
        self._longer, self._shorter = map(DIFFERENCE.labels, ("longer", "shorter"))
        self._show = metrics.version_shown(MODEL)
        self.look()

    def add(self, rides: Sequence[Ride], durations: Sequence[float]) -> None:
        """Hand over rides with the durations that they were answered with: half a microsecond, 10 for 10,000 rides."""
        # Two flat lists: a tuple or a list that waits for each request would set off the garbage collector, at requests' cost.
        with self._lock:
            if len(self._rides) + len(rides) > MAX_WAITING:
                self._dropped += len(rides)
            else:
                self._rides += rides
                self._durations += durations

    def watch(self) -> None:
        """Look at the file and score from now on, in a thread of this process: call it after a fork, not before."""
        threading.Thread(target=self._watch, name="shadow", daemon=True).start()

    def look(self) -> None:
        """Take up what the file has by now; to remove it is to end the shadow."""
        before, self._seen = self._seen, identity(self.path)
        if self.models and self._seen:
            self.models.check()
            return
        if self.models:
            self.models = None
            self._show("")
            log.info("the shadow model is gone", extra={"fields": {"path": str(self.path)}})
            return
        if self._seen != before:
            try:
                self.models = WatchedModel(self.path, "duration", "shadow model")
            except Exception as error:  # whatever it is, the service starts
                self._refused += 1
                log.error("the shadow model is refused, the service goes on", extra={"fields": {"reason": str(error)}})
            else:
                log.info("a shadow model scores", extra={"fields": {"model_version": self.models.current.model.version}})

    def drain(self) -> None:
        """Score what waits, chunk by chunk."""
        with self._lock:
            rides, durations, dropped = self._rides, self._durations, self._dropped
            self._rides, self._durations, self._dropped = [], [], 0
        self._lost.inc(dropped)
        model, size = self.models.current.model if self.models else None, LOGGED_CHUNK if self.with_rides else CHUNK
        while rides:
            # from the end, where it costs nothing: to let go of all at once would hold the interpreter for milliseconds
            chunk = list(zip(rides[-size:], durations[-size:], strict=True))
            del rides[-size:], durations[-size:]
            if model and model.needs_distance:
                known = [pair for pair in chunk if pair[0].trip_distance is not None]
            else:
                known = chunk if model else []
            scored = len(known) if known and self._safely(self._compare, model, known) else 0
            self._scored.inc(scored)
            self._unanswered.inc(len(chunk) - scored)
            time.sleep(PAUSE)

    def _compare(self, model: LinearModel, answered: list[tuple[Ride, float]]) -> None:
        rides, durations = zip(*answered, strict=True)
        shadow = model.predict_columns(Columns.of(rides))
        if self.with_rides:
            logs.write_scored("shadow", {"model_version": model.version}, logs.scored(model, rides, shadow.tolist()))
        difference = shadow - np.array(durations)
        metrics.observe_all(self._longer, difference[difference >= 0])
        metrics.observe_all(self._shorter, -difference[difference < 0])

    def _watch(self) -> None:
        while True:
            self._safely(self.look)
            self._safely(self._tell)
            self._safely(self.drain)
            time.sleep(SECONDS)

    def _tell(self) -> None:
        REFUSALS.set(self._refused + (self.models.refusals if self.models else 0))
        if self.models:
            self._show(self.models.current.model.version)

    def _safely(self, work: Callable[..., None], *arguments: Any) -> bool:
        """Whether it went well; what went wrong is told once, until it is something else."""
        try:
            work(*arguments)
        except Exception as error:
            if self._said != repr(error):
                self._said = repr(error)
                log.exception("the shadow model failed, the service goes on")
            return False
        return True
