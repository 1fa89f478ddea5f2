"""`model.bin` read as data: never executed, checked before it is served.

The file is a pickled pair `(DictVectorizer, regression)`, or a two-step Pipeline of them, by any scikit-learn. Whatever it was
pickled with, it is read here without it.
"""

import hashlib
import math
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ride_duration.model import MAX_NUMBER, LinearModel, Metadata, ModelError
from ride_duration.pickles import Opaque, PickleError, read_pickle
from ride_duration.ride import FIRST_YEAR, LAST_YEAR, InvalidRide, Target

MAX_BYTES = 16 * 2**20

_VECTORIZERS = {
    "sklearn.feature_extraction._dict_vectorizer.DictVectorizer",
    "sklearn.feature_extraction.dict_vectorizer.DictVectorizer",
}
_REGRESSIONS = {
    f"sklearn.linear_model.{module}.{name}"
    for modules, names in {
        ("_base", "base"): ["LinearRegression"],
        ("_ridge", "ridge"): ["Ridge"],
        ("_coordinate_descent", "coordinate_descent"): ["Lasso", "ElasticNet"],
    }.items()
    for module in modules
    for name in names
}
_PIPELINE = "sklearn.pipeline.Pipeline"
_NUMPY = {f"numpy.{core}.{name}" for core in ("core", "_core") for name in ("multiarray._reconstruct", "multiarray.scalar")} | {
    f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")
}
_ALLOWED = (
    _VECTORIZERS | _REGRESSIONS | {_PIPELINE} | _NUMPY | {"numpy.dtype", "numpy.ndarray", "numpy.float64", "numpy.float32"}
)

_GOLDEN_TOLERANCE = 1e-6


def write_whole(content: bytes, path: Path) -> None:
    """Put a file in its place in one step, when it is whole and on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_model(path: str | os.PathLike[str], target: Target | None = None) -> LinearModel:
    """Read and check a model file.

    Parameters
    ----------
    path
        A file of at most 16 MiB.
    target
        What the model must predict; None admits any. A file without metadata predicts duration.

    Raises
    ------
    ModelError
        With the file's name and the reason, if it can't be read or must not be served.
    """
    path = Path(path)
    try:
        return parse_model(_read(path), target)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def parse_model(data: bytes, target: Target | None = None) -> LinearModel:
    """The same for a model file's bytes."""
    try:
        content = read_pickle(data, _ALLOWED)
    except PickleError as error:
        raise ModelError(f"it is refused: {error}") from None
    vectorizer, regression = _pair(content)
    vocabulary = _vocabulary(vectorizer)
    coefficients = _floats(regression.get("coef_"), "coefficients")
    if len(coefficients) != len(vocabulary):
        raise ModelError(f"it has {len(coefficients):,} coefficients for {len(vocabulary):,} features")
    intercept = _floats(regression.get("intercept_"), "an intercept")
    if len(intercept) != 1:
        raise ModelError(f"it has {len(intercept)} intercepts where one belongs")
    metadata = _metadata(regression["metadata_"]) if "metadata_" in regression else None
    predicts = metadata.target if metadata else "duration"
    if target is not None and predicts != target:
        raise ModelError(f"it predicts {predicts}, and this needs a model of {target}")
    values = coefficients.tolist()
    by_token = {token: values[index] for token, index in vocabulary.items()}
    model = LinearModel(float(intercept[0]), by_token, metadata, hashlib.sha256(data).hexdigest())
    if metadata:
        _check_golden(model, metadata)
    return model


def _read(path: Path) -> bytes:
    try:
        # a pipe or a device in the file's place must not block or never end
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ModelError("it is not a file; give the path of a model.bin")
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ModelError(
            f"there is no such file (looked in {path.absolute().parent}); `make train` writes a model.bin"
        ) from None
    except OSError as error:
        raise ModelError(f"it can't be read: {error.strerror}") from None
    if not data:
        raise ModelError("it is empty")
    if len(data) > MAX_BYTES:
        raise ModelError(f"it is larger than {MAX_BYTES // 2**20} MiB; a linear model of rides is not")
    return data


