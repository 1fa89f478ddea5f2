"""The web service: its contract on Flask's test client, and what only a real process shows."""

import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from glob import glob
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

import predict
from conftest import PROJECT, free_port, make_ride, running, scrape, versions_of, wait_until
from ride_duration.model import LinearModel
from ride_duration.model_file import parse_model
from ride_duration.watch import WatchedModel
from training.fit import Estimator, fit_course
from training.records import Trips
from web.settings import available_cpus

RIDE: dict[str, Any] = {"PULocationID": 130, "DOLocationID": 205, "trip_distance": 3.66}
MODELS = WatchedModel(PROJECT / "model.bin", "duration")
MODEL = MODELS.current.model


@pytest.fixture
def app() -> Flask:
    return predict.create_app(MODELS)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def problem(answer: Any, status: int) -> dict[str, Any]:
    """The problem in an answer, in the one shape that all have."""
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = json.loads(answer.data)
    assert body["type"].startswith("urn:ride-duration:problem:")
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert set(body) == {"type", "title", "status", "detail"} | ({"errors"} if status == 422 else set())
    return body


def test_a_ride_is_answered_with_its_duration_and_the_models_version(client: FlaskClient) -> None:
    answer = client.post("/predict", json=RIDE)
    assert answer.status_code == 200
    assert answer.json == {"duration": MODEL.predict(make_ride(130, 205, 3.66, None)), "model_version": MODEL.version}


def test_an_array_is_answered_in_its_order(client: FlaskClient) -> None:
    many = [RIDE | {"trip_distance": miles} for miles in (9, None, 1)]
    answer = client.post("/predict", json=many)
    one_by_one = [client.post("/predict", json=ride).json for ride in many]
    assert answer.json
    assert answer.json.keys() == {"durations", "model_version"}
    assert answer.json["durations"] == pytest.approx([body["duration"] for body in one_by_one if body], abs=1e-9)


def test_the_time_of_day_matters(client: FlaskClient) -> None:
    night, evening = (
        client.post("/predict", json=RIDE | {"pickup_datetime": f"2021-02-01T{t}"}).json for t in ("04:00", "17:00")
    )
    assert night
    assert evening
    assert night["duration"] < evening["duration"]


@pytest.mark.parametrize("ride_id", ["r-1", 156])
def test_a_ride_id_is_echoed(client: FlaskClient, ride_id: str | int) -> None:
    answer = client.post("/predict", json=RIDE | {"ride_id": ride_id})
    assert answer.json
    assert answer.json["ride_id"] == ride_id


def test_an_unknown_zone_is_a_422_that_names_the_field(client: FlaskClient) -> None:
    body = problem(client.post("/predict", json=RIDE | {"PULocationID": 9999}), 422)
    assert body["errors"] == [
        {"field": "PULocationID", "detail": "must be an integer from 1 to 265, the pickup's TLC taxi zone; got 9999"}
    ]


def test_an_array_with_one_bad_ride_is_refused_whole_and_names_its_index(client: FlaskClient) -> None:
    body = problem(client.post("/predict", json=[RIDE, RIDE | {"trip_distance": -100}]), 422)
    assert [(error["field"], error["index"]) for error in body["errors"]] == [("trip_distance", 1)]


@pytest.mark.parametrize("count", [0, 10_001])
def test_an_array_may_hold_1_to_10000_rides(client: FlaskClient, count: int) -> None:
    assert "1 to 10,000" in problem(client.post("/predict", json=[RIDE] * count), 422)["detail"]


def test_an_array_of_10000_rides_is_answered(client: FlaskClient) -> None:
    answer = client.post("/predict", json=[RIDE] * 10_000)
    assert answer.json
    assert len(answer.json["durations"]) == 10_000


@pytest.mark.parametrize("query", ["interval=maybe", "intervall=true", "explain", "x"])
@pytest.mark.parametrize("route", ["/predict", "/model"])
def test_an_unknown_query_parameter_is_a_422(client: FlaskClient, route: str, query: str) -> None:
    method = client.post if route == "/predict" else client.get
    body = problem(method(f"{route}?{query}", **({"json": RIDE} if route == "/predict" else {})), 422)
    assert body["errors"][0]["field"] == query.partition("=")[0]


