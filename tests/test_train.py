import os
import pickle
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from sklearn.feature_extraction import DictVectorizer

import train
import training.records as records_module
from conftest import make_records, make_ride
from ride_duration.features import MODEL_GROUPS, features
from ride_duration.inputs import without_time
from ride_duration.model import LinearModel
from ride_duration.model_file import load_model
from ride_duration.ride import Target
from ride_duration.sanity import examine
from training.evaluation import ANY
from training.fit import Estimator, design, linear_model, vectorize
from training.records import Trips, read_trips

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


@pytest.mark.parametrize("target", ["fare", "tip"])
def test_other_targets_are_trained_alike(records: Path, tmp_path: Path, target: Target) -> None:
    result = run(records, tmp_path / "model.bin", *TESTED, "--target", target)
    assert result.exit_code == 0, result.output
    model = load_model(tmp_path / "model.bin", target)
    assert model.metadata
    assert model.metadata.metrics["model"]["rmse"] < model.metadata.metrics["mean"]["rmse"] / 2
    assert ("tip not recorded" in result.stdout) is (target == "tip")


def test_a_target_whose_columns_are_missing_is_refused(tmp_path: Path) -> None:
    path = make_records(tmp_path / "green_tripdata_2021-01.parquet", fare_amount=None)
    assert "lacks the columns fare_amount" in refusal(run(tmp_path, tmp_path / "model.bin", str(path), "--target", "fare"))


def test_more_trips_than_memory_should_hold_are_sampled_evenly_and_always_alike(records: Path) -> None:
    paths = sorted(records.glob("*.parquet"))
    everything, _ = read_trips(paths)
    sample, account = read_trips(paths, max_rows=1000)
    again, _ = read_trips(paths, max_rows=1000)
    assert len(sample.actual) == 1000
    assert account["left out of the sample"] == len(everything.actual) - 1000
    assert (sample.pickup == again.pickup).all()
    assert 400 < (sample.pickup.astype("datetime64[M]") == np.datetime64("2021-01")).sum() < 600
    assert set(sample.pickup.tolist()) <= set(everything.pickup.tolist())


def test_a_sample_never_holds_more_than_twice_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [make_records(tmp_path / f"green_tripdata_2021-{month:02}.parquet", f"2021-{month:02}") for month in range(1, 9)]
    seen: list[int] = []
    honest = records_module._sample

    def watched(held: Any, lots: Any, count: int) -> Any:
        seen.append(sum(map(len, lots)))
        return honest(held, lots, count)

    monkeypatch.setattr(records_module, "_sample", watched)
    sample, _ = read_trips(paths, max_rows=3000)
    assert len(sample.actual) == 3000
    assert max(seen) <= 2 * 3000 + 4000  # and the batch in hand


def test_the_interval_covers_about_what_it_says_on_later_rides(records: Path, tmp_path: Path) -> None:
    run(records, tmp_path / "model.bin", *TESTED)
    metadata = load_model(tmp_path / "model.bin").metadata
    assert metadata
    assert metadata.interval
    for name in ("model", "model, time unknown"):
        assert 0.76 < metadata.metrics[name]["coverage"] < 0.84


def test_a_fitted_model_is_sane(estimator: Estimator, trips: Trips) -> None:
    sanity = examine(linear_model(estimator, "duration"), trips.rides)
    assert sanity.faults() == []


def test_an_insane_model_is_told(estimator: Estimator, trips: Trips) -> None:
    faults = examine(linear_model(estimator), trips.rides).faults()
    assert any("predictions go from" in fault for fault in faults)  # it has no bounds
    vectorizer, ridge = pickle.loads(pickle.dumps(estimator))
    ridge.coef_[vectorizer.vocabulary_["miles_over=3"]] -= 10
    faults = examine(linear_model((vectorizer, ridge)), trips.rides).faults()
    assert any("get shorter with distance" in fault for fault in faults)


def test_the_report_is_one_page_with_plots_and_nothing_from_elsewhere(records: Path, tmp_path: Path) -> None:
    result = run(records, tmp_path / "model.bin", *TESTED, "--report", str(tmp_path / "report.html"))
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 6
    for words in ("LightGBM with geography", "median of the zone pair", "Worst zone pairs", "rows read", "model: airports"):
        assert words in page
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    again = run(records, tmp_path / "model.bin", *TESTED, "--report", str(tmp_path / "again.html"))
    assert again.exit_code == 0
    assert "What changed" in (tmp_path / "again.html").read_text()
    assert "LightGBM" not in "".join(load_model(tmp_path / "model.bin").metadata.metrics)  # type: ignore[union-attr]


def test_an_interrupted_training_leaves_the_old_file_and_nothing_beside_it(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.bin").write_bytes(b"old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)  # the worst moment: all is written, nothing is renamed
    result = run(records, tmp_path / "model.bin", *JANUARY)
    assert result.exit_code == 1
    assert "Aborted" in result.output
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.bin", b"old")]


def test_help_shows_how_to_train() -> None:
    assert "--test-month 2021-02" in CliRunner().invoke(train.main, ["--help"]).output


def test_too_few_rides_are_refused(tmp_path: Path) -> None:
    path = make_records(tmp_path / "few.parquet", rows=50)
    assert "too few to train on" in refusal(run(tmp_path, tmp_path / "model.bin", str(path)))
    assert not (tmp_path / "model.bin").exists()


def test_final_without_a_test_is_refused(records: Path, tmp_path: Path) -> None:
    assert "--final" in refusal(run(records, tmp_path / "model.bin", *JANUARY, "--final"))


def test_rides_of_years_that_no_ride_may_have_are_dropped(tmp_path: Path) -> None:
    old = make_records(tmp_path / "old.parquet", "2006-01", rows=300)
    new = make_records(tmp_path / "new.parquet", "2021-01")
    result = run(tmp_path, tmp_path / "model.bin", str(old), str(new))
    assert result.exit_code == 0, result.output
    assert "-300 pickup outside 2009 to 2100" in result.stdout
    assert "nothing is left" in refusal(run(tmp_path, tmp_path / "model.bin", str(old)))
