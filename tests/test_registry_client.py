"""The registry's client against one that is broken, which MLflow can't be made to be."""

import gzip
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from conftest import PROJECT, wait_until
from registry import mlflow, pull
from registry.gate import Limits
from registry.mlflow import NotThereError, Registry, RegistryError
from registry.promote import Refused, promote
from registry.pull import Puller
from registry.runs import NotRegisteredError, Training, keep
from ride_duration.logs import shown
from ride_duration.model import ModelError
from ride_duration.stores import Rides

MODEL = (PROJECT / "model.bin").read_bytes()
URI = "models:/x@champion"
ANSWERS = {
    "registered-models/alias": {"model_version": {"version": "1"}},
    "get-download-uri": {"artifact_uri": "mlflow-artifacts:/0/m"},
    "artifacts?path": {"files": [{"path": "model.bin"}]},
    "experiments/get-by-name": {"experiment": {"experiment_id": "1"}},
    "runs/create": {"run": {"info": {"run_id": "r", "artifact_uri": "mlflow-artifacts:/0/r"}}},
}


class Fake(ThreadingHTTPServer):
    """MLflow's answers, unless `broken` has another for a part of the route: status, body, headers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.broken: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        self.drips = False
        self.asked: list[str] = []

    def handle_error(self, *_: Any) -> None:
        """A client that goes is nothing to tell."""


class Handler(BaseHTTPRequestHandler):
    server: Fake
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(f"{self.command} {self.path} {body[:200].decode(errors='replace')}")
        status, content, headers = 200, MODEL if "artifacts/0/m/model.bin" in self.path else b"{}", dict[str, str]()
        for part, answer in ANSWERS.items():
            if part in self.path and self.command != "PUT":
                content = json.dumps(answer).encode()
        if self.command == "PUT":
            content = b""
        for part, other in self.server.broken.items():
            if part in self.path:
                status, content, headers = other
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        while self.server.drips and "model.bin" in self.path:
            time.sleep(0.05)
            self.wfile.write(b"x")
        if "Content-Length" in headers:
            self.close_connection = True

    do_POST = do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, b"{}", {}), "answers what MLflow does not: .*is it MLflow's server"),
        ((200, b"[]", {}), "answers what MLflow does not"),
        ((200, b'{"model_version": null}', {}), "answers what MLflow does not"),
        ((200, b"<html>Log in</html>", {"Content-Type": "text/html"}), "answers what MLflow does not"),
        ((200, b"\xff\xfe", {}), "answers what MLflow does not"),
        ((200, b"{", {"Content-Length": "1000"}), "does not answer"),
        ((200, b"xxxx", {"Content-Encoding": "gzip"}), "does not answer"),
        ((302, b"", {"Location": "https://sso/?token=secret"}), "answers 302 and points to https://sso/.token=…: give"),
        ((500, b'{"message": "disk is full"}', {}), "answers 500: disk is full"),
        ((502, b"<html>", {}), "answers 502: Bad Gateway"),
        ((403, b'{"error_code": "PERMISSION_DENIED", "message": "not you"}', {}), "answers 403: not you"),
        ((403, b"[]", {}), "answers 403: Forbidden"),
    ],
)
def test_whatever_answers_is_told_in_a_sentence(
    fake: Fake, tmp_path: Path, answer: tuple[int, bytes, dict[str, str]], reason: str
) -> None:
    fake.broken["alias"] = answer
    puller = Puller(Registry(fake.url), URI, tmp_path, None)
    with pytest.raises(RegistryError, match=reason) as error:
        puller.pull()
    assert "secret" not in str(error.value)
    fake.broken.clear()
    puller.pull()
    assert (tmp_path / "model.bin").read_bytes() == MODEL


def test_every_answer_may_be_nothing(fake: Fake) -> None:
    fake.broken[""] = 200, b"{}", {}
    registry = Registry(fake.url)
    fake.broken["runs/get"] = 200, b'{"run": {"info": {"artifact_uri": "mlflow-artifacts:/0/r"}}}', {}
    with pytest.raises(NotThereError, match="has nothing called"):
        registry.find("runs:/1/model")
    del fake.broken["runs/get"]
    for ask in (
        lambda: registry.find("models:/x/1"),
        lambda: registry.find("runs:/1/model"),
        lambda: registry.version("x", "1"),
        lambda: registry.aliases("x"),
        lambda: registry.run_place("1"),
        lambda: registry.start_run("x", "x", {}),
        lambda: registry.register("x", mlflow.Place("x", "mlflow-artifacts:/0/m"), "1"),
    ):
        with pytest.raises(RegistryError, match="answers what MLflow does not"):
            ask()


def test_a_download_that_breaks_off_stalls_or_drips_is_given_up(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    puller = Puller(Registry(fake.url, seconds=0.5), URI, tmp_path, None)
    fake.broken["model.bin"] = 200, MODEL[:1000], {"Content-Length": str(len(MODEL))}
    with pytest.raises(RegistryError, match="does not answer"):
        puller.pull()
    fake.drips = True
    monkeypatch.setattr(mlflow, "ANSWER_SECONDS", 0.4)
    began = time.monotonic()
    with pytest.raises(RegistryError, match=r"the answer takes more than 0\.4 s"):
        puller.pull()
    assert time.monotonic() - began < 3
    fake.drips = False
    fake.broken["model.bin"] = 200, gzip.compress(MODEL), {"Content-Encoding": "gzip"}
    puller.pull()
    assert (tmp_path / "model.bin").read_bytes() == MODEL
    monkeypatch.setattr(mlflow, "MAX_BYTES", 1000)
    with pytest.raises(ModelError, match="more than 1,000 bytes"):
        Puller(Registry(fake.url), URI, tmp_path, None).pull()


def test_a_refusal_is_looked_at_again_after_a_while(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    puller = Puller(Registry(fake.url), URI, tmp_path, None)
    fake.broken["model.bin"] = 200, b"<html>Log in</html>", {}
    for _ in range(3):
        with pytest.raises(ModelError):
            puller.pull()
    assert sum("artifacts/0/m/model.bin" in line for line in fake.asked) == 1
    fake.broken.clear()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + pull.REFUSED_SECONDS + 1)
    puller.pull()
    assert (tmp_path / "model.bin").read_bytes() == MODEL


def test_a_file_that_somebody_else_spoils_is_repaired(fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "served" / "model.bin"
    puller = Puller(Registry(fake.url), URI, path.parent, None)
    puller.pull()
    path.write_bytes(b"spoiled")
    puller.pull()
    assert path.read_bytes() == MODEL
    path.unlink()
    path.parent.rmdir()
    puller.pull()
    assert path.read_bytes() == MODEL
    asked = len(fake.asked)
    puller.pull()
    assert not any("model.bin" in line for line in fake.asked[asked:])


TRAINING = Training("v", "duration", b"", b"", {"scikit-learn": "1", "numpy": "1"}, {}, {}, b"")


def test_a_run_that_is_not_finished_is_failed_and_one_that_is_not_registered_says_so(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(fake.url)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "upload", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            keep(registry, TRAINING, None)
    assert "FAILED" in fake.asked[-1]
    fake.broken["report.html"] = 200, b"<html>Log in</html>", {}
    with pytest.raises(RegistryError, match="answers what MLflow does not"):
        keep(registry, TRAINING, None)
    assert "FAILED" in fake.asked[-1]
    del fake.broken["report.html"]
    fake.broken["model-versions/create"] = 500, b'{"message": "disk is full"}', {}
    with pytest.raises(NotRegisteredError, match=r"logged as run r, but not registered: .* disk is full"):
        keep(registry, TRAINING, "x")
    assert any("FINISHED" in line for line in fake.asked)


KEEP = """
import sys
from registry.embedded import open_registry
from registry.runs import Training, keep
with open_registry(sys.argv[1]) as registry:
    keep(registry, Training("v", "duration", b"", b"", {"scikit-learn": "1"}, {}, {}, b""), None)
