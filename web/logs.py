"""Request ids, and one JSON line a request on standard output."""

import logging
import re
import sys
import time
import traceback
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
from flask import Flask, Response, g, request

log = logging.getLogger("ride_duration")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class JSONFormatter(logging.Formatter):
    """A log record as a line of JSON: its `fields`, and its trace when it has one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = "".join(traceback.format_exception(*record.exc_info))
        return msgspec.json.encode(line, enc_hook=str).decode()


def register(app: Flask) -> None:
    """Give every request of `app` an id, echo it, and log the request when it is answered."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(JSONFormatter())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False

    @app.before_request
    def start() -> None:
        came = request.headers.get("X-Request-ID", "")
        g.request_id = came if _REQUEST_ID.fullmatch(came) else uuid4().hex
        g.started = time.perf_counter()
        g.fields = {}

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        g.seconds = time.perf_counter() - g.started
        fields = {
            "request_id": g.request_id,
            "method": request.method,
            "route": request.url_rule.rule if request.url_rule else None,
            "status": response.status_code,
            "milliseconds": round(g.seconds * 1000, 3),
        }
        log.info("request", extra={"fields": fields | g.fields})
        return response
