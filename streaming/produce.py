"""Replay rides into the stream: `python -m streaming.produce --stream sqlite:///rides.db data/green_tripdata_*.parquet`."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any

import click
import msgspec

try:
    from tqdm import tqdm

    from ride_duration.stores import MISSING, NUMBERS, StoreError, of_seconds, open_rides
    from ride_duration.stores.ids import Ids
    from ride_duration.stores.options import column_option
except ModuleNotFoundError as error:
    sys.exit(
        f"streaming.produce needs {error.name}: run `make venv CATEGORIES=stream`, then .venv/bin/python -m streaming.produce"
    )

from ride_duration.logs import shown
from streaming.engine import StreamError, open_producer
from streaming.messages import RIDES
from streaming.worker import EXIT_STREAM, stream_option

CHUNK = 1000
_encode = msgspec.json.Encoder().encode


class RecordsError(ValueError):
    """Rides that can't be read, and why."""


def of_store(url: str, mapping: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Keys and messages of a store's rides, in order of time; a ride without an id has the batch job's."""
    with closing(open_rides(url, mapping)) as rides:
        span = rides.span(None)
        if span.timeless:
            click.echo(f"{shown(url)}: {span.timeless:,} rides without a time are left out", err=True)
        if span.first is None or span.last is None:
            return
        ids = Ids()
        for batch in rides.read(span.first, span.last + timedelta(seconds=1)):
            columns = (batch[name].to_pylist() for name in ("pickup", *NUMBERS, "odd"))
            for ride_id, pickup, *numbers, odd in zip(ids.of(batch).to_pylist(), *columns, strict=True):
                ride: dict[str, Any] = {"pickup_datetime": of_seconds(pickup).isoformat()}
                for name, number in zip(NUMBERS, numbers, strict=True):
                    whole = name != "trip_distance" and number == int(number)
                    ride[name] = None if number == MISSING else int(number) if whole else number
                if odd:
                    ride |= msgspec.json.decode(odd)
                yield ride_id, _encode({"ride_id": ride_id, "ride": ride})


def of_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Keys and messages of JSON lines: ride events, or rides, whose ride_id is theirs or the file's name and the line."""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                value = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise RecordsError(f"{path}, line {number + 1}: {error}") from None
            if not isinstance(value, dict):
                raise RecordsError(f"{path}, line {number + 1}: a ride, or a ride event, is wanted")
            if "ride" not in value:
                value = {"ride_id": value.pop("ride_id", f"{path.stem[-40:]}-{number}"), "ride": value}
            yield str(value.get("ride_id")), _encode(value)


def messages_of(url: str, mapping: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Keys and messages of the rides at an address."""
    try:
        yield from of_lines(Path(url)) if url.endswith((".jsonl", ".ndjson", ".json")) else of_store(url, mapping)
    except (StoreError, OSError) as error:
        raise RecordsError(str(error)) from None
    except ModuleNotFoundError as error:
        raise RecordsError(f'{shown(url)} needs {error.name}: run `make venv CATEGORIES="stream batch"`') from None


@click.command(context_settings={"show_default": True})
@click.argument("rides", nargs=-1, required=True, envvar="RIDES")
@stream_option
@column_option
@click.option("--rate", type=click.IntRange(1, 1_000_000), help="Rides a second; as fast as they are acknowledged without it.")
@click.option("--limit", type=click.IntRange(1), help="So many rides at most.")
def main(rides: tuple[str, ...], stream: str, mapping: dict[str, str], rate: int | None, limit: int | None) -> None:
    """Publish RIDES: JSON lines of rides or of ride events (FILE.jsonl), or what `batch.score` reads: TLC's Parquet, a file, a
    folder, s3:// or gs://; or a database, sqlite:///FILE.db or postgresql://USER@HOST/DATABASE, #TABLE names its table.

    Exit codes: 0 done, 2 wrong options, 3 the stream or the rides can't be used.
    """
    messages = islice(chain.from_iterable(messages_of(url, mapping) for url in rides), limit)
    began, sent = time.monotonic(), 0
    try:
        with closing(open_producer(stream, RIDES)) as producer, tqdm(unit="ride", unit_scale=True, disable=None) as progress:
            while chunk := list(islice(messages, max(1, min(CHUNK, rate // 10)) if rate else CHUNK)):
                sent += producer.send(chunk)
                progress.update(len(chunk))
                if rate:
                    time.sleep(max(0.0, began + sent / rate - time.monotonic()))
    except (RecordsError, StreamError) as error:
        click.echo(f"streaming.produce: {error} ({sent:,} rides were published before)", err=True)
        sys.exit(EXIT_STREAM)
    click.echo(f"{sent:,} rides published in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
