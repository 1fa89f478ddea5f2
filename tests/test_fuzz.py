"""The service under callers who mean it no good, twenty thousand times: minutes, so `make test-slow` runs them."""

import json
import random
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

RIDE = {"PULocationID": 130, "DOLocationID": 205, "trip_distance": 3.66, "pickup_datetime": "2021-02-01T08:15", "ride_id": "r1"}
JSON = {"Content-Type": "application/json"}

BODIES = 20_000  # half of them mutations of good ones, half made by hypothesis
SESSION = requests.Session()

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
