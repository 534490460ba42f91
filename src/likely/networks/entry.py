"""Networks that a user's own function makes, and torch modules as networks.

Legend: B examples, N rows, C classes.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from likely._checks import require
from likely.data.examples import Batch, Examples
from likely.heads import Head, Logits
from likely.networks import Identity, Network, require_readable, weights_hash


def imported(name: str) -> Any:
    """What `package.module:name` names, from where Python finds it, the current folder last. Importing runs its code.

    Returns: None where the module has no such attribute; that of an attribute is `package.module:name.its`.

    Raises: ModuleNotFoundError.

    >>> imported("math:pi"), imported("math:e.real"), imported("math:absent")
    (3.141592653589793, 2.718281828459045, None)
    """
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    found: Any = importlib.import_module(module_name)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def entry_network(
    name: str,
    examples: Examples | None = None,
    classes: tuple[str, ...] | None = None,
    *,
    weights: Path | None = None,
    trainable: bool = False,
    seed: int = 0,
) -> Network:
    """What the function `package.module:function` makes of the examples: a Network, or a torch module.

    The module is imported from where Python finds it, the current folder last.  A torch module maps those inputs of a
    batch that its `forward` has parameters for to logits, (B, C) or (B, L, C), and is wrapped as `ModuleNetwork`.

    Args:
        name: of the function.
        examples: what it is given, and is to read.
        classes: the names of the classes; by default those of the weights' folder, else those of the examples.
        weights: a folder that such a network was saved into: its module takes the weights from there.
        trainable: whether its parameters ask for gradients.
        seed: of random weights.

    Raises: ImportError where the module or the function is not there; TypeError for what is no network; ValueError for
        one that cannot read the examples, or weights that another function's network was saved with, or that do not
        fit; FileNotFoundError where there are none.
    """
    about = {} if weights is None else _saved(weights, name)
    try:
        function = imported(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name}: {error}; it is imported from the current folder or an installed package") from error
    module_name, _, function_name = name.partition(":")
    require(callable(function), f"{name}: {module_name} has no function {function_name!r}", ImportError)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = function(examples)
    if isinstance(made, torch.nn.Module) and not hasattr(made, "head"):
        own = tuple(about["classes"]) if isinstance(about.get("classes"), list) else None
        made = ModuleNetwork(made, name, classes or own or (None if examples is None else examples.classes), examples)
    missing = [one for one in ("head", "classes", "identity") if not hasattr(made, one)]
    require(
        not missing,
        f"{name}: returned a {type(made).__name__}, which has no {missing[:1]}; return a torch module or a Network",
        TypeError,
    )
    if weights is not None:
        require(made.module is not None, f"{name}: has no torch module that could take the weights of {weights}")
        try:
            made.module.load_state_dict(load_file(weights / "model.safetensors"))
        except (RuntimeError, SafetensorError, OSError) as error:
            raise ValueError(
                f"{weights}: its weights do not fit {name} ({' '.join(str(error).split())[:300]})"
            ) from None
    if made.module is not None:
        made.module.eval()
        if not trainable:  # a student's parameters stay as the function has left them
            made.module.requires_grad_(False)
    require(not trainable or made.module is not None, f"{name}: has no torch module; it cannot be trained")
    require_readable(made, examples, name)
    return made


def _saved(folder: Path, name: str) -> Mapping[str, Any]:
    """What `network.json` says of the network of an entry, of which the code is not in the folder."""
    for file in ("network.json", "model.safetensors"):
        require((folder / file).is_file(), f"{name}={folder}: the folder holds no {file}", FileNotFoundError)
    try:
        about: Mapping[str, Any] = dict(json.loads((folder / "network.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}: its network.json cannot be read ({error})") from None
    require(
        (about.get("kind"), about.get("name")) == ("entry", name),
        f"{folder}: was saved by {about.get('name', about.get('kind'))!r}, not by the entry {name!r}",
    )
    return about


class ModuleNetwork:
    """A torch module that maps inputs to logits, as a Network.

    Args:
        module: its `forward` takes inputs of a batch by their names, and gives logits (B, C) or, where the examples
            have rows among their outputs, (B, L, C); or an object with such `logits`.
        name: of the entry that made it.
        classes: the names of the classes; by default as many as it has logits of the first example.
        examples: what it is to read.

    Raises: ValueError where neither classes nor examples are given.

    Example:
        >>> from likely.data.examples import Batch
        >>> class Halves(torch.nn.Module):
        ...     def forward(self, features): return features / 2
        >>> network = ModuleNetwork(Halves(), "my.models:halves", ("a", "b"))
        >>> network.head(Batch({"features": torch.ones(1, 2)}, torch.tensor([0]), torch.tensor([0]))).logits()
        tensor([[0.5000, 0.5000]])
    """

    max_length: int | None = None

    def __init__(
        self,
        module: torch.nn.Module,
        name: str,
        classes: tuple[str, ...] | None = None,
        examples: Examples | None = None,
    ) -> None:
        self.module: torch.nn.Module | None = module.eval()
        self.name, self._forward = name, module
        parameters = inspect.signature(module.forward).parameters.values()
        everything = any(one.kind is one.VAR_KEYWORD for one in parameters)
        self._takes = None if everything else {one.name for one in parameters}
        if classes is None:
            require(examples is not None, f"{name}: its classes are not known; name them, or give examples")
            assert examples is not None
            with torch.no_grad():
                found = self.head(examples.batch([0])).classes
        self.classes: tuple[str, ...] | int = found if classes is None else classes

    @property
    def identity(self) -> Identity:
        return Identity("entry", self.name, weights_hash(self._forward.state_dict()))

    def head(self, batch: Batch) -> Head:
        takes = batch.inputs if self._takes is None else self._takes & batch.inputs.keys()
        require(
            bool(takes),
            f"{self.name}: its forward takes {sorted(self._takes or [])}, and the examples hold {sorted(batch.inputs)}",
        )
        given = self._forward(**{key: batch.inputs[key] for key in takes})
        z: Tensor = given["logits"] if isinstance(given, Mapping) else getattr(given, "logits", given)
        z_NC = z if batch.rows is None else z.flatten(0, -2)[batch.rows]
        require(z_NC.dim() == 2, f"{self.name}: gives logits of shape {tuple(z.shape)}; they are (examples, classes)")
        return Logits(z_NC)

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, the module's state, and `network.json`, which says what made it."""
        save_module(self._forward, folder, {"kind": "entry", "name": self.name, "classes": self.classes})


def save_module(module: torch.nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
    """A module's state as safetensors, and what is to be known of it as JSON."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "network.json").write_text(
        json.dumps({"format": 1, **about}, indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
