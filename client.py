"""A client of the ride duration service: a class to import, and a command. It needs this file, requests, click and tqdm.

>>> client = RideDurationClient("http://localhost:9696")  # doctest: +SKIP
>>> client.predict({"PULocationID": 130, "DOLocationID": 205, "trip_distance": 3.66}).duration  # doctest: +SKIP
16.961661472176946
"""

import csv
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO

try:
    import click
    import requests
    from requests.adapters import HTTPAdapter
    from tqdm import tqdm
    from urllib3.util import Retry
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"client.py needs {error.name}: run `make venv CATEGORIES=client`, then .venv/bin/python client.py")

RIDE_FIELDS = ("PULocationID", "DOLocationID", "trip_distance", "pickup_datetime", "ride_id")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)

TLC_NAMES = {"lpep_pickup_datetime": "pickup_datetime", "tpep_pickup_datetime": "pickup_datetime"}


class Prediction(NamedTuple):
    """Minutes, and the model that says so."""

    duration: float
    model_version: str


class RideDurationError(Exception):
    """Any failure of a call."""


class RefusedError(RideDurationError):
    """The service refused the request: sending it again won't help.

    `status` is the HTTP status; `errors` are the refused fields of a 422, each a dict of field, detail and, for several
    rides, index.
    """

    def __init__(self, status: int, detail: str, errors: list[dict[str, Any]]) -> None:
        super().__init__(detail)
        self.status, self.errors = status, errors


class UnavailableError(RideDurationError):
    """The service did not answer, or failed, after all retries: the same call may work later."""


class RideDurationClient:
    """Calls the service at `url`, over connections that are kept open. One for each thread.

    Parameters
    ----------
    url
        Where the service is, without a path.
    timeout
        Seconds to connect, and to wait for an answer.
    retries
        How often a call is sent again when the connection breaks or a 502, 503 or 504 comes. A prediction changes nothing,
        so it is safe to ask twice.
    """

    def __init__(self, url: str = "http://localhost:9696", timeout: tuple[float, float] = (3, 10), retries: int = 3) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self._session = requests.Session()
        policy = Retry(
            retries,
            backoff_factor=0.2,
            status_forcelist=(502, 503, 504),
            allowed_methods=("GET", "POST"),
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=policy))

    def predict(self, ride: Mapping[str, Any]) -> Prediction:
        """The duration of one ride: a mapping of PULocationID, DOLocationID, trip_distance and, optionally, pickup_datetime.

        Raises
        ------
        RefusedError, UnavailableError
        """
        answer = self._call("POST", "/predict", dict(ride))
        return Prediction(answer["duration"], answer["model_version"])

    def predict_many(self, rides: Iterable[Mapping[str, Any]], chunk: int = 1000) -> Iterator[Prediction]:
        """The same for many rides, in order, sent by chunks of at most 10,000."""
        remaining = iter(rides)
        while part := list(islice(remaining, chunk)):
            yield from self._predict_chunk(part)

    def model(self) -> dict[str, Any]:
        """What the service says of its model."""
        return self._call("GET", "/model")

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _predict_chunk(self, rides: list[Mapping[str, Any]]) -> list[Prediction]:
        answer = self._call("POST", "/predict", [dict(ride) for ride in rides])
        return [Prediction(duration, answer["model_version"]) for duration in answer["durations"]]

    def _call(self, method: str, route: str, content: object = None) -> dict[str, Any]:
        try:
            # not requests' json=, which writes six bytes for each letter that isn't ASCII
            body = (
                None
                if content is None
                else json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
            )
        except (TypeError, ValueError) as error:
            raise RefusedError(0, f"the ride can't be written as JSON: {error}", []) from error
        try:
            answer = self._session.request(
                method, self.url + route, data=body, headers={"Content-Type": "application/json"}, timeout=self.timeout
            )
        except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL, requests.exceptions.MissingSchema) as error:
            raise RefusedError(0, f"{self.url} is not an address like http://localhost:9696: {error}", []) from error
        except requests.RequestException as error:
            raise UnavailableError(f"no answer from {self.url}: {error}") from error
        try:
            came = answer.json()
        except ValueError:
            came = {}
        if answer.ok and isinstance(came, dict) and came:
            return came
        detail = came.get("detail") if isinstance(came, dict) else None
        message = detail or f"HTTP {answer.status_code} from {self.url}{route}, which is not how the service answers"
        if 400 <= answer.status_code < 500:
            raise RefusedError(answer.status_code, message, came.get("errors", []) if detail else [])
        raise UnavailableError(message)


def read_rides(path: Path) -> Iterator[dict[str, Any]]:
    """The rides of a CSV, JSON lines or Parquet file; columns that a ride doesn't have are left out."""
    try:
        for row in _ROWS[path.suffix](path):
            named = {TLC_NAMES.get(name, name): _json_value(value) for name, value in row.items()}
            yield {
                name: named[name] for name in RIDE_FIELDS if name in named and (name != "ride_id" or named[name] is not None)
            }
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{path.suffix} files need {error.name}: `make venv CATEGORIES=client`") from None
    except (ValueError, RecursionError, csv.Error) as error:
        raise click.ClickException(f"{path} can't be read: {error}") from None


def _json_value(value: Any) -> Any:
    """What can be sent of a cell; what JSON has no word for goes as text, so that the service refuses that ride and says so."""
    if isinstance(value, datetime):
        return value.isoformat()
    if value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            yield {name: _csv_value(name, text) for name, text in row.items() if name}


