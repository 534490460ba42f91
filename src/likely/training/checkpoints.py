"""Checkpoints of a training run: folders that appear whole or not at all, of safetensors and JSON.

A checkpoint is `step-00000100/`: `model.safetensors` (parameters and buffers), `optimizer.safetensors` (what the
optimiser keeps of each parameter) and `state.json`.  The last one of a run that is done has no optimiser.  A step's
random numbers come from the seed and the step's number alone, so none need be kept.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely._checks import require
from likely._files import new_folder

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def save(
    folder: Path,
    step: int,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None,
    state: dict[str, Any],
    keep: int = 1,
) -> Path:
    """Write the checkpoint of a step into `folder`, and remove all but the `keep` newest.

    Args:
        optimizer: None where the run is done.
        state: what JSON holds, floats with all their digits.
    """
    from safetensors.torch import save_file

    path = folder / f"step-{step:08d}"
    with new_folder(path, overwrite=True) as new:
        save_file(_alone(_tensors(module)), new / MODEL)
        if optimizer is not None:
            save_file(_alone(_kept(module, optimizer)), new / OPTIMIZER)
        (new / STATE).write_text(json.dumps({"step": step, **state}, indent=2) + "\n", encoding="utf-8")
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step, None where there is none."""
    found = _all(folder)
    return found[-1] if found else None


def tidy(folder: Path) -> None:
    """Remove what a run that was killed while it saved has left."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def state_of(path: Path) -> dict[str, Any]:
    """What `save` was given to keep.

    Raises: ValueError for a checkpoint that is damaged.
    """
    try:
        return json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"{path}: is damaged; remove it to go on from the one before, or from the start") from None


def load(path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put the tensors of a checkpoint into a module, and into its optimiser where one is given.

    Raises: ValueError for a checkpoint that is damaged, or of another network.
    """
    own, found = _tensors(module), _read(path / MODEL)
    _require_same(path, {n: t.shape for n, t in own.items()}, {n: t.shape for n, t in found.items()})
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])
    if optimizer is None:
        return
    state: dict[int, dict[str, Tensor]] = {}
    names = _names(module, optimizer)
    for key, tensor in _read(path / OPTIMIZER).items():
        name, _, what = key.rpartition(".")
        require(name in names, f"{path}: has an optimiser's {what} of {name}, which this network does not train")
        state.setdefault(names.index(name), {})[what] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def _tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module, tied ones once."""
    seen: set[int] = set()
    found = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        require(isinstance(tensor, Tensor), f"{name}: is no tensor, so no checkpoint can hold it", TypeError)
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


def _alone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and none a part of another's memory, as safetensors wants them."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor.contiguous()
        seen.add(place)
    return found


def _names(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of the parameters in the optimiser's order."""
    name = {id(parameter): name for name, parameter in module.named_parameters()}
    return [name[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _kept(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names, state = _names(module, optimizer), optimizer.state_dict()["state"]
    return {f"{names[i]}.{what}": tensor for i, one in state.items() for what, tensor in one.items()}


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError):
        raise ValueError(f"{path}: is damaged; remove its folder to go on from the one before") from None


def _require_same(path: Path, own: dict[str, Any], found: dict[str, Any]) -> None:
    for name in dict.fromkeys([*own, *found]):
        mine, its = (tuple(shapes[name]) if name in shapes else "missing" for shapes in (own, found))
        require(mine == its, f"{path}: {name} is {its} where the network's is {mine}; it is of another network")
