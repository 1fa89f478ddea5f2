"""What every service of the stream is: a loop that reads, answers and commits until asked to end, its metrics and health."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from socketserver import ThreadingMixIn
from types import MappingProxyType
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import click
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, generate_latest

from ride_duration import logs
from ride_duration.logs import log
from streaming.engine import Consumer, Heart, StreamError, TakenOverError
from streaming.messages import DEAD_LETTERS, Event, Output

EVENTS = Counter("ride_duration_stream_events_total", "Events by what became of them.", ["outcome"])
BATCHES = Counter("ride_duration_stream_batches_total", "Batches by what became of them.", ["outcome"])
LAG = Gauge("ride_duration_stream_lag_events", "Events of this worker's partitions that it has still to read.")

EXIT_STREAM = 3
LAG_SECONDS = 5.0
GRACE_SECONDS = 30.0
STALLED_SECONDS = 60.0
"""A worker that does nothing for so long, not even ask brokers again that are away, is not healthy."""


class Step(NamedTuple):
    """What a service answers to a batch."""

    outputs: Sequence[Output] = ()
    held: Mapping[int, int] = MappingProxyType({})
    """See `engine.Consumer.commit`."""
    outcomes: Mapping[str, int] = MappingProxyType({})
    """What is counted, beside dead letters, when it is committed."""


class Worker:
    """Reads, answers and commits until it is stopped.

    Parameters
    ----------
    answer
        Answers a batch, empty ones too; called in turn, from one thread.
    main
        What an output that is no dead letter is counted as.
    forget
        Called when what was read and not committed is void.
    """

    def __init__(
        self,
        consumer: Consumer,
        answer: Callable[[Sequence[Event]], Step],
        main: str,
        batch: int,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self.consumer, self.answer, self.main, self.batch, self.forget = consumer, answer, main, batch, forget
        self.stopped = threading.Event()

    def run(self, port: int = 0) -> None:
        """Until SIGTERM or SIGINT; the batch in hand is finished then."""
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._stop)
        BATCHES.labels("committed")  # a worker that has committed nothing says so
        if port:
            self._serve(port)
        lag_at = 0.0
        while not self.stopped.is_set():
            try:
                events = self.consumer.read(self.batch, 0.2)
                Heart.beat()
                self._commit(events, self.answer(events))
            except TakenOverError:
                BATCHES.labels("taken_over").inc()
                self.forget()
                continue
            if time.monotonic() - lag_at > LAG_SECONDS:
                lag_at = time.monotonic()
                LAG.set(self.consumer.lag())

    def _stop(self, *_: object) -> None:
        """Finish the batch in hand, unless brokers that are away keep it: what ends so loses and repeats nothing either."""
        self.stopped.set()
        timer = threading.Timer(GRACE_SECONDS, os._exit, [EXIT_STREAM])
        timer.daemon = True
        timer.start()

    def _commit(self, events: Sequence[Event], step: Step) -> None:
        if not events and not step.outputs:
            return
        committed = self.consumer.commit(step.outputs, step.held)
        BATCHES.labels("committed").inc()
        dead = committed.published.get(DEAD_LETTERS, 0)
        counts = {self.main: sum(committed.published.values()) - dead, "dead_letter": dead, "suppressed": committed.suppressed}
        for outcome, count in {**counts, **step.outcomes}.items():
            EVENTS.labels(outcome).inc(count)

    def _serve(self, port: int) -> None:
        """Answer /metrics and /healthz, in a thread."""

        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            if environ["PATH_INFO"] == "/metrics":
                start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
                return [generate_latest(REGISTRY)]
            stalled = time.monotonic() - Heart.at > STALLED_SECONDS
            found = environ["PATH_INFO"] in ("/healthz", "/readyz")
            status = HTTPStatus.NOT_FOUND if not found else HTTPStatus.SERVICE_UNAVAILABLE if stalled else HTTPStatus.OK
            start_response(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
            return [b'{"status":"%s"}\n' % (b"alive" if status == HTTPStatus.OK else status.phrase.lower().encode())]

        class Quiet(WSGIRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

        try:
            # what scrapes it is elsewhere
            server = make_server("0.0.0.0", port, app, server_class=_Server, handler_class=Quiet)
        except OSError as error:
            raise StreamError(f"port {port} can't be used for /metrics and /healthz: {error.strerror}") from None
        threading.Thread(target=server.serve_forever, daemon=True).start()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


stream_option = click.option(
    "--stream", required=True, envvar="STREAM", metavar="URL", help="sqlite:///FILE.db or kafka://HOST:PORT,HOST:PORT."
)
port_option = click.option(
    "--port", type=click.IntRange(0, 65535), default=0, envvar="PORT", help="Answer /metrics and /healthz there; 0 doesn't."
)


@contextmanager
def told(command: str, *errors: type[Exception]) -> Iterator[None]:
    """A stream that can't be used, or another of `errors`, is a sentence and exit code 3."""
    expected: tuple[type[Exception], ...] = (StreamError, *errors)
    try:
        yield
    except expected as error:
        click.echo(f"streaming.{command}: {error}", err=True)
        sys.exit(EXIT_STREAM)


@contextmanager
def service(command: str, *errors: type[Exception]) -> Iterator[None]:
    """The same for what runs until it is asked to end, and logs."""
    logs.set_up()
    expected: tuple[type[Exception], ...] = (StreamError, *errors)
    with told(command, *errors):
        try:
            yield
        except expected as error:
            log.error("ended", extra={"fields": {"reason": str(error)}})
            raise
    log.info("ended as asked")
