import json
from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import rides
from ride_duration import ride as module
from ride_duration.ride import EXAMPLE, InvalidRide, NotJSON, Ride, check_ride, decode_rides

GOOD: dict[str, Any] = {"PULocationID": 130, "DOLocationID": 205, "trip_distance": 3.66}


def errors_of(value: object) -> list[tuple[str, str, int | None]]:
    with pytest.raises(InvalidRide) as caught:
        decode_rides(json.dumps(value).encode())
    return [(error.field, error.detail, error.index) for error in caught.value.errors]


def test_the_example_is_a_ride() -> None:
    assert decode_rides(json.dumps(EXAMPLE).encode()) == check_ride(EXAMPLE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("PULocationID", 0),
        ("PULocationID", 266),
        ("PULocationID", "130"),
        ("PULocationID", 130.5),
        ("PULocationID", True),
        ("PULocationID", None),
        ("DOLocationID", -1),
        ("DOLocationID", 9999),
        ("DOLocationID", [1]),
        ("DOLocationID", 10**30),
        ("trip_distance", -0.01),
        ("trip_distance", 200.01),
        ("trip_distance", "3.66"),
        ("trip_distance", False),
        ("trip_distance", 10**400),
        ("pickup_datetime", "2021-01-01"),
        ("pickup_datetime", "2021-01-01T24:00"),
        ("pickup_datetime", "2021-02-30T10:00"),
        ("pickup_datetime", "2008-12-31T23:59"),
        ("pickup_datetime", "2101-01-01T00:00"),
        ("pickup_datetime", "2101-01-01T12:00Z"),
        ("pickup_datetime", "0001-01-01T00:00+05:00"),
        ("pickup_datetime", "9999-12-31T23:59-05:00"),
        ("pickup_datetime", "yesterday"),
        ("pickup_datetime", 1609459200),
        ("ride_id", ""),
        ("ride_id", "x" * 65),
        ("ride_id", None),
        ("ride_id", 1.5),
        ("ride_id", True),
        ("ride_id", 2**63),
    ],
)
def test_a_value_outside_the_contract_is_refused_by_its_field_with_what_is_allowed_and_what_came(
    field: str, value: Any
) -> None:
    ((name, detail, index),) = errors_of(GOOD | {field: value})
    assert name == field
    assert module.FIELDS[field].allowed in detail
    assert "got" in detail
    assert index is None


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("PULocationID", 74.0, 74),
        ("trip_distance", 0, 0.0),
        ("trip_distance", 200, 200.0),
        ("trip_distance", None, None),
        ("pickup_datetime", None, None),
        ("pickup_datetime", "2021-01-01T00:15", datetime(2021, 1, 1, 0, 15)),
        ("pickup_datetime", "2021-01-01 00:15:30", datetime(2021, 1, 1, 0, 15, 30)),
        ("pickup_datetime", "2021-01-01T05:15Z", datetime(2021, 1, 1, 0, 15)),
        ("pickup_datetime", "2021-07-01T05:15:00+02:00", datetime(2021, 6, 30, 23, 15)),
        ("pickup_datetime", "2101-01-01T04:59Z", datetime(2100, 12, 31, 23, 59)),
        ("ride_id", "x" * 64, "x" * 64),
        ("ride_id", 7.0, 7),
        ("ride_id", -(2**63), -(2**63)),
    ],
)
def test_a_value_within_the_contract_is_read(field: str, value: Any, read: Any) -> None:
    ride = decode_rides(json.dumps(GOOD | {field: value}).encode())
    assert getattr(ride, field) == read


def test_every_error_of_a_ride_is_named() -> None:
    found = errors_of({"PULocationID": 0, "trip_distance": -1, "pickup_time": "2021-01-01T00:15"})
    assert [field for field, _, _ in found] == ["PULocationID", "DOLocationID", "trip_distance", "pickup_time"]
    assert "is missing" in found[1][1]
    assert "did you mean pickup_datetime?" in found[3][1]


def test_errors_of_an_array_carry_the_index_and_stop_at_twenty() -> None:
    found = errors_of([GOOD, *([GOOD | {"trip_distance": -1}] * 30)])
    assert [index for _, _, index in found] == list(range(1, 21))


@pytest.mark.parametrize("value", [[], [GOOD] * 10_001, 3, "ride", None, [[GOOD]]])
def test_what_is_not_a_ride_or_an_array_of_some_is_refused(value: Any) -> None:
    assert errors_of(value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ride",
        b"{",
        b"\xef\xbb\xbf{}",
        b"NaN",
        b'{"trip_distance": NaN}',
        b"[1,]",
        b"\xff",
        b"[" * 100_000,
        b'{"PULocationID":1,"DOLocationID":2,"trip_distance":1,"ride_id":"\xff"}',
        b'{"PULocationID":1,"DOLocationID":2,"trip_distance":1,"\xff":1}',
        b'"\\ud800"',
        b"1e999",
    ],
)
def test_what_is_not_json_is_refused_as_that(body: bytes) -> None:
    with pytest.raises(NotJSON):
        decode_rides(body)


field_values = (
    st.none()
    | st.booleans()
    | st.integers(-2, 270)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(1, 265).map(float)
    | st.text(max_size=70)
    | st.datetimes().map(datetime.isoformat)
    | st.datetimes(timezones=st.timezones()).map(lambda time: time.isoformat()[:25])
    | st.datetimes().map(lambda time: time.isoformat()[:16] + "Z")
    | st.lists(st.integers(), max_size=2)
)
objects = st.dictionaries(st.sampled_from([*module.FIELDS, "extra"]), field_values).map(lambda fields: GOOD | fields)


@given(objects | st.lists(objects, max_size=3))
@example(GOOD | {"pickup_datetime": "2021-01-01t00:15:00.9999999z"})
@example(GOOD | {"trip_distance": -0.0})
def test_the_fast_pass_is_a_subset_of_the_field_by_field_pass(value: Any) -> None:
    body = msgspec.json.encode(value)
    try:
        fast = module._decode(body)
    except msgspec.ValidationError:
        return
    assert module._decode_slowly(body) == fast


@given(rides)
def test_a_ride_survives_being_written_and_read(ride: Ride) -> None:
    assert decode_rides(msgspec.json.encode(ride)) == ride


@given(st.sampled_from([*module.FIELDS, "extra"]), st.binary(max_size=4))
def test_bytes_that_are_not_utf8_are_never_more_than_not_json(name: str, junk: bytes) -> None:
    body = b'{"PULocationID":1,"DOLocationID":2,"trip_distance":1,"%s":"%s"}' % (name.encode(), junk)
    try:
        decode_rides(body)
    except (NotJSON, InvalidRide) as error:
        assert str(error)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_a_ride_or_one_of_two_errors(body: bytes) -> None:
    try:
        decode_rides(body)
    except (NotJSON, InvalidRide) as error:
        assert str(error)
