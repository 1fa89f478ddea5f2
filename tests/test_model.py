import pickle
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, Ridge
from sklearn.pipeline import make_pipeline

from conftest import make_ride, miles, rides
from conftest import zones as any_zone
from ride_duration.explanation import explain
from ride_duration.features import features
from ride_duration.inputs import Columns
from ride_duration.model import LinearModel
from ride_duration.model_file import load_model, parse_model
from ride_duration.ride import InvalidRide
from ride_duration.ride import Ride as TaxiRide
from training.fit import Estimator, fit_course
from training.records import Trips

SEEN = [41, 42, 43, 74, 75, 95, 129, 130, 166, 181, 205, 236, 264, 265]

course_rides = st.builds(make_ride, any_zone | st.sampled_from(SEEN), st.sampled_from(SEEN), st.floats(0, 200), st.none())


def assert_both_scorers_agree_with_scikit_learn(model: LinearModel, many: list[TaxiRide], expected: Any) -> None:
    assert [model.linear(ride) for ride in many] == pytest.approx(expected, abs=1e-9)
    assert model.linear_columns(Columns.of(many)) == pytest.approx(expected, abs=1e-9)


@pytest.fixture(scope="module")
def model(estimator: Estimator) -> LinearModel:
    return parse_model(pickle.dumps(estimator))


@given(many=st.lists(rides, min_size=1, max_size=20))
def test_our_model_scores_as_scikit_learn_does(estimator: Estimator, model: LinearModel, many: list[TaxiRide]) -> None:
    vectorizer, ridge = estimator
    expected = ridge.predict(vectorizer.transform([features(ride) for ride in many]))
    assert_both_scorers_agree_with_scikit_learn(model, many, expected)


def pair(ride: TaxiRide) -> dict[str, Any]:
    return {"PU_DO": f"{ride.PULocationID}_{ride.DOLocationID}", "trip_distance": ride.trip_distance}


def separate(ride: TaxiRide) -> dict[str, Any]:
    return {"PULocationID": str(ride.PULocationID), "DOLocationID": str(ride.DOLocationID), "trip_distance": ride.trip_distance}


def homework(ride: TaxiRide) -> dict[str, Any]:
    # its records have zones that are missing, filled with -1
    return {
        name: str(-1 if zone == 264 else zone)
        for name, zone in (("PUlocationID", ride.PULocationID), ("DOlocationID", ride.DOLocationID))
    }


def as_floats(ride: TaxiRide) -> dict[str, Any]:
    return {"PULocationID": str(float(ride.PULocationID)), "DOLocationID": str(float(ride.DOLocationID))}


KINDS = {
    f"{course.__name__}-{type(regression).__name__}": (course, regression)
    for course in (pair, separate, homework, as_floats)
    for regression in (LinearRegression(), Ridge(0.1), Lasso(0.01), ElasticNet(0.01))
}


@pytest.fixture(scope="module", params=list(KINDS.values()), ids=list(KINDS))
def course(request: pytest.FixtureRequest, trips: Trips) -> tuple[Callable[[TaxiRide], dict[str, Any]], Any, Any]:
    to_dict, regression = request.param
    recorded = [
        make_ride(int(p), int(d), float(m), None)
        for p, d, m in zip(
            trips.rides.PULocationID, trips.rides.DOLocationID, np.nan_to_num(trips.recorded_distance), strict=True
        )
    ][:1500]
    vectorizer = DictVectorizer()
    x = vectorizer.fit_transform([to_dict(ride) for ride in recorded]).astype(np.float64)
    x.indices, x.indptr = x.indices.astype(np.int32), x.indptr.astype(np.int32)
    return to_dict, vectorizer, regression.fit(x, trips.actual[:1500])


@given(many=st.lists(course_rides, min_size=1, max_size=10))
def test_the_courses_models_are_served_unchanged(course: Any, many: list[TaxiRide]) -> None:
    to_dict, vectorizer, regression = course
    known = [ride for ride in many if to_dict is not homework or 264 not in (ride.PULocationID, ride.DOLocationID)]
    if known:
        model = parse_model(pickle.dumps((vectorizer, regression)))
        assert model.metadata is None
        assert_both_scorers_agree_with_scikit_learn(
            model, known, regression.predict(vectorizer.transform([to_dict(ride) for ride in known]))
        )


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "wrap", [lambda *pair: pair, make_pipeline, lambda *pair: list(pair)], ids=["pair", "pipeline", "list"]
)
def test_every_way_to_pickle_the_two_is_read(estimator: Estimator, wrap: Any, protocol: int) -> None:
    data = pickle.dumps(wrap(*estimator), protocol=protocol)
    assert parse_model(data).coefficients == len(estimator[0].vocabulary_)


