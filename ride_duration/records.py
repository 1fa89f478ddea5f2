"""TLC trip records: found, fetched, read and cleaned."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import requests
from numpy.typing import NDArray
from tqdm import tqdm

from ride_duration.inputs import Columns, hours_of_week
from ride_duration.ride import MAX_MILES
from ride_duration.zones import FIRST_ZONE, LAST_ZONE

TLC_URL = "https://d37ci6vzurychx.cloudfront.net/trip-data"
PREFIXES = {"green": "lpep", "yellow": "tpep"}

_ATTEMPTS = 5
FIRST_WAIT = 0.5  # seconds before the second attempt; each later wait is twice as long
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


class RecordsError(ValueError):
    """Trip records that can't be found or read, with what to do about it."""


class Trips(NamedTuple):
    """Cleaned trips, each array of shape (trips,)."""

    rides: Columns
    """Distances that no ride may have are unknown."""
    pickup: NDArray[np.datetime64]
    recorded_distance: NDArray[np.float64]
    """Miles as the meter recorded them, meter errors included."""
    duration: NDArray[np.float64]
    """Minutes, of any length."""

    def part(self, rows: Any) -> "Trips":
        """The trips that a numpy index names."""
        return Trips(self.rides.part(rows), *(column[rows] for column in self[1:]))

    def months(self) -> list[str]:
        """Months of the pickups, like 2021-01, in order."""
        return [str(month) for month in np.unique(self.pickup.astype("datetime64[M]"))]

    @classmethod
    def join(cls, parts: list["Trips"]) -> "Trips":
        """All trips of several."""
        rides = Columns(*map(np.concatenate, zip(*(part.rides for part in parts), strict=True)))
        return cls(rides, *map(np.concatenate, zip(*(part[1:] for part in parts), strict=True)))


def month_file(taxi: str, month: str, folder: Path, base_url: str = TLC_URL) -> Path:
    """The published file of a month: from `folder`, else fetched from TLC and kept there.

    Raises
    ------
    RecordsError
        If it is neither there nor to be had; the message says what to put where.
    """
    if not _MONTH.fullmatch(month):
        raise RecordsError(f"a month is written like 2021-01; got {month!r}")
    path = folder / f"{taxi}_tripdata_{month}.parquet"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        url = f"{base_url.rstrip('/')}/{path.name}"
        try:
            _fetch(url, path)
        except (OSError, ValueError) as error:
            raise RecordsError(
                f"{path} is not there and {url} can't be fetched ({error}); put the file there yourself"
            ) from None
    return path


def find(source: str, folder: Path) -> list[Path]:
    """The files that a path, a glob or a URL names; a URL is fetched into `folder`.

    Raises
    ------
    RecordsError
        If there is none.
    """
    if source.startswith(("http://", "https://")):
        path = folder / Path(source.partition("?")[0]).name
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            try:
                _fetch(source, path)
            except (OSError, ValueError) as error:
                raise RecordsError(f"{source} can't be fetched ({error})") from None
        return [path]
    paths = sorted(map(Path, glob(source)))
    if not paths:
        raise RecordsError(f"{source}: no such file; give a path, a glob or a URL of TLC Parquet files, or --month")
    return paths


