"""Rides as columns, `stores.RIDES`, to predictions and rejects, `stores.TABLES`: what every way of the batch door does."""

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ride_duration.inputs import Columns, hours_of_week
from ride_duration.model import LinearModel
from ride_duration.ride import FIRST_YEAR, LAST_YEAR, MAX_MILES, InvalidRide, check_ride
from ride_duration.stores import MISSING, NUMBERS, TABLES, now, of_seconds
from ride_duration.zones import FIRST_ZONE, LAST_ZONE

_FIRST_TIME, _END_OF_TIME = (np.datetime64(f"{year}-01-01", "s").astype(int) for year in (FIRST_YEAR, LAST_YEAR + 1))

_ID_BYTES = 10
_TIME_BYTES = 4


def score(model: LinearModel, batch: pa.RecordBatch, ids: "Ids") -> tuple[pa.Table, pa.Table]:
    """Predictions, and rejects, of rides as columns.

    Parameters
    ----------
    batch
        As `stores.RIDES`, sorted by time.
    ids
        Those of the batches before.
    """
    pickup = batch["pickup"].to_numpy()
    *zones, distance = (batch[name].to_numpy() for name in NUMBERS)
    miles = np.where(distance == MISSING, np.nan, distance)
    good = pc.equal(batch["odd"], "").to_numpy(zero_copy_only=False)
    good &= (pickup >= _FIRST_TIME) & (pickup < _END_OF_TIME)
    for zone in zones:
        good &= (zone >= FIRST_ZONE) & (zone <= LAST_ZONE) & (zone == np.floor(zone))
    good &= (np.isnan(miles) & (not model.needs_distance)) | ((miles >= 0) & (miles <= MAX_MILES))
    ride_ids = ids.of(batch)
    when, scored_at = pickup.astype("datetime64[s]"), now()

    rows = np.flatnonzero(good)
    if len(rows) == len(batch):
        rows = slice(None)  # type: ignore[assignment]  # no copies
    columns = Columns(zones[0][rows].astype(np.int64), zones[1][rows].astype(np.int64), miles[rows], hours_of_week(when[rows]))
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


class Ids:
    """The ids of an interval's rides: their own, or a digest of what is known before a ride ends.

    A digest begins with the time, so that a database adds it at the end of its index. Rides that are alike to the second are
    numbered; they come one after the other, sorted by time.
    """

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._second = -1

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        """Ids as text, one a row."""
        own, pickup = batch["ride_id"], batch["pickup"].to_numpy()
        absent = pc.equal(own, "")
        if not pc.any(absent).as_py():
            return own
        digests = pickup.astype(np.uint64)
        for name in NUMBERS:
            digests = _mixed(digests ^ batch[name].to_numpy().view(np.uint64))
        digests = self._numbered(digests, pickup)
        made = np.empty((len(batch), _ID_BYTES), np.uint8)
        made[:, :_TIME_BYTES] = _big_endian(pickup.astype(np.uint64))[:, -_TIME_BYTES:]
        made[:, _TIME_BYTES:] = _big_endian(digests)[:, _TIME_BYTES - _ID_BYTES :]
        text = made.tobytes().hex().encode()
        offsets = np.arange(0, 2 * _ID_BYTES * len(batch) + 1, 2 * _ID_BYTES, dtype=np.int32)
        digest = pa.StringArray.from_buffers(len(batch), pa.py_buffer(offsets), pa.py_buffer(text))
        return digest if pc.all(absent).as_py() else pc.if_else(absent, digest, own)

    def _numbered(self, digests: NDArray[np.uint64], pickup: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Digests that are all different: the second of the same is mixed with a 1, the third with a 2."""
        if not len(digests):
            return digests
        order = np.argsort(digests, kind="stable")
        ordered = digests[order]
        first = np.r_[True, ordered[1:] != ordered[:-1]]
        start = np.flatnonzero(first)
        number = np.arange(len(ordered)) - np.repeat(start, np.diff(np.r_[start, len(ordered)]))
        numbers = np.empty(len(digests), np.int64)
        numbers[order] = number
        for row in np.flatnonzero(pickup == self._second):  # those that the last batch has begun
            numbers[row] += self._last.get(int(digests[row]), 0)
        if self._second != pickup[-1]:
            self._second, self._last = int(pickup[-1]), {}
        last = pickup == self._second
        # the last of each is numbered highest
        self._last |= dict(zip(digests[last].tolist(), (numbers[last] + 1).tolist(), strict=True))
        numbered = digests.copy()
        for row in np.flatnonzero(numbers):
            numbered[row] = _mixed(digests[row : row + 1] + np.uint64(numbers[row]))[0]
        return numbered


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of 64 spread over all: the finalizer of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _big_endian(x: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The bytes of each, shape (x, 8)."""
    return x.byteswap().view(np.uint8).reshape(len(x), 8)


def _same(value: Any, count: int) -> pa.Array:
    return pa.array([value]).take(pa.array(np.zeros(count, np.int64)))
