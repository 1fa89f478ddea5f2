"""The batch door, on real databases: exact whatever happens, and the same answers as the web service's."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from click.testing import CliRunner
from pyarrow import fs

from batch.score import intervals, main
from conftest import COLUMN_TYPES, FEBRUARY, PROJECT, Rows, free_port, made_up, typed
from ride_duration.logs import shown
from ride_duration.stores import TABLES, Address, StoreError, databases, of_seconds, open_predictions, open_rides
from ride_duration.stores.databases import Database
from ride_duration.stores.files import FilePredictions

_number = count()
Store = Callable[[Rows], tuple[str, str]]
"""Makes rides of (pickup, PULocationID, DOLocationID, trip_distance, dropoff) rows; URLs of them and of the predictions."""


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """What an S3 URL needs after its path to reach a server of our own."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    keys = {"AWS_ACCESS_KEY_ID": "rides", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    os.environ.update(keys)
    try:
        end = time.monotonic() + 30
        while True:
            try:
                requests.get(f"http://127.0.0.1:{port}", timeout=5)
                break
            except requests.ConnectionError:
                assert time.monotonic() < end, "the S3 server did not answer within 30 s"
                time.sleep(0.1)
        options = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        system, _ = fs.FileSystem.from_uri(f"s3://rides/x{options}&allow_bucket_creation=true")
        system.create_dir("rides")
        yield options
    finally:
        server.terminate()
        server.wait(timeout=10)
        for key in keys:
            del os.environ[key]


