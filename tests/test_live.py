"""The live error: rides that were served, joined with how long they took, are as wrong as numpy says."""

import array
import fcntl
import pickle
import signal
import sqlite3
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from click.testing import CliRunner
from playwright.sync_api import Browser, expect
from prometheus_client.parser import text_string_to_metric_families

from batch import dashboard, live, score, served, summary
from batch.summary import Scope
from conftest import PROJECT, free_port, running, wait_until
from ride_duration.ride import NEW_YORK
from ride_duration.stores import Address
from ride_duration.stores.databases import Database
from ride_duration.stores.predictions import SUMS, DatabasePredictions

RIDES = 400
SHADOW = "shadow-1"
FEBRUARY = ["--from", "2021-02-01", "--to", "2021-03-01"]


class Served(NamedTuple):
    """What the web service was asked, what it answered, and what it wrote."""

    log: bytes
    version: str
    rides: list[dict[str, Any]]
    durations: list[float]
    intervals: list[tuple[float, float]]


@pytest.fixture(scope="module")
def asked(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Rides with a ride_id, one by one and in arrays, some without a time, some twice, and some without a ride_id."""
    rides = []
    for n in range(RIDES):
        zones = {"PULocationID": [74, 75, 130, 236][n % 4], "DOLocationID": 1 + n * 5 % 263}
        ride = zones | {"trip_distance": n % 90 / 7, "ride_id": n if n % 2 else f"ride-{n}"}
        if n % 10:
            ride["pickup_datetime"] = pickup(n).isoformat()
        rides.append(ride)
    nameless = [{key: value for key, value in ride.items() if key != "ride_id"} for ride in rides[:7]]
    with serve(LOG_RIDES="1", SHADOW_MODEL=str(beside(tmp_path_factory.mktemp("shadow")))) as service:
        answer = requests.post(f"{service.url}/predict?interval=true", json=rides, timeout=10).json()
        for ride in (*rides[:20], *rides[:5]):
            requests.post(f"{service.url}/predict", json=ride, timeout=5)
        requests.post(f"{service.url}/predict", json=nameless, timeout=5)
        requests.post(f"{service.url}/predict", json={"PULocationID": 9999}, timeout=5)
        wait_until(lambda: service.log.read_text().count('"duration":') == 2 * (RIDES + 25 + 7))
        log = service.log.read_bytes()
    return Served(log, answer["model_version"], rides, answer["durations"], answer["intervals"])


def beside(folder: Path) -> Path:
    """A shadow: the shipped model, but that it says half a minute more, and has no interval."""
    vectorizer, regression = pickle.loads((PROJECT / "model.bin").read_bytes())
    regression.intercept_ += 0.5
    low, high = regression.metadata_["bounds"]
    changes = {"version": SHADOW, "bounds": [low + 0.5, high + 0.5], "interval": None, "golden": []}
    regression.metadata_ |= changes
    (folder / "candidate.bin").write_bytes(pickle.dumps((vectorizer, regression)))
    return folder / "candidate.bin"


def pickup(n: int) -> datetime:
    """When a caller said that a ride would begin."""
    return datetime(2021, 2, 22) + timedelta(minutes=25 * n % (7 * 24 * 60 - 90))


def record(n: int) -> tuple[str, datetime, datetime | None]:
    """A ride as it was recorded: it began up to 80 minutes later; some took unusually long, some have not ended."""
    began = pickup(n) + timedelta(seconds=13 * n % 4800)
    minutes = 4 + 2.6 * (n % 90 / 7) + n % 7 if n % 25 else 600
    return (f"{n}" if n % 2 else f"ride-{n}"), began, None if n % 8 == 2 else began + timedelta(seconds=round(60 * minutes))


class Truth(NamedTuple):
    """What is known of the predictions of a version, as columns."""

    error: np.ndarray
    covered: np.ndarray
    hour: np.ndarray
    zone: np.ndarray
    usual: np.ndarray


def truth(asked: Served, more: float = 0.0) -> Truth:
    """Straight from what was asked, answered and recorded."""
    _, began, ended = zip(*map(record, range(RIDES)), strict=True)
    took = np.array([(b - a).total_seconds() / 60 if b else np.nan for a, b in zip(began, ended, strict=True)])
    durations = np.array(asked.durations) + more
    low, high = np.array(asked.intervals).T
    said = [pickup(n) if n % 10 else began[n] for n in range(RIDES)]
    return Truth(
        durations - took,
        (took >= low) & (took <= high),
        np.array([time.hour for time in said]),
        np.array([ride["PULocationID"] for ride in asked.rides]),
        (took >= 1) & (took <= 60),
    )


def write_rides(url: str) -> None:
    """The records, into a store."""
    ids, began, ended = zip(*map(record, range(RIDES)), strict=True)
    columns = {"ride_id": ids, "pickup_datetime": began, "PULocationID": [1] * RIDES, "DOLocationID": [1] * RIDES}
    columns |= {"trip_distance": [1.0] * RIDES, "dropoff_datetime": ended}
    if url.endswith(".parquet"):
        times = pa.timestamp("us")
        columns |= {name: pa.array(columns[name], times) for name in ("pickup_datetime", "dropoff_datetime")}
        pq.write_table(pa.table(columns), url)
        return
    types = ["text", "timestamp", "integer", "integer", "double precision", "timestamp"]
    with closing(Database(Address.of(url), create=True)) as database, database.transaction():
        names = ", ".join(f"{name} {type_}" for name, type_ in zip(columns, types, strict=True))
        database.run(f"create table rides ({names})")
        times = pa.timestamp("s")
        columns |= {name: pa.array(columns[name], times) for name in ("pickup_datetime", "dropoff_datetime")}
        database.insert("rides", pa.table(columns))


def invoke(command: Any, *options: str) -> str:
    run = CliRunner().invoke(command, options)
    assert run.exit_code == 0, run.output
    return run.output


def read(log: bytes, predictions: str, *options: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "batch.served", "-", "--predictions", predictions, *options],
        cwd=PROJECT,
        input=log,
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout.decode()


def everything(predictions: str) -> list[Any]:
    """All that is known of rides, and what it adds up to."""
    with closing(Database(Address.of(predictions), read_only=True)) as database:
        return [sorted(map(str, database.rows(f"select * from {table}"))) for table in ("predictions", "hourly")]


def check_hourly(predictions: str) -> None:
    """The sums by hour are those of the predictions."""
    with closing(DatabasePredictions(Database(Address.of(predictions)))) as opened:
        sums = f"select cast(hour as text) as at, model_version, borough, miles, {', '.join(SUMS)} from hourly"
        before = opened.database.rows(f"{sums} order by 1, 2, 3, 4")
        with opened.database.transaction():
            opened.database.run("delete from hourly")
        with opened._interval(datetime(2021, 2, 1), datetime(2021, 4, 1)) as interval:
            interval.add_up()
        after = opened.database.rows(f"{sums} order by 1, 2, 3, 4")
    assert len(before) == len(after) > 100
    for one, other in zip(before, after, strict=True):
        assert one == {key: value if isinstance(value, str) else pytest.approx(value) for key, value in other.items()}


@pytest.fixture(scope="module")
def predictions(asked: Served, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The database after all of it: log, actual durations."""
    folder = tmp_path_factory.mktemp("live")
    url = f"sqlite:///{folder}/predictions.db"
    told = read(asked.log, url, "--model", "model.bin")
    # the array, the single rides twice, seven without an id; and the shadow's
    assert (
        told.splitlines()[1]
        == "864 predictions in them = 800 added + 50 there already + 14 without a ride_id + 0 of another form"
    )
    write_rides(f"{folder}/rides.parquet")
    invoke(score.main, "--rides", f"{folder}/rides.parquet", "--predictions", url, *FEBRUARY, "--every", "hour", "--actuals")
    return url


def scraped(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Metrics by name, and their samples by labels: the version, then the other."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        samples = found[family.name.removeprefix("ride_duration_live_")] = {}
        for sample in family.samples:
            samples[tuple(sample.labels[name] for name in sorted(sample.labels, key="version".__ne__))] = sample.value
    return found


def check_figures(found: dict[str, dict[tuple[str, ...], float]], asked: Served) -> None:
    for version, more in {asked.version: 0.0, SHADOW: 0.5}.items():
        of = truth(asked, more)
        assert found["predictions"][(version,)] == RIDES
        assert found["rides"][(version,)] == of.usual.sum()
        assert found["waiting"][(version,)] == np.isnan(of.error).sum()
        groups = {"": np.zeros(RIDES), "hour_": of.hour, "zone_": of.zone}
        for prefix, keys in groups.items():
            for key in np.unique(keys):
                rows = of.usual & (keys == key)
                labels = {"": (version,), "hour_": (version, f"{int(key):02}"), "zone_": (version, str(int(key)))}[prefix]
                assert found[f"{prefix}rmse_minutes"][labels] == pytest.approx(np.sqrt(np.mean(of.error[rows] ** 2)))
                assert found[f"{prefix}bias_minutes"][labels] == pytest.approx(np.mean(of.error[rows]))
                if version == SHADOW:
                    assert labels not in found[f"{prefix}coverage_ratio"]  # it gives no interval
                else:
                    assert found[f"{prefix}coverage_ratio"][labels] == pytest.approx(np.mean(of.covered[rows]))
        assert len([labels for labels in found["hour_rmse_minutes"] if labels[0] == version]) == 24
        assert len([labels for labels in found["zone_rmse_minutes"] if labels[0] == version]) == 4
    assert {labels[0] for labels in found["rides"]} == {asked.version, SHADOW}


def test_the_live_error_is_what_numpy_says(asked: Served, predictions: str) -> None:
    check_hourly(predictions)
    with closing(Database(Address.of(predictions), read_only=True)) as database:
        assert [row["n"] for row in database.rows("select count(*) as n from predictions where pickup_datetime is null")] == [
            2 * sum(1 for n in range(RIDES) if n % 10 == 0 and record(n)[2] is None)
        ]
        (pair,) = summary.side_by_side(database, Scope(), summary.known(database).answered)
        assert not summary.side_by_side(database, Scope(version="another"), {})
    found = scraped(live.Live(Address.of(predictions), 7).text().decode())
    check_figures(found, asked)
    assert found["serving"] == {(asked.version,): 1.0, (SHADOW,): 0.0}
    assert found["drift_index"].keys() == {(asked.version, name) for name in ("hour", "weekday", "borough", "miles")}
    assert not found["rmse_baseline_minutes"]  # there is nothing before
    newest = max(pickup(n) if n % 10 else record(n)[1] for n in range(RIDES) if n % 10 or record(n)[2])
    hour = newest.replace(minute=0, second=0, tzinfo=NEW_YORK)
    assert found["newest_pickup_timestamp_seconds"] == {(): hour.timestamp()}
    of = {asked.version: truth(asked), SHADOW: truth(asked, 0.5)}
    timed = np.array([n % 10 > 0 or record(n)[2] is not None for n in range(RIDES)])
    assert (pair["rides"], pair["ended"]) == (timed.sum(), of[SHADOW].usual.sum())
    assert (pair["one"], pair["other"]) == (asked.version, SHADOW)
    assert pair["mean"] == pytest.approx(0.5)
    assert pair["rms"] == pytest.approx(0.5)
    for name in ("one", "other"):
        error = of[pair[name]].error[of[SHADOW].usual]
        assert pair[f"rmse_of_{name}"] == pytest.approx(np.sqrt(np.mean(error**2)))


def test_reading_again_changes_nothing_and_the_actuals_come_once(asked: Served, predictions: str) -> None:
    before = everything(predictions)
    assert "= 0 added + 850 there already + 14 without" in read(asked.log, predictions)
    rides = f"{Path(predictions.removeprefix('sqlite:///')).parent}/rides.parquet"
    again = invoke(score.main, "--rides", rides, "--predictions", predictions, *FEBRUARY, "--actuals")
    assert "0 predictions have got" in again
    assert everything(predictions) == before


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/rides.db"
    server, name = request.getfixturevalue("postgresql"), f"live{time.monotonic_ns()}"
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(server, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"create database {name}")
    return f"{server.rpartition('/')[0]}/{name}"


def test_two_readers_and_the_actuals_at_once_are_exact(asked: Served, database: str) -> None:
    write_rides(database)
    lines = asked.log.splitlines(keepends=True)
    command = [sys.executable, "-m", "batch.served", "-", "--predictions", database]
    readers = [subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    actuals = [sys.executable, "-m", "batch.score", "--rides", database, "--predictions", database, *FEBRUARY, "--actuals"]
    for place, line in enumerate(lines):
        for reader, own in zip(readers, (line, lines[-1 - place]), strict=True):  # the one from its end
            assert reader.stdin
            reader.stdin.write(own)
            reader.stdin.flush()
    filling = subprocess.Popen(actuals, cwd=PROJECT, stderr=subprocess.PIPE)
    told = [process.communicate()[1].decode() for process in (*readers, filling)]
    assert [process.returncode for process in (*readers, filling)] == [0, 0, 0], told
    invoke(score.main, *actuals[3:])
    check_hourly(database)
    check_figures(scraped(live.Live(Address.of(database), 7).text().decode()), asked)


def count_of(predictions: str) -> int:
    with closing(DatabasePredictions(Database(Address.of(predictions), create=True))) as opened:
        (row,) = opened.database.rows("select count(*) as n from predictions")
    return int(row["n"])


def follow(predictions: str, log: bytes) -> subprocess.Popen[bytes]:
    """A follower whose log goes on, when the predictions of what it has so far are there."""
    command = [sys.executable, "-m", "batch.served", "-", "--predictions", predictions]
    follower = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert follower.stdin
    follower.stdin.write(log)
    follower.stdin.flush()
    return follower


def test_a_follower_killed_on_its_way_and_started_again_is_exact(asked: Served, database: str) -> None:
    lines = [line for line in asked.log.splitlines(keepends=True) if b"scored" in line]
    follower = follow(database, b"".join(lines[:2]) + lines[2][:100])
    wait_until(lambda: count_of(database) > 0, seconds=30)
    follower.stdin.write(lines[2][100:] + lines[3][:-20])  # type: ignore[union-attr]
    follower.send_signal(signal.SIGKILL)
    follower.communicate()
    assert 0 < count_of(database) < 2 * RIDES + 2
    assert "= 2 with rides" not in read(asked.log, database)
    write_rides(database)
    invoke(score.main, "--rides", database, "--predictions", database, *FEBRUARY, "--actuals")
    check_hourly(database)
    check_figures(scraped(live.Live(Address.of(database), 7).text().decode()), asked)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_follower_that_is_asked_to_end_writes_what_it_has_in_hand(asked: Served, tmp_path: Path, name: str) -> None:
    predictions = f"sqlite:///{tmp_path}/predictions.db"
    lines = [line for line in asked.log.splitlines(keepends=True) if b"scored" in line]
    follower = follow(predictions, lines[0])
    wait_until(lambda: count_of(predictions) > 0, seconds=30)
    follower.stdin.write(b"".join(lines[1:20]))  # type: ignore[union-attr]
    follower.stdin.flush()  # type: ignore[union-attr]
    wait_until(lambda: unread(follower) == 0, seconds=30)
    follower.send_signal(signal.Signals[name])
    told, errors = follower.communicate()
    assert follower.returncode == 0, errors.decode()
    assert told.startswith(b"20 lines read = 20 with rides + 0 others")
    assert count_of(predictions) == len({(ride, version) for line in lines[:20] for ride, version in keys(line)})


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_asked_to_end_in_the_middle_of_writing_it_finishes(tmp_path: Path, name: str) -> None:
    predictions = f"sqlite:///{tmp_path}/predictions.db"
    entries = [{"ride": RIDE | {"ride_id": n}, "duration": 17.0} for n in range(4000)]
    lines = [msgspec.json.encode(LINE | {"scored": entries[n : n + 100]}) + b"\n" for n in range(0, len(entries), 100)]
    follower = follow(predictions, lines[0])
    assert follower.stdin
    wait_until(lambda: count_of(predictions) > 0, seconds=30)
    with closing(sqlite3.connect(f"{tmp_path}/predictions.db", isolation_level=None)) as held:
        held.execute("begin immediate")
        follower.stdin.write(b"".join(lines[1:]))
        follower.stdin.flush()
        wait_until(lambda: unread(follower) == 0, seconds=30)
        for _ in range(20):  # it waits to write, whichever of them finds it so
            follower.send_signal(signal.Signals[name])
            time.sleep(0.05)
        assert follower.poll() is None
        held.execute("rollback")
    told, errors = follower.communicate()
    assert follower.returncode == 0, errors.decode()
    assert b" 4,000 added" in told
    assert count_of(predictions) == 4000


def unread(follower: subprocess.Popen[bytes]) -> int:
    """Bytes of the pipe that the follower has still to read."""
    size = array.array("i", [0])
    fcntl.ioctl(follower.stdin, termios.FIONREAD, size)  # type: ignore[arg-type]
    return size[0]


def keys(line: bytes) -> Iterator[tuple[str, str]]:
    fields = msgspec.json.decode(line)
    for scored in fields["scored"]:
        if "ride_id" in scored["ride"]:
            yield str(scored["ride"]["ride_id"]), fields["model_version"]


RIDE = {"ride_id": "a", "PULocationID": 130, "DOLocationID": 205, "trip_distance": 3.66}
LINE = {"time": "2021-02-01T13:15:00Z", "model_version": "1", "scored": [{"ride": RIDE, "duration": 17.0}]}


def encoded(ride: Any = None, scored: Any = None, **more: Any) -> bytes:
    entry = {"ride": RIDE | (ride or {}), "duration": 17.0} | (scored or {})
    return msgspec.json.encode(LINE | {"scored": [entry]} | more)


REFUSED, OTHER, UNREADABLE = {"with rides": 1, "of another form": 1}, {"others": 1}, {"that can't be read": 1}


@pytest.mark.parametrize(
    ("line", "counted"),
    [
        (encoded(), {"with rides": 1, "row": 1}),
        (encoded(scored={"interval": [12.5, 20], "more": {}}, level="info"), {"with rides": 1, "row": 1}),
        (b"[2021-02-01] [7] [INFO] Booting worker", OTHER),
        (encoded()[:-9], UNREADABLE),
        (b"\xff\xfe\x00", UNREADABLE),
        (b"", UNREADABLE),
        (b"[" * 100_000, OTHER),
        (b'{"time": "2021-02-01T13:15:00Z", "message": "request"}', OTHER),
        (b"[1]", OTHER),
        (encoded(scored=None, model_version=7), OTHER),
        (encoded(time="yesterday"), OTHER),
        (encoded(time="2021-02-01T13:15:00"), OTHER),
        (encoded(time="0001-01-01T00:00:00+14:00"), OTHER),
        (encoded(model_version="1" * 201), OTHER),
        (msgspec.json.encode(LINE | {"scored": {}}), OTHER),
        (msgspec.json.encode(LINE | {"scored": [5, None, [RIDE], {"ride": 5}]}), REFUSED | {"of another form": 4}),
        (encoded(ride={"PULocationID": 266}), REFUSED),
        (encoded(ride={"ride_id": "a\0b"}), REFUSED),
        (encoded(model_version="a\0b"), REFUSED),
        (encoded(scored={"duration": None}), REFUSED),
        (encoded(scored={"interval": [1]}), REFUSED),
        (encoded().replace(b"17.0", b"1e999"), REFUSED),
        (msgspec.json.encode(LINE | {"scored": [{"ride": [RIDE], "duration": 1.0}]}), REFUSED),
        (encoded().replace(b'"ride_id":"a",', b""), {"with rides": 1, "without a ride_id": 1}),
    ],
)  # fmt: skip
def test_a_line_is_read_or_counted_as_what_it_is(line: bytes, counted: dict[str, int]) -> None:
    counts: Counter[str] = Counter()
    _, rows = served.rows_of(line, counts)
    assert dict(counts) | ({"row": len(rows)} if rows else {}) == counted


def test_a_rotated_log_cut_off_at_its_end_is_read_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "1.log").write_bytes(encoded() + b"\n" + encoded(ride={"ride_id": "b"})[:50])
    (tmp_path / "2.log").write_bytes(encoded(ride={"ride_id": "c"}))
    url = f"sqlite:///{tmp_path}/predictions.db"
    told = invoke(served.main, f"{tmp_path}/1.log", f"{tmp_path}/2.log", "--predictions", url)
    assert told.startswith("3 lines read = 2 with rides + 0 others + 1 that can't be read\n2 predictions")
    with closing(Database(Address.of(url))) as opened:
        row, _ = opened.rows("select * from predictions order by ride_id")
    assert (str(row["scored_at"]), row["pickup_datetime"], row["predicted_duration"]) == ("2021-02-01 13:15:00", None, 17.0)


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["nowhere.log", "--predictions", "sqlite:///x.db"], 2, "does not exist"),
        (["-"], 2, "Missing option"),
        (["-", "--predictions", "folder"], 3, "a log is written into a database"),
        (["-", "--predictions", "sqlite:///nowhere/x.db"], 3, "there is no file"),
        (["-", "--predictions", "postgresql://u:secret@127.0.0.1:1/db"], 3, "onnection refused"),
        (["-", "--predictions", "sqlite:///x.db", "--model", "nowhere.bin"], 4, "nowhere.bin"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(served.main, options)
    assert run.exit_code == code, run.output
    assert reason in run.output
    assert "secret" not in run.output


@pytest.mark.slow
def test_the_dashboard_answers_metrics_whatever_its_database_has(asked: Served, predictions: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "batch.dashboard", "--predictions"]
    with running([*command, predictions, "--days", "30"], str(free_port())) as service:
        answers = [requests.get(f"{service.url}/metrics", timeout=10) for _ in range(6)]  # of either worker
        assert {answer.headers["Content-Type"].partition(";")[0] for answer in answers} == {"text/plain"}
        assert len({answer.text for answer in answers}) == 1
        check_figures(scraped(answers[0].text), asked)
    empty = tmp_path / "empty.db"
    with running([*command, f"sqlite:///{empty}"], str(free_port())) as service:
        answer = requests.get(f"{service.url}/metrics", timeout=10)
        assert (answer.status_code, "there is no file" in answer.text) == (503, True)
        assert count_of(f"sqlite:///{empty}") == 0
        found = scraped(requests.get(f"{service.url}/metrics", timeout=10).text)
        assert "rmse_minutes" in found
        assert not [samples for samples in found.values() if samples]


def add(url: str, *lines: bytes) -> None:
    with closing(DatabasePredictions(Database(Address.of(url), create=True))) as opened:
        opened.add([row for line in lines for row in served.rows_of(line, Counter())[1]])


def test_rides_without_a_time_wait_and_figures_are_kept_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/predictions.db"
    add(url, encoded())
    figures = live.Live(Address.of(url), 7)
    found = scraped(figures.text().decode())
    assert (found["predictions"], found["waiting"], found["rides"]) == ({("1",): 1}, {("1",): 1}, {("1",): 0})
    add(url, encoded(ride={"ride_id": "b"}))
    assert scraped(figures.text().decode())["waiting"] == {("1",): 1}
    monkeypatch.setattr(live, "KEPT_SECONDS", 0.0)
    for waiting in (2, 3):
        figures._until = 0.0
        assert scraped(figures.text().decode())["waiting"] == {("1",): waiting}
        add(url, encoded(ride={"ride_id": "c"}))


def test_a_pickup_yet_to_come_is_not_the_newest(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/predictions.db"
    times = ["2021-02-01T08:15:00", "2021-02-03T08:15:00", "2009-01-01T00:00:00", "2099-01-01T00:00:00"]
    add(url, *(encoded(ride={"ride_id": time, "pickup_datetime": time}) for time in times))
    found = scraped(live.Live(Address.of(url), 2).text().decode())
    assert found["newest_pickup_timestamp_seconds"] == {(): datetime(2021, 2, 3, 8, tzinfo=NEW_YORK).timestamp()}
    assert found["predictions"] == {("1",): 1}
    add(url, *(encoded(ride={"ride_id": time, "pickup_datetime": time}) for time in times))
    with closing(Database(Address.of(url))) as opened:
        assert [row["rides"] for row in opened.rows("select rides from hourly")] == [1] * 4


def test_rides_without_a_time_only_are_told_on_the_page(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/predictions.db"
    add(url, encoded())
    with closing(Database(Address.of(url), read_only=True)) as opened:
        _, content = dashboard.view(opened, Scope())
    assert "All 1 are of rides without a time" in str(content)
    assert "--actuals" in str(content)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_shows_zones_coverage_by_hour_and_versions_side_by_side(
    asked: Served, predictions: str, browser: Browser, width: int, scheme: Any
) -> None:
    complaints: list[str] = []
    with (
        running([sys.executable, "-m", "batch.dashboard", "--predictions", predictions], str(free_port())) as service,
        browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context,
    ):
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(service.url)
        for title in ("Interval coverage by hour of pickup", "Worst zones of pickup", "Side by side", "Rides without a time"):
            expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
        section = page.locator("section", has=page.get_by_role("heading", name="Side by side"))
        expect(section.locator("tbody tr")).to_have_count(1)
        expect(section.locator("tbody")).to_contain_text(SHADOW)
        expect(section.locator("tbody")).to_contain_text("0.50 min")
        zones = page.locator("section", has=page.get_by_role("heading", name="Worst zones of pickup"))
        expect(zones.locator("tbody tr")).to_have_count(8)  # four, by two models
        expect(zones.locator("tbody")).to_contain_text("East Harlem North")
        expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]
        # Dash's own drop-down has a hidden field that takes the focus
        assert not [
            (one["id"], node["html"][:150]) for one in found for node in one["nodes"] if "focus-target" not in node["html"]
        ]
        page.goto(f"{service.url}/?version={SHADOW}")
        expect(section.locator("tbody tr")).to_have_count(1)
        expect(zones.locator("tbody tr")).to_have_count(4)
    assert not complaints
