"""The pages, in a real browser, and beside the service's own answers."""

import json
import pickle
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, expect

import predict
from conftest import PROJECT
from ride_duration.zones import ROAD_FACTOR, STRAIGHT_MILES
from training.fit import Estimator

WIDE, NARROW = ViewportSize(width=1280, height=900), ViewportSize(width=375, height=740)


@pytest.fixture
def page(browser: Browser, service: str) -> Iterator[Page]:
    """The page, open and wide; nothing on it may fail, be blocked, or come from elsewhere."""
    context = browser.new_context(viewport=WIDE, base_url=service)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(service) else None)
    page.goto("/")
    yield page
    context.close()
    assert [text for text in wrong if "422" not in text] == []  # the browser notes every refused ride


def choose(page: Page, end: str, text: str) -> None:
    page.locator(f"#{end}").press_sequentially(text)
    page.keyboard.press("Enter")


def test_two_zones_by_name_give_a_duration_its_interval_its_reasons_and_the_request(page: Page, service: str) -> None:
    choose(page, "pickup", "upper west side s")
    choose(page, "dropoff", "jfk")
    expect(page.locator("#answer")).to_be_visible()
    miles = float(page.input_value("#distance"))
    assert miles == pytest.approx(STRAIGHT_MILES[239, 132] * ROAD_FACTOR, abs=0.051)
    ride = {"PULocationID": 239, "DOLocationID": 132, "trip_distance": miles, "pickup_datetime": page.input_value("#time")}
    answer = requests.post(f"{service}/predict?interval=true&explain=true", json=ride, timeout=5).json()
    expect(page.locator("#duration")).to_have_text(str(round(answer["duration"])))
    low, high = (str(round(end)) for end in answer["interval"])
    expect(page.locator("#interval-text")).to_have_text(f"Eight of ten such rides take {low} to {high} minutes.")
    assert page.locator("#parts li span:first-child").all_inner_texts() == [part["feature"] for part in answer["explanation"]]
    shown = [float(text.replace("−", "-").split()[0]) for text in page.locator("#parts b").all_inner_texts()]
    assert shown == pytest.approx([part["minutes"] for part in answer["explanation"]], abs=0.051)
    run = subprocess.run(["bash", "-c", page.inner_text("#curl")], capture_output=True, check=True)
    assert json.loads(run.stdout) == answer


def test_a_distance_of_ones_own_stays_and_the_ends_can_be_swapped(page: Page) -> None:
    choose(page, "pickup", "jfk")
    page.fill("#distance", "21.5")
    choose(page, "dropoff", "astoria")
    expect(page.locator("#curl")).to_contain_text('"PULocationID":132')
    assert page.input_value("#distance") == "21.5"
    page.click("#swap")
    expect(page.locator("#curl")).to_contain_text('"DOLocationID":132,"trip_distance":21.5')
    page.fill("#distance", "")
    page.fill("#time", "")
    expect(page.locator("#curl")).to_contain_text('"trip_distance":')
    expect(page.locator("#curl")).not_to_contain_text("pickup_datetime")


def test_zones_are_chosen_on_the_map(page: Page) -> None:
    for zone in (132, 138):
        page.locator(f'[data-zone="{zone}"].cell').click()
    expect(page.locator("#pickup")).to_have_value("JFK Airport")
    expect(page.locator("#curl")).to_contain_text('"PULocationID":132,"DOLocationID":138')
    assert page.locator("#map .cell").count() == 263


def test_options_are_grouped_by_borough_and_the_keyboard_walks_them(page: Page) -> None:
    field = page.locator("#pickup")
    field.press_sequentially("airport")
    groups = page.locator("#pickup-list [role=group]")
    assert {group.get_attribute("aria-labelledby") for group in groups.all()} >= {"pickup-Queens", "pickup-EWR"}
    options = page.locator("#pickup-list [role=option]")
    field.press("ArrowDown")
    assert field.get_attribute("aria-activedescendant") == options.nth(1).get_attribute("id")
    chosen = options.nth(1).inner_text()
    field.press("Enter")
    expect(field).to_have_value(chosen)
    expect(page.locator("#pickup-list")).to_be_hidden()
    field.fill("no such place")
    expect(page.locator("#pickup-list")).to_have_text("No such zone")


def test_an_error_stands_beside_its_field(page: Page) -> None:
    choose(page, "pickup", "jfk")
    page.click("button[type=submit]")
    expect(page.locator("#dropoff-error")).to_have_text("Choose a zone from the list.")
    choose(page, "dropoff", "astoria")
    page.fill("#distance", "201")
    expect(page.locator("#distance-error")).to_contain_text("must be a number of miles from 0 to 200")
    expect(page.locator("#distance")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#answer")).to_be_hidden()
    page.fill("#distance", "4")
    expect(page.locator("#answer")).to_be_visible()
    expect(page.locator("#distance-error")).to_have_text("")


@pytest.mark.parametrize(("viewport", "scheme"), [(WIDE, "light"), (NARROW, "dark")], ids=["wide-light", "narrow-dark"])
def test_it_is_fit_for_screen_readers_and_phones(page: Page, viewport: ViewportSize, scheme: Any) -> None:
    page.set_viewport_size(viewport)
    page.emulate_media(color_scheme=scheme)
    for path in ("/docs", "/"):
        page.goto(path)
        if path == "/":
            choose(page, "pickup", "jfk")
            choose(page, "dropoff", "astoria")
            expect(page.locator("#why")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def test_a_model_without_an_interval_is_shown_without_one(
    browser: Browser, serve: Callable[..., Any], estimator: Estimator, tmp_path: Path
) -> None:
    vectorizer, ridge = pickle.loads(pickle.dumps(estimator))
    vars(ridge).pop("metadata_", None)
    (tmp_path / "model.bin").write_bytes(pickle.dumps((vectorizer, ridge)))
    with serve(MODEL=str(tmp_path / "model.bin")) as service:
        page = browser.new_page()
        page.goto(service.url)
        choose(page, "pickup", "jfk")
        choose(page, "dropoff", "astoria")
        expect(page.locator("#answer")).to_be_visible()
        expect(page.locator("#interval")).to_be_hidden()
        page.close()


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_nothing_on_a_page_comes_from_elsewhere(path: str) -> None:
    client = predict.app.test_client()
    answer = client.get(path)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assets = re.findall(r'(?:src|href)="([^"#]+)"', answer.text)
    assert assets
    for asset in assets:
        assert asset.startswith("/")
        with client.get(asset) as asked:
            assert asked.status_code == 200
    styles = (PROJECT / "web/static/page.css").read_text() + (PROJECT / "web/static/page.js").read_text()
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org)", styles)