@pytest.fixture(params=["sqlite", "postgresql", "parquet", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return make_store(request.param, request, tmp_path)


def make_store(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    number = next(_number)

    def sqlite(rows: Rows) -> tuple[str, str]:
        with closing(sqlite3.connect(tmp_path / "rides.db")) as database, database:
            database.execute(f"create table rides ({', '.join(COLUMN_TYPES)})")
            database.executemany("insert into rides values (?, ?, ?, ?, ?)", rows)
        return f"sqlite:///{tmp_path}/rides.db", f"sqlite:///{tmp_path}/predictions.db"

    def postgresql(rows: Rows) -> tuple[str, str]:
        from adbc_driver_postgresql import dbapi

        server = request.getfixturevalue("postgresql").removesuffix("/postgres")
        names = [f"rides{number}", f"predictions{number}"]
        with dbapi.connect(f"{server}/postgres", autocommit=True) as connection, connection.cursor() as cursor:
            for name in names:
                cursor.execute(f"create database {name}")
        with dbapi.connect(f"{server}/{names[0]}") as connection, connection.cursor() as cursor:
            cursor.execute(
                "create table rides (pickup_datetime timestamp, PULocationID integer, DOLocationID integer, "
                "trip_distance double precision, dropoff_datetime timestamp)"
            )
            table = typed(rows)
            cursor.adbc_ingest("rides", table.rename_columns([name.lower() for name in COLUMN_TYPES]), mode="append")
            connection.commit()
        return f"{server}/{names[0]}", f"{server}/{names[1]}"

    def parquet(rows: Rows) -> tuple[str, str]:
        (tmp_path / "rides").mkdir()
        half = len(rows) // 2
        pq.write_table(typed(rows[:half]), tmp_path / "rides" / "1.parquet", row_group_size=100)
        pq.write_table(typed(rows[half:]), tmp_path / "rides" / "2.parquet")
        return f"{tmp_path}/rides/*.parquet", f"{tmp_path}/predictions"

    def objects(rows: Rows) -> tuple[str, str]:
        options = request.getfixturevalue("s3")
        system, path = fs.FileSystem.from_uri(f"s3://rides/{number}/rides{options}")
        pq.write_table(typed(rows), f"{path}/1.parquet", filesystem=system)
        return f"s3://rides/{number}/rides{options}", f"s3://rides/{number}/predictions{options}"

    makers: dict[str, Store] = {"sqlite": sqlite, "postgresql": postgresql, "parquet": parquet, "s3": objects}
    return makers[kind]


def score(rides: str, predictions: str, *options: str) -> str:
    run = CliRunner().invoke(main, ["--rides", rides, "--predictions", predictions, *options])
    assert run.exit_code == 0, run.output
    return run.stdout


def table(url: str, name: str) -> list[dict[str, Any]]:
    """The rows of predictions, rejects or runs, wherever they are; names in lower case, times as text."""
    address = Address.of(url)
    if address.kind == "parquet":
        store = FilePredictions(address)
        rows = [
            row | {"model_version": part.version} for part in store.parts() for row in store.read(name, part.path).to_pylist()
        ]
    else:
        database = Database(address)
        rows = database.rows(f"select * from {name}")
        database.close()
    texts = [
        {key.lower(): str(value).replace(" ", "T") if isinstance(value, datetime) else value for key, value in row.items()}
        for row in rows
    ]
    assert not texts or {key.lower() for key in texts[0]} == {key.lower() for key in TABLES[name].names}
    return sorted(texts, key=lambda row: str(row.get("ride_id", row.get("interval_start"))))


def everything(url: str) -> list[list[dict[str, Any]]]:
    return [table(url, name) for name in ("predictions", "rejects")]


def test_every_ride_gets_the_web_services_answer_or_its_reason(store: Store, service: str) -> None:
    rides, predictions = store(made_up(600))
    told = score(rides, predictions, *FEBRUARY)
    assert "4 intervals, week by week: 606 rides read = 603 predicted + 3 rejected" in told
    by_lower, refusals = everything(predictions)
    assert len({row["ride_id"] for row in by_lower}) == len(by_lower) == 603
    asked = [
        {
            "PULocationID": row["pulocationid"],
            "DOLocationID": row["dolocationid"],
            "trip_distance": row["trip_distance"],
            "pickup_datetime": row["pickup_datetime"],
        }
        for row in by_lower
    ]
    answer = requests.post(f"{service}/predict?interval=true", json=asked, timeout=10).json()
    assert [row["predicted_duration"] for row in by_lower] == pytest.approx(answer["durations"], abs=1e-9)
    assert [[row["low"], row["high"]] for row in by_lower] == [pytest.approx(ends, abs=1e-9) for ends in answer["intervals"]]
    reasons = {row["field"]: row["reason"] for row in refusals}
    for field, value in {"PULocationID": 266, "DOLocationID": None, "trip_distance": 200.5}.items():
        ride = {"PULocationID": 7, "DOLocationID": 7, "trip_distance": 1.0} | {field: value}
        (refused,) = requests.post(f"{service}/predict", json=ride, timeout=5).json()["errors"]
        assert reasons[field].startswith(f"{field} {refused['detail'].partition('; got')[0]}")


def test_running_again_changes_nothing_and_later_intervals_are_found(store: Store) -> None:
    rides, predictions = store(made_up(300))
    half = ["--from", "2021-02-01", "--to", "2021-02-15", "--every", "week"]
    score(rides, predictions, *half)
    first = everything(predictions)
    assert "2 intervals" in score(rides, predictions, *half)
    assert everything(predictions) == first
    assert "2 intervals" in score(rides, predictions, "--every", "week")  # the other half of February
    assert "0 intervals" in score(rides, predictions, "--every", "week")
    runs = table(predictions, "runs")
    assert (sum(run["rides_read"] for run in runs), len(runs)) == (306, 4)
    assert len(everything(predictions)[0]) == 303


@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow), "parquet"], indirect=True)
def test_a_clock_that_is_years_wrong_costs_no_years_of_intervals(store: Store) -> None:
    strays = [(pickup, 7, 8, 3.0, None) for pickup in ("2008-12-31 23:05:00", "2020-06-05 12:00:00")]
    rides, predictions = store([*strays, *made_up(300)])
    assert "32 intervals, day by day: 308 rides read" in score(rides, predictions)
    ends = sorted(run["interval_end"][:10] for run in table(predictions, "runs"))
    # a day is looked at after each, and what is between is left out
    assert ends[:5] == ["2009-01-01", "2009-01-02", "2020-06-06", "2020-06-07", "2021-02-02"]
    assert len(ends) == 28 + 4
    assert "0 intervals" in score(rides, predictions)
    assert "32 intervals" in score(rides, predictions, "--actuals")
    # each that is asked for is gone through
    assert "4 intervals" in score(rides, predictions, "--from", "2008-12-05", "--to", "2009-01-02", "--every", "week")


