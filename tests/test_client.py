import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner, Result

import client as module
from client import Prediction, RefusedError, RideDurationClient, UnavailableError
from conftest import PROJECT, make_records, make_ride
from ride_duration.model_file import load_model

RIDE = {"PULocationID": 130, "DOLocationID": 205, "trip_distance": 3.66}
MODEL = load_model(PROJECT / "model.bin")
EXPECTED = MODEL.predict(make_ride(130, 205, 3.66, None))


@pytest.fixture
def client(service: str) -> Iterator[RideDurationClient]:
    with RideDurationClient(service) as client:
        yield client


def run(service: str, *arguments: str) -> Result:
    return CliRunner().invoke(module.main, [*arguments, "--url", service])


def test_a_ride_is_predicted(client: RideDurationClient) -> None:
    assert client.predict(RIDE) == Prediction(EXPECTED, MODEL.version)


def test_many_rides_are_predicted_in_order_by_chunks(client: RideDurationClient) -> None:
    rides = [RIDE | {"trip_distance": 1 + number / 100} for number in range(25)]
    predictions = list(client.predict_many(iter(rides), chunk=10))
    assert [p.duration for p in predictions] == pytest.approx([client.predict(ride).duration for ride in rides], abs=1e-9)


def test_the_model_is_described(client: RideDurationClient) -> None:
    assert client.model()["version"] == MODEL.version


def test_a_refused_ride_is_an_error_that_names_the_field(client: RideDurationClient) -> None:
    with pytest.raises(RefusedError, match="PULocationID must be an integer from 1 to 265") as caught:
        client.predict(RIDE | {"PULocationID": 0})
    assert caught.value.status == 422
    assert caught.value.errors[0]["field"] == "PULocationID"


def test_a_value_that_json_does_not_know_is_refused_before_it_is_sent(client: RideDurationClient) -> None:
    with pytest.raises(RefusedError, match="JSON"):
        client.predict(RIDE | {"trip_distance": float("nan")})


def test_no_service_is_an_error_that_names_the_address() -> None:
    with (
        RideDurationClient("http://127.0.0.1:9", retries=0) as client,
        pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9"),
    ):
        client.predict(RIDE)


@pytest.fixture
def failing() -> Iterator[Callable[..., str]]:
    """Servers that fail a few times before they answer like the service."""
    servers = []

    def start(status: int, times: int, body: bytes = b"upstream is down") -> str:
        left = [times]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                answer = body if left[0] else json.dumps({"duration": 5.0, "model_version": "1"}).encode()
                self.send_response(status if left[0] else 200)
                left[0] = max(0, left[0] - 1)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_passing_failure_is_retried(failing: Callable[..., str], status: int) -> None:
    with RideDurationClient(failing(status, times=2)) as client:
        assert client.predict(RIDE).duration == 5


@pytest.mark.parametrize(("status", "times"), [(503, 99), (500, 1), (200, 1)])
def test_a_lasting_failure_is_unavailable(failing: Callable[..., str], status: int, times: int) -> None:
    with RideDurationClient(failing(status, times), retries=1) as client, pytest.raises(UnavailableError):
        client.predict(RIDE)


def test_a_refusal_that_is_not_the_services_own_is_told_by_its_status(failing: Callable[..., str]) -> None:
    with RideDurationClient(failing(404, 1, b"<html>")) as client, pytest.raises(RefusedError, match="HTTP 404"):
        client.predict(RIDE)


def test_the_command_answers_one_ride(service: str) -> None:
    result = run(service, "--pickup", "130", "--dropoff", "205", "--distance", "3.66")
    assert json.loads(result.output) == {"duration": EXPECTED, "model_version": MODEL.version}


def test_the_command_passes_the_time_on(service: str) -> None:
    result = run(service, "--pickup", "130", "--dropoff", "205", "--distance", "3.66", "--time", "2021-02-01T08:15")
    assert json.loads(result.output)["duration"] != EXPECTED


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--pickup", "130"], 2, "--dropoff"),
        (["--pickup", "0", "--dropoff", "205"], 1, "PULocationID must be"),
        ([__file__], 2, ".csv, .jsonl or .parquet"),
    ],
)
def test_the_command_says_what_is_wrong(service: str, arguments: list[str], code: int, words: str) -> None:
    result = run(service, *arguments)
    assert result.exit_code == code
    assert words in result.output


def rides_file(path: Path, rides: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(ride) + "\n" for ride in rides))
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(dict.fromkeys(name for ride in rides for name in ride)))
            table.writeheader()
            table.writerows(rides)
    return path


