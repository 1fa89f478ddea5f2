"""Starting a service, putting load on it, and reading what that cost from the operating system."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import requests


class Load(NamedTuple):
    """What the load generator saw, when each request was answered with a 200."""

    p50: float
    """Milliseconds."""
    p99: float


_CPUS = sorted(os.sched_getaffinity(0))
SERVICE_CPUS, LOAD_CPUS = _CPUS[:1], _CPUS[1:] or _CPUS
"""One CPU for the service, the others for the load; the same if there is but one."""


def pin_load() -> None:
    """Keep this process and the load generators that it starts off the CPU where services run."""
    os.sched_setaffinity(0, LOAD_CPUS)


class Running:
    """A service's processes, from when it first answered a ride.

    Attributes
    ----------
    url
        Where rides are posted.
    start_cpu
        CPU seconds until the first 200.
    """

    def __init__(self, url: str, process: subprocess.Popen[bytes], start_cpu: float) -> None:
        self.url, self.process, self.start_cpu = url, process, start_cpu

    def cpu(self) -> float:
        """CPU seconds so far, of all processes of the service."""
        return cpu_seconds(self.process.pid)

    def memory(self) -> list[float]:
        """Proportional set size of each process, in MB, the largest first."""
        root = psutil.Process(self.process.pid)
        return sorted((p.memory_full_info().pss / 1e6 for p in [root, *root.children(recursive=True)]), reverse=True)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants, those that have ended included."""
    root = psutil.Process(pid)
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # counted by its parent from now on
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


@contextmanager
def running(
    command: list[str], url: str, ride: bytes, cwd: Path, environment: Mapping[str, str], seconds: float = 60
) -> Iterator[Running]:
    """A service, from its first answer to `ride` on, all on one CPU; all its processes end with the block.

    Raises
    ------
    RuntimeError
        If it ends or does not answer in time, with what it printed.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=cwd, env=os.environ | dict(environment), stdout=log, stderr=log, start_new_session=True
        )
        os.sched_setaffinity(process.pid, SERVICE_CPUS)  # before it has threads or children, which inherit it
        try:
            end = time.monotonic() + seconds
            while not _answers(url, ride):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} does not answer:\n{log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.02)
            yield Running(url, process, cpu_seconds(process.pid))
        finally:
            _end(process)


def _answers(url: str, ride: bytes) -> bool:
    try:
        return requests.post(url, ride, headers={"Content-Type": "application/json"}, timeout=5).ok
    except requests.RequestException:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    for left in psutil.wait_procs(family, 2)[1]:
        left.kill()
    process.wait()


def load(url: str, body: bytes, requests: int, connections: int = 8, rate: int | None = None) -> Load:
    """Post `body` so many times over kept connections: as fast as it is answered, or at `rate` a second.

    At a rate, a request's time counts from when it was due, so that a service that stalls can't hide what waits.

    Raises
    ------
    RuntimeError
        If a request is not answered with a 200.
    """
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = ["oha", "--no-tui", "--output-format", "json", "-m", "POST", "-T", "application/json", "-D", file.name]
        command += ["-n", str(requests), "-c", str(connections), "--disable-compression"]
        if rate:
            command += ["-q", str(rate), "--latency-correction"]
        done = subprocess.run([*command, url], check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    answered = result["statusCodeDistribution"]
    if answered != {"200": requests}:
        raise RuntimeError(f"{url} answered {requests} requests with {answered}, errors {result['errorDistribution']}")
    percentiles = result["latencyPercentiles"]
    return Load(percentiles["p50"] * 1000, percentiles["p99"] * 1000)
