"""Networks that give heads: teachers and students, whatever they are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from likely._checks import require
from likely.data.examples import Batch, Examples, name_of
from likely.heads import Head


@dataclass(frozen=True)
class Identity:
    """What a record says of the network that it was made with.

    Args:
        kind: "transformers", "onnx", "estimator", "entry", "linear", "mlp".
        name: the folder's or file's own name without its path, or the entry's `package.module:function`.
        sha256: of the weights, in a fixed order.
        tokenizer: SHA-256 of its tokenizer, None without one.
    """

    kind: str
    name: str
    sha256: str
    tokenizer: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, "sha256": self.sha256, "tokenizer": self.tokenizer}


class Network(Protocol):
    """What gives the rows of logits of a batch: `head(batch)` has one row for each of `batch.labels`.

    A causal language model gives `Linear(hidden states of the rows, its output weights)`, so that no N × C logits are
    held; a network that is known by its outputs only gives `Logits`, of probabilities their logarithm.
    """

    @property
    def classes(self) -> tuple[str, ...] | int:
        """The names of the classes in the order of the logits, or their number where they have no names, as tokens."""
        ...

    @property
    def max_length(self) -> int | None:
        """The longest sequence that it reads, None without a limit."""
        ...

    @property
    def module(self) -> torch.nn.Module | None:
        """What is trained; None where it cannot be. It is in eval mode until a training loop changes that."""
        ...

    @property
    def identity(self) -> Identity: ...

    def head(self, batch: Batch) -> Head: ...

    def save(self, folder: Path) -> None:
        """Write it into a folder that exists and is empty, in its own format: safetensors and JSON, no pickle."""
        ...


def number_of(classes: tuple[str, ...] | int) -> int:
    return classes if isinstance(classes, int) else len(classes)


def require_same_classes(
    one: tuple[str, ...] | int, other: tuple[str, ...] | int, its: str = "teacher", whose: str = "student"
) -> None:
    """Classes agree in number, and in names and order where both have names.

    Args:
        one, other: names of classes, or their number.
        its, whose: what they belong to, for the message.

    Raises: ValueError naming the first difference.

    >>> require_same_classes(("cat", "dog"), ("dog", "cat"))
    Traceback (most recent call last):
    ValueError: teacher: class 0 is 'cat' where the student has 'dog' (the same classes in another order)
    """
    counts = number_of(one), number_of(other)
    require(counts[0] == counts[1], f"{its}: has {counts[0]:,} classes where the {whose} has {counts[1]:,}")
    if isinstance(one, int) or isinstance(other, int):
        return
    order = " (the same classes in another order)" if sorted(one) == sorted(other) else ""
    for place, (mine, theirs) in enumerate(zip(one, other)):
        require(mine == theirs, f"{its}: class {place} is {mine!r} where the {whose} has {theirs!r}{order}")


@torch.no_grad()
def require_readable(network: Network, examples: Examples | None, name: str) -> None:
    """The network reads the first of the examples, and gives a row of logits for each of its rows.

    Raises: ValueError saying what is wrong.
    """
    if examples is None:
        return
    batch = examples.batch([0])
    try:
        head = network.head(batch)
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: cannot read {name_of(examples, 0)}: {error}") from error
    rows, classes = len(batch.labels), number_of(network.classes)
    require(head.rows == rows, f"{name}: gives {head.rows} rows of logits of {name_of(examples, 0)}, which has {rows}")
    require(head.classes == classes, f"{name}: gives logits of {head.classes:,} classes, where {classes:,} are named")


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors in the order of their names: names, dtypes, shapes and bytes, however they lie in files.

    >>> one, other = torch.ones(2), torch.zeros(1)
    >>> weights_hash({"a": one, "b": other}) == weights_hash({"b": other, "a": one})
    True
    """
    held = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        held.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            held.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return held.hexdigest()


def file_hash(*paths: Path) -> str:
    """SHA-256 of files, one after another."""
    held = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                held.update(block)
    return held.hexdigest()