def _fetch(url: str, path: Path) -> None:
    """Download to `path`: resumed where a connection breaks, whole or not at all."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    etag = None
    for attempt in range(1, _ATTEMPTS + 1):
        done = part.stat().st_size if part.exists() else 0
        # If-Range: continue only if it is still the same file, else start again
        resume: dict[str, str] = {"Range": f"bytes={done}-", "If-Range": etag} if done and etag else {}
        try:
            with requests.get(url, headers=resume, stream=True, timeout=(10, 60)) as answer:
                if answer.status_code in (403, 404):
                    raise ValueError(f"HTTP {answer.status_code}: it has not been published")
                answer.raise_for_status()
                resumed = answer.status_code == 206
                etag = answer.headers.get("ETag")
                size = int(answer.headers.get("Content-Length", 0)) + (done if resumed else 0)
                with (
                    part.open("ab" if resumed else "wb") as file,
                    tqdm(total=size or None, initial=done if resumed else 0, unit="B", unit_scale=True, desc=path.name) as bar,
                ):
                    for chunk in answer.iter_content(2**14):
                        bar.update(file.write(chunk))
            pq.ParquetFile(part).close()  # a file cut short has no footer
            part.replace(path)
            return
        except (requests.RequestException, pa.ArrowInvalid) as error:
            if attempt == _ATTEMPTS:
                part.unlink(missing_ok=True)
                raise OSError(f"gave up after {_ATTEMPTS} attempts: {error}") from None
            if isinstance(error, pa.ArrowInvalid):
                part.unlink()
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))


def read_trips(path: Path) -> tuple[Trips, Counter[str]]:
    """Read and clean a Parquet file of trips, as TLC publishes it, for green or yellow taxis.

    A file named like `…_2021-01.parquet` gives the trips of that month.

    Returns
    -------
    The trips that a model can be tested on, of whatever duration, and the account: how many rows were `read`, how many were
    dropped under each reason.

    Raises
    ------
    RecordsError
        If it isn't Parquet, lacks a column, or has one of another type.
    """
    named = re.search(rf"({_MONTH.pattern})\.parquet$", path.name)
    month = np.datetime64(named[1]) if named else None
    account: Counter[str] = Counter()
    try:
        parts = [_clean(columns, month, account) for columns in _read_columns(path)]
    except pa.ArrowException as error:
        raise RecordsError(f"{path} can't be read as TLC trip records: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise RecordsError(f"{path} can't be read: {error.strerror or error}") from None
    if not parts:
        raise RecordsError(f"{path} holds no rows")
    return Trips.join(parts), account


def _read_columns(path: Path) -> Iterator[list[NDArray[Any]]]:
    """Pickup and drop-off time, zones and distance of each batch of rows."""
    with pq.ParquetFile(path) as file:
        names = set(file.schema_arrow.names)
        prefix = next((prefix for prefix in PREFIXES.values() if f"{prefix}_pickup_datetime" in names), "lpep")
        schema = pa.schema(
            [
                (f"{prefix}_pickup_datetime", pa.timestamp("us")),
                (f"{prefix}_dropoff_datetime", pa.timestamp("us")),
                ("PULocationID", pa.float64()),
                ("DOLocationID", pa.float64()),
                ("trip_distance", pa.float64()),
            ]
        )
        missing = [name for name in schema.names if name not in names]
        if missing:
            raise RecordsError(f"{path} lacks the columns {', '.join(missing)}: it isn't a file of TLC's green or yellow trips")
        for field in schema:
            kind = file.schema_arrow.field(field.name).type
            if pa.types.is_timestamp(kind) != pa.types.is_timestamp(field.type) or getattr(kind, "tz", None):
                raise RecordsError(f"{path}: {field.name} is {kind} where TLC's files have {field.type}")
        for batch in file.iter_batches(columns=schema.names):
            yield [
                column.cast(field.type, safe=False).to_numpy(zero_copy_only=False)
                for column, field in zip(batch.select(schema.names).columns, schema, strict=True)
            ]


def _clean(columns: list[NDArray[Any]], month: np.datetime64 | None, account: Counter[str]) -> Trips:
    pickup, dropoff, pickup_zone, dropoff_zone, distance = columns
    duration = (dropoff - pickup) / np.timedelta64(1, "m")
    outside = np.zeros(len(pickup), bool) if month is None else pickup.astype("datetime64[M]") != month
    zones = np.stack([pickup_zone, dropoff_zone])
    kept = np.ones(len(pickup), bool)
    account["read"] += len(pickup)
    for reason, bad in {
        "no pickup or drop-off time": np.isnan(duration),
        f"pickup outside {month}": outside,
        "zone null or not of TLC's": ~((zones >= FIRST_ZONE) & (zones <= LAST_ZONE)).all(axis=0),
    }.items():
        account[reason] += int((kept & bad).sum())
        kept &= ~bad
    rides = Columns(
        pickup_zone[kept].astype(np.int64),
        dropoff_zone[kept].astype(np.int64),
        np.where((distance >= 0) & (distance <= MAX_MILES), distance, np.nan)[kept],
        hours_of_week(pickup[kept]),
    )
    return Trips(rides, pickup[kept], distance[kept], duration[kept])
