"""rides → predictions: `python -m streaming.consume --stream sqlite:///rides.db`.

A batch's predictions, its dead letters and the position are one transaction, so that killed at any instant, or taken over by
another worker, no ride is lost and none is answered twice. A new model file is switched to between two batches.
"""

import sys
from collections.abc import Sequence
from contextlib import closing

import click
from prometheus_client import Gauge

from ride_duration.logs import log
from ride_duration.model import LinearModel, ModelError
from ride_duration.watch import WatchedModel
from streaming.engine import open_consumer
from streaming.messages import PREDICTIONS, RIDES, Event, answer, name_of
from streaming.worker import Step, Worker, port_option, service, stream_option

MODEL = Gauge("ride_duration_stream_model_info", "1 for the model that predicts.", ["target", "version"])
REFUSED = Gauge("ride_duration_stream_model_refused", "1 while the newest model file is refused and an older one predicts.")

EXIT_MODEL = 4


@click.command(context_settings={"show_default": True})
@stream_option
@click.option("--model", "path", envvar="MODEL", default="model.bin", help="The model file; its target is what is predicted.")
@click.option("--batch", type=click.IntRange(1, 10_000), default=500, help="Events in a transaction, at most.")
@port_option
def main(stream: str, path: str, batch: int, port: int) -> None:
    """Predict each ride of the stream `rides`, into `predictions`; what can't be answered goes to `rides.dlq`.

    As many of these as there are partitions share the work; those of another target (fare, tip) each get every ride.

    Exit codes: 0 asked to end, 2 wrong options, 3 the stream can't be used, 4 the model can't.
    """
    try:
        models = WatchedModel(path, None)
    except ModelError as error:
        click.echo(f"streaming.consume: {error}", err=True)
        sys.exit(EXIT_MODEL)
    group = name_of(models.target)
    shown: LinearModel | None = None

    def predict(events: Sequence[Event]) -> Step:
        nonlocal shown
        model = models.current.model
        if shown is not model:
            shown = model
            MODEL.clear()
            MODEL.labels(model.target, model.version).set(1)
        REFUSED.set(models.refused is not None)
        return Step(answer(model, events, group))

    with service("consume"), closing(open_consumer(stream, RIDES, group, PREDICTIONS)) as consumer:
        models.watch()
        log.info("consuming", extra={"fields": {"group": group, "model_version": models.current.model.version}})
        Worker(consumer, predict, "predicted", batch).run(port)


if __name__ == "__main__":
    main()
