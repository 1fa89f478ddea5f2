"""`python -m benchmarks.web`: the service beside a bare Flask app, each under the same load, in turns."""

import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from tqdm import tqdm

from benchmarks.web.measure import Running, load, running
from conftest import free_port
from ride_duration.ride import EXAMPLE

PROJECT = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"
RIDE = msgspec.json.encode(EXAMPLE)
GUNICORN = [sys.executable, "-m", "gunicorn"]


class Contender(NamedTuple):
    """How a service is started: with one worker, on PORT."""

    name: str
    command: list[str]
    cwd: Path
    path: str = "/predict"


CONTENDERS = [
    Contender("ours, everything on", [*GUNICORN, "predict:app"], PROJECT),
    Contender(
        "bare Flask",
        [
            *GUNICORN,
            "hello:app",
            "--worker-class=gthread",
            "--threads=64",
            "--keep-alive=75",
            "--preload",
            "--bind=127.0.0.1:{port}",
        ],
        PEERS,
    ),
]


class Costs(NamedTuple):
    """What one round said of one service."""

    start_cpu: float
    requests_per_cpu_second: float
    p50: float
    p99: float
    memory: float


def measure(contender: Contender, requests: int) -> Costs:
    """Start a service with one worker, and put load on it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}{contender.path}"
    command = [part.format(port=port) for part in contender.command]
    with running(command, url, RIDE, contender.cwd, {"PORT": str(port), "WEB_CONCURRENCY": "1"}) as service:
        load(url, RIDE, requests // 4)
        per_cpu_second = requests / cpu_of_load(service, requests)
        timed = load(url, RIDE, 2000, rate=200)
        return Costs(service.start_cpu, per_cpu_second, timed.p50, timed.p99, service.memory()[0])


def cpu_of_load(service: Running, requests: int) -> float:
    """CPU seconds that so many requests cost the service; all of them must be answered."""
    before = service.cpu()
    done = load(service.url, RIDE, requests)
    if done.failed:
        raise click.ClickException(f"{done.failed} of {requests} requests failed")
    return service.cpu() - before


@click.command(context_settings={"show_default": True})
@click.option("--rounds", default=5, help="Each service once a round.")
@click.option("--requests", default=20_000, help="Requests a service and round.")
def main(rounds: int, requests: int) -> None:
    """Print what each service costs, as a Markdown table: medians over the rounds."""
    seen: dict[str, list[Costs]] = {contender.name: [] for contender in CONTENDERS}
    for _ in tqdm(range(rounds), unit="round"):
        for contender in CONTENDERS:
            seen[contender.name].append(measure(contender, requests))
    click.echo("| | requests per CPU-second | beside ours | p50, p99 at 200/s | CPU to the first 200 | worker |")
    click.echo("| --- | --- | --- | --- | --- | --- |")
    ours = [costs.requests_per_cpu_second for costs in seen[CONTENDERS[0].name]]
    for name, costs in seen.items():
        median = Costs(*(statistics.median(column) for column in zip(*costs, strict=True)))
        ratios = [mine / c.requests_per_cpu_second for mine, c in zip(ours, costs, strict=True)]
        click.echo(
            f"| {name} | {median.requests_per_cpu_second:,.0f} "
            f"| ours has {statistics.median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%}) "
            f"| {median.p50:.1f}, {median.p99:.1f} ms | {median.start_cpu:.2f} s | {median.memory:.0f} MB |"
        )


if __name__ == "__main__":
    main()
