"""The batch job on Spark, on two cores of this machine: row by row what `batch.score` writes."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch.score import main
from conftest import FEBRUARY, PROJECT, made_up, missing, typed

pytestmark = pytest.mark.slow


def spark_submit(*options: str) -> subprocess.CompletedProcess[str]:
    if not find_spec("pyspark") or not shutil.which("java"):
        missing("Spark", "make spark")
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)}
    command = [str(scripts / "spark-submit"), "--master", "local[2]", "batch/spark.py", *options]
    return subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True)


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    found = ds.dataset(folder / table, format="parquet", partitioning="hive").to_table().drop_columns(["scored_at"]).to_pylist()
    return sorted(found, key=lambda row: (row["ride_id"], row["interval"]))


def test_spark_writes_what_one_machine_writes_and_overwrites_its_intervals_only(tmp_path: Path) -> None:
    pq.write_table(typed(made_up(5000)), tmp_path / "rides.parquet")
    options = ["--rides", str(tmp_path / "rides.parquet"), "--predictions", str(tmp_path / "spark")]
    first = spark_submit(*options, *FEBRUARY)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "4 intervals, week by week: 5,006 rides read = 5,003 predicted + 3 rejected" in first.stdout
    ours = CliRunner().invoke(main, [*options[:3], str(tmp_path / "ours"), *FEBRUARY])
    assert ours.exit_code == 0, ours.output
    for table, count in {"predictions": 5003, "rejects": 3}.items():
        assert rows(tmp_path / "spark", table) == rows(tmp_path / "ours", table)
        assert len(rows(tmp_path / "spark", table)) == count
    runs = ds.dataset(tmp_path / "spark" / "runs", format="parquet", partitioning="hive").to_table()
    assert sum(runs["rides_read"].to_pylist()) == 5006

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "spark" / "predictions").rglob("*.parquet")}
    again = spark_submit(*options, "--from", "2021-02-08", "--to", "2021-02-15", "--every", "week")
    assert again.returncode == 0, again.stderr[-3000:]
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "spark" / "predictions").rglob("*.parquet")}
    assert {path for path in files if "20210208" not in str(path)} == {path for path in after if "20210208" not in str(path)}
    assert all(files[path] == after[path] for path in files if "20210208" not in str(path))
    assert rows(tmp_path / "spark", "predictions") == rows(tmp_path / "ours", "predictions")


def test_what_spark_cannot_use_is_told(tmp_path: Path) -> None:
    told = spark_submit("--rides", str(tmp_path / "nowhere"), "--predictions", str(tmp_path / "out"), *FEBRUARY)
    assert told.returncode == 3
    assert "nowhere" in told.stderr
