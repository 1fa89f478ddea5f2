"""The way of a model from the registry to the service, with MLflow's own server as a process."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from conftest import PROJECT, copy_project, find_promtool, free_port, make_records, missing, running, until_answers, wait_until
from ride_duration.features import MODEL_GROUPS, features
from ride_duration.model_file import load_model
from ride_duration.ride import check_ride

MLFLOW = PROJECT / ".registry" / "bin"
NAME = "ride-duration"

LOG = """
import json, shutil, sys
from pathlib import Path
import mlflow
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

url, shipped, folder = sys.argv[1:]
mlflow.set_tracking_uri(url)
client = mlflow.MlflowClient()
dicts = [{"PU_DO": f"{1 + n % 7}_{1 + n % 5}", "trip_distance": n / 4} for n in range(60)]
pipeline = make_pipeline(DictVectorizer(), LinearRegression()).fit(dicts, [3 + n * 0.9 + n % 7 for n in range(60)])
told = {"dicts": dicts, "uris": {}}
with mlflow.start_run() as run:
    told["run"] = run.info.run_id
    for form in ("pickle", "cloudpickle", "skops"):
        name = "model" if form == "pickle" else form
        info = mlflow.sklearn.log_model(pipeline, name=name, serialization_format=form, pip_requirements=["scikit-learn"])
        told["uris"][form] = f"runs:/{run.info.run_id}/{name}"
    mlflow.log_artifact(shipped, "ours")
    told["uris"]["ours"] = f"runs:/{run.info.run_id}/ours"
    told["pyfunc"] = list(mlflow.pyfunc.load_model(told["uris"]["pickle"]).predict(dicts))
    client.create_registered_model("ride-duration")
    mlflow.register_model(told["uris"]["pickle"], "ride-duration")
    client.create_model_version("ride-duration", f"{run.info.artifact_uri}/ours", run.info.run_id)
    client.set_registered_model_alias("ride-duration", "champion", "2")
Path(folder, "told.json").write_text(json.dumps(told))
"""


class Server:
    """MLflow's tracking server, on SQLite, and what was logged to it."""

    def __init__(self, folder: Path) -> None:
        if not (MLFLOW / "mlflow").exists():
            missing("MLflow", "make registry")
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()
        script = folder / "log.py"
        script.write_text(LOG)
        command = [str(part) for part in (MLFLOW / "python", script, self.url, PROJECT / "model.bin", folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=240)
        self.told = json.loads((folder / "told.json").read_text())

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = [f"--backend-store-uri=sqlite:///{self.folder}/mlflow.db", f"--artifacts-destination={self.folder}/artifacts"]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [MLFLOW / "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1", *options],
                stdout=log,
                stderr=log,
                start_new_session=True,  # its workers are ended with it
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # half of what it would start
            )
        until_answers(f"{self.url}/health", self.process, self.folder / "server.log", seconds=120)

    def kill(self) -> None:
        """Kill -9, its workers too."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def promote(self, version: int) -> None:
        """Move the alias `champion`."""
        content = {"name": NAME, "alias": "champion", "version": str(version)}
        requests.post(f"{self.url}/api/2.0/mlflow/registered-models/alias", json=content, timeout=10).raise_for_status()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("mlflow"))
    yield started
    if started.process.poll() is None:
        started.kill()


def run(*command: object, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *map(str, command)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


def pull(uri: str, folder: Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "registry.pull", uri, "--to", folder, "--registry", url, *options)


def trained(data: Path, out: Path, registry: str, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Train on what `options` say, and register."""
    return run(PROJECT / "train.py", "--data", data, "--out", out, "--mlflow", registry, "--register", name, *options)


def promote(registry: str, name: str, *options: object) -> subprocess.CompletedProcess[str]:
    return run("-m", "registry.promote", name, "--registry", registry, *options)


def get(server: Server, route: str, **parameters: str) -> Any:
    answer = requests.get(f"{server.url}/api/2.0/{route}", params=parameters, timeout=10)
    answer.raise_for_status()
    return answer.json()


