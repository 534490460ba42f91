"""The page of a comparison: what it holds, what it escapes, and what a browser makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from likely.data.examples import Labelled
from likely.data.texts import Document, Tokens
from likely.training.comparison import compare
from likely.training.measure import Measured, measure
from likely.training.network_report import report, words
from tests.evaluation import browser
from tests.evaluation.reports import HOSTILE
from tests.training.toys import Rows, Toy


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    data, teacher = Rows(E=60), Toy(hidden=12, seed=2)
    data.byte_counts = 3 * data.row_counts  # type: ignore[assignment]
    names = {"teacher": teacher, "labels only": Toy(seed=3), "student": Toy(seed=1)}
    return {name: measure(network, data, teacher=teacher) for name, network in names.items()}


def sections(page: Any) -> dict[str, Any]:
    return {section["heading"]: section for section in page.sections}


def test_everything_that_is_known_has_its_section(measured: dict[str, Measured]) -> None:
    comparison = compare(measured, reference="labels only")
    curve = {"step": [1, 2], "cross_entropy": [1.0, 0.8], "entropy": [0.5, 0.5]}
    page = report(
        comparison, {"student": curve}, about={"learning rate": 0.1, "teacher": "toy", "resumed": False, "tail": None}
    )
    found = sections(page)
    assert list(found) == [
        "What may be said",
        "Against the teacher",
        "On labels",
        "Paired differences",
        "Learning curves",
        "Reliability",
        "Rows where student is furthest from the teacher",
        "What was done",
    ]
    assert page.summary.replace("\u00a0", " ") == comparison.sentences()[0]
    assert found["Against the teacher"]["columns"] == ["", "CE to teacher", "= entropy", "+ KL", "agreement %"]
    assert found["On labels"]["columns"] == ["", "NLL", "perplexity", "bits/byte", "error %", "calibration error %"]
    assert found["What was done"]["rows"] == [["learning rate", "0.1"], ["teacher", "toy"], ["resumed", "False"]]
    assert "30 documents" in found["On labels"]["note"]
    said = " ".join(found["What may be said"]["paragraphs"]).replace("\u00a0", " ")
    assert all(sentence in said for sentence in comparison.sentences())


def test_the_rows_with_the_largest_kl_stand_first(measured: dict[str, Measured]) -> None:
    student = measured["student"]
    assert student.kl is not None
    page = report(compare(measured, reference="labels only"), most=5, texts=lambda example, row: f"{example}/{row}")
    table = sections(page)["Rows where student is furthest from the teacher"]
    order = np.argsort(-student.kl)[:5]
    places = [int((student.example[:i] == student.example[i]).sum()) for i in order]
    assert [row[:2] for row in table["rows"]] == [
        [f"{student.example[i]}/{place}", student.kl[i]] for i, place in zip(order, places)
    ]
    assert table["rows"][0][4] == student.confidence[order[0]]
    assert {row[3] for row in table["rows"]} <= set(student.classes)  # type: ignore[arg-type]
    numbers = sections(report(compare(measured, reference="labels only"), most=5))[table["heading"]]["rows"]
    assert [row[:3] for row in numbers] == [
        [student.example[i], place, student.kl[i]] for i, place in zip(order, places)
    ]


def test_what_is_unknown_has_no_section() -> None:
    data = Rows(ignored=1.0)
    found = measure(Toy(seed=1), data)
    assert list(sections(report(compare({"student": found}, reference="student")))) == ["What may be said"]
    soft = measure(Toy(seed=1), data, teacher=Toy(seed=2))
    headings = list(sections(report(compare({"student": soft}, reference="student"))))
    assert headings == ["What may be said", "Against the teacher", "Rows where student is furthest from the teacher"]


@pytest.mark.browser
def test_a_page_is_drawn_and_whatever_users_named_stays_text(measured: dict[str, Measured], tmp_path: Path) -> None:
    names = {HOSTILE: measured["student"], "labels only": measured["labels only"]}
    page = report(
        compare(names, reference="labels only"),
        {HOSTILE: {"step": [1, 2], "cross_entropy": [1.0, 0.8], "entropy": 0.5}},
        title=HOSTILE,
        about={HOSTILE: HOSTILE},
        texts=lambda example, row: HOSTILE,
        class_name=lambda number: HOSTILE,
    )
    opened = browser.open_page(page.write(tmp_path / "report.html"), width=1100)
    assert opened.console == ()
    assert opened.count('class="plot js-plotly-plot"') == 3
    assert opened.dom.split("<title>")[1].startswith("&lt;/script&gt;")
    # Numbers stand on one line, whether they are Estimates or texts of numbers.
    assert opened.count(r'<td class="number"><span title="[^"]*">[^<]* ± ') > 8
    assert opened.count(r'<td class="number">\[') >= 6


# ------------------------------------------------------------------------------------------ what is shown of the rows


def test_a_row_of_tokens_is_shown_by_what_stands_before_it() -> None:
    ids, labels = np.arange(10, 20), np.array([10, -100, 12, 13, 14, 15, -100, 17, 18, 19])
    data = Tokens.of([Document(ids, labels, None, "one"), Document(ids[:3], ids[:3], None, "two")], max_length=5)
    numbers = words(data)["texts"]
    shown = [[numbers(e, row) for row in range(n)] for e, n in enumerate(data.row_counts)]
    context = [[[10, 11], [10, 11, 12], [10, 11, 12, 13]], [[14], [14, 15, 16], [14, 15, 16, 17]]]
    for names, stretch, tokens in zip(shown, context, ("0–4", "4–8")):  # what is masked is still read
        assert names == [f"one, tokens {tokens}: {ids}" for ids in stretch]
    two = words(data.subset([3]), decode=lambda ids: "\n" * len(ids))["texts"]
    assert two(0, 1) == r"two, tokens 0–2: '\n\n'"
    assert words(data, decode=lambda ids: "</b>\x1b")["class_name"](7) == r"'</b>\x1b'"
    assert data.before(1, 2, most=2).tolist() == [16, 17]
    for example, row, label in ((0, 1, 13), (1, 2, 18)):
        assert data.batch([example]).labels[row] == label == data.before(example, row)[-1] + 1


def test_a_text_is_shown_by_its_beginning_and_a_file_by_its_name() -> None:
    texts = Labelled.of(["a", "b" * 9999], lambda items: {}, [b"a", b"b"], names=["row 4", "row 6"])
    assert words(texts)["texts"](0, 0) == "row 4: 'a'"
    assert words(texts.subset([1]))["texts"](0, 0).startswith("row 6: 'bbb")
    assert len(words(texts)["texts"](1, 0)) < 500
    assert words(replace(texts, names=None))["texts"](0, 0) == "'a'"
    files = Labelled.of([np.zeros(2)], lambda items: {}, [b"a"], names=["cat/1.png"])
    assert words(files)["texts"](0, 0) == "cat/1.png"
    assert words(Labelled.of([np.zeros(2)], lambda items: {}, [b"a"])) == {} == words(Rows())