def _csv_value(name: str, text: str | None) -> Any:
    if not text:
        return None
    # an id is the text that it is; a number that isn't one goes to the service, which says so
    is_number = name in RIDE_FIELDS[:3] and _NUMBER.fullmatch(text.strip())
    return float(text) if is_number else text


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise click.ClickException(f"{path}, line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise click.ClickException(f"{path}, line {number} is not a ride object")
            yield row


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        wanted = {*RIDE_FIELDS, *TLC_NAMES} & set(file.schema_arrow.names)
        for batch in file.iter_batches(columns=sorted(wanted)):
            yield from batch.to_pylist()


_ROWS = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}


def score_chunk(client: RideDurationClient, rides: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each ride with its duration, or with the error for which the service refused it."""
    results: list[dict[str, Any]] = [dict.fromkeys(("duration", "model_version", "error")) for _ in rides]
    left = list(range(len(rides)))
    while left:
        try:
            predictions = client._predict_chunk([rides[place] for place in left])
        except RefusedError as error:
            refused: dict[int, str] = {}
            for item in error.errors:
                if "index" in item:
                    place = left[item["index"]]
                    refused[place] = "; ".join(filter(None, [refused.get(place), f"{item['field']} {item['detail']}"]))
            if not refused:
                raise
            for place, reason in refused.items():
                results[place]["error"] = reason
            left = [place for place in left if place not in refused]
        else:
            for place, prediction in zip(left, predictions, strict=True):
                results[place] |= prediction._asdict()
            break
    return [ride | result for ride, result in zip(rides, results, strict=True)]


def score_file(client: RideDurationClient, path: Path, out: TextIO, as_json: bool, chunk: int) -> tuple[int, int]:
    """Score a file of rides to `out`, as JSON lines or CSV; gives the numbers of rides scored and refused."""
    table = csv.DictWriter(out, [*RIDE_FIELDS, "duration", "model_version", "error"], lineterminator="\n")
    if not as_json:
        table.writeheader()
    scored = refused = 0
    rides = read_rides(path)
    with tqdm(desc=path.name, unit="ride", disable=None) as bar:
        while part := list(islice(rides, chunk)):
            for result in score_chunk(client, part):
                refused += result["error"] is not None
                scored += result["error"] is None
                if as_json:
                    out.write(json.dumps({name: value for name, value in result.items() if value is not None}) + "\n")
                else:
                    table.writerow(result)
            bar.update(len(part))
    return scored, refused


@click.command(context_settings={"show_default": True})
@click.argument("rides", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--pickup", type=int, help="TLC zone of the pickup.")
@click.option("--dropoff", type=int, help="TLC zone of the drop-off.")
@click.option("--distance", type=float, help="Miles; unknown when left out.")
@click.option("--time", help="Pickup date and time, like 2021-02-01T08:15; unknown when left out.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="A .csv or .jsonl file; else CSV on standard output."
)
@click.option("--chunk", type=click.IntRange(1, 10_000), default=1000, help="Rides a call.")
@click.option("--url", default="http://localhost:9696", envvar="RIDE_DURATION_URL", help="Where the service is.")
def main(
    rides: Path | None,
    pickup: int | None,
    dropoff: int | None,
    distance: float | None,
    time: str | None,
    out: Path | None,
    chunk: int,
    url: str,
) -> None:
    """Ask the service for the duration of a ride, or of each ride in a file.

    RIDES is a .csv, .jsonl or .parquet file with a ride's fields as columns (TLC's own files are). A ride that the service
    refuses is written with the reason, and the exit code is 1.

    \b
    python client.py --pickup 130 --dropoff 205 --distance 3.66
    python client.py rides.csv --out durations.csv
    """
    with RideDurationClient(url) as client:
        try:
            if rides is None:
                if pickup is None or dropoff is None:
                    raise click.UsageError("give --pickup and --dropoff, or a file of rides; --help shows both")
                ride = {"PULocationID": pickup, "DOLocationID": dropoff, "trip_distance": distance}
                click.echo(json.dumps(client.predict(ride | ({"pickup_datetime": time} if time else {}))._asdict()))
                return
            if not all(value is None for value in (pickup, dropoff, distance, time)):
                raise click.UsageError("give a file of rides, or one ride's zones, distance and time, not both")
            if out and out.exists() and out.samefile(rides):
                raise click.UsageError("--out is the file of rides itself; give another")
            if rides.suffix not in _ROWS or (out and out.suffix not in (".csv", ".jsonl")):
                raise click.UsageError("rides are read from .csv, .jsonl or .parquet, and written to .csv or .jsonl")
            scored, refused = _score_to(client, rides, out, chunk)
        except RideDurationError as error:
            raise click.ClickException(str(error)) from None
        except (OSError, UnicodeDecodeError) as error:
            raise click.ClickException(f"{rides}: {error}") from None
    click.echo(f"{scored:,} rides scored, {refused:,} refused", err=True)
    sys.exit(1 if refused else 0)


def _score_to(client: RideDurationClient, rides: Path, out: Path | None, chunk: int) -> tuple[int, int]:
    if out is None:
        return score_file(client, rides, sys.stdout, False, chunk)
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            counts = score_file(client, rides, file, out.suffix == ".jsonl", chunk)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return counts


if __name__ == "__main__":
    main()
