"""The request's body, within its limits."""

from typing import Any

from gunicorn.http.errors import ParseException
from werkzeug.http import parse_options_header
from werkzeug.wsgi import get_content_length, get_input_stream

from web.problems import Problem
from web.worker import TooSlowError

MAX_BODY = 2 * 2**20


def read_json_body(environ: dict[str, Any]) -> bytes:
    """The whole body of a request that says it is JSON, at most 2 MiB.

    Raises
    ------
    Problem
        If it says that it is something else, is too large, or doesn't arrive whole.
    """
    content_type = environ.get("CONTENT_TYPE", "")
    if content_type != "application/json" and (mimetype := parse_options_header(content_type)[0]) != "application/json":
        came = f"got {mimetype[:60]!r}" if mimetype else "got none"
        raise Problem("unsupported-media-type", f"Content-Type must be application/json; {came}.", close=True)
    encoding = environ.get("HTTP_CONTENT_ENCODING", "identity")
    if encoding != "identity":
        raise Problem("unsupported-media-type", f"Content-Encoding must be left out; got {encoding[:60]!r}.", close=True)
    # A chunked body has no length to refuse it by, and werkzeug would cut it silently, so read one byte more than is allowed.
    length = get_content_length(environ)
    wanted = MAX_BODY + 1 if length is None else length
    body = b""
    if length is None or length <= MAX_BODY:
        try:
            stream = get_input_stream(environ)
            while len(body) < wanted and (chunk := stream.read(wanted - len(body))):
                body = body + chunk if body else chunk
        except TooSlowError:
            raise Problem("too-slow", "The body did not arrive in time.", close=True) from None
        except (ParseException, OSError):
            raise Problem("incomplete-body", "The body broke off, or its chunks are malformed.", close=True) from None
        if len(body) <= MAX_BODY:
            return body
    raise Problem("too-large", f"A body may have at most {MAX_BODY:,} bytes; send fewer rides at once.", close=True)
