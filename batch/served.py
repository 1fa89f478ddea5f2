"""The web service's log → the predictions database: `python -m batch.served LOG… --predictions sqlite:///predictions.db`.

With `LOG_RIDES=1` the log has the rides and what was answered. A prediction is added where its key isn't there yet, so to read
a log again, twice at once, or after a kill changes nothing: a follower needs no memory of where it was.
"""

import math
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import click
import msgspec
from msgspec import UNSET, Meta

try:
    from batch.score import EXIT_MODEL, EXIT_STORE, Failure
    from ride_duration.stores import StoreError
    from ride_duration.stores.predictions import DatabasePredictions, open_for_rows, row_of
except ModuleNotFoundError as error:
    sys.exit(f"batch.served needs {error.name}: run `make venv CATEGORIES=batch`, then .venv/bin/python -m batch.served")

from ride_duration.model import ModelError
from ride_duration.model_file import load_model
from ride_duration.ride import Ride, decode_rides

SECONDS = 2.0
"""A prediction is in the database so long after its line was read, or sooner."""

_ROWS = 5000
_CHUNK_BYTES = 1 << 20
_LINE_BYTES = 4 << 20
_TOO_LONG = b"{"
_LOOK_SECONDS = 0.5


class Line(msgspec.Struct):
    """A line of the log that has rides: with what was answered, or, when its message is "shadow", with what was not."""

    time: Annotated[datetime, Meta(tz=True)]
    model_version: Annotated[str, Meta(min_length=1, max_length=200)]
    scored: list[msgspec.Raw]
    message: str = ""


class Scored(msgspec.Struct):
    """A ride of it, as it came, and its duration in minutes."""

    ride: msgspec.Raw
    duration: float
    interval: tuple[float, float] | None = None


_decode_line = msgspec.json.Decoder(Line).decode
_decode_scored = msgspec.json.Decoder(Scored).decode


def rows_of(line: bytes, counts: Counter[str]) -> tuple[bool, list[dict[str, Any]]]:
    """Whether a line of the log is a shadow's, and its predictions as rows of `predictions`; what it has is counted."""
    rows: list[dict[str, Any]] = []
    try:
        found = _decode_line(line)
        at = found.time.astimezone(UTC).replace(tzinfo=None, microsecond=0)
    except (msgspec.ValidationError, OverflowError):
        counts["others"] += 1
        return False, rows
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        counts["that can't be read"] += 1
        return False, rows
    counts["with rides"] += 1
    for entry in found.scored:
        try:
            scored = _decode_scored(entry)
            ride = decode_rides(scored.ride)
            if not isinstance(ride, Ride):
                raise ValueError("an array is not a ride")
            if ride.ride_id is UNSET:
                counts["without a ride_id"] += 1
            else:
                rows.append(row_of(ride.ride_id, found.model_version, ride, scored.duration, scored.interval, at))
        except (ValueError, RecursionError):
            counts["of another form"] += 1
    return found.message == "shadow", rows


def lines_of(log: str, stopped: threading.Event) -> Iterator[list[bytes]]:
    """The lines of a file, or of standard input, as they come; none now and then, when none come."""
    with open(0 if log == "-" else log, "rb", buffering=0, closefd=log != "-") as file:
        rest = b""
        while not stopped.is_set():
            if not select.select([file], [], [], _LOOK_SECONDS)[0]:
                yield []
                continue
            data = file.read(_CHUNK_BYTES)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            yield lines
            if len(rest) > _LINE_BYTES:  # no line of ours: to its end it is none that can be read
                rest = _TOO_LONG
        if rest:
            yield [rest]


def copy(logs: Sequence[str], target: DatabasePredictions, stopped: threading.Event) -> Counter[str]:
    """Add the predictions in logs until these end, or `stopped` is set; what was read is counted."""
    counts: Counter[str] = Counter()
    hand: dict[bool, list[dict[str, Any]]] = {False: [], True: []}  # what was answered, and what shadows say
    due = math.inf

    def write() -> None:
        for shadow, rows in hand.items():
            added = target.add(rows, shadow) if rows else 0
            counts.update({"added": added, "there already": len(rows) - added})
            rows.clear()

    for log in logs:
        for lines in lines_of(log, stopped):
            for line in lines:
                shadow, rows = rows_of(line, counts)
                hand[shadow] += rows
            if any(hand.values()):
                due = min(due, time.monotonic() + SECONDS)
            if sum(map(len, hand.values())) >= _ROWS or time.monotonic() >= due:
                write()
                due = math.inf
    write()
    return counts


def account(counts: Counter[str]) -> str:
    """What became of the lines, and of the predictions in them."""

    def told(what: str, *names: str) -> str:
        parts = " + ".join(f"{counts[name]:,} {name}" for name in names)
        return f"{sum(counts[name] for name in names):,} {what} = {parts}"

    lines = told("lines read", "with rides", "others", "that can't be read")
    return f"{lines}\n{told('predictions in them', 'added', 'there already', 'without a ride_id', 'of another form')}"


@contextmanager
def until_asked() -> Iterator[threading.Event]:
    """What SIGTERM and SIGINT set, instead of what they did."""
    stopped = threading.Event()
    before = {name: signal.signal(name, lambda *_: stopped.set()) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.argument(
    "logs", metavar="LOG...", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@click.option(
    "--predictions",
    required=True,
    envvar="PREDICTIONS",
    metavar="URL",
    help="The predictions database, made if there is none: sqlite:///FILE.db or postgresql://….",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="FILE",
    help="A model file that serves, so that the dashboard knows what it was trained on, which drift is measured against.",
)
def main(logs: tuple[str, ...], predictions: str, models: tuple[str, ...]) -> None:
    """Add the predictions in the web service's log to the predictions database; `-` is standard input.

    The service writes rides and durations into its log with LOG_RIDES=1. A ride is known by its ride_id: one without can't be
    joined with how long it took, and is counted. One that was asked for several times is kept as it was answered first, by
    each model version. To read a log again changes nothing.

    A file is read to its end; standard input until it ends, or SIGTERM or SIGINT does it, and a prediction is written within
    two seconds:

    \b
    python -m batch.served service.log --predictions sqlite:///predictions.db
    tail -F service.log | python -m batch.served - --predictions sqlite:///predictions.db
    kubectl logs --follow POD | python -m batch.served - --predictions postgresql://me@host/predictions

    Then `batch.score --actuals` fills in how long the rides took. A ride that was asked for without pickup_datetime gets it
    there too, from the record of the ride, and is in no hour until then.

    Exit codes: 0 done, 2 wrong options, 3 the database can't be used, 4 a model can't.
    """
    try:
        trained = [load_model(path, "duration") for path in models]
        with until_asked() as stopped, closing(open_for_rows(predictions, "a log")) as target:
            for model in trained:
                target.introduce(model)
            # the database's driver takes SIGINT for itself in the main thread, and would not finish what it writes
            with ThreadPoolExecutor(1) as other:
                counts = other.submit(copy, logs, target, stopped).result()
    except ModelError as error:
        raise Failure(error, EXIT_MODEL) from None
    except StoreError as error:
        raise Failure(error, EXIT_STORE) from None
    click.echo(account(counts))


if __name__ == "__main__":
    main()
