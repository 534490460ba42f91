"""Settings: one dataclass, one YAML file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from likely.training.settings import Settings, read_yaml

GIVEN = Settings(
    hard_weight=0.1,
    soft_weight=0.9,
    temperature=2,
    max_steps=7,
    micro_batch=4,
    mixed_precision="bf16",
    tensorboard=True,
)


def test_a_yaml_file_gives_back_what_was_written(tmp_path: Path) -> None:
    GIVEN.write(tmp_path / "run.yaml")
    assert Settings.from_dict(read_yaml(tmp_path / "run.yaml")) == GIVEN
    assert list(read_yaml(tmp_path / "run.yaml")) == [one.name for one in fields(Settings)]


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-3 for text."""
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-3\nbatch_size: 1e2\ntemperature: 4\n# a comment\nclip: 0\n")
    found = Settings.from_dict(read_yaml(tmp_path / "run.yaml"))
    assert (found.learning_rate, found.batch_size, found.temperature, found.clip) == (0.001, 100, 4.0, 0.0)
    (tmp_path / "empty.yaml").write_text("")
    assert Settings.from_dict(read_yaml(tmp_path / "empty.yaml")) == Settings()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rat": 1}, "there is no 'learning_rat'; the nearest name is 'learning_rate'"),
        ({"zzz": 1}, "there is no 'zzz'; the nearest name is"),
        ({3: 1}, "there is no 3"),
        ({"temperature": 0}, "temperature: is 0.0; it is more than 0"),
        ({"temperature": float("nan")}, "temperature: is nan; it is a number"),
        ({"beta": 1.5}, "beta: is 1.5; it is at most 1"),
        ({"batch_size": 0}, "batch_size: is 0; it is at least 1"),
        ({"batch_size": 2.5}, "batch_size: is 2.5; it is a whole number"),
        ({"batch_size": True}, "batch_size: is True; it is a whole number"),
        ({"learning_rate": "fast"}, "learning_rate: is 'fast'; it is a number"),
        ({"learning_rate": [1]}, "learning_rate: is \\[1\\]; it is a number"),
        ({"learning_rate": None}, "learning_rate: is empty"),
        ({"tensorboard": "yes"}, "tensorboard: is 'yes'; it is true or false"),
        ({"mixed_precision": "fp8"}, "mixed_precision: is 'fp8'; it is one of bf16, fp16"),
    ],
)
def test_bad_settings(given: dict[object, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.from_dict(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is no YAML file"),
        ("- 1\n", "holds a list"),
        ("a: !!python/object/apply:os.system [true]\n", "is no YAML file"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_yaml(tmp_path / "run.yaml")
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "none.yaml")
