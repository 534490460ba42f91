"""A teacher's record as the target of a training run.

Legend: E examples, N rows of the examples asked for, J stored entries of a row at most, K of them exact.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from likely._checks import require
from likely._memory import empty
from likely.heads import Logits
from likely.targets import TAILS, Target, samples, teacher, top_k
from likely.teachers.keep import Rows
from likely.teachers.manifest import Manifest, expand, read_manifest
from likely.teachers.store import read_shard

CACHE_BYTES = 2**29
"""Of the shards that are held decoded; the ones used longest ago are let go first."""


class Record:
    """What a teacher said of the rows of some examples, read from the folder that `capture` wrote.

    A shard is checked and decoded when one of its examples is first asked for, and stays in memory (up to 512 MiB of
    shards): a shard that is damaged is named and never trained on.

    Attributes:
        folder: where it lies.
        manifest: what was recorded, and how.
        row_counts: (E,), the rows of each example.

    Raises:
        FileNotFoundError: from `open`, where there is no record, or one that is not finished.
        ValueError: from `open`, where the manifest is damaged, or a shard is missing or cut short; it is named.

    Example:
        >>> import tempfile
        >>> from likely.networks import Identity
        >>> from likely.teachers.keep import Keep, keep_rows
        >>> from likely.teachers.store import Writer
        >>> manifest = Manifest(Keep.parse("top:1+tail"), 3, Identity("entry", "m:f", "00"))
        >>> z = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = Writer(Path(folder), manifest, [1, 1])
        ...     writer.put(0, keep_rows(Logits(z), manifest.keep))
        ...     _ = writer.finish()
        ...     record = Record.open(folder)
        ...     record.entropy([1, 0]).round(decimals=3), record.target([1], tail="bucket").index
        (tensor([0.3670, 0.8320]), tensor([[0]]))
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.row_counts: NDArray[np.int64] = expand(manifest.shards)
        self._ends = np.cumsum([shard.examples for shard in manifest.shards])  # the example after each shard's last
        self._starts_E = np.concatenate([[0], np.cumsum(self.row_counts)])  # of an example's rows, in the whole record
        self._held: OrderedDict[int, tuple[Rows, NDArray[np.int64]]] = OrderedDict()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Record:
        """The record in a folder: its manifest is read, and the sizes of its shards are compared."""
        path = Path(folder)
        manifest = read_manifest(path)
        for shard in manifest.shards:
            file = path / shard.name
            require(file.is_file(), f"{path}: the shard {shard.name} is missing; take the record again")
            found = file.stat().st_size
            require(
                found == shard.bytes,
                f"{path}: the shard {shard.name} has {found} bytes, {shard.bytes} were written; take the record again",
            )
        return cls(path, manifest)

    def verify(self) -> None:
        """Read every shard and compare its checksum and its shape.

        Raises:
            ValueError: a shard is missing or damaged; it is named.
        """
        for shard in self.manifest.shards:
            read_shard(self.folder, shard, self.manifest.keep, self.manifest.number)

    def require_matches(
        self,
        *,
        data: str | None = None,
        tokenizer: str | None = None,
        classes: tuple[str, ...] | int | None = None,
        temperature: float | None = None,
    ) -> None:
        """The record is of these data, this tokenizer, these classes, at this temperature; None asks nothing.

        What the record does not say, because it came from elsewhere, is not compared.  A dense record serves at any
        temperature.

        Raises:
            ValueError: what differs is named.
        """
        own = self.manifest
        self._require_same("data", own.data, data, "examples in an order")
        self._require_same("tokenizer", own.tokenizer, tokenizer, "a tokenizer")
        if classes is not None:
            number = classes if isinstance(classes, int) else len(classes)
            require(
                number == own.number,
                f"classes: the record in {self.folder} has {own.number} where {number} are asked for",
            )
            if not isinstance(classes, int) and not isinstance(own.classes, int) and classes != own.classes:
                at = next(at for at, (was, now) in enumerate(zip(own.classes, classes)) if was != now)
                order = " (the same classes in another order)" if sorted(classes) == sorted(own.classes) else ""
                raise ValueError(
                    f"classes: number {at} is {own.classes[at]!r} in the record in {self.folder} and "
                    f"{classes[at]!r} here{order}"
                )
        if temperature is not None and own.keep.kind != "dense":
            require(
                temperature == own.temperature,
                f"temperature: the record in {self.folder} was taken at {own.temperature:g} and cannot be had at "
                f"{temperature:g}; take it again, or train at {own.temperature:g}",
            )

    def _require_same(self, name: str, own: str | None, other: str | None, what: str) -> None:
        require(
            own is None or other is None or own == other,
            f"{name}: the record in {self.folder} was taken on {what} of SHA-256 {str(own)[:12]}…, and these have "
            f"{str(other)[:12]}…; take the record again",
        )

    def target(self, indices: Sequence[int], *, tail: str | None = None) -> Target:
        """The target of the rows of these examples, in the order of the indices, as `Examples.batch` has them.

        * `dense`: the distribution itself, at any temperature of its Term.
        * `top:K`: `top_k`, whose `tail=` has to be chosen: "renormalise", "uniform" or "bucket". *Biased*.
        * `samples:N`: `samples` with the counts, and the exact entropy. *Unbiased*.
        * `hybrid:K+N`: the K probabilities, scaled to sum to `P = 1 − tail mass`, and `(1 − P) · count / N` for each
          class drawn, with the exact entropy. *Unbiased*.

        Args:
            indices: of examples; one may stand twice.
            tail: for `top:K` and `top:K+tail` only, and without a default.

        Raises:
            ValueError: `tail` is missing, or given for a record whose rows sum to one; a damaged shard, named.
            IndexError: an index that is no example.
        """
        keep, classes = self.manifest.keep, self.manifest.number
        temperature = self.manifest.temperature
        if keep.kind == "top":
            require(
                tail in TAILS,
                f"tail: is {tail!r}; a record of {keep} is no distribution: say how the missing mass is meant, "
                f"{', '.join(map(repr, TAILS))}",
            )
        else:
            require(tail is None, f"tail: is {tail!r}; a record of {keep} has no missing mass, leave tail= out")
        rows = self._rows(indices)
        known = None if rows.entropy is None else torch.from_numpy(rows.entropy)
        if keep.kind == "dense":
            assert rows.logprobs is not None
            log_p_NC = torch.from_numpy(rows.logprobs)  # a copy
            # softmax(T · log p / T') is softmax(z / T'), whatever T was.
            return teacher(Logits(log_p_NC if temperature == 1 else log_p_NC.mul_(temperature)))
        index_NJ, value_NJ = _padded(rows, keep.draws)
        if keep.kind == "top":
            assert tail is not None
            sums_N1 = value_NJ.sum(dim=-1, keepdim=True)  # over 1, or of all classes other than 1, by rounding alone
            value_NJ = value_NJ / (sums_N1 if keep.top == classes else sums_N1.clamp_min(1))
            return top_k(index_NJ, value_NJ, classes, tail=tail, temperature=temperature)
        return samples(index_NJ, value_NJ, classes, entropy=known, temperature=temperature)

    def entropy(self, indices: Sequence[int]) -> Tensor:
        """The exact entropy of the teacher's rows of these examples, (N,) in nats, at the record's temperature.

        Raises:
            ValueError: the record came from elsewhere and does not say; a damaged shard, named.
            IndexError: an index that is no example.
        """
        rows = self._rows(indices)
        require(rows.entropy is not None, f"entropy: the record in {self.folder} does not say it")
        return torch.from_numpy(rows.entropy)

    def _rows(self, indices: Sequence[int]) -> Rows:
        """The rows of these examples, in the order of the indices."""
        asked = np.asarray(indices, dtype=np.int64).reshape(-1)
        examples = len(self.row_counts)
        for index in asked[(asked < 0) | (asked >= examples)]:
            raise IndexError(f"indices: {index} is no example; the record has 0 … {examples - 1}")
        shard_of = np.searchsorted(self._ends, asked, side="right")
        numbers = np.unique(shard_of)
        row_counts = self.row_counts[asked]
        starts = np.cumsum(row_counts) - row_counts
        parts, places = [], []
        for number in numbers:
            here = np.flatnonzero(shard_of == number)
            rows, entry_starts = self._shard(int(number))
            first = self._starts_E[self._ends[number] - self.manifest.shards[number].examples]
            parts.append((rows, entry_starts, _ranges(self._starts_E[asked[here]] - first, row_counts[here])))
            places.append(_ranges(starts[here], row_counts[here]))
        if not parts:  # no example was asked for
            return _take(*self._shard(0), np.empty(0, dtype=np.int64))
        # Those of a dense record are large, and are copied once, to where they stay.
        log_p_NC = _gathered(parts, places) if self.manifest.keep.kind == "dense" else None
        if log_p_NC is not None:
            parts = [(replace(rows, logprobs=None), entry_starts, at) for rows, entry_starts, at in parts]
        taken = Rows.join([_take(*part) for part in parts])
        if len(parts) > 1:
            taken = _take(taken, _starts(taken), np.argsort(np.concatenate(places)))
        return taken if log_p_NC is None else replace(taken, logprobs=log_p_NC)

    def _shard(self, number: int) -> tuple[Rows, NDArray[np.int64]]:
        """A shard, decoded, and where the entries of each of its rows start."""
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        rows = read_shard(self.folder, self.manifest.shards[number], self.manifest.keep, self.manifest.number)
        self._held[number] = rows, _starts(rows)
        while len(self._held) > 1 and sum(rows.nbytes + at.nbytes for rows, at in self._held.values()) > CACHE_BYTES:
            self._held.popitem(last=False)
        return self._held[number]