def _pair(content: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    if isinstance(content, Opaque) and content.name == _PIPELINE and isinstance(content.state, dict):
        steps = content.state.get("steps")
        if isinstance(steps, list) and all(isinstance(step, tuple) and len(step) == 2 for step in steps):
            content = tuple(step for _, step in steps)
    match content:
        case (Opaque(name=first, state=dict(vectorizer)), Opaque(name=second, state=dict(regression))) if (
            first in _VECTORIZERS and second in _REGRESSIONS
        ):
            return vectorizer, regression
    raise ModelError("it is not a pair of a fitted DictVectorizer and a fitted linear regression")


def _vocabulary(vectorizer: dict[str, Any]) -> dict[str, int]:
    vocabulary = vectorizer.get("vocabulary_")
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise ModelError("its DictVectorizer is not fitted")
    if vectorizer.get("separator") != "=":
        raise ModelError("its DictVectorizer's separator is not '='")
    indices = list(vocabulary.values())
    if not all(type(index) is int for index in indices) or sorted(indices) != list(range(len(indices))):
        raise ModelError("its vocabulary does not number its features from 0 without a gap")
    return vocabulary


def _floats(value: Any, what: str) -> NDArray[np.float64]:
    """A number, or an array of them as numpy pickles it; flat."""
    match value:
        case float():
            return np.array([value])
        case Opaque(name=name, args=(Opaque() as dtype, bytes(raw))) if name.endswith(".scalar"):
            pass
        case Opaque(name=name, args=(bytes(raw), Opaque() as dtype, tuple(), _)) if name.endswith("._frombuffer"):
            pass
        case Opaque(name=name, state=(_, tuple(), Opaque() as dtype, _, bytes(raw))) if name.endswith("._reconstruct"):
            pass
        case _:
            raise ModelError(f"its regression is not fitted, or has no {what} as numbers")
    # numpy pickles a dtype as its name and a state of (version, byte order, …)
    match dtype:
        case Opaque(name="numpy.dtype", args=("f8" | "f4" as kind, *_), state=(_, "<" | ">" as order, *_)):
            pass
        case _:
            raise ModelError(f"its regression's {what} are not floating point numbers")
    if len(raw) % int(kind[1]):
        raise ModelError(f"its regression's {what} are cut short")
    return np.frombuffer(raw, f"{order}{kind}").astype(np.float64)


def _metadata(value: Any) -> Metadata:
    try:
        metadata = msgspec.convert(value, Metadata)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"its metadata_ is not what train.py writes: {error}") from None
    if metadata.trained_until and not FIRST_YEAR <= metadata.trained_until.year <= LAST_YEAR:
        raise ModelError(f"its metadata_ says that it was trained until {metadata.trained_until}")
    low, high = metadata.bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high and math.isfinite(metadata.floor)):
        raise ModelError("its metadata_ has bounds that are not finite numbers in order")
    table = metadata.interval
    if table and not (
        0 < table.level < 1
        and table.offset + low >= 0
        and table.offset <= MAX_NUMBER
        and all(-1 <= below <= 0 <= above <= 100 for below, above in (table.time_known, table.time_unknown))
    ):
        raise ModelError("its metadata_ has an interval that does not hold its prediction")
    return metadata


def _check_golden(model: LinearModel, metadata: Metadata) -> None:
    for number, golden in enumerate(metadata.golden, 1):
        try:
            got = model.predict(golden.ride)
        except InvalidRide as error:
            raise ModelError(f"its golden ride {number} is one that it has no answer for: {error}") from None
        if not math.isclose(got, golden.prediction, abs_tol=_GOLDEN_TOLERANCE):
            raise ModelError(
                f"its golden ride {number} gives {got:.6f} here, and {golden.prediction:.6f} where it was trained: "
                "it belongs to another version of this code"
            )
