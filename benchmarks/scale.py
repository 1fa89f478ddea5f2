"""Training on more rows than memory holds: `python -m benchmarks.scale` makes them, trains, and prints time and memory."""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ride_duration.zones import STRAIGHT_MILES

GROUP_ROWS = 500_000


def make_month(path: Path, month: str, rows: int, seed: int) -> None:
    """A made-up month of yellow taxis, written a row group at a time."""
    random = np.random.default_rng(seed)
    writer = None
    for start in range(0, rows, GROUP_ROWS):
        count = min(GROUP_ROWS, rows - start)
        pickup = np.datetime64(month) + random.integers(0, 28 * 86_400, count).astype("timedelta64[s]")
        zones = random.integers(1, 264, (2, count))
        miles = STRAIGHT_MILES[zones[0], zones[1]] * random.normal(1.36, 0.2, count).clip(1)
        minutes = 4 + 2 * miles + random.gamma(2, 2, count)
        table = pa.table(
            {
                "tpep_pickup_datetime": pickup.astype("datetime64[us]"),
                "tpep_dropoff_datetime": (pickup + (minutes * 60).astype("timedelta64[s]")).astype("datetime64[us]"),
                "PULocationID": zones[0],
                "DOLocationID": zones[1],
                "trip_distance": miles.round(2),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


@click.command(context_settings={"show_default": True})
@click.option("--rows", default=30_000_000, help="Rows in all, in ten months.")
@click.option("--max-rows", default=1_000_000, help="What train.py is told to sample.")
def main(rows: int, max_rows: int) -> None:
    """Train on ten made-up months of yellow taxis in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for month in tqdm(range(1, 11), desc="making records", unit="month"):
            name = f"2021-{month:02}"
            make_month(Path(folder) / f"yellow_tripdata_{name}.parquet", name, rows // 10, month)
        began = time.monotonic()
        options = ["--max-rows", str(max_rows), "--out", f"{folder}/model.bin"]
        subprocess.run([sys.executable, "train.py", f"{folder}/*.parquet", *options], check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        click.echo(f"{rows:,} rows: {time.monotonic() - began:.0f} s, {peak:.2f} GiB at most")


if __name__ == "__main__":
    main()
