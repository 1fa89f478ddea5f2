"""The service under callers who mean it no good, and for long: minutes, so `make test-slow` runs them."""

import json
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import Service

pytestmark = pytest.mark.slow

RIDE = {"PULocationID": 130, "DOLocationID": 205, "trip_distance": 3.66, "pickup_datetime": "2021-02-01T08:15", "ride_id": "r1"}
JSON = {"Content-Type": "application/json"}

BODIES = 20_000  # half of them mutations of good ones, half made by hypothesis
SESSION = requests.Session()
REQUESTS = 100_000

SPICE = [
    b"NaN",
    b"-1",
    b"1e999",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"\\ud800",
    b"\xff",
    b"\x00",
    b'"',
    b"9" * 400,
    b"[" * 2000,
    b",",
    b":",
]


VALUES: list[Any] = [None, True, "", "130", -1, 0, 1, 130, 130.0, 130.5, 265, 266, 9999, 1e300, 10**30, [], {}]
VALUES += ["2021-02-01", "2021-02-01T08:15Z", "é" * 65]


def as_json(value: Any) -> bytes:
    """JSON, and what Python takes for it: NaN, Infinity, lone surrogates."""
    return json.dumps(value).encode()


def mutated(random: random.Random) -> bytes:
    """A good ride with fields changed, left out or added, or a good body with bytes flipped, cut, doubled or replaced."""
    if random.random() < 0.5:
        ride = {name: random.choice([value, *VALUES]) if random.random() < 0.2 else value for name, value in RIDE.items()}
        if random.random() < 0.2:
            ride.pop(random.choice(list(ride)))
        if random.random() < 0.1:
            ride[random.choice(["extra", "trip_distance ", "", "ride_id"])] = random.choice(VALUES)
        return json.dumps(random.choice([ride, [ride], [RIDE, ride]])).encode()
    body = bytearray(json.dumps([RIDE] * random.randint(1, 3) if random.random() < 0.3 else RIDE).encode())
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(body) + 1)
        match random.randrange(5):
            case 0:
                body[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del body[at : at + random.randint(1, 20)]
            case 2:
                body[at:at] = body[at : at + random.randint(1, 40)]
            case 3:
                body[at:at] = random.choice(SPICE)
            case _:
                del body[at:]
    return bytes(body)


def memory(service: Service) -> int:
    """Proportional set size of the workers together, in kB."""
    workers = psutil.Process(service.process.pid).children()
    return sum(worker.memory_full_info().pss for worker in workers) // 1024


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(VALUES)
made_up = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
nearly_rides = st.fixed_dictionaries({}, optional={name: st.just(value) | made_up for name, value in RIDE.items()})


@settings(max_examples=BODIES // 2, suppress_health_check=list(HealthCheck), database=None)
@given(body=st.binary(max_size=200) | (nearly_rides | st.lists(nearly_rides, max_size=3) | made_up).map(as_json))
def test_ten_thousand_made_up_bodies_get_an_answer_or_a_reason(service: str, body: bytes) -> None:
    answer = SESSION.post(f"{service}/predict", data=body, headers=JSON, timeout=10)
    told = answer.json()
    assert answer.status_code in (200, 400, 422)
    assert answer.status_code == 200 or (told["detail"] and told["status"] == answer.status_code)


def test_ten_thousand_mutated_bodies_get_an_answer_or_a_reason(serve: Callable[..., Any]) -> None:
    dice = random.Random(1)
    seen: dict[int, int] = {}
    with serve() as service:
        host, port = service.url.removeprefix("http://").split(":")
        before = requests.post(f"{service.url}/predict", json=RIDE, timeout=5).json()
        connection = HTTPConnection(host, int(port), timeout=10)
        for _ in range(BODIES // 2):
            body = mutated(dice)
            chunked = dice.random() < 0.1
            connection.request(
                "POST", "/predict", iter([body[:7], body[7:] or b" "]) if chunked else body, JSON, encode_chunked=chunked
            )
            answer = connection.getresponse()
            told = json.loads(answer.read())
            seen[answer.status] = seen.get(answer.status, 0) + 1
            assert answer.status in (200, 400, 422), body
            assert answer.status == 200 or (told["detail"] and told["status"] == answer.status)
        connection.close()
        assert requests.post(f"{service.url}/predict", json=RIDE, timeout=5).json() == before
        assert '"level":"error"' not in service.log.read_text()
    print(f"\n{BODIES // 2:,} bodies: {seen}")
    assert min(seen.values()) > 500


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux' /proc")
def test_memory_stays_flat_over_a_hundred_thousand_requests(serve: Callable[..., Any]) -> None:
    body = json.dumps(RIDE)
    # One worker: of two, one may see its first request, and get its own copy of shared pages, after the first reading.
    with serve(WEB_CONCURRENCY="1") as service:
        host, port = service.url.removeprefix("http://").split(":")

        def load(requests: int) -> None:
            connection = HTTPConnection(host, int(port), timeout=10)
            for number in range(requests):
                connection.request("POST", "/predict", body if number % 10 else body.replace("130", "9999"), JSON)
                connection.getresponse().read()
            connection.close()

        def share(total: int) -> None:
            threads = [threading.Thread(target=load, args=(total // 4,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        share(20_000)  # every thread has started and has its memory
        before = memory(service)
        share(REQUESTS)
        after = memory(service)
    print(f"\nworker: {before:,} kB, and {after:,} kB after {REQUESTS:,} requests")
    assert after < before * 1.05 + 1024


def test_sigterm_under_load_fails_no_request_on_an_established_connection(serve: Callable[..., Any]) -> None:
    answered = []
    for _ in range(10):
        with serve(DRAIN_SECONDS="1") as service:
            failures: list[str] = []
            counts = [0] * 4
            started = threading.Barrier(5)

            def load(place: int, url: str = service.url, failures: list[str] = failures, counts: list[int] = counts, started: threading.Barrier = started) -> None:  # fmt: skip  # noqa: E501
                host, port = url.removeprefix("http://").split(":")
                connection = HTTPConnection(host, int(port), timeout=10)
                connection.connect()
                started.wait()
                while True:
                    try:
                        connection.request("POST", "/predict", json.dumps(RIDE), JSON)
                        answer = connection.getresponse()
                        answer.read()
                        counts[place] += 1
                    except OSError as error:
                        failures.append(repr(error))
                        return
                    if answer.status != 200:
                        failures.append(str(answer.status))
                    if answer.getheader("Connection") == "close":
                        return

            threads = [threading.Thread(target=load, args=(place,)) for place in range(4)]
            for thread in threads:
                thread.start()
            started.wait()
            wait = threading.Event()
            wait.wait(0.3)
            service.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            for thread in threads:
                thread.join()
            assert service.process.wait(timeout=15) == 0
            assert time.monotonic() - began < 10
            assert failures == []
            answered.append(sum(counts))
    print(f"\nanswered in ten runs: {answered}")


def test_pipelined_requests_are_answered_in_order(service: str) -> None:
    host, port = service.removeprefix("http://").split(":")
    bodies = [json.dumps(RIDE | {"ride_id": number}).encode() for number in range(20)]
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"".join(head % len(body) + body for body in bodies))
        received = b""
        while received.count(b"HTTP/1.1 200") < len(bodies) or not received.endswith(b"}"):
            chunk = connection.recv(65_536)
            assert chunk, received
            received += chunk
    places = [received.index(b'"ride_id":%d}' % number) for number in range(20)]
    assert places == sorted(places)
