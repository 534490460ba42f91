"""A small network over random features, and its data, for tests of the training loop."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import likely
from likely.data.examples import IGNORED, Batch
from likely.heads import Head
from likely.networks import Identity
from likely.teachers.capture import capture
from likely.teachers.record import Record

CLASSES = ("ant", "bee", "cow", "dog", "eel")
D = 6


class Toy:
    """Features, a hidden layer with dropout, a Linear head."""

    max_length: int | None = None

    def __init__(
        self, hidden: int = 8, seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float64
    ) -> None:
        self.classes: tuple[str, ...] | int = CLASSES
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module: Any = torch.nn.ModuleDict(
                {
                    "body": torch.nn.Sequential(
                        torch.nn.Linear(D, hidden),
                        torch.nn.LayerNorm(hidden),
                        torch.nn.Tanh(),
                        torch.nn.Dropout(dropout),
                    ),
                    "out": torch.nn.Linear(hidden, len(CLASSES)),
                }
            ).to(dtype)
        self.module.eval()
        self.dtype = dtype

    @property
    def identity(self) -> Identity:
        digest = hashlib.sha256(b"".join(p.detach().float().numpy().tobytes() for p in self.module.parameters()))
        return Identity("entry", "tests:toy", digest.hexdigest())

    def head(self, batch: Batch) -> Head:
        hidden = self.module["body"](batch.inputs["features"].to(self.dtype))
        hidden = hidden if batch.rows is None else hidden.flatten(0, 1)[batch.rows]
        return likely.Linear(hidden, self.module["out"].weight, self.module["out"].bias)

    def save(self, folder: Path) -> None:
        save_file(self.module.state_dict(), folder / "model.safetensors")


class Rows:
    """E examples of 1 … 4 rows each, of random features; labels from a hidden rule, some `IGNORED`."""

    tokenizer = None
    byte_counts = None

    def __init__(self, E: int = 20, seed: int = 0, ignored: float = 0.2, longest: int = 4) -> None:
        make = np.random.default_rng(seed)
        self.classes: tuple[str, ...] | None = CLASSES
        self.row_counts = make.integers(1, longest + 1, E)
        self.groups = np.arange(E) // 2
        self.x = [make.normal(size=(n, D)) for n in self.row_counts]
        rule = make.normal(size=(D, len(CLASSES)))
        self.y = [(x @ rule).argmax(axis=1) for x in self.x]
        for y in self.y:
            y[make.random(len(y)) < ignored] = IGNORED
        self._sign()

    def _sign(self) -> None:
        held = hashlib.sha256()
        for x, y in zip(self.x, self.y):
            held.update(x.tobytes() + y.tobytes())
        self.fingerprint = held.hexdigest()

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Padded with what no row reads."""
        n = [len(self.x[i]) for i in indices]
        x = np.full((len(indices), max(n, default=0), D), 1e3)
        rows = []
        for place, i in enumerate(indices):
            x[place, : n[place]] = self.x[i]
            rows += [place * max(n) + row for row in range(n[place])]
        labels = torch.from_numpy(np.concatenate([self.y[i] for i in indices]))
        example = torch.from_numpy(np.repeat(np.asarray(indices), n))
        return Batch({"features": torch.from_numpy(x)}, labels, example, torch.tensor(rows))

    def subset(self, indices: Sequence[int]) -> Rows:
        part = object.__new__(Rows)
        part.classes = self.classes
        part.row_counts, part.groups = self.row_counts[list(indices)], self.groups[list(indices)]
        part.x, part.y = [self.x[i] for i in indices], [self.y[i] for i in indices]
        part._sign()
        return part


def recorded(teacher: Toy, data: Rows, out: Path, keep: str = "dense", temperature: float = 1.0) -> Record:
    """The teacher's record of the data, written to a folder and read from it."""
    return capture(teacher, data, keep, out, temperature=temperature)
