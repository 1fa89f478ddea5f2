"""The same rides through the web, the batch job and the stream: one answer."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import requests
from streams import Reader, consumer

from conftest import COLUMN_TYPES, FEBRUARY, PROJECT, typed
from ride_duration.made_up import made_up
from streaming.messages import PREDICTIONS, PredictionEvent

RIDES = 1_000


def test_a_thousand_rides_get_the_same_answer_at_every_door(service: str, tmp_path: Path) -> None:
    rows = [
        (pickup, start, end, None if n % 20 == 0 else miles, dropoff)
        for n, (pickup, dropoff, start, end, miles) in enumerate(made_up(RIDES))
        if end <= 265
    ]
    table = typed(rows).append_column("ride_id", pa.array([f"ride-{n}" for n in range(len(rows))]))
    pq.write_table(table, tmp_path / "rides.parquet")

    names = [name for name in COLUMN_TYPES if name != "dropoff_datetime"]
    rides = [dict(zip(names, row, strict=False)) | {"ride_id": f"ride-{n}"} for n, row in enumerate(rows)]
    web = requests.post(f"{service}/predict?interval=true", json=rides, timeout=30).json()

    predictions, stream = f"sqlite:///{tmp_path}/predictions.db", f"sqlite:///{tmp_path}/stream.db"
    source = str(tmp_path / "rides.parquet")
    job = ["batch.score", "--rides", source, "--predictions", predictions, *FEBRUARY]
    for command in (job, ["streaming.produce", "--stream", stream, source]):
        subprocess.run([sys.executable, "-m", *command], cwd=PROJECT, check=True, capture_output=True)
    with closing(sqlite3.connect(tmp_path / "predictions.db")) as database:
        found = database.execute("select ride_id, model_version, predicted_duration, low, high from predictions").fetchall()
    batch = {ride_id: (version, duration, low, high) for ride_id, version, duration, low, high in found}
    with consumer(stream), closing(Reader(stream, PREDICTIONS)) as reader:
        events = [msgspec.json.decode(value or b"", type=PredictionEvent) for value in reader.until(len(rows))]
    streamed = {
        str(e.prediction.ride_id): (e.version, e.prediction.ride_duration, *(e.prediction.interval or ())) for e in events
    }

    assert len(rows) > 0.98 * RIDES
    assert batch.keys() == streamed.keys() == {ride["ride_id"] for ride in rides}
    worst = 0.0
    for number, (duration, interval) in enumerate(zip(web["durations"], web["intervals"], strict=True)):
        for version, *values in (batch[f"ride-{number}"], streamed[f"ride-{number}"]):
            assert version == web["model_version"]
            worst = max(worst, *(abs(a - b) for a, b in zip([duration, *interval], values, strict=True)))
    assert worst < 1e-9
