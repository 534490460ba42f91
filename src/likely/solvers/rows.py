"""Rows in blocks: the one way in which the solvers see data, whether it lies in memory or comes from a stream.

Shapes: n rows, D features, K classes.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import scipy.sparse
import threadpoolctl

from likely._checks import require, require_rows

Factory = Callable[[], Iterable[tuple[Any, ...]]]
Sums = TypeVar("Sums", bound=tuple[Any, ...])

DENSE_ROWS, DENSE_ENTRIES, SPARSE_LOGITS = 1024, 131_072, 8_000_000
"""A dense block has so many rows, or so many entries if it is narrow: it stays in the cache, and the calls on it cost
little. A sparse one, which costs a copy to slice, is bounded by the number of its logits."""


FEW_ENTRIES = 2_000_000
"""Some of the rows are copied where they have no more entries than this, and gathered at each pass where they do."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some consecutive rows: `x` (rows, D) dense or CSR, `weight` (rows,), and where given `target` and `offset`."""

    start: int
    x: Any
    weight: np.ndarray
    target: np.ndarray | None
    offset: np.ndarray | None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.weight))


def as_matrix(x: Any, name: str = "X") -> Any:
    """A C-ordered or Fortran-ordered array or a CSR matrix of float32 or float64; a copy only where it has to be."""
    if scipy.sparse.issparse(x):
        x = x if x.format == "csr" else x.tocsr()
        x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)
        return x
    x = np.asarray(x)
    require(x.ndim == 2, f"{name}: has shape {x.shape}; it has rows and columns")
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)


