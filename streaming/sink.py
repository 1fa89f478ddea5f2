"""predictions → the predictions database of the batch door: `python -m streaming.sink --stream … --predictions …`.

Rows are added where their key isn't there yet, then the position is moved: killed in between, the same rows come again and
change nothing.
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import click

try:
    import pyarrow as pa

    from ride_duration.stores import TABLES, Address, StoreError, now
    from ride_duration.stores.databases import Database
    from ride_duration.stores.predictions import DatabasePredictions
except ModuleNotFoundError as error:
    sys.exit(f'streaming.sink needs {error.name}: run `make venv CATEGORIES="stream batch"`')

from ride_duration.logs import log, shown
from streaming.engine import open_consumer
from streaming.messages import PREDICTIONS, BadEvent, Event, Output, dead_letter, read_prediction, read_ride
from streaming.worker import Step, Worker, port_option, service, stream_option

GROUP = "sink"


def rows_of(events: Sequence[Event]) -> tuple[pa.Table, list[Output]]:
    """The durations among predictions, as the table `predictions`, and dead letters of what is none; others don't matter."""
    scored_at = now()
    rows: list[dict[str, Any]] = []
    dead = []
    for event in events:
        try:
            target, message = read_prediction(event.value)
            ride = read_ride(message.ride)
            if "\0" in str(message.prediction.ride_id):
                raise BadEvent("its ride_id has a NUL, which PostgreSQL does not take")
        except BadEvent as error:
            dead.append(dead_letter(event, str(error), GROUP))
            continue
        if target == "duration":
            low, high = message.prediction.interval or (None, None)
            rows.append(
                {
                    "ride_id": str(message.prediction.ride_id),
                    "model_version": message.version,
                    "pickup_datetime": ride.pickup_datetime and ride.pickup_datetime.replace(microsecond=0),
                    "PULocationID": ride.PULocationID,
                    "DOLocationID": ride.DOLocationID,
                    "trip_distance": ride.trip_distance,
                    "predicted_duration": message.prediction.ride_duration,
                    "low": low,
                    "high": high,
                    "scored_at": scored_at,
                }
            )
    return pa.Table.from_pylist(rows, schema=TABLES["predictions"]), dead


@click.command(context_settings={"show_default": True})
@stream_option
@click.option("--predictions", required=True, envvar="PREDICTIONS", metavar="URL", help="sqlite:///FILE.db or postgresql://….")
@click.option("--batch", type=click.IntRange(1, 100_000), default=5000, help="Predictions in a transaction, at most.")
@port_option
def main(stream: str, predictions: str, batch: int, port: int) -> None:
    """Write the durations of the stream `predictions` into the predictions database, each once.

    Exit codes: 0 asked to end, 2 wrong options, 3 the stream or the database can't be used.
    """
    with service("sink", StoreError):
        address = Address.of(predictions)
        if address.kind == "parquet":
            raise StoreError(f"{shown(predictions)}: a stream is written into a database; give sqlite:///… or postgresql://…")
        with (
            closing(DatabasePredictions(Database(address, create=True))) as target,
            closing(open_consumer(stream, PREDICTIONS, GROUP)) as consumer,
        ):

            def write(events: Sequence[Event]) -> Step:
                rows, dead = rows_of(events)
                if len(rows):
                    times = [time for time in rows["pickup_datetime"].to_pylist() if time]
                    first, last = min(times, default=datetime.min), max(times, default=datetime.min)
                    with target.adding(first, last + timedelta(seconds=1)) as adding:
                        adding.add(rows, TABLES["rejects"].empty_table())
                return Step(dead, outcomes={"written": len(rows), "no_duration": len(events) - len(rows) - len(dead)})

            log.info("writing predictions", extra={"fields": {"to": shown(predictions)}})
            Worker(consumer, write, "published", batch).run(port)


if __name__ == "__main__":
    main()
