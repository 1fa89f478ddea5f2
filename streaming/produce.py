"""Replay rides into the stream: `python -m streaming.produce --stream sqlite:///rides.db data/green_tripdata_*.parquet`."""

import sys
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

import click
import msgspec

try:
    import pyarrow.parquet as pq
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(
        f"streaming.produce needs {error.name}: run `make venv CATEGORIES=stream`, then .venv/bin/python -m streaming.produce"
    )

from streaming.engine import StreamError, open_producer
from streaming.messages import RIDES

CHUNK = 1000
_encode = msgspec.json.Encoder().encode


class RecordsError(ValueError):
    """A file of rides that can't be read, and why."""


def of_parquet(path: Path) -> Iterator[tuple[str, bytes]]:
    """Keys and messages of TLC's records: the ride_id is the file's name and the row."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise RecordsError(f"{path}: {error}") from None
    names = {name.removeprefix("lpep_").removeprefix("tpep_"): name for name in file.schema_arrow.names}
    wanted = ["pickup_datetime", "PULocationID", "DOLocationID", "trip_distance"]
    absent = [name for name in wanted if name not in names]
    if absent:
        raise RecordsError(f"{path} has no column {absent[0]}; it has {', '.join(file.schema_arrow.names)}")
    row = 0
    for batch in file.iter_batches(columns=[names[name] for name in wanted]):
        for values in zip(*(batch[names[name]].to_pylist() for name in wanted), strict=True):
            ride: dict[str, Any] = dict(zip(wanted, values, strict=True))
            if isinstance(ride["pickup_datetime"], datetime):
                ride["pickup_datetime"] = ride["pickup_datetime"].isoformat()
            ride_id = f"{path.stem[-40:]}-{row}"
            yield ride_id, _encode({"ride_id": ride_id, "ride": ride})
            row += 1


def of_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Keys and messages of JSON lines: ride events, or rides, whose ride_id is theirs or the file's name and the line."""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                value = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RecordsError(f"{path}, line {number + 1}: {error}") from None
            if not isinstance(value, dict):
                raise RecordsError(f"{path}, line {number + 1}: a ride, or a ride event, is wanted")
            if "ride" not in value:
                value = {"ride_id": value.pop("ride_id", f"{path.stem[-40:]}-{number}"), "ride": value}
            yield str(value.get("ride_id")), _encode(value)


@click.command(context_settings={"show_default": True})
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--stream", required=True, envvar="STREAM", metavar="URL", help="sqlite:///FILE.db or kafka://HOST:PORT,….")
@click.option("--rate", type=click.FloatRange(min=0.1), help="Rides a second; as fast as they are acknowledged without it.")
@click.option("--limit", type=click.IntRange(1), help="So many rides at most.")
def main(files: tuple[Path, ...], stream: str, rate: float | None, limit: int | None) -> None:
    """Publish the rides of FILES: TLC's Parquet, or JSON lines of rides or of ride events.

    Exit codes: 0 done, 2 wrong options or files, 3 the stream can't be used.
    """
    messages: Iterator[tuple[str, bytes]] = chain.from_iterable(
        of_parquet(path) if path.suffix == ".parquet" else of_lines(path) for path in files
    )
    if limit:
        messages = islice(messages, limit)
    began, sent = time.monotonic(), 0
    try:
        producer = open_producer(stream, RIDES)
        with tqdm(unit="ride", unit_scale=True, disable=None) as progress:
            while chunk := list(islice(messages, max(1, min(CHUNK, int(rate / 10))) if rate else CHUNK)):
                sent += producer.send(chunk)
                progress.update(len(chunk))
                if rate:
                    time.sleep(max(0.0, began + sent / rate - time.monotonic()))
        producer.close()
    except RecordsError as error:
        raise click.UsageError(f"{error} ({sent:,} rides were published before)") from None
    except StreamError as error:
        click.echo(f"streaming.produce: {error} ({sent:,} rides were published before)", err=True)
        sys.exit(3)
    click.echo(f"{sent:,} rides published in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
