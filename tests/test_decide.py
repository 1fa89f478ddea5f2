"""The decision service: every ride decided once, whatever dies, and what its window does."""

import math
import signal
import time
from collections import Counter
from contextlib import ExitStack, closing
from typing import Any

import msgspec
import numpy as np
import pytest
import requests
from streams import MODELS, Reader, consumer, consumers, made_up, publish, service, stop

from conftest import free_port
from ride_duration.model_file import load_model
from ride_duration.ride import Target, check_ride
from streaming.decide import Decider
from streaming.messages import (
    DEAD_LETTERS,
    DECISION,
    DECISIONS,
    PREDICTIONS,
    Event,
    Prediction,
    PredictionEvent,
    name_of,
)


def predicted(ride: int, target: Target, offset: int, at: float, partition: int = 0) -> Event:
    """A message of `predictions`."""
    value: dict[str, Any] = {f"ride_{target}": float(ride)}
    prediction = Prediction(ride, **value)
    message = PredictionEvent(name_of(target), f"{target}-1", prediction, msgspec.Raw(b"{}"))
    return Event(PREDICTIONS, partition, offset, msgspec.json.encode(message), str(ride).encode(), at)


def test_a_ride_is_decided_when_its_last_prediction_has_come() -> None:
    decider = Decider()
    first = decider.step([predicted(1, "fare", 10, 0), predicted(2, "tip", 11, 0), predicted(1, "duration", 12, 0)], {0}, 0)
    assert (first.outputs, dict(first.held)) == ([], {0: 10})
    then = decider.step([predicted(1, "tip", 13, 1)], {0}, 1)
    (output,) = then.outputs
    assert (output.topic, output.key, output.once, output.partition) == (DECISIONS, "1", f"{DECISION}:1", 0)
    assert msgspec.json.decode(output.value or b"") == {
        "ride_id": 1,
        "offer": {
            "duration": 1.0,
            "fare": 1.0,
            "tip": 1.0,
            "versions": {"duration": "duration-1", "fare": "fare-1", "tip": "tip-1"},
        },
        "missing": [],
    }
    assert dict(then.held) == {0: 11}
    assert decider.open == 1


def test_the_window_is_closed_by_message_time_and_when_nothing_comes() -> None:
    decider = Decider(window=10, idle=5)
    decider.step([predicted(1, "fare", 1, 100)], {0, 1}, 0)
    assert not decider.step([predicted(2, "tip", 2, 109)], {0, 1}, 1).outputs
    late = decider.step([predicted(3, "tip", 3, 110)], {0, 1}, 2)
    assert [output.key for output in late.outputs] == ["1"]
    assert msgspec.json.decode(late.outputs[0].value or b"")["missing"] == ["duration", "tip"]
    assert not silence(decider, {0, 1}, 2, 6.9)
    assert silence(decider, {0, 1}, 6.9, 7.1) == {"2", "3"}
    after = decider.step([predicted(1, "tip", 4, 111)], {0, 1}, 8)
    assert (after.outputs, after.outcomes, decider.open) == ([], {"late": 1, "incomplete": 0}, 0)


def test_rides_of_a_partition_that_another_worker_has_got_are_let_go() -> None:
    decider = Decider()
    decider.step([predicted(1, "fare", 1, 0), predicted(2, "fare", 1, 0, partition=1)], {0, 1}, 0)
    assert silence(decider, {1}, 0, 31) == {"2"}
    assert decider.open == 0


def test_its_own_pause_is_not_taken_for_the_streams_silence() -> None:
    decider = Decider(idle=5)
    decider.step([predicted(1, "fare", 1, 0)], {0}, 0)
    assert not decider.step([], {0}, 100).outputs  # it stood still: what has come meanwhile is still to be read
    assert silence(decider, {0}, 100, 104.9) == set()
    assert silence(decider, {0}, 104.9, 105.1) == {"1"}


def silence(decider: Decider, owned: set[int], start: float, end: float) -> set[str]:
    """The rides that are decided while nothing comes."""
    steps = np.linspace(start, end, 1 + math.ceil((end - start) / 0.2))
    return {output.key for now in steps for output in decider.step([], owned, float(now)).outputs}


def test_what_is_no_prediction_is_a_dead_letter() -> None:
    decider = Decider()
    events = [Event(PREDICTIONS, 0, n, value) for n, value in enumerate([b"x", None, b'{"model": "taxi"}', b"[" * 100_000])]
    other = msgspec.json.encode(PredictionEvent("taxi", "1", Prediction(1), msgspec.Raw(b"{}")))
    bare = other.replace(b"taxi", name_of("fare").encode())
    step = decider.step([*events, Event(PREDICTIONS, 0, 8, bare), Event(PREDICTIONS, 0, 9, other)], {0}, 0)
    assert [output.topic for output in step.outputs] == [DEAD_LETTERS] * 6
    assert "it has no ride_fare" in step.outputs[-2].headers["error"]
    assert "'taxi' is not a model" in step.outputs[-1].headers["error"]