@pytest.mark.slow
def test_a_courses_pipeline_is_served_unchanged(server: Server, tmp_path: Path) -> None:
    run = pull(server.told["uris"]["pickle"], tmp_path, server.url)
    assert run.returncode == 0, run.stderr
    model = load_model(tmp_path / "model.bin")
    for dict_, expected in zip(server.told["dicts"], server.told["pyfunc"], strict=True):
        start, end = (int(zone) for zone in dict_["PU_DO"].split("_"))
        ride = {"PULocationID": start, "DOLocationID": end, "trip_distance": dict_["trip_distance"]}
        if dict_["trip_distance"]:  # 0 is an unknown distance
            assert model.predict(check_ride(ride)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_ours_comes_as_it_was_written_and_by_every_name(server: Server, tmp_path: Path) -> None:
    content = (PROJECT / "model.bin").read_bytes()
    for uri in (server.told["uris"]["ours"], f"models:/{NAME}/2", f"models:/{NAME}@champion"):
        run = pull(uri, tmp_path / "served", server.url, "--target", "duration")
        assert run.returncode == 0, run.stderr
        assert (tmp_path / "served" / "model.bin").read_bytes() == content
        (tmp_path / "served" / "model.bin").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uri", "options", "code", "reason"),
    [
        ("skops", [], 4, "it is skops"),
        ("cloudpickle", [], 4, "it is cloudpickle"),
        ("ours", ["--target", "fare"], 4, "it predicts duration, and this needs a model of fare"),
        (f"models:/{NAME}@nobody", [], 3, "nobody"),
        (f"models:/{NAME}/99", [], 3, "99"),
        ("models:/nothing@champion", [], 3, "nothing"),
        ("runs:/0123456789/model", [], 3, "0123456789"),
        ("run/nothing", [], 3, "has nothing called nothing"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(
    server: Server, tmp_path: Path, uri: str, options: list[str], code: int, reason: str
) -> None:
    uri = server.told["uris"].get(uri, uri).replace("run/", f"runs:/{server.told['run']}/")
    run = pull(uri, tmp_path, server.url, *options)
    assert (run.returncode, "Traceback" in run.stderr) == (code, False), run.stderr
    assert reason in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("uri", "url", "reason"),
    [
        ("models:/x", "http://127.0.0.1:1", "is not a model: give"),
        ("model.bin", "http://127.0.0.1:1", "is not a model: give"),
        ("models:/x@champion", "nonsense", "is not a registry: give"),
        ("models:/x@champion", "http://:5000", "is not a registry: give"),
        ("models:/x@champion", "sqlite:///", "names no file"),
        ("models:/x@champion", "sqlite:///:memory:", "names no file"),
        ("models:/x@champion", f"sqlite:///{PROJECT}", "names no file"),
        ("models:/x@champion", "sqlite:///a.db?mode=ro", "may have no"),
    ],
)
def test_what_can_never_be_pulled_is_a_wrong_option_whatever_is_in_place(
    tmp_path: Path, uri: str, url: str, reason: str
) -> None:
    (tmp_path / "model.bin").write_bytes((PROJECT / "model.bin").read_bytes())
    for options in ([], ["--watch"]):
        run = pull(uri, tmp_path, url, *options)
        assert (run.returncode, "Traceback" in run.stderr) == (2, False), run.stderr
        assert reason in " ".join(run.stderr.split())


def test_without_a_registry_it_says_so_and_the_last_good_file_stays(tmp_path: Path) -> None:
    uri, url, reason = "models:/x@champion", "http://u:secret@127.0.0.1:1", "does not answer"
    run = pull(uri, tmp_path, url)
    assert (run.returncode, "Traceback" in run.stderr) == (3, False), run.stderr
    assert reason in run.stderr
    content = (PROJECT / "model.bin").read_bytes()
    (tmp_path / "model.bin").write_bytes(content)
    run = pull(uri, tmp_path, url)
    assert run.returncode == 0, run.stderr
    assert reason in run.stdout
    assert "secret" not in run.stdout + run.stderr
    assert (tmp_path / "model.bin").read_bytes() == content


PREDICT = """
import json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
print(json.dumps(list(mlflow.pyfunc.load_model(sys.argv[2]).predict(json.load(sys.stdin)))))
"""


@pytest.mark.slow
def test_a_training_is_kept_with_all_that_came_of_it(server: Server, records: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "model.bin", ["--month", "2021-01", "--test-month", "2021-02"]
    process = trained(records, out, server.url, "kept", *options)
    assert process.returncode == 0, process.stderr
    assert "registered as kept, version 1, its candidate" in process.stdout
    model = load_model(out, "duration")
    assert model.metadata
    assert model.metadata.trained_until
    version = get(server, "mlflow/registered-models/alias", name="kept", alias="candidate")["model_version"]
    found = get(server, "mlflow/runs/get", run_id=version["run_id"])["run"]
    parameters = {one["key"]: one["value"] for one in found["data"]["params"]}
    assert parameters["trained_on"] == "2021-01"
    assert parameters["trained_until"] == model.metadata.trained_until.isoformat()
    assert (parameters["taxi"], parameters["training_files"]) == ("green", "green_tripdata_2021-01.parquet")
    assert (parameters["alpha"], found["info"]["status"], found["info"]["run_name"]) == ("9.0", "FINISHED", model.version)
    metrics = {one["key"]: one["value"] for one in found["data"]["metrics"]}
    assert metrics["model/rmse"] == model.metadata.metrics["model"]["rmse"]
    assert metrics["course/rmse"] > metrics["model_time_unknown/rmse"] > metrics["model/rmse"]
    listed = get(server, "mlflow/artifacts/list", run_id=version["run_id"])["files"]
    assert {file["path"] for file in listed} == {"report.html", "model"}

    assert pull("models:/kept@candidate", tmp_path / "served", server.url).returncode == 0
    assert (tmp_path / "served" / "model.bin").read_bytes() == out.read_bytes()

    rides = [golden.ride for golden in model.metadata.golden]
    dicts = json.dumps([features(ride, MODEL_GROUPS) for ride in rides])
    for uri in ("models:/kept@candidate", f"runs:/{version['run_id']}/model"):
        command = [str(MLFLOW / "python"), "-c", PREDICT, server.url, uri]
        theirs = subprocess.run(command, input=dicts, capture_output=True, text=True, timeout=120, check=True).stdout
        assert json.loads(theirs) == pytest.approx([model.linear(ride) for ride in rides], abs=1e-9)


@pytest.mark.slow
def test_a_file_is_a_registry_without_a_server(server: Server, records: Path, tmp_path: Path) -> None:
    del server  # only for what it skips without MLflow
    registry, rides = f"sqlite:///{tmp_path}/mlflow.db", records / "green_tripdata_2021-02.parquet"
    process = trained(records, tmp_path / "model.bin", registry, "ride-duration", "--month", "2021-01")
    assert process.returncode == 0, process.stderr
    process = promote(registry, "ride-duration", "--rides", rides)
    assert process.returncode == 0, process.stdout + process.stderr
    assert pull("models:/ride-duration@champion", tmp_path / "served", registry).returncode == 0
    path = tmp_path / "served" / "model.bin"
    assert path.read_bytes() == (tmp_path / "model.bin").read_bytes()
    path.unlink()
    options = ["--to", str(path.parent), "--registry", registry, "--watch"]
    command = [sys.executable, "-m", "registry.pull", "models:/ride-duration@champion", *options]
    watching = subprocess.Popen(command, cwd=PROJECT)
    try:
        wait_until(path.exists, 60)
        for own in psutil.Process(watching.pid).children():
            if "server" in own.cmdline():
                os.killpg(own.pid, signal.SIGKILL)
        path.unlink()
        wait_until(path.exists, 90)
    finally:
        watching.terminate()
        assert watching.wait(30) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlartifacts", "model.bin", "served"}
    left = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(process.info["cmdline"] or [])]
    assert left == []


SERVE = """
import sys, time
from registry.embedded import open_registry
with open_registry(sys.argv[1]) as registry:
    registry.takes("any", None)
    print("it answers as", registry.name, flush=True)
    time.sleep(100)
"""


@pytest.mark.slow
def test_a_registry_of_ones_own_is_started_by_two_at_a_time_and_ends_with_them_however_they_end(
    server: Server, tmp_path: Path
) -> None:
    del server  # only for what it skips without MLflow
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    # a proxy is not asked for what is here
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "HTTP_PROXY": "http://127.0.0.1:1"}
    command = [sys.executable, "-c", SERVE, uri]
    users = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]

    def group(user: subprocess.Popen[str]) -> list[psutil.Process]:
        return psutil.Process(user.pid).children(recursive=True)

    for user in users:
        assert user.stdout
        assert user.stdout.readline() == f"it answers as {uri}\n"
    started = [process for user in users for process in group(user)]
    assert len(started) >= 4
    users[0].terminate()
    users[1].kill()
    assert [user.wait(20) for user in users] == [128 + signal.SIGTERM, -signal.SIGKILL]
    wait_until(lambda: not any(process.is_running() and process.status() != "zombie" for process in started), seconds=30)
    for user in users:
        assert user.stdout
        user.stdout.close()


