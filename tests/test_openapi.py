"""`/openapi.json` says what the service does: checked by tools that others use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import predict
from conftest import PROJECT
from web import openapi

BIN = Path(sys.executable).parent

USE = """
import sys
from generated.api.default import predict
from generated.client import Client
from generated.models import ProblemDetails, Ride

client = Client(sys.argv[1])
ride = Ride(pu_location_id=130, do_location_id=205, trip_distance=3.66)
one = predict.sync(client=client, body=ride, interval=True, explain=True)
assert one.interval[0] < one.duration < one.interval[1]
assert abs(sum(part.minutes for part in one.explanation) - one.duration) < 1e-9
many = predict.sync(client=client, body=[ride, ride])
assert many.durations == [one.duration] * 2
refused = predict.sync(client=client, body=Ride(pu_location_id=9999, do_location_id=205, trip_distance=3.66))
assert isinstance(refused, ProblemDetails) and refused.errors[0].field == "PULocationID"
"""


def test_every_route_but_the_pages_is_described() -> None:
    routes = {rule.rule for rule in predict.app.url_map.iter_rules() if rule.endpoint != "static"}
    assert set(openapi.document()["paths"]) == routes - {"/", "/docs", "/openapi.json"}


@pytest.mark.parametrize("example", openapi.EXAMPLES)
def test_every_example_is_answered(example: str) -> None:
    answer = predict.app.test_client().post("/predict", json=openapi.EXAMPLES[example]["value"])
    assert answer.status_code == 200


def test_schemathesis_finds_nothing(service: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [BIN / "st", "run", f"{service}/openapi.json", "--checks=all", "--max-examples=50", "--no-color", "--seed=1"],
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": f"{PROJECT / 'tests'}:{PROJECT}"},
        capture_output=True,
        text=True,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout
    assert "No issues found" in run.stdout


def test_a_generated_client_works(service: str, tmp_path: Path) -> None:
    schema = tmp_path / "openapi.json"
    schema.write_bytes(predict.app.test_client().get("/openapi.json").data)
    subprocess.run(
        [
            BIN / "openapi-python-client",
            "generate",
            "--path",
            schema,
            "--output-path",
            tmp_path / "generated",
            "--meta",
            "none",
        ],
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        check=True,
    )
    run = subprocess.run([sys.executable, "-c", USE, service], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
