"""Rides and predictions as Parquet, local or in an object store: pyarrow's file systems.

Predictions are a folder of `predictions/`, `rejects/` and `runs/`, partitioned as Spark, DuckDB and pandas read them:
`predictions/interval=20210201T000000-20210202T000000/model_version=…/part-0.parquet`. A part is written beside, made durable,
renamed; its run comes last, and a part without a run counts for nothing. Rides that come late make a part of their own.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs, types

from ride_duration.logs import shown
from ride_duration.model import LinearModel
from ride_duration.ride import NEW_YORK
from ride_duration.stores import MISSING, NUMBERS, RIDES, TABLES, Address, Span, StoreError, find_columns, of_seconds, seconds

CHUNK_ROWS = 1_000_000
"""So many rides at most are held and sorted at a time, unless a single hour has more."""

_BATCH_ROWS = 65_536
_HOUR = 3600
_TIME = "%Y%m%dT%H%M%S"
_WRITING = ".writing-"


class FileRides:
    """The rides of Parquet files: `stores.Rides`. TLC's own files need no mapping.

    Parameters
    ----------
    address
        A file, a folder of files, or a pattern with `*`.
    mapping
        Their names of columns that are called otherwise there.
    """

    def __init__(self, address: Address, mapping: Mapping[str, str]) -> None:
        self.address = address
        with _told(address):
            system, paths = _find(address)
            self._files = [_File(path, pq.ParquetFile(path, filesystem=system), mapping, address) for path in paths]

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            file.file.close()

    def span(self, since: datetime | None) -> Span:
        """What times there are since a time."""
        low = seconds(since or datetime.min)
        groups = list(self._groups(low, seconds(datetime.max)))
        times = [group.pickups() for group in groups]
        timeless = sum(group.rows for group in groups) - sum(map(len, times))
        known = [(found.min(), found.max()) for found in (time[time >= low] for time in times) if len(found)]
        if not known:
            return Span(None, None, timeless)
        return Span(
            of_seconds(int(min(first for first, _ in known))), of_seconds(int(max(last for _, last in known))), timeless
        )

    def exist(self, start: datetime, end: datetime) -> bool:
        """Whether any was picked up within [start, end)."""
        low, high = seconds(start), seconds(end)
        return any(((p >= low) & (p < high)).any() for p in (g.pickups() for g in self._groups(low, high)))

    def read(self, start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        """Those picked up within [start, end), as `stores.RIDES`."""
        for low, high in self._chunks(seconds(start), seconds(end)):
            with _told(self.address):
                parts = [group.read(low, high) for group in self._groups(low, high)]
            if parts:
                yield from pa.concat_tables(parts).sort_by("pickup").combine_chunks().to_batches(_BATCH_ROWS)

    def _groups(self, low: int, high: int) -> Iterator["_Group"]:
        """The row groups that may have a pickup within [low, high)."""
        for file in self._files:
            for group in file.groups:
                if group.first is None or (group.first < high and group.last >= low):
                    yield group

    def _chunks(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """The interval in parts of whole hours, of `CHUNK_ROWS` at most where that can be."""
        groups = list(self._groups(low, high))
        if sum(group.rows for group in groups) <= CHUNK_ROWS:
            yield low, high
            return
        counts = np.zeros(-(-(high - low) // _HOUR), np.int64)
        for group in groups:
            pickups = group.pickups()
            counts += np.bincount((pickups[(pickups >= low) & (pickups < high)] - low) // _HOUR, minlength=len(counts))
        begin, rows = 0, 0
        for hour, count in enumerate(counts.tolist()):
            if rows and rows + count > CHUNK_ROWS:
                yield low + begin * _HOUR, low + hour * _HOUR
                begin, rows = hour, 0
            rows += count
        yield low + begin * _HOUR, high


class _File:
    """A Parquet file, and its own names and types of a ride's columns."""

    def __init__(self, path: str, file: pq.ParquetFile, mapping: Mapping[str, str], address: Address) -> None:
        self.path, self.file = path, file
        schema = file.schema_arrow
        try:
            self.columns = find_columns(schema.names, mapping)
            check_types(schema, self.columns)
        except StoreError as error:
            raise StoreError(f"{shown(address.url)}: {path}: {error}") from None
        self.groups = [_Group(self, number) for number in range(file.num_row_groups)]


