"""What MLflow keeps of a training: parameters, metrics, the report, and the model in the two forms that are read.

The folder `model` of a run has `model.bin`, which `registry.pull` hands to the doors byte for byte, and the same estimators as
a scikit-learn Pipeline with the manifest that MLflow's own `mlflow.pyfunc.load_model` goes by.
"""

import platform
import re
from contextlib import suppress
from typing import Any, NamedTuple

from registry.mlflow import MANIFEST, OURS, PICKLE, Place, Registry, RegistryError

EXPERIMENT = "ride-duration"
FOLDER = "model"
CANDIDATE = "candidate"
"""The alias of the version that was registered last."""

MANIFEST_TEXT = """\
flavors:
  python_function:
    env: {{virtualenv: python_env.yaml}}
    loader_module: mlflow.sklearn
    model_path: {pickle}
    predict_fn: predict
    python_version: {python}
  sklearn:
    pickled_model: {pickle}
    serialization_format: pickle
    sklearn_version: {sklearn}
metadata: {{version: {version}, target: {target}}}
run_id: {run}
"""


class NotRegisteredError(RegistryError):
    """A training is logged, and its model is not registered; the message says both."""


class Training(NamedTuple):
    """What came of a training."""

    version: str
    target: str
    content: bytes
    """`model.bin`."""
    pipeline: bytes
    """The same pair as a pickled Pipeline."""
    libraries: dict[str, str]
    parameters: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    """By model (ours and baselines), then by kind."""
    report: bytes


def keep(registry: Registry, training: Training, name: str | None) -> tuple[str, str | None]:
    """Log a training as a run, and register its model as the next version of `name`, if there is one, as its `candidate`.

    Returns
    -------
    The run's id, and the version's number.

    Raises
    ------
    RegistryError
        Nothing is registered then; a run that was begun is FAILED, if that can still be said.
    NotRegisteredError
        The run is there and has all of it.
    """
    tags = {"mlflow.source.name": "train.py", "mlflow.source.type": "LOCAL", "target": training.target}
    run, place = registry.start_run(EXPERIMENT, training.version, tags)
    try:
        metrics = {f"{_key(model)}/{kind}": value for model, row in training.metrics.items() for kind, value in row.items()}
        registry.log(run, {key: _text(value) for key, value in training.parameters.items()}, metrics)
        for path, content in {"report.html": training.report, **_files(training, run)}.items():
            registry.upload(place, path, content)
    except BaseException:  # Ctrl+C too: else the run would be RUNNING for ever
        with suppress(RegistryError):
            registry.end_run(run, "FAILED")
        raise
    registry.end_run(run, "FINISHED")
    if name is None:
        return run, None
    done = f"logged as run {run}, but not registered"
    try:
        number = registry.register(name, Place(place.name, f"{place.folder}/{FOLDER}"), run)
        done = f"logged as run {run} and registered as {name}, version {number}, but not its {CANDIDATE}"
        registry.point(name, CANDIDATE, number)
    except RegistryError as error:
        raise NotRegisteredError(f"{done}: {error}") from None
    return run, number


def _files(training: Training, run: str) -> dict[str, bytes]:
    libraries = {name: version for name, version in training.libraries.items() if name != "python"}
    python = platform.python_version()
    manifest = MANIFEST_TEXT.format(
        pickle=PICKLE,
        python=python,
        sklearn=libraries["scikit-learn"],
        version=training.version,
        target=training.target,
        run=run,
    )
    requirements = "".join(f"{name}=={version}\n" for name, version in libraries.items())
    return {
        f"{FOLDER}/{OURS}": training.content,
        f"{FOLDER}/{PICKLE}": training.pipeline,
        f"{FOLDER}/{MANIFEST}": manifest.encode(),
        f"{FOLDER}/requirements.txt": requirements.encode(),
        f"{FOLDER}/python_env.yaml": f"python: {python}\ndependencies: [-r requirements.txt]\n".encode(),
    }


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _key(name: str) -> str:
    """A model's name as MLflow takes it in a metric's."""
    return re.sub(r"\W+", "_", name)
