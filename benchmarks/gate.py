"""By how much two equally good models differ: what the limits of `registry.gate` must leave room for.

Pairs of models, each of a random nine tenths of the same rides, both asked for the rides that come after.
"""

from pathlib import Path

import click
import numpy as np

from registry.gate import compare
from training.evaluation import in_range
from training.fit import calibrate, fit, linear_model
from training.records import read_trips


@click.command(context_settings={"show_default": True})
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--pairs", type=click.IntRange(1, 100), default=5, help="How many pairs; each takes half a minute a month.")
def main(records: tuple[Path, ...], pairs: int) -> None:
    """Train pairs of models on the first three quarters of RECORDS (Parquet files of TLC's), and compare them on the rest."""
    trips, _ = read_trips(records)
    trips = trips.part(in_range(trips, "duration"))
    order = np.argsort(trips.pickup, kind="stable")
    earlier, later = (trips.part(rows) for rows in np.split(order, [len(order) * 3 // 4]))
    random = np.random.default_rng(1)
    differences: dict[str, list[float]] = {}

    for pair in range(pairs):
        models = []
        for _ in range(2):
            part = earlier.part(np.sort(random.choice(len(order) * 3 // 4, len(order) * 27 // 40, replace=False)))
            models.append(linear_model(fit(part), "duration", calibrate(part, "duration")))
        for check in compare(models[0], models[1], later.rides, later.actual):
            if check.candidate is not None and check.champion is not None:
                differences.setdefault(check.name, []).append(abs(check.candidate - check.champion))
        click.echo(f"{pair + 1} of {pairs} pairs", err=True)
    click.echo(f"{'apart, on average and at most':48}")
    for name, values in differences.items():
        click.echo(f"{name:48}{np.mean(values):10.4f}{max(values):10.4f}")


if __name__ == "__main__":
    main()
