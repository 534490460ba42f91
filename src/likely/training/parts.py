"""The parts of a data set that a run trains on, chooses with and measures, and a record's view of one of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from likely._checks import require
from likely.data.examples import Examples
from likely.teachers.keep import Rows
from likely.teachers.record import Record


def split(groups: NDArray[np.int64], shares: Sequence[float], seed: int = 0) -> list[list[int]]:
    """The examples of each part, whole documents drawn at random; the last list is what the shares leave.

    A part has its share of the documents, at least two of them, so that an error can be told from it; every list is in
    the data's order.

    Args:
        groups: (E,), the document of each example.
        shares: of the documents, each above 0.

    Raises: ValueError where too few documents would be left.

    >>> split(np.array([0, 0, 1, 2, 3, 4, 5]), (0.2, 0.2), seed=0)
    [[3, 4], [5, 6], [0, 1, 2]]
    """
    documents = np.unique(groups)
    sizes = [max(2, round(share * len(documents))) for share in shares]
    require(
        sum(sizes) < len(documents),
        f"data: has {len(documents)} documents, too few for parts of {', '.join(map(str, sizes))} and one to train on",
    )
    order = np.random.default_rng(seed).permutation(documents)
    ends = np.cumsum(sizes)
    return [np.flatnonzero(np.isin(groups, part)).tolist() for part in np.split(order, ends)]


class RecordPart(Record):
    """The rows that a record has of some of its examples, under the numbers that they have in that part.

    Raises: ValueError where the record is not of the examples.
    """

    def __init__(self, whole: Record, examples: Examples, indices: Sequence[int]) -> None:
        whole.require_matches(data=examples.fingerprint, tokenizer=examples.tokenizer)
        super().__init__(whole.folder, whole.manifest)
        self._whole, self._at = whole, np.asarray(indices, dtype=np.int64)
        self._fingerprint = examples.subset(indices).fingerprint
        self.row_counts = whole.row_counts[self._at]

    def require_matches(
        self,
        *,
        data: str | None = None,
        tokenizer: str | None = None,
        classes: tuple[str, ...] | int | None = None,
        temperature: float | None = None,
    ) -> None:
        require(data in (None, self._fingerprint), "data: are not the part of the record's examples that was asked for")
        self._whole.require_matches(tokenizer=tokenizer, classes=classes, temperature=temperature)

    def _rows(self, indices: Sequence[int]) -> Rows:
        return self._whole._rows(self._at[np.asarray(indices, dtype=np.int64).reshape(-1)].tolist())
