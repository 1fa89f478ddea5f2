"""MLflow's REST API, as far as a model's life needs it: runs, files, versions and aliases, and names to places and bytes."""

import os
import re
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec
import requests

from registry import answers
from ride_duration.logs import shown
from ride_duration.model import ModelError
from ride_duration.model_file import MAX_BYTES

OURS, PICKLE, MANIFEST = "model.bin", "model.pkl", "MLmodel"
_ARTIFACTS = "mlflow-artifacts:"
_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>\d+))")
_RUN = re.compile(r"runs:/(?P<run>[0-9a-zA-Z]+)/(?P<path>.+)")
FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/PATH"
ANSWER_SECONDS = 60.0
"""How long an answer may take as a whole: one that drips would never be silent for long enough to be given up."""


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


_Answer = TypeVar("_Answer")


def is_model(uri: str) -> bool:
    """Whether it has one of the forms that name a model."""
    return bool(_RUN.fullmatch(uri) or _MODEL.fullmatch(uri))


class Registry:
    """A tracking server.

    Parameters
    ----------
    url
        Where it is. User and password, or a token, are taken from the environment as MLflow takes them:
        MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.
    seconds
        How long it may be silent.
    embedded
        What to call a server that this process has started for itself: it is asked directly, through no proxy, as nobody.

    Raises
    ------
    RegistryError
        If what the environment has can't be sent.
    """

    def __init__(self, url: str, seconds: float = 10.0, embedded: str = "") -> None:
        self.url, self.seconds = url.rstrip("/"), seconds
        self.name = embedded or shown(self.url)
        self._session = requests.Session()
        if embedded:
            self._session.trust_env = False
        elif token := _secret("MLFLOW_TRACKING_TOKEN"):
            self._session.headers["Authorization"] = f"Bearer {token}"
        elif user := _secret("MLFLOW_TRACKING_USERNAME"):
            self._session.auth = (user, _secret("MLFLOW_TRACKING_PASSWORD"))

    def takes(self, experiment: str, name: str | None) -> None:
        """Whether a run can be begun in the experiment, and a version of the registered model be made; RegistryError if not."""
        self._experiment(experiment)
        if name is not None:
            try:
                self.aliases(name)
            except NotThereError as error:
                if error.code != "RESOURCE_DOES_NOT_EXIST":
                    raise

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
            version = self._get(
                answers.Version, "registered-models/alias", name=name, alias=model["alias"]
            ).model_version.version
        return self.place(name, version)

    def place(self, name: str, version: str) -> Place:
        """Where the files of a registered model's version are."""
        answer = self._get(answers.Download, "model-versions/get-download-uri", name=name, version=version)
        return Place(f"{name}, version {version}", answer.artifact_uri)

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
        found = self._experiment(experiment) or self._post(answers.Experiment, "experiments/create", name=experiment)
        labels = [{"key": key, "value": value} for key, value in tags.items()]
        began = {"start_time": _now(), "run_name": name, "tags": labels}
        info = self._post(answers.Run, "runs/create", experiment_id=found.experiment_id, **began).run.info
        return info.run_id, Place(f"run {info.run_id}", info.artifact_uri)

    def log(self, run: str, parameters: dict[str, str], metrics: dict[str, float]) -> None:
        """Write parameters and metrics into a run."""
        at = {"timestamp": _now(), "step": 0}
        self._post(
            answers.Known,
            "runs/log-batch",
            run_id=run,
            params=[{"key": key, "value": value[:6000]} for key, value in parameters.items()],
            metrics=[{"key": key, "value": value} | at for key, value in metrics.items()],
        )

    def end_run(self, run: str, status: str) -> None:
        """End a run: FINISHED or FAILED."""
        self._post(answers.Known, "runs/update", run_id=run, status=status, end_time=_now())

    def run_place(self, run: str) -> Place:
        """Where the files of a run are."""
        return Place(f"run {run}", self._get(answers.Run, "runs/get", run_id=run).run.info.artifact_uri)

    def upload(self, place: Place, name: str, content: bytes) -> None:
        """Put a file there; `name` may have folders."""
        answer = self._call("PUT", f"{self._path('/', place)}{quote(f'{self._inside(place)}/{name}')}", data=content)
        if answer:  # MLflow's has nothing or {}: a page is somebody else's
            self._decode(answers.Known, answer)

    def register(self, name: str, place: Place, run: str) -> str:
        """Make what is there the next version of a registered model, which is made if there is none; the version's number."""
        try:
            self._post(answers.Known, "registered-models/create", name=name)
        except NotThereError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self._post(answers.Version, "model-versions/create", name=name, source=place.folder, run_id=run)
        return made.model_version.version

    def aliases(self, name: str) -> dict[str, str]:
        """The versions of a registered model that have an alias, by alias."""
        found = self._get(answers.Model, "registered-models/get", name=name).registered_model.aliases
        return {one.alias: one.version for one in found}

    def version(self, name: str, number: str) -> Version:
        """What is known of a version."""
        found = self._get(answers.Version, "model-versions/get", name=name, version=number).model_version
        return Version(name, number, found.run_id or "", {tag.key: tag.value for tag in found.tags})

    def point(self, name: str, alias: str, number: str) -> None:
        """Make an alias stand for a version, whatever it stood for."""
        self._post(answers.Known, "registered-models/alias", name=name, alias=alias, version=number)

    def tag(self, version: Version, key: str, value: str) -> None:
        """Write a tag onto a version."""
        self._post(answers.Known, "model-versions/set-tag", name=version.name, version=version.number, key=key, value=value)

    def _experiment(self, name: str) -> answers.Experiment | None:
        try:
            found = self._get(answers.FoundExperiment, "experiments/get-by-name", experiment_name=name).experiment
        except NotThereError as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if found.lifecycle_stage == "deleted":
            restore = f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
            raise RegistryError(f"{self.name}: the experiment {name} is deleted: restore it in MLflow, or with {restore}")
        return found

    def _of_run(self, run: str, path: str) -> Place:
        found = self._get(answers.Run, "runs/get", run_id=run).run
        place = Place(f"run {run}, {path}", f"{found.info.artifact_uri}/{path}")
        if self._names(place):
            return place
        # MLflow 3 keeps a run's models beside its artifacts
        for output in found.outputs.model_outputs:
            model = self._get(answers.LoggedModel, f"logged-models/{output.model_id}").model.info
            if model.name == path:
                return Place(place.name, model.artifact_uri)
        raise NotThereError(f"run {run} has nothing called {path}")

    def _names(self, place: Place) -> set[str]:
        answer = self._call("GET", self._path("", place), params={"path": self._inside(place)})
        return {file.path.rpartition("/")[2] for file in self._decode(answers.Files, answer).files if not file.is_dir}

    def _bytes(self, place: Place, name: str) -> bytes:
        content = self._call("GET", f"{self._path('/', place)}{quote(f'{self._inside(place)}/{name}')}")
        if len(content) > MAX_BYTES:
            raise ModelError(f"its {name} has more than {MAX_BYTES:,} bytes")
        return content

    def _path(self, end: str, place: Place) -> str:
        if not place.folder.startswith(_ARTIFACTS):
            raise NotThereError(
                f"the files of {place.name} are at {shown(place.folder)}, which {self.name} does not hand out: "
                "start the server with --artifacts-destination, without --no-serve-artifacts"
            )
        return f"mlflow-artifacts/artifacts{end}"

    def _inside(self, place: Place) -> str:
        return re.sub(r"^mlflow-artifacts:(//[^/]*)?/", "", place.folder)

    def _get(self, kind: type[_Answer], path: str, **parameters: str) -> _Answer:
        return self._decode(kind, self._call("GET", f"mlflow/{path}", params=parameters))

    def _post(self, kind: type[_Answer], path: str, **content: Any) -> _Answer:
        return self._decode(kind, self._call("POST", f"mlflow/{path}", json=content))

    def _decode(self, kind: type[_Answer], answer: bytes) -> _Answer:
        try:
            return msgspec.json.decode(answer, type=kind)
        except ValueError as error:  # msgspec's are, and so is text that isn't UTF-8
            raise RegistryError(f"{self.name} answers what MLflow does not: {error}; is it MLflow's server?") from None

    def _call(self, method: str, path: str, **what: Any) -> bytes:
        """The body of the answer, up to one byte more than a model's file may have."""
        url = f"{self.url}/api/2.0/{path}"
        try:
            with self._session.request(method, url, timeout=self.seconds, allow_redirects=False, stream=True, **what) as answer:
                content = _read(answer)
        except (requests.RequestException, OSError, ValueError) as error:
            raise RegistryError(f"{self.name} does not answer: {shown(str(error))}") from None
        if 300 <= answer.status_code < 400:
            elsewhere = shown(answer.headers.get("Location", "nowhere"))[:200]
            raise RegistryError(
                f"{self.name} answers {answer.status_code} and points to {elsewhere}: give MLflow's own address"
            )
        if answer.ok:
            return content
        told = answers.Error(answer.reason or "")
        with suppress(ValueError):
            told = msgspec.json.decode(content, type=answers.Error)
        words = f"{self.name} answers {answer.status_code}: {told.message[:500]}"
        if answer.status_code >= 500:
            raise RegistryError(words)
        raise NotThereError(words, told.error_code)


def _secret(variable: str) -> str:
    """What is in the environment, without the newline that a file or a shell has left; it is never shown."""
    value = os.environ.get(variable, "").strip()
    if not (value.isascii() and value.isprintable()):
        raise RegistryError(f"{variable} has characters that can't be sent: only printable ASCII can")
    return value


def _read(answer: requests.Response) -> bytes:
    """The body, or its first MAX_BYTES + 1; an error if it isn't there in time."""
    end = time.monotonic() + ANSWER_SECONDS

    def give_up() -> None:
        with suppress(OSError, ValueError, RuntimeError):  # it may just have come to its end
            answer.raw.shutdown()

    late = threading.Timer(ANSWER_SECONDS, give_up)  # whoever reads is waiting for the next byte
    late.daemon = True
    late.start()
    content = bytearray()
    try:
        for part in answer.iter_content(1 << 16):
            content += part
            if len(content) > MAX_BYTES:
                break
    except requests.RequestException:
        if time.monotonic() < end:
            raise
    finally:
        late.cancel()
    if time.monotonic() >= end:
        raise TimeoutError(f"the answer takes more than {ANSWER_SECONDS:g} s")
    return bytes(content[: MAX_BYTES + 1])


def _now() -> int:
    return int(time.time() * 1000)
