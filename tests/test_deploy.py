"""The dashboard and the alerts speak of metrics that exist."""

import json
import re

import requests

from conftest import PROJECT


def test_dashboard_and_alerts_use_metrics_and_labels_that_the_service_has(service: str) -> None:
    ride = {"PULocationID": 130, "DOLocationID": 205, "trip_distance": 3.66}
    requests.post(f"{service}/predict", json=ride, timeout=5)
    requests.post(f"{service}/predict", json=ride | {"trip_distance": -1}, timeout=5)
    scraped = requests.get(f"{service}/metrics", timeout=5).text
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
