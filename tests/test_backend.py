"""The backend, the page that shows the stream, and the demonstration, with every part as a real process."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect
from streams import MODELS, consumers, made_up, publish, service

from conftest import PROJECT, free_port, running
from ride_duration.model_file import load_model
from ride_duration.ride import EXAMPLE, check_ride


@contextmanager
def backend(stream: str, web: str) -> Iterator[str]:
    command = [sys.executable, "-m", "streaming.backend", "--stream", stream, "--service", web]
    with running(command, str(free_port())) as process:
        yield process.url


@pytest.fixture(scope="module")
def all_of_it(tmp_path_factory: pytest.TempPathFactory, service_url: str) -> Iterator[tuple[str, str]]:
    """The stream, and the backend of it."""
    stream = f"sqlite:///{tmp_path_factory.mktemp('backend')}/stream.db"
    with ExitStack() as stack:
        stack.enter_context(consumers(stream))
        stack.enter_context(service("decide", stream))
        yield stream, stack.enter_context(backend(stream, service_url))


@pytest.fixture(scope="module")
def service_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("service"))


def test_a_ride_is_answered_at_once_and_then_decided(all_of_it: tuple[str, str], service_url: str) -> None:
    _, url = all_of_it
    asked = requests.post(f"{url}/rides", json=EXAMPLE, timeout=10)
    assert asked.status_code == 202
    course = asked.json()
    web = requests.post(f"{service_url}/predict", json=EXAMPLE, timeout=5).json()
    assert (course["initial"], course["model_version"]) == (web["duration"], web["model_version"])
    decided = requests.get(f"{url}/rides/{course['ride_id']}?wait=30", timeout=40).json()
    ride = check_ride(EXAMPLE)
    for target, path in MODELS.items():
        model = load_model(path)
        assert decided["decision"]["offer"][target] == pytest.approx(model.predict(ride), abs=1e-9)
        assert decided["decision"]["offer"]["versions"][target] == model.version
    assert decided["decision"]["offer"]["duration"] == pytest.approx(course["initial"], abs=1e-9)
    assert decided["decision"]["missing"] == []
    counts = requests.get(f"{url}/live", timeout=5).json()["counts"]
    assert counts["rides"] >= counts["decisions"] >= 1


def test_without_the_web_service_the_answer_says_so_and_the_offer_comes(all_of_it: tuple[str, str]) -> None:
    stream, _ = all_of_it
    with backend(stream, "http://127.0.0.1:1") as url:
        asked = requests.post(f"{url}/rides", json=EXAMPLE, timeout=10)
        assert asked.status_code == 202
        assert "initial" not in asked.json()
        assert "does not answer" in asked.json()["detail"]
        decided = requests.get(f"{url}/rides/{asked.json()['ride_id']}?wait=30", timeout=40).json()
        assert decided["decision"]["offer"]["duration"] > 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "detail"),
    [
        ("POST", "/rides", b"{", 400, "not JSON"),
        ("POST", "/rides", b"\xff", 400, "not JSON"),
        ("POST", "/rides", b"[" * 50_000, 400, "nested too deeply"),
        ("POST", "/rides", b"[]", 422, "ride"),
        ("POST", "/rides", b'{"PULocationID": 266, "trip_distance": 1}', 422, "PULocationID"),
        ("POST", "/rides", b"x" * 70_000, 413, "at most"),
        ("GET", "/rides", None, 405, "method"),
        ("GET", "/rides/none", None, 404, "'none'"),
        ("GET", "/rides/none?wait=nan", None, 404, "'none'"),
        ("GET", "/nowhere", None, 404, ""),
    ],
)
def test_what_is_wrong_is_told(
    all_of_it: tuple[str, str], method: str, path: str, body: bytes | None, status: int, detail: str
) -> None:
    answer = requests.request(method, f"{all_of_it[1]}{path}", data=body, timeout=10)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert detail in answer.json()["detail"]


def test_the_page_shows_a_ride_on_its_way(all_of_it: tuple[str, str], browser: Browser) -> None:
    stream, url = all_of_it
    with browser.new_context() as context:
        page = context.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith((url, "data:")) else None)
        page.goto(url)
        page.select_option("#DOLocationID", label="JFK Airport, Queens")
        page.fill("#trip_distance", "")
        page.get_by_role("button", name="Ask for a ride").click()
        expect(page.locator("#told")).to_contain_text("At once: about ")
        expect(page.locator("#told")).to_contain_text("Offer after ")
        expect(page.locator("#told")).to_contain_text("fare $")
        expect(page.locator("#newest tr").first).to_contain_text("JFK Airport")
        expect(page.locator("#newest")).not_to_contain_text("…")
        before = int(page.inner_text("#rides strong").replace(",", ""))
        publish(stream, made_up(200, first=1000))
        for stage in ("rides", "duration", "fare", "tip", "decisions"):
            expect(page.locator(f"#{stage} strong")).to_have_text(f"{before + 200:,}")
        assert page.locator("#newest tr").count() == 10
        page.fill("#trip_distance", "200.5")
        page.eval_on_selector("#ask", "form => form.noValidate = true")
        page.get_by_role("button", name="Ask for a ride").click()
        expect(page.locator("#told")).to_contain_text("trip_distance must be")
        assert not [violation["id"] for violation in Axe().run(page).response["violations"]]
        page.set_viewport_size({"width": 375, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert [text for text in wrong if "422" not in text] == []  # the browser notes what is refused


DEMO = [sys.executable, "-m", "streaming.demo", "--count", "400", "--rate", "200", "--folder"]


@pytest.mark.parametrize("name", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_interrupted_the_demonstration_leaves_nothing_running(tmp_path: Path, name: signal.Signals) -> None:
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen([*DEMO, str(tmp_path)], cwd=PROJECT, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while "shows it live" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 7
        process.send_signal(name)
        process.wait(timeout=60)
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert (len(gone), alive) == (len(children), [])
    assert "Traceback" not in (tmp_path / "log").read_text()
