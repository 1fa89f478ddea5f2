"""Every command in the README runs as written, but for those under a comment that says what they need."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from conftest import PROJECT, copy_project, free_port, running
from training.evaluation import ANY

README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"(<!-- needs [^>\n]+ -->\n)?```(bash|python)\n(.*?)```", README, re.DOTALL)

SERVES = re.compile(r"make serve$|make batch-demo$|batch\.dashboard |streaming\.consume ")
"""Commands that don't end: here they must answer."""

LIFE = (
    ".venv/bin/python client.py february.parquet",
    ".venv/bin/python -c 'import pyarrow.parquet",
    *(f".venv/bin/python {name} " for name in ("train.py", "-m registry.promote", "-m batch.served", "-m batch.score")),
    ".venv/bin/python -m batch.dashboard ",
    "LOG_RIDES=1 make serve MODEL_URI=",
)
"""A model's life, from top to bottom: `tests/test_registry.py` runs it."""

NOT_AGAIN = re.compile(r"make test$")
"""This is that command."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, records: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A copy of the project as it would be cloned, with a service on a port of its own, and TLC's site on loopback."""
    folder = tmp_path_factory.mktemp("clone")
    copy_project(folder)
    port = str(free_port())

    class Published(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(records))

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Published) as tlc:
        Thread(target=tlc.serve_forever, daemon=True).start()
        environment = os.environ | {
            "PORT": port,
            "PYTHONPATH": str(folder),
            "RIDE_DURATION_URL": f"http://127.0.0.1:{port}",
            "TLC_URL": f"http://127.0.0.1:{tlc.server_port}",
        }
        yield folder, environment
        tlc.shutdown()


def as_here(text: str, environment: dict[str, str]) -> str:
    return text.replace("9696", environment["PORT"])


def test_every_command_runs_as_written(clone: tuple[Path, dict[str, str]]) -> None:
    folder, environment = clone
    outputs = []
    with running(["make", "serve"], environment["PORT"], folder):
        for needs, language, block in BLOCKS:
            if needs:
                continue
            for command in [block] if language == "python" else block.splitlines():
                if SERVES.search(command) or NOT_AGAIN.search(command):
                    continue
                program = [sys.executable, "-c"] if language == "python" else ["bash", "-ec"]
                run = subprocess.run(
                    [*program, as_here(command, environment)],
                    cwd=folder,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
                outputs.append(run.stdout)
    assert '"field":"PULocationID"' in "".join(outputs)
    assert "none lost, none twice" in "".join(outputs)
    assert "durations" in "".join(outputs)
    assert (folder / "durations.csv").read_text().count("\n") == 3


@pytest.mark.parametrize(
    "command", sorted({line for _, _, block in BLOCKS for line in block.splitlines() if SERVES.search(line)})
)
def test_a_command_that_serves_answers(clone: tuple[Path, dict[str, str]], command: str) -> None:
    folder, environment = clone
    with running(["bash", "-ec", command], environment["PORT"], folder):
        pass


def test_what_is_not_run_is_what_needs_more_than_this_machine_has() -> None:
    programs = {
        "<!-- needs a Docker engine -->": "docker ",
        "<!-- needs a cluster -->": "kubectl ",
        "<!-- needs oha -->": ".venv/bin/python -m benchmarks.web",
        "<!-- needs minutes -->": (".venv/bin/python -m benchmarks.batch", ".venv/bin/python -m benchmarks.gate"),
        "<!-- needs Java and minutes -->": ("make spark", "PATH="),
        "<!-- needs a registry -->": (
            "make registry",
            ".registry/bin/mlflow server",
            *LIFE,
        ),  # tests/test_registry.py runs these
        "<!-- needs minutes and Kafka -->": ("make kafka", ".venv/bin/python -m benchmarks.stream"),
    }
    assert {needs.strip() for needs, _, _ in BLOCKS if needs} == programs.keys()
    for needs, _, block in BLOCKS:
        assert not needs or all(line.startswith(programs[needs.strip()]) for line in block.splitlines())


def test_the_answer_shown_is_the_answer(service: str) -> None:
    command = re.search(r"```bash\n(curl .*)\n```\n\n```json\n(.*)\n", README)
    assert command
    run = subprocess.run(
        ["bash", "-ec", command[1].replace("http://localhost:9696", service)], capture_output=True, text=True, check=True
    )
    shown, came = json.loads(command[2]), json.loads(run.stdout)
    assert shown["model_version"] == came["model_version"]
    assert shown["duration"] == pytest.approx(came["duration"], abs=1e-9)


def test_the_figures_shown_are_the_shipped_models(serve: Callable[..., Any]) -> None:
    from ride_duration.model_file import load_model

    metadata = load_model(PROJECT / "model.bin").metadata
    assert metadata
    for name, row in metadata.metrics.items():
        if ANY not in name:
            assert f"{name:40}" + "".join(f"{value:9.2f}" for value in row.values()) in README


def test_every_setting_is_in_the_readme() -> None:
    sources = "".join(
        path.read_text()
        for name in ("predict", "train", "client", "web/*", "batch/*", "streaming/*", "registry/*")
        for path in PROJECT.glob(f"{name}.py")
    )
    named = set(re.findall(r'(?:os\.environ\.get\(|envvar=|integer\(|_secret\()"([A-Z_]+)"', sources))
    assert named >= {"MODEL", "PORT", "WEB_CONCURRENCY", "TLC_URL"}
    listed = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    assert named == listed
