"""What an inspection tells of a record, beside the teacher's own distribution."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from likely.teachers.capture import capture
from likely.teachers.inspect import Inspection, Quantity, histogram, inspect
from tests.teachers.teaching import Pieces, Teacher

KINDS = ["dense", "top:5", "top:5+tail", "samples:6", "hybrid:4+3"]
ROWS = np.array([3, 1, 0, 7, 2, 9, 30])


@pytest.fixture(scope="module")
def p_NC() -> torch.Tensor:
    return Teacher(scale=2.0).probabilities(Pieces(ROWS))


def inspected(folder: Path, kind: str) -> Inspection:
    return inspect(capture(Teacher(scale=2.0), Pieces(ROWS), kind, folder, shard_rows=10))


def quantity(found: Inspection, name: str) -> Quantity | None:
    return next((one for one in found.quantities if one.name == name), None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_entropy_is_the_teachers(tmp_path: Path, p_NC: torch.Tensor, kind: str) -> None:
    entropy = quantity(inspected(tmp_path, kind), "entropy")
    assert entropy is not None
    expected = torch.special.entr(p_NC).sum(dim=1)
    np.testing.assert_allclose(entropy.value, expected, rtol=1e-5)
    assert entropy.mean.mean == pytest.approx(float(expected.mean()), rel=1e-6)
    assert (entropy.mean.n, entropy.mean.groups) == (52, 6)  # one of the seven examples has no row


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_probability_and_the_tail_where_they_are_known(
    tmp_path: Path, p_NC: torch.Tensor, kind: str
) -> None:
    found = inspected(tmp_path, kind)
    largest, tail = quantity(found, "largest probability"), quantity(found, "mass outside the stored classes")
    kept = {"top:5": 5, "top:5+tail": 5, "hybrid:4+3": 4}.get(kind)
    assert (largest is None) == kind.startswith("samples")
    assert (tail is None) == (kept is None)
    sorted_NC = p_NC.sort(dim=1, descending=True).values
    if largest is not None:
        np.testing.assert_allclose(largest.value, sorted_NC[:, 0], rtol=2e-3)
    if tail is not None:
        np.testing.assert_allclose(tail.value, sorted_NC[:, kept:].sum(dim=1), atol=1e-3)
    assert any("the draws of a row do not say" in remark for remark in found.remarks) == (largest is None)


def test_what_truncation_costs_is_minus_log_p(tmp_path: Path, p_NC: torch.Tensor) -> None:
    found = inspected(tmp_path, "top:5+tail")
    mass_N = p_NC.topk(5).values.sum(dim=1)
    (remark,) = found.remarks
    cost, factor = re.findall(r"is (\S+) nats .* classes (\S+) times", remark)[0]
    assert float(cost) == pytest.approx(float(-mass_N.log().mean()), rel=1e-3)
    assert float(factor) == pytest.approx(float((1 / mass_N).mean()), rel=1e-3)
    assert inspected(tmp_path / "unbiased", "hybrid:4+3").remarks == ()


def test_facts_are_those_of_the_manifest(tmp_path: Path) -> None:
    found = inspected(tmp_path, "hybrid:4+3")
    facts = dict(found.facts())
    assert facts["kind"] == "hybrid:4+3, its gradient is unbiased"
    assert facts["data"].startswith("7 examples, SHA-256 dddddd")
    size = sum(file.stat().st_size for file in tmp_path.glob("*.parquet"))
    assert facts["size"].endswith(f"{size / 52:.4g} bytes a row")
    assert facts["checksums"] == f"all {len(list(tmp_path.glob('*.parquet')))} shards are whole"
    assert 5 <= found.entries <= 7
    told = found.to_dict()
    assert told["bytes_per_row"] == pytest.approx(size / 52)
    assert told["quantities"]["entropy"]["quantile_0.5"] == pytest.approx(found.table()[0][3])


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_draws_every_quantity_and_shows_names_as_text(tmp_path: Path, kind: str) -> None:
    data = Pieces(ROWS, classes=("<b>bold</b>", "b"))
    found = inspect(capture(Teacher(classes=("<b>bold</b>", "b", "c", "d", "e", "f")), data, kind, tmp_path))
    report = found.report()
    (panels,) = [section["panels"] for section in report.sections if "panels" in section]
    assert [panel.title for panel in panels] == [one.name for one in found.quantities]
    page = report.html()
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page


def test_a_histogram_counts_every_row_once() -> None:
    from likely._estimates import estimate

    for unit, value in (("", [0.0, 0.5, 0.501, 1.0, 1.0]), ("nats", [0.0, 2.0, 7.0]), ("nats", [0.0, 0.0])):
        x_N = np.array(value)
        panel: Any = histogram(Quantity("it", unit, x_N, estimate(x_N), "which is said"))
        bar = panel.figure.data[0]
        assert sum(bar.y) == pytest.approx(1)
        assert sum(row[1] for row in panel.rows) == len(value)
        assert max(bar.x) <= (1 if not unit else max(7.0, *value))


def test_a_record_that_is_damaged_is_refused_and_named(tmp_path: Path) -> None:
    inspected(tmp_path, "top:5")
    shard = sorted(tmp_path.glob("*.parquet"))[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=shard.name):
        inspect(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no record"):
        inspect(tmp_path / "none")
