"""A registry without a server of one's own: MLflow's, on a SQLite file, started for as long as a command needs it."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from registry.mlflow import Registry, RegistryError

ENVIRONMENT = Path(__file__).parent.parent / ".registry" / "bin" / "mlflow"
FILES = "mlartifacts"
START_SECONDS = 120
"""MLflow takes some ten seconds to start, and more to make its tables the first time."""


@contextmanager
def open_registry(uri: str) -> Iterator[Registry]:
    """The registry at http://… or https://…, or that of sqlite:///FILE.db, whose files are in `mlartifacts` beside it.

    Raises
    ------
    RegistryError
        If it is neither, or MLflow can't be started. Whether a server answers is seen when it is asked.
    """
    if uri.startswith("sqlite:///"):
        with _serving(uri) as url:
            yield Registry(url)
    elif uri.startswith(("http://", "https://")):
        yield Registry(uri)
    else:
        raise RegistryError(f"{uri[:200]!r} is not a registry: give http://HOST:PORT of MLflow's server, or sqlite:///FILE.db")


@contextmanager
def _serving(uri: str) -> Iterator[str]:
    program = ENVIRONMENT if ENVIRONMENT.exists() else shutil.which("mlflow")
    if not program:
        raise RegistryError(f"{uri} needs MLflow: run `make registry`, or give http://HOST:PORT of a server that runs")
    folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
    if not folder.is_dir():
        raise RegistryError(f"{uri}: there is no folder {folder}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--host=127.0.0.1", f"--port={port}", "--workers=1"]
    stores = [f"--backend-store-uri={uri}", f"--artifacts-destination={folder / FILES}"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [program, "server", *options, *stores],
            stdout=log,
            stderr=log,
            start_new_session=True,  # its workers are ended with it
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # half of what it would start
        )
        try:
            end = time.monotonic() + START_SECONDS
            while not _answers(f"http://127.0.0.1:{port}/health"):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    last = log.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise RegistryError(f"{uri}: MLflow's server does not start: {' '.join(last)[:500]}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False