def test_an_interval_is_added_when_asked_for(client: FlaskClient) -> None:
    answer = client.post("/predict?interval=true", json=RIDE).json
    assert answer
    low, high = answer["interval"]
    assert 1 <= low < answer["duration"] < high
    many = client.post("/predict?interval=true", json=[RIDE, RIDE]).json
    assert many
    assert many["intervals"] == [pytest.approx([low, high], abs=1e-9)] * 2


def test_an_explanation_is_added_when_asked_for_and_adds_up(client: FlaskClient) -> None:
    answer = client.post("/predict?explain=true&interval=false", json=RIDE).json
    assert answer
    assert "interval" not in answer
    assert sum(part["minutes"] for part in answer["explanation"]) == pytest.approx(answer["duration"], abs=1e-9)
    assert all(set(part) == {"feature", "value", "coefficient", "minutes"} for part in answer["explanation"])


def test_an_array_is_not_explained(client: FlaskClient) -> None:
    body = problem(client.post("/predict?explain=true", json=[RIDE]), 422)
    assert body["errors"][0]["field"] == "explain"


@pytest.mark.parametrize("query", ["interval=1", "interval=true&interval=true", "interval=", "explain=True"])
def test_a_parameter_is_true_or_false_once(client: FlaskClient, query: str) -> None:
    assert "true or false" in problem(client.post(f"/predict?{query}", json=RIDE), 422)["detail"]


@pytest.mark.parametrize("body", [b"", b"ride", b"{", b'{"trip_distance": NaN}', b"[" * 100_000])
def test_what_is_not_json_is_a_400(client: FlaskClient, body: bytes) -> None:
    answer = client.post("/predict", data=body, content_type="application/json")
    assert '{"PULocationID":130' in problem(answer, 400)["detail"]


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
def test_another_content_type_is_a_415(client: FlaskClient, content_type: str | None) -> None:
    problem(client.post("/predict", data=json.dumps(RIDE), content_type=content_type), 415)


def test_a_charset_beside_the_content_type_is_taken(client: FlaskClient) -> None:
    assert client.post("/predict", data=json.dumps(RIDE), content_type="application/json; charset=utf-8").status_code == 200


def test_a_content_encoding_is_a_415(client: FlaskClient) -> None:
    problem(client.post("/predict", json=RIDE, headers={"Content-Encoding": "gzip"}), 415)


def test_a_body_over_two_mebibytes_is_a_413(client: FlaskClient) -> None:
    problem(client.post("/predict", data=b" " * (2 * 2**20 + 1), content_type="application/json"), 413)
    body = json.dumps(RIDE).encode().rjust(2 * 2**20)
    assert client.post("/predict", data=body, content_type="application/json").status_code == 200


def test_an_unknown_route_is_a_404_that_names_the_routes(client: FlaskClient) -> None:
    assert "/predict" in problem(client.get("/predictions"), 404)["detail"]


def test_another_method_is_a_405_with_allow(client: FlaskClient) -> None:
    answer = client.get("/predict")
    problem(answer, 405)
    assert "POST" in answer.headers["Allow"]


def test_a_failure_of_ours_is_a_500_without_a_trace_and_the_log_has_it(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("ride_duration"), "propagate", True)
    monkeypatch.setattr(predict, "decode_rides", lambda body: 1 / 0)
    answer = client.post("/predict", json=RIDE)
    assert "ZeroDivisionError" not in answer.text
    problem(answer, 500)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("came", "taken"), [("abc-1_2.3", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("é", False), ("", False)]
)
def test_a_request_id_is_taken_when_it_is_one_and_made_when_not(client: FlaskClient, came: str, taken: bool) -> None:
    echoed = client.get("/healthz", headers={"X-Request-ID": came}).headers["X-Request-ID"]
    assert (echoed == came) is taken
    assert 1 <= len(echoed) <= 64