@pytest.mark.slow
def test_what_registering_would_fail_on_is_found_before_the_training(server: Server, tmp_path: Path) -> None:
    process = trained(tmp_path, tmp_path / "model.bin", server.url, "a/b", "nothing.parquet")
    assert (process.returncode, "Traceback" in process.stderr) == (3, False), process.stderr
    assert "a/b" in process.stderr


@pytest.mark.slow
def test_the_gate_lets_the_better_one_through_and_there_is_a_way_back(server: Server, records: Path, tmp_path: Path) -> None:
    rides, name = ["--rides", records / "green_tripdata_2021-02.parquet"], "gated"

    def champion() -> str:
        return str(get(server, "mlflow/registered-models/alias", name=name, alias="champion")["model_version"]["version"])

    def tags(version: str) -> dict[str, str]:
        found = get(server, "mlflow/model-versions/get", name=name, version=version)["model_version"]
        return {tag["key"]: tag["value"] for tag in found.get("tags", [])}

    for options in (["--max-rows", "1000"], [], ["--max-rows", "1500"]):
        process = trained(records, tmp_path / "model.bin", server.url, name, "--month", "2021-01", *options)
        assert process.returncode == 0, process.stderr

    def said(code: int, words: str, *options: object) -> str:
        process = promote(server.url, name, *options)
        assert (process.returncode, "Traceback" in process.stderr) == (code, False), process.stdout + process.stderr
        assert words in process.stdout + process.stderr
        return process.stdout + process.stderr

    said(0, "version 1 is the champion now", *rides, "--candidate", "1")
    said(0, "version 2 is the champion now, it was version 1", *rides, "--candidate", "2")
    assert champion() == "2"
    output = said(1, "version 3 is refused, version 2 stays the champion", *rides)  # the newest is the candidate
    assert re.search(r"RMSE, minutes: .* is over .*; the champion's is", output)
    assert champion() == "2"
    assert tags("3")["gate"].startswith("refused: RMSE, minutes")
    run_id = get(server, "mlflow/model-versions/get", name=name, version="3")["model_version"]["run_id"]
    (kept,) = get(server, "mlflow/artifacts/list", run_id=run_id, path="gate")["files"]
    address = f"{server.url}/api/2.0/mlflow-artifacts/artifacts/"
    place = get(server, "mlflow/runs/get", run_id=run_id)["run"]["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
    comparison = requests.get(f"{address}{place}/{kept['path']}", timeout=10).json()
    assert (comparison["candidate"], comparison["champion"], len(comparison["checks"])) == ("3", "2", 13)
    assert comparison["refused"]

    said(0, "version 2 is the champion already", *rides, "--candidate", "2")
    said(0, "version 1 is the champion again, 2 is rolled back", "--rollback")
    assert champion() == "1"
    said(1, "version 2 was rolled back on", *rides, "--candidate", "2")
    said(1, "took the place of none that is good: there is nothing to go back to", "--rollback")
    said(1, "cost of a ride, CPU µs: ", *rides, "--candidate", "3", "--max-microseconds", "0.01")
    said(1, "size, MB: ", *rides, "--candidate", "3", "--max-megabytes", "0.01")
    said(2, "--rides URL is needed")
    said(3, "has no version called nobody", *rides, "--candidate", "nobody")
    said(3, "there is no file or folder", "--rides", tmp_path / "nothing.parquet", "--candidate", "3")
    assert champion() == "1"

    source = f"{get(server, 'mlflow/runs/get', run_id=server.told['run'])['run']['info']['artifact_uri']}/ours"
    version = {"name": name, "source": source, "run_id": server.told["run"]}
    for broken in (version | {"source": source.replace("/ours", "/nothing")}, version):
        made = requests.post(f"{server.url}/api/2.0/mlflow/model-versions/create", json=broken, timeout=10).json()
    said(1, "it has no model.bin and no MLmodel", *rides, "--candidate", "4")
    said(1, "are too few to compare on", *rides, "--candidate", made["model_version"]["version"])  # it has seen them all


def test_without_a_registry_nothing_is_trained_or_promoted(records: Path, tmp_path: Path) -> None:
    process = trained(records, tmp_path / "model.bin", "http://127.0.0.1:1", "x", "--month", "2021-01")
    assert (process.returncode, "Traceback" in process.stderr) == (3, False)
    assert "does not answer" in process.stderr
    assert not list(tmp_path.iterdir())
    process = promote("ftp://127.0.0.1", "x", "--rides", records / "green_tripdata_2021-02.parquet")
    assert (process.returncode, "Traceback" in process.stderr) == (2, False)
    assert "is not a registry: give http://HOST:PORT" in process.stderr


@contextmanager
def load(url: str) -> Iterator[list[Any]]:
    """Rides without end: the status and the version of each answer."""
    answers: list[Any] = []
    stopped = threading.Event()

    def call() -> None:
        with requests.Session() as session:
            while not stopped.is_set():
                ride = {"PULocationID": 1, "DOLocationID": 1, "trip_distance": 2}
                try:
                    answer = session.post(f"{url}/predict", json=ride, timeout=10)
                    answers.append((answer.status_code, answer.json().get("model_version")))
                except requests.RequestException as error:
                    answers.append((0, str(error)))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    yield answers
    stopped.set()
    for thread in threads:
        thread.join()


@pytest.mark.slow
def test_a_promotion_is_a_hot_swap_without_a_failed_request_registry_or_not(server: Server, tmp_path: Path) -> None:
    server.promote(2)
    ours = load_model(PROJECT / "model.bin").version
    command = ["make", "serve"]
    environment = {
        "MODEL_URI": f"models:/{NAME}@champion",
        "MLFLOW_TRACKING_URI": server.url,
        "PULL_TO": str(tmp_path / "served"),
        "WEB_CONCURRENCY": "2",
    }
    with running(command, str(free_port()), PROJECT, **environment) as service, load(service.url) as answers:
        assert requests.get(f"{service.url}/model", timeout=5).json()["version"] == ours
        server.promote(1)
        wait_until(lambda: answers[-1][1].startswith("sha256:"), seconds=60)
        server.kill()
        time.sleep(8)  # it is asked meanwhile
        assert answers[-1][1].startswith("sha256:")
        assert "does not answer" in service.log.read_text()
        server.start()
        server.promote(2)
        wait_until(lambda: answers[-1][1] == ours, seconds=60)
    assert {status for status, _ in answers} == {200}
    assert len(answers) > 500
    assert {version for _, version in answers} == {ours, answers[len(answers) // 2][1], ours} | {
        version for _, version in answers if version.startswith("sha256:")
    }


RECIPE = re.findall(r"<!-- needs a registry -->\n```bash\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
DRIFTED = "RideLiveBias"


def drifted(path: Path) -> None:
    """A February in which everything takes longer."""
    table = pq.read_table(make_records(path, "2021-02", rows=10_000, seed=2))
    longer = pa.array(table["lpep_dropoff_datetime"].to_numpy() + np.timedelta64(108, "s"))
    table = table.set_column(table.column_names.index("lpep_dropoff_datetime"), "lpep_dropoff_datetime", longer)
    pq.write_table(table, path)


def firing(scraped: str, alert: str, folder: Path) -> set[str]:
    """The versions that Prometheus has an alert fire for, when the figures stay as they are for a day."""
    promtool = find_promtool()
    series = [line.rsplit(maxsplit=1) for line in scraped.splitlines() if line.startswith("ride_duration_live_")]
    query = {"expr": f'count by (version) (ALERTS{{alertname="{alert}", alertstate="firing"}})', "eval_time": "23h"}
    of = {
        "interval": "30m",
        "input_series": [{"series": name, "values": f"{float(value)}+0x48"} for name, value in series],
        "promql_expr_test": [query | {"exp_samples": []}],
    }
    rules = {"rule_files": [str(PROJECT / "deploy/batch/alerts.yaml")], "evaluation_interval": "30m", "tests": [of]}
    (folder / "test.yaml").write_text(json.dumps(rules))
    output = subprocess.run([promtool, "test", "rules", folder / "test.yaml"], capture_output=True, text=True)
    told = output.stdout + output.stderr
    assert output.returncode == 0 or "got:" in told, told
    return set(re.findall(r'version="([^"]+)"', told.partition("got:")[2]))


@pytest.mark.slow
def test_a_month_that_drifts_is_found_and_a_better_model_takes_over_as_the_readme_says(
    server: Server, records: Path, tmp_path: Path
) -> None:
    copy_project(tmp_path)
    (tmp_path / "data").mkdir()
    make_records(tmp_path / "data" / "green_tripdata_2021-01.parquet", rows=4400)
    drifted(tmp_path / "data" / "green_tripdata_2021-02.parquet")
    port, board = str(free_port()), str(free_port())
    environment = {"MLFLOW_TRACKING_URI": server.url, "PYTHONPATH": str(tmp_path), "PORT": port, "WEB_CONCURRENCY": "2"}
    environment["RIDE_DURATION_URL"] = f"http://127.0.0.1:{port}"
    lines = [
        line.replace(" ride-duration", " drifting").replace("/ride-duration", "/drifting")
        for line in "".join(RECIPE).splitlines()
        if not line.startswith(("make registry", ".registry/bin/mlflow server"))
    ]
    (serve,) = (line for line in lines if "make serve" in line)
    at = lines.index(serve)
    first, (with_ids, callers), look, better = lines[:at], lines[at + 1 : at + 3], lines[at + 3 : at + 6], lines[at + 6 :]
    assert [len(first), len(look), len(better)] == [2, 3, 2]

    def do(line: str, *codes: int) -> None:
        process = subprocess.run(
            ["bash", "-ec", line], cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=240
        )
        assert process.returncode in (codes or (0,)), f"{line}\n{process.stdout}{process.stderr}"

    def live() -> str:
        *reads, shows = look
        for line in reads:
            do(line)
        with running(["bash", "-ec", shows], board, tmp_path, **environment | {"PORT": board}) as dashboard:
            return requests.get(f"{dashboard.url}/metrics", timeout=30).text

    def version() -> str:
        return str(requests.get(f"http://127.0.0.1:{port}/model", timeout=5).json()["version"])

    for line in first:
        do(line)
    with running(["bash", "-ec", f"exec env {serve}"], port, tmp_path, **environment):
        old = version()
        do(with_ids)
        do(callers, 1)  # some miles are a meter's error, which the service refuses
        assert firing(live(), DRIFTED, tmp_path) == {old}
        for line in better:
            do(line)
        wait_until(lambda: version() != old, seconds=60)
        new = version()
        do(callers, 1)
        scraped = live()
        (compared,) = re.findall(rf'ride_duration_live_rides{{version="{re.escape(new)}"}} (\S+)', scraped)
        assert float(compared) > 1000
        assert firing(scraped, DRIFTED, tmp_path) == {old}
        with closing(sqlite3.connect(tmp_path / "live.db")) as database:  # as if it were an hour later
            database.execute(
                "update versions set answered_at = datetime(answered_at, '-1 hour') where model_version = ?", (old,)
            )
            database.commit()
        assert firing(live(), DRIFTED, tmp_path) == set()
