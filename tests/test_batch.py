"""The batch door, on real databases: exact whatever happens, and the same answers as the web service's."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import requests

from batch.score import intervals, main
from batch.stores import Address, Database, StoreError, shown
from conftest import PROJECT

_number = count()
FEBRUARY = ["--from", "2021-02-01", "--to", "2021-03-01"]

Store = Callable[[list[tuple[Any, ...]]], tuple[str, str]]


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Make a table of (pickup, PULocationID, DOLocationID, trip_distance, dropoff) rows; URLs of it and of the predictions."""
    if request.param == "sqlite":

        def make(rows: list[tuple[Any, ...]]) -> tuple[str, str]:
            with closing(sqlite3.connect(tmp_path / "rides.db")) as database, database:
                database.execute(
                    "create table rides (pickup_datetime, PULocationID, DOLocationID, trip_distance, dropoff_datetime)"
                )
                database.executemany("insert into rides values (?, ?, ?, ?, ?)", rows)
            return f"sqlite:///{tmp_path}/rides.db", f"sqlite:///{tmp_path}/predictions.db"

        yield make
        return
    server = request.getfixturevalue("postgresql").removesuffix("/postgres")
    from adbc_driver_postgresql import dbapi

    names = [f"rides{next(_number)}", f"predictions{next(_number)}"]
    with dbapi.connect(f"{server}/postgres", autocommit=True) as connection, connection.cursor() as cursor:
        for name in names:
            cursor.execute(f"create database {name}")

    def copy(rows: list[tuple[Any, ...]]) -> tuple[str, str]:
        with dbapi.connect(f"{server}/{names[0]}") as connection, connection.cursor() as cursor:
            cursor.execute(
                "create table rides (pickup_datetime timestamp, PULocationID integer, DOLocationID integer, "
                "trip_distance double precision, dropoff_datetime timestamp)"
            )
            times = [0, 4]
            columns = [
                pa.array([row[place] and datetime.fromisoformat(row[place]) for row in rows], pa.timestamp("us"))
                if place in times
                else pa.array([row[place] for row in rows], pa.float64() if place == 3 else pa.int32())
                for place in range(5)
            ]
            names_ = ["pickup_datetime", "pulocationid", "dolocationid", "trip_distance", "dropoff_datetime"]
            cursor.adbc_ingest("rides", pa.table(columns, names=names_), mode="append")
            connection.commit()
        return f"{server}/{names[0]}", f"{server}/{names[1]}"

    yield copy


def made_up(rides: int) -> list[tuple[Any, ...]]:
    """Rides of February, some of them alike, and some that can't be scored."""
    rows: list[tuple[Any, ...]] = []
    for n in range(rides):
        pickup = f"2021-02-{1 + n * 28 // rides:02} {n * 7 % 24:02}:{n * 13 % 60:02}:00"
        dropoff = f"{pickup[:14]}{(n * 13 % 60 + 7) % 60:02}:30" if n * 13 % 60 < 50 else None
        rows.append((pickup, 1 + n % 263, 1 + n * 5 % 263, None if n % 50 == 0 else round(n % 90 * 0.31, 2), dropoff))
    rows += [rows[10]] * 3
    rows += [(rows[5][0], 266, 7, 1.0, None), (rows[5][0], 7, None, 1.0, None), (rows[5][0], 7, 7, 200.5, None)]
    return rows


def score(rides: str, predictions: str, *options: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "batch.score", "--rides", rides, "--predictions", predictions, *options],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def rows_of(url: str, sql: str) -> list[dict[str, Any]]:
    database = Database(Address.of(url))
    try:
        return database.rows(sql)
    finally:
        database.close()


def everything(url: str) -> list[list[dict[str, Any]]]:
    return [
        rows_of(url, f"select {columns}, cast(pickup_datetime as text) as time from {table} order by ride_id")
        for table, columns in {"predictions": "ride_id, predicted_duration, low, high", "rejects": "ride_id, reason"}.items()
    ]


