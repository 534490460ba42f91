"""Checkpoints: whole or not at all, and what is in them goes back where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from likely.training import checkpoints


class Tied(torch.nn.Module):
    """Tied weights, a buffer in a buffer, one of integers, parameters not contiguous and not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.out = torch.nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.norm = torch.nn.BatchNorm1d(3)
        self.turned = torch.nn.Parameter(torch.randn(2, 3).T)
        self.fixed = torch.nn.Parameter(torch.randn(2), requires_grad=False)
        whole = torch.randn(6)
        self.register_buffer("whole", whole)
        self.register_buffer("part", whole[2:4])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.out(self.norm(self.embed(x))) @ torch.ones(5, 3) @ self.turned).square().sum()


def trained(seed: int, steps: int = 2) -> tuple[Tied, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = Tied()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.tensor([1, 2, 4])).backward()
        optimizer.step()
    return module, optimizer


def state(module: torch.nn.Module) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in module.state_dict().items()}


def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, _ = trained(0, steps=4)
    half, optimizer = trained(0, steps=2)
    path = checkpoints.save(tmp_path, 2, half, optimizer, {"x": 0.1 + 0.2})
    assert sorted(p.name for p in path.iterdir() if p.name[0] != ".") == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert "embed.weight" in load_file(path / "model.safetensors")
    assert "out.weight" not in load_file(path / "model.safetensors")
    other, optimizer = trained(1, steps=1)
    checkpoints.load(path, other, optimizer)
    assert checkpoints.state_of(path) == {"step": 2, "x": 0.1 + 0.2}
    assert state(other) == state(half)
    assert other.out.weight is other.embed.weight
    for _ in range(2):
        optimizer.zero_grad()
        other(torch.tensor([1, 2, 4])).backward()
        optimizer.step()
    assert state(other) == state(whole)


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    module, optimizer = trained(0)
    assert checkpoints.newest(tmp_path) is None
    for step in (8, 9, 10, 11):
        checkpoints.save(tmp_path, step, module, optimizer, {}, keep=2)
    (tmp_path / ".step-00000012.partial-abcd").mkdir()
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000011"
    checkpoints.tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_a_failure_while_saving_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, optimizer = trained(0)
    checkpoints.save(tmp_path, 1, module, optimizer, {})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(tmp_path, 2, module, optimizer, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, damage: str) -> None:
    module, optimizer = trained(0)
    path = checkpoints.save(tmp_path, 1, module, optimizer, {})
    whole = (path / name).read_bytes()
    (path / name).unlink()
    if damage == "cut":
        (path / name).write_bytes(whole[: len(whole) // 2])

    def read(path: Path) -> None:
        checkpoints.state_of(path)
        checkpoints.load(path, module, optimizer)

    with pytest.raises(ValueError, match=r"step-00000001.*is damaged; remove"):
        read(path)


def test_another_network_is_named(tmp_path: Path) -> None:
    module, optimizer = trained(0)
    path = checkpoints.save(tmp_path, 1, module, optimizer, {})
    with pytest.raises(ValueError, match=r": weight is missing where the network's is"):
        checkpoints.load(path, torch.nn.Linear(2, 2))
    other = Tied()
    other.fixed = torch.nn.Parameter(torch.zeros(7))
    with pytest.raises(ValueError, match=r"fixed is \(2,\) where the network's is \(7,\)"):
        checkpoints.load(path, other)
