"""Many rides, made of real ones: the records of January and February 2021, drawn again and again, at other minutes."""

import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from training.evaluation import in_range
from training.fetch import TLC_URL, month_file
from training.fit import fit_course
from training.records import read_trips

MONTH = "2021-02"
DAYS = 28
COLUMNS = ["lpep_pickup_datetime", "lpep_dropoff_datetime", "PULocationID", "DOLocationID", "trip_distance"]


def batches(rows: int, data: Path) -> Iterator[pa.Table]:
    """Rides of February 2021 in order of time, a day at a time."""
    files = [month_file("green", month, data, TLC_URL) for month in ("2021-01", "2021-02")]
    real = pa.concat_tables([pq.read_table(file, columns=COLUMNS) for file in files]).combine_chunks()
    took = real[COLUMNS[1]].to_numpy() - real[COLUMNS[0]].to_numpy()
    chance = np.random.default_rng(1)
    for day in tqdm(range(DAYS), desc=f"making {rows:,} rides", unit="day", leave=False, disable=None):
        count = rows * (day + 1) // DAYS - rows * day // DAYS
        picked = chance.integers(0, len(real), count)
        seconds = np.sort(chance.integers(0, 86_400, count)).astype("timedelta64[s]")
        pickup = (np.datetime64(MONTH, "us") + np.timedelta64(day, "D")) + seconds
        drawn = real.select(COLUMNS[2:]).take(pa.array(picked))
        yield pa.table([pickup, pickup + took[picked], *drawn.columns], names=COLUMNS)


def make(folder: Path, rows: int, data: Path) -> None:
    """`rides.parquet`, `rides.db`, which has an index on the pickup, and `course.bin`, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "done"
    if done.exists():
        return
    (folder / "rides.db").unlink(missing_ok=True)
    with closing(sqlite3.connect(folder / "rides.db")) as database, database:
        database.execute(f"create table rides ({', '.join(COLUMNS)})")
        writer = None
        for table in batches(rows, data):
            writer = writer or pq.ParquetWriter(folder / "rides.parquet", table.schema)
            writer.write_table(table)
            texts = [np.datetime_as_string(table[name].to_numpy(), "s").tolist() for name in COLUMNS[:2]]
            cells = zip(*texts, *(table[name].to_pylist() for name in COLUMNS[2:]), strict=True)
            database.executemany("insert into rides values (?, ?, ?, ?, ?)", cells)
        if writer:
            writer.close()
        database.execute(f"create index rides_by_pickup on rides ({COLUMNS[0]})")
    trips, _ = read_trips([month_file("green", "2021-01", data, TLC_URL)])
    (folder / "course.bin").write_bytes(pickle.dumps(fit_course(trips.part(in_range(trips, "duration"))), protocol=4))
    done.touch()
