"""predictions → the predictions database of the batch door: `python -m streaming.sink --stream … --predictions …`.

Rows are added where their key isn't there yet, then the position is moved: killed in between, the same rows come again and
change nothing.
"""

import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import datetime, timedelta
from typing import Any

import click
import msgspec

try:
    import pyarrow as pa

    from ride_duration.stores import TABLES, Address, StoreError, now, shown
    from ride_duration.stores.databases import Database
    from ride_duration.stores.predictions import DatabasePredictions
except ModuleNotFoundError as error:
    sys.exit(f'streaming.sink needs {error.name}: run `make venv CATEGORIES="stream batch"`')

from ride_duration import logs
from ride_duration.logs import log
from ride_duration.ride import Ride
from streaming.engine import StreamError, TakenOverError, open_consumer
from streaming.messages import PREDICTIONS, Event, PredictionEvent, name_of

GROUP = "sink"
_decode = msgspec.json.Decoder(PredictionEvent).decode
_decode_ride = msgspec.json.Decoder(Ride).decode


def rows_of(events: Sequence[Event]) -> pa.Table:
    """The durations among predictions, as the table `predictions`; others are of no interest, and what is none is told."""
    scored_at = now()
    rows: list[dict[str, Any]] = []
    for event in events:
        try:
            message = _decode(event.value or b"null")
            ride = _decode_ride(message.ride)
        except msgspec.DecodeError as error:
            place = {"topic": event.topic, "partition": event.partition, "offset": event.offset}
            log.error("a message is no prediction", extra={"fields": place | {"reason": str(error)}})
            continue
        if message.model == name_of("duration"):
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
    return pa.Table.from_pylist(rows, schema=TABLES["predictions"])


@click.command(context_settings={"show_default": True})
@click.option("--stream", required=True, envvar="STREAM", metavar="URL", help="sqlite:///FILE.db or kafka://HOST:PORT,….")
@click.option("--predictions", required=True, envvar="PREDICTIONS", metavar="URL", help="sqlite:///FILE.db or postgresql://….")
@click.option("--batch", type=click.IntRange(1, 100_000), default=5000, help="Predictions in a transaction, at most.")
def main(stream: str, predictions: str, batch: int) -> None:
    """Write the durations of the stream `predictions` into the predictions database, each once.

    Exit codes: 0 asked to end, 2 wrong options, 3 the stream or the database can't be used.
    """
    logs.set_up()
    stopped = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopped.set())
    try:
        address = Address.of(predictions)
        if address.kind == "parquet":
            raise StoreError(f"{shown(predictions)}: a stream is written into a database; give sqlite:///… or postgresql://…")
        with (
            closing(DatabasePredictions(Database(address, create=True))) as target,
            closing(open_consumer(stream, PREDICTIONS, GROUP)) as consumer,
        ):
            log.info("writing predictions", extra={"fields": {"to": shown(predictions)}})
            while not stopped.is_set():
                events = consumer.read(batch, 0.5)
                rows = rows_of(events)
                if len(rows):
                    times = [time for time in rows["pickup_datetime"].to_pylist() if time]
                    first, last = min(times, default=datetime.min), max(times, default=datetime.min)
                    with target.adding(first, last + timedelta(seconds=1)) as adding:
                        adding.add(rows, TABLES["rejects"].empty_table())
                if events:
                    with suppress(TakenOverError):
                        consumer.commit([])
    except (StreamError, StoreError) as error:
        click.echo(f"streaming.sink: {error}", err=True)
        sys.exit(3)
    log.info("ended as asked")


if __name__ == "__main__":
    main()