def _starts(rows: Rows) -> NDArray[np.int64]:
    return np.cumsum(rows.entries) - rows.entries


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """`start, start + 1, …, start + length − 1` of each, one after another."""
    return np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


def _take(rows: Rows, entry_starts: NDArray[np.int64], at: NDArray[np.int64]) -> Rows:
    """The rows at these places."""

    def take(column: NDArray[Any] | None) -> NDArray[Any] | None:
        return None if column is None else column[at]

    entries = rows.entries[at]
    ids, counts = rows.ids, rows.counts
    if ids is not None:
        ids = ids[_ranges(entry_starts[at], entries)]
    if counts is not None:
        # The draws of a row start where its entries do, less the exact ones of the rows up to it.
        top = 0 if rows.logprobs is None else rows.logprobs.shape[1]
        counts = counts[_ranges(entry_starts[at] - top * at, entries - top)]
    return Rows(entries, ids, take(rows.logprobs), counts, take(rows.tail), take(rows.entropy))


def _gathered(
    parts: Sequence[tuple[Rows, NDArray[np.int64], NDArray[np.int64]]], places: Sequence[NDArray[np.int64]]
) -> NDArray[np.float32]:
    """The log-probabilities of rows of several shards, each in its place."""
    logprobs = [rows.logprobs for rows, _, _ in parts]
    assert logprobs[0] is not None
    found_NC = empty(sum(map(len, places)), logprobs[0].shape[1], dtype=torch.float32).numpy()
    for theirs, (_, _, at), place in zip(logprobs, parts, places):
        assert theirs is not None
        runs = np.flatnonzero((np.diff(at, prepend=-2) != 1) | (np.diff(place, prepend=-2) != 1))
        for start, stop in zip(runs, np.append(runs[1:], len(at))):
            found_NC[place[start] : place[start] + stop - start] = theirs[at[start] : at[start] + stop - start]
    return found_NC


