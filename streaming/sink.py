"""predictions → the predictions database of the batch door: `python -m streaming.sink --stream … --predictions …`.

Rows are added where their key isn't there yet, then the position is moved: killed in between, the same rows come again and
change nothing.
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import click

try:
    from ride_duration.stores import StoreError, now
    from ride_duration.stores.predictions import open_for_rows, row_of
except ModuleNotFoundError as error:
    sys.exit(f'streaming.sink needs {error.name}: run `make venv CATEGORIES="stream batch"`')

from ride_duration.logs import log, shown
from ride_duration.model import ModelError
from ride_duration.model_file import load_model
from streaming.engine import open_consumer
from streaming.messages import PREDICTIONS, Event, Output, dead_letter, read_prediction, read_ride
from streaming.worker import Step, Worker, port_option, service, stream_option

GROUP = "sink"


def rows_of(events: Sequence[Event]) -> tuple[list[dict[str, Any]], list[Output]]:
    """The durations among predictions, as rows of `predictions`, and dead letters of what is none; others don't matter."""
    scored_at = now()
    rows: list[dict[str, Any]] = []
    dead = []
    for event in events:
        try:
            target, message = read_prediction(event.value)
            ride = read_ride(message.ride)
            found = message.prediction
            if target == "duration" and found.ride_duration is not None:
                rows.append(row_of(found.ride_id, message.version, ride, found.ride_duration, found.interval, scored_at))
        except ValueError as error:
            dead.append(dead_letter(event, str(error), GROUP))
    return rows, dead


@click.command(context_settings={"show_default": True})
@stream_option
@click.option("--predictions", required=True, envvar="PREDICTIONS", metavar="URL", help="sqlite:///FILE.db or postgresql://….")
@click.option(
    "--model", "models", multiple=True, metavar="FILE", help="A model file that serves: what drift is measured against."
)
@click.option("--batch", type=click.IntRange(1, 100_000), default=5000, help="Predictions in a transaction, at most.")
@port_option
def main(stream: str, predictions: str, models: tuple[str, ...], batch: int, port: int) -> None:
    """Write the durations of the stream `predictions` into the predictions database, each once.

    Exit codes: 0 asked to end, 2 wrong options, 3 the stream or the database can't be used.
    """
    with (
        service("sink", StoreError, ModelError),
        closing(open_for_rows(predictions, "a stream")) as target,
        closing(open_consumer(stream, PREDICTIONS, GROUP)) as consumer,
    ):
        for path in models:
            target.introduce(load_model(path, "duration"))

        def write(events: Sequence[Event]) -> Step:
            rows, dead = rows_of(events)
            if rows:
                target.add(rows)
            return Step(dead, outcomes={"written": len(rows), "no_duration": len(events) - len(rows) - len(dead)})

        log.info("writing predictions", extra={"fields": {"to": shown(predictions)}})
        Worker(consumer, write, "published", batch).run(port)


if __name__ == "__main__":
    main()
