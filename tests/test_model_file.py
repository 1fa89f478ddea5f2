"""Model files that must not be served: each refused with one line, nothing executed, in bounded time and memory."""

import math
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline

from conftest import PROJECT
from ride_duration.model import ModelError
from ride_duration.model_file import MAX_BYTES, load_model, parse_model
from training.fit import Estimator

CANARY = "ride-duration-canary"


class Calls:
    """Pickles as a call of a function that a pickle must not call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.made = function, args

    def __reduce__(self) -> Any:
        return self.made


def op(code: str, text: str) -> bytes:
    return code.encode() + text.encode() + b"\n"


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def named(module: str, name: str) -> bytes:
    return short(module) + short(name) + b"\x93"


def nested_tuples(depth: int) -> bytes:
    """(((…), (…)), …) with 2**depth leaves, in 4 bytes a level."""
    return b")" + b"".join(b"\x94h" + bytes([level]) + b"\x86" for level in range(depth))


P = b"\x80\x04"
RIDGE = named("sklearn.linear_model._ridge", "Ridge")
DV = named("sklearn.feature_extraction._dict_vectorizer", "DictVectorizer")
SHELL = f"touch {CANARY}"

HOSTILE: dict[str, bytes] = {
    "reduce to os.system": pickle.dumps(Calls(os.system, SHELL)),
    "reduce to eval": pickle.dumps(Calls(eval, f"open({CANARY!r}, 'w')")),
    "reduce to exec": pickle.dumps(Calls(exec, f"open({CANARY!r}, 'w')")),
    "reduce to open": pickle.dumps(Calls(open, CANARY, "w")),
    "reduce to importlib": P + named("importlib", "import_module") + short("antigravity") + b"\x85R.",
    "reduce to subprocess": pickle.dumps(Calls(subprocess.check_output, ["touch", CANARY])),
    "reduce to getattr": P + named("builtins", "getattr") + named("os", "system") + short("__call__") + b"\x86R.",
    "dotted name": P + named("sklearn.linear_model._ridge", "numbers.sys.modules") + b".",
    "name below an allowed class": P + named("sklearn.linear_model._ridge", "Ridge.__init__.__globals__") + b".",
    "numpy's own loader": P + named("numpy", "load") + short("/etc/passwd") + b"\x85R.",
    "old GLOBAL": b"\x80\x02" + b"cos\nsystem\n(" + short(SHELL) + b"tR.",
    "INST": b"(S'" + SHELL.encode() + b"'\nios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\n" + short(SHELL) + b"o.",
    "object array with a call inside": pickle.dumps((DictVectorizer(), np.array([Calls(os.system, SHELL)], dtype=object))),
    "BUILD with __setstate__": P
    + RIDGE
    + b")\x81}"
    + short("__setstate__")
    + named("os", "system")
    + b"sb"
    + short(SHELL)
    + b"b.",
    "BUILD of a class": P + RIDGE + b"}" + short("predict") + short("x") + b"sb.",
    "call of a call's result": P + RIDGE + b")R)R.",
    "class of copyreg": P + named("copyreg", "_reconstructor") + RIDGE + named("builtins", "object") + b"N\x87R.",
    "NEWOBJ_EX": P + RIDGE + b")}\x92.",
    "persistent id": b"\x80\x04Pfile\n.",
    "extension code": b"\x80\x04\x82\x01.",
    "memo index of 200 million": b"\x80\x04Nr" + struct.pack("<I", 200_000_000) + b".",
    "text memo index": b"\x80\x04Np200000000000\n.",
    "string that says 4 EiB": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "bytes that say 2 GiB": b"\x80\x04B" + struct.pack("<I", 2**31) + b"x.",
    "bytearray that says 1 TiB": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "frame that says 1 EiB": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "long of 2 GiB": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
    "decimal of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "tuple that hashes for ever": P + b"}" + nested_tuples(60) + b"Ns.",
    "pair of tuples that compare for ever": P + nested_tuples(60) + nested_tuples(60) + b"\x86.",
    "lists nested 900,000 deep": P + b"]" * 450_000 + b"a" * 449_999 + b".",
    "millions of dicts": P + b"}" * (MAX_BYTES - 3) + b".",
    "list that holds itself, as metadata": P + DV + b")\x81}b" + RIDGE + b")\x81}" + short("metadata_") + b"]\x94h\x00asb\x86.",
    "list that holds itself, as steps": P
    + named("sklearn.pipeline", "Pipeline")
    + b")\x81}"
    + short("steps")
    + b"]\x94h\x00asb.",
    "unknown opcode": P + b"\xff.",
    "stack underflow": P + b"\x86.",
    "no mark": P + b"NNt.",
    "two pickles": pickle.dumps(1) + pickle.dumps(2),
    "nothing on the stack": P + b".",
    "a mark left": P + b"(.",
    "a string": pickle.dumps("model"),
    "not a pickle": b"PK\x03\x04" + bytes(100),
    "empty": b"",
    "larger than the limit": b"\x80\x04N." + bytes(MAX_BYTES),
}

IN_A_SMALL_PROCESS = """
import resource, sys, time
from ride_duration.model_file import load_model
from ride_duration.model import ModelError
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for path in sys.argv[1:]:
    began = time.process_time()
    try:
        load_model(path)
        print("SERVED")
    except ModelError as error:
        assert time.process_time() - began < 10, path
        print(error)
