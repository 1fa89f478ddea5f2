"""What the tests share: made-up records, a model fitted on them, and the service as a real process."""

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from hypothesis import settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, expect, sync_playwright
from prometheus_client.parser import text_string_to_metric_families

from ride_duration.model_file import load_model
from ride_duration.ride import Ride
from ride_duration.zones import STRAIGHT_MILES
from training.evaluation import in_range
from training.fit import Estimator, fit
from training.records import PREFIXES, Trips, read_trips

if TYPE_CHECKING:
    from benchmarks.stream.broker import Kafka

PROJECT = Path(__file__).parent

settings.register_profile("project", deadline=None, print_blob=True)
settings.load_profile("project")


def make_records(
    path: Path, month: str = "2021-01", taxi: str = "green", rows: int = 4000, seed: int = 1, **columns: Any
) -> Path:
    """A Parquet file like TLC's: most trips between a dozen zones, some with the errors that real files have."""
    random = np.random.default_rng(seed)
    zones = np.array([41, 42, 43, 74, 75, 95, 129, 130, 132, 166, 181, 205, 236, 264, 265])
    pickup_zone, dropoff_zone = random.choice(zones, rows), random.choice(zones, rows)
    pickup = np.datetime64(month) + random.integers(0, 28 * 86_400, rows).astype("timedelta64[s]")
    miles = np.round(STRAIGHT_MILES[pickup_zone, dropoff_zone] * random.normal(1.36, 0.2, rows).clip(1) + 0.2, 2)
    minutes = 4 + 2.5 * miles + 4 * (pickup.astype("datetime64[h]").astype(int) % 24 > 15) + random.gamma(2, 1.5, rows)
    miles[::40] = 0
    miles[7::400] = 5000  # a meter error
    minutes[::50] = 1400  # a meter left running
    pickup[3::1000] -= np.timedelta64(400, "D")
    prefix = PREFIXES[taxi]
    table = {
        f"{prefix}_pickup_datetime": pickup.astype("datetime64[us]"),
        f"{prefix}_dropoff_datetime": (pickup + (minutes * 60).astype("timedelta64[s]")).astype("datetime64[us]"),
        "PULocationID": pickup_zone,
        "DOLocationID": dropoff_zone,
        "trip_distance": miles,
        "fare_amount": np.round(2.5 + 2.5 * miles, 2),
        "tip_amount": np.round(0.2 * miles, 2),
        "payment_type": 1.0 + random.integers(0, 2, rows),
    }
    pq.write_table(pa.table({name: column for name, column in (table | columns).items() if column is not None}), path)
    return path


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two months of green taxis."""
    folder = tmp_path_factory.mktemp("data")
    for seed, month in enumerate(("2021-01", "2021-02")):
        make_records(folder / f"green_tripdata_{month}.parquet", month, seed=seed)
    return folder


@pytest.fixture(scope="session")
def trips(records: Path) -> Trips:
    january = read_trips([records / "green_tripdata_2021-01.parquet"])[0]
    return january.part(in_range(january, "duration"))


@pytest.fixture(scope="session")
def estimator(trips: Trips) -> Estimator:
    """The product's own kind of model, fitted here."""
    return fit(trips)


def versions_of(estimator: Estimator, count: int, **metadata: Any) -> list[bytes]:
    """Model files of one size that differ in their version and their answers."""
    described = msgspec.to_builtins(load_model(PROJECT / "model.bin").metadata)
    files = []
    for number in range(count):
        vectorizer, ridge = pickle.loads(pickle.dumps(estimator))
        ridge.intercept_ = 5.0 + number
        ridge.metadata_ = described | {"version": f"v{number:03}", "golden": []} | metadata
        files.append(pickle.dumps((vectorizer, ridge)))
    assert len({len(data) for data in files}) == 1
    return files


zones = st.integers(1, 265)
miles = st.none() | st.just(0.0) | st.floats(0, 200)
times = st.none() | st.datetimes(min_value=datetime(2009, 1, 1), max_value=datetime(2100, 12, 31, 23, 59))


def make_ride(pickup: Any, dropoff: Any, distance: Any, time: Any) -> Ride:
    return Ride(PULocationID=pickup, DOLocationID=dropoff, trip_distance=distance, pickup_datetime=time)


rides = st.builds(make_ride, zones, zones, miles, times)
"""Any ride that the contract takes."""


def copy_project(folder: Path) -> None:
    """The project as it would be cloned, with what is not committed yet, and with this environment."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (PROJECT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix, target_is_directory=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Service(NamedTuple):
    """A running service: its address, its process, and what it printed, in a file (a pipe that nobody reads would fill)."""

    url: str
    process: subprocess.Popen[str]
    log: Path


def until_answers(url: str, process: subprocess.Popen[Any], log: Path, seconds: float = 30) -> None:
    """Wait for a service; what it printed says why it doesn't answer."""
    end = time.monotonic() + seconds
    while True:
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, f"it did not answer within {seconds} s: {log.read_text()}"
        time.sleep(0.05)


