"""`python -m benchmarks.web`: the service beside others, each with one worker, the same model and the same load, in turns."""

import math
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import click
from tqdm import tqdm

from benchmarks.web.contenders import CALL, CONTENDERS, Contender
from benchmarks.web.measure import Running, load, pin_load, running
from conftest import free_port

RATE = 100
"""Requests a second at which all are timed: the slowest bears it."""


Seen = TypeVar("Seen")


class Costs(NamedTuple):
    """What one round said of one service."""

    requests: float
    """Per CPU-second."""
    rides: float
    """Per CPU-second in calls of many; NaN when it has no such call."""
    p50: float
    p99: float
    start_cpu: float
    largest: float
    """MB of its largest process."""
    memory: float
    """MB of all its processes."""


def measure(contender: Contender, requests: int) -> Costs:
    """Start a service, and put load on it."""
    port = free_port()
    root = f"http://127.0.0.1:{port}"
    command = contender.command.format(port=port).split()
    requests = int(requests * contender.share)
    url = root + contender.path
    with running(command, url, contender.one, contender.folder, contender.environment(port)) as service:
        load(url, contender.one, requests // 4)
        per_second = requests / cpu_of(service, lambda: load(url, contender.one, requests))
        timed = load(url, contender.one, RATE * 10, rate=RATE)
        memory = service.memory()
        rides = math.nan
        if contender.many_path:
            many_url, calls = root + contender.many_path, requests // 20
            load(many_url, contender.many, calls // 4)
            rides = calls * CALL / cpu_of(service, lambda: load(many_url, contender.many, calls))
        return Costs(per_second, rides, timed.p50, timed.p99, service.start_cpu, memory[0], sum(memory))


def cpu_of(service: Running, work: Callable[[], object]) -> float:
    """CPU seconds that some work costs the service."""
    before = service.cpu()
    work()
    return service.cpu() - before


def beside(ours: list[Seen], theirs: list[Seen], of: Callable[[Seen], float]) -> str:
    """How many times ours does what theirs does for the same CPU time: the median over the rounds, lowest and highest."""
    ratios = [of(mine) / of(other) for mine, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f})"


def row(name: str, ours: list[Costs], theirs: list[Costs]) -> str:
    """A service's line in the table."""
    median = Costs(*(statistics.median(column) for column in zip(*theirs, strict=True)))
    cells = [
        name,
        f"{median.requests:,.0f}",
        beside(ours, theirs, lambda costs: costs.requests),
        f"{median.p50:.1f}, {median.p99:.1f} ms",
        f"{median.start_cpu:.1f} s",
        f"{median.largest:.0f}, {median.memory:.0f} MB",
        "–" if math.isnan(median.rides) else f"{median.rides:,.0f}",
        "–" if math.isnan(median.rides) else beside(ours, theirs, lambda costs: costs.rides),
    ]
    return f"| {' | '.join(cells)} |"


@click.command(context_settings={"show_default": True})
@click.option(
    "--only", multiple=True, type=click.Choice([c.name for c in CONTENDERS[1:]]), help="Beside this peer only; repeatable."
)
@click.option("--rounds", default=3, help="Each service once a round.")
@click.option("--requests", default=5000, help="Requests a service and round; slow ones get a share.")
def main(only: tuple[str, ...], rounds: int, requests: int) -> None:
    """Print what each service costs, as a Markdown table: medians over the rounds."""
    if not shutil.which("oha"):
        raise click.ClickException("oha is not installed; `cargo install --locked oha` installs it")
    pin_load()
    chosen = [c for c in CONTENDERS if not only or c.name in (CONTENDERS[0].name, *only)]
    seen: dict[str, list[Costs]] = {c.name: [] for c in chosen}
    failed: dict[str, str] = {}
    for _ in tqdm(range(rounds), unit="round"):
        for contender in chosen:
            if contender.name in failed:
                continue
            try:
                contender.install()
                seen[contender.name].append(measure(contender, requests))
            except (RuntimeError, subprocess.CalledProcessError) as error:
                failed[contender.name] = f"{error} {getattr(error, 'stderr', '') or ''}".strip()
    ours = seen[CONTENDERS[0].name]
    oha = subprocess.run(["oha", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    click.echo(
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {oha}; ",
        nl=False,
    )
    click.echo(f"one worker each, all its processes on one CPU, 8 connections; medians of {rounds} rounds.\n")
    click.echo(
        f"| | requests per CPU-second | ours does | p50, p99 at {RATE}/s | CPU to the first 200 "
        f"| memory: largest process, all | rides per CPU-second, {CALL:,} a call | ours does |"
    )
    click.echo("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for contender in chosen:
        if contender.name in failed:
            reason = " ".join(failed[contender.name].replace("|", "/").split())
            click.echo(f"| {contender.name} | not measured: {reason[-300:]} | | | | | | |")
        else:
            click.echo(row(contender.name, ours, seen[contender.name]))
    click.echo()
    for contender in chosen:
        if contender.name not in failed:
            click.echo(f"- {contender.name}: {contender.settings} ({contender.versions()}).")


if __name__ == "__main__":
    main()