def test_the_model_describes_itself(client: FlaskClient) -> None:
    body = client.get("/model").json
    assert body
    assert body["version"] == MODEL.version
    assert body["target"] == "duration"
    assert body["trained_on"] == ["2021-01", "2021-02"]
    assert body["metrics"]["model"]["rmse"] < body["metrics"]["course"]["rmse"]
    assert body["coefficients"] == MODEL.coefficients
    assert len(body["sha256"]) == 64
    assert body["refused"] is None
    assert set(body) >= {"tested_on", "rows", "libraries", "loaded_at", "metrics_trained_on"}


def test_health_and_readiness(client: FlaskClient) -> None:
    assert client.get("/healthz").json == {"status": "alive"}
    assert client.get("/readyz").json == {"status": "ready", "model_version": MODEL.version}


def test_a_model_that_can_not_answer_is_not_ready(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinearModel, "predict", lambda self, ride: 1 / 0)
    assert "division by zero" in problem(client.get("/readyz"), 503)["detail"]


def test_a_course_model_is_served_with_its_digest_for_a_version_and_refuses_an_unknown_distance(
    trips: Trips, tmp_path: Path
) -> None:
    (tmp_path / "model.bin").write_bytes(pickle.dumps(fit_course(trips)))
    models = WatchedModel(tmp_path / "model.bin", "duration")
    client = predict.create_app(models).test_client()
    answer = client.post("/predict", json=RIDE).json
    assert answer
    assert answer["model_version"] == f"sha256:{models.current.model.sha256[:12]}"
    assert "no answer" in problem(client.post("/predict", json=RIDE | {"trip_distance": None}), 422)["detail"]
    errors = problem(client.post("/predict", json=[RIDE, RIDE | {"trip_distance": None}]), 422)["errors"]
    assert [error["index"] for error in errors] == [1]
    assert problem(client.post("/predict?interval=true", json=RIDE), 422)["errors"][0]["field"] == "interval"
    described = client.get("/model").json
    assert described
    assert described["trained_on"] is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_json_is_answered_with_a_duration_or_a_reason(value: Any) -> None:
    answer = predict.create_app(MODELS).test_client().post("/predict", data=json.dumps(value), content_type="application/json")
    assert answer.status_code in (400, 422)
    problem(answer, answer.status_code)


# what only a real process shows


