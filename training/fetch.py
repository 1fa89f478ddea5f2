"""TLC's published files: found on disk, or fetched."""

import time
from glob import glob
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import requests
from tqdm import tqdm

from training.records import MONTH, RecordsError

TLC_URL = "https://d37ci6vzurychx.cloudfront.net/trip-data"

ATTEMPTS = 5
FIRST_WAIT = 0.5
"""Seconds before the second attempt; each later wait is twice as long."""


def month_file(taxi: str, month: str, folder: Path, base_url: str = TLC_URL) -> Path:
    """The published file of a month: from `folder`, else fetched from TLC and kept there.

    Raises
    ------
    RecordsError
        If it is neither there nor to be had; the message says what to put where.
    """
    if not MONTH.fullmatch(month):
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
    for attempt in range(1, ATTEMPTS + 1):
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
            if attempt == ATTEMPTS:
                part.unlink(missing_ok=True)
                raise OSError(f"gave up after {ATTEMPTS} attempts: {error}") from None
            if isinstance(error, pa.ArrowInvalid):
                part.unlink()
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
