"""The protocol: what each student is told, what it is not, and how the penalty is chosen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from likely.training.experiment import (
    HARD,
    TUNED,
    Plan,
    Results,
    Split,
    _chosen_penalties,
    bag_logits,
    experiment,
    jobs,
    make_splits,
    measure,
)

R, C = 120, 3
PLAN = Plan(splits=3, labelled=12, hidden=3, members=2, inner_folds=2, evaluations=12, coarse_evaluations=12)


def world(noise: float = 0.3, seed: int = 0) -> tuple[np.ndarray, Tensor]:
    """Three clouds in the plane, and their labels."""
    generator = np.random.default_rng(seed)
    y_R = np.arange(R) % C
    centres = np.array([[0.0, 2.0], [-2.0, -1.0], [2.0, -1.0]])
    return centres[y_R] + noise * generator.normal(size=(R, 2)), torch.from_numpy(y_R)


def splits_of(x: np.ndarray, y: Tensor, plan: Plan = PLAN) -> list[Split]:
    return make_splits(y.numpy(), lambda train: x, plan)[0]


def given_teacher(seed: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(R, C)))


@pytest.fixture(scope="module")
def results() -> Results:
    x, y = world()
    return experiment(splits_of(x, y), y, C, PLAN, teacher_RC=given_teacher(), left_out=2)


def test_students_of_the_teacher_are_told_no_label(results: Results) -> None:
    """Other labels, same splits: the students of the teacher are the same to the bit, those of labels are not."""
    x, y = world()
    other = experiment(splits_of(x, y), (y + 1) % C, C, PLAN, teacher_RC=given_teacher())
    for name, kind in results.kinds.items():
        same = all(bool((a == b).all()) for a, b in zip(kind.held_out, other.kinds[name].held_out))
        assert same == name.startswith("teacher"), name


def test_students_of_labels_are_told_nothing_of_the_teacher(results: Results) -> None:
    x, y = world()
    other = experiment(splits_of(x, y), y, C, PLAN, teacher_RC=given_teacher(seed=4))
    for name, kind in results.kinds.items():
        same = all(bool((a == b).all()) for a, b in zip(kind.held_out, other.kinds[name].held_out))
        assert same != name.startswith("teacher"), name


def test_held_out_rows_do_not_matter_to_any_student(results: Results) -> None:
    x, y = world()
    first = splits_of(x, y)
    spoilt = [dataclasses.replace(s, x_RD=s.x_RD.index_fill(0, s.test, 7.0)) for s in first]
    other = experiment(spoilt, y, C, PLAN, teacher_RC=given_teacher(), left_out=2)
    for group in ("kinds", "full", "without"):
        for name, kind in getattr(results, group).items():
            for one, two in zip(kind.networks, getattr(other, group)[name].networks):
                assert all(bool((a == b).all()) for a, b in zip(one.parameters(), two.parameters())), name


def test_all_kinds_start_from_the_same_networks(results: Results) -> None:
    starts = {kind.curve["cross_entropy"][0] for kind in results.kinds.values()}
    assert len(starts) == 1
    assert results.kinds["teacher, T = 4"].curve["step"] == list(range(PLAN.evaluations + 1))


def test_a_learning_curve_ends_at_the_number_of_the_table(results: Results) -> None:
    for kind in results.kinds.values():
        if kind.curve["step"][-1] != kind.trained.evaluations:
            continue  # drawn every tenth further on
        last = [
            measure(z, results.y_R[split.test], t[split.test])
            for z, split, t in zip(kind.held_out, results.splits, results.teacher_RC)
        ]
        for name in ("cross_entropy", "entropy"):
            assert kind.curve[name][-1] == pytest.approx(np.mean([one[name] for one in last]), rel=1e-9)


def test_a_class_that_is_left_out_stands_in_no_students_rows() -> None:
    x, y = world()
    splits = splits_of(x, y)
    some = [job for job in jobs(splits, y, PLAN, left_out=2) if job.group == "without"]
    assert [job.name for job in some] == [HARD, "teacher, T = 4", "teacher, T = 4, all rows"]
    for job in some:
        for rows, split in zip(job.rows, splits):
            assert not bool((y[rows] == 2).any())
            assert set(rows.tolist()) <= set(split.train.tolist())
    assert len(some[2].rows[0]) == 53  # two thirds of 120, without the third that is left out


def test_no_kind_stands_twice_at_temperature_one() -> None:
    x, y = world()
    plan = dataclasses.replace(PLAN, temperature=1.0)
    names = [job.name for job in jobs(splits_of(x, y), y, plan, None) if job.group == "kinds"]
    assert names == [HARD, TUNED, "smoothed labels, 0.1", "teacher, T = 1"]


@pytest.mark.parametrize(("flipped", "expected"), [(0.0, {1e-4}), (1.0, {1e-1, 10.0})])
def test_the_penalty_fits_the_noise(flipped: float, expected: set[float]) -> None:
    """Clean clouds want the smallest; labels that are pure chance want anything but that."""
    x, y = world(noise=0.1)
    generator = torch.Generator().manual_seed(1)
    chance = torch.rand(R, generator=generator) < flipped
    y = torch.where(chance, torch.randint(C, (R,), generator=generator), y)
    plan = dataclasses.replace(PLAN, penalties=(1e-4, 1e-1, 10.0), evaluations=80, coarse_evaluations=80, labelled=36)
    splits = splits_of(x, y, plan)
    tuned = next(job for job in jobs(splits, y, plan, None) if job.name == TUNED)
    found = _chosen_penalties(tuned, Results(splits, y, C, [], []), plan, lambda done: None)
    assert len(found) == 3
    assert set(found) <= expected


def test_a_bag_is_the_mean_of_probabilities_and_survives_certainty() -> None:
    class Sure(torch.nn.Module):
        def __init__(self, z: list[float]) -> None:
            super().__init__()
            self.z = torch.tensor([z], dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.z.expand(len(x), -1)

    z = bag_logits([Sure([2000.0, 0.0]), Sure([0.0, 1000.0])], torch.zeros(1, 1))
    torch.testing.assert_close(z.exp(), torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(torch.logsumexp(z, 1), torch.zeros(1, dtype=torch.float64))


def test_the_stages_share_out_the_whole_work() -> None:
    x, y = world()
    shares: dict[str, float] = {}
    told: dict[str, float] = {}

    def stage(name: str, share: float):  # type: ignore[no-untyped-def]
        key = f"{name} {len(shares)}"
        shares[key] = share

        def tick(done: float) -> None:
            told[key] = told.get(key, 0.0) + done

        return tick

    experiment(splits_of(x, y), y, C, PLAN, left_out=0, stage=stage)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert list(told.values()) == pytest.approx([1.0] * len(shares))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": 1}, "splits: is 1; give 2 or more"),
        ({"labelled": 3}, "labelled: is 3; give 4 or more"),
        ({"hidden": 0}, "hidden: is 0"),
        ({"temperature": 0.0}, "temperature: is 0.0; it is a positive number"),
        ({"smoothing": 1.0}, "smoothing: is 1.0"),
        ({"penalties": ()}, "penalties: is empty"),
    ],
)
def test_a_plan_that_cannot_be_followed(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAN, **change)  # type: ignore[arg-type]


def test_more_labelled_rows_than_there_are_to_train_on() -> None:
    x, y = world()
    with pytest.raises(ValueError, match="labelled: 81 rows, but 80 of 120"):
        splits_of(x, y, dataclasses.replace(PLAN, labelled=81))
