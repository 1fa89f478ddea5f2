"""The log: lines of JSON on standard output."""

import logging
import re
import sys
import time
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ride_duration.model import LinearModel
from ride_duration.ride import Ride

log = logging.getLogger("ride_duration")

_encode = msgspec.json.Encoder(enc_hook=str).encode


LINE_BYTES = 4096
"""What a pipe takes in one piece, whoever else writes to it: longer lines of several processes would tear each other."""


class Scored(msgspec.Struct, gc=False):
    """A ride in the log, and what a model answered: the entries of `scored`."""

    ride: Ride
    duration: float
    interval: tuple[float, float] | UnsetType = UNSET
    """Left out when the model has none."""


def scored(model: LinearModel, rides: Iterable[Ride], durations: Iterable[float]) -> list[Scored]:
    """What the log tells of rides and the durations that a model gave them."""
    return [
        Scored(ride, duration, model.interval(ride, duration) if model.has_interval else UNSET)
        for ride, duration in zip(rides, durations, strict=True)
    ]


class JSONFormatter(logging.Formatter):
    """A log record as a line of JSON: its `fields`, and its trace when it has one."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        if record.exc_info:
            fields = fields | {"trace": "".join(traceback.format_exception(*record.exc_info))}
        return _line(record.created, record.levelname.lower(), record.getMessage(), fields).decode()


def set_up() -> None:
    """Let the project's own log go to standard output."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(JSONFormatter())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def write(message: str, fields: dict[str, Any]) -> None:
    """A line straight to the stream: a `LogRecord` knows much that the line of a request doesn't tell, and costs more."""
    _write(_line(time.time(), "info", message, fields) + b"\n")


def write_scored(message: str, fields: dict[str, Any], entries: Iterable[Scored]) -> None:
    """Lines with `scored`, as many as it takes for each to be of at most `LINE_BYTES`."""
    head = _line(time.time(), "info", message, fields)[:-1] + b',"scored":['
    part: list[bytes] = []
    size = most = LINE_BYTES - len(head) - len(b"]}\n")
    for entry in map(_encode, entries):
        if len(entry) + 1 > size and part:
            _write(head + b",".join(part) + b"]}\n")
            part, size = [], most
        part.append(entry)
        size -= len(entry) + 1
    if part:
        _write(head + b",".join(part) + b"]}\n")


def _write(line: bytes) -> None:
    sys.stdout.buffer.write(line)  # one write: other threads write too
    sys.stdout.buffer.flush()


def _line(seconds: float, level: str, message: str, fields: dict[str, Any]) -> bytes:
    return _encode({"time": datetime.fromtimestamp(seconds, UTC), "level": level, "message": message, **fields})


def shown(url: str) -> str:
    """A URL without its password, wherever that is; a user without one may be a token."""
    url = re.sub(r"//([^/?#:\s]*):[^/?#\s]*@", r"//\1:…@", url)
    url = re.sub(r"(https?://)[^/?#:\s]+@", r"\1…@", url)
    return re.sub(r"(?i)((?:password|secret_key|token|signature|(?<![a-z])sig)=)[^&\s]*", r"\1…", url)
