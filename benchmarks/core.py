"""What scoring costs: `python -m benchmarks.core RECORDS` times one ride and a million in columns, beside scikit-learn."""

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from ride_duration.features import GROUP, MODEL_GROUPS, features
from ride_duration.inputs import Columns
from ride_duration.model import LinearModel
from ride_duration.model_file import load_model
from ride_duration.ride import EXAMPLE, check_ride
from training.records import read_trips

ROUNDS = 5


def cost(work: Callable[[], Any], times: int) -> float:
    """CPU seconds of one call: the best of a few rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(times):
            work()
        best = min(best, (time.process_time() - began) / times)
    return best


@click.command()
@click.argument("records", type=click.Path(path_type=Path, exists=True))
@click.option("--model", "path", default="model.bin")
def main(records: Path, path: str) -> None:
    """Time the scorers on the rides of RECORDS."""
    model, ride = load_model(path), check_ride(EXAMPLE)
    with open(path, "rb") as file:
        vectorizer, regression = pickle.load(file)
    rides = read_trips([records])[0].rides
    million = rides.part(np.resize(np.arange(len(rides.trip_distance)), 1_000_000))
    pair_only = LinearModel(0.0, {GROUP["PU_DO"].token(index): 1.0 for index in range(0, GROUP["PU_DO"].size, 7)})
    table = np.random.default_rng(1).random(266 * 266)

    def plain_lookup(columns: Columns) -> Any:
        return 1.0 + table[columns.PULocationID * 266 + columns.DOLocationID]

    ours = cost(lambda: model.predict(ride), 2000)
    theirs = cost(lambda: regression.predict(vectorizer.transform([features(ride, MODEL_GROUPS)])), 50)
    columns = cost(lambda: model.predict_columns(million), 1)
    pair = cost(lambda: pair_only.predict_columns(million), 1)
    lookup = cost(lambda: plain_lookup(million), 1)
    load = cost(lambda: load_model(path), 3)
    click.echo("| | CPU | beside |\n| --- | --- | --- |")
    click.echo(f"| one ride | {ours * 1e6:.1f} µs | scikit-learn {theirs * 1e6:.0f} µs, {theirs / ours:.0f}x |")
    click.echo(f"| a million in columns | {columns:.2f} s | the pair alone, same scorer {pair:.2f} s, {columns / pair:.1f}x |")
    click.echo(f"| | | a bare table lookup of the pair {lookup:.3f} s, {columns / lookup:.0f}x |")
    click.echo(f"| loading model.bin | {load * 1e3:.0f} ms | |")


if __name__ == "__main__":
    main()