class Memory:
    """Rows that lie in memory; `weight` sums to one. With an `index` it is some of them, gathered block by block."""

    def __init__(
        self,
        x: Any,
        target: np.ndarray,
        weight: np.ndarray,
        offset: np.ndarray | None,
        block_rows: int | None = None,
        index: np.ndarray | None = None,
        classes: int = 1,
    ) -> None:
        self.x, self.target, self.weight, self.offset, self.index = x, target, weight, offset, index
        self.n, self.D = (self.x.shape[0] if index is None else len(index)), self.x.shape[1]
        self.sparse = scipy.sparse.issparse(self.x)
        if block_rows is None and self.sparse:
            block_rows = max(DENSE_ROWS, SPARSE_LOGITS // max(1, classes))
        elif block_rows is None:
            block_rows = max(DENSE_ROWS, DENSE_ENTRIES // max(1, self.D))
            if classes == 2:  # mostly for compiled passes, which have small blocks of their own
                block_rows = max(block_rows, min(4 * DENSE_ENTRIES // max(1, self.D), self.n // 16))
        self.block_rows = block_rows

    def block(self, start: int, stop: int) -> Block:
        rows: Any = slice(start, stop) if self.index is None else self.index[start:stop]
        x = self.x if self.index is None and start == 0 and stop >= self.n else self.x[rows]
        offset = None if self.offset is None else self.offset[rows]
        return Block(start, x, self.weight[start:stop], self.target[rows], offset)

    def parts(self, many: int) -> list[Iterator[Block]]:
        """The blocks, dealt to `many` workers in consecutive runs."""
        starts = range(0, self.n, self.block_rows)
        size = -(-len(starts) // max(1, many))
        runs = [starts[i : i + size] for i in range(0, len(starts), size)] if size else []
        return [(self.block(s, min(self.n, s + self.block_rows)) for s in run) for run in runs]

    def subset(self, index: np.ndarray) -> Memory:
        weight = self.weight[index]
        weight = weight / weight.sum()
        if self.sparse or len(index) * self.D <= FEW_ENTRIES:
            offset = None if self.offset is None else self.offset[index]
            return Memory(self.x[index], self.target[index], weight, offset, self.block_rows)
        return Memory(self.x, self.target, weight, self.offset, None, index)

    def of_classes(self, classes: np.ndarray) -> Memory:
        """The same rows for some of the classes."""
        some = copy.copy(self)
        some.offset = None if self.offset is None else self.offset[:, classes]
        some.target = restrict(self.target, classes)
        return some


def restrict(target: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """A target in terms of some of the classes, which hold all of its mass (rows of weight 0 may be anything)."""
    if target.ndim == 2:
        return target[:, classes]
    place = np.zeros(int(max(classes.max(), target.max())) + 1, np.int64)
    place[classes] = np.arange(len(classes))
    return place[target]


class Stream:
    """Rows that are read anew at each pass: `factory()` yields `(X, target[, weight[, offset]])`."""

    def __init__(self, factory: Factory) -> None:
        self.factory = factory
        self.classes: np.ndarray | None = None
        self.total = 1.0
        self.n = self.D = -1
        self.sparse = False

    def parts(self, many: int) -> list[Iterator[Block]]:
        return [self.blocks()]

    def of_classes(self, classes: np.ndarray) -> Stream:
        some = copy.copy(self)
        some.classes = classes
        return some

    def blocks(self) -> Iterator[Block]:
        start = 0
        for number, item in enumerate(self.factory()):
            require(2 <= len(item) <= 4, f"stream: block {number} is no (X, target[, weight[, offset]])")
            x, target = as_matrix(item[0], f"stream: block {number}"), np.asarray(item[1])
            weight = np.ones(x.shape[0]) if len(item) < 3 or item[2] is None else np.asarray(item[2], np.float64)
            offset = None if len(item) < 4 or item[3] is None else np.asarray(item[3], np.float64)
            require_rows(f"stream: block {number}: target", len(target), x.shape[0], "X")
            require_rows(f"stream: block {number}: weight", len(weight), x.shape[0], "X")
            if self.D < 0:
                self.D, self.sparse = x.shape[1], scipy.sparse.issparse(x)
            require(
                x.shape[1] == self.D,
                f"stream: block {number} (row {start}) has {x.shape[1]} columns where the blocks before have {self.D}",
            )
            if self.classes is not None:
                target, offset = restrict(target, self.classes), None if offset is None else offset[:, self.classes]
            yield Block(start, x, weight / self.total, target, offset)
            start += x.shape[0]
        if self.n >= 0:
            require(start == self.n, f"stream: gave {self.n} rows at first and {start} in a later pass")
        self.n = start


def random_rows(n: int, many: int, rng: np.random.Generator) -> np.ndarray:
    """About `many` of n rows in order, (many,): one from each of as many equal parts."""
    edges = np.arange(many + 1) * n // many
    return np.asarray(rng.integers(edges[:-1], edges[1:]))


@functools.cache
def _pools() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


def one_thread() -> contextlib.AbstractContextManager[object]:
    """The linear algebra's own threads rest: ours are at work, or there is too little to do."""
    return _pools().limit(limits=1, user_api="blas")


def workers() -> int:
    """As many threads as the linear algebra may use: what the user has set for it holds here too."""
    counts = [pool["num_threads"] for pool in _pools().info() if pool["user_api"] == "blas"]
    return max(counts, default=1)


def reduce(source: Memory | Stream, function: Callable[[Block], Sums], many: int = 1) -> Sums:
    """The sum over blocks of the tuples that `function` makes of them; its order depends on `many` alone."""

    def run(blocks: Iterator[Block]) -> Any:
        total: list[Any] | None = None
        for block in blocks:
            terms = function(block)
            if total is None:
                total = list(terms)
            else:
                for i, term in enumerate(terms):
                    if isinstance(total[i], np.ndarray):
                        total[i] += term
                    else:
                        total[i] = total[i] + term
        return total

    parts = source.parts(many)
    if len(parts) == 1:
        sums = [run(parts[0])]
    else:
        with one_thread(), ThreadPoolExecutor(len(parts)) as pool:
            sums = list(pool.map(run, parts))
    sums = [one for one in sums if one is not None]
    require(bool(sums), "X: has no rows")
    return tuple(sum(terms[1:], start=terms[0]) for terms in zip(*sums))  # type: ignore[return-value]


def dense(x: Any) -> np.ndarray:
    return np.asarray(x.toarray()) if scipy.sparse.issparse(x) else x


def chain(source: Memory | Stream) -> Iterator[Block]:
    """All blocks in order."""
    return itertools.chain.from_iterable(source.parts(1))
