"""MLflow's REST API, as far as a model's way to the service needs it: names to places, and places to bytes."""

import os
import re
import sys
from typing import Any, NamedTuple
from urllib.parse import quote

try:
    import requests
except ModuleNotFoundError as error:
    sys.exit(f"registry needs {error.name}: run `make venv CATEGORIES=registry`")

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
    """The registry answers that there is no such thing, or that it may not be had."""


class Place(NamedTuple):
    """Where a model's files are."""

    name: str
    """What it is called in words: `ride-duration, version 3`."""
    folder: str
    """`mlflow-artifacts:/…`."""


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
            answer = self._json("registered-models/alias", name=name, alias=model["alias"])
            version = str(answer["model_version"]["version"])
        answer = self._json("model-versions/get-download-uri", name=name, version=version)
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

    def _of_run(self, run: str, path: str) -> Place:
        found = self._json("runs/get", run_id=run)["run"]
        place = Place(f"run {run}, {path}", f"{found['info']['artifact_uri']}/{path}")
        if self._names(place):
            return place
        # MLflow 3 keeps a run's models beside its artifacts
        for output in found.get("outputs", {}).get("model_outputs", []):
            model = self._json(f"logged-models/{output['model_id']}")["model"]["info"]
            if model["name"] == path:
                return Place(place.name, str(model["artifact_uri"]))
        raise NotThereError(f"run {run} has nothing called {path}")

    def _names(self, place: Place) -> set[str]:
        answer = self._call(self._path("", place), {"path": self._inside(place)}).json()
        return {str(file["path"]).rpartition("/")[2] for file in answer.get("files", []) if not file.get("is_dir")}

    def _bytes(self, place: Place, name: str) -> bytes:
        answer = self._call(f"{self._path('/', place)}{quote(f'{self._inside(place)}/{name}')}", {})
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

    def _json(self, path: str, **parameters: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call(f"mlflow/{path}", parameters).json()
        return found

    def _call(self, path: str, parameters: dict[str, str]) -> requests.Response:
        try:
            answer = self._session.get(f"{self.url}/api/2.0/{path}", params=parameters, timeout=self.seconds, stream=True)
            answer.raw.decode_content = True
        except requests.RequestException as error:
            raise RegistryError(f"{shown(self.url)} does not answer: {shown(str(error))}") from None
        if answer.status_code >= 500:
            raise RegistryError(f"{shown(self.url)} answers {answer.status_code}")
        if not answer.ok:
            try:
                message = str(answer.json()["message"])
            except (requests.RequestException, ValueError, KeyError, TypeError):
                message = answer.reason
            raise NotThereError(f"{shown(self.url)} answers {answer.status_code}: {message[:500]}")
        return answer
