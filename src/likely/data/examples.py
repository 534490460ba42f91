"""What a network is trained on: examples in an order, and the rows of predictions that each of them holds.

An *example* is what a network reads at once: a picture, a file, a sentence, a stretch of tokens.  A *row* is one
prediction: an example of a classifier is one row, a stretch of tokens as many as it has tokens to predict.  Shapes:
E examples, N rows of a batch, B examples of a batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100
"""The label of a row that has none; what it predicts may still be a teacher's target."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some examples as a network takes them, and which of its outputs are rows.

    Args:
        inputs: what the network reads: `input_ids` and `attention_mask` (B, L), `pixel_values` (B, channels, height,
            width), `bytes` (B, L), `features` (B, D), or `text`, a list of B strings.
        labels: (N,) int64, the class of each row, `IGNORED` where it has none.
        example: (N,) int64, the example that each row belongs to.
        rows: (N,) int64, the rows among the network's B · L outputs, flattened; None where each example is one row.
    """

    inputs: Mapping[str, Any]
    labels: Tensor
    example: Tensor
    rows: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.inputs.items()}
        rows = None if self.rows is None else self.rows.to(device)
        return Batch(inputs, self.labels.to(device), self.example.to(device), rows)


class Examples(Protocol):
    """Examples in a fixed order; equal data in equal order has an equal `fingerprint`."""

    classes: tuple[str, ...] | None
    """The names of the labels' classes; None where the classes are a tokenizer's tokens, or nothing has a label."""
    fingerprint: str
    """SHA-256 of what the examples hold, in their order, and of which outputs are rows."""
    tokenizer: str | None
    """SHA-256 of the tokenizer that made the tokens, None without one."""
    row_counts: NDArray[np.int64]
    """(E,), the rows of each example."""
    groups: NDArray[np.int64]
    """(E,), the document of each example; standard errors are clustered by it."""
    byte_counts: NDArray[np.int64] | None
    """(E,), the UTF-8 bytes of text that each example's rows predict, None where they predict no text."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """These examples; rows stand in the order of the indices, and within an example in their own."""
        ...

    def subset(self, indices: Sequence[int]) -> Examples: ...