def _padded(rows: Rows, draws: int) -> tuple[Tensor, Tensor]:
    """Classes and their mass, (N, J) int64 and float64; what fills up a shorter row has mass 0."""
    assert rows.ids is not None
    top = 0 if rows.logprobs is None else rows.logprobs.shape[1]
    N, J = len(rows), int(rows.entries.max(initial=max(1, top)))
    stored_NJ = np.arange(J) < rows.entries[:, None]
    index_NJ, value_NJ = np.zeros((N, J), dtype=np.int64), np.zeros((N, J))
    index_NJ[stored_NJ] = rows.ids
    tail_N1 = np.ones((N, 1))
    if rows.logprobs is not None:
        p_NK = np.exp(rows.logprobs.astype(np.float64))
        if rows.tail is not None:
            tail_N1 = rows.tail.astype(np.float64)[:, None]
            sums_N1 = p_NK.sum(axis=1, keepdims=True)
            p_NK *= np.divide(1 - tail_N1, sums_N1, out=np.zeros_like(sums_N1), where=sums_N1 > 0)
        value_NJ[:, :top] = p_NK
    if rows.counts is not None:
        drawn_NJ = stored_NJ.copy()
        drawn_NJ[:, :top] = False
        value_NJ[drawn_NJ] = rows.counts / draws
        value_NJ[:, top:] *= tail_N1
    return torch.from_numpy(index_NJ), torch.from_numpy(value_NJ)
