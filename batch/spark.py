"""The batch job on a Spark cluster, for more rides than one machine should score: Parquet in and out, the same column scorer.

`PYTHONPATH=. spark-submit --master 'local[2]' batch/spark.py --rides data --predictions predictions --from … --to …`

The folders are those of `files`; the partitions of the intervals that are scored are overwritten, no others.
"""

import sys
from collections.abc import Iterator
from datetime import datetime, timedelta

import click
import numpy as np

try:
    import pyarrow as pa
    from pyspark import StorageLevel
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql import functions as F  # noqa: N812  # as all of Spark's users know it
    from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

    from batch.score import EXIT_MODEL, EXIT_STORE, Failure, account, every_option, intervals
    from batch.scoring import score
    from ride_duration.stores import TABLES, StoreError, find_columns, now, seconds
    from ride_duration.stores.files import check_types, normalised, partition
    from ride_duration.stores.ids import Ids
    from ride_duration.stores.options import column_option
except ModuleNotFoundError as error:
    sys.exit(f"batch.spark needs {error.name}: run `make spark`, then PYTHONPATH=. .venv/bin/spark-submit batch/spark.py")

from ride_duration.model import ModelError
from ride_duration.model_file import load_model, parse_model

_REJECTS = [field for field in TABLES["rejects"] if field.name not in TABLES["predictions"].names]
SCORED = pa.schema([*TABLES["predictions"], *_REJECTS, ("interval", pa.string())])
"""Predictions and rejects in one: a reject has a reason."""


def scored(rides: DataFrame, columns: dict[str, str], model_file: bytes, todo: list[tuple[datetime, datetime]]) -> DataFrame:
    """Predictions and rejects, as `SCORED`, of the rides of adjoining intervals.

    Parameters
    ----------
    columns
        Their name of each of ours.
    """
    pickup = F.col(columns["pickup_datetime"])
    day, (start, end) = timedelta(days=1), (todo[0][0], todo[-1][1])
    rides = rides.select(*columns.values()).where(
        (pickup.cast("timestamp_ntz") >= F.lit(start - day).cast("timestamp_ntz"))  # a day wider: a time may have a zone
        & (pickup.cast("timestamp_ntz") < F.lit(end + day).cast("timestamp_ntz"))
    )
    # by time, so that rides that are alike come together, which are numbered, and a task writes few intervals
    tasks = max(rides.rdd.getNumPartitions(), rides.sparkSession.sparkContext.defaultParallelism)
    rides = rides.repartitionByRange(tasks, pickup).sortWithinPartitions(pickup)
    edges = np.array([seconds(begin) for begin, _ in todo] + [seconds(end)])
    shipped = rides.sparkSession.sparkContext.broadcast(model_file)
    names = pa.array([partition(*interval) for interval in todo])

    def of_partition(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        model, ids = parse_model(shipped.value), Ids()
        for batch in batches:
            table = normalised(pa.Table.from_batches([batch]), columns)
            times = table["pickup"].to_numpy()
            table = table.filter(pa.array((times >= edges[0]) & (times < edges[-1])))
            for part in table.combine_chunks().to_batches():
                for rows in score(model, part, ids):
                    times = rows["pickup_datetime"].to_numpy().astype("datetime64[s]").astype(np.int64)
                    interval = names.take(pa.array(np.searchsorted(edges, times, "right") - 1))
                    yield from _as_scored(rows.append_column("interval", interval)).to_batches()

    return rides.mapInArrow(of_partition, from_arrow_schema(_spark_types(SCORED), prefer_timestamp_ntz=True))


def _as_scored(rows: pa.Table) -> pa.Table:
    """Predictions, or rejects, with the columns of both."""
    schema = _spark_types(SCORED)
    both = [rows[f.name].cast(f.type) if f.name in rows.column_names else pa.nulls(len(rows), f.type) for f in schema]
    return pa.table(both, schema=schema)


def _spark_types(schema: pa.Schema) -> pa.Schema:
    """Spark's times are in microseconds."""
    types = [pa.timestamp("us") if pa.types.is_timestamp(field.type) else field.type for field in schema]
    return pa.schema(list(zip(schema.names, types, strict=True)))


def write(frame: DataFrame, root: str, table: str) -> None:
    """Overwrite the partitions that there are rows of."""
    names = [name for name in TABLES[table].names if name != "model_version"]
    frame = frame.select(*names, "interval", "model_version")
    frame.write.mode("overwrite").partitionBy("interval", "model_version").parquet(f"{root.rstrip('/')}/{table}")


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option("--rides", "rides_path", required=True, metavar="PATH", help="Parquet files or folders, as Spark names them.")
@click.option("--predictions", "root", required=True, metavar="PATH", help="The folder of predictions, rejects and runs.")
@click.option("--from", "start", type=click.DateTime(), required=True, help="First pickup time, New York's.")
@click.option("--to", "end", type=click.DateTime(), required=True, help="End of the pickup times, itself not in.")
@every_option
@column_option
@click.option("--model", "model_path", envvar="MODEL", default="model.bin", help="The model file, where spark-submit runs.")
def main(
    rides_path: str, root: str, start: datetime, end: datetime, every: str, mapping: dict[str, str], model_path: str
) -> None:
    """Score the rides picked up within each interval of a time, on the cluster that spark-submit names.

    Exit codes: 0 done, 2 wrong options, 3 the rides can't be used, 4 the model can't.
    """
    began = now()
    try:
        model = load_model(model_path, "duration")
    except ModelError as error:
        raise Failure(error, EXIT_MODEL) from None
    with open(model_path, "rb") as file:
        model_file = file.read()
    todo = list(intervals(start, end, every))
    if not todo:
        raise click.UsageError(f"--from must be before --to; got {start} and {end}")
    spark = SparkSession.builder.appName("ride-duration").getOrCreate()
    spark.conf.set("spark.sql.sources.partitionOverwriteMode", "dynamic")
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    try:
        rides = spark.read.option("recursiveFileLookup", "true").parquet(*rides_path.split(","))
        columns = find_columns(rides.columns, mapping)
        check_types(to_arrow_schema(rides.schema), columns)
    except StoreError as error:
        raise Failure(error, EXIT_STORE) from None
    except Exception as error:
        raise Failure(f"{rides_path}: {str(error).splitlines()[0]}", EXIT_STORE) from None
    rows = scored(rides, columns, model_file, todo).persist(StorageLevel.DISK_ONLY)
    reject = F.col("reason").isNotNull()
    write(rows.where(~reject), root, "predictions")
    write(rows.where(reject), root, "rejects")
    counts = {
        row["interval"]: (row["predicted"], row["rejected"])
        for row in rows.groupBy("interval")
        .agg(F.count_if(~reject).alias("predicted"), F.count_if(reject).alias("rejected"))
        .collect()
    }
    runs = []
    took, finished = (now() - began).total_seconds() / len(todo), now()
    for begin, finish in todo:
        interval = partition(begin, finish)
        predicted, rejected = counts.get(interval, (0, 0))
        runs.append((begin, finish, model.version, predicted + rejected, predicted, rejected, took, finished, interval))
    schema = pa.schema([*_spark_types(TABLES["runs"]), ("interval", pa.string())])
    write(spark.createDataFrame(runs, from_arrow_schema(schema, prefer_timestamp_ntz=True)), root, "runs")
    predicted, rejected = (sum(count[place] for count in counts.values()) for place in (0, 1))
    click.echo(account(len(todo), every, predicted + rejected, predicted, rejected, model.version))
    spark.stop()


if __name__ == "__main__":
    main()
