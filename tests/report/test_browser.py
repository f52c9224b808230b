"""The page of a report in a real browser: what loads, sorts, scrolls, darkens and prints."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunecli.report.page import report_page

from .full_report import full_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

FIRST = "table.sorts >> nth=0"
PHONE, DESK = {"width": 375, "height": 800}, {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000)
        yield found
        found.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    checks = (
        "ok: macs_ratio is 0.6; fails if macs_ratio>0.7",
        "FAILED: top1_drop is 2.5; fails if top1_drop>1",
    )
    path.write_text(report_page(full_report(), checks), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def seen() -> dict[str, list[str]]:
    """Return what the page said to the console, and asked the network for."""
    return {"console": [], "errors": [], "requests": []}


@pytest.fixture(scope="module")
def page(browser: Any, file: Path, seen: dict[str, list[str]]) -> Any:
    page = browser.new_page(viewport=DESK)
    page.on("console", lambda message: seen["console"].append(message.text))
    page.on("pageerror", lambda error: seen["errors"].append(str(error)))
    page.on("request", lambda request: seen["requests"].append(request.url))
    page.goto(file.as_uri(), timeout=120_000)
    return page


def column(page: Any, number: int) -> list[str]:
    """Return the texts of a column of the first table."""
    script = "(table, number) => [...table.tBodies[0].rows].map(row => row.cells[number].textContent)"
    return list(page.locator(FIRST).evaluate(script, number))


def heading(page: Any, title: str) -> tuple[Any, int]:
    """Return the button of a column of the first table, and the column's number."""
    titles = [text.strip() for text in page.locator(f"{FIRST} >> thead th").all_inner_texts()]
    number = titles.index(title)
    return page.locator(f"{FIRST} >> thead th >> nth={number} >> button"), number


def number_of(text: str) -> float:
    """Return what stands behind the arrow, in ones."""
    found = re.fullmatch(r"([\d.]+)(K?)", text.split("\N{RIGHTWARDS ARROW}")[-1].strip())
    assert found
    return float(found[1]) * (1000 if found[2] else 1)


def test_nothing_goes_wrong_and_nothing_is_fetched(page: Any, file: Path, seen: dict[str, list[str]]) -> None:
    assert page.title() == "digits.safetensors: compression report"
    assert seen == {"console": [], "errors": [], "requests": [file.as_uri()]}


def test_the_policy_forbids_other_scripts(page: Any) -> None:
    page.evaluate(
        "() => { const one = document.createElement('script'); one.textContent = 'window.was = 1';"
        " document.body.append(one); one.remove(); }"
    )
    assert page.evaluate("() => window.was === undefined")


def test_pictures_have_a_mark_for_each_number(page: Any) -> None:
    for key, count in (("units", 3), ("weights", 2), ("macs", 3), ("params", 3)):
        assert page.locator(f"[data-bar={key}]").count() == count
    assert page.locator("[data-box=all]").count() == 2
    assert page.locator("[data-box=kept]").count() == 1
    units = page.locator("[data-bar=units]")
    widths = [units.nth(number).bounding_box()["width"] for number in range(3)]
    assert widths[1] / widths[0] == pytest.approx(16 / 12, rel=0.02)


def test_a_click_sorts_numbers_as_numbers_and_another_turns_them_round(page: Any) -> None:
    button, number = heading(page, "MACs")
    button.click()
    found = [number_of(text) for text in column(page, number)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) > 2
    header = page.locator(f"{FIRST} >> thead th >> nth={number}")
    assert header.get_attribute("aria-sort") == "descending"
    button.click()
    assert [number_of(text) for text in column(page, number)] == sorted(found)
    assert header.get_attribute("aria-sort") == "ascending"


def test_the_keyboard_sorts_too_and_empty_fields_come_last(page: Any) -> None:
    button, number = heading(page, "weights")
    button.focus()
    for sign in (-1, 1):
        page.keyboard.press("Enter")
        found = column(page, number)
        assert found[2:] == ["", ""]
        numbers = [number_of(text) for text in found[:2]]
        assert numbers == sorted(numbers, key=lambda each, sign=sign: sign * each)
    assert page.locator(f"{FIRST} >> [aria-sort]").count() == 1
    button, number = heading(page, "layer")
    button.focus()
    page.keyboard.press("Space")
    assert column(page, number) == sorted(column(page, number))


def test_the_page_does_not_scroll_sideways_on_a_telephone(page: Any) -> None:
    page.set_viewport_size(PHONE)
    try:
        assert page.evaluate("() => document.documentElement.scrollWidth") == PHONE["width"]
        assert page.locator(".fluid .tight").first.is_visible()
        assert not page.locator(".fluid .roomy").first.is_visible()
    finally:
        page.set_viewport_size(DESK)


def test_a_dark_scheme_is_followed_but_not_on_paper(page: Any) -> None:
    ground = "() => getComputedStyle(document.body).backgroundColor"
    try:
        page.emulate_media(color_scheme="light")
        light = page.evaluate(ground)
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(ground) == "rgb(26, 26, 25)" != light
        page.emulate_media(color_scheme="dark", media="print")
        assert page.evaluate(ground) == light
    finally:
        page.emulate_media(color_scheme="light", media="screen")


def test_nothing_is_cut_off_on_paper(page: Any) -> None:
    page.set_viewport_size({"width": 690, "height": 1000})  # A4 less its margins
    page.emulate_media(media="print")
    try:
        script = (
            "() => [...document.querySelectorAll('table, svg')].map(one => one.getBoundingClientRect().right)"
        )
        assert max(page.evaluate(script)) <= 690
        assert page.pdf(format="A4").startswith(b"%PDF")
    finally:
        page.emulate_media(media="screen")
        page.set_viewport_size(DESK)


def test_it_reads_the_same_without_scripts(browser: Any, file: Path) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(file.as_uri(), timeout=120_000)
    assert page.locator("th button").count() == 0
    assert "features.stages.0.blocks.1.conv" in page.locator(FIRST).inner_text()
    assert page.locator("[data-bar=macs]").count() == 3
    page.close()
