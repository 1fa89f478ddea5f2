import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import rides
from ride_duration import zones
from ride_duration.features import GROUP, GROUPS, Group, features
from ride_duration.inputs import Columns, hours_of_week, inputs_of_columns, inputs_of_ride
from ride_duration.ride import Ride


@given(st.lists(rides, min_size=1, max_size=8))
def test_columns_give_the_features_of_each_ride(many: list[Ride]) -> None:
    inputs = inputs_of_columns(Columns.of(many))
    for group in GROUPS:
        columns = [(np.broadcast_to(i, len(many)), np.broadcast_to(v, len(many))) for i, v in group.of_columns(inputs)]
        for row, ride in enumerate(many):
            of_columns = {int(i[row]): float(v[row]) for i, v in columns if v[row]}
            of_ride = {i: v for i, v in group.of_ride(inputs_of_ride(ride)) if v}
            assert of_columns == pytest.approx(of_ride, nan_ok=True)


@given(st.sampled_from(GROUPS), st.data())
def test_a_token_names_one_feature(group: Group, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, group.size - 1))
    name, _, suffix = group.token(index).partition("=")
    assert (name, group.index(suffix)) == (group.name, index)


def test_the_courses_features_are_spelled_as_the_course_spells_them() -> None:
    ride = Ride(PULocationID=130, DOLocationID=205, trip_distance=120)
    names = ["PU_DO", "PULocationID", "DOLocationID", "PUlocationID", "DOlocationID", "trip_distance"]
    assert features(ride, [GROUP[name] for name in names]) == {
        "PU_DO=130_205": 1,
        "PULocationID=130": 1,
        "DOLocationID=205": 1,
        "PUlocationID=130": 1,
        "DOlocationID=205": 1,
        "trip_distance": 120,
    }


@pytest.mark.parametrize(
    ("time", "hour"),
    [("2021-02-01T00:59", 0), ("2021-02-01T08:15", 8), ("2021-02-07T23:59", 167), ("1969-12-29T00:00", 0), ("NaT", 168)],
)
def test_hours_count_from_monday_midnight(time: str, hour: int) -> None:
    assert hours_of_week(np.array([time], "datetime64[us]")).tolist() == [hour]


def test_an_unknown_distance_is_the_road_between_the_zones() -> None:
    known, unknown, zero = (inputs_of_ride(Ride(PULocationID=132, DOLocationID=230, trip_distance=d)) for d in (5, None, 0))
    assert known.miles == 5
    assert 12 < unknown.miles == zero.miles < 19  # JFK to Times Square: 15 to 18 by road
    assert unknown.detour == pytest.approx(zones.ROAD_FACTOR)


def test_the_zone_table_is_whole_and_every_pair_has_a_distance() -> None:
    assert sorted(zones.ZONES) == list(range(1, 266))
    assert [zone.zone_id for zone in zones.ZONES.values() if zone.latitude is None] == [264, 265]
    assert zones.ZONES[132].name == "JFK Airport"
    table = zones.STRAIGHT_MILES[1:, 1:]
    assert (table == table.T).all()
    assert table.min() == zones.SAME_ZONE_MILES
    assert 30 < table.max() < 45
