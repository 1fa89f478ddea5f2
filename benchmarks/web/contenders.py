"""The services that are compared: how each is installed, started and asked."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks import peers
from ride_duration.ride import EXAMPLE

PROJECT = Path(__file__).parents[2]
PEERS = "benchmarks.web.peers"
CALL = 1000
"""Rides in a call of many."""

_chance = random.Random(1)
MANY: list[dict[str, Any]] = [
    EXAMPLE
    | {
        "PULocationID": _chance.randint(1, 263),
        "DOLocationID": _chance.randint(1, 263),
        "trip_distance": round(_chance.uniform(0.1, 20), 2),
        "pickup_datetime": f"2021-02-{_chance.randint(1, 28):02}T{_chance.randint(0, 23):02}:15:00",
    }
    for _ in range(CALL)
]


def data_frame(rides: list[dict[str, Any]]) -> bytes:
    """Rides as MLflow reads them."""
    return msgspec.json.encode(
        {"dataframe_split": {"columns": list(rides[0]), "data": [list(ride.values()) for ride in rides]}}
    )


class Contender(NamedTuple):
    """A service with one worker. `{port}` in its command is where it listens."""

    name: str
    command: str
    settings: str
    """What it runs with, for the reader of the table."""
    peer: str = ""
    """The folder with its venv, where it runs; ours without."""
    requirements: tuple[str, ...] = ()
    """What its venv needs."""
    prepare: str = ""
    """A command that makes what it serves, run once in its folder."""
    path: str = "/predict"
    one: bytes = msgspec.json.encode(EXAMPLE)
    many_path: str | None = "/predict_rides"
    """Where a call of many rides goes; None if it takes one only."""
    many: bytes = msgspec.json.encode(MANY)
    share: float = 1.0
    """Of the requests, so that a slow one doesn't hold up the round."""

    @property
    def folder(self) -> Path:
        """Where it runs, and its venv is."""
        return peers.FOLDER / self.peer if self.peer else PROJECT

    def environment(self, port: int) -> Mapping[str, str]:
        """One worker, the same model and our scorer for all; no word to their makers about the use."""
        scripts = self.folder / "bin" if self.peer else Path(sys.executable).parent
        return {
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT),
            "PORT": str(port),
            "WEB_CONCURRENCY": "1",
            "MODEL": str(PROJECT / "model.bin"),
            "UVICORN_ACCESS_LOG": "false",  # of those that start uvicorn themselves
            "DO_NOT_TRACK": "true",
            "BENTOML_DO_NOT_TRACK": "true",
        }

    def install(self) -> None:
        """Make its venv, unless it is there with the same requirements.

        Raises
        ------
        subprocess.CalledProcessError
            If that fails.
        """
        if self.peer:
            peers.install(self.peer, self.requirements, self._prepare)

    def _prepare(self) -> None:
        if self.prepare:
            environment = os.environ | dict(self.environment(0))
            subprocess.run(self.prepare.split(), cwd=self.folder, env=environment, check=True, capture_output=True, text=True)

    def versions(self) -> str:
        """Names and versions of what it is made of."""
        if not self.peer:
            return "Flask, gunicorn and the rest of the lock"
        found = {d.name.lower(): d.version for d in distributions(path=[str(*self.folder.glob("lib/python*/site-packages"))])}
        names = [re.split(r"[^\w-]", requirement)[0] for requirement in self.requirements if requirement not in SCORER]
        return ", ".join(f"{name} {found[name]}" for name in names)


SCORER = ("msgspec<1", "numpy==2.*", "tzdata")
UVICORN = "uvicorn[standard]<1"

MLFLOW = Contender(
    "MLflow",
    "mlflow models serve --model-uri=signed --env-manager=local --workers=1 --port={port}",
    "its own server (FastAPI), one worker, uvloop and httptools; our scorer; types checked by a signature, no limits",
    "mlflow",
    ("mlflow==3.*", UVICORN, *SCORER),
    f"python -m {PEERS}.with_mlflow",
    "/invocations",
    data_frame([EXAMPLE]),
    "/invocations",
    data_frame(MANY),
    share=0.15,
)

CONTENDERS = [
    Contender(
        "ours",
        "gunicorn predict:app --bind=127.0.0.1:{port}",
        "as shipped: gunicorn.conf.py, with validation, metrics, a JSON log line and a request id for each request",
        many_path="/predict",
    ),
    Contender(
        "bare Flask",
        f"gunicorn {PEERS}.hello:app --config=/dev/null --bind=127.0.0.1:{{port}}"
        " --worker-class=gthread --threads=64 --keep-alive=75 --preload",
        "gunicorn with our threads and kept connections; no validation, model, log or metrics",
        many_path=None,
    ),
    Contender(
        "course",
        f"gunicorn {PEERS}.course:app --bind=127.0.0.1:{{port}}",
        "as the course ships it: gunicorn's defaults (a sync worker, which closes each connection), scikit-learn",
        "course",
        ("flask==3.*", "gunicorn==27.*", "scikit-learn==1.*"),
        f"python -m {PEERS}.course",
        many_path=None,
        share=0.4,
    ),
    Contender(
        "FastAPI",
        f"uvicorn {PEERS}.with_fastapi:app --port={{port}} --no-access-log",
        "uvicorn with uvloop and httptools, no access log; coroutines; our scorer, pydantic models with our limits",
        "fastapi",
        ("fastapi<1", UVICORN, *SCORER),
    ),
    Contender(
        "LitServe",
        f"python -m {PEERS}.with_litserve",
        "accelerator cpu, one worker, one API server, ZeroMQ (fast_queue), no access log; our scorer, pydantic models",
        "litserve",
        ("litserve<1", "pyzmq==27.*", UVICORN, *SCORER),
        share=0.4,
        many_path="/predict",
    ),
    Contender(
        "BentoML",
        f"bentoml serve {PEERS}.with_bentoml:Durations --host=127.0.0.1 --port={{port}}",
        "production mode, one worker, no access log, uvloop and httptools; coroutines; our scorer, pydantic models",
        "bentoml",
        ("bentoml==1.*", UVICORN, *SCORER),
        share=0.4,
    ),
    MLFLOW,
    MLFLOW._replace(
        name="MLflow, no signature",
        command=MLFLOW.command.replace("signed", "unsigned"),
        settings="the same without the signature, which MLflow recommends: nothing is checked",
    ),
]
