"""What tests of the stream share: rides to publish, services as processes, and all that a topic has had."""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress

import msgspec

from conftest import PROJECT, end
from streaming.engine import follow, open_producer
from streaming.messages import RIDES, TARGETS

MODELS = {target: str(PROJECT / ("model.bin" if target == "duration" else f"models/{target}.bin")) for target in TARGETS}


def made_up(rides: int, first: int = 0) -> list[tuple[str, bytes]]:
    found = []
    for n in range(first, first + rides):
        pickup = f"2021-02-{1 + n % 28:02}T{n * 7 % 24:02}:{n % 60:02}:00"
        zones = {"PULocationID": 1 + n % 263, "DOLocationID": 1 + n * 5 % 263}
        ride = zones | {"trip_distance": n % 90 / 4, "pickup_datetime": pickup}
        found.append((str(n), msgspec.json.encode({"ride_id": n, "ride": ride})))
    return found


def publish(url: str, messages: list[tuple[str, bytes]], topic: str = RIDES) -> None:
    producer = open_producer(url, topic)
    producer.send(messages)
    producer.close()


@contextmanager
def service(name: str, url: str, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", f"streaming.{name}", "--stream", url, *options]
    with tempfile.TemporaryFile("w+") as told:  # a pipe that nobody reads would fill
        process = subprocess.Popen(
            command, cwd=PROJECT, stdout=told, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                end(process, seconds=40)
            told.seek(0)
            sys.stdout.write(told.read())  # pytest shows it where a test fails


def stop(process: subprocess.Popen[str], url: str) -> None:
    """Let a worker stand still, at an instant at which it doesn't hold SQLite's lock, which nobody could take from it."""
    while True:
        process.send_signal(signal.SIGSTOP)
        if not url.startswith("sqlite:"):
            return
        database = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0, isolation_level=None)
        with closing(database), suppress(sqlite3.OperationalError):
            database.execute("begin immediate")
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.003)


class Reader:
    """All that a topic has had."""

    def __init__(self, url: str, topic: str) -> None:
        self.follower = follow(url, topic, beginning=True)
        self.values: list[bytes | None] = []

    def until(self, count: int, seconds: float = 90, silence: float = 0) -> list[bytes | None]:
        """When `count` messages are there, and no more have come for some seconds."""
        end, quiet = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < end and not (len(self.values) >= count and time.monotonic() - quiet >= silence):
            if found := self.follower.read(5000, 0.2):
                quiet = time.monotonic()
                self.values += [event.value for event in found]
        assert len(self.values) >= count, f"{len(self.values)} of {count} came within {seconds} s"
        return self.values

    def close(self) -> None:
        self.follower.close()


def consumer(url: str, *options: str, **environment: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return service("consume", url, *options, **environment)


@contextmanager
def consumers(url: str, *options: str) -> Iterator[None]:
    """A worker of each model."""
    with ExitStack() as running:
        for path in MODELS.values():
            running.enter_context(consumer(url, "--model", path, *options))
        yield
