"""The report opened in a browser that has no network: its figures are drawn and nothing complains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.evaluation import browser
from tests.evaluation.reports import full_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_report().write(tmp_path_factory.mktemp("report") / "report.html")


def test_the_figures_are_drawn_offline_and_the_console_is_silent(path: Path) -> None:
    page = browser.open_page(path)
    # Anything the page asked of the network would be refused by its own policy, aloud.
    assert page.console == ()
    assert page.count('class="plot js-plotly-plot"') == page.count('role="img"') == 5
    # Two curves of a floor, a cross-entropy (and one with training), two diagrams of a diagonal and its points.
    assert page.count('class="trace scatter') == (2 + 3) + (2 + 2)
    assert page.count('class="js-fill"') == 2  # the gap between cross-entropy and entropy
    assert page.count('class="errorbar"') > 10
    assert page.count('class="trace bars') == 2
    assert page.count('class="hm"') == 1
    assert page.dom.split("<title>")[1].startswith("Digits &lt;/script&gt;")


def test_light_and_dark_are_legible(path: Path) -> None:
    brightness = {}
    for dark in (False, True):
        page = browser.open_page(path, dark=dark)
        assert page.console == ()
        # The words in the figures have the ink of the page, which plotly resolved to numbers.
        inks = set(re.findall(r'class="xtick"><text[^>]*fill: rgb\(([^)]*)\)', page.dom))
        (ink,) = {tuple(int(level) for level in found.split(", ")) for found in inks}
        brightness[dark] = sum(ink) / 3
    assert brightness[False] < 64
    assert brightness[True] > 192


def test_a_narrow_window_shows_something_too(path: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    assert browser.open_page(path, width=500, screenshot=picture).console == ()
    assert picture.stat().st_size > 50_000  # a blank page has 10,000 bytes


def test_a_complaint_would_be_heard(tmp_path: Path) -> None:
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; script-src 'unsafe-inline'\">"
    page = tmp_path / "page.html"
    for body, complaint in (
        ("<img src='https://example.org/a.png'>", "Content Security Policy"),
        ("<script>nothing.there</script>", "Uncaught ReferenceError"),
    ):
        page.write_text(f"<!doctype html><html><head>{policy}</head><body>{body}</body></html>", encoding="utf-8")
        assert any(complaint in message for message in browser.open_page(page).console)
