"""What a network is trained on: examples in an order, and the rows of predictions that each of them holds.

An *example* is what a network reads at once: a picture, a file, a sentence, a stretch of tokens.  A *row* is one
prediction: an example of a classifier is one row, a stretch of tokens as many as it has tokens to predict.  Shapes:
E examples, N rows of a batch, B examples of a batch, L tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

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

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the labels' classes; None where the classes are a tokenizer's tokens, or nothing has a label."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a network reads of the examples, in their order, and of which outputs are rows.

        Labels are no part of it: what a teacher said of the examples stays true when more of them are labelled.
        """
        ...

    @property
    def tokenizer(self) -> str | None:
        """SHA-256 of the tokenizer that made the tokens, None without one."""
        ...

    @property
    def row_counts(self) -> NDArray[np.int64]:
        """(E,), the rows of each example."""
        ...

    @property
    def groups(self) -> NDArray[np.int64]:
        """(E,), the document of each example; standard errors are clustered by it."""
        ...

    @property
    def byte_counts(self) -> NDArray[np.int64] | None:
        """(E,), the UTF-8 bytes of text that each example's rows predict, None where they predict no text."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """These examples; rows stand in the order of the indices, and within an example in their own."""
        ...

    def subset(self, indices: Sequence[int]) -> Examples: ...


Reader = Callable[[Sequence[Any]], Mapping[str, Any]]
"""From some items to the inputs of a batch."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Examples of one row each: texts, files, pictures or rows of a table, with a label or without one.

    Args:
        items: E of them, as `read` takes them.
        read: from some items to the inputs of a batch.
        digests: (E, 32) uint8, the SHA-256 of what a network reads of each.
        labels: (E,) int64, `IGNORED` where there is none.
        groups: (E,) int64, the document of each.
        classes: the names of the labels' classes, None where nothing has a label.
        names: what the items are called in messages: "row 3", "cat/1.png"; by default "example 3".
        features: the names of the features of a table.

    Example:
        >>> made = Labelled.of(["one", "two"], lambda items: {"text": list(items)}, [b"one", b"two"])
        >>> made.batch([1]).inputs, made.subset([1]).fingerprint == made.fingerprint
        ({'text': ['two']}, False)
    """

    items: Sequence[Any]
    read: Reader
    digests: NDArray[np.uint8]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    classes: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    tokenizer: ClassVar[None] = None
    byte_counts: ClassVar[None] = None

    @classmethod
    def of(
        cls,
        items: Sequence[Any],
        read: Reader,
        contents: Iterable[bytes],
        *,
        labels: NDArray[np.int64] | None = None,
        groups: NDArray[np.int64] | None = None,
        classes: tuple[str, ...] | None = None,
        names: Sequence[str] | None = None,
        features: Sequence[str] | None = None,
    ) -> Labelled:
        """The examples with these contents, by which they are told from others; by default each is its own document."""
        E = len(items)
        digests = np.frombuffer(b"".join(hashlib.sha256(content).digest() for content in contents), np.uint8)
        return cls(
            items,
            read,
            digests.reshape(E, 32),
            np.full(E, IGNORED, dtype=np.int64) if labels is None else labels,
            np.arange(E) if groups is None else groups,
            classes,
            None if names is None else tuple(names),
            None if features is None else tuple(features),
        )

    @property
    def row_counts(self) -> NDArray[np.int64]:
        return np.ones(len(self), dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        features = b"" if self.features is None else "\0".join(self.features).encode()
        return hashlib.sha256(self.digests.tobytes() + features).hexdigest()

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, indices: Sequence[int]) -> Batch:
        at = np.asarray(indices, dtype=np.int64)
        inputs = self.read([self.items[i] for i in at])
        return Batch(inputs, torch.from_numpy(self.labels[at]), torch.from_numpy(at))

    def subset(self, indices: Sequence[int]) -> Labelled:
        at = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            items=[self.items[i] for i in at],
            digests=self.digests[at],
            labels=self.labels[at],
            groups=self.groups[at],
            names=None if self.names is None else tuple(self.names[i] for i in at),
        )


def name_of(examples: Any, example: int) -> str:
    """What an example is called in a message: its row or its file where it is known, else its number.

    >>> name_of(None, 3)
    'example 3'
    """
    names = getattr(examples, "names", None)
    return f"example {example}" if names is None else names[example]