"""


def test_hostile_files_are_refused_in_a_line_with_nothing_executed_in_bounded_time_and_memory(tmp_path: Path) -> None:
    paths = []
    for number, data in enumerate(HOSTILE.values()):
        paths.append(tmp_path / f"{number}.bin")
        paths[-1].write_bytes(data)
    run = subprocess.run(
        [sys.executable, "-c", IN_A_SMALL_PROCESS, *paths],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    answers = run.stdout.splitlines()
    assert len(answers) == len(HOSTILE) >= 20
    for kind, path, answer in zip(HOSTILE, paths, answers, strict=True):
        assert answer.startswith(f"{path}: "), (kind, answer)
    assert not (tmp_path / CANARY).exists()


def test_python_itself_would_have_executed_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE["reduce to os.system"])
    assert (tmp_path / CANARY).exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(estimator: Estimator, share: float) -> None:
    data = pickle.dumps(estimator)
    with pytest.raises(ModelError, match="cut short"):
        parse_model(data[: int(len(data) * share)])


def fitted(regression: Any, dicts: Any = ({"PU_DO": "1_2"}, {"PU_DO": "2_1"})) -> tuple[DictVectorizer, Any]:
    vectorizer = DictVectorizer(sparse=False)
    return vectorizer, regression.fit(vectorizer.fit_transform(dicts), [10.0, 20.0])


def with_coefficient(value: float) -> Any:
    pair = fitted(Ridge())
    pair[1].coef_[0] = value
    return pair


def with_metadata(**changes: Any) -> Callable[[Estimator], Any]:
    def change(estimator: Estimator) -> Any:
        vectorizer, ridge = pickle.loads(pickle.dumps(estimator))
        ridge.metadata_ = {
            "version": "1",
            "target": "duration",
            "trained_on": [],
            "rows": 0,
            "metrics": {},
            "metrics_trained_on": [],
            "tested_on": [],
            "bounds": [1, 60],
            "golden": [],
            "libraries": {},
        } | changes
        return vectorizer, ridge

    return change


def table(**changes: Any) -> dict[str, Any]:
    return {"level": 0.8, "offset": 4.0, "time_known": [-0.2, 0.3], "time_unknown": [-0.2, 0.3]} | changes


def with_intercept(value: Any) -> Any:
    pair = fitted(Ridge())
    pair[1].intercept_ = value
    return pair


def golden_without_distance(estimator: Estimator) -> Any:
    metadata = with_metadata(golden=[{"ride": RIDE | {"trip_distance": None}, "prediction": 1.0}])(estimator)[1].metadata_
    vectorizer, ridge = fitted(Ridge(), [{"trip_distance": 1.0}, {"trip_distance": 2.0}])
    ridge.metadata_ = metadata
    return vectorizer, ridge


def truncated(estimator: Estimator) -> Any:
    vectorizer, ridge = pickle.loads(pickle.dumps(estimator))
    ridge.coef_ = ridge.coef_[:-1]
    return vectorizer, ridge


RIDE = {"PULocationID": 41, "DOLocationID": 42, "trip_distance": 2.0}

UNFIT: dict[str, tuple[Callable[[Estimator], Any], str]] = {
    "gradient boosting": (lambda _: fitted(GradientBoostingRegressor()), "GradientBoostingRegressor"),
    "random forest": (lambda _: fitted(RandomForestRegressor()), "RandomForestRegressor"),
    "forest in a pipeline": (lambda _: make_pipeline(*fitted(RandomForestRegressor())), "RandomForestRegressor"),
    "one step": (lambda _: make_pipeline(fitted(Ridge())[1]), "not a pair"),
    "swapped": (lambda e: (e[1], e[0]), "not a pair"),
    "not fitted": (lambda _: (DictVectorizer(), Ridge()), "not fitted"),
    "regression not fitted": (lambda _: (fitted(Ridge())[0], Ridge()), "not fitted"),
    "too few coefficients": (truncated, "coefficients for"),
    "two targets": (
        lambda _: (lambda v: (v, Ridge().fit([[0, 1], [1, 0]], [[1, 2], [3, 4]])))(fitted(Ridge())[0]),
        "4 coefficients for 2",
    ),
    "NaN": (lambda _: with_coefficient(math.nan), "not finite"),
    "infinity": (lambda _: with_coefficient(-math.inf), "not finite"),
    "a feature no ride has": (lambda _: fitted(LinearRegression(), [{"fare_amount": 3}, {"fare_amount": 9}]), "'fare_amount'"),
    "zones as numbers": (lambda _: fitted(LinearRegression(), [{"PULocationID": 3}, {"PULocationID": 9}]), "'PULocationID'"),
    "distance as text": (
        lambda _: fitted(LinearRegression(), [{"trip_distance": "3"}, {"trip_distance": "9"}]),
        "'trip_distance=",
    ),
    "zones by name": (
        lambda _: fitted(LinearRegression(), [{"PULocationID": "JFK"}, {"PULocationID": "LGA"}]),
        "none of its values",
    ),
    "a node of another version": (
        lambda _: fitted(LinearRegression(), [{"miles_over=7": 1.0}, {"miles_over=9": 1.0}]),
        "miles_over=7",
    ),
    "two spellings": (
        lambda _: fitted(LinearRegression(), [{"PULocationID": "41"}, {"PULocationID": "41.0"}]),
        "two spellings",
    ),
    "another separator": (lambda _: (DictVectorizer(separator=":").fit([{"PU_DO": "1_2"}]), fitted(Ridge())[1]), "separator"),
    "another target": (with_metadata(target="fare"), "predicts fare"),
    "a target nobody knows": (with_metadata(target="price"), "metadata_"),
    "bounds out of order": (with_metadata(bounds=[60, 1]), "bounds"),
    "bounds that are not numbers": (with_metadata(bounds=[1, math.nan]), "bounds"),
    "a golden ride that is answered otherwise": (with_metadata(golden=[{"ride": RIDE, "prediction": 1.5}]), "golden ride 1"),
    "a golden ride that is none": (with_metadata(golden=[{"ride": {"PULocationID": 0}, "prediction": 1.5}]), "metadata_"),
    "an intercept of 600 digits": (lambda _: with_intercept(2**2000), "an intercept"),
    "numbers whose sum overflows": (lambda _: with_coefficient(1e308), "not finite"),
    "an interval upside down": (with_metadata(interval=table(offset=-1000.0)), "interval"),
    "an interval of NaN": (with_metadata(interval=table(offset=math.nan)), "interval"),
    "an interval that leaves its prediction out": (with_metadata(interval=table(time_known=[0.1, 0.2])), "interval"),
    "a golden ride that the model has no answer for": (golden_without_distance, "golden ride 1"),
    "a version as long as a book": (with_metadata(version="1" * 1000), "metadata_"),
    "metadata that is none": (with_metadata(rows="many"), "metadata_"),
}


@pytest.mark.parametrize(("make", "reason"), UNFIT.values(), ids=UNFIT)
def test_a_model_that_would_answer_wrongly_is_refused_with_the_reason(
    estimator: Estimator, make: Callable[[Estimator], Any], reason: str
) -> None:
    with pytest.raises(ModelError) as caught:
        parse_model(pickle.dumps(make(estimator)), "duration")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["missing.bin", ".", "pipe"])
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_model(tmp_path / place)


def test_the_shipped_model_is_small_and_says_what_it_is() -> None:
    assert os.path.getsize("model.bin") < 3e6
    model = load_model("model.bin", "duration")
    assert model.metadata
    assert model.metadata.trained_on == ["2021-01", "2021-02"]
    assert model.metadata.metrics_trained_on == ["2021-01"]
    assert model.metadata.tested_on == ["2021-02"]
    assert model.metadata.metrics["model"]["rmse"] < 5.75 < model.metadata.metrics["course"]["rmse"]
    assert len(model.metadata.golden) >= 20


def test_scikit_learn_reads_the_shipped_model_as_the_course_does() -> None:
    with open("model.bin", "rb") as file:
        vectorizer, ridge = pickle.load(file)
    metadata = load_model("model.bin").metadata
    assert isinstance(vectorizer, DictVectorizer)
    assert isinstance(ridge, Ridge)
    assert metadata
    assert ridge.metadata_["version"] == metadata.version
