"""`python -m benchmarks.web.shadow`: what a shadow model costs the service, which gets load without and with one in turns."""

import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import click
import requests
from tqdm import tqdm

from benchmarks.web.__main__ import beside, cpu_of
from benchmarks.web.contenders import CALL, CONTENDERS
from benchmarks.web.measure import Running, load, pin_load, running
from conftest import free_port

OURS = CONTENDERS[0]


class Costs(NamedTuple):
    """What one round said of one of the two."""

    requests: float
    """Per CPU-second."""
    rides: float
    """Per CPU-second, in calls of many."""
    p50: float
    p99: float


@contextmanager
def started(shadow: str) -> Iterator[Running]:
    """The service with a shadow model, or without."""
    port = free_port()
    url, environment = f"http://127.0.0.1:{port}{OURS.path}", {**OURS.environment(port), "SHADOW_MODEL": shadow}
    with running(OURS.command.format(port=port).split(), url, OURS.one, OURS.folder, environment) as service:
        load(url, OURS.one, 1000)
        yield service


def measure(service: Running, times: int, rate: int) -> Costs:
    """Put load on it."""
    per_second = times / cpu_of(service, lambda: load(service.url, OURS.one, times))
    timed = load(service.url, OURS.one, rate * 2, rate=rate)
    calls = times // 20
    rides = calls * CALL / cpu_of(service, lambda: load(service.url, OURS.many, calls))
    return Costs(per_second, rides, timed.p50, timed.p99)


@click.command(context_settings={"show_default": True})
@click.option("--shadow", default="model.bin", help="The shadow's model file.")
@click.option("--rounds", default=20, help="Turns of each.")
@click.option("--requests", "times", default=2000, help="Requests in a turn.")
@click.option("--rate", default=500, help="Requests a second at which both are timed.")
def main(shadow: str, rounds: int, times: int, rate: int) -> None:
    """Print what the service costs without and with a shadow model, as a Markdown table: medians over the rounds."""
    if not shutil.which("oha"):
        raise click.ClickException("oha is not installed; `cargo install --locked oha` installs it")
    pin_load()
    seen: tuple[list[Costs], list[Costs]] = ([], [])
    with started("") as without, started(shadow) as shadowed:
        turns = [(without, seen[0]), (shadowed, seen[1])]
        for _ in tqdm(range(rounds), unit="round"):
            for service, costs in turns:
                costs.append(measure(service, times, rate))
            turns.reverse()
        metrics = requests.get(shadowed.url.replace(OURS.path, "/metrics"), timeout=5).text
    click.echo("| one worker, 8 connections | without | with a shadow | ratio |\n| --- | --- | --- | --- |")
    columns: dict[str, Callable[[Costs], float]] = {
        "requests per CPU-second": lambda costs: costs.requests,
        f"rides per CPU-second, {CALL:,} a call": lambda costs: costs.rides,
        f"p50 at {rate}/s, ms": lambda costs: costs.p50,
        f"p99 at {rate}/s, ms": lambda costs: costs.p99,
    }
    for name, of in columns.items():
        one, two = (f"{statistics.median(map(of, costs)):,.4g}" for costs in seen)
        click.echo(f"| {name} | {one} | {two} | {beside(seen[1], seen[0], of)} |")
    counts = re.findall(r'^ride_duration_shadow_rides_total{outcome="(\w+)"} (\S+)$', metrics, re.MULTILINE)
    click.echo(f"\nRides by the shadow: {', '.join(f'{float(rides):,.0f} {outcome}' for outcome, rides in counts)}.")


if __name__ == "__main__":
    main()
