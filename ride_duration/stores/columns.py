"""Rides as a store gives them, `stores.RIDES`, to the columns that a model scores."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ride_duration.inputs import Columns, hours_of_week
from ride_duration.ride import FIRST_YEAR, LAST_YEAR, MAX_MILES
from ride_duration.stores import MISSING, NUMBERS
from ride_duration.zones import FIRST_ZONE, LAST_ZONE

_FIRST_TIME, _END_OF_TIME = (np.datetime64(f"{year}-01-01", "s").astype(int) for year in (FIRST_YEAR, LAST_YEAR + 1))


def well_formed(batch: pa.RecordBatch) -> NDArray[np.bool_]:
    """Which rides are ones that the contract takes, those of unknown distance among them; shape (rides,)."""
    pickup = batch["pickup"].to_numpy()
    *zones, distance = (batch[name].to_numpy() for name in NUMBERS)
    good: NDArray[np.bool_] = pc.equal(batch["odd"], "").to_numpy(zero_copy_only=False)
    good &= (pickup >= _FIRST_TIME) & (pickup < _END_OF_TIME)
    for zone in zones:
        good &= (zone >= FIRST_ZONE) & (zone <= LAST_ZONE) & (zone == np.floor(zone))
    good &= (distance == MISSING) | ((distance >= 0) & (distance <= MAX_MILES))
    return good


def columns_of(batch: pa.RecordBatch, rows: Any) -> Columns:
    """The rides that a numpy index names, all of them `well_formed`."""
    pickup_zone, dropoff_zone, distance = (batch[name].to_numpy()[rows] for name in NUMBERS)
    return Columns(
        pickup_zone.astype(np.int64),
        dropoff_zone.astype(np.int64),
        np.where(distance == MISSING, np.nan, distance),
        hours_of_week(batch["pickup"].to_numpy()[rows].astype("datetime64[s]")),
    )
