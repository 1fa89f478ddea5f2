"""The gate: what is good enough passes, and each kind of bad candidate is refused for what is bad about it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import train
from conftest import make_records
from registry.gate import Check, Limits, compare
from registry.promote import Refused, labelled
from ride_duration.model import Interval, LinearModel, Metadata
from ride_duration.model_file import load_model
from ride_duration.stores import open_rides
from training.evaluation import in_range
from training.fit import fit_course, linear_model
from training.records import Trips, read_trips

Coefficients = dict[str, float]


@pytest.fixture(scope="module")
def champion(records: Path, tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    path = tmp_path_factory.mktemp("gate") / "model.bin"
    result = CliRunner().invoke(train.main, ["--month", "2021-01", "--data", str(records), "--out", str(path)])
    assert result.exit_code == 0, result.output
    return load_model(path)


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Trips:
    path = make_records(tmp_path_factory.mktemp("gate") / "green_tripdata_2021-02.parquet", "2021-02", rows=8000, seed=7)
    trips = read_trips([path])[0]
    return trips.part(in_range(trips, "duration"))


def tokens(model: LinearModel) -> Coefficients:
    """The coefficients of a model, by token."""
    found: Coefficients = {}
    for groups in model._by_scale.values():
        for group, table, _ in groups:
            found |= {group.token(int(index)): float(table[index]) for index in np.flatnonzero(table)}
    return found


def changed(model: LinearModel, change: Callable[[Coefficients], None], intercept: float = 0.0, **facts: Any) -> LinearModel:
    coefficients = tokens(model)
    change(coefficients)
    assert model.metadata
    metadata: Metadata = msgspec.structs.replace(model.metadata, version="candidate", **facts)
    return LinearModel(model.intercept + intercept, coefficients, metadata)


def refused(checks: list[Check]) -> str:
    return "\n".join(check.reason() for check in checks if not check.passed)


def noise(coefficients: Coefficients) -> None:
    random = np.random.default_rng(1)
    for token in coefficients:
        coefficients[token] += random.normal(0, 1)


def early_hours(coefficients: Coefficients) -> None:
    for day in range(7):
        coefficients[f"hour_of_week={day * 24 + 3}"] = 9.0


def shorter(coefficients: Coefficients) -> None:
    coefficients["miles_over=2"] = coefficients.get("miles_over=2", 0.0) - 30


def timeless(coefficients: Coefficients) -> None:
    coefficients["hour_of_week=?"] = coefficients.get("hour_of_week=?", 0.0) + 9


def elsewhere(coefficients: Coefficients) -> None:
    coefficients["PULocationID=118"] = 1e8  # where no ride of the test begins


def nothing(_: Coefficients) -> None:
    pass


def test_the_champions_own_like_passes(champion: LinearModel, later: Trips) -> None:
    checks = compare(changed(champion, nothing), champion, later.rides, later.actual)
    assert refused(checks) == ""
    assert len(checks) == 13


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (noise, {}, "RMSE, minutes: "),
        (nothing, {"intercept": 1.5}, "bias, minutes: "),
        (nothing, {"interval": Interval(0.8, 5.0, (-0.01, 0.01), (-0.01, 0.01))}, "coverage off by: 0."),
        (nothing, {"interval": None}, "coverage off by: there is none"),
        (early_hours, {}, "RMSE in the worst slice, of the champion's (hour 03): "),
        (nothing, {"intercept": 45.0}, "golden rides, apart from the champion ("),
        (timeless, {}, "RMSE without time, minutes: "),
        (nothing, {"interval": Interval(0.8, 5.0, (-0.3, 0.3), (-1, 100))}, "coverage without time off by: 0.2"),
        (nothing, {"interval": Interval(0.999, 5.0, (-1, 100), (-1, 100))}, "coverage off by: 0.2"),
        (elsewhere, {"bounds": (1, 1e9)}, "minutes beyond 1 to 60, anywhere: "),
        (shorter, {}, "rides that get shorter with distance: "),
        (shorter, {}, "largest fall with distance, minutes: "),
    ],
)
def test_a_bad_candidate_is_refused_for_what_is_bad(
    champion: LinearModel, later: Trips, change: Callable[[Coefficients], None], options: dict[str, Any], reason: str
) -> None:
    checks = compare(changed(champion, change, **options), champion, later.rides, later.actual)
    assert reason in refused(checks)


def test_a_dear_or_a_large_one_is_refused(champion: LinearModel, later: Trips) -> None:
    limits = Limits(microseconds=0.01, megabytes=0.5)
    checks = compare(changed(champion, nothing), champion, later.rides, later.actual, (600_000, 400_000), limits)
    assert refused(checks).startswith("cost of a ride, CPU µs: ")
    assert refused(checks).endswith("size, MB: 0.6 is over 0.5; the champion's is 0.4")
    assert refused(checks).count("\n") == 1


def test_one_that_has_no_answer_for_some_rides_is_refused(champion: LinearModel, later: Trips, trips: Trips) -> None:
    course = linear_model(fit_course(trips))
    assert np.isnan(later.rides.trip_distance).any()
    reasons = refused(compare(course, champion, later.rides, later.actual))
    assert "rides without an answer: " in reasons
    assert "golden rides" in reasons
    assert refused(compare(champion, course, later.rides, later.actual)) == ""
    unknown = later.rides._replace(trip_distance=np.full_like(later.rides.trip_distance, np.nan))
    assert refused(compare(course, champion, unknown, later.actual)) == "rides that both answer: there is none"


def test_without_a_champion_it_must_beat_the_mean(champion: LinearModel, later: Trips) -> None:
    assert refused(compare(champion, None, later.rides, later.actual)) == ""
    assert "RMSE, minutes: " in refused(compare(changed(champion, noise, intercept=30), None, later.rides, later.actual))


def test_where_all_has_drifted_the_better_one_passes(champion: LinearModel, later: Trips) -> None:
    drifted = later.actual * 1.35
    better = changed(champion, nothing, intercept=2.0)
    checks = compare(better, champion, later.rides, drifted)
    bias = next(check for check in checks if check.name == "bias, minutes")
    assert bias.candidate
    assert bias.candidate > 0.5
    assert refused(checks) == ""
    assert "bias, minutes: " in refused(compare(champion, better, later.rides, drifted))


def test_only_labelled_rides_that_no_model_has_seen_count(records: Path) -> None:
    rides = open_rides(str(records / "green_tripdata_2021-02.parquet"), {})
    everything = labelled(rides, 60, None)
    assert len(everything.actual) > 3500
    assert everything.actual.max() <= 60  # a meter that was left running says nothing
    seen = datetime(2021, 2, 12)
    after = labelled(rides, 60, seen)
    assert after.first == seen + timedelta(seconds=1)
    assert 1000 < len(after.actual) < len(everything.actual)
    with pytest.raises(
        Refused, match=r"\d+ labelled rides .* the models have seen those until 2021-02-27 00:00:00, are too few"
    ):
        labelled(rides, 60, datetime(2021, 2, 27))
    with pytest.raises(Refused, match="are too few"):
        labelled(rides, 1, None)
    rides.close()


def test_a_clock_that_was_wrong_does_not_move_the_window(tmp_path: Path) -> None:
    path = make_records(tmp_path / "rides.parquet", "2021-02")
    table = pq.read_table(path)
    pickup = table["lpep_pickup_datetime"].to_numpy().copy()
    pickup[0] = np.datetime64("2041-06-01")
    pq.write_table(table.set_column(0, "lpep_pickup_datetime", pa.array(pickup)), path)
    rides = open_rides(str(path), {})
    with pytest.raises(Refused, match="--days and --until choose others"):
        labelled(rides, 28, None)
    assert len(labelled(rides, 28, None, datetime(2021, 3, 1)).actual) > 3500
    rides.close()