def test_every_ride_gets_the_web_services_answer_or_its_reason(store: Store, service: str) -> None:
    rides, predictions = store(made_up(600))
    told = score(rides, predictions, *FEBRUARY)
    assert "28 intervals of a day: 606 rides read = 603 predicted + 3 rejected" in told
    found = rows_of(predictions, "select *, cast(pickup_datetime as text) as time from predictions")
    assert len({row["ride_id"] for row in found}) == len(found) == 603
    by_lower = [{name.lower(): value for name, value in row.items()} for row in found]
    asked = [
        {
            "PULocationID": row["pulocationid"],
            "DOLocationID": row["dolocationid"],
            "trip_distance": row["trip_distance"],
            "pickup_datetime": row["time"].replace(" ", "T"),
        }
        for row in by_lower
    ]
    answer = requests.post(f"{service}/predict?interval=true", json=asked, timeout=10).json()
    assert [row["predicted_duration"] for row in found] == pytest.approx(answer["durations"], abs=1e-9)
    assert [[row["low"], row["high"]] for row in found] == [pytest.approx(ends, abs=1e-9) for ends in answer["intervals"]]
    reasons = {row["field"]: row["reason"] for row in rows_of(predictions, "select field, reason from rejects")}
    for field, value in {"PULocationID": 266, "DOLocationID": None, "trip_distance": 200.5}.items():
        ride = {"PULocationID": 7, "DOLocationID": 7, "trip_distance": 1.0} | {field: value}
        (refused,) = requests.post(f"{service}/predict", json=ride, timeout=5).json()["errors"]
        assert reasons[field].startswith(f"{field} {refused['detail'].partition('; got')[0]}")


def test_running_again_changes_nothing_and_later_intervals_are_found(store: Store) -> None:
    rides, predictions = store(made_up(300))
    score(rides, predictions, "--from", "2021-02-01", "--to", "2021-02-15")
    first = everything(predictions)
    assert "14 intervals" in score(rides, predictions, "--from", "2021-02-01", "--to", "2021-02-15")
    assert everything(predictions) == first
    assert "14 intervals" in score(rides, predictions)  # the other half of February
    assert "0 intervals" in score(rides, predictions)
    (total,) = rows_of(predictions, "select cast(sum(rides_read) as bigint) as n, count(*) as runs from runs")
    assert (total["n"], total["runs"]) == (306, 28)
    assert len(everything(predictions)[0]) == 303


def test_actual_durations_are_filled_once(store: Store) -> None:
    rows = made_up(300)
    rides, predictions = store(rows)
    score(rides, predictions, *FEBRUARY)
    known = sum(1 for row in rows if row[4])
    assert f"{known:,} predictions" in score(rides, predictions, *FEBRUARY, "--actuals")
    assert "0 predictions" in score(rides, predictions, *FEBRUARY, "--actuals")
    (row,) = rows_of(predictions, "select count(actual_duration) as n, min(actual_duration) as low from predictions")
    assert row == {"n": known, "low": pytest.approx(-52.5) if row["low"] < 0 else pytest.approx(7.5)}


@pytest.mark.slow
def test_two_jobs_at_once_do_not_collide(store: Store) -> None:
    rides, predictions = store(made_up(2000))
    told: list[str] = []
    jobs = [
        threading.Thread(target=lambda: told.append(score(rides, predictions, *FEBRUARY, "--every", "hour"))) for _ in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(told) == 2
    assert len(everything(predictions)[0]) == 2003
    (total,) = rows_of(predictions, "select count(*) as n, cast(sum(rides_read) as bigint) as rides from runs")
    assert (total["n"], total["rides"]) == (28 * 24, 2006)


@pytest.mark.slow
def test_a_job_killed_at_any_instant_leaves_nothing_lost_and_nothing_twice(store: Store) -> None:
    rides, predictions = store(made_up(20_000))
    score(rides, predictions, "--from", "2021-01-01", "--to", "2021-01-01")  # makes the tables
    hourly = [*FEBRUARY, "--every", "hour"]
    command = [sys.executable, "-m", "batch.score", "--rides", rides, "--predictions", predictions, *hourly]
    killed = 0
    for attempt in range(9):
        job = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5 + 0.05 * attempt)
        if job.poll() is None:
            os.kill(job.pid, signal.SIGKILL)
            killed += 1
        job.wait()
        if killed:
            # whatever is there belongs to an interval that is there whole
            (seen,) = rows_of(
                predictions,
                "select (select count(*) from predictions) + (select count(*) from rejects) as rides, "
                "coalesce((select cast(sum(rides_read) as bigint) from runs), 0) as read",
            )
            assert seen["rides"] == seen["read"]
    assert killed >= 5
    score(rides, predictions, *hourly)
    done, refused = everything(predictions)
    assert (len(done), len(refused)) == (20_003, 3)
    assert len({row["ride_id"] for row in done}) == 20_003


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
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rides: str, options: list[str], code: int, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.db").write_text("these are not rides" * 100)
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
