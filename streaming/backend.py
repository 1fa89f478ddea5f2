"""An example of a backend: it asks the web service, tells the stream, and shows what is decided.

`python -m streaming.backend --stream sqlite:///rides.db` answers on port 8060, with a page that shows all of it live.
"""

import sys
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from http import HTTPStatus

import click
import msgspec
from flask import Flask, Response, render_template, request

try:
    from client import RefusedError, RideDurationClient, UnavailableError
except ModuleNotFoundError as error:
    sys.exit(f"streaming.backend needs {error.name}: run `make venv CATEGORIES=stream`")

from ride_duration import logs
from ride_duration.logs import log
from ride_duration.ride import EXAMPLE, InvalidRide, NotJSON, decode_rides
from ride_duration.serving import serve
from ride_duration.zones import ZONES
from streaming.engine import Producer, StreamError, follow, open_producer
from streaming.messages import DECISIONS, PREDICTIONS, RIDES, TARGETS, BadEvent, Decision, Event, RideEvent, read_prediction
from streaming.worker import stream_option, told

KEPT = 10_000
"""Rides whose course is remembered."""

SHOWN = 10
MAX_BODY = 64 * 1024
MAX_WAIT = 60
"""Seconds, for a decision."""

_encode = msgspec.json.Encoder().encode


class Course(msgspec.Struct, omit_defaults=True):
    """What has become of a ride so far."""

    ride_id: int | str
    asked: float
    """Seconds since the epoch."""
    ride: msgspec.Raw = msgspec.Raw(b"null")
    initial: float | None = None
    """Minutes, what the web service said at once."""
    model_version: str | None = None
    detail: str | None = None
    """Why there is no initial duration."""
    predictions: dict[str, float] = {}
    decision: Decision | None = None
    seconds: float | None = None
    """From asking to the decision."""


class Board:
    """What has come over the stream since the backend began, for who asks: the newest rides and counts."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys([RIDES, *TARGETS, DECISIONS, "incomplete"], 0)
        self._courses: OrderedDict[str, Course] = OrderedDict()
        self._changed = threading.Condition()

    def begin(self, course: Course) -> None:
        """A ride was asked for."""
        with self._changed:
            self._courses[str(course.ride_id)] = course

    def see(self, topic: str, event: Event) -> None:
        """A message has come; what is none is the consumers' to complain of."""
        try:
            with self._changed:
                self._see(topic, event)
                while len(self._courses) > KEPT:
                    self._courses.popitem(last=False)
                self._changed.notify_all()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadEvent):
            return

    def find(self, ride_id: str, seconds: float = 0) -> Course | None:
        """What has become of a ride, as soon as it is decided, or after `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: (found := self._courses.get(ride_id)) is None or found.decision, timeout=seconds)
            return self._courses.get(ride_id)

    def newest(self) -> tuple[dict[str, int], list[Course]]:
        """Counts, and the newest rides first."""
        with self._changed:
            newest = [course for course, _ in zip(reversed(self._courses.values()), range(SHOWN), strict=False)]
            return dict(self.counts), newest

    def _see(self, topic: str, event: Event) -> None:
        value = event.value or b"null"
        if topic == RIDES:
            asked = msgspec.json.decode(value, type=RideEvent)
            self.counts[RIDES] += 1
            self._course(asked.ride_id, event.at).ride = asked.ride
        elif topic == PREDICTIONS:
            target, came = read_prediction(event.value)
            self.counts[target] += 1
            self._course(came.prediction.ride_id, event.at).predictions[target] = came.prediction.value(target) or 0.0
        else:
            decision = msgspec.json.decode(value, type=Decision)
            self.counts[DECISIONS] += 1
            self.counts["incomplete"] += bool(decision.missing)
            course = self._course(decision.ride_id, event.at)
            course.decision, course.seconds = decision, max(0.0, event.at - course.asked)

    def _course(self, ride_id: int | str, at: float) -> Course:
        # messages of several topics come in any order
        return self._courses.setdefault(str(ride_id), Course(ride_id, at))


class Backend:
    """The web service and the stream, as a backend uses them."""

    def __init__(self, stream: str, service: str) -> None:
        self.stream, self.service, self.board = stream, service, Board()
        self._producer: Producer | None = None
        self._lock, self._local = threading.Lock(), threading.local()
        self.not_read = {RIDES, PREDICTIONS, DECISIONS}
        """Topics that can't be read at the moment."""
        for topic in sorted(self.not_read):
            threading.Thread(target=self._follow, args=[topic], daemon=True).start()

    def ask(self, ride: bytes) -> Course:
        """Ask for a ride, of JSON that was checked: the web service's duration, at once, and an event in the stream.

        Raises
        ------
        RefusedError, StreamError
        """
        course = Course(uuid.uuid4().hex, time.time(), msgspec.Raw(ride))
        if not hasattr(self._local, "client"):  # a passenger waits: no retries
            self._local.client = RideDurationClient(self.service, timeout=(0.5, 2), retries=0)
        try:
            course.initial, course.model_version = self._local.client.predict(msgspec.json.decode(ride))
        except (UnavailableError, RefusedError, KeyError) as error:
            if isinstance(error, RefusedError) and error.status == HTTPStatus.UNPROCESSABLE_ENTITY:
                raise  # of the ride; all else is between here and there, and no reason to let a passenger down
            log.warning("degraded", extra={"fields": {"reason": str(error), "ride_id": course.ride_id}})
            course.detail = "the prediction service does not answer; the offer will say how long the ride takes"
        self.board.begin(course)
        with self._lock:
            if self._producer is None:
                self._producer = open_producer(self.stream, RIDES, seconds=5)
            self._producer.send([(str(course.ride_id), _encode(RideEvent(course.ride_id, course.ride)))])
        return course

    def _follow(self, topic: str) -> None:
        while True:
            try:
                reader = follow(self.stream, topic, beginning=False)
                self.not_read.discard(topic)
                while True:
                    for event in reader.read(1000, 0.1):
                        self.board.see(topic, event)
            except StreamError as error:
                self.not_read.add(topic)
                log.warning("can't read", extra={"fields": {"topic": topic, "reason": str(error)}})
                time.sleep(2)


