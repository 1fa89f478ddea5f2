"""`python -m benchmarks.batch`: scoring rides in several ways, and the whole job beside a mere copy, in one run."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import click
from tqdm import tqdm

from benchmarks.batch.rides import make
from benchmarks.peers import install, python_of

PROJECT = Path(__file__).parents[2]
REQUIREMENTS = ("duckdb", "msgspec", "pandas", "polars", "pyarrow", "scikit-learn", "tzdata")
COURSE_ROWS = 2_000_000
"""The course's way holds a dict a ride: with more rides it would not fit."""

SCORING = ("course", "ours", "ours_shipped", "pandas", "polars", "duckdb")
FEBRUARY = ("--from", "2021-02-01", "--to", "2021-03-01")


class Cost(NamedTuple):
    """Of one run of one way."""

    cpu: float
    """Seconds."""
    peak: float
    """MB."""
    total: float = 0.0
    """Sum of the predictions, to see that all scored the same."""


def way(name: str, folder: Path, *options: str) -> Cost:
    """Run one of `ways`, in a process of its own; a library that ours doesn't have is in a venv of its own."""
    python = python_of("batch") if name in ("pandas", "polars", "duckdb", "course") else Path(sys.executable)
    run = subprocess.run(
        [python, "-m", "benchmarks.batch.ways", name, folder, *options],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        env=os.environ | {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    if run.returncode:
        raise click.ClickException(f"{name} failed: {run.stderr[-500:]}")
    return Cost(**json.loads(run.stdout.splitlines()[-1]))


def job(folder: Path, source: str, target: str) -> Cost:
    """Run `batch.score` by the day, start and model included."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        urls = ["--rides", source.format(folder), "--predictions", target.format(out)]
        return way("job", folder, *urls, *FEBRUARY, "--model", "model.bin")


@click.command(context_settings={"show_default": True})
@click.option("--rides", "sizes", multiple=True, type=int, default=(1_000_000, 10_000_000), help="How many; may be repeated.")
@click.option("--rounds", default=3, help="The median of so many is shown.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default="data", help="Folder of TLC's records.")
@click.option("--keep/--no-keep", default=True, help="Keep the rides that were made (1.1 GB for ten million).")
def main(sizes: tuple[int, ...], rounds: int, data: Path, keep: bool) -> None:
    """Compare ways to score rides, and the whole job with a mere copy of its rides."""
    install("batch", REQUIREMENTS)
    click.echo(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    for rows in sizes:
        folder = PROJECT / ".peers" / "batch-rides" / str(rows)
        make(folder, rows, data)
        runs: dict[str, list[Cost]] = {}
        jobs = {
            "job, Parquet": ("{}/rides.parquet", "{}/predictions"),
            "job, SQLite": ("sqlite:///{}/rides.db", "sqlite:///{}/predictions.db"),
        }
        for _ in tqdm(range(rounds), desc=f"{rows:,} rides", unit="round", leave=False, disable=None):
            for name in (*SCORING, "copy_parquet", "copy_sqlite", "copy_predictions"):
                if name != "course" or rows <= COURSE_ROWS:
                    runs.setdefault(name, []).append(way(name, folder))
            for name, (source, target) in jobs.items():
                runs.setdefault(name, []).append(job(folder, source, target))
        show(rows, {name: Cost(*map(statistics.median, zip(*costs, strict=True))) for name, costs in runs.items()})
        if not keep:
            shutil.rmtree(folder)


def show(rows: int, costs: dict[str, Cost]) -> None:
    """Two tables."""
    click.echo(f"{rows:,} rides: scoring alone, the course's model")
    click.echo("| | CPU s | rides per CPU-second | ours does | peak MB |\n| --- | --- | --- | --- | --- |")
    for name in SCORING:
        if name not in costs:
            click.echo(f"| {name} | – | – | a dict a ride: not within memory | – |")
            continue
        cost = costs[name]
        same = "" if name == "ours_shipped" or abs(cost.total / costs["ours"].total - 1) < 1e-6 else " (other predictions!)"
        ratio = cost.cpu / costs["ours"].cpu
        click.echo(f"| {name} | {cost.cpu:.2f} | {rows / cost.cpu:,.0f} | {ratio:.1f}×{same} | {cost.peak:,.0f} |")
    click.echo(
        "\nthe whole job: read, score with intervals, write\n| | CPU s | of the copy | peak MB |\n| --- | --- | --- | --- |"
    )
    copies = {"job, Parquet": ("copy_parquet",), "job, SQLite": ("copy_sqlite", "copy_predictions")}
    for name, compared in copies.items():
        cost = costs[name]
        ratios = ", ".join(f"{cost.cpu / costs[copy].cpu:.1f}× {copy}" for copy in compared)
        click.echo(f"| {name} | {cost.cpu:.1f} | {ratios} | {cost.peak:,.0f} |")
        for copy in compared:
            click.echo(f"| {copy} | {costs[copy].cpu:.1f} | 1 | {costs[copy].peak:,.0f} |")
    click.echo()


if __name__ == "__main__":
    main()