def test_a_model_of_raw_distance_alone_has_no_answer_for_an_unknown_one(trips: Trips) -> None:
    model = parse_model(pickle.dumps(fit_course(trips)))
    known, unknown = make_ride(41, 42, 0.0, None), make_ride(41, 42, None, None)
    assert model.needs_distance
    assert np.isfinite(model.predict(known))
    with pytest.raises(InvalidRide, match="trip_distance"):
        model.predict(unknown)
    with pytest.raises(InvalidRide) as caught:
        model.predict_columns(Columns.of([known, unknown]))
    assert caught.value.errors[0].index == 1


@pytest.fixture(scope="module")
def shipped() -> LinearModel:
    return load_model("model.bin", "duration")


@given(many=st.lists(rides, min_size=1, max_size=20))
def test_the_shipped_model_holds_its_bounds_in_both_scorers(shipped: LinearModel, many: list[TaxiRide]) -> None:
    assert shipped.metadata
    low, high = shipped.metadata.bounds
    one_by_one = [shipped.predict(ride) for ride in many]
    assert all(low <= value <= high for value in one_by_one)
    assert shipped.predict_columns(Columns.of(many)) == pytest.approx(one_by_one, abs=1e-9)


@given(ride=st.builds(make_ride, any_zone, any_zone, miles, st.none()), over=st.floats(50, 200))
def test_beyond_fifty_miles_every_distance_is_scored_as_fifty(shipped: LinearModel, ride: TaxiRide, over: float) -> None:
    ride.trip_distance = 50
    at_fifty = shipped.predict(ride)
    ride.trip_distance = over
    assert shipped.predict(ride) == at_fifty


def test_blocks_of_columns_join_without_a_seam(model: LinearModel) -> None:
    many = [make_ride(41 + row % 3, 42, 1 + row / 1e4, None) for row in range(40_000)]
    values = model.predict_columns(Columns.of(many))
    assert values[::1111] == pytest.approx([model.predict(ride) for ride in many[::1111]], abs=1e-9)


@given(many=st.lists(rides, min_size=1, max_size=20))
def test_an_interval_holds_its_prediction_and_is_the_same_in_columns(shipped: LinearModel, many: list[TaxiRide]) -> None:
    columns = Columns.of(many)
    predictions = shipped.predict_columns(columns)
    one_by_one = [shipped.interval(ride, shipped.predict(ride)) for ride in many]
    assert all(1 <= low <= value <= high for (low, high), value in zip(one_by_one, predictions, strict=True))
    assert np.column_stack(shipped.interval_columns(columns, predictions)) == pytest.approx(np.array(one_by_one), abs=1e-9)


@given(ride=rides)
def test_an_explanation_adds_up_to_the_prediction_largest_part_first(shipped: LinearModel, ride: TaxiRide) -> None:
    parts = explain(shipped, ride)
    minutes = [part.minutes for part in parts]
    assert sum(minutes) == pytest.approx(shipped.predict(ride), abs=1e-9)
    assert sorted(minutes, key=abs, reverse=True) == minutes
    for part in parts:
        assert part.minutes == pytest.approx(part.value * part.coefficient, abs=1e-9)


def test_an_explanation_is_in_words_that_a_person_reads(shipped: LinearModel) -> None:
    ride = make_ride(239, 132, 9.0, datetime(2021, 2, 1, 17, 30))
    words = [part.feature for part in explain(shipped, ride)]
    assert "Upper West Side South → JFK Airport" in words or "from Upper West Side South" in words
    assert "9 miles" in words
    assert "Monday 17:00, 9 miles" in words
    unknown = [part.feature for part in explain(shipped, make_ride(239, 132, None, None))]
    assert any("miles by the map" in part for part in unknown)
    assert len(words) == len(set(words))


def test_a_prediction_that_is_held_within_bounds_says_so(shipped: LinearModel) -> None:
    held = explain(shipped, make_ride(41, 42, 200, None))
    assert "held within what rides can last" in [part.feature for part in held]


def test_no_ride_is_faster_than_the_floor(shipped: LinearModel) -> None:
    for far in (20.0, 40.0, 50.0, 200.0):
        assert shipped.predict(make_ride(74, 75, far, None)) >= 0.8 * min(far, 50)
