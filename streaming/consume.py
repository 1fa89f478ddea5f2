"""rides → predictions: `python -m streaming.consume --stream sqlite:///rides.db`.

A batch's predictions, its dead letters and the position are one transaction, so that killed at any instant, or taken over by
another worker, no ride is lost and none is answered twice. A new model file is switched to between two batches.
"""

import signal
import sys
import threading
import time
from http import HTTPStatus
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import click
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, generate_latest

from ride_duration import logs
from ride_duration.logs import log
from ride_duration.model import ModelError
from ride_duration.watch import WatchedModel
from streaming.engine import Consumer, StreamError, TakenOverError, open_consumer
from streaming.messages import PREDICTIONS, RIDES, answer, name_of

EVENTS = Counter("ride_duration_stream_events_total", "Events by what became of them.", ["outcome"])
BATCHES = Counter("ride_duration_stream_batches_total", "Batches by what became of them.", ["outcome"])
LAG = Gauge("ride_duration_stream_lag_events", "Events that are still to be read by this worker.")
MODEL = Gauge("ride_duration_stream_model_info", "1 for the model that predicts.", ["version"])
PREDICTED, DEAD, SUPPRESSED = (EVENTS.labels(outcome) for outcome in ("predicted", "dead_letter", "suppressed"))

EXIT_STREAM, EXIT_MODEL = 3, 4
LAG_SECONDS = 5.0
STALLED_SECONDS = 60.0
"""Without a look at the stream for so long a worker is not healthy."""


class Worker:
    """Answers a stream's rides until it is stopped."""

    def __init__(self, consumer: Consumer, models: WatchedModel, group: str, batch: int) -> None:
        self.consumer, self.models, self.group, self.batch = consumer, models, group, batch
        self.stopped = threading.Event()
        self.looked_at = time.monotonic()

    def run(self) -> None:
        """Until `stopped` is set; the batch in hand is finished then."""
        lag_at, version = 0.0, ""
        while not self.stopped.is_set():
            events = self.consumer.read(self.batch, 0.2)
            self.looked_at = time.monotonic()
            model = self.models.current.model
            if model.version != version:
                MODEL.clear()
                MODEL.labels(model.version).set(1)
                version = model.version
            if events:
                outputs = answer(model, events, self.group)
                try:
                    committed = self.consumer.commit(outputs)
                except TakenOverError:
                    BATCHES.labels("taken_over").inc()
                    continue
                BATCHES.labels("committed").inc()
                predicted = sum(output.topic == PREDICTIONS for output in outputs)
                PREDICTED.inc(predicted - committed.suppressed)
                DEAD.inc(len(outputs) - predicted)
                SUPPRESSED.inc(committed.suppressed)
            if not events or self.looked_at - lag_at > LAG_SECONDS:
                lag_at = self.looked_at
                LAG.set(self.consumer.lag())

    def serve(self, port: int) -> None:
        """Answer /metrics and /healthz, in a thread."""

        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            if environ["PATH_INFO"] == "/metrics":
                start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
                return [generate_latest(REGISTRY)]
            stalled = time.monotonic() - self.looked_at > STALLED_SECONDS
            found = environ["PATH_INFO"] in ("/healthz", "/readyz")
            status = HTTPStatus.NOT_FOUND if not found else HTTPStatus.SERVICE_UNAVAILABLE if stalled else HTTPStatus.OK
            start_response(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
            return [b'{"status":"%s"}\n' % (b"ok" if status == HTTPStatus.OK else status.phrase.lower().encode())]

        class Quiet(WSGIRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

        server = make_server("0.0.0.0", port, app, handler_class=Quiet)  # what scrapes it is elsewhere
        threading.Thread(target=server.serve_forever, daemon=True).start()


@click.command(context_settings={"show_default": True})
@click.option(
    "--stream", required=True, envvar="STREAM", metavar="URL", help="sqlite:///FILE.db or kafka://HOST:PORT,HOST:PORT."
)
@click.option("--model", "path", envvar="MODEL", default="model.bin", help="The model file; its target is what is predicted.")
@click.option("--batch", type=click.IntRange(1, 10_000), default=500, help="Events in a transaction, at most.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, envvar="PORT", help="Answer /metrics and /healthz there; 0 doesn't."
)
def main(stream: str, path: str, batch: int, port: int) -> None:
    """Predict each ride of the stream `rides`, into `predictions`; what can't be answered goes to `rides.dlq`.

    As many of these as there are partitions share the work; those of another target (fare, tip) each get every ride.

    Exit codes: 0 asked to end, 2 wrong options, 3 the stream can't be used, 4 the model can't.
    """
    logs.set_up()
    try:
        models = WatchedModel(path, None)
        group = name_of(models.target)
        consumer = open_consumer(stream, RIDES, group)
    except (ModelError, StreamError) as error:
        click.echo(f"streaming.consume: {error}", err=True)
        sys.exit(EXIT_MODEL if isinstance(error, ModelError) else EXIT_STREAM)
    worker = Worker(consumer, models, group, batch)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: worker.stopped.set())
    models.watch()
    if port:
        worker.serve(port)
    log.info("consuming", extra={"fields": {"group": group, "model_version": models.current.model.version}})
    try:
        worker.run()
    except StreamError as error:
        log.error("the stream can't be used", extra={"fields": {"reason": str(error)}})
        click.echo(f"streaming.consume: {error}", err=True)
        sys.exit(EXIT_STREAM)
    finally:
        consumer.close()
    log.info("ended as asked", extra={"fields": {"group": group}})


if __name__ == "__main__":
    main()
