"""A registry without a server of one's own: MLflow's, on a SQLite file, started for as long as a command needs it."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import requests

from registry.mlflow import Registry, RegistryError
from ride_duration.logs import shown

ENVIRONMENT = Path(__file__).parent.parent / ".registry" / "bin" / "mlflow"
FILES = "mlartifacts"
START_SECONDS = 120
"""MLflow takes some ten seconds to start, and more to make its tables the first time."""
END_SECONDS = 10
_SQLITE = "sqlite:///"

# Reads until whoever started it is gone, however that came about, and then ends the group of MLflow's server, which has
# several processes. It is ended itself before the server is, so it never ends a group that has got the same number since.
_GUARD = f'read _; kill -s TERM -- "-$1"; sleep {END_SECONDS}; kill -s KILL -- "-$1"'


def wrong(uri: str) -> str:
    """Why a URI can't be that of a registry, whatever runs; empty when it can."""
    if uri.startswith(_SQLITE):
        path = uri.removeprefix(_SQLITE)
        if not path or path == ":memory:" or path.endswith("/") or Path(path).is_dir():
            return f"{uri[:200]!r} names no file: give sqlite:///FILE.db"
        if set("?#%") & set(path):
            return f"{uri[:200]!r}: the file's name may have no ?, # or %"
        return ""
    if uri.startswith(("http://", "https://")):
        with suppress(ValueError):  # what can't be taken apart
            parts = urlsplit(uri)
            if parts.hostname and parts.port != 0:
                return ""
    return f"{shown(uri[:200])!r} is not a registry: give http://HOST:PORT of MLflow's server, or sqlite:///FILE.db"


@contextmanager
def open_registry(uri: str, stopped: threading.Event | None = None) -> Iterator[Registry]:
    """The registry at http://… or https://…, or that of sqlite:///FILE.db, whose files are in `mlartifacts` beside it.

    Meanwhile SIGTERM and SIGHUP that nobody handles end the program as an exception does: else a run would be RUNNING for ever,
    and a server that was started be left behind.

    Parameters
    ----------
    stopped
        Set when it is not needed any more, also while it starts.

    Raises
    ------
    RegistryError
        If it is neither, or MLflow can't be started. Whether a server answers is seen when it is asked.
    """
    if reason := wrong(uri):
        raise RegistryError(reason)
    with _ending_orderly():
        if not uri.startswith(_SQLITE):
            yield Registry(uri)
            return
        with _serving(uri, stopped or threading.Event()) as url:
            yield Registry(url, embedded=uri)


@contextmanager
def _ending_orderly() -> Iterator[None]:
    names = [signal.SIGTERM, signal.SIGHUP] if threading.current_thread() is threading.main_thread() else []
    names = [name for name in names if signal.getsignal(name) is signal.SIG_DFL]

    def end(number: int, _: Any) -> None:
        for name in names:
            signal.signal(name, signal.SIG_IGN)  # it is ending
        sys.exit(128 + number)

    for name in names:
        signal.signal(name, end)
    try:
        yield
    finally:
        for name in names:
            signal.signal(name, signal.SIG_DFL)


@contextmanager
def _serving(uri: str, stopped: threading.Event) -> Iterator[str]:
    program = ENVIRONMENT if ENVIRONMENT.exists() else shutil.which("mlflow")
    if not program:
        raise RegistryError(f"{uri} needs MLflow: run `make registry`, or give http://HOST:PORT of a server that runs")
    folder = Path(uri.removeprefix(_SQLITE)).absolute().parent
    if not folder.is_dir():
        raise RegistryError(f"{uri}: there is no folder {folder}")
    with ExitStack() as opened:
        log = opened.enter_context(tempfile.TemporaryFile())
        with _alone(uri, folder, stopped):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            options = ["--host=127.0.0.1", f"--port={port}", "--workers=1"]
            stores = [f"--backend-store-uri={uri}", f"--artifacts-destination={folder / FILES}"]
            process = opened.enter_context(_process(uri, [str(program), "server", *options, *stores], log))
            end = time.monotonic() + START_SECONDS
            while not _answers(f"http://127.0.0.1:{port}/health"):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    last = log.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise RegistryError(f"{uri}: MLflow's server does not start: {' '.join(last)[:500]}")
                _wait(uri, stopped)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _process(uri: str, command: list[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own; the group ends with it, or with this process even if that is killed."""
    process = guard = None
    try:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its workers are ended with it
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # half of what it would start
            )
            guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "guard", str(process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise RegistryError(f"{uri}: MLflow's server does not start: {error}") from None
        yield process
    finally:
        if guard:
            guard.kill()
            guard.communicate()
        if process:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
            return


@contextmanager
def _alone(uri: str, folder: Path, stopped: threading.Event) -> Iterator[None]:
    """Nobody else starts on this folder: two that make the tables of a new file at a time would break each other's."""
    end = time.monotonic() + START_SECONDS
    handle = os.open(folder, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise RegistryError(f"{uri}: another command has been starting on it for {START_SECONDS} s") from None
                _wait(uri, stopped)
            except OSError:  # not every file system has locks
                break
        yield
    finally:
        os.close(handle)


def _wait(uri: str, stopped: threading.Event) -> None:
    if stopped.wait(0.2):
        raise RegistryError(f"{uri}: ended before MLflow's server had started")


def _answers(url: str) -> bool:
    try:
        with requests.Session() as session:
            session.trust_env = False  # no proxy is between
            return session.get(url, timeout=5).ok
    except requests.RequestException:
        return False