class _Group:
    """A row group, and its first and last pickup in seconds, a day wider, where the file tells."""

    def __init__(self, file: _File, number: int) -> None:
        self.file, self.number = file, number
        metadata = file.file.metadata.row_group(number)
        self.rows = metadata.num_rows
        self.first: int | None = None
        self.last = 0
        pickup = file.columns["pickup_datetime"]
        for place in range(metadata.num_columns):
            column = metadata.column(place)
            statistics = column.statistics
            if column.path_in_schema == pickup and statistics is not None and statistics.has_min_max:
                bounds = (statistics.min, statistics.max)
                if all(isinstance(bound, datetime) for bound in bounds):
                    first, last = (seconds(bound.replace(tzinfo=None)) for bound in bounds)
                    self.first, self.last = first - 24 * _HOUR, last + 24 * _HOUR

    def pickups(self) -> NDArray[np.int64]:
        """Seconds, of those that are known."""
        name = self.file.columns["pickup_datetime"]
        column = self.file.file.read_row_group(self.number, columns=[name])[name]
        return np.asarray(_clock(column).drop_null(), np.int64)

    def read(self, low: int, high: int) -> pa.Table:
        """The rides of [low, high)."""
        names = list(self.file.columns.values())
        table = normalised(self.file.file.read_row_group(self.number, columns=names), self.file.columns)
        return table.filter(pc.and_(pc.greater_equal(table["pickup"], low), pc.less(table["pickup"], high)))


def partition(start: datetime, end: datetime) -> str:
    """The name of an interval's folders, after `interval=`."""
    return f"{start:{_TIME}}-{end:{_TIME}}"


def check_types(schema: pa.Schema, columns: Mapping[str, str]) -> None:
    """Refuse columns of types that a ride's never have.

    Raises
    ------
    StoreError
        With the column, its type, and what is wanted.
    """
    for ours, theirs in columns.items():
        type_ = schema.field(theirs).type
        if ours in NUMBERS:
            good, wanted = any(is_(type_) for is_ in (types.is_integer, types.is_floating, types.is_decimal)), "numbers"
        elif ours == "ride_id":
            good, wanted = any(is_(type_) for is_ in (types.is_integer, types.is_string, types.is_large_string)), "text"
        else:
            good, wanted = types.is_timestamp(type_), "timestamps"
        if not good and not types.is_null(type_):
            raise StoreError(f"column {theirs} is of {type_}, and {wanted} are wanted")


def normalised(table: pa.Table, columns: Mapping[str, str]) -> pa.Table:
    """Their rides as `stores.RIDES`; those without a time are left out.

    Parameters
    ----------
    columns
        Their name of each of ours, of types that `check_types` takes.
    """
    pickup = _clock(table[columns["pickup_datetime"]])
    if pickup.null_count:
        table, pickup = table.filter(pc.is_valid(pickup)), pickup.drop_null()
    empty = pa.chunked_array([pa.repeat(pa.scalar(""), len(table))])
    actual = pa.chunked_array([pa.repeat(pa.scalar(MISSING), len(table))])
    if "dropoff_datetime" in columns:
        took = pc.divide(pc.cast(pc.subtract(_clock(table[columns["dropoff_datetime"]]), pickup), pa.float64()), 60.0)
        actual = pc.fill_null(took, MISSING)
    numbers = []
    for name in NUMBERS:
        number = table[columns[name]].cast(pa.float64(), safe=False)
        numbers.append(pc.if_else(pc.is_valid(number), pc.if_else(pc.is_nan(number), MISSING, number), MISSING))
    ride_id = pc.fill_null(table[columns["ride_id"]].cast(pa.string()), "") if "ride_id" in columns else empty
    return pa.table([ride_id, pickup, *numbers, actual, empty], schema=RIDES)


def _clock(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Seconds of New York's clock: a time with a zone becomes New York's, one without is New York's."""
    if types.is_null(column.type):
        return column.cast(pa.int64())
    if column.type.tz:
        column = pc.local_timestamp(column.cast(pa.timestamp(column.type.unit, NEW_YORK.key)))
    return column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())


class _Part(NamedTuple):
    """A part that is done."""

    start: datetime
    end: datetime
    version: str
    path: str
    """Within each of the tables' folders."""


