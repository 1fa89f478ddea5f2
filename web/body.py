"""The request's body, within its limits."""

from flask import Request
from gunicorn.http.errors import ParseException

from web.problems import Problem
from web.worker import TooSlowError

MAX_BODY = 2 * 2**20


def read_json_body(request: Request) -> bytes:
    """The whole body of a request that says it is JSON, at most 2 MiB.

    Raises
    ------
    Problem
        If it says that it is something else, is too large, or doesn't arrive whole.
    """
    if request.mimetype != "application/json":
        came = f"got {request.mimetype[:60]!r}" if request.mimetype else "got none"
        raise Problem("unsupported-media-type", f"Content-Type must be application/json; {came}.", close=True)
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise Problem("unsupported-media-type", f"Content-Encoding must be left out; got {encoding[:60]!r}.", close=True)
    body = bytearray()
    # A chunked body has no length to refuse it by, and werkzeug would cut it silently, so read one byte more than is allowed.
    if (request.content_length or 0) <= MAX_BODY:
        try:
            while len(body) <= MAX_BODY and (chunk := request.stream.read(MAX_BODY + 1 - len(body))):
                body += chunk
        except TooSlowError:
            raise Problem("too-slow", "The body did not arrive in time.", close=True) from None
        except (ParseException, OSError):
            raise Problem("incomplete-body", "The body broke off, or its chunks are malformed.", close=True) from None
        if len(body) <= MAX_BODY:
            return bytes(body)
    raise Problem("too-large", f"A body may have at most {MAX_BODY:,} bytes; send fewer rides at once.", close=True)
