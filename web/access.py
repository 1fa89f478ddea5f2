"""What is seen of every request: its id, its line in the log, its counts.

A WSGI middleware around the app, not hooks inside it: it sees every answer whatever made it, and costs half as much.
"""

import random
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from flask import Request

from ride_duration import logs
from web import metrics

FIELDS = "ride_duration.fields"
"""Key of the WSGI environment under which a view leaves what the request's line in the log is to tell."""

SCORED = "scored"
"""Among these, the rides with what was answered: `logs.Scored`."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Access:
    """`app`, with every request given an id that its answer echoes, then logged and counted when it is answered."""

    def __init__(self, app: WSGIApp) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        began = time.perf_counter()
        request_id = environ.get("HTTP_X_REQUEST_ID", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = f"{random.getrandbits(128):032x}"  # reseeded in every worker by Python itself
        fields = environ[FIELDS] = {}

        def answer(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            headers.append(("X-Request-ID", request_id))
            request: Request = environ["werkzeug.request"]  # werkzeug leaves it there
            route = request.url_rule.rule if request.url_rule else None
            code = int(status[:3])
            seconds = time.perf_counter() - began
            metrics.count_request(route, code, seconds)
            if scored := fields.pop(SCORED, None):
                told = {"request_id": request_id, "model_version": fields["model_version"]}
                logs.write_scored("answered", told, scored)
            logs.write(
                "request",
                {
                    "request_id": request_id,
                    "method": request.method,
                    "route": route,
                    "status": code,
                    "milliseconds": round(seconds * 1000, 3),
                    **fields,
                },
            )
            return start_response(status, headers, *error)

        return self.app(environ, answer)