"""


def test_a_run_whose_training_is_asked_to_end_is_failed(fake: Fake) -> None:
    fake.drips = True  # the upload of model.bin is answered for ever
    process = subprocess.Popen([sys.executable, "-c", KEEP, fake.url], cwd=PROJECT)
    wait_until(lambda: any("model.bin" in line for line in fake.asked))
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert "FAILED" in fake.asked[-1]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://me:p@ss:word@host:5000/x", "http://me:…@host:5000/x"),
        ("http://t0ken@host/x", "http://…@host/x"),
        ("http://:secret@host and http://host/a@b", "http://:…@host and http://host/a@b"),
        ("s3://a/b?X-Amz-Signature=abc&x=1&X-Amz-Security-Token=abc", "s3://a/b?X-Amz-Signature=…&x=1&X-Amz-Security-Token=…"),
        ("https://a/b?sig=abc&design=1", "https://a/b?sig=…&design=1"),
        ("models:/x@champion", "models:/x@champion"),
    ],
)
def test_secrets_in_urls_are_masked(url: str, expected: str) -> None:
    assert shown(url) == expected


def test_secrets_in_the_environment_are_stripped_and_never_told(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret\n")
    Registry(fake.url).takes("any", None)
    for value in ("s3c\nret", "s3crèt"):
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", value)
        with pytest.raises(RegistryError, match="MLFLOW_TRACKING_TOKEN has characters") as error:
            Registry(fake.url)
        assert value not in str(error.value)


def test_what_a_training_would_fail_on_in_the_end_is_found_at_its_start(fake: Fake) -> None:
    registry = Registry(fake.url)
    missing = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}'
    for route in ("registered-models/get", "experiments/get-by-name"):
        fake.broken[route] = 404, missing, {}
    registry.takes("e", "x")
    fake.broken["registered-models/get"] = 400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "a/b is no name"}', {}
    registry.takes("e", None)
    with pytest.raises(NotThereError, match="a/b is no name"):
        registry.takes("e", "a/b")
    deleted = {"experiment": {"experiment_id": "7", "lifecycle_stage": "deleted"}}
    fake.broken["experiments/get-by-name"] = 200, json.dumps(deleted).encode(), {}
    with pytest.raises(RegistryError, match="the experiment e is deleted: restore it"):
        registry.takes("e", None)


def test_a_model_of_fares_is_no_candidate_for_durations(fake: Fake) -> None:
    fake.broken = {
        "registered-models/get?": (200, b'{"registered_model": {}}', {}),
        "model-versions/get?": (200, b'{"model_version": {"version": "1"}}', {}),
        "artifacts/0/m/model.bin": (200, (PROJECT / "models" / "fare.bin").read_bytes(), {}),
    }
    with pytest.raises(Refused, match=r"x, version 1: .*fare"):
        promote(Registry(fake.url), "x", "1", cast(Rides, None), 28, None, Limits())  # no ride is looked at
    assert "refused" in fake.asked[-1]


def test_watching_does_not_end_when_what_it_watches_by_cannot_be_started(tmp_path: Path) -> None:
    registry = f"sqlite:///{tmp_path}/nowhere/mlflow.db"
    command = ["-m", "registry.pull", URI, "--to", str(tmp_path / "served"), "--registry", registry, "--every", "1", "--watch"]
    process = subprocess.Popen([sys.executable, *command], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout as output:
        assert "not pulled" in output.readline()
        time.sleep(1.5)
        assert process.poll() is None
        process.terminate()
        assert (process.wait(10), output.read()) == (0, "")
