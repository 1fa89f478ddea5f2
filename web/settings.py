"""The environment variables that the web service obeys, read and checked."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def integer(name: str, default: int, low: int, high: int) -> int:
    """The whole number in an environment variable; ends the program with a sentence when it isn't one."""
    text = os.environ.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        sys.exit(f"{name} must be a whole number from {low} to {high:,}; got {text[:60]!r}")
    return int(text)


def port() -> int:
    """`PORT`, 9696 when unset."""
    return integer("PORT", 9696, 1, 65_535)


def workers() -> int:
    """`WEB_CONCURRENCY`, else one worker for each CPU that this process may use."""
    return integer("WEB_CONCURRENCY", available_cpus(), 1, 256)


def drain_seconds() -> int:
    """`DRAIN_SECONDS`: how long a worker that is told to end still takes connections, while /readyz answers 503."""
    return integer("DRAIN_SECONDS", 0, 0, 300)


def log_rides() -> bool:
    """`LOG_RIDES=1`: whether the log has each ride and its duration."""
    return bool(integer("LOG_RIDES", 0, 0, 1))


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """CPUs that this process may use: its affinity, and what a container's quota (cgroup v2 or v1) leaves of it."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = (text for file in files for text in (cgroup / file).read_text().split())
            if float(quota) > 0:
                cpus = min(cpus, max(1, int(float(quota) / float(period))))
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return cpus


def share_counts(folder: str | None) -> None:
    """Make the place where workers share their counts, gone when this process ends.

    prometheus_client finds it in the environment when it is imported, so this comes first. A reload of the configuration finds
    the place there and keeps it.
    """
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        return
    owner = os.getpid()
    path = tempfile.mkdtemp(prefix=f"ride-duration-{owner}-", dir=folder)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = path

    def clear() -> None:
        if os.getpid() == owner:  # not in a worker, which has inherited this
            shutil.rmtree(path, ignore_errors=True)

    atexit.register(clear)
