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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.full((1797, 10), 3.0), "could hold logits or unnormalised probabilities"),
        (np.full((1797, 10), np.nan), "row 0 holds NaN or infinite values"),
        (np.where(np.arange(17970).reshape(1797, 10) == 55, np.inf, -1.0), "row 5 holds NaN or infinite values"),
        (np.where(np.arange(1797)[:, None] == 7, -np.inf, np.zeros((1797, 10))), "row 7 holds NaN or infinite values"),
        (np.full((1797, 10), "a"), "holds <U1, not numbers"),
        (np.array([{}], dtype=object), "cannot be read as an array of numbers"),
    ],
)
def test_a_file_that_is_no_teacher_is_refused(tmp_path: Path, content: np.ndarray, message: str) -> None:
    np.save(tmp_path / "t.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        teacher_logits(str(tmp_path / "t.npy"), digits()[0], [str(n) for n in range(10)])


def test_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.npy").write_bytes(b"no array")
    np.savez(tmp_path / "two.npz", a=np.zeros((5, 2)), b=np.zeros((5, 2)))
    whole = (tmp_path / "two.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name, message in (("t.npy", "cut short, or foreign"), ("cut.npz", "cut short"), ("two.npz", "holds 2 arrays")):
        with pytest.raises(ValueError, match=message):
            teacher_logits(str(tmp_path / name), digits()[0], ["0", "1"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        teacher_logits(str(tmp_path / "none.npy"), digits()[0], ["0", "1"])


def test_log_probabilities_with_impossible_classes_are_logits(tmp_path: Path) -> None:
    p = np.eye(10)[np.arange(1797) % 10]
    with np.errstate(divide="ignore"):
        np.save(tmp_path / "t.npy", np.log(p))
    found = teacher_logits(str(tmp_path / "t.npy"), digits()[0], [str(n) for n in range(10)])
    assert bool((found.softmax(1) == torch.from_numpy(p)).all())


def made_up(**more: Any) -> dict[str, Any]:
    x = np.random.default_rng(0).normal(size=(60, 2))
    return {"a": x[:, 0], "b": x[:, 1], "y": ["u", "v", "w"] * 19 + ["u", "v", "v"], **more}


def test_a_table_in_memory_with_a_rare_class_and_a_rare_level(tmp_path: Path) -> None:
    """A level that stands in one fold alone is in no training row of the split that holds it out."""
    table = made_up(c=["only here"] + ["often", "also"] * 29 + ["often"])
    done = run(table, target="y", out=tmp_path / "run", labelled=8, hidden=3, **QUICK)
    assert likely.load(tmp_path / "run" / "student").predict_proba(table).shape == (60, 3)
    assert done.metrics["data"] == "a table"
    assert done.metrics["students"]["the teacher"]["nll"]["n"] == 2


def test_what_is_scaled_is_scaled_by_the_training_rows(tmp_path: Path) -> None:
    table = made_up()
    run(table, target="y", out=tmp_path / "run", labelled=8, hidden=3, **QUICK)
    y_R = np.array([("u", "v", "w").index(one) for one in table["y"]])
    splits, _ = make_splits(y_R, lambda train: np.zeros((60, 1)), Plan(labelled=8, hidden=3, **QUICK))
    column = likely.load(tmp_path / "run" / "student").encoder.columns[0]
    assert column.mean == pytest.approx(np.mean(table["a"][splits[0].train.numpy()]), rel=1e-12)  # type: ignore[union-attr]


def test_a_class_too_rare_to_be_left_out_is_refused_before_training(tmp_path: Path) -> None:
    y = ["u"] * 30 + ["v"] * 29 + ["w"]
    with pytest.raises(ValueError, match="leave_out: 'w' has 1 rows, and each of the 2 splits must hold one out"):
        run(made_up(y=y), target="y", leave_out="w", out=tmp_path / "run", labelled=8, **QUICK)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_held_the_truth_impossible_is_reported_as_infinite(tmp_path: Path) -> None:
    table = made_up()
    p = np.eye(3)[[("u", "v", "w").index(one) for one in table["y"]]]
    p[0] = (0, 1, 0)
    table |= {f"p_{key}": p[:, j] for j, key in enumerate("uvw")}
    done = run(table, target="y", teacher="p_*", out=tmp_path / "run", labelled=8, hidden=3, **QUICK)
    assert done.metrics["students"]["the teacher"]["nll"]["mean"] == np.inf
    assert done.metrics["students"]["the teacher"]["entropy"]["mean"] == 0
    assert done.metrics["students"]["teacher, T = 4"]["kl"]["mean"] < np.inf
