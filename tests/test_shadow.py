"""The shadow: a candidate that scores what the service answers, and changes nothing of it."""

import json
import logging
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client import REGISTRY

from conftest import PROJECT, free_port, running, scrape, versions_of, wait_until
from ride_duration.model import LinearModel
from ride_duration.model_file import parse_model, write_whole
from ride_duration.ride import Ride, check_ride
from training.fit import Estimator, fit_course
from training.records import Trips
from web import shadow
from web.shadow import Shadow

RIDE: dict[str, Any] = {"PULocationID": 130, "DOLocationID": 205, "trip_distance": 3.66}
RIDES = [
    RIDE | {"PULocationID": 1 + n * 7 % 263, "DOLocationID": 1 + n * 5 % 263, "trip_distance": n % 60 / 4, "ride_id": f"r{n}"}
    for n in range(600)
]
DIFFERENCE = "ride_duration_shadow_difference_minutes"
REFUSALS = "ride_duration_shadow_model_refusals"


@pytest.fixture(scope="session")
def candidates(estimator: Estimator) -> list[bytes]:
    return versions_of(estimator, 3)


@pytest.fixture
def path(tmp_path: Path, candidates: list[bytes]) -> Path:
    path = tmp_path / "candidate.bin"
    path.write_bytes(candidates[0])
    return path


def outcome(url: str, name: str) -> float:
    return scrape(url).get(f"ride_duration_shadow_rides_total{{'outcome': '{name}'}}", 0)


def workers(url: str, version: str, gauge: str = "ride_duration_shadow_model_workers") -> float:
    return scrape(url).get(f"{gauge}{{'version': '{version}'}}", 0)


def test_answers_are_the_same_byte_for_byte_with_and_without_a_shadow(
    serve: Callable[..., Any], service: str, path: Path
) -> None:
    calls = [
        *(("", ride) for ride in RIDES[:20]),
        ("", RIDES),
        ("?interval=true", RIDES[:3]),
        ("?interval=true&explain=true", RIDE | {"trip_distance": None, "pickup_datetime": "2021-02-01T17:30"}),
        ("", RIDE | {"trip_distance": -1}),
        ("", [RIDE, {}]),
        ("?no=1", RIDE),
        ("", []),
    ]

    def answers(url: str) -> list[Any]:
        came = [requests.post(f"{url}/predict{query}", json=body, timeout=5) for query, body in calls]
        return [(a.status_code, a.content, {**a.headers, "Date": 0, "X-Request-ID": 0}) for a in came]

    with serve(SHADOW_MODEL=str(path)) as (url, _, _):
        beside = answers(url)
        wait_until(lambda: outcome(url, "scored") == 20 + 600 + 3 + 1)
        assert (
            requests.get(f"{url}/openapi.json", timeout=5).content == requests.get(f"{service}/openapi.json", timeout=5).content
        )
    assert beside == answers(service)
    assert {status for status, _, _ in beside} == {200, 422}
    assert "ride_duration_shadow_rides_total{" not in requests.get(f"{service}/metrics", timeout=5).text


def test_differences_from_what_was_answered_are_counted_over_workers_and_the_champions_swap(
    serve: Callable[..., Any], path: Path, tmp_path: Path, candidates: list[bytes]
) -> None:
    scorer = parse_model(candidates[0])
    champion = tmp_path / "model.bin"
    write_whole((PROJECT / "model.bin").read_bytes(), champion)
    with serve(MODEL=str(champion), SHADOW_MODEL=str(path)) as (url, _, _):

        def answered() -> list[float]:
            """One by one over connections of their own, so that both workers have some, and all at once: over a chunk."""
            durations = [requests.post(f"{url}/predict", json=ride, timeout=5).json()["duration"] for ride in RIDES[:40]]
            return [*durations, *requests.post(f"{url}/predict", json=RIDES, timeout=5).json()["durations"]]

        durations = answered()
        write_whole(candidates[2], champion)
        wait_until(lambda: workers(url, "v002", "ride_duration_model_workers") == 2)
        durations += answered()
        wait_until(lambda: outcome(url, "scored") == len(durations))
        samples = scrape(url)
        assert workers(url, "v000") == 2
        assert outcome(url, "dropped") == outcome(url, "unanswered") == 0
    rides = [check_ride(ride) for ride in (RIDES[:40] + RIDES) * 2]
    differences = [scorer.predict(ride) - duration for ride, duration in zip(rides, durations, strict=True)]
    for side, sign in (("longer", 1), ("shorter", -1)):
        minutes = [sign * difference for difference in differences if sign * difference > 0]
        assert len(minutes) > 100
        assert samples[f"{DIFFERENCE}_count{{'shadow': '{side}'}}"] == len(minutes)
        assert samples[f"{DIFFERENCE}_sum{{'shadow': '{side}'}}"] == pytest.approx(sum(minutes))
        for bound in ("0.5", "1.5", "10.0", "+Inf"):
            bucket = samples[f"{DIFFERENCE}_bucket{{'le': '{bound}', 'shadow': '{side}'}}"]
            assert bucket == sum(m <= float(bound) for m in minutes)


