"""A student tuned: what is chosen, what is given back, and what goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from likely.training.network_run import loss_on, tune
from likely.training.settings import Settings
from tests.training.toys import Rows, Toy, recorded

WHOLE = Rows(E=60)
DATA, CHOSEN_BY = WHOLE.subset(range(40)), WHOLE.subset(range(40, 60))
GRID = [
    Settings(learning_rate=rate, batch_size=8, hard_weight=1, soft_weight=0, epochs=3) for rate in (1e-6, 0.03, 1e-5)
]


def test_the_setting_with_the_least_loss_on_the_validation_part_is_chosen_and_its_weights_come_back(
    tmp_path: Path,
) -> None:
    made: list[Toy] = []

    def make() -> Toy:
        made.append(Toy(seed=3))
        return made[-1]

    found = tune("a/b c", make, DATA, GRID, tmp_path, validation=CHOSEN_BY, progress=False)
    losses = [one["validation_loss"] for one in found.candidates]
    assert losses[1] == min(losses) == loss_on(found.trained.validation, GRID[1])
    assert found.settings == GRID[1]
    assert found.at_the_edge
    for name, value in made[1].module.state_dict().items():  # as that student was left
        assert torch.equal(found.network.module.state_dict()[name], value)  # type: ignore[union-attr]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"a-b-c-lr{rate}-wd{GRID[0].weight_decay:g}" for rate in ("0.03", "1e-05", "1e-06")
    ]
    again = tune("a/b c", make, DATA, GRID, tmp_path, validation=CHOSEN_BY, progress=False)
    assert again.trained.resumed == again.trained.steps
    assert again.candidates == found.candidates


def test_it_is_chosen_by_what_is_minimised(tmp_path: Path) -> None:
    teacher = Toy(hidden=12, seed=2)
    record, other = (recorded(teacher, data, tmp_path / f"{len(data)}") for data in (DATA, CHOSEN_BY))
    soft = [replace(one, hard_weight=0.0, soft_weight=1.0) for one in GRID]
    given = {"teacher": record, "validation": CHOSEN_BY, "validation_teacher": other, "progress": False}
    found = tune("student", lambda: Toy(seed=3), DATA, soft, tmp_path / "runs", **given)  # type: ignore[arg-type]
    for one in found.candidates:
        assert one["validation_loss"] == one["soft_cross_entropy"] != one["hard_cross_entropy"]


def test_there_must_be_something_to_choose_from_and_by(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="grid: holds no settings"):
        tune("student", Toy, DATA, [], tmp_path)
    with pytest.raises(ValueError, match="validation: is missing, and 3 settings to choose from"):
        tune("student", Toy, DATA, GRID, tmp_path)
    assert not list(tmp_path.iterdir())
    alone = tune("student", Toy, DATA, GRID[:1], tmp_path, progress=False)
    assert not alone.at_the_edge
