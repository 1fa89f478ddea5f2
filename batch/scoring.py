"""Rides as columns, `stores.RIDES`, to predictions and rejects, `stores.TABLES`: what every way of the batch door does."""

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from ride_duration.model import LinearModel
from ride_duration.ride import InvalidRide, check_ride
from ride_duration.stores import MISSING, NUMBERS, TABLES, now, of_seconds
from ride_duration.stores.columns import columns_of, well_formed
from ride_duration.stores.ids import Ids


def score(model: LinearModel, batch: pa.RecordBatch, ids: Ids) -> tuple[pa.Table, pa.Table]:
    """Predictions, and rejects, of rides as columns.

    Parameters
    ----------
    batch
        As `stores.RIDES`, sorted by time.
    ids
        Those of the batches before.
    """
    when, scored_at = batch["pickup"].to_numpy().astype("datetime64[s]"), now()
    good = well_formed(batch)
    if model.needs_distance:
        good &= batch["trip_distance"].to_numpy() != MISSING
    ride_ids = ids.of(batch)

    rows = np.flatnonzero(good)
    if len(rows) == len(batch):
        rows = slice(None)  # type: ignore[assignment]  # no copies
    columns = columns_of(batch, rows)
    durations = model.predict_columns(columns)
    count = len(durations)
    low, high = model.interval_columns(columns, durations) if model.has_interval else (pa.nulls(count), pa.nulls(count))
    predictions = [
        ride_ids if count == len(batch) else ride_ids.take(pa.array(rows)),
        _same(model.version, count),
        when[rows],
        columns.PULocationID,
        columns.DOLocationID,
        pa.array(columns.trip_distance, from_pandas=True),
        durations,
        low,
        high,
        _same(scored_at, count),
        pa.nulls(count),
    ]
    bad = np.flatnonzero(~good)
    reasons = [_reason(model, batch.slice(row, 1).to_pylist()[0]) for row in bad.tolist()]
    rejects = [
        ride_ids.take(pa.array(bad)),
        _same(model.version, len(bad)),
        when[bad],
        [field for field, _ in reasons],
        [reason for _, reason in reasons],
        _same(scored_at, len(bad)),
    ]
    return _table("predictions", predictions), _table("rejects", rejects)


def _table(name: str, columns: list[Any]) -> pa.Table:
    schema = TABLES[name]
    arrays = [
        column.cast(type_) if isinstance(column, pa.Array) else pa.array(column, type_)
        for column, type_ in zip(columns, schema.types, strict=True)
    ]
    return pa.table(arrays, schema=schema)


def _reason(model: LinearModel, row: dict[str, Any]) -> tuple[str, str]:
    """The first field that the contract, or the model, refuses, and why: in the words of every door."""
    ride: dict[str, Any] = {name: None if row[name] == MISSING else row[name] for name in NUMBERS}
    ride["pickup_datetime"] = of_seconds(row["pickup"]).isoformat()
    if row["odd"]:
        ride |= msgspec.json.decode(row["odd"])
    try:
        model.predict(check_ride(ride))
    except InvalidRide as error:
        return error.errors[0].field, "; ".join(f"{e.field} {e.detail}" for e in error.errors)
    raise AssertionError(f"a ride that the contract takes was not scored: {ride}")


def _same(value: Any, count: int) -> pa.Array:
    return pa.array([value]).take(pa.array(np.zeros(count, np.int64)))
