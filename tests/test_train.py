import pickle
import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from sklearn.feature_extraction import DictVectorizer

import train
from conftest import make_records, make_ride
from ride_duration.features import MODEL_GROUPS, features
from ride_duration.model import LinearModel
from ride_duration.model_file import load_model
from training.evaluation import ANY
from training.fit import Estimator, design, linear_model, vectorize, without_time
from training.records import Trips

JANUARY = ["--month", "2021-01"]
TESTED = [*JANUARY, "--test-month", "2021-02"]


def run(data: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(train.main, [*options, "--data", str(data), "--out", str(out)])


def refusal(result: Result) -> str:
    """The message of a run that refused its input: exit code 2, no trace."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


def test_a_month_becomes_a_model_that_beats_its_baselines(records: Path, tmp_path: Path) -> None:
    result = run(records, tmp_path / "model.bin", *TESTED)
    assert result.exit_code == 0, result.output
    model = load_model(tmp_path / "model.bin", "duration")
    assert model.metadata
    assert model.metadata.trained_on == model.metadata.metrics_trained_on == ["2021-01"]
    assert model.metadata.tested_on == ["2021-02"]
    rmse = {name: row["rmse"] for name, row in model.metadata.metrics.items()}
    assert rmse["model"] < rmse["model, time unknown"] < min(rmse["course"], rmse["mean"])
    assert {f"{name}{ANY}duration" for name in ("model", "course", "mean")} < rmse.keys()


def test_the_account_adds_up(records: Path, tmp_path: Path) -> None:
    output = run(records, tmp_path / "model.bin", *TESTED).stdout
    for part in re.split(r"(?=test:)", output.partition("errors:")[0]):
        read, *dropped, kept = (int(number.replace(",", "")) for number in re.findall(r"^ +(-?[\d,]+) ", part, re.MULTILINE))
        assert read == 4000
        assert all(number < 0 for number in dropped)
        assert read + sum(dropped) == kept


def test_final_fits_on_all_months_and_keeps_the_tests_figures(records: Path, tmp_path: Path) -> None:
    run(records, tmp_path / "one.bin", *TESTED)
    result = run(records, tmp_path / "both.bin", *TESTED, "--final")
    one, both = (load_model(tmp_path / name).metadata for name in ("one.bin", "both.bin"))
    assert one
    assert both
    assert both.trained_on == ["2021-01", "2021-02"]
    assert both.metrics_trained_on == ["2021-01"]
    assert both.metrics == one.metrics
    assert both.rows > 1.9 * one.rows
    assert "errors: trained on 2021-01, tested on 2021-02" in result.output
    assert "trained on 2021-01..2021-02" in result.output


def test_the_same_records_and_options_give_the_same_bytes(records: Path, tmp_path: Path) -> None:
    for name in ("first.bin", "second.bin"):
        run(records, tmp_path / name, *TESTED)
    assert (tmp_path / "first.bin").read_bytes() == (tmp_path / "second.bin").read_bytes()


def test_the_vectorizer_is_what_fitting_on_every_rides_dict_would_give(trips: Trips) -> None:
    few = trips.part(slice(300))
    x = design(few.rides, MODEL_GROUPS)
    vectorizer, order = vectorize(x, MODEL_GROUPS, 1)
    dicts = []
    for pickup, dropoff, miles, hour in zip(*few.rides, strict=True):
        monday = datetime(2021, 1, 4) + timedelta(hours=int(hour))
        ride = make_ride(int(pickup), int(dropoff), None if np.isnan(miles) else float(miles), monday)
        dicts.append({name: value for name, value in features(ride, MODEL_GROUPS).items() if value})
    theirs = DictVectorizer()
    expected = theirs.fit_transform(dicts)
    assert theirs.feature_names_ == vectorizer.feature_names_
    assert abs(expected - x[:, order]).max() < 1e-12


def test_a_rides_time_left_out_averages_rather_than_shifts(estimator: Estimator, trips: Trips) -> None:
    model: LinearModel = linear_model(estimator)
    with_time, without = model.linear_columns(trips.rides), model.linear_columns(without_time(trips.rides))
    assert abs(float((without - with_time).mean())) < 0.25


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nothing to train on"),
        (["nowhere/*.parquet"], "no such file"),
        (["--month", "2021-1"], "a month is written like 2021-01"),
        ([*JANUARY, "--test-month", "2021-01"], "later months"),
        (["--month", "2021-02", "--test-month", "2021-01"], "later months"),
    ],
)
def test_options_that_can_not_be_trained_on_are_refused(records: Path, tmp_path: Path, options: list[str], words: str) -> None:
    assert words in refusal(run(records, tmp_path / "model.bin", *options))
    assert list(tmp_path.iterdir()) == []


def test_records_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    path = make_records(tmp_path / "green_tripdata_2020-05.parquet", "2021-01")
    assert "nothing is left" in refusal(run(tmp_path, tmp_path / "model.bin", str(path)))


def test_a_file_that_can_not_be_written_is_refused_and_the_old_one_stays(records: Path, tmp_path: Path) -> None:
    assert refusal(run(records, tmp_path / "no" / "folder" / "model.bin", *JANUARY))


def test_files_and_globs_train_as_months_do(records: Path, tmp_path: Path) -> None:
    run(records, tmp_path / "months.bin", *TESTED)
    result = run(records, tmp_path / "files.bin", f"{records}/*-01.parquet", "--test", f"{records}/*-02.parquet")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "months.bin").read_bytes() == (tmp_path / "files.bin").read_bytes()


def test_the_regression_takes_the_dicts_as_they_are(estimator: Estimator, trips: Trips) -> None:
    """The weights of the penalty are in the coefficients, not left for the user to apply."""
    vectorizer, ridge = pickle.loads(pickle.dumps(estimator))
    predicted = ridge.predict(design(trips.rides, MODEL_GROUPS)[:, place_of(vectorizer)])
    rmse = float(np.sqrt(((predicted - trips.actual) ** 2).mean()))
    assert rmse < 4


def place_of(vectorizer: DictVectorizer) -> list[int]:
    first = np.cumsum([0, *(group.size for group in MODEL_GROUPS)])
    places = []
    for token in vectorizer.feature_names_:
        name, _, suffix = token.partition("=")
        number = next(n for n, group in enumerate(MODEL_GROUPS) if group.name == name)
        places.append(int(first[number]) + (MODEL_GROUPS[number].index(suffix) or 0))
    return places