FARE = (PROJECT / "models/fare.bin").read_bytes()


def ask(url: str, expected: str) -> bytes:
    """What one more ride is answered with, when the shadow has counted it as expected."""
    before = outcome(url, expected)
    answer = requests.post(f"{url}/predict", json=RIDE, timeout=5)
    wait_until(lambda: outcome(url, expected) == before + 1)
    return answer.content


@pytest.mark.parametrize(
    ("begins", "reason"),
    [(None, "there is no such file"), (b"no pickle", "it is refused"), (FARE, "it predicts fare, and this needs")],
    ids=["missing", "bad", "fare"],
)
def test_a_shadow_that_is_missing_or_bad_at_the_start_is_told_and_taken_up_when_it_is_good(
    serve: Callable[..., Any], tmp_path: Path, candidates: list[bytes], begins: bytes | None, reason: str
) -> None:
    path = tmp_path / "candidate.bin"
    if begins is not None:
        write_whole(begins, path)
    with serve(SHADOW_MODEL=str(path)) as (url, _, log):
        without = ask(url, "unanswered")
        assert scrape(url)[REFUSALS] == 1
        write_whole(candidates[0], path)
        wait_until(lambda: workers(url, "v000") == 2)
        assert ask(url, "scored") == without
        text = log.read_text()
    (told,) = [line for line in text.splitlines() if "the shadow model is refused" in line]
    assert reason in json.loads(told)["reason"]
    assert "Traceback" not in text


def test_a_shadow_that_turns_bad_scores_on_and_a_good_one_replaces_it(
    serve: Callable[..., Any], path: Path, candidates: list[bytes]
) -> None:
    with serve(SHADOW_MODEL=str(path)) as (url, _, log):
        answer = ask(url, "scored")
        for refusals, bad in enumerate((candidates[1][:-100], FARE), 1):
            write_whole(bad, path)
            wait_until(lambda: log.read_text().count("a new shadow model file is refused") == 2 * refusals)  # noqa: B023
        assert ask(url, "scored") == answer
        assert workers(url, "v000") == 2
        path.unlink()
        wait_until(lambda: workers(url, "v000") == 0)
        assert ask(url, "unanswered") == answer
        write_whole(candidates[1], path)
        wait_until(lambda: (workers(url, "v000"), workers(url, "v001")) == (0, 2))
        assert ask(url, "scored") == answer
        assert "Traceback" not in log.read_text()


def test_what_the_shadow_says_is_in_the_log_beside_what_was_answered(
    serve: Callable[..., Any], path: Path, candidates: list[bytes]
) -> None:
    scorer = parse_model(candidates[0])

    def logged(log: Path, message: str) -> list[dict[str, Any]]:
        lines = [json.loads(text) for text in log.read_text().splitlines() if '"scored"' in text]
        return [line for line in lines if line["message"] == message]

    with serve(SHADOW_MODEL=str(path), LOG_RIDES="1") as (url, _, log):
        requests.post(f"{url}/predict", json=RIDES[0], timeout=5)
        requests.post(f"{url}/predict", json=RIDES[1:], timeout=5)
        wait_until(lambda: sum(len(line["scored"]) for line in logged(log, "shadow")) == len(RIDES))
        shadow_lines, answers = logged(log, "shadow"), logged(log, "answered")
        assert not logged(log, "request")
        assert max(map(len, log.read_bytes().splitlines(keepends=True))) <= 4096
    said = {entry["ride"]["ride_id"]: entry for line in shadow_lines for entry in line["scored"]}
    answered = {entry["ride"]["ride_id"]: entry for line in answers for entry in line["scored"]}
    assert {line["model_version"] for line in shadow_lines} == {"v000"}
    assert said.keys() == answered.keys() == {ride["ride_id"] for ride in RIDES}
    for wanted in RIDES:
        entry, ride = said[wanted["ride_id"]], check_ride(wanted)
        duration = scorer.predict(ride)
        assert entry["ride"] == answered[wanted["ride_id"]]["ride"]
        assert entry["duration"] == pytest.approx(duration, abs=1e-9)
        assert entry["interval"] == pytest.approx(scorer.interval(ride, duration), abs=1e-9)


