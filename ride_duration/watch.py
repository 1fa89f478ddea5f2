"""A model file that may be replaced at any time: its newest good content is what serves."""

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ride_duration.logs import log
from ride_duration.model import LinearModel, ModelError
from ride_duration.model_file import load_model
from ride_duration.ride import Target

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
    name
        What the log calls it.

    Raises
    ------
    ModelError
        If there is no good model to begin with.
    """

    def __init__(self, path: str | os.PathLike[str], target: Target | None, name: str = "model") -> None:
        self.path, self.name = Path(path), name
        self._identity = identity(self.path)
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
        before, self._identity = self._identity, identity(self.path)
        if self._identity == before:
            return False
        try:
            loaded = Loaded(load_model(self.path, self.target), time.time())
        except ModelError as error:
            self.refused = Refusal(str(error), time.time())
            self.refusals += 1
            fields = {"reason": str(error), "model_version": self.current.model.version}
            log.error(f"a new {self.name} file is refused, the old {self.name} serves on", extra={"fields": fields})
            return True
        replaced, self.current = self.current, loaded
        fields = {"model_version": loaded.model.version, "replaced": replaced.model.version}
        log.info(f"a new {self.name} serves", extra={"fields": fields})
        return True

    def _watch(self) -> None:
        while True:
            try:
                self.check()
                self.on_look()
            except Exception:  # whatever it is, the old model serves on and the next look may go well
                log.exception("the model file could not be looked at")
            time.sleep(SECONDS)


def identity(path: Path) -> tuple[int, ...] | None:
    """What a file is known by, and its replacement told from it; None when there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def as_utc(seconds: float) -> str:
    """A time as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