@pytest.mark.parametrize("into", [".csv", ".jsonl"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_of_rides_becomes_a_file_of_durations_with_each_refusal_in_its_row(
    service: str, tmp_path: Path, suffix: str, into: str
) -> None:
    rides = [RIDE | {"ride_id": f"r{number}", "PULocationID": 9999 if number % 3 == 1 else 130} for number in range(100)]
    path, out = rides_file(tmp_path / f"rides{suffix}", rides), tmp_path / f"durations{into}"
    result = run(service, str(path), "--out", str(out), "--chunk", "40")
    assert result.exit_code == 1
    assert "67 rides scored, 33 refused" in result.output
    lines = out.read_text().splitlines()
    rows = list(csv.DictReader(lines)) if into == ".csv" else [json.loads(line) for line in lines]
    assert [row["ride_id"] for row in rows] == [ride["ride_id"] for ride in rides]
    for number, row in enumerate(rows):
        if number % 3 == 1:
            assert "PULocationID must be" in row["error"]
            assert not row.get("duration")
        else:
            assert float(row["duration"]) == pytest.approx(EXPECTED, abs=1e-9)
    assert sorted(tmp_path.iterdir()) == sorted([path, out])


def test_tlcs_own_files_are_scored(service: str, tmp_path: Path) -> None:
    path = make_records(tmp_path / "green_tripdata_2021-01.parquet", rows=50, trip_distance=[2.5] * 50)
    result = CliRunner().invoke(module.main, [str(path), "--url", service])
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert result.exit_code == 0, result.output
    assert len(rows) == 50
    assert len({row["duration"] for row in rows}) > 30


def test_an_empty_cell_is_an_unknown_value(service: str, tmp_path: Path) -> None:
    (tmp_path / "rides.csv").write_text("PULocationID,DOLocationID,trip_distance,pickup_datetime\n130,205,,\n")
    result = CliRunner().invoke(module.main, [str(tmp_path / "rides.csv"), "--url", service])
    (row,) = csv.DictReader(result.stdout.splitlines())
    assert float(row["duration"]) == pytest.approx(MODEL.predict(make_ride(130, 205, None, None)), abs=1e-9)


def test_an_interrupted_file_leaves_nothing_behind(service: str, tmp_path: Path) -> None:
    path = tmp_path / "rides.jsonl"
    path.write_text(json.dumps(RIDE) + "\n" + "{half")
    result = run(service, str(path), "--out", str(tmp_path / "out.csv"), "--chunk", "1")
    assert result.exit_code == 1
    assert "line 2 is not JSON" in result.output
    assert list(tmp_path.iterdir()) == [path]


def test_the_client_is_one_file_that_needs_nothing_of_the_project(tmp_path: Path, service: str) -> None:
    (tmp_path / "client.py").write_text((PROJECT / "client.py").read_text())
    command = [sys.executable, "client.py", "--pickup", "130", "--dropoff", "205", "--distance", "3.66", "--url", service]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["duration"] == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rides.parquet", b"nope", "can't be read"),
        ("rides.csv", b"PULocationID\n" + b"1" * 200_000, "can't be read"),
        ("rides.csv", b"\xff\xfe", "can't be read"),
        ("rides.jsonl", b"[" * 200_000, "can't be read"),
    ],
)
def test_a_file_that_can_not_be_read_is_told_by_its_name(
    service: str, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    result = run(service, str(tmp_path / name))
    assert result.exit_code == 1
    assert not isinstance(result.exception, (ValueError, TypeError, RecursionError))
    assert words in result.output
    assert name in result.output


def test_cells_that_are_no_numbers_are_refused_in_their_rows(service: str, tmp_path: Path) -> None:
    cells = ["nan", "inf", "1_0", "three", "3"]
    path = tmp_path / "rides.csv"
    path.write_text("PULocationID,DOLocationID,trip_distance\n" + "".join(f"130,205,{cell}\n" for cell in cells))
    result = CliRunner().invoke(module.main, [str(path), "--url", service])
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [bool(row["error"]) for row in rows] == [True, True, True, True, False]
    assert all("trip_distance must be" in row["error"] for row in rows[:4])


def test_every_refused_field_of_a_ride_is_in_its_row(service: str, tmp_path: Path) -> None:
    path = rides_file(tmp_path / "rides.jsonl", [RIDE | {"PULocationID": 0, "trip_distance": -1}])
    result = CliRunner().invoke(module.main, [str(path), "--url", service])
    (row,) = csv.DictReader(result.stdout.splitlines())
    assert "PULocationID" in row["error"]
    assert "trip_distance" in row["error"]


def test_json_lines_may_have_a_mark_and_blank_lines(service: str, tmp_path: Path) -> None:
    path = tmp_path / "rides.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(RIDE).encode() + b"\n\n")
    assert "1 rides scored" in run(service, str(path)).output


def test_the_rides_themselves_are_not_overwritten(service: str, tmp_path: Path) -> None:
    path = rides_file(tmp_path / "rides.csv", [RIDE])
    before = path.read_bytes()
    result = run(service, str(path), "--out", str(path))
    assert result.exit_code == 2
    assert path.read_bytes() == before


def test_ten_thousand_rides_with_long_names_go_in_a_call(client: RideDurationClient) -> None:
    rides = [RIDE | {"ride_id": "é" * 64}] * 10_000
    assert len(list(client.predict_many(rides, chunk=10_000))) == 10_000