def test_the_development_server_has_a_shadow_too(path: Path) -> None:
    with running([sys.executable, "predict.py"], str(free_port()), SHADOW_MODEL=str(path)) as (url, _, _):
        requests.post(f"{url}/predict", json=RIDE, timeout=5)
        wait_until(lambda: outcome(url, "scored") == 1)


class Counts:
    """What was counted since this was made, by outcome."""

    def __init__(self) -> None:
        self.before = self.now()

    def now(self) -> dict[str, float]:
        outcomes = ("scored", "unanswered", "dropped")
        name = "ride_duration_shadow_rides_total"
        return {outcome: REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0 for outcome in outcomes}

    def since(self) -> tuple[float, ...]:
        return tuple(now - before for now, before in zip(self.now().values(), self.before.values(), strict=True))


def test_rides_beyond_the_bound_are_dropped_and_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "MAX_WAITING", 1000)
    ride, candidate, counts = check_ride(RIDE), Shadow(path, with_rides=False), Counts()
    for _ in range(999):
        candidate.add([ride], [10.0])
    candidate.add([ride] * 2, [10.0] * 2)
    candidate.add([ride], [10.0])
    candidate.add([ride] * 500, [10.0] * 500)
    assert counts.since() == (0, 0, 0)
    candidate.drain()
    assert counts.since() == (1000, 0, 502)
    candidate.add([ride] * 1000, [10.0] * 1000)
    candidate.drain()
    assert counts.since() == (2000, 0, 502)


def test_a_ride_that_the_candidate_has_no_answer_for_is_counted_as_unanswered(trips: Trips, tmp_path: Path) -> None:
    """The course's models know no distance but the trip's."""
    path = tmp_path / "course.bin"
    path.write_bytes(pickle.dumps(fit_course(trips)))
    candidate, counts = Shadow(path, with_rides=False), Counts()
    known, unknown = check_ride(RIDE), check_ride(RIDE | {"trip_distance": None})
    candidate.add([unknown, known, unknown], [10.0] * 3)
    candidate.add([unknown], [10.0])
    candidate.drain()
    assert counts.since() == (1, 3, 0)


def test_a_failure_of_the_shadow_is_told_once_and_it_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(logging.getLogger("ride_duration"), "exception", told.append)
    candidate, counts = Shadow(path, with_rides=False), Counts()
    rides: list[Ride] = [check_ride(RIDE)] * (2 * shadow.CHUNK)
    with monkeypatch.context() as broken:
        broken.setattr(LinearModel, "predict_columns", lambda model, columns: 1 / 0)
        for _ in range(2):
            candidate.add(rides, [10.0] * len(rides))
            candidate.drain()
    assert told == ["the shadow model failed, the service goes on"]
    candidate.add(rides, [10.0] * len(rides))
    candidate.drain()
    assert counts.since() == (len(rides), 2 * len(rides), 0)


SLOW = """
import os, sys, time
while data := os.read(0, 32768):
    os.write(1, data)
    time.sleep(0.002)
"""


def test_through_a_pipe_that_is_read_slowly_no_worker_tears_anothers_lines(path: Path, tmp_path: Path) -> None:
    log, port = tmp_path / "log", str(free_port())
    (tmp_path / "slow.py").write_text(SLOW)
    piped = f"exec {sys.executable} -m gunicorn predict:app > >({sys.executable} {tmp_path}/slow.py > {log})"
    environment = {"SHADOW_MODEL": str(path), "LOG_RIDES": "1", "WEB_CONCURRENCY": "2"}
    count, arrays = 6, 15  # fewer rides than may wait for the shadow

    def call(caller: int) -> None:
        with requests.Session() as session:
            for number in range(arrays):
                rides = [ride | {"ride_id": f"{caller}-{number}-{place}-{'ü' * 20}"} for place, ride in enumerate(RIDES[:200])]
                session.post(f"http://127.0.0.1:{port}/predict", json=rides, timeout=30).raise_for_status()

    with running(["bash", "-c", piped], port, PROJECT, **environment):
        with ThreadPoolExecutor(count) as callers:
            list(callers.map(call, range(count)))
        wait_until(lambda: log.read_bytes().count(b'"duration":') == 2 * count * arrays * 200, seconds=60)
    lines = [json.loads(line) for line in log.read_bytes().splitlines() if line.startswith(b"{")]
    told = {
        message: [e for line in lines if line["message"] == message for e in line["scored"]]
        for message in ("answered", "shadow")
    }
    for entries in told.values():
        assert len({entry["ride"]["ride_id"] for entry in entries}) == len(entries) == count * arrays * 200
