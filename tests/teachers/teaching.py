"""A small teacher and its examples: rows of logits from a table of hidden states and an output weight."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from likely.data.examples import Batch, Examples
from likely.heads import Head, Linear
from likely.networks import Identity


@dataclass
class Pieces:
    """Examples of `row_counts` rows each, with hidden states in place of tokens."""

    row_counts: NDArray[np.int64]
    features: int = 6
    seed: int = 0
    classes: tuple[str, ...] | None = None
    fingerprint: str = "d" * 64
    tokenizer: str | None = None
    byte_counts: NDArray[np.int64] | None = None
    shown: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.groups = np.arange(len(self.row_counts))
        self.starts = np.concatenate([[0], np.cumsum(self.row_counts)])
        generator = torch.Generator().manual_seed(self.seed)
        self.x_ND = torch.randn(int(self.starts[-1]), self.features, generator=generator)

    def __len__(self) -> int:
        return len(self.row_counts)

    def batch(self, indices: Sequence[int]) -> Batch:
        self.shown += list(indices)
        at = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in indices])
        example = np.repeat(np.asarray(indices), self.row_counts[list(indices)])
        labels = torch.full((len(at),), -100)
        return Batch({"features": self.x_ND[torch.from_numpy(at)]}, labels, torch.from_numpy(example))

    def subset(self, indices: Sequence[int]) -> Examples:
        raise NotImplementedError


@dataclass
class Teacher:
    """`z = x Wᵀ` with a fixed W of `classes` rows, scaled."""

    classes: tuple[str, ...] | int = 40
    features: int = 6
    scale: float = 1.0
    sha256: str = "a" * 64
    tokenizer: str | None = None
    max_length: int | None = None
    module: torch.nn.Module | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        number = self.classes if isinstance(self.classes, int) else len(self.classes)
        self.weight_CD = torch.randn(number, self.features, generator=torch.Generator().manual_seed(1)) * self.scale

    @property
    def identity(self) -> Identity:
        return Identity("entry", "tests:teacher", self.sha256, self.tokenizer)

    def head(self, batch: Batch) -> Head:
        return Linear(batch.inputs["features"].to(self.dtype), self.weight_CD.to(self.dtype))

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def probabilities(self, examples: Pieces, temperature: float = 1.0) -> torch.Tensor:
        """p of all rows, (N, C) in float64."""
        return torch.softmax(examples.x_ND.double() @ self.weight_CD.double().T / temperature, dim=-1)
