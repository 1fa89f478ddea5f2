"""What each feature group gives: `python -m benchmarks.ablation RECORDS...` fits without it, on time-blocked folds."""

from pathlib import Path

import click
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ride_duration.features import MODEL_GROUPS, Group
from ride_duration.inputs import without_time
from training.evaluation import errors, in_range
from training.fit import fit, linear_model
from training.records import Trips, read_trips


def folds(trips: Trips) -> list[tuple[Trips, Trips]]:
    """Each half month after the first, and all that came before it."""
    months = trips.pickup.astype("datetime64[M]")
    half = 2 * months.astype(int) + ((trips.pickup - months) > np.timedelta64(15, "D"))
    return [(trips.part(half < block), trips.part(half == block)) for block in np.unique(half)[1:]]


def measure(blocks: list[tuple[Trips, Trips]], groups: list[Group]) -> tuple[float, float, int]:
    """RMSE with and without time over all folds, and the coefficients of the last."""
    known, unknown = [], []
    for before, after in blocks:
        model = linear_model(fit(before, groups), "duration")
        known.append(errors(model.predict_columns(after.rides), after.actual)["rmse"])
        unknown.append(errors(model.predict_columns(without_time(after.rides)), after.actual)["rmse"])
    return float(np.mean(known)), float(np.mean(unknown)), model.coefficients


@click.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(records: tuple[Path, ...]) -> None:
    """Print, for each group of features, how much the error grows without it (minutes, mean over folds of half a month)."""
    trips = read_trips(records)[0]
    blocks = folds(trips.part(in_range(trips, "duration")))
    with threadpool_limits(1):
        rmse, timeless, size = measure(blocks, MODEL_GROUPS)
        click.echo("| without | RMSE | time unknown | coefficients |\n| --- | --- | --- | --- |")
        click.echo(f"| nothing | {rmse:.3f} | {timeless:.3f} | {size:,} |")
        for group in tqdm(MODEL_GROUPS, leave=False):
            one, other, fewer = measure(blocks, [g for g in MODEL_GROUPS if g is not group])
            click.echo(f"| {group.name} | {one - rmse:+.3f} | {other - timeless:+.3f} | {fewer - size:+,} |")


if __name__ == "__main__":
    main()
