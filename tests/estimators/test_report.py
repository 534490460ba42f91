"""The report of a fit: what is in it, and what a browser makes of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import likely
from likely.estimators import LogisticRegression, SoftmaxRegression, fit_report
from likely.estimators.report import largest, surprises
from tests.estimators.samples import overlapping, spector, votes
from tests.evaluation.browser import open_page

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"> & 'quotes'"
SECTIONS = ["The fit", "Coefficients", "The way of the solver", "Measures", "Reliability", "Most surprising"]


def test_sections_and_numbers() -> None:
    x, y = spector()
    model = LogisticRegression().fit(x, y)
    report = fit_report(model, x, y, title="Grades", summary="Of 1980.")
    assert (report.title, report.summary) == ("Grades", "Of 1980.")
    assert [section["heading"] for section in report.sections] == SECTIONS
    facts = dict(report.sections[0]["rows"])
    assert facts["log-likelihood"] == "-12.8896"
    (forest,) = report.sections[1]["panels"]
    assert [row[0] for row in forest.rows] == ["GPA", "TUCE", "PSI", "(intercept)"]
    # Drawn per standard deviation, without the intercept, and listed in the units of the columns.
    drawn = forest.figure.data[0]
    assert list(drawn.x) == pytest.approx(model.coef_[0] * x.std(ddof=0).to_numpy())
    assert forest.rows[0][1] == pytest.approx(model.coef_[0, 0])
    told = model.summary().coefficients[0]
    assert drawn.error_x.array[0] == pytest.approx((told.high - told.estimate) * x["GPA"].std(ddof=0))
    (way,) = report.sections[2]["panels"]
    assert len(way.rows) == len(model.history_)
    assert [float(row[1].mean) for row in report.sections[3]["rows"][:1]] == pytest.approx([model.cross_entropy_])
    cards = [card for card, _ in report.sections[5]["cards"]]
    loss = -model.predict_log_proba(x)[np.arange(len(y)), y.astype(int)]
    assert cards[0].surprisal == pytest.approx(loss.max())
    assert cards[0].text == f"row {loss.argmax()}"


@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_array])
def test_distributions_many_columns_and_classes(form: Any) -> None:
    x, p = votes(n=400, D=50, K=9)
    model = SoftmaxRegression(penalty_strength=1e-3).fit(form(x), p, covariance="sandwich")
    report = fit_report(model, form(x), p, most=5)
    panels = report.sections[1]["panels"]
    assert len(panels) == 6
    assert all(len(panel.rows) == 41 for panel in panels)  # 40 columns and the intercept
    assert "The 40 largest of 50 are shown" in panels[0].description
    assert "first 6 classes of 9" in report.sections[1]["note"]
    assert len({panel.figure.layout.xaxis.range for panel in panels}) == 1
    assert "KL" in report.sections[5]["cards"][0][0].text
    with pytest.raises(ValueError, match="a report is of labels or an"):
        fit_report(model, x, likely.probabilities(p))


def test_the_largest_are_those_that_stand_out() -> None:
    x, y = overlapping(D=6, K=2)
    told = LogisticRegression().fit(x, y).summary()
    chosen = largest(told.coefficients[:6], most=3)
    assert sorted(abs(one.z) for one in chosen) == sorted(abs(one.z) for one in told.coefficients[:6])[3:]


def test_surprises_of_distributions_are_ordered_by_divergence() -> None:
    q = np.log([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    p = np.array([[0.9, 0.1], [1.0, 0.0], [0.2, 0.8]])
    cards = surprises(q, p, ["a", "b"])
    assert cards[0].text == "row 1, KL 0.693 nats"
    assert cards[0].surprisal == pytest.approx(np.log(2))


@pytest.mark.browser
def test_a_browser_draws_it_and_text_stays_text(tmp_path: Path) -> None:
    x, y = overlapping()
    frame = pd.DataFrame(np.column_stack([x, x[:, 0]]), columns=[HOSTILE, "b", "c", "d", "twin"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SoftmaxRegression().fit(frame, np.array([HOSTILE, "one", "two"])[y])
    names = np.array([HOSTILE, "one", "two"])[y]
    at = fit_report(model, frame, names, title=HOSTILE, texts=[HOSTILE] * len(y)).write(tmp_path / "report.html")
    page = open_page(at)
    assert page.console == ()
    assert "<title>&lt;/script&gt;" in page.dom
    assert page.count(r'<svg class="main-svg"') >= 5
    assert page.count("<img") == 0
    assert at.stat().st_size < 8_000_000
