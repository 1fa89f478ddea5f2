"""Dashboard, alerts and manifests speak of what exists."""

import copy
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import msgspec
import psutil
import pyarrow.parquet as pq
import pytest
import requests
import yaml
from adbc_driver_postgresql import dbapi
from click.testing import CliRunner
from streams import Reader

import predict
from batch import live, score
from conftest import FEBRUARY, PROJECT, StartKafka, find_promtool, free_port, made_up, running, typed, wait_until
from registry.pull import main as pull_command
from ride_duration.ride import NEW_YORK
from ride_duration.stores import Address
from ride_duration.stores.databases import Database
from streaming import kafka
from streaming.engine import open_producer
from streaming.messages import DECISIONS, RIDES, Decision

FOLDER = PROJECT / "deploy/kubernetes"
MANIFESTS: dict[str, Any] = {
    manifest["kind"]: manifest
    for path in sorted(FOLDER.glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
    if manifest["kind"] != "Kustomization"
}
POD = MANIFESTS["Deployment"]["spec"]["template"]
WEB = POD["spec"]["containers"][0]


def test_dashboard_and_alerts_use_metrics_and_labels_that_the_service_has(serve: Callable[..., Any]) -> None:
    ride = {"PULocationID": 130, "DOLocationID": 205, "trip_distance": 3.66}
    with serve(SHADOW_MODEL="model.bin") as (url, _, _):
        requests.post(f"{url}/predict", json=ride, timeout=5)
        requests.post(f"{url}/predict", json=ride | {"trip_distance": -1}, timeout=5)
        wait_until(lambda: "ride_duration_shadow_model_workers{" in requests.get(f"{url}/metrics", timeout=5).text)
        scraped = requests.get(f"{url}/metrics", timeout=5).text
    exist = set(re.findall(r"^(ride_duration_\w+)", scraped, re.MULTILINE))
    labels = set(re.findall(r"(\w+)=\"", scraped))
    dashboard = json.loads((PROJECT / "deploy/grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += re.findall(r"^ +expr: (.+)$", (PROJECT / "deploy/alerts.yaml").read_text(), re.MULTILINE)
    assert len(expressions) > 12
    used = {name for expression in expressions for name in re.findall(r"ride_duration_\w+", expression)}
    assert used <= exist
    assert exist - used <= {name for name in exist if name.endswith(("_created", "_count", "_sum"))}, (
        "a metric that nobody looks at"
    )
    by = {
        label for expression in expressions for part in re.findall(r"by \(([^)]*)\)", expression) for label in part.split(", ")
    }
    assert by <= labels


def test_alert_rules_are_what_prometheus_takes() -> None:
    files = sorted((PROJECT / "deploy").rglob("alerts.yaml"))
    assert len(files) == 3
    run = subprocess.run([find_promtool(), "check", "rules", *files], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("SUCCESS") == 3


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests_are_what_kubernetes_takes(kind: str) -> None:
    newest = kubernetes_validate.latest_version()
    kubernetes_validate.validate(MANIFESTS[kind], newest, strict=True)
    wrong = copy.deepcopy(MANIFESTS[kind])
    wrong["spec"]["replicaz"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, newest, strict=True)


def test_manifests_belong_together() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert {FOLDER / name for name in kustomization["resources"]} == {*FOLDER.glob("*.yaml")} - {FOLDER / "kustomization.yaml"}
    labels = POD["metadata"]["labels"]
    assert MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", MANIFESTS["Deployment"]["metadata"]["name"])
    (port,) = WEB["ports"]
    assert MANIFESTS["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    images = {container["image"] for container in (WEB, *POD["spec"]["initContainers"])}
    assert images == {image["name"] for image in kustomization["images"]}


def test_the_pod_asks_for_what_the_service_has(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {variable["name"]: variable["value"] for variable in WEB["env"]}
    listed = re.findall(r"^\| `([A-Z_]+)` \|", (PROJECT / "README.md").read_text(), re.MULTILINE)
    assert environment.keys() <= set(listed)
    for name in ("DRAIN_SECONDS", "WEB_CONCURRENCY"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")  # it is the configuration that is asked here, not a service
    gunicorn = runpy.run_path(str(PROJECT / "gunicorn.conf.py"))
    assert POD["spec"]["terminationGracePeriodSeconds"] >= gunicorn["graceful_timeout"] + 2
    assert gunicorn["bind"].endswith(f":{WEB['ports'][0]['containerPort']}")
    readiness = WEB["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < int(environment["DRAIN_SECONDS"])
    routes = {rule.rule for rule in predict.app.url_map.iter_rules()}
    probes = [WEB[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert probes == ["/readyz", "/readyz", "/healthz"]
    assert routes >= {*probes, POD["metadata"]["annotations"]["prometheus.io/path"]}


def test_the_pod_runs_as_the_images_user_and_writes_in_memory_only() -> None:
    user = POD["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}" in (PROJECT / "Dockerfile").read_text()
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in WEB["volumeMounts"]}
    assert mounts == {"/models": True, "/dev/shm": False}
    assert Path(WEB["env"][0]["value"]).parent == Path("/models")
    for container in (WEB, *POD["spec"]["initContainers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_service_writes_only_where_the_pod_lets_it(serve: Callable[..., Any]) -> None:
    writable = [mount["mountPath"] for mount in WEB["volumeMounts"] if not mount.get("readOnly")]
    with serve() as (url, process, log):
        requests.get(f"{url}/metrics", timeout=5)
        master = psutil.Process(process.pid)
        files = [file for each in (master, *master.children()) for file in each.open_files() if file.mode != "r"]
    written = {Path(file.path) for file in files} - {log}
    assert len(written) > 3
    assert not [path for path in written if not any(path.is_relative_to(folder) for folder in writable)]


def test_the_model_is_put_where_the_service_reads_it() -> None:
    copier = POD["spec"]["initContainers"][0]
    environment = {variable["name"]: variable["value"] for variable in WEB["env"]}
    assert copier["command"][-1] == environment["MODEL"]
    volumes = {Path(mount["mountPath"]): mount["name"] for mount in WEB["volumeMounts"] if "subPath" not in mount}
    (mount,) = copier["volumeMounts"]
    assert volumes[Path(environment["MODEL"]).parent] == mount["name"]
    assert not mount.get("readOnly")


def with_registry() -> dict[str, Any]:
    """The deployment as `deploy/registry` patches it."""
    deployment: dict[str, Any] = copy.deepcopy(MANIFESTS["Deployment"])
    kustomization = yaml.safe_load((PROJECT / "deploy/registry/kustomization.yaml").read_text())
    (patch,) = kustomization["patches"]
    assert patch["target"] == {"kind": "Deployment", "name": deployment["metadata"]["name"]}
    for change in yaml.safe_load(patch["patch"]):
        *path, last = change["path"].strip("/").split("/")
        assert (change["op"], last) == ("add", "-")
        place: Any = deployment
        for name in path:
            place = place[int(name) if isinstance(place, list) else name]
        place.append(change["value"])
    return deployment


def test_with_the_registry_the_pods_model_is_pulled_into_the_folder_that_it_serves_from() -> None:
    deployment = with_registry()
    kubernetes_validate.validate(deployment, kubernetes_validate.latest_version(), strict=True)
    pod = deployment["spec"]["template"]["spec"]
    web, *beside = pod["containers"]
    first, pull = pod["initContainers"]
    assert first == POD["spec"]["initContainers"][0]  # the image's own model comes first: it is the last good one
    environment = {variable["name"]: variable["value"] for variable in web["env"]}
    served = {name: str(Path(environment[name]).parent) for name in ("MODEL", "SHADOW_MODEL")}
    for container, folder in ((pull, served["MODEL"]), (beside[0], served["MODEL"]), (beside[1], served["SHADOW_MODEL"])):
        assert container["command"][:3] == ["python", "-m", "registry.pull"]
        options = container["command"][3:]
        context = pull_command.make_context("pull", list(options))
        assert context.params["folder"] == Path(folder)
        assert context.params["watch"] == (container is not pull)
        assert container["securityContext"] == web["securityContext"]
        assert [mount for mount in container["volumeMounts"] if folder.startswith(mount["mountPath"])]
        assert container["image"] == web["image"]


CRON_JOB = yaml.safe_load((PROJECT / "deploy/batch/cronjob.yaml").read_text())
CRONTAB = (PROJECT / "deploy/batch/crontab").read_text()


def test_the_cron_job_is_what_kubernetes_takes_and_runs_as_the_image_does() -> None:
    newest = kubernetes_validate.latest_version()
    kubernetes_validate.validate(CRON_JOB, newest, strict=True)
    wrong = copy.deepcopy(CRON_JOB)
    wrong["spec"]["jobTemplate"]["spec"]["backoff"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, newest, strict=True)
    job = CRON_JOB["spec"]["jobTemplate"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [click.UsageError.exit_code, score.EXIT_MODEL]
    assert job["template"]["spec"]["securityContext"]["runAsUser"] == POD["spec"]["securityContext"]["runAsUser"]


def test_what_cron_calls_scores_each_complete_hour_and_nothing_else(tmp_path: Path) -> None:
    pq.write_table(typed(made_up(300)), tmp_path / "rides.parquet")
    environment = os.environ | {"RIDES": str(tmp_path / "rides.parquet"), "PREDICTIONS": f"sqlite:///{tmp_path}/predictions.db"}
    (container,) = CRON_JOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    command = [sys.executable, *container["command"][1:]]
    first = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert "306 rides read = 303 predicted + 3 rejected" in first.stdout, first.stderr
    (line,) = (line for line in CRONTAB.splitlines() if line.startswith("7 "))
    again = line.split(maxsplit=5)[5].replace("/srv/ride-duration", str(PROJECT)).replace("/var/log", str(tmp_path))
    again = again.replace(".venv/bin/python", sys.executable)
    subprocess.run(["sh", "-ec", again], env=environment, check=True)
    assert "0 intervals, hour by hour" in (tmp_path / "ride-duration-batch.log").read_text()


def test_what_cron_calls_joins_the_web_services_log_with_how_long_rides_took(tmp_path: Path) -> None:
    began = datetime.now(NEW_YORK).replace(tzinfo=None, microsecond=0) - timedelta(days=1)
    rides = typed([(str(began), 130, 205, 3.66, str(began + timedelta(minutes=20)))])
    pq.write_table(rides.append_column("ride_id", [["a"]]), tmp_path / "rides.parquet")
    ride = {"ride_id": "a", "PULocationID": 130, "DOLocationID": 205, "trip_distance": 3.66, "pickup_datetime": str(began)}
    line = {"time": "2021-02-01T13:15:00Z", "model_version": "1", "scored": [{"ride": ride, "duration": 17.0}]}
    (tmp_path / "ride-duration-web.log").write_text(json.dumps(line))
    environment = os.environ | {"RIDES": str(tmp_path / "rides.parquet"), "PREDICTIONS": f"sqlite:///{tmp_path}/predictions.db"}
    (command,) = (line.split(maxsplit=5)[5] for line in CRONTAB.splitlines() if line.startswith("37 "))
    command = command.replace("\\%", "%").replace("/srv/ride-duration", str(PROJECT)).replace("/var/log", str(tmp_path))
    subprocess.run(["sh", "-ec", command.replace(".venv/bin/python", sys.executable)], env=environment, check=True)
    told = (tmp_path / "ride-duration-batch.log").read_text()
    assert "1 added" in told
    assert "1 predictions have got their actual duration" in told


def test_the_live_errors_manifests_are_what_kubernetes_takes_and_their_commands_run(tmp_path: Path) -> None:
    dashboard, actuals = yaml.safe_load((PROJECT / "deploy/batch/live.yaml").read_text())["items"]
    for manifest in (dashboard, actuals):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    began = datetime.now(NEW_YORK).replace(tzinfo=None, microsecond=0) - timedelta(days=1)
    pq.write_table(typed([(str(began), 130, 205, 3.66, str(began + timedelta(minutes=20)))]), tmp_path / "rides.parquet")
    settings = {"RIDES": str(tmp_path / "rides.parquet"), "PREDICTIONS": f"sqlite:///{tmp_path}/predictions.db"}
    score.main([f"--from={began:%F}", f"--to={began + timedelta(days=1):%F}", *_options(settings)], standalone_mode=False)
    (container,) = actuals["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    command = [*container["command"][:2], container["command"][2].replace("python", sys.executable, 1)]
    run = subprocess.run(command, cwd=PROJECT, env=os.environ | settings, capture_output=True, text=True, check=True)
    assert "1 predictions have got their actual duration" in run.stdout
    pod = dashboard["spec"]["template"]
    assert pod["metadata"]["labels"] == dashboard["spec"]["selector"]["matchLabels"]
    (container,) = pod["spec"]["containers"]
    (port,), annotations = container["ports"], pod["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"]) == container["command"][-1]
    here = str(free_port())
    command = [sys.executable, *container["command"][1:-3], "127.0.0.1", "--port", here]
    assert command[-4:-2] == ["--host", "127.0.0.1"]
    with running(command, here, PROJECT, **settings) as service:
        for path in (
            annotations["prometheus.io/path"],
            *(container[f"{p}Probe"]["httpGet"]["path"] for p in ("readiness", "liveness")),
        ):
            assert requests.get(f"{service.url}{path}", timeout=10).ok


def _options(settings: dict[str, str]) -> list[str]:
    return [f"--{name.lower()}={value}" for name, value in settings.items()]


def test_the_live_errors_alerts_and_panels_use_metrics_that_the_dashboard_has(tmp_path: Path) -> None:
    rows = [(row[0], 130, *row[2:]) for row in made_up(2000)]
    pq.write_table(typed(rows), tmp_path / "rides.parquet")
    stores = ["--rides", str(tmp_path / "rides.parquet"), "--predictions", f"sqlite:///{tmp_path}/predictions.db"]
    for options in ([], ["--actuals"]):
        run = CliRunner().invoke(score.main, [*stores, *FEBRUARY, *options])
        assert run.exit_code == 0, run.output
    with closing(Database(Address.of(stores[-1]), read_only=True)) as database:
        families = live.figures(database, 7)
    assert not [family.name for family in families if not family.samples]
    labels = {family.name: {label for sample in family.samples for label in sample.labels} for family in families}
    panels = json.loads((PROJECT / "deploy/batch/grafana-dashboard.json").read_text())["panels"]
    (group,) = yaml.safe_load((PROJECT / "deploy/batch/alerts.yaml").read_text())["groups"]
    expressions = [rule["expr"] for rule in group["rules"]]
    for rule in group["rules"]:
        assert rule["for"]
        assert rule["annotations"].keys() == {"summary", "description"}
        of_a_version = "by (version" in rule["expr"]
        assert not of_a_version or "> 1000" in rule["expr"].rpartition(" and on (version) ")[2], "a few rides are no alert"
    expressions += [target["expr"] for panel in panels for target in panel["targets"]]
    assert {name for each in expressions for name in re.findall(r"ride_duration_\w+", each)} == labels.keys()
    for by, name in (pair for each in expressions for pair in re.findall(r"by \(([^)]*)\) \((?:abs\()?(\w+)", each)):
        assert set(by.split(", ")) == labels[name], name


SERVICES = yaml.safe_load((PROJECT / "deploy/streaming/services.yaml").read_text())["items"]


def test_the_streams_services_are_what_kubernetes_takes_and_their_commands_run(tmp_path: Path) -> None:
    newest, names, metrics = kubernetes_validate.latest_version(), set(), ""
    settings = {"STREAM": f"sqlite:///{tmp_path}/stream.db", "PREDICTIONS": f"sqlite:///{tmp_path}/predictions.db"}
    with closing(open_producer(settings["STREAM"], RIDES)) as producer:
        producer.send([("1", b"no ride")])
    for deployment in SERVICES:
        kubernetes_validate.validate(deployment, newest, strict=True)
        pod, name = deployment["spec"]["template"], deployment["metadata"]["name"]
        labels = {"app.kubernetes.io/name": name}
        assert pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"] == labels
        assert pod["spec"]["securityContext"]["runAsUser"] == POD["spec"]["securityContext"]["runAsUser"]
        (container,) = pod["spec"]["containers"]
        path = container["livenessProbe"]["httpGet"]["path"]
        with running([sys.executable, *container["command"][1:]], str(free_port()), PROJECT, **settings) as service:
            assert requests.get(f"{service.url}{path}", timeout=5).ok
            metrics += requests.get(f"{service.url}/metrics", timeout=5).text
            service.process.terminate()
            assert service.process.wait(timeout=pod["spec"]["terminationGracePeriodSeconds"]) == 0
        names.add(name)
    assert len(names) == 5
    alerts = (PROJECT / "deploy/streaming/alerts.yaml").read_text()
    used = set(re.findall(r"ride_duration_\w+", alerts)) - {"ride_duration_stream_errors_total"}  # Kafka's
    exist = set(re.findall(r"^(ride_duration_stream_\w+)", metrics, re.MULTILINE))
    assert used == {name for name in exist if not name.endswith("_created")}, "a metric that isn't, or that nobody looks at"
    assert "ride_duration_stream_errors_total" in Path(kafka.__file__).read_text()


COMPOSE = yaml.safe_load((PROJECT / "compose.yaml").read_text())
OTHERS = {"kafka", "postgres"}
"""Official images, whose commands are their own; the tests' Kafka and PostgreSQL stand in for them."""


def test_compose_names_what_exists() -> None:
    services = COMPOSE["services"]
    assert {name for name, service in services.items() if service["image"] != "ride-duration:all"} == OTHERS
    assert {needed for service in services.values() for needed in service.get("depends_on", {})} <= services.keys()
    (built,) = (service["build"] for service in services.values() if "build" in service)
    categories = set(built["args"]["CATEGORIES"].split())
    assert categories <= set(re.findall(r"^\[(\w+)\]", (PROJECT / "Pipfile").read_text(), re.MULTILINE))
    published = {port for service in services.values() for port in service.get("ports", [])}
    assert published == {"9696:9696", "8060:8060", "8050:8050"}


@pytest.mark.slow
def test_composes_commands_do_their_work_together(kafka: StartKafka, postgresql: str, service: str, tmp_path: Path) -> None:
    cluster = kafka()
    with dbapi.connect(postgresql, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("create database compose")
    database = f"{postgresql.rpartition('/')[0]}/compose"
    here = {
        "kafka://kafka:9092": cluster.url,
        "postgresql://rides:rides@postgres/rides": database,
        "http://web:9696": service,
        "0.0.0.0": "127.0.0.1",
    }

    def local(text: str) -> str:
        for there, value in here.items():
            text = text.replace(there, value)
        return text

    def told(name: str) -> tuple[list[str], dict[str, str], str]:
        wanted = COMPOSE["services"][name]
        environment = {key: local(value) for key, value in wanted["environment"].items()}
        command, port = [local(part) for part in wanted["command"]], str(free_port())
        if "--port" in command:
            command[command.index("--port") + 1] = port
        if command[0] == "python":
            command[0] = sys.executable
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return command, environment | {"PORT": port}, port

    def run(name: str) -> None:
        command, environment, _ = told(name)
        subprocess.run(command, cwd=PROJECT, env=os.environ | environment, check=True, timeout=120, capture_output=True)

    run("rides")
    run("rides")  # which changes nothing
    with ExitStack() as stack:
        for name in ("duration", "fare", "tip", "decision", "sink", "backend", "dashboard"):
            command, environment, port = told(name)
            environment.pop("PORT")
            stack.enter_context(running(command, port, PROJECT, **environment))
        for name in ("producer", "batch"):  # the one takes a quarter of an hour, the other never ends
            command, environment, _ = told(name)
            process = subprocess.Popen(command, cwd=PROJECT, env=os.environ | environment, start_new_session=True)
            stack.callback(process.wait)
            stack.callback(os.killpg, process.pid, signal.SIGTERM)
        with closing(Reader(cluster.url, DECISIONS)) as reader:
            decided = [msgspec.json.decode(value or b"", type=Decision) for value in reader.until(50)]
        assert not [decision for decision in decided if decision.missing]
        with closing(Database(Address.of(database))) as predictions:
            end = time.monotonic() + 120
            counted = (
                "select (select count(*) from rides) as rides, (select count(*) from rejects) as rejects, count(*) as all_, "
            )
            counted += "count(distinct ride_id) as ids, count(actual_duration) as actual from predictions"
            while (row := predictions.rows(counted)[0])["actual"] < 0.9 * row["rides"]:
                assert time.monotonic() < end, row
                time.sleep(0.5)
        # rides that came by stream and by batch have one row
        assert row["all_"] == row["ids"] == row["rides"] - row["rejects"]


def test_what_the_dockerfile_copies_is_let_into_its_context() -> None:
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE)
    let_in = set(re.findall(r"^!(\S+)$", (PROJECT / ".dockerignore").read_text(), re.MULTILINE))
    assert {name for names in copied for name in names.split()} == let_in
