"""The report's file: whole, self-contained, safe from its own content, and readable without seeing the figures."""

from __future__ import annotations

import base64
import json
import re
import struct
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from likely.evaluation import Report, Surprise, evaluate, evaluation_report
from likely.evaluation._images import data_uri
from likely.evaluation.figures import Panel
from likely.evaluation.report import show
from likely.measures import Estimate, estimate
from tests.evaluation.reports import HOSTILE, full_report


class Reader(HTMLParser):
    """The elements of a page with their attributes, the text outside of scripts, the scripts that hold JSON."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.json: list[Any] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            if dict(self.elements)["script"].get("type") == "application/json" or self.elements[-1][1].get("type"):
                self.json.append(json.loads(data))
        elif self.open and self.open[-1] != "style" and data.strip():
            self.text.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html() -> str:
    return full_report().html()


@pytest.fixture(scope="module")
def page(html: str) -> Reader:
    return Reader(html)


def test_every_element_is_closed_and_every_heading_there(page: Reader) -> None:
    assert page.open == []
    headings = ["Text", "Table", "Curves", "Reliability", "Confusion", "Many classes", "Surprises"]
    assert len(page.all("h2")) == len(headings)
    for heading in headings:
        assert any(text.startswith(heading) for text in page.text)


def test_what_the_user_wrote_stays_text(page: Reader) -> None:
    # Title, summary, headings, cells, notes, names of models and classes, captions: all of it arrives as it was.
    for prefix in ("Digits ", "Summary ", "Text ", "Another ", "Table ", "column ", "± is one standard error. Note "):
        assert prefix + HOSTILE in page.text, prefix
    assert not any("onerror" in attributes for _, attributes in page.elements)
    # Two inline programs (plotly and ours) and one block of JSON per figure: nothing else runs.
    scripts = page.all("script")
    assert len([s for s in scripts if "type" not in s]) == 2
    assert len([s for s in scripts if s.get("type") == "application/json"]) == len(page.json) == 5


def test_plotly_sees_no_markup_of_the_user(page: Reader) -> None:
    for figure in page.json:
        assert "<img" not in json.dumps(figure)


def test_a_figure_cannot_end_its_script_element() -> None:
    figure = SimpleNamespace(to_json=lambda: json.dumps({"title": HOSTILE}))
    assert "<" not in Panel("t", figure, "").json
    assert json.loads(Panel("t", figure, "").json)["title"] == HOSTILE


def test_nothing_is_asked_of_the_network(html: str, page: Reader) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            address = attributes.get(name) or ""
            assert address.startswith(("#", "data:")) or not address, f"<{tag} {name}={address[:60]}>"
    assert len(re.findall("@import|url\\(", re.sub(r"(?s)<script.*?</script>", "", html))) == 0
    policy = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy
    assert (policy[0]["content"] or "").startswith("default-src 'none';")


def test_plotly_is_there_once_and_only_where_something_is_drawn(html: str) -> None:
    assert html.count("plotly.js v") == 1
    plain = Report("Words").text("A", "b").table("T", ["a"], [["b"]]).html()
    assert len(plain) < 20_000
    assert "<script" not in plain


def test_it_can_be_read_without_seeing_the_figures(page: Reader) -> None:
    plots = [attributes for _, attributes in page.elements if attributes.get("class") == "plot"]
    assert len(plots) == 5
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in plots)
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("img")) == 6
    assert page.all("html") == [{"lang": "en"}]
    # What scrolls sideways can be reached with the keyboard.
    scrolled = [a for _, a in page.elements if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in scrolled)
    links = {(link["href"] or "")[1:] for link in page.all("a")}
    assert links <= {a.get("id") for _, a in page.elements}


def test_the_curves_show_the_floor_and_the_gap_and_share_their_scale() -> None:
    curve = {"step": [0, 1, 2], "cross_entropy": [2.0, 1.0, 0.5], "entropy": [0.25, 0.25, 0.25]}
    steep = {"step": [0, 1], "cross_entropy": [4.0, float("inf")], "entropy": 0.0, "train": None}
    report = Report("t").curves("Learning", {"a": curve, "b": steep})
    first, second = report.sections[0]["panels"]
    floor, cross = json.loads(first.json)["data"]
    assert (floor["y"], cross["y"], cross["customdata"]) == ([0.25] * 3, [2.0, 1.0, 0.5], [1.75, 0.75, 0.25])
    assert cross["fill"] == "tonexty"
    assert json.loads(second.json)["data"][1]["y"] == [4.0, None]
    ranges = [json.loads(panel.json)["layout"]["yaxis"]["range"] for panel in (first, second)]
    assert ranges[0] == ranges[1]
    assert ranges[0][0] == 0.0
    assert ranges[0][1] > 4.0
    assert [row[0] for row in first.rows] == ["first", "lowest", "last"]
    assert first.rows[-1][1:] == (2, 0.5, 0.25, 0.25)
    html = report.html()
    assert "KL divergence" in html
    assert "training rows" not in html


def test_the_reliability_diagram_has_the_numbers_of_the_bins() -> None:
    q = [[0.8, 0.2]] * 5 + [[0.3, 0.7]] * 3
    (panel,) = Report("t").reliability("R", {"m": (q, [0, 0, 0, 0, 1, 1, 1, 0])}).sections[0]["panels"]
    _, points, bars = json.loads(panel.json)["data"]
    assert points["x"] == pytest.approx([0.7, 0.8])
    assert points["y"] == pytest.approx([2 / 3, 0.8])
    assert sum(bars["y"]) == 8
    assert [row[1] for row in panel.rows] == [3, 5]
    assert min(points["error_y"]["array"] + points["error_y"]["arrayminus"]) > 0


def test_the_confusion_matrix_counts_and_names_recall() -> None:
    page = Reader(Report("t").confusion("C", "m", [0, 0, 0, 1], [0, 0, 1, 1], ["cat", "dog", "emu"]).html())
    assert page.text[page.text.index("cat", page.text.index("recall")) :][:6] == ["cat", "2", "1", "0", "3", "0.667"]
    assert page.text[page.text.index("emu", page.text.index("recall")) :][:6] == ["emu", "0", "0", "0", "0", "–"]


def test_many_classes_are_drawn_and_their_commonest_confusions_listed() -> None:
    y, prediction = np.arange(100) % 25, np.arange(100) % 25
    prediction[[0, 25]] = 7
    section = Report("t").confusion("C", "m", y, prediction, range(25)).sections[0]
    assert section["kind"] == "heatmap"
    assert section["rows"] == [["0", "7", 2, 0.5]]


def test_estimates_numbers_and_unknowns_in_a_table() -> None:
    measured = estimate([0.25, 0.5, 0.75, 1.0])
    page = Reader(Report("t").table("T", ["a", "b", "c"], [["x", measured, 12345], ["y", 0.00012345, None]]).html())
    for text in ("0.62 ± 0.16", "12,345", "0.0001234"):
        assert text in page.text
    assert any(text.startswith("± is one standard error") for text in page.text)
    tips = [a["title"] for _, a in page.elements if a.get("title")]
    assert tips == ["95% interval 0.1114 … 1.139, n = 4"]
    no_estimates = Report("t").table("T", ["a"], [[1]]).html()
    assert "standard error" not in no_estimates


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("-a", "-a"),
        (-1234567, "−1,234,567"),
        (np.int64(7), "7"),
        (np.float32(0.5), "0.5"),
        (-1e-7, "−1e−07"),
        (float("inf"), "∞"),
        (-float("inf"), "−∞"),
        (float("nan"), "unknown"),
        (True, "True"),
        (None, ""),
        (Estimate(float("inf"), float("nan"), float("nan"), float("nan"), 3, 0.95), "∞"),
        (Estimate(-0.25, 0.031, -0.3, -0.2, 30, 0.95), "−0.250 ± 0.031"),
    ],
)
def test_cells(cell: Any, text: str) -> None:
    assert show(cell) == text


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.html"
    report = Report("Words").text("A", "b")
    assert report.write(path) == path
    written = path.read_text(encoding="utf-8")
    assert written == report.html()
    with pytest.raises(FileExistsError, match=r"report\.html exists"):
        report.write(path)
    report.write(path, overwrite=True)

    def fails(self: Report) -> str:
        raise RuntimeError("half-way")

    monkeypatch.setattr(Report, "html", fails)
    with pytest.raises(RuntimeError):
        report.write(path, overwrite=True)
    assert path.read_text(encoding="utf-8") == written
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("missing", ["plotly", "jinja2"])
def test_without_the_extra_the_message_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'likely\[report\]'"):
        Report("Title")


def pixels(uri: str) -> np.ndarray:
    """A decoder of its own for the pictures that the encoder writes."""
    png = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data, header = 8, b"", b""
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        name, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size]) == (zlib.crc32(name + body),)
        header, data = (body if name == b"IHDR" else header), data + (body if name == b"IDAT" else b"")
        at += 12 + size
    width, height, depth, kind = struct.unpack(">IIBB", header[:10])
    channels = {0: 1, 2: 3}[kind]
    assert depth == 8
    lines = np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(height, 1 + width * channels)
    assert (lines[:, 0] == 0).all()
    return lines[:, 1:].reshape((height, width) if channels == 1 else (height, width, 3))


def test_pictures_keep_their_pixels() -> None:
    grey = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(pixels(data_uri(grey)), np.rint(grey / 11 * 255))
    colour = np.random.default_rng(0).integers(0, 256, size=(5, 2, 3))
    colour[0, 0], colour[0, 1] = 0, 255
    np.testing.assert_array_equal(pixels(data_uri(colour)), colour)
    assert (pixels(data_uri(np.ones((2, 2)))) == 0).all()


def test_an_evaluation_as_a_report() -> None:
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(3), size=40)
    y = rng.integers(3, size=40)
    names = ["ant", "bee", "cat"]
    report = evaluation_report("Insects", evaluate(q, y), q, y, names, summary="Held out.", most=5)
    assert [s["heading"] for s in report.sections] == ["Measures", "Reliability", "Confusion", "Most surprising"]
    cards = [card for card, _ in report.sections[-1]["cards"]]
    surprisal = -np.log(q[np.arange(40), y])
    assert [card.surprisal for card in cards] == pytest.approx(np.sort(surprisal)[::-1][:5])
    worst = int(surprisal.argmax())
    assert cards[0].text == f"row {worst}"
    assert cards[0].label == names[y[worst]]
    assert cards[0].probability == pytest.approx(q[worst, y[worst]])
    assert cards[0].confidence == pytest.approx(q[worst].max())
    logs = evaluation_report("Insects", evaluate(q, y), np.log(q), y, names, log_input=True, most=5)
    assert [card.surprisal for card, _ in logs.sections[-1]["cards"]] == pytest.approx([c.surprisal for c in cards])
    soft = evaluation_report("Insects", evaluate(q, q), q, q, names, images=np.zeros((40, 2, 2)), texts=["t"] * 40)
    assert "agreement of the largest" in soft.html()
    assert len(Reader(soft.html()).all("img")) == 24


def test_surprises_may_be_dictionaries() -> None:
    item: dict[str, Any] = {"label": "a", "predicted": "b", "probability": 0.001, "surprisal": 6.9078}
    page = Reader(Report("t").surprising("S", [item, Surprise(**item)]).html())
    assert page.text.count("6.91 nats") == 2
    assert page.text.count("0.001") == 2
    assert "Nothing to show." in Report("t").surprising("S", []).html()


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("table", ("T", ["a", "b"], [[1]]), "rows: row 0 has 1 cells for 2 columns"),
        ("curves", ("C", {"m": {"step": [0], "cross_entropy": [1.0]}}), "curves: 'm' lacks 'entropy'"),
        ("curves", ("C", {"m": {"step": [0], "cross_entropy": [1.0, 2.0], "entropy": 0}}), "'cross_entropy' of 'm'"),
        ("curves", ("C", {"m": {"step": [], "cross_entropy": [], "entropy": 0}}), "'m' has no steps"),
        ("reliability", ("R", {"m": ([[0.5, 0.6]], [0])}), "probabilities: row 0 sums to 1.1"),
        ("confusion", ("C", "m", [0, 1], [0, 2], ["a", "b"]), "predictions: row 1 holds none of the 2 classes"),
        ("confusion", ("C", "m", [0, -1], [0, 1], ["a", "b"]), "labels: row 1 holds none"),
        ("confusion", ("C", "m", [0, 1], [0], ["a", "b"]), "predictions: has 1 rows"),
        ("surprising", ("S", [Surprise(0, 1, 0.5, 0.7, image=[1.0, 2.0])]), r"image: has shape \(2,\)"),
        ("surprising", ("S", [Surprise(0, 1, 0.5, 0.7, image=[[np.nan]])]), "image: holds NaN"),
    ],
)
def test_bad_input_is_named_and_adds_no_section(method: str, arguments: tuple[Any, ...], message: str) -> None:
    report = Report("t")
    with pytest.raises(ValueError, match=message):
        getattr(report, method)(*arguments)
    assert report.sections == []