def test_only_open_rides_are_held_in_memory() -> None:
    decider = Decider(window=10)
    for second in range(1000):
        decider.step([predicted(100 * second + n, "fare", 100 * second + n, second) for n in range(100)], {0}, second)
        assert decider.open <= 100 * 11


def decisions(url: str, count: int, seconds: float = 120) -> dict[Any, Any]:
    """Each ride's decision, of which there must be one."""
    with closing(Reader(url, DECISIONS)) as reader:
        found = [msgspec.json.decode(value or b"null") for value in reader.until(count, seconds, silence=1)]
    times = Counter(decision["ride_id"] for decision in found)
    lost, repeated = set(range(count)) - times.keys(), [ride for ride, number in times.items() if number > 1]
    assert (len(lost), len(repeated), len(found)) == (0, 0, count)
    return {decision["ride_id"]: decision for decision in found}


def test_three_models_answers_become_one_offer(stream: str) -> None:
    rides = made_up(300)
    publish(stream, rides)
    with ExitStack() as running:
        running.enter_context(consumers(stream))
        running.enter_context(service("decide", stream, "--window", "600", "--idle", "60"))
        found = decisions(stream, 300)
    models = {target: load_model(path) for target, path in MODELS.items()}
    for _, value in rides:
        event = msgspec.json.decode(value)
        ride, decision = check_ride(event["ride"]), found[event["ride_id"]]
        assert decision["missing"] == []
        assert decision["offer"]["versions"] == {target: model.version for target, model in models.items()}
        for target, model in models.items():
            assert decision["offer"][target] == pytest.approx(model.predict(ride), abs=1e-9)
        duration = models["duration"].predict(ride)
        assert decision["offer"]["interval"] == pytest.approx(models["duration"].interval(ride, duration), abs=1e-9)


def test_without_a_model_it_is_decided_all_the_same_and_what_comes_late_is_counted(stream: str) -> None:
    publish(stream, made_up(200))
    port = str(free_port())
    with ExitStack() as running:
        for target in ("duration", "fare"):
            running.enter_context(consumer(stream, "--model", MODELS[target]))
        with closing(Reader(stream, PREDICTIONS)) as reader:
            reader.until(400)
        running.enter_context(service("decide", stream, "--idle", "3", "--port", port))
        found = decisions(stream, 200)
        assert {tuple(decision["missing"]) for decision in found.values()} == {("tip",)}
        running.enter_context(consumer(stream, "--model", MODELS["tip"]))
        end = time.monotonic() + 60
        while 'outcome="late"} 200' not in (counts := requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text):
            assert time.monotonic() < end, counts
            time.sleep(0.2)
        assert 'outcome="incomplete"} 200' in counts
        assert len(decisions(stream, 200)) == 200


@pytest.mark.slow
def test_killed_eight_times_every_ride_is_decided_once(stream: str) -> None:
    count = 20_000
    publish(stream, made_up(count))
    options = ("--window", "600", "--idle", "30", "--batch", "200")
    with ExitStack() as running:
        running.enter_context(consumers(stream, "--batch", "100"))
        for attempt in range(8):
            with closing(Reader(stream, DECISIONS)) as reader, service("decide", stream, *options) as process:
                if attempt < 4:  # while it starts, and while it decides
                    reader.until(1 + attempt * 1500)
                time.sleep(0.15 * attempt)
                assert process.poll() is None
                process.kill()
        with service("decide", stream, *options):
            found = decisions(stream, count, seconds=200)
    assert {tuple(decision["missing"]) for decision in found.values()} == {()}


@pytest.mark.slow
def test_a_service_that_stood_still_while_another_took_over_decides_nothing_twice(stream: str) -> None:
    count = 10_000
    publish(stream, made_up(count))
    options = ("--window", "600", "--idle", "30", "--batch", "100")
    with ExitStack() as running:
        running.enter_context(consumers(stream, "--batch", "100"))
        still = running.enter_context(service("decide", stream, *options))
        with closing(Reader(stream, DECISIONS)) as reader:
            reader.until(1)
        stop(still, stream)
        running.enter_context(service("decide", stream, *options))
        with closing(Reader(stream, DECISIONS)) as reader:
            reader.until(count, seconds=150)
        still.send_signal(signal.SIGCONT)
        publish(stream, made_up(1_000, first=count))
        decisions(stream, count + 1_000, seconds=150)