def exchange(url: str, *parts: bytes) -> bytes:
    """Send raw bytes and read the answer until the service closes the connection or stops sending."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
        return received


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_gunicorn_serves_as_configured_and_keeps_connections_open(service: str) -> None:
    with requests.Session() as session:
        for _ in range(3):
            answer = session.post(f"{service}/predict", json=RIDE)
            assert answer.json()["duration"] == MODEL.predict(make_ride(130, 205, 3.66, None))
            assert answer.headers["Connection"] == "keep-alive"


def test_a_chunked_body_is_read_and_one_too_large_is_a_413(service: str) -> None:
    body = json.dumps(RIDE).encode()
    assert requests.post(f"{service}/predict", data=iter([body[:9], body[9:]]), headers={"Content-Type": "application/json"}).ok
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    answer = exchange(service, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk * 33, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n{}\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\n{}"),
        (b"Content-Length: 100\r\n\r\n", b'{"PULocationID"'),
        (b"Content-Length: 0\r\n\r\n", b""),
        (b"\r\n", b""),
    ],
    ids=["bad chunk size", "chunks cut short", "body cut short", "empty", "no length"],
)
def test_a_body_that_does_not_arrive_is_a_400(service: str, head: bytes, body: bytes) -> None:
    answer = exchange(service, HEAD + head + body)
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:300]
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n", 414),
        (HEAD + b"X-Long: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (HEAD + b"".join(b"X-%d: 1\r\n" % number for number in range(101)) + b"\r\n", 431),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST /predict HTTP/9.9\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    ],
    ids=["first line", "a header", "101 headers", "negative length", "two lengths", "coding", "version", "TLS"],
)
def test_what_is_not_http_or_beyond_its_limits_is_a_problem_too(service: str, request_bytes: bytes, status: int) -> None:
    head, _, body = exchange(service, request_bytes).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert b"application/problem+json" in head
    told = json.loads(body)
    assert told["status"] == status
    assert len(told["detail"]) > 10


def test_sigterm_ends_the_service_with_exit_code_0(serve: Callable[..., Any]) -> None:
    with serve() as (url, process, log):
        assert requests.post(f"{url}/predict", json=RIDE).ok
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
        output = log.read_text()
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["route"] == "/predict"]
    assert line["status"] == 200
    assert line["rides"] == 1
    assert line["model_version"] == MODEL.version
    assert {"time", "request_id", "method", "milliseconds"} <= set(line)


def test_rides_are_logged_with_their_intervals_when_asked_for(serve: Callable[..., Any]) -> None:
    with serve(LOG_RIDES="1") as (url, _, log):
        one = requests.post(f"{url}/predict", json=RIDE | {"ride_id": "a"}, timeout=5).json()
        many = requests.post(f"{url}/predict?interval=true", json=[RIDE, RIDE], timeout=5).json()
        wait_until(lambda: log.read_text().count('"scored"') == 2)
        lines = [json.loads(line) for line in log.read_text().splitlines() if '"scored"' in line]
    assert one.keys() == {"duration", "model_version", "ride_id"}
    scored = {len(line["scored"]): line["scored"] for line in lines}
    interval = pytest.approx(many["intervals"][0], abs=1e-9)
    assert scored[1] == [{"ride": RIDE | {"ride_id": "a"}, "duration": one["duration"], "interval": interval}]
    assert scored[2] == [{"ride": RIDE, "duration": many["durations"][0], "interval": interval}] * 2


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"MODEL": "missing.bin"}, "there is no such file"),
        ({"MODEL": "Makefile"}, "it is refused"),
        ({"PORT": "http"}, "PORT must be a whole number from 1 to 65,535; got 'http'"),
        ({"PORT": "0000000001999999"}, "PORT must be a whole number"),
        ({"WEB_CONCURRENCY": "0"}, "WEB_CONCURRENCY must be"),
    ],
)
def test_a_service_that_can_not_start_ends_with_a_sentence(environment: dict[str, str], reason: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gunicorn", "predict:app"],
        cwd=PROJECT,
        env=os.environ | {"PORT": str(free_port())} | environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.returncode == 1
    assert reason in run.stderr
    assert "Traceback" not in run.stderr


def test_the_development_server_is_on_loopback_without_a_debugger() -> None:
    port = free_port()
    with running([sys.executable, "predict.py"], str(port)) as (url, _, _):
        assert requests.post(f"{url}/predict", json=RIDE).ok
        assert requests.get(f"{url}/console").status_code == 404
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=5)  # another address of this machine


def test_serving_imports_no_training_library() -> None:
    heavy = ["sklearn", "scipy", "pandas", "pyarrow", "requests", "tqdm"]
    code = f"import predict, sys; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [({"cpu.max": "150000 100000\n"}, 1), ({"cpu.max": "max 100000\n"}, None), ({"cpu.max": "10000 100000\n"}, 1), ({}, None)],
)
def test_workers_follow_the_containers_quota(tmp_path: Path, files: dict[str, str], cpus: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert available_cpus(tmp_path) == (cpus or len(os.sched_getaffinity(0)))


def test_a_request_is_answered_while_the_service_is_asked_to_end(serve: Callable[..., Any]) -> None:
    with serve() as (url, process, _), requests.Session() as session:
        assert session.post(f"{url}/predict", json=RIDE).ok
        process.send_signal(signal.SIGTERM)
        assert session.post(f"{url}/predict", json=RIDE).ok
        end = time.monotonic() + 15
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert process.returncode == 0


def test_metrics_are_right_across_workers_and_after_one_is_killed(serve: Callable[..., Any]) -> None:
    predictions, refusals, unknown = (
        "ride_duration_requests_total{'route': '/predict', 'status': '200'}",
        "ride_duration_requests_total{'route': '/predict', 'status': '422'}",
        "ride_duration_requests_total{'route': 'none', 'status': '404'}",
    )
    with serve() as (url, process, _):

        def load() -> None:
            for _ in range(20):  # a connection each, so that both workers have some
                assert requests.post(f"{url}/predict", json=RIDE, timeout=5).ok
            assert requests.post(f"{url}/predict", json=[RIDE] * 100, timeout=5).ok
            for number in range(5):
                requests.post(f"{url}/predict", json=RIDE | {f"extra{number}": 1, "PULocationID": 0}, timeout=5)
                requests.get(f"{url}/nothing{number}", timeout=5)

        def counts(times: int) -> None:
            samples = scrape(url)
            assert samples[predictions] == 21 * times
            assert samples[refusals] == samples[unknown] == 5 * times
            assert sum(v for name, v in samples.items() if name.startswith("ride_duration_rides_total")) == 120 * times
            assert samples["ride_duration_refused_fields_total{'field': 'PULocationID'}"] == 5 * times
            assert samples["ride_duration_refused_fields_total{'field': 'other'}"] == 5 * times
            assert samples["ride_duration_request_seconds_bucket{'le': '5.0'}"] >= 31 * times
            assert not [name for name in samples if "extra" in name or "nothing" in name]

        load()
        counts(1)
        workers = f"ride_duration_model_workers{{'version': '{MODEL.version}'}}"
        wait_until(lambda: scrape(url).get(workers) == 2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if children.exists():
            os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
            load()
            counts(2)
            wait_until(lambda: scrape(url).get(workers) == 2)
        assert len(metrics_directories(process.pid)) == 1
    assert not metrics_directories(process.pid)


def metrics_directories(owner: int) -> list[str]:
    return [path for folder in ("/dev/shm", tempfile.gettempdir()) for path in glob(f"{folder}/ride-duration-{owner}-*")]


@pytest.mark.parametrize("how", ["replace", "symlink"])
@pytest.mark.parametrize("swaps", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_replaced_model_serves_within_seconds_and_a_bad_one_is_refused_without_a_failed_request(
    serve: Callable[..., Any], estimator: Estimator, tmp_path: Path, how: str, swaps: int
) -> None:
    """Every fourth replacement is a bad one: cut short, hostile, of another target, or no pickle at all."""
    good = versions_of(estimator, 1 + swaps)
    bad = [good[0][:-100], b"cos\nsystem\n(S'false'\ntR.", b"", b"no pickle", *versions_of(estimator, 1, target="fare")]
    path = tmp_path / "model.bin"

    def put(data: bytes, number: int) -> None:
        """As a deployment does it: a file renamed over, or Kubernetes' link to another folder flipped."""
        if how == "replace":
            (tmp_path / "part").write_bytes(data)
            os.replace(tmp_path / "part", path)
        else:
            (tmp_path / f"data{number}").mkdir()
            (tmp_path / f"data{number}" / "model.bin").write_bytes(data)
            (tmp_path / "link").symlink_to(f"data{number}")
            os.replace(tmp_path / "link", tmp_path / "..data")

    if how == "symlink":
        path.symlink_to("..data/model.bin")
    put(good[0], 0)
    expected = {f"v{n:03}": parse_model(data).predict(make_ride(130, 205, 3.66, None)) for n, data in enumerate(good)}
    assert len(set(expected.values())) == len(good)
    with serve(MODEL=str(path)) as (url, _, log):
        stop = threading.Event()
        seen: list[tuple[str, float]] = []
        failures: list[Any] = []
        refused, slowest = 0, 0.0

        def refusals() -> float:
            """By the metrics, once both workers have logged as many."""
            count = scrape(url)["ride_duration_model_refusals"]
            return count if log.read_text().count("a new model file is refused") == 2 * count else -1

        def load() -> None:
            while not stop.is_set():
                try:
                    answer = requests.post(f"{url}/predict", json=RIDE, timeout=10)
                    seen.append((answer.json()["model_version"], answer.json()["duration"]))
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for number in range(1, swaps + 1):
                began = time.monotonic()
                if number % 4 == 3:
                    put(bad[number // 4], number)
                    refused += 1
                    wait_until(lambda: refusals() == refused)  # noqa: B023
                    assert requests.get(f"{url}/model", timeout=5).json()["refused"]["reason"]
                else:
                    put(good[number], number)
                    wait_for_version(url, f"v{number:03}")
                slowest = max(slowest, time.monotonic() - began)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    print(f"\n{swaps} replacements, {refused} refused, {len(seen):,} answers, the slowest switch {slowest:.1f} s")
    assert failures == []
    assert len(seen) > 100
    assert all(duration == pytest.approx(expected[version], abs=1e-9) for version, duration in seen)


def wait_for_version(url: str, version: str) -> None:
    """Until twenty answers in a row, over new connections, are of that version: all workers have it."""
    row = 0

    def enough() -> bool:
        nonlocal row
        row = row + 1 if requests.get(f"{url}/readyz", timeout=5).json()["model_version"] == version else 0
        return row >= 20

    wait_until(enough)


@pytest.mark.slow
def test_clients_that_stall_do_not_keep_others_waiting(serve: Callable[..., Any]) -> None:
    with serve() as (url, _, _), ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")

        def connect(data: bytes) -> socket.socket:
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            connection.sendall(data)
            return connection

        idle = [connect(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(200)]
        assert all(b"200 OK" in connection.recv(4096) for connection in idle)
        bodies = [connect(HEAD + b'Content-Length: 100\r\n\r\n{"PULocationID"') for _ in range(25)]
        heads = [connect(HEAD[:-5]) for _ in range(25)]
        slowest = 0.0
        for _ in range(40):
            began = time.monotonic()
            assert requests.post(f"{url}/predict", json=RIDE, timeout=5).ok
            slowest = max(slowest, time.monotonic() - began)
        print(f"\nbeside 25 stalled bodies, 25 stalled heads and 200 idle connections: {slowest * 1000:.0f} ms at most")
        assert slowest < 5
        # and each of them is let go, with an answer where there is something to answer
        for connection in bodies:
            assert b" 408 " in connection.recv(4096)
        for connection in heads:
            assert connection.recv(4096) == b""
        idle[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in idle[0].recv(4096)


def test_a_worker_that_drains_says_so_while_it_still_answers_and_then_ends(serve: Callable[..., Any]) -> None:
    with serve(DRAIN_SECONDS="2") as (url, process, _):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: requests.get(f"{url}/readyz", timeout=5).status_code == 503)
        answered = 0
        while process.poll() is None:
            try:
                with requests.Session() as session:  # a new connection
                    assert session.post(f"{url}/predict", json=RIDE, timeout=5).ok
                    answered += 1
            except requests.ConnectionError:
                break  # its time was over
        assert answered > 20
        assert process.wait(timeout=15) == 0


@pytest.mark.slow
def test_a_rolling_deploy_behind_a_client_that_obeys_readiness_fails_no_request(serve: Callable[..., Any]) -> None:
    with ExitStack() as stack:
        instances = [stack.enter_context(serve(DRAIN_SECONDS="2")) for _ in range(2)]
        ready = [instance.url for instance in instances]
        stop, failures, answers = threading.Event(), list[Exception](), [0]

        def probe() -> None:
            while not stop.is_set():
                for instance in list(instances):
                    try:
                        good = requests.get(f"{instance.url}/readyz", timeout=2).ok
                    except requests.RequestException:
                        good = False
                    if good and instance.url not in ready:
                        ready.append(instance.url)
                    elif not good and instance.url in ready:
                        ready.remove(instance.url)
                stop.wait(0.2)

        def load() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    assert requests.post(f"{ready[number % len(ready)]}/predict", json=RIDE, timeout=5).ok
                    answers[0] += 1
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=work) for work in (probe, load, load)]
        for thread in threads:
            thread.start()
        try:
            for old in list(instances):
                instances.append(stack.enter_context(serve(DRAIN_SECONDS="2")))
                wait_until(lambda: instances[-1].url in ready)
                old.process.send_signal(signal.SIGTERM)
                assert old.process.wait(timeout=15) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert answers[0] > 200
