"""The log: lines of JSON on standard output."""

import logging
import re
import sys
import time
import traceback
from datetime import UTC, datetime
from typing import Any

import msgspec

log = logging.getLogger("ride_duration")

_encode = msgspec.json.Encoder(enc_hook=str).encode


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


def write_request(fields: dict[str, Any]) -> None:
    """The line of one request; straight to the stream: a `LogRecord` knows much that this line doesn't tell, and costs more."""
    sys.stdout.buffer.write(_line(time.time(), "info", "request", fields) + b"\n")  # one write: other threads write too
    sys.stdout.buffer.flush()


def _line(seconds: float, level: str, message: str, fields: dict[str, Any]) -> bytes:
    return _encode({"time": datetime.fromtimestamp(seconds, UTC), "level": level, "message": message, **fields})


def shown(url: str) -> str:
    """A URL without its password, wherever that is."""
    url = re.sub(r"(//[^/:@]*):[^@/]*@", r"\1:…@", url)
    return re.sub(r"(?i)((?:password|secret_key|session_token|access_token)=)[^&\s]*", r"\1…", url)