def test_actual_durations_are_filled_once(store: Store) -> None:
    rows = made_up(300)
    rides, predictions = store(rows)
    score(rides, predictions, *FEBRUARY)
    known = sum(1 for row in rows if row[4])
    assert f"{known:,} predictions" in score(rides, predictions, *FEBRUARY, "--actuals")
    assert "0 predictions" in score(rides, predictions, *FEBRUARY, "--actuals")
    actual = {row[0]: minutes(row[0], row[4]) for row in rows if row[4]}
    for row in table(predictions, "predictions"):
        if (took := row["actual_duration"]) is not None:
            assert took == pytest.approx(actual[row["pickup_datetime"].replace("T", " ")])
            known -= 1
    assert known == 0


def minutes(pickup: str, dropoff: str) -> float:
    return (datetime.fromisoformat(dropoff) - datetime.fromisoformat(pickup)).total_seconds() / 60


def test_rides_that_come_late_are_added_and_nothing_else(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    rides, predictions = make_store("sqlite", request, tmp_path)(made_up(300))
    for kind in ("sqlite", "parquet"):
        to = predictions if kind == "sqlite" else predictions.removeprefix("sqlite:///") + "-files"
        score(rides, to, *FEBRUARY)
        before = everything(to)
        with closing(sqlite3.connect(rides.removeprefix("sqlite:///"))) as database, database:
            database.execute("insert into rides values ('2021-02-10 10:00:00', 7, ?, 3.0, null)", [7 + len(kind)])
        score(rides, to, *FEBRUARY, "--every", "day")
        after = everything(to)
        assert after[1] == before[1]
        assert [row for row in after[0] if row in before[0]] == before[0]
        assert len(after[0]) == len(before[0]) + 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "parquet"])
def test_two_jobs_at_once_do_not_collide(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    rides, predictions = make_store(kind, request, tmp_path)(made_up(2000))
    often = [*FEBRUARY, "--every", "day" if kind == "parquet" else "hour"]
    jobs = [job(rides, predictions, *often) for _ in range(2)]
    told = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], told
    assert len(everything(predictions)[0]) == 2003
    runs = table(predictions, "runs")
    assert (len(runs), sum(run["rides_read"] for run in runs)) == (28 * (1 if kind == "parquet" else 24), 2006)


