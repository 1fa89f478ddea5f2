"""`make stream-demo`: web service, three models, decisions, sink and backend at work on one stream, for some seconds."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import click
import msgspec
import requests
from tqdm import tqdm

from ride_duration.made_up import made_up
from ride_duration.ride import EXAMPLE, InvalidRide, check_ride
from streaming.engine import follow, open_producer
from streaming.messages import DEAD_LETTERS, DECISIONS, PREDICTIONS, RIDES, TARGETS, Decision, Event, read_prediction
from streaming.worker import told

PATIENCE = 60.0
"""Seconds for a service to begin, and for the last decision to come."""

QUIET = 7.0
"""Seconds without anything new after which nothing is waited for: longer than a decision waits for a missing model."""


@contextmanager
def running(name: str, command: list[str], folder: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A service, its output in the folder; ended when the demonstration is."""
    with (folder / f"{name}.log").open("w") as log:
        # a group of its own: Ctrl-C is the demonstration's, which ends them in order
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=log, stderr=log, env=os.environ | environment, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port(wanted: int) -> int:
    """The port that is wanted, or another where it is taken."""
    for port in (wanted, 0):
        with suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise click.ClickException("no port is free")


def until_ready(name: str, url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for a service."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with suppress(requests.RequestException):
            if requests.get(f"{url}/readyz", timeout=2).ok:
                return
        time.sleep(0.1)
    raise click.ClickException(f"{name} does not answer; {folder}/{name}.log says why")


def send(stream: str, name: str, rides: int, rate: int) -> int:
    """Publish rides, so many a second; how many of them can be scored."""
    began, good = time.monotonic(), 0
    with closing(open_producer(stream, RIDES)) as producer, tqdm(total=rides, unit="ride", disable=None) as progress:
        for number, (pickup, _, start, end, miles) in enumerate(made_up(rides)):
            ride = {"PULocationID": start, "DOLocationID": end, "trip_distance": miles, "pickup_datetime": pickup}
            ride_id = f"{name}-{number}"
            producer.send([(ride_id, msgspec.json.encode({"ride_id": ride_id, "ride": ride}))])
            with suppress(InvalidRide):
                check_ride(ride)
                good += 1
            progress.update()
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
    return good


def until_done(backend: str, predictions: Path, name: str, good: int) -> None:
    """Until every good ride is decided and in the database, or nothing new has come for some seconds."""
    before, changed, end = None, time.monotonic(), time.monotonic() + PATIENCE
    while time.monotonic() < min(changed + QUIET, end):
        found = requests.get(f"{backend}/live", timeout=5).json()["counts"], written(predictions, name)
        if found[0][DECISIONS] > good <= found[1]:  # one more has been asked for at the backend
            return
        if found != before:
            before, changed = found, time.monotonic()
        time.sleep(0.2)


def written(predictions: Path, name: str) -> int:
    """How many rides of that name the sink has written."""
    with closing(sqlite3.connect(predictions)) as database:
        (rows,) = database.execute("select count(*) from predictions where ride_id like ?", [f"{name}-%"]).fetchone()
    return int(rows)


def all_of(stream: str, topic: str) -> list[Event]:
    """A topic from its beginning."""
    found: list[Event] = []
    with closing(follow(stream, topic, beginning=True)) as reader:
        while events := reader.read(5000, 0.5 if found else 2):  # a broker's first answer takes longer
            found += events
    return found


def summary(stream: str, name: str, predictions: Path) -> str:
    """What became of the rides of that name."""
    prefix = f"{name}-".encode()
    asked = {event.key: event.at for event in all_of(stream, RIDES) if (event.key or b"").startswith(prefix)}
    lines = [f"{len(asked):6,} rides published"]
    models = Counter(read_prediction(event.value)[0] for event in all_of(stream, PREDICTIONS) if event.key in asked)
    lines += [f"{models[target]:6,} predictions of {target}" for target in TARGETS]
    decided = [event for event in all_of(stream, DECISIONS) if event.key in asked]
    decisions = [msgspec.json.decode(event.value or b"", type=Decision) for event in decided]
    incomplete = sum(bool(decision.missing) for decision in decisions)
    lines.append(
        f"{len(decisions):6,} decisions, of {len({event.key for event in decided}):,} rides; {incomplete:,} incomplete"
    )
    refused = {event.value for event in all_of(stream, DEAD_LETTERS) if prefix in (event.value or b"")}
    lines.append(f"{len(refused):6,} rides in {DEAD_LETTERS}, which the contract refuses")
    rows = written(predictions, name)
    lines.append(f"{rows:6,} rows in {predictions}")
    if waited := sorted(1000 * (event.at - asked[event.key]) for event in decided):
        p50, p99 = (waited[int(len(waited) * part)] for part in (0.5, 0.99))
        lines.append(f"from ride to decision: {p50:.0f} ms (p50), {p99:.0f} ms (p99)")
    each = len({event.key for event in decided})
    whole = len(asked) == len(decisions) + len(refused) and rows == len(decisions) == each
    lines.append("none lost, none twice" if whole else "SOMETHING IS MISSING, or was not there in time; the logs say more")
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.option("--stream", metavar="URL", help="Another stream than a new SQLite file in the folder.")
@click.option("--count", "rides", type=click.IntRange(100, 20_000), default=2000, help="How many.")
@click.option("--rate", type=click.IntRange(1, 10_000), default=400, help="Rides a second.")
@click.option("--folder", type=click.Path(path_type=Path), default="demo", help="Where databases and logs go.")
@click.option("--stay", is_flag=True, help="Go on after the summary, until Ctrl-C.")
def main(stream: str | None, rides: int, rate: int, folder: Path, stay: bool) -> None:
    """Start every part of the stream, send rides through, and tell what became of them."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("stream-demo*.db*"):
        old.unlink()
    stream = stream or f"sqlite:///{folder}/stream-demo.db"
    predictions, run = folder / "stream-demo-predictions.db", f"demo-{int(time.time())}"
    web, page = free_port(9696), free_port(8060)
    services = {
        "web": (["gunicorn", "predict:app"], web),
        "duration": (["streaming.consume"], 0),
        "fare": (["streaming.consume", "--model", "models/fare.bin"], 0),
        "tip": (["streaming.consume", "--model", "models/tip.bin"], 0),
        "decision": (["streaming.decide"], 0),
        "sink": (["streaming.sink", "--predictions", f"sqlite:///{predictions}"], 0),
        "backend": (["streaming.backend", "--service", f"http://127.0.0.1:{web}"], page),
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: everything is ended
    with told("demo"), ExitStack() as stack, suppress(KeyboardInterrupt):
        started = []
        for name, (command, port) in services.items():
            port = port or free_port(0)
            environment = {"STREAM": stream, "PORT": str(port), "MODEL": "model.bin", "WEB_CONCURRENCY": "1"}
            started.append((name, command, port, stack.enter_context(running(name, command, folder, **environment))))
        for name, command, port, process in started:
            until_ready(name, f"http://127.0.0.1:{port}", process, folder)
            click.echo(f"{name:9} {' '.join(command)}")
        click.echo(f"\nhttp://127.0.0.1:{page} shows it live\n")
        backend = f"http://127.0.0.1:{page}"
        good = send(stream, run, rides, rate)
        asked = requests.post(f"{backend}/rides", json=EXAMPLE, timeout=10).json()
        click.echo(f"\nPOST {backend}/rides\n{msgspec.json.encode(asked).decode()}\n")
        offered = requests.get(f"{backend}/rides/{asked['ride_id']}?wait=20", timeout=30).json()
        click.echo(f"GET {backend}/rides/{asked['ride_id']}\n{msgspec.json.encode(offered.get('decision')).decode()}\n")
        until_done(backend, predictions, run, good)
        click.echo(summary(stream, run, predictions))
        if stay:
            click.echo("\nCtrl-C ends it.")
            signal.pause()
    click.echo("all services have ended")


if __name__ == "__main__":
    main()