def problem(status: HTTPStatus, detail: str, errors: Sequence[object] = ()) -> Response:
    """An error as `application/problem+json`, as the web service's."""
    content = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    return answer(content | ({"errors": errors} if errors else {}), status, "application/problem+json")


def answer(content: object, status: HTTPStatus = HTTPStatus.OK, content_type: str = "application/json") -> Response:
    """JSON, not to be cached."""
    return Response(_encode(content) + b"\n", status, {"Cache-Control": "no-store"}, content_type=content_type)


def create_app(stream: str, service: str) -> Flask:
    """The backend of a stream and a web service."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    logs.set_up()
    backend = Backend(stream, service)

    @app.post("/rides")
    def ask() -> Response:
        try:
            body = request.get_data()
            if isinstance(decode_rides(body), list):
                return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "must be a ride object; got an array")
            course = backend.ask(body)
        except NotJSON as error:
            return problem(HTTPStatus.BAD_REQUEST, str(error))
        except InvalidRide as error:
            return problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), error.errors)
        except RefusedError as error:
            return problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), error.errors)
        except StreamError as error:
            log.error("a ride was not passed on", extra={"fields": {"reason": str(error)}})
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the ride could not be passed on; ask again in a moment")
        return answer(course, HTTPStatus.ACCEPTED)

    @app.get("/rides/<ride_id>")
    def course(ride_id: str) -> Response:
        found = backend.board.find(ride_id, min(max(request.args.get("wait", 0, int), 0), MAX_WAIT))
        return answer(found) if found else problem(HTTPStatus.NOT_FOUND, f"no ride {ride_id[:64]!r} has been asked for lately")

    @app.get("/live")
    def live() -> Response:
        counts, newest = backend.board.newest()
        return answer({"counts": counts, "newest": newest})

    @app.get("/healthz")
    def healthz() -> Response:
        return answer({"status": "alive"})

    @app.get("/readyz")
    def readyz() -> Response:
        if missing := sorted(backend.not_read):
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, f"the stream is not read: {', '.join(missing)}")
        return answer({"status": "alive"})

    @app.get("/")
    def page() -> str:
        zones = {number: f"{zone.name}, {zone.borough}" for number, zone in ZONES.items()}
        return render_template("backend.html", zones=zones, example=EXAMPLE, targets=TARGETS)

    for status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
        app.register_error_handler(status, _handler(status))
    return app


def _handler(status: HTTPStatus) -> Callable[[Exception], Response]:
    return lambda _: problem(status, {413: f"a ride has at most {MAX_BODY:,} bytes"}.get(status, status.description))


@click.command(context_settings={"show_default": True})
@stream_option
@click.option("--service", default="http://localhost:9696", envvar="RIDE_DURATION_URL", help="Where the web service is.")
@click.option("--port", type=click.IntRange(1, 65535), default=8060, envvar="PORT", help="Port to answer on.")
@click.option("--host", default="127.0.0.1", help="Address to answer on; 0.0.0.0 is all. It asks nobody who they are.")
def main(stream: str, service: str, port: int, host: str) -> None:
    """Take rides at POST /rides: answer with the web service's duration at once, and with the decision when it has come.

    `/` is a page that shows backend, consumers and decisions live; GET /rides/ID?wait=SECONDS answers when ID is decided.

    Exit codes: 0 asked to end, 2 wrong options, 3 the stream can't be used.
    """
    with told("backend"):
        open_producer(stream, RIDES).close()  # tells at once what is wrong with it
    click.echo(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port} shows the stream")
    serve(lambda: create_app(stream, service), host, port, workers=1, threads=32)


if __name__ == "__main__":
    main()