def job(rides: str, predictions: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "batch.score", "--rides", rides, "--predictions", predictions, *options]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_connection_that_is_lost_ends_the_job_and_loses_nothing(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    rides, predictions = make_store("postgresql", request, tmp_path)(made_up(20_000))
    hourly = [*FEBRUARY, "--every", "hour"]
    running = job(rides, predictions, *hourly)
    time.sleep(2)
    database = Database(Address.of(rides))
    database.rows("select pg_terminate_backend(pid) as ended from pg_stat_activity where pid <> pg_backend_pid()")
    database.close()
    _, told = running.communicate()
    assert running.returncode == 3, told
    assert "terminat" in told or "connection" in told
    assert "Traceback" not in told
    score(rides, predictions, *FEBRUARY)
    assert list(map(len, everything(predictions))) == [20_003, 3]


def test_a_connection_that_is_lost_in_the_middle_of_an_answer_is_told(postgresql: str) -> None:
    with closing(Database(Address.of(postgresql))) as reading, closing(Database(Address.of(postgresql))) as other:
        rows = reading.read("select n, repeat('x', 100) as x from generate_series(1, 2000000) as n")
        next(rows)
        other.rows("select pg_terminate_backend(pid) as ended from pg_stat_activity where pid <> pg_backend_pid()")
        with pytest.raises(StoreError, match=r"terminat|connection"):
            list(rows)


@pytest.mark.parametrize("kind", ["sqlite", "parquet"])
def test_a_full_disk_ends_the_job_and_leaves_nothing_half_written(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    rides, predictions = make_store(kind, request, tmp_path)(made_up(5_000))
    run = subprocess.run(
        [sys.executable, "-m", "batch.score", "--rides", rides, "--predictions", predictions, *FEBRUARY],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),  # a disk that takes no more
    )
    assert run.returncode == 3, run.stderr
    assert "Traceback" not in run.stderr
    score(rides, predictions, *FEBRUARY)
    assert list(map(len, everything(predictions))) == [5_003, 3]
    assert sum(run["rides_read"] for run in table(predictions, "runs")) == 5_006


def test_a_file_that_another_process_holds_is_told(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rides, predictions = make_store("sqlite", request, tmp_path)(made_up(50))
    monkeypatch.setattr(databases, "LOCK_SECONDS", 1)
    score(rides, predictions, *FEBRUARY)
    hold = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('begin immediate'); print(flush=True); input()"
    command = [sys.executable, "-c", hold, predictions.removeprefix("sqlite:///")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        other.stdout.readline()
        run = CliRunner().invoke(main, ["--rides", rides, "--predictions", predictions, *FEBRUARY])
        other.communicate("\n")
    assert run.exit_code == 3
    assert "another process writes to it, so try again" in run.output


@pytest.mark.slow
def test_a_job_killed_at_any_instant_leaves_nothing_lost_and_nothing_twice(store: Store) -> None:
    rides, predictions = store(made_up(20_000))
    files = Address.of(predictions).kind == "parquet"
    often = [*FEBRUARY, "--every", "day" if files else "hour"]
    killed = 0
    with closing(open_predictions(predictions)):
        pass
    for attempt in range(12):
        running = job(rides, predictions, *often)
        time.sleep(0.7 + 0.08 * attempt)
        if running.poll() is None:
            os.kill(running.pid, signal.SIGKILL)
            killed += 1
        running.communicate()
        # whatever is there belongs to an interval that is there whole
        assert sum(map(len, everything(predictions))) == sum(run["rides_read"] for run in table(predictions, "runs"))
    assert killed >= 9
    score(rides, predictions, *FEBRUARY)
    done, refused = everything(predictions)
    assert (len(done), len(refused)) == (20_003, 3)
    assert len({row["ride_id"] for row in done}) == 20_003
    if files and "://" not in predictions:  # nor what was being written
        assert not list(Path(predictions).glob(".*"))


@pytest.mark.parametrize(
    ("rides", "options", "code", "reason"),
    [
        ("sqlite:///nowhere.db", [], 3, "there is no file"),
        ("mysql://u:secret@host/db", [], 3, "is not a store"),
        ("sqlite:///rides.db#rides;drop", [], 3, "is not the name of a table"),
        ("sqlite:///rides.db#trips", [], 3, "no such table"),
        ("sqlite:///rides.db", ["--column", "trip_distance=km"], 3, "no column km"),
        ("sqlite:///rides.db", ["--column", "trip_distance"], 2, "OURS=THEIRS"),
        ("sqlite:///rides.db", ["--from", "2021-02-01"], 2, "go together"),
        ("sqlite:///rides.db", ["--model", "rides.db"], 4, "it is refused"),
        ("postgresql://u:secret@127.0.0.1:1/db", [], 3, "onnection refused"),
        ("sqlite:///text.db", [], 3, "not a database"),
        ("sqlite:///rides.db", ["--from", "2021-02-01", "--to", "2021-02-02"], 5, "there are no rides; none is from"),
        ("sqlite:///rides.db", ["--from", "2021-02-02", "--to", "2021-02-01"], 2, "must be before"),
        ("nowhere/*.parquet", [], 3, "there is no file or folder nowhere"),
        ("empty", [], 3, "there is no Parquet file in empty"),
        ("text.db", [], 3, "Parquet magic bytes not found"),
        ("text.parquet", [], 3, "column PULocationID is of string, and numbers are wanted"),
        pytest.param(  # it is tried again for some seconds
            "s3://u:secret@nowhere/x?endpoint_override=127.0.0.1:1&scheme=http", [], 3, "nowhere", marks=pytest.mark.slow
        ),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rides: str, options: list[str], code: int, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.db").write_text("these are not rides" * 100)
    (tmp_path / "empty").mkdir()
    texts = typed(made_up(1)).set_column(1, "PULocationID", pa.array(["7"] * len(made_up(1))))
    pq.write_table(texts, "text.parquet")
    with closing(sqlite3.connect("rides.db")) as database, database:
        database.execute("create table rides (pickup_datetime, PULocationID, DOLocationID, trip_distance)")
    model = [] if "--model" in options else ["--model", str(PROJECT / "model.bin")]
    run = subprocess.run(
        [sys.executable, "-m", "batch.score", "--rides", rides, "--predictions", "sqlite:///out.db", *model, *options],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == code, run.stderr
    assert reason in run.stderr
    assert "Traceback" not in run.stderr
    assert "secret" not in run.stderr + run.stdout


def test_a_cell_of_any_type_in_sqlite_is_a_reject_or_a_number(tmp_path: Path) -> None:
    cells = ["130", "north", b"x", None, 130.0, 130.5, 130]
    with closing(sqlite3.connect(tmp_path / "rides.db")) as database, database:
        database.execute("create table rides (ride_id, pickup_datetime, PULocationID, DOLocationID, trip_distance)")
        database.executemany("insert into rides values (?, '2021-02-01T08:15', ?, 7, 2)", enumerate(cells))
    score(f"sqlite:///{tmp_path}/rides.db", f"sqlite:///{tmp_path}/out.db", *FEBRUARY)
    done, refused = everything(f"sqlite:///{tmp_path}/out.db")
    assert [row["ride_id"] for row in done] == ["4", "6"]
    assert [row["ride_id"] for row in refused] == ["0", "1", "2", "3", "5"]


def test_times_that_are_none_are_told_or_refused(tmp_path: Path) -> None:
    times = ["2021-02-01T25:00", "2021-02-01T08:15", None, "2101-01-01 00:00:00"]
    with closing(sqlite3.connect(tmp_path / "rides.db")) as database, database:
        database.execute("create table rides (ride_id, pickup_datetime, PULocationID, DOLocationID, trip_distance)")
        database.executemany("insert into rides values (?, ?, 7, 7, 2)", enumerate(times))
    rides, predictions = f"sqlite:///{tmp_path}/rides.db", f"sqlite:///{tmp_path}/out.db"
    score(rides, predictions, *FEBRUARY)
    score(rides, predictions, "--from", "2101-01-01", "--to", "2101-01-02")
    done, refused = everything(predictions)
    assert [row["ride_id"] for row in done] == ["1"]
    assert {row["ride_id"]: row["field"] for row in refused} == {"0": "pickup_datetime", "3": "pickup_datetime"}
    assert "1 rides in no interval" in CliRunner().invoke(main, ["--rides", rides, "--predictions", predictions]).output


def test_times_in_sqlite_may_be_written_in_any_way(tmp_path: Path) -> None:
    ways = ["2021-02-01 08:15:00", "2021-02-01T08:15:00", "2021-02-01T08:15", "2021-02-01T13:15:00Z", "2021-02-01 08:15:00.250"]
    for name, times in {"alike": ways[:1] * 5, "mixed": ways}.items():
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as database, database:
            database.execute("create table rides (pickup_datetime, PULocationID, DOLocationID, trip_distance)")
            database.executemany("insert into rides values (?, 7, 7, 2)", [(time,) for time in [*times, "2021-02-07 23:59:59"]])
        score(
            f"sqlite:///{tmp_path}/{name}.db",
            f"sqlite:///{tmp_path}/{name}-out.db",
            "--from",
            "2021-02-01",
            "--to",
            "2021-02-08",
        )
    alike, mixed = (
        [[row | {"scored_at": None} for row in rows] for rows in everything(f"sqlite:///{tmp_path}/{name}-out.db")]
        for name in ("alike", "mixed")
    )
    assert alike == mixed
    assert len(alike[0]) == 6


def test_a_time_with_a_zone_is_new_yorks(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rides, _ = make_store("postgresql", request, tmp_path)(made_up(5))
    database = Database(Address.of(rides))
    with database.transaction():
        database.run(
            "create table aware as select timestamptz '2021-02-01 13:15Z' as pickup_datetime, 7 as PULocationID, "
            "7 as DOLocationID, 1.5 as trip_distance"
        )
    database.close()
    aware = (
        typed(made_up(1))
        .slice(0, 1)
        .set_column(0, "pickup_datetime", pa.array([datetime(2021, 2, 1, 13, 15)], pa.timestamp("us", "UTC")))
    )
    pq.write_table(aware, tmp_path / "aware.parquet")
    for url in (f"{rides}#aware", f"{tmp_path}/aware.parquet"):
        with closing(open_rides(url, {})) as opened:
            (batch,) = opened.read(datetime(2021, 2, 1), datetime(2021, 2, 2))
            assert of_seconds(batch["pickup"][0].as_py()) == datetime(2021, 2, 1, 8, 15)


def test_intervals_are_half_open_and_end_where_they_are_told() -> None:
    months = list(intervals(datetime(2020, 12, 1), datetime(2021, 3, 15), "month"))
    assert [start.month for start, _ in months] == [12, 1, 2, 3]
    assert all(a[1] == b[0] for a, b in pairwise(months))
    assert months[-1][1] == datetime(2021, 3, 15)


def test_passwords_are_never_shown() -> None:
    assert shown("postgresql://me:secret@host/db") == "postgresql://me:…@host/db"
    with pytest.raises(StoreError, match="…"):
        Address.of("mysql://me:secret@host/db")
    assert main.help