class FilePredictions:
    """Predictions, rejects and runs in a folder: `stores.Predictions`.

    On a local disk two jobs wait for each other. In an object store nothing makes them: two of the same interval write the
    same rows to the same names, but rides that came between them may be missed until the next run.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        with _told(address):
            self.system, self.root = _resolve(address.url)
            self.local = isinstance(self.system, fs.LocalFileSystem)
            if self.local and not Path(self.root).parent.is_dir():
                raise StoreError(f"there is no folder {Path(self.root).parent}")
            info = self.system.get_file_info(self.root)
            if info.type == fs.FileType.File:
                raise StoreError(f"{shown(address.url)} is a file, and predictions are a folder of files")
            if self.local:
                for table in TABLES:
                    self.system.create_dir(f"{self.root}/{table}", recursive=True)

    def close(self) -> None:
        """Nothing is held between intervals."""

    def last_end(self) -> datetime | None:
        """The end of the last interval that is done."""
        return max((part.end for part in self.parts()), default=None)

    def introduce(self, model: LinearModel) -> None:
        """Nothing: dashboards read databases."""

    def parts(self, start: datetime = datetime.min, end: datetime = datetime.max) -> list[_Part]:
        """Those that are done, their run is there, and that may have rides of [start, end)."""
        parts = []
        with _told(self.address):
            for interval in self._list(f"{self.root}/runs"):
                first, _, last = interval.rpartition("interval=")[2].partition("-")
                with suppress(ValueError):  # a folder that isn't ours
                    begin, finish = datetime.strptime(first, _TIME), datetime.strptime(last, _TIME)
                    if begin < end and start < finish:
                        for path in self._list(interval, recursive=True):
                            _, name, version, file = path.rsplit("/", 3)
                            if file.endswith(".parquet"):
                                parts.append(_Part(begin, finish, version.partition("=")[2], f"{name}/{version}/{file}"))
        return parts

    def _list(self, folder: str, recursive: bool = False) -> list[str]:
        selector = fs.FileSelector(folder, recursive=recursive, allow_not_found=True)
        return sorted(info.path for info in self.system.get_file_info(selector))

    @contextmanager
    def writing(self, start: datetime, end: datetime, version: str) -> Iterator["_NewPart"]:
        """An interval to write: its files are there when its run is."""
        with self._locked() as folder, _told(self.address):
            overlapping = [part.path for part in self.parts(start, end) if part.version == version]
            known = [
                self.read(table, path, ["ride_id"])["ride_id"] for path in overlapping for table in ("predictions", "rejects")
            ]
            where = f"interval={partition(start, end)}/model_version={version}"
            number = sum(path.startswith(f"{where}/") for path in overlapping)
            part = _NewPart(self, folder, f"{where}/part-{number}.parquet", known)
            try:
                yield part
            finally:
                part.close()

    @contextmanager
    def filling(self, start: datetime, end: datetime) -> Iterator["_Filling"]:
        """An interval to fill: each of its files is replaced as a whole."""
        with self._locked() as folder, _told(self.address):
            filling = _Filling(self, folder, [part.path for part in self.parts(start, end)])
            yield filling
            filling.finish()

    def read(self, table: str, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part."""
        return pq.ParquetFile(f"{self.root}/{table}/{path}", filesystem=self.system).read(columns)

    def place(self, file: Path, table: str, path: str) -> None:
        """Put a whole file where it belongs, in one step."""
        target = f"{self.root}/{table}/{path}"
        if not self.local:
            fs.copy_files(str(file), target, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self.system)
            return
        self.system.create_dir(target.rpartition("/")[0], recursive=True)
        _sync(file)
        file.replace(target)
        _sync(Path(target).parent)

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        """A folder to write in, beside what is there, of this job alone."""
        with _told(self.address):
            file = os.open(self.root, os.O_RDONLY) if self.local else None
        try:
            if file is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
                for left in Path(self.root).glob(f"{_WRITING}*"):  # of a job that was killed: none that lives has the lock
                    shutil.rmtree(left)
            with tempfile.TemporaryDirectory(dir=self.root if self.local else None, prefix=_WRITING) as folder:
                yield Path(folder)
        finally:
            if file is not None:
                os.close(file)


