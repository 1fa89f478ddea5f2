import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import training.fetch as module
from conftest import make_records
from training.fetch import find, month_file
from training.records import RecordsError, read_trips

NAME = "green_tripdata_2021-01.parquet"


class Publisher(ThreadingHTTPServer):
    """A server of one folder that breaks its first `drops` answers off after `piece` bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.drops, self.piece = folder, 0, 2**14
        self.resumable, self.requests = True, list[str | None]()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Publisher

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        path = self.server.folder / self.path.strip("/").partition("?")[0]
        if not path.is_file():
            return self.send_error(403)
        data = path.read_bytes()
        start = 0
        if wanted and self.server.resumable and self.headers.get("If-Range") == '"1"':
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.server.drops:
            self.server.drops -= 1
            data = data[: start + self.server.piece]
        self.wfile.write(data[start:])
        return None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    folder = tmp_path / "published"
    folder.mkdir()
    make_records(folder / NAME)
    with Publisher(folder) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_month_is_fetched_once_and_kept(publisher: Publisher, tmp_path: Path) -> None:
    for _ in range(2):
        path = month_file("green", "2021-01", tmp_path / "data", publisher.url)
    assert path.read_bytes() == (publisher.folder / NAME).read_bytes()
    assert len(publisher.requests) == 1


@pytest.mark.parametrize("resumable", [True, False])
def test_a_dropped_connection_is_resumed(publisher: Publisher, tmp_path: Path, resumable: bool) -> None:
    publisher.drops, publisher.resumable = 3, resumable
    path = month_file("green", "2021-01", tmp_path / "data", publisher.url)
    assert path.read_bytes() == (publisher.folder / NAME).read_bytes()
    places = [2**14, 2**15, 3 * 2**14] if resumable else [2**14] * 3
    assert publisher.requests == [None, *(f"bytes={place}-" for place in places)]


def test_a_connection_that_always_drops_leaves_nothing_and_says_what_to_put_where(publisher: Publisher, tmp_path: Path) -> None:
    publisher.drops, publisher.resumable = 100, False
    with pytest.raises(RecordsError, match=rf"data/{NAME} is not there and .* put the file there"):
        month_file("green", "2021-01", tmp_path / "data", publisher.url)
    assert list((tmp_path / "data").iterdir()) == []


def test_what_is_not_parquet_is_not_kept(publisher: Publisher, tmp_path: Path) -> None:
    (publisher.folder / NAME).write_text("<html>Please log in</html>")
    with pytest.raises(RecordsError, match="put the file there"):
        month_file("green", "2021-01", tmp_path / "data", publisher.url)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_month_that_is_not_published_is_not_asked_for_again(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="not been published"):
        month_file("green", "2031-01", tmp_path / "data", publisher.url)
    assert len(publisher.requests) == 1


def test_without_a_network_the_message_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    with pytest.raises(RecordsError, match=rf"{tmp_path}/{NAME} is not there .* put the file there"):
        month_file("green", "2021-01", tmp_path, "http://127.0.0.1:9")


def test_a_url_and_a_glob_name_files(publisher: Publisher, tmp_path: Path) -> None:
    (path,) = find(f"{publisher.url}/{NAME}?x=1", tmp_path)
    assert path == tmp_path / NAME
    assert find(f"{tmp_path}/green_*.parquet", tmp_path) == [path]


@pytest.mark.parametrize("month", ["2021-13", "2021", "january"])
def test_a_month_is_written_like_a_month(month: str, tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="2021-01"):
        month_file("green", month, tmp_path)


def table(**changes: Any) -> pa.Table:
    start = np.datetime64("2021-01-15T08:00:00", "us")
    columns = {
        "lpep_pickup_datetime": np.full(4, start),
        "lpep_dropoff_datetime": np.full(4, start + np.timedelta64(10, "m")),
        "PULocationID": [41, 42, 43, 74],
        "DOLocationID": [42, 43, 74, 75],
        "trip_distance": [1.0, 2.0, 3.0, 4.0],
    } | changes
    return pa.table({name: column for name, column in columns.items() if column is not None})


def write(path: Path, rows: pa.Table) -> Path:
    pq.write_table(rows, path)
    return path


def test_rows_that_can_not_be_used_are_dropped_and_counted_under_one_reason(tmp_path: Path) -> None:
    pickup = np.array(["2021-01-15T08:00", "2021-02-01T00:00", "NaT", "2021-01-31T23:59"], "datetime64[us]")
    rows = table(lpep_pickup_datetime=pickup, PULocationID=pa.array([None, None, 43, 74], pa.int64()))
    trips, account = read_trips([write(tmp_path / NAME, rows)])
    assert +account == {"read": 4, "no pickup or drop-off time": 1, "pickup outside 2021-01": 1, "zone null or not of TLC's": 1}
    assert trips.rides.PULocationID.tolist() == [74]


def test_distances_that_no_ride_has_are_unknown_and_kept_as_recorded(tmp_path: Path) -> None:
    miles = pa.array([0.0, None, 5000.0, -1.0])
    trips, _ = read_trips([write(tmp_path / NAME, table(trip_distance=miles))])
    assert np.nan_to_num(trips.rides.trip_distance, nan=-9).tolist() == [0, -9, -9, -9]
    assert np.nan_to_num(trips.recorded_distance, nan=-9).tolist() == [0, -9, 5000, -1]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_durations_are_minutes_whatever_the_files_unit(tmp_path: Path, unit: str) -> None:
    rows = table()
    for name in ("lpep_pickup_datetime", "lpep_dropoff_datetime"):
        rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].cast(pa.timestamp(unit)))
    trips, _ = read_trips([write(tmp_path / NAME, rows)])
    assert trips.actual.tolist() == [10] * 4
    assert trips.months() == ["2021-01"]
    assert trips.rides.hour_of_week.tolist() == [4 * 24 + 8] * 4  # a Friday


def test_yellow_taxis_are_read_alike(tmp_path: Path) -> None:
    green, yellow = (
        read_trips([make_records(tmp_path / f"{taxi}_tripdata_2021-01.parquet", taxi=taxi)])[0] for taxi in ("green", "yellow")
    )
    assert (green.actual == yellow.actual).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PULocationID": None, "trip_distance": None}, "lacks the columns PULocationID, trip_distance"),
        (
            {"lpep_pickup_datetime": ["2021-01-15 08:00:00"] * 4},
            "lpep_pickup_datetime is string where TLC's files have timestamp",
        ),
        ({"trip_distance": ["far"] * 4}, "can't be read as TLC trip records"),
    ],
)
def test_a_file_of_something_else_is_refused_with_its_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecordsError, match=f"{NAME}.*{words}"):
        read_trips([write(tmp_path / NAME, table(**changes))])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 1000])
def test_what_is_not_parquet_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(RecordsError, match=NAME):
        read_trips([tmp_path / NAME])


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="nothing is left"):
        read_trips([write(tmp_path / NAME, table()[:0])])
