"""The dashboard, driven in Chromium over real predictions."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from click.testing import CliRunner
from playwright.sync_api import Browser, Page, expect
from streams import consumer, publish, service
from streams import made_up as rides_of_the_stream

from batch import summary
from batch.dashboard import scope_of, search_of
from batch.score import main
from batch.summary import Scope
from conftest import FEBRUARY, PROJECT, free_port, made_up, typed
from conftest import running as running_process
from ride_duration.stores import Address, StoreError
from ride_duration.stores.databases import Database


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of 2,000 predictions, with actual durations of most."""
    folder = tmp_path_factory.mktemp("dashboard")
    pq.write_table(typed(made_up(2000)), folder / "rides.parquet")
    url = f"sqlite:///{folder}/predictions.db"
    for options in ([], ["--actuals"]):
        run = CliRunner().invoke(main, ["--rides", str(folder / "rides.parquet"), "--predictions", url, *FEBRUARY, *options])
        assert run.exit_code == 0, run.output
    return url


@contextmanager
def dashboard(predictions: str) -> Iterator[str]:
    command = [sys.executable, "-m", "batch.dashboard", "--predictions", predictions]
    with running_process(command, str(free_port())) as service:
        assert requests.get(f"{service.url}/healthz", timeout=5).json() == {"status": "alive"}
        yield service.url


@pytest.fixture(scope="module")
def running(predictions: str) -> Iterator[str]:
    with dashboard(predictions) as url:
        yield url


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context() as context:
        page = context.new_page()
        complaints: list[str] = []
        elsewhere: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: elsewhere.append(request.url) if "127.0.0.1" not in request.url else None)
        yield page
        assert not complaints
        assert not [url for url in elsewhere if not url.startswith(("data:", "blob:"))]


@pytest.mark.slow
def test_it_shows_what_only_the_streams_sink_has_written(tmp_path: Path, page: Page) -> None:
    stream, predictions = f"sqlite:///{tmp_path}/stream.db", f"sqlite:///{tmp_path}/predictions.db"
    publish(stream, rides_of_the_stream(300))
    with (
        consumer(stream),
        service("sink", stream, "--predictions", predictions),
        closing(Database(Address.of(predictions), create=True)) as database,
    ):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(StoreError):
                if database.rows("select count(*) as n from predictions")[0]["n"] == 300:
                    break
            time.sleep(0.2)
    with dashboard(predictions) as url:
        page.goto(url)
        expect(page.locator(".headline")).to_contain_text("300")
        expect(page.get_by_role("heading", name="Drift", exact=True)).to_be_visible()


def test_it_shows_rides_errors_drift_rejects_and_runs(running: str, page: Page) -> None:
    page.goto(running)
    expect(page.locator(".headline")).to_contain_text("2,003")
    expect(page.locator(".headline div").nth(2)).to_contain_text("3rejects")
    for title in ["Rides and predicted minutes by day", "Error by day", "Interval coverage by day", "Error by hour of pickup",
                  "Error by borough of pickup", "Error by miles", "By model version", "Worst pairs",
                  "Interval coverage by hour of pickup", "Worst zones of pickup", "Drift of the inputs",
                  "Rejects", "Newest runs"]:  # fmt: skip
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
    assert page.locator(".js-plotly-plot").count() == 11
    expect(page.get_by_text("large drift").first).to_be_visible()  # made-up rides are not TLC's
    expect(page.get_by_text("must be an integer from 1 to 265").first).to_be_visible()


def test_the_filters_are_in_the_address_and_come_from_it(running: str, page: Page) -> None:
    page.goto(f"{running}/?from=2021-02-03&to=2021-02-04")
    expect(page.get_by_label("From")).to_have_value("2021-02-03")
    expect(page.locator(".headline div").first).to_contain_text("predictions")
    few = page.locator(".headline dd").first.inner_text()
    assert 100 < int(few) < 200
    page.locator("#version").click()
    page.locator(".dash-dropdown-content").get_by_text("2021-01..2021-02-").click()
    page.wait_for_url("**version=2021-01..2021-02-*")
    assert "from=2021-02-03" in page.url
    page.get_by_label("To", exact=True).fill("2021-02-03")
    page.keyboard.press("Enter")
    page.wait_for_url("**to=2021-02-03*")
    expect(page.locator(".headline dd").first).not_to_have_text(few)
    page.go_back()
    expect(page.locator(".headline dd").first).to_have_text(few)


@pytest.mark.slow
def test_nothing_to_show_says_what_to_do(page: Page, running: str, tmp_path: Path, predictions: str) -> None:
    page.goto(f"{running}/?from=2031-01-01")
    expect(page.locator(".empty")).to_contain_text("There are predictions of rides from 2021-02-01 to 2021-02-28")
    page.goto(f"{running}/?from=2021-02-01&version=%27%20or%20true%20--")
    expect(page.locator(".empty")).to_contain_text("No prediction is within these filters")
    with dashboard(f"sqlite:///{tmp_path}/later.db") as url:
        page.goto(url)
        expect(page.locator(".empty")).to_contain_text("there is no file")
        expect(page.locator(".empty")).to_contain_text("python -m batch.score")
        pq.write_table(typed(made_up(50)), tmp_path / "rides.parquet")
        options = ["--rides", str(tmp_path / "rides.parquet"), "--predictions", f"sqlite:///{tmp_path}/later.db", *FEBRUARY]
        assert CliRunner().invoke(main, options).exit_code == 0
        page.reload()
        expect(page.locator(".empty")).to_contain_text("--actuals")
        expect(page.locator(".headline")).to_contain_text("53")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_is_readable_by_all_and_fits_a_phone(browser: Browser, running: str, width: int, scheme: str) -> None:
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(running)
        expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]
        # Dash's own drop-down has a hidden field that takes the focus
        ours = [(one["id"], node["html"][:150]) for one in found for node in one["nodes"] if "focus-target" not in node["html"]]
        assert not ours


def test_what_the_hours_add_up_to_is_what_the_predictions_say(predictions: str) -> None:
    with closing(Database(Address.of(predictions), read_only=True)) as database:
        (truth,) = database.rows(
            "select count(*) as rides, sum(actual_duration between 1 and 60) as usual, "
            "avg(case when actual_duration between 1 and 60 then (predicted_duration - actual_duration) * "
            "(predicted_duration - actual_duration) end) as squared from predictions"
        )
        for by in ("day", "hour", "borough", "miles"):
            whole = summary.total(summary.sums(database, Scope(), by))
            assert (whole["rides"], whole["usual"]) == (truth["rides"], truth["usual"])
            assert summary.errors(whole).rmse == pytest.approx(truth["squared"] ** 0.5)
        with pytest.raises(ValueError, match="readonly"):
            database.run("delete from predictions")


def test_an_address_that_makes_no_sense_counts_for_nothing() -> None:
    assert scope_of("?from=yesterday&to=2021-02-30&x=1") == Scope()
    scope = scope_of("?from=2021-02-01&to=2021-02-07&version=a%20b")
    assert scope_of(search_of(scope)) == scope
    run = subprocess.run(
        [sys.executable, "-m", "batch.dashboard", "--predictions", "folder"], cwd=PROJECT, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "the dashboard reads a database" in run.stderr
