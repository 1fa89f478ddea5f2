"""Ways to score rides, each in a process of its own: `python -m benchmarks.batch.ways WAY FOLDER` prints what it cost.

All score by the course's model, a zone pair and the distance, which all of them can; ours scores by the shipped model too.
"""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

WAYS: dict[str, Callable[[Path], tuple[float, float]]] = {}
BATCH_ROWS = 65_536
FEATURES = ["PULocationID", "DOLocationID", "trip_distance"]


def way(function: Callable[[Path], tuple[float, float]]) -> Callable[[Path], tuple[float, float]]:
    """A way to score: it returns the CPU seconds of scoring alone, and the sum of the predictions."""
    WAYS[function.__name__] = function
    return function


def _coefficients(folder: Path) -> tuple[float, float, dict[str, float]]:
    """Intercept, that of the distance, those of the zone pairs."""
    vectorizer, regression = pickle.loads((folder / "course.bin").read_bytes())
    by_name = dict(zip(vectorizer.feature_names_, regression.coef_.tolist(), strict=True))
    miles = by_name.pop("trip_distance")
    return float(regression.intercept_), miles, {name.removeprefix("PU_DO="): value for name, value in by_name.items()}


def _ours(folder: Path, model_file: Path) -> tuple[float, float]:
    import numpy as np
    import pyarrow.parquet as pq

    from ride_duration.inputs import Columns, hours_of_week
    from ride_duration.model_file import load_model

    model, cpu, total = load_model(model_file), 0.0, 0.0
    for batch in pq.ParquetFile(folder / "rides.parquet").iter_batches(BATCH_ROWS):
        pickup, _, pickup_zone, dropoff_zone, miles = (column.to_numpy(zero_copy_only=False) for column in batch)
        began = time.process_time()
        columns = Columns(pickup_zone, dropoff_zone, np.clip(miles, 0, 200), hours_of_week(pickup))
        total += float(model.predict_columns(columns).sum())
        cpu += time.process_time() - began
    return cpu, total


@way
def ours(folder: Path) -> tuple[float, float]:
    """The core's column scorer."""
    return _ours(folder, folder / "course.bin")


@way
def ours_shipped(folder: Path) -> tuple[float, float]:
    """The same with model.bin, of 24,556 coefficients."""
    return _ours(folder, Path("model.bin"))


@way
def course(folder: Path) -> tuple[float, float]:
    """The course's way: rides to dicts, dicts to a matrix."""
    import pandas as pd

    vectorizer, regression = pickle.loads((folder / "course.bin").read_bytes())
    frame = pd.read_parquet(folder / "rides.parquet", columns=FEATURES)
    frame["trip_distance"] = frame["trip_distance"].clip(0, 200)
    began = time.process_time()
    categorical = ["PULocationID", "DOLocationID"]
    frame[categorical] = frame[categorical].astype(str)
    frame["PU_DO"] = frame["PULocationID"] + "_" + frame["DOLocationID"]
    dicts = frame[["PU_DO", "trip_distance"]].to_dict(orient="records")
    predicted = regression.predict(vectorizer.transform(dicts))
    return time.process_time() - began, float(predicted.sum())


@way
def pandas(folder: Path) -> tuple[float, float]:
    """Coefficients looked up by `map`."""
    import pandas as pd

    intercept, miles, pairs = _coefficients(folder)
    by_pair = pd.Series({int(p) * 1000 + int(d): value for (p, d), value in ((k.split("_"), v) for k, v in pairs.items())})
    frame = pd.read_parquet(folder / "rides.parquet", columns=FEATURES)
    began = time.process_time()
    pair = (frame["PULocationID"] * 1000 + frame["DOLocationID"]).map(by_pair).fillna(0)
    predicted = intercept + frame["trip_distance"].clip(0, 200) * miles + pair
    return time.process_time() - began, float(predicted.sum())


@way
def polars(folder: Path) -> tuple[float, float]:
    """Coefficients joined."""
    import polars as pl

    intercept, miles, pairs = _coefficients(folder)
    split = [(*map(int, name.split("_")), value) for name, value in pairs.items()]
    table = pl.DataFrame(split, schema=["PULocationID", "DOLocationID", "pair"], orient="row")
    frame = pl.read_parquet(folder / "rides.parquet", columns=FEATURES)
    began = time.process_time()
    joined = frame.join(table, on=FEATURES[:2], how="left")
    predicted = joined.select(intercept + pl.col("trip_distance").clip(0, 200) * miles + pl.col("pair").fill_null(0))
    return time.process_time() - began, float(predicted.to_series().sum())


