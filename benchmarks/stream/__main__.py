"""`python -m benchmarks.stream`: events a CPU-second and end-to-end latency, ours beside others, in one run on one broker."""

import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from benchmarks.peers import install, python_of
from benchmarks.stream.broker import Kafka
from streaming.engine import follow, open_consumer, open_producer
from streaming.messages import PREDICTIONS, RIDES, PredictionEvent

PROJECT = Path(__file__).parents[2]
REQUIREMENTS = ("faststream[confluent]", "msgspec", "numpy", "quixstreams")
WAYS = (
    "ours on SQLite",
    "ours on Kafka",
    "plain",
    "quixstreams",
    "quixstreams_exactly",
    "faststream",
    "faststream_acknowledged",
)
SLOW = ("faststream", "faststream_acknowledged")
"""These get a tenth of the rides."""
_decode = msgspec.json.Decoder(PredictionEvent).decode
_TICKS = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """Of one consumer."""

    rate: float
    """Events a CPU-second, user and system."""
    p50: float
    """Milliseconds from publishing a ride to reading its prediction."""
    p99: float
    peak: float
    """MB."""


def rides_of(data: Path, count: int, first: int = 0) -> list[tuple[str, bytes]]:
    """Real rides of February 2021, over again if they are too few."""
    rows = pq.read_table(
        data / "green_tripdata_2021-02.parquet",
        columns=["lpep_pickup_datetime", "PULocationID", "DOLocationID", "trip_distance"],
    ).to_pylist()
    found = []
    for number in range(first, first + count):
        ride = dict(rows[number % len(rows)])
        ride["pickup_datetime"] = ride.pop("lpep_pickup_datetime").isoformat()
        ride["trip_distance"] = min(max(ride["trip_distance"], 0), 50)
        found.append((str(number), msgspec.json.encode({"ride_id": number, "ride": ride})))
    return found


class Running:
    """A consumer as a process, and what comes of it."""

    def __init__(self, way: str, url: str) -> None:
        self.url = url
        command: list[str | Path] = [sys.executable, "-m", "streaming.consume", "--stream", url]
        if not way.startswith("ours"):
            command = [python_of("stream"), "-m", "benchmarks.stream.ways", way, url.removeprefix("kafka://")]
        with (PROJECT / ".peers" / "stream.log").open("w") as told:
            self.process = subprocess.Popen(command, cwd=PROJECT, stdout=told, stderr=told)
        self.reader = follow(url, PREDICTIONS, beginning=True)
        self.came: dict[int | str, float] = {}
        """When each ride's prediction was read."""

    def publish(self, messages: list[tuple[str, bytes]]) -> None:
        """Publish rides."""
        with closing(open_producer(self.url, RIDES)) as producer:
            producer.send(messages)

    def wait(self, count: int, seconds: float = 240) -> None:
        """Until so many rides are answered."""
        end = time.monotonic() + seconds
        while len(self.came) < count:
            found, now = self.reader.read(10_000, 0.02), time.time()
            for event in found:
                self.came.setdefault(_decode(event.value or b"").prediction.ride_id, now)
            if time.monotonic() > end or self.process.poll() is not None:
                raise click.ClickException(f"{len(self.came)} of {count} were answered; .peers/stream.log has why")

    def cpu(self) -> float:
        """Seconds that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def peak(self) -> float:
        """MB that it had resident at most."""
        (line,) = (x for x in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    def close(self) -> None:
        """End it."""
        self.reader.close()
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measured(way: str, url: str, data: Path, count: int, rate: int, seconds: int) -> Cost:
    """One consumer, from an empty stream."""
    warm = 1000
    rides = rides_of(data, warm + count + rate * seconds)
    with closing(Running(way, url)) as running:
        running.publish(rides[:warm])
        running.wait(warm)
        running.process.send_signal(signal.SIGSTOP)  # all rides are there before it reads the first
        running.publish(rides[warm : warm + count])
        before = running.cpu()
        running.process.send_signal(signal.SIGCONT)
        running.wait(warm + count)
        cpu = running.cpu() - before
        sent: dict[int, float] = {}

        def publish() -> None:
            began = time.monotonic()
            with closing(open_producer(url, RIDES)) as producer:
                for number, (key, value) in enumerate(rides[warm + count :]):
                    time.sleep(max(0.0, began + number / rate - time.monotonic()))
                    sent[int(key)] = time.time()
                    producer.send([(key, value)])

        thread = threading.Thread(target=publish)
        thread.start()
        running.wait(len(rides))
        thread.join()
        waited = [running.came[number] - at for number, at in sent.items()]
        p50, p99 = (1000 * float(x) for x in np.quantile(waited, [0.5, 0.99]))
        return Cost(count / cpu, p50, p99, running.peak())


@click.command(context_settings={"show_default": True})
@click.option("--events", "count", default=50_000, help="For events a CPU-second.")
@click.option("--rate", default=100, help="Rides a second, for the latency.")
@click.option("--seconds", default=10, help="Of that.")
@click.option("--rounds", default=3, help="The median of so many is shown.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default="data", help="Folder of TLC's records.")
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), default=WAYS, help="Only these.")
def main(count: int, rate: int, seconds: int, rounds: int, data: Path, ways: tuple[str, ...]) -> None:
    """Compare consumers that answer the same rides with the same model, each on a new broker, or file."""
    install("stream", REQUIREMENTS)
    click.echo(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    click.echo(f"{count:,} real rides at once, then {rate} a second for {seconds} s; the median of {rounds} rounds\n")
    costs: dict[str, list[Cost]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=rounds * len(ways), disable=None) as progress:
        for number in range(rounds):
            for way in ways:
                progress.set_postfix_str(way)
                place = Path(folder) / f"{number}-{way.replace(' ', '-')}"
                place.mkdir()
                with closing(Kafka(place)) if "SQLite" not in way else tempfile.TemporaryDirectory() as at:
                    url = at.url if isinstance(at, Kafka) else f"sqlite:///{at}/stream.db"
                    if isinstance(at, Kafka):
                        open_consumer(url, RIDES, "topics", PREDICTIONS).close()  # makes the topics, of six partitions
                    events = count // 10 if way in SLOW else count
                    costs[way].append(measured(way, url, data, events, rate, seconds))
                progress.update()
    best = statistics.median(cost.rate for cost in costs["ours on Kafka"]) if "ours on Kafka" in ways else 0
    click.echo("| consumer | events a CPU-second | ours on Kafka does | p50, p99 | peak |\n| --- | --- | --- | --- | --- |")
    for way, found in costs.items():
        middle = Cost(*(statistics.median(values) for values in zip(*found, strict=True)))
        click.echo(
            f"| {way} | {middle.rate:,.0f} | {best / middle.rate:.1f}× "
            f"| {middle.p50:.0f} ms, {middle.p99:.0f} ms | {middle.peak:.0f} MB |"
        )


if __name__ == "__main__":
    main()