def end(process: subprocess.Popen[Any], seconds: float = 15) -> None:
    """Ask a process to end, and kill it if it doesn't."""
    process.terminate()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def scrape(url: str) -> dict[str, float]:
    """Every sample at /metrics, by its name and labels."""
    answer = requests.get(f"{url}/metrics", timeout=5)
    assert answer.headers["Content-Type"].startswith("text/plain")
    return {
        f"{sample.name}{sample.labels or ''}": sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@contextmanager
def running(command: list[str], port: str, cwd: Path = PROJECT, **environment: str) -> Iterator[Service]:
    """A service's process, from when it is ready; ended by SIGTERM."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=cwd, env=os.environ | {"PORT": port} | environment, stdout=output, stderr=output, text=True
            )
        try:
            until_answers(f"{url}/readyz", process, log)
            yield Service(url, process, log)
        finally:
            end(process)


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """Start the service as users do: `with serve(MODEL=…) as service`."""

    def start(**environment: str) -> Any:
        command = [sys.executable, "-m", "gunicorn", "predict:app"]
        return running(command, str(free_port()), PROJECT, **{"WEB_CONCURRENCY": "2"} | environment)

    return start


def missing(part: str, command: str) -> NoReturn:
    """Skip a test whose part is not on this machine; where CI has installed all parts, fail it."""
    reason = f"{part} is not on this machine; `{command}` installs it"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def find_promtool() -> str:
    """Prometheus' own reader of alert rules."""
    found = shutil.which("promtool") or str(PROJECT / ".prometheus/usr/bin/promtool")
    if not Path(found).exists():
        missing("Prometheus", "make prometheus")
    return found


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, on a free port."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "/nowhere")]
    if not found[-1].exists():
        missing("PostgreSQL", "make postgresql")
    port, folder = str(free_port()), Path(tempfile.mkdtemp(prefix="postgresql-"))
    as_other = []
    if os.geteuid() == 0:  # it refuses to run as root
        shutil.chown(folder, "postgres")
        as_other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    data, options = folder / "data", f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    make = [*as_other, str(found[-1]), "-D", str(data), "-U", "rides", "--auth=trust", "--no-sync"]
    subprocess.run(make, check=True, capture_output=True, cwd=folder)
    server = subprocess.Popen([*as_other, found[-1].with_name("postgres"), "-D", data, "-p", port, *options.split()], cwd=folder, stderr=subprocess.DEVNULL)  # fmt: skip  # noqa: E501
    try:
        end = time.monotonic() + 30
        ready = [str(found[-1].with_name("pg_isready")), "-h", "127.0.0.1", "-p", port]
        while subprocess.run(ready, capture_output=True).returncode:
            assert server.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < end, "PostgreSQL did not answer within 30 s"
            time.sleep(0.1)
        yield f"postgresql://rides@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # its fast shutdown
        server.wait(timeout=30)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window; it may reach this machine only, and asks nobody anything."""
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("google-chrome") or playwright.chromium.executable_path
        if not Path(found).exists():
            missing("Chromium", "make browser")
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--no-first-run"]
        chromium = playwright.chromium.launch(executable_path=found, args=options)
        expect.set_options(timeout=30_000)  # a busy machine takes its time
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def service(serve: Callable[..., Any]) -> Iterator[str]:
    """The address of a running service with the shipped model."""
    with serve() as running_service:
        yield running_service.url


FEBRUARY = ["--from", "2021-02-01", "--to", "2021-03-01", "--every", "week"]
"""When the made-up rides are, as the batch job is told it."""

Rows = list[tuple[Any, ...]]
"""Rides of a table: (pickup, PULocationID, DOLocationID, trip_distance, dropoff)."""

COLUMN_TYPES = {
    "pickup_datetime": pa.timestamp("us"),
    "PULocationID": pa.int32(),
    "DOLocationID": pa.int32(),
    "trip_distance": pa.float64(),
    "dropoff_datetime": pa.timestamp("us"),
}


def typed(rows: Rows) -> pa.Table:
    """The rows with the types that TLC's files have."""
    times = [0, 4]
    columns = [
        [row[place] and datetime.fromisoformat(row[place]) if place in times else row[place] for row in rows]
        for place in range(5)
    ]
    return pa.table(
        [pa.array(column, type_) for column, type_ in zip(columns, COLUMN_TYPES.values(), strict=True)],
        names=list(COLUMN_TYPES),
    )


def made_up(rides: int) -> list[tuple[Any, ...]]:
    """Rides of February, some of them alike, and some that can't be scored."""
    rows: list[tuple[Any, ...]] = []
    for n in range(rides):
        pickup = f"2021-02-{1 + n * 28 // rides:02} {n * 7 % 24:02}:{n * 13 % 60:02}:00"
        dropoff = f"{pickup[:14]}{(n * 13 % 60 + 7) % 60:02}:30" if n * 13 % 60 < 50 else None
        rows.append((pickup, 1 + n % 263, 1 + n * 5 % 263, None if n % 50 == 0 else round(n % 90 * 0.31, 2), dropoff))
    rows += [rows[rides // 2]] * 3
    rows += [(rows[0][0], 266, 7, 1.0, None), (rows[0][0], 7, None, 1.0, None), (rows[0][0], 7, 7, 200.5, None)]
    return rows


StartKafka = Callable[..., "Kafka"]


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[StartKafka]:
    """Start a cluster: `kafka(brokers=3)`."""
    from benchmarks.stream.broker import Kafka  # which imports this

    started: list[Kafka] = []

    def start(**options: Any) -> Kafka:
        folder = tmp_path / f"kafka-{len(started)}"
        folder.mkdir()
        try:
            started.append(Kafka(folder, **options))
        except FileNotFoundError:
            missing("Apache Kafka", "make kafka")
        return started[-1]

    yield start
    for cluster in started:
        cluster.close()


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.slow)])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty stream."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/rides.db"
    start: StartKafka = request.getfixturevalue("kafka")
    return str(start().url)