class _NewPart:
    """A part that is being written: `stores.Writing`."""

    def __init__(self, predictions: FilePredictions, folder: Path, path: str, known: list[pa.ChunkedArray]) -> None:
        self.predictions, self.folder, self.path = predictions, folder, path
        self.known = pa.chunked_array([chunk for ids in known for chunk in ids.chunks], pa.string()) if known else None
        self.rows = dict.fromkeys(("predictions", "rejects"), 0)
        self._writers = {table: _writer(folder / table, table) for table in self.rows}

    def add(self, predictions: pa.Table, rejects: pa.Table) -> None:
        """Add rows whose key isn't there yet."""
        for table, rows in {"predictions": predictions, "rejects": rejects}.items():
            if self.known is not None:
                rows = rows.filter(pc.invert(pc.is_in(rows["ride_id"], self.known)))
            if len(rows):
                self.rows[table] += len(rows)
                self._writers[table].write_table(rows.drop_columns(["model_version"]))

    def finish(self, run: pa.Table) -> None:
        """Add the run, of what is new."""
        self.close()
        if self.known is not None and not any(self.rows.values()):
            return
        run = run.drop_columns(["rides_read", "predicted", "rejected"])
        for name, rows in (
            ("rides_read", sum(self.rows.values())),
            ("predicted", self.rows["predictions"]),
            ("rejected", self.rows["rejects"]),
        ):
            run = run.append_column(name, pa.array([rows]))
        with _writer(self.folder / "runs", "runs") as writer:
            writer.write_table(run.select(writer.schema.names))
        for table in (*self.rows, "runs"):
            self.predictions.place(self.folder / table, table, self.path)

    def close(self) -> None:
        """End the files."""
        for writer in self._writers.values():
            writer.close()


class _Filling:
    """Parts whose actual durations are being filled in: `stores.Filling`."""

    def __init__(self, predictions: FilePredictions, folder: Path, paths: list[str]) -> None:
        self.predictions, self.folder, self.paths = predictions, folder, paths
        self.filled = 0
        self._actuals: list[pa.Table] = []

    def fill(self, actuals: pa.Table) -> None:
        """Write `actual_duration` by `ride_id` where it isn't known yet."""
        self._actuals.append(actuals)

    def finish(self) -> None:
        """Replace the files."""
        if not self._actuals:
            return
        actuals = pa.concat_tables(self._actuals).combine_chunks()
        for path in self.paths:
            rows = self.predictions.read("predictions", path)
            place = pc.index_in(rows["ride_id"], actuals["ride_id"])
            known = rows["actual_duration"]
            new = pc.sum(pc.and_(pc.is_null(known), pc.is_valid(place))).as_py() or 0
            if not new:
                continue
            both = pc.coalesce(known, actuals["actual_duration"].take(place))
            rows = rows.set_column(rows.column_names.index("actual_duration"), "actual_duration", both)
            with _writer(self.folder / "predictions", "predictions") as writer:
                writer.write_table(rows.cast(writer.schema))  # files know no whole seconds
            self.predictions.place(self.folder / "predictions", "predictions", path)
            self.filled += new


def _writer(file: Path, table: str) -> pq.ParquetWriter:
    """A file of a table; the model's version is in its path."""
    schema = pa.schema([field for field in TABLES[table] if field.name != "model_version"])
    repeated = ["PULocationID", "DOLocationID", "scored_at", "field", "reason"]  # ids are all different: a dictionary is waste
    return pq.ParquetWriter(file, schema, use_dictionary=[name for name in repeated if name in schema.names])


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _find(address: Address) -> tuple[fs.FileSystem, list[str]]:
    """The Parquet files of an address."""
    place, query, options = address.url.partition("?") if "://" in address.url else (address.url, "", "")
    fixed = place
    while "*" in fixed:
        fixed = fixed.rpartition("/")[0]
    system, path = _resolve(f"{fixed or '.'}{query}{options}")
    info = system.get_file_info(path)
    if info.type == fs.FileType.File:
        return system, [path]
    if info.type == fs.FileType.NotFound:
        raise StoreError(f"there is no file or folder {shown(place)}")
    entries = system.get_file_info(fs.FileSelector(path, recursive=True))
    files = [entry for entry in entries if entry.type == fs.FileType.File and not entry.base_name.startswith((".", "_"))]
    if fixed != place:
        pattern = f"{path}/{place[len(fixed) :].lstrip('/')}"
        paths = [entry.path for entry in files if fnmatchcase(entry.path, pattern)]
    else:
        paths = [entry.path for entry in files if entry.base_name.endswith(".parquet")]
    if not paths:
        raise StoreError(f"there is no Parquet file in {shown(place)}")
    return system, sorted(paths)


def _resolve(url: str) -> tuple[fs.FileSystem, str]:
    if "://" not in url:
        return fs.LocalFileSystem(), os.path.abspath(url)
    system, path = fs.FileSystem.from_uri(url)
    return system, path.rstrip("/")


@contextmanager
def _told(address: Address) -> Iterator[None]:
    """Pyarrow's errors as a sentence without a password."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{shown(address.url)}: {shown(' '.join(str(error).split()))}") from None
