"""A model file that may be replaced at any time: its newest good content is what serves."""

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ride_duration.model import LinearModel, ModelError
from ride_duration.model_file import load_model
from ride_duration.ride import Target

log = logging.getLogger("ride_duration")

SECONDS = 1.0
"""How often the file is looked at."""


class Loaded(NamedTuple):
    """A model, and when it was loaded (seconds since the epoch)."""

    model: LinearModel
    at: float


class Refusal(NamedTuple):
    """A replacement that was not taken, and when."""

    reason: str
    at: float


class WatchedModel:
    """The model of a file, replaced when the file is.

    A replacement is loaded aside and checked (see `model_file`), then switched to by one assignment: who took `current` keeps
    it to the end of the request. One that is refused changes nothing but `refused`. The file is known by its identity, not by
    its time alone: two files of the same second and size are told apart, behind symbolic links too.

    Parameters
    ----------
    path, target
        As for `load_model`; a replacement must predict what the first model does.

    Raises
    ------
    ModelError
        If there is no good model to begin with.
    """

    def __init__(self, path: str | os.PathLike[str], target: Target | None) -> None:
        self.path = Path(path)
        self._identity = self._look()
        self.current = Loaded(load_model(self.path, target), time.time())
        self.target = self.current.model.target
        self.refused: Refusal | None = None
        self.refusals = 0
        self.on_look: Callable[[], None] = lambda: None
        """Called after every look of the watching thread."""

    def watch(self) -> None:
        """Look at the file from now on, in a thread of this process: call it after a fork, not before."""
        threading.Thread(target=self._watch, name="model-watch", daemon=True).start()

    def check(self) -> bool:
        """Look once; whether the file had changed."""
        identity = self._look()
        if identity == self._identity:
            return False
        self._identity = identity
        try:
            loaded = Loaded(load_model(self.path, self.target), time.time())
        except ModelError as error:
            self.refused = Refusal(str(error), time.time())
            self.refusals += 1
            fields = {"reason": str(error), "model_version": self.current.model.version}
            log.error("a new model file is refused, the old model serves on", extra={"fields": fields})
            return True
        before, self.current = self.current, loaded
        fields = {"model_version": loaded.model.version, "replaced": before.model.version}
        log.info("a new model serves", extra={"fields": fields})
        return True

    def _watch(self) -> None:
        while True:
            try:
                self.check()
                self.on_look()
            except Exception:  # whatever it is, the old model serves on and the next look may go well
                log.exception("the model file could not be looked at")
            time.sleep(SECONDS)

    def _look(self) -> tuple[int, ...] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def as_utc(seconds: float) -> str:
    """A time as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
