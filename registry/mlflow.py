"""MLflow's REST API, as far as a model's life needs it: runs, files, versions and aliases, and names to places and bytes."""

import os
import re
import time
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote

import requests

from ride_duration.logs import shown
from ride_duration.model import ModelError
from ride_duration.model_file import MAX_BYTES

OURS, PICKLE, MANIFEST = "model.bin", "model.pkl", "MLmodel"
_ARTIFACTS = "mlflow-artifacts:"
_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>\d+))")
_RUN = re.compile(r"runs:/(?P<run>[0-9a-zA-Z]+)/(?P<path>.+)")
FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/PATH"


class RegistryError(RuntimeError):
    """The registry does not answer: the same may work later."""


class NotThereError(RegistryError):
    """The registry answers that there is no such thing, or that it may not be had.

    Attributes
    ----------
    code
        MLflow's name of the error: RESOURCE_DOES_NOT_EXIST, PERMISSION_DENIED, …
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Place(NamedTuple):
    """Where files are: a model's, or a run's."""

    name: str
    """What it is called in words: `ride-duration, version 3`."""
    folder: str
    """`mlflow-artifacts:/…`."""


class Version(NamedTuple):
    """A version of a registered model."""

    name: str
    number: str
    run: str
    """The run that made it; empty when nobody said."""
    tags: dict[str, str]

    def __str__(self) -> str:
        return f"{self.name}, version {self.number}"


class Registry:
    """A tracking server.

    Parameters
    ----------
    url
        Where it is. User and password, or a token, are taken from the environment as MLflow takes them:
        MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.
    """

    def __init__(self, url: str, seconds: float = 10.0) -> None:
        self.url, self.seconds = url.rstrip("/"), seconds
        self._session = requests.Session()
        if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            self._session.headers["Authorization"] = f"Bearer {token}"
        elif user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
            self._session.auth = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))

    def reach(self) -> None:
        """Ask for nothing much; RegistryError if there is no answer."""
        self._get("experiments/search", max_results="1")

    def find(self, uri: str) -> Place:
        """Where the files of a model are.

        Raises
        ------
        RegistryError, NotThereError
        """
        if run := _RUN.fullmatch(uri):
            return self._of_run(run["run"], run["path"].strip("/"))
        model = _MODEL.fullmatch(uri)
        if not model:
            raise NotThereError(f"{uri[:200]!r} is not a model: give {FORMS}")
        name, version = model["name"], model["version"]
        if model["alias"]:
            answer = self._get("registered-models/alias", name=name, alias=model["alias"])
            version = str(answer["model_version"]["version"])
        return self.place(name, version)

    def place(self, name: str, version: str) -> Place:
        """Where the files of a registered model's version are."""
        answer = self._get("model-versions/get-download-uri", name=name, version=version)
        return Place(f"{name}, version {version}", str(answer["artifact_uri"]))

    def model_file(self, place: Place) -> bytes:
        """The bytes of a model's file: `model.bin` as `train.py` writes it, or scikit-learn's pickle.

        Raises
        ------
        RegistryError, NotThereError
        ModelError
            If it has neither, or says that it is of another kind.
        """
        names = self._names(place)
        if OURS in names:
            return self._bytes(place, OURS)
        if MANIFEST not in names:
            raise ModelError(f"it has no {OURS} and no {MANIFEST}, but {', '.join(sorted(names)) or 'nothing'}")
        manifest = self._bytes(place, MANIFEST).decode(errors="replace")
        form = re.search(r"^\s+serialization_format:\s*(\S+)", manifest, re.MULTILINE)
        if not form or form[1] != "pickle" or PICKLE not in names:
            kind = form[1] if form else "no scikit-learn model"
            raise ModelError(
                f"it is {kind}; what is served is {OURS}, or a Pipeline that "
                'mlflow.sklearn.log_model(…, serialization_format="pickle") has logged'
            )
        return self._bytes(place, PICKLE)

    def start_run(self, experiment: str, name: str, tags: dict[str, str]) -> tuple[str, Place]:
        """Begin a run, in an experiment that is made if there is none; the run's id, and where its files go."""
        try:
            found = self._get("experiments/get-by-name", experiment_name=experiment)["experiment"]
        except NotThereError as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
            found = self._post("experiments/create", name=experiment)
        labels = [{"key": key, "value": value} for key, value in tags.items()]
        began = {"start_time": _now(), "run_name": name, "tags": labels}
        run = self._post("runs/create", experiment_id=found["experiment_id"], **began)["run"]["info"]
        return run["run_id"], Place(f"run {run['run_id']}", run["artifact_uri"])

    def log(self, run: str, parameters: dict[str, str], metrics: dict[str, float]) -> None:
        """Write parameters and metrics into a run."""
        at = {"timestamp": _now(), "step": 0}
        self._post(
            "runs/log-batch",
            run_id=run,
            params=[{"key": key, "value": value[:6000]} for key, value in parameters.items()],
            metrics=[{"key": key, "value": value} | at for key, value in metrics.items()],
        )

    def end_run(self, run: str, status: str) -> None:
        """End a run: FINISHED or FAILED."""
        self._post("runs/update", run_id=run, status=status, end_time=_now())

    def run_place(self, run: str) -> Place:
        """Where the files of a run are."""
        return Place(f"run {run}", str(self._get("runs/get", run_id=run)["run"]["info"]["artifact_uri"]))

    def upload(self, place: Place, name: str, content: bytes) -> None:
        """Put a file there; `name` may have folders."""
        self._call("PUT", f"{self._path('/', place)}{quote(f'{self._inside(place)}/{name}')}", data=content)

    def register(self, name: str, place: Place, run: str) -> str:
        """Make what is there the next version of a registered model, which is made if there is none; the version's number."""
        try:
            self._post("registered-models/create", name=name)
        except NotThereError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self._post("model-versions/create", name=name, source=place.folder, run_id=run)
        return str(made["model_version"]["version"])

    def aliases(self, name: str) -> dict[str, str]:
        """The versions of a registered model that have an alias, by alias."""
        found = self._get("registered-models/get", name=name)["registered_model"].get("aliases", [])
        return {str(one["alias"]): str(one["version"]) for one in found}

    def version(self, name: str, number: str) -> Version:
        """What is known of a version."""
        found = self._get("model-versions/get", name=name, version=number)["model_version"]
        return Version(name, number, found.get("run_id", ""), {tag["key"]: tag["value"] for tag in found.get("tags", [])})

    def point(self, name: str, alias: str, number: str) -> None:
        """Make an alias stand for a version, whatever it stood for."""
        self._post("registered-models/alias", name=name, alias=alias, version=number)

    def tag(self, version: Version, key: str, value: str) -> None:
        """Write a tag onto a version."""
        self._post("model-versions/set-tag", name=version.name, version=version.number, key=key, value=value)

    def _of_run(self, run: str, path: str) -> Place:
        found = self._get("runs/get", run_id=run)["run"]
        place = Place(f"run {run}, {path}", f"{found['info']['artifact_uri']}/{path}")
        if self._names(place):
            return place
        # MLflow 3 keeps a run's models beside its artifacts
        for output in found.get("outputs", {}).get("model_outputs", []):
            model = self._get(f"logged-models/{output['model_id']}")["model"]["info"]
            if model["name"] == path:
                return Place(place.name, str(model["artifact_uri"]))
        raise NotThereError(f"run {run} has nothing called {path}")

    def _names(self, place: Place) -> set[str]:
        answer = self._call("GET", self._path("", place), params={"path": self._inside(place)}).json()
        return {str(file["path"]).rpartition("/")[2] for file in answer.get("files", []) if not file.get("is_dir")}

    def _bytes(self, place: Place, name: str) -> bytes:
        answer = self._call("GET", f"{self._path('/', place)}{quote(f'{self._inside(place)}/{name}')}", stream=True)
        content = answer.raw.read(MAX_BYTES + 1, decode_content=True)
        if len(content) > MAX_BYTES:
            raise ModelError(f"its {name} has more than {MAX_BYTES:,} bytes")
        return bytes(content)

    def _path(self, end: str, place: Place) -> str:
        if not place.folder.startswith(_ARTIFACTS):
            raise NotThereError(
                f"the files of {place.name} are at {shown(place.folder)}, which {shown(self.url)} does not hand out: "
                "start the server with --artifacts-destination, without --no-serve-artifacts"
            )
        return f"mlflow-artifacts/artifacts{end}"

    def _inside(self, place: Place) -> str:
        return re.sub(r"^mlflow-artifacts:(//[^/]*)?/", "", place.folder)

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", f"mlflow/{path}", params=parameters).json()
        return found

    def _post(self, path: str, **content: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._call("POST", f"mlflow/{path}", json=content).json()
        return found

    def _call(self, method: str, path: str, **what: Any) -> requests.Response:
        try:
            answer = self._session.request(method, f"{self.url}/api/2.0/{path}", timeout=self.seconds, **what)
        except requests.RequestException as error:
            raise RegistryError(f"{shown(self.url)} does not answer: {shown(str(error))}") from None
        if answer.status_code >= 500:
            raise RegistryError(f"{shown(self.url)} answers {answer.status_code}")
        if not answer.ok:
            message, code = answer.reason, ""
            with suppress(requests.RequestException, ValueError, KeyError, TypeError):
                content = answer.json()
                message, code = str(content["message"]), str(content["error_code"])
            raise NotThereError(f"{shown(self.url)} answers {answer.status_code}: {message[:500]}", code)
        return answer


def _now() -> int:
    return int(time.time() * 1000)
