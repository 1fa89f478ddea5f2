"""`make batch-demo`: a rides database, scored by day, and the dashboard over the predictions."""

import os
import sys
from contextlib import closing
from pathlib import Path

import click
import numpy as np

from batch import dashboard, score
from ride_duration.logs import shown
from ride_duration.made_up import MadeUp, made_up
from ride_duration.stores import Address, StoreError
from ride_duration.stores.databases import Database

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    sys.exit(f"batch.demo needs {error.name}: run `make batch-demo`")

FEBRUARY = ["--from", "2021-02-01", "--to", "2021-03-01"]
RIDES = 20_000


def recorded(file: Path) -> list[MadeUp]:
    """The rides of a month's TLC records."""
    table = pq.read_table(file)
    prefix = "lpep" if "lpep_pickup_datetime" in table.column_names else "tpep"
    columns = [f"{prefix}_pickup_datetime", f"{prefix}_dropoff_datetime", "PULocationID", "DOLocationID", "trip_distance"]
    times = (np.datetime_as_string(table[name].to_numpy(), "s").tolist() for name in columns[:2])
    return list(zip(*times, *(table[name].to_pylist() for name in columns[2:]), strict=True))


def write(url: str, rides: list[MadeUp]) -> int:
    """Make the table `rides` of a database, unless it has rides already, and tell how many it has."""
    types = {"pickup_datetime": "timestamp", "dropoff_datetime": "timestamp"}
    types |= {"PULocationID": "integer", "DOLocationID": "integer", "trip_distance": "double precision"}
    with closing(Database(Address.of(url), create=True)) as database:
        with database.transaction():
            database.run(f"create table if not exists rides ({', '.join(f'{name} {type_}' for name, type_ in types.items())})")
            database.run("create index if not exists rides_by_pickup on rides (pickup_datetime)")
            (row,) = database.rows("select count(*) as rides from rides")
            if not row["rides"]:
                columns = [pa.array(column) for column in zip(*rides, strict=True)]
                columns[:2] = [column.cast(pa.timestamp("s")) for column in columns[:2]]
                database.insert("rides", pa.table(columns, names=[name.lower() for name in types]))
        return row["rides"] or len(rides)


@click.command(context_settings={"show_default": True})
@click.option(
    "--records", type=click.Path(path_type=Path, exists=True), help="TLC's records of February 2021. Without: made up."
)
@click.option("--folder", type=click.Path(path_type=Path), default="demo", help="Where the two databases go.")
@click.option("--port", type=int, default=8050, envvar="PORT", help="Port of the dashboard.")
@click.option("--rides", metavar="URL", help="Another rides database, which is not made anew.")
@click.option("--only-rides", is_flag=True, help="Make the rides database, here RIDES may name it too, and no more.")
def main(records: Path | None, folder: Path, port: int, rides: str | None, only_rides: bool) -> None:
    """Make a rides database, score it by the day, fill in how long rides took, and show the predictions."""
    found = Path("data/green_tripdata_2021-02.parquet")
    records = records or (found if found.exists() else None)
    if only_rides:
        rides = rides or os.environ.get("RIDES")
    if not rides:
        folder.mkdir(exist_ok=True)
        for name in ("rides", "predictions"):
            for old in folder.glob(f"{name}.db*"):
                old.unlink()
        rides = f"sqlite:///{folder}/rides.db"
    try:
        count = write(rides, recorded(records) if records else made_up(RIDES))
    except StoreError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{shown(rides)}: {count:,} rides, {records or 'made up'}\n")
    if only_rides:
        return
    urls = ["--rides", rides, "--predictions", f"sqlite:///{folder}/predictions.db"]
    for options in (FEBRUARY, [*FEBRUARY, "--actuals"]):
        click.echo(f"python -m batch.score {' '.join([*urls, *options])}")
        score.main([*urls, *options], standalone_mode=False)
        click.echo()
    click.echo(f"python -m batch.dashboard {' '.join(urls[2:])} --port {port}")
    dashboard.main([*urls[2:], "--port", str(port)])


if __name__ == "__main__":
    main()
