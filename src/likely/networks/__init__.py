"""Networks that give heads: teachers and students, whatever they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from likely.data.examples import Batch
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

    classes: tuple[str, ...] | int
    """The names of the classes in the order of the logits, or their number where they are a tokenizer's tokens."""
    max_length: int | None
    """The longest sequence that it reads, None without a limit."""
    module: torch.nn.Module | None
    """What is trained; None where it cannot be. It is in eval mode until a training loop changes that."""

    @property
    def identity(self) -> Identity: ...

    def head(self, batch: Batch) -> Head: ...

    def save(self, folder: Path) -> None:
        """Write it into a folder that exists and is empty, in its own format: safetensors and JSON, no pickle."""
        ...
