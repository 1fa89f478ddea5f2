"""The service under load for long, and while it is asked to end: minutes, so `make test-slow` runs them."""

import json
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

from conftest import Service
from ride_duration.ride import EXAMPLE

pytestmark = pytest.mark.slow

JSON = {"Content-Type": "application/json"}

REQUESTS = 100_000


def memory(service: Service) -> int:
    """Proportional set size of the workers together, in kB."""
    workers = psutil.Process(service.process.pid).children()
    return sum(worker.memory_full_info().pss for worker in workers) // 1024


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux' /proc")
def test_memory_stays_flat_over_a_hundred_thousand_requests(serve: Callable[..., Any]) -> None:
    body = json.dumps(EXAMPLE)
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
                        connection.request("POST", "/predict", json.dumps(EXAMPLE), JSON)
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
    bodies = [json.dumps(EXAMPLE | {"ride_id": number}).encode() for number in range(20)]
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
