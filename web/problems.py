"""Errors as `application/problem+json` (RFC 9457): one shape for every failure of the service."""

import logging
from http import HTTPStatus
from typing import NamedTuple

import msgspec
from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from ride_duration.ride import EXAMPLE, FieldError, InvalidRide, NotJSON
from web.contract import ProblemDetails
from web.metrics import count_refusals

CONTENT_TYPE = "application/problem+json"

log = logging.getLogger("ride_duration")


class Kind(NamedTuple):
    """A kind of problem: its status and the title that a person reads."""

    status: HTTPStatus
    title: str


KINDS = {
    "not-json": Kind(HTTPStatus.BAD_REQUEST, "The body is not JSON"),
    "incomplete-body": Kind(HTTPStatus.BAD_REQUEST, "The body did not arrive whole"),
    "too-slow": Kind(HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time"),
    "not-http": Kind(HTTPStatus.BAD_REQUEST, "The request is not HTTP as this service takes it"),
    "uri-too-long": Kind(HTTPStatus.REQUEST_URI_TOO_LONG, "The request's first line is too long"),
    "head-too-large": Kind(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's headers are too many or too long"),
    "not-found": Kind(HTTPStatus.NOT_FOUND, "There is nothing here"),
    "method-not-allowed": Kind(HTTPStatus.METHOD_NOT_ALLOWED, "This route takes other methods"),
    "too-large": Kind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large"),
    "unsupported-media-type": Kind(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is not plain application/json"),
    "invalid-ride": Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The ride is not one that can be scored"),
    "invalid-query": Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The query has a parameter that this route does not take"),
    "internal-error": Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "The service failed"),
    "not-ready": Kind(HTTPStatus.SERVICE_UNAVAILABLE, "The service is not ready"),
}
"""By the last part of the problem's `type`."""

_HTTP_KINDS = {KINDS[name].status: name for name in ("not-found", "method-not-allowed", "too-large")}
_EXAMPLE = msgspec.json.encode(EXAMPLE).decode()


class Problem(Exception):
    """An error to be answered as it stands.

    Parameters
    ----------
    kind
        A key of `KINDS`.
    detail
        What was wrong and what is allowed.
    errors
        For a 422: each field that was refused.
    close
        Whether the connection can't be used on: its body was not read.
    """

    def __init__(self, kind: str, detail: str, errors: list[FieldError] | None = None, close: bool = False) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.errors, self.close = kind, detail, errors, close

    @property
    def status(self) -> HTTPStatus:
        """What it is answered with."""
        return KINDS[self.kind].status

    def content(self) -> bytes:
        """The body of the answer."""
        status, title = KINDS[self.kind]
        return _content(f"urn:ride-duration:problem:{self.kind}", status, title, self.detail, self.errors)

    def response(self) -> Response:
        """The answer."""
        headers = {"Connection": "close"} if self.close else None
        return Response(self.content(), self.status, headers, content_type=CONTENT_TYPE)


def _content(kind: str, status: int, title: str, detail: str, errors: list[FieldError] | None = None) -> bytes:
    problem = ProblemDetails(type=kind, title=title, status=status, detail=detail, errors=errors or [])
    return msgspec.json.encode(problem)


def register(app: Flask) -> None:
    """Let `app` answer every error as a problem."""

    @app.errorhandler(Problem)
    def problem(error: Problem) -> Response:
        return error.response()

    @app.errorhandler(NotJSON)
    def not_json(error: NotJSON) -> Response:
        return Problem("not-json", f"{error}. Send a ride like {_EXAMPLE}, or an array of them.").response()

    @app.errorhandler(InvalidRide)
    def invalid_ride(error: InvalidRide) -> Response:
        count_refusals(error.errors)
        return Problem("invalid-ride", f"{error}. A ride looks like {_EXAMPLE}.", error.errors).response()

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        status = HTTPStatus(error.code or 500)
        if status in _HTTP_KINDS:
            routes = ", ".join(sorted(rule.rule for rule in app.url_map.iter_rules()))
            detail = f"The routes are {routes}." if status == HTTPStatus.NOT_FOUND else str(error.description)
            response = Problem(_HTTP_KINDS[status], detail).response()
        else:
            content = _content("about:blank", status, status.phrase, error.description or status.description)
            response = Response(content, status, content_type=CONTENT_TYPE)
        allow = dict(error.get_headers()).get("Allow")
        if allow:
            response.headers["Allow"] = allow
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        log.exception("a request failed", exc_info=error)
        return Problem(
            "internal-error", "It was not your request's fault; the log has the details under X-Request-ID."
        ).response()