@way
def duckdb(folder: Path) -> tuple[float, float]:
    """Coefficients joined, in SQL, over the file."""
    import duckdb as db
    import pyarrow as pa

    intercept, miles, pairs = _coefficients(folder)
    split = [(*map(int, name.split("_")), value) for name, value in pairs.items()]
    database = db.connect()
    coefficients = pa.table(list(zip(*split, strict=True)), names=["p", "d", "pair"])
    database.register("coefficients", coefficients)
    database.execute(f"create table rides as select {', '.join(FEATURES)} from '{folder}/rides.parquet'")
    began = time.process_time()
    (total,) = database.execute(
        f"select sum({intercept} + greatest(0, least(200, trip_distance)) * {miles} + coalesce(pair, 0)) from rides "
        "left join coefficients on p = PULocationID and d = DOLocationID"
    ).fetchall()[0]
    return time.process_time() - began, float(total)


@way
def copy_parquet(folder: Path) -> tuple[float, float]:
    """No scoring: the file, read and written."""
    import pyarrow.parquet as pq

    source, rows = pq.ParquetFile(folder / "rides.parquet"), 0
    with pq.ParquetWriter(folder / "copy.parquet", source.schema_arrow) as writer:
        for batch in source.iter_batches(BATCH_ROWS):
            writer.write_batch(batch)
            rows += len(batch)
    (folder / "copy.parquet").unlink()
    return time.process_time(), rows


def _copy(source: Path, target: Path, select: str, table: str, create: list[str]) -> float:
    from adbc_driver_sqlite import dbapi

    target.unlink(missing_ok=True)
    one, other = dbapi.connect(str(source)), dbapi.connect(str(target))
    with one, other, one.cursor() as reading, other.cursor() as writing:
        for sql in create:
            writing.execute(sql)
        other.commit()
        reading.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})
        reading.execute(select)
        writing.adbc_ingest(table, reading.fetch_record_batch(), mode="append")
        other.commit()
    size = target.stat().st_size
    target.unlink()
    return float(size)


@way
def copy_sqlite(folder: Path) -> tuple[float, float]:
    """No scoring: the rides' table, five columns and no key, read and written through the same driver."""
    columns = "lpep_pickup_datetime text, lpep_dropoff_datetime text, PULocationID integer, DOLocationID integer"
    create = [f"create table rides ({columns}, trip_distance real)"]
    size = _copy(folder / "rides.db", folder / "copy.db", "select * from rides order by lpep_pickup_datetime", "rides", create)
    return time.process_time(), size


@way
def copy_predictions(folder: Path) -> tuple[float, float]:
    """No scoring: a table of predictions, eleven columns with its key and index, read and written through the same driver."""
    import sqlite3
    from contextlib import closing

    made = folder / "predictions.db"
    if not made.exists():
        source, target = f"sqlite:///{folder}/rides.db", f"sqlite:///{made}"
        days = ["--from", "2021-02-01", "--to", "2021-03-01"]
        command = [sys.executable, "-m", "batch.score", "--rides", source, "--predictions", target, *days]
        subprocess.run(command, check=True, capture_output=True)
    with closing(sqlite3.connect(made)) as database:
        create = [
            sql for (sql,) in database.execute("select sql from sqlite_master where tbl_name = 'predictions' and sql <> ''")
        ]
    began = time.process_time()
    size = _copy(made, folder / "copy.db", "select * from predictions", "predictions", create)
    return time.process_time() - began, size


@way
def job(folder: Path) -> tuple[float, float]:
    """`batch.score` with the options that follow: its whole process, start and model included."""
    from batch.score import main

    main(sys.argv[3:], standalone_mode=False)
    return time.process_time(), 0


def main() -> None:
    """Run one way."""
    cpu, total = WAYS[sys.argv[1]](Path(sys.argv[2]))
    (high,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    peak = int(high.split()[1]) / 1024  # rusage has what the parent had
    sys.stdout.write("\n" + json.dumps({"cpu": cpu, "total": total, "peak": peak}))


if __name__ == "__main__":
    main()
