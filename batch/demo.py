"""`make batch-demo`: a rides database, scored by day, and the dashboard over the predictions."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import click
import numpy as np

from batch import dashboard, score
from ride_duration.zones import LAST_ZONE, ROAD_FACTOR, STRAIGHT_MILES

try:
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    sys.exit(f"batch.demo needs {error.name}: run `make batch-demo`")

FEBRUARY = ["--from", "2021-02-01", "--to", "2021-03-01"]
RIDES = 20_000

Ride = tuple[str, str, int, int, float]


def made_up(rides: int) -> list[Ride]:
    """Rides of February 2021: more by day than by night, slower in rush hours; a few that can't be scored."""
    chance = np.random.default_rng(1)
    by_hour = 1 + np.sin((np.arange(24) - 9) / 24 * 2 * np.pi)
    hours = np.sort(chance.integers(0, 28, rides) * 24 + chance.choice(24, rides, p=by_hour / by_hour.sum()))
    pickup = np.datetime64("2021-02-01", "s") + (hours * 3600 + chance.integers(0, 3600, rides)).astype("timedelta64[s]")
    zones = chance.integers(1, LAST_ZONE + 1, (2, rides))
    zones[1] = np.where(chance.random(rides) < 0.6, np.clip(zones[0] + chance.integers(-3, 4, rides), 1, LAST_ZONE), zones[1])
    miles = STRAIGHT_MILES[zones[0], zones[1]] * ROAD_FACTOR * chance.normal(1, 0.1, rides).clip(0.7)
    rush = np.isin(hours % 24, [8, 9, 16, 17, 18])
    minutes = (3 + miles * np.where(rush, 4.2, 3.2)) * chance.lognormal(0, 0.25, rides)
    zones[1, :: rides // 7] = LAST_ZONE + 1
    dropoff = pickup + (minutes * 60).astype("timedelta64[s]")
    times = (np.datetime_as_string(column).tolist() for column in (pickup, dropoff))
    return list(zip(*times, *zones.tolist(), miles.round(2).tolist(), strict=True))


def recorded(file: Path) -> list[Ride]:
    """The rides of a month's TLC records."""
    table = pq.read_table(file)
    prefix = "lpep" if "lpep_pickup_datetime" in table.column_names else "tpep"
    columns = [f"{prefix}_pickup_datetime", f"{prefix}_dropoff_datetime", "PULocationID", "DOLocationID", "trip_distance"]
    times = (np.datetime_as_string(table[name].to_numpy(), "s").tolist() for name in columns[:2])
    return list(zip(*times, *(table[name].to_pylist() for name in columns[2:]), strict=True))


@click.command(context_settings={"show_default": True})
@click.option(
    "--records", type=click.Path(path_type=Path, exists=True), help="TLC's records of February 2021. Without: made up."
)
@click.option("--folder", type=click.Path(path_type=Path), default="demo", help="Where the two databases go.")
@click.option("--port", type=int, default=8050, envvar="PORT", help="Port of the dashboard.")
def main(records: Path | None, folder: Path, port: int) -> None:
    """Make a rides database, score it by the day, fill in how long rides took, and show the predictions."""
    found = Path("data/green_tripdata_2021-02.parquet")
    records = records or (found if found.exists() else None)
    rides = recorded(records) if records else made_up(RIDES)
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.db*"):
        old.unlink()
    with closing(sqlite3.connect(folder / "rides.db")) as database, database:
        names = "pickup_datetime, dropoff_datetime, PULocationID, DOLocationID, trip_distance"
        database.execute(f"create table rides ({names})")
        database.executemany("insert into rides values (?, ?, ?, ?, ?)", rides)
        database.execute("create index rides_by_pickup on rides (pickup_datetime)")
    click.echo(f"{folder}/rides.db: {len(rides):,} rides, {records or 'made up'}\n")
    urls = ["--rides", f"sqlite:///{folder}/rides.db", "--predictions", f"sqlite:///{folder}/predictions.db"]
    for options in (FEBRUARY, [*FEBRUARY, "--actuals"]):
        click.echo(f"python -m batch.score {' '.join([*urls, *options])}")
        score.main([*urls, *options], standalone_mode=False)
        click.echo()
    click.echo(f"python -m batch.dashboard {' '.join(urls[2:])} --port {port}")
    dashboard.main([*urls[2:], "--port", str(port)])


if __name__ == "__main__":
    main()
