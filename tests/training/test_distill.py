"""The main job: students of a teacher on the digits, the numbers that are reported, and the report in a browser."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import likely
from likely.cli.output import write_metrics
from likely.measures import Estimate
from likely.training.distill import Distilled, digits, run, teacher_logits
from likely.training.experiment import TUNED, Plan, folds, make_splits, stratified
from likely.training.outcome import verdict
from tests.evaluation.browser import open_page

QUICK: dict[str, Any] = {"splits": 2, "evaluations": 25, "coarse_evaluations": 15, "members": 2, "inner_folds": 2}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Distilled, Path]:
    out = tmp_path_factory.mktemp("distill") / "run"
    return run(out=out, write_metrics=write_metrics, **QUICK), out


def test_the_digits_are_as_scikit_learn_ships_them() -> None:
    table, target = digits()
    assert (table.num_rows, table.num_columns) == (1797, 65)
    assert np.bincount(table[target].to_numpy()).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_every_number_of_the_table_is_there(quick: tuple[Distilled, Path]) -> None:
    done, _ = quick
    students = done.metrics["students"]
    assert list(students) == [
        "the teacher",
        "hard labels",
        TUNED,
        "smoothed labels, 0.1",
        "teacher, T = 1",
        "teacher, T = 4",
    ]
    for one in students.values():
        assert one["cross_entropy"]["mean"] == pytest.approx(one["entropy"]["mean"] + one["kl"]["mean"], rel=1e-12)
        assert one["entropy"]["mean"] == students["the teacher"]["entropy"]["mean"]  # the floor is the teacher's
        assert 0 <= one["calibration_error"]["mean"] <= 1
    assert students["the teacher"]["kl"]["mean"] == pytest.approx(0, abs=1e-12)
    assert students["the teacher"]["agreement"]["mean"] == 1


def test_a_paired_difference_is_that_of_the_means(quick: tuple[Distilled, Path]) -> None:
    metrics = quick[0].metrics
    for name, difference in metrics["difference_to_tuned_hard_labels"].items():
        for number in ("error", "nll"):
            own = metrics["students"][name][number]["mean"] - metrics["students"][TUNED][number]["mean"]
            assert difference[number]["mean"] == pytest.approx(own, abs=1e-12)


def test_a_class_never_seen_is_not_found_from_labels(quick: tuple[Distilled, Path]) -> None:
    recall = quick[0].metrics["recall_of_the_class_left_out"]
    assert recall["hard labels"]["mean"] == 0
    assert recall["teacher, T = 4, all rows"]["mean"] > 0.5


def test_the_metrics_are_on_disk(quick: tuple[Distilled, Path]) -> None:
    done, out = quick
    kept = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert kept["students"] == done.metrics["students"]
    assert "T²" in kept["formula"]


def test_what_was_trained_can_be_used(quick: tuple[Distilled, Path]) -> None:
    _, out = quick
    table, _ = digits()
    student = likely.load(out / "student")
    teachers = [likely.load(out / f"teacher-{n}") for n in (1, 2)]
    bag = sum(one.predict_proba(table) for one in teachers) / 2
    assert student.predict_proba(table).shape == (1797, 10)
    assert float((bag.argmax(1) == table["digit"].to_numpy()).mean()) > 0.8


@pytest.mark.browser
def test_the_report_opens_offline(quick: tuple[Distilled, Path], tmp_path: Path) -> None:
    _, out = quick
    page = open_page(out / "report.html", screenshot=tmp_path / "report.png")
    assert page.console == ()
    for heading in ("Learning curves", "Reliability", "Confusion", "most surprising"):
        assert heading in page.dom
    assert page.count(r'class="main-svg"') >= 7  # five learning curves, two reliability diagrams
    assert page.count(r"<img ") == 24
    assert "cross-entropy" in page.dom
    assert "KL divergence" in page.dom


def test_the_seed_decides(tmp_path: Path) -> None:
    small = {**QUICK, "evaluations": 5, "coarse_evaluations": 5}
    one, same, other = (run(out=tmp_path / str(n), seed=seed, **small).metrics for n, seed in enumerate((1, 1, 2)))
    assert one["students"] == same["students"]
    assert one["students"] != other["students"]


def test_folds_are_disjoint_and_the_students_rows_are_not_held_out() -> None:
    _, target = digits()
    y_R = digits()[0][target].to_numpy()
    plan = Plan(splits=8)
    splits, overlap = make_splits(y_R, lambda train: np.zeros((len(y_R), 1)), plan)
    assert overlap is None
    assert sorted(torch.cat([s.test for s in splits]).tolist()) == list(range(1797))
    assert sorted(np.concatenate(folds(y_R, 8, 0)).tolist()) == list(range(1797))
    for split in splits:
        assert not set(split.test.tolist()) & set(split.train.tolist())
        assert set(split.labelled.tolist()) <= set(split.train.tolist())
    assert not set(splits[0].labelled.tolist()) & set(splits[1].labelled.tolist())


def test_overlapping_students_get_the_correction() -> None:
    y_R = np.arange(60) % 3
    plan = Plan(splits=4, labelled=30, inner_folds=2)
    _, overlap = make_splits(y_R, lambda train: np.zeros((60, 1)), plan)
    assert overlap == pytest.approx(15 / 45)


def test_strata_hold_every_class() -> None:
    y_n = np.array([0] * 90 + [1] * 8 + [2] * 2)
    assert np.bincount(y_n[stratified(y_n, 10, np.random.default_rng(0))]).tolist() == [8, 1, 1]


@pytest.mark.parametrize(
    ("low", "high", "said"), [(-2, -1, "better"), (1, 2, "worse"), (-1, 1, "no established difference")]
)
def test_no_gain_is_claimed_where_there_is_none(low: float, high: float, said: str) -> None:
    assert verdict(Estimate((low + high) / 2, 0.1, low, high, 8, 0.95)) == said


@pytest.mark.parametrize("logits", [True, False])
def test_a_teacher_in_a_file(tmp_path: Path, logits: bool) -> None:
    table, _ = digits()
    z = np.random.default_rng(0).normal(size=(1797, 10)) * 2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.savez(tmp_path / "t.npz", z if logits else p)
    found = teacher_logits(str(tmp_path / "t.npz"), table, [str(n) for n in range(10)])
    torch.testing.assert_close(found.softmax(1), torch.from_numpy(p))


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    table, _ = digits()
    keys = [str(n) for n in range(10)]
    np.save(tmp_path / "rows.npy", np.zeros((5, 10)))
    with pytest.raises(ValueError, match=r"has shape \(5, 10\); the table has 1797 rows"):
        teacher_logits(str(tmp_path / "rows.npy"), table, keys)
    half = np.full((1797, 10), 0.05)
    np.save(tmp_path / "half.npy", half)
    with pytest.raises(ValueError, match=r"row 0 sums to 0.5, not 1"):
        teacher_logits(str(tmp_path / "half.npy"), table, keys)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        teacher_logits(str(tmp_path / "objects.npy"), table, keys)
