"""What is kept of a teacher's rows: all of it, its largest classes, draws from it, or both of the latter.

Legend: N rows, C classes, K classes kept exactly per row, M draws per row, n rows of one part, B cells of W classes,
P = B · W ≥ C.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from likely._checks import require
from likely._memory import empty
from likely.heads import Head

KINDS = "'dense', 'top:K', 'top:K+tail', 'samples:N' or 'hybrid:K+N', with whole numbers K and N of at least 1"
# The product with a head's weight reads all of the weight, so it wants many rows; what follows wants few, in the cache.
_BLOCK_BYTES, _PART_BYTES = 2**25, 2**21
# Classes are searched in cells of so many; the last one is filled up with classes that have no mass.
_CELL, _FILL = 128, -1e30


@dataclass(frozen=True)
class Keep:
    """What is kept of each row of a teacher's probabilities `p = softmax(z / T)`, beside its exact entropy.

    * `dense`: every log-probability.
    * `top:K`: the K largest. *Biased*: the fixed point of a student is `p / P` on them, `P` being their mass, unless
      `tail=` says otherwise when it is trained.
    * `top:K+tail`: these, and the exact mass `1 − P` of all others. *Biased*: it says nothing of the tail's shape.
    * `samples:N`: N draws with replacement from p, as classes with their counts. *Unbiased* for any N.
    * `hybrid:K+N`: the K largest exactly, and N draws with replacement from the rest's own distribution, each worth
      `(1 − P) · count / N` (Hansen and Hurwitz), so that a row sums to one. *Unbiased*.

    Args:
        kind: "dense", "top", "samples" or "hybrid".
        top: K, 0 without.
        draws: N, 0 without.
        tail: whether the mass outside the K is stored.

    Raises:
        ValueError: from `parse`, where the text names no such kind; the kinds are listed.

    Example:
        >>> Keep.parse("hybrid:8+4")
        Keep(kind='hybrid', top=8, draws=4, tail=True)
        >>> str(Keep.parse("top:12+tail")), Keep.parse("top:12+tail").gradient
        ('top:12+tail', 'biased')

    Source: https://arxiv.org/abs/2503.16870 (random sampling distillation); Hansen and Hurwitz, On the theory of
    sampling from finite populations, 1943.
    """

    kind: str
    top: int = 0
    draws: int = 0
    tail: bool = False

    @classmethod
    def parse(cls, text: str | Keep) -> Keep:
        """The kind that a text names."""
        if isinstance(text, Keep):
            return text
        found = re.fullmatch(r"(dense)|top:(\d{1,9})(\+tail)?|samples:(\d{1,9})|hybrid:(\d{1,9})\+(\d{1,9})", text)
        require(found is not None, f"keep: is {text!r}; it is {KINDS}")
        assert found is not None
        dense, top, tail, samples, hybrid, rest = found.groups()
        if dense:
            return cls("dense")
        numbers = [int(number) for number in (top, samples, hybrid, rest) if number is not None]
        require(min(numbers) > 0, f"keep: is {text!r}; it is {KINDS}")
        keep = (
            cls("top", top=numbers[0], tail=tail is not None)
            if top is not None
            else cls("samples", draws=numbers[0])
            if samples is not None
            else cls("hybrid", top=numbers[0], draws=numbers[1], tail=True)
        )
        require(keep.draws < 2**16, f"keep: is {text!r}; there are at most 65535 draws of a row")
        return keep

    def __str__(self) -> str:
        if self.kind == "top":
            return f"top:{self.top}" + ("+tail" if self.tail else "")
        return {"dense": "dense", "samples": f"samples:{self.draws}"}.get(self.kind, f"hybrid:{self.top}+{self.draws}")

    @property
    def gradient(self) -> str:
        """Whether the gradient of a student's loss on the record is "biased" or "unbiased", before any rounding."""
        return "biased" if self.kind == "top" else "unbiased"

    def require_fits(self, classes: int) -> None:
        """Raise ValueError where there are not so many classes to keep."""
        most = classes - 1 if self.kind == "hybrid" else classes
        require(self.top <= most, f"keep: {self} of {classes} classes; at most {most} can be kept exactly")

    def dtypes(self, classes: int) -> dict[str, str]:
        """The columns and the dtypes of their numbers."""
        columns: dict[str, str] = {}
        if self.kind != "dense":
            columns["target_token_ids"] = "uint16" if classes <= 2**16 else "uint32"
        if self.kind == "dense" or self.top:
            columns["target_logprobs"] = "float32" if self.kind == "dense" else "float16"
        if self.draws:
            columns["target_counts"] = "uint8" if self.draws < 2**8 else "uint16"
        if self.tail:
            columns["tail_mass"] = "float32"
        return {**columns, "entropy": "float32"}

    def logprobs(self, classes: int) -> int:
        """How many log-probabilities a row has: those of its first entries."""
        return classes if self.kind == "dense" else self.top

    def rounding(self) -> tuple[str, ...]:
        """Every rounding that a record of this kind has undergone."""
        notes = ["entropy: to the nearest float32"]
        if self.kind == "dense":
            return (*notes, "target_logprobs: to the nearest float32")
        if self.top:
            notes.append(
                "target_logprobs: to the nearest float16, which changes log p by at most |log p| / 2048, or by 3e-8 "
                "where that is less"
            )
        if self.tail:
            notes.append("tail_mass: to the nearest float32; the stored probabilities are scaled to sum to 1 less it")
        return tuple(notes)


def bytes_per_row(keep: Keep | str, classes: int) -> int:
    """The bytes that a row takes at most before compression: fewer where draws coincide.

    Args:
        keep: what is kept.
        classes: C.

    Raises:
        ValueError: where there are not so many classes to keep.

    Example:
        >>> [bytes_per_row(keep, 32_000) for keep in ("top:12", "top:12+tail", "samples:12", "hybrid:8+4", "dense")]
        [52, 56, 40, 52, 128004]
    """
    keep = Keep.parse(keep)
    keep.require_fits(classes)
    numbers = {
        "target_token_ids": keep.top + keep.draws,
        "target_logprobs": keep.logprobs(classes),
        "target_counts": keep.draws,
    }
    return sum(np.dtype(dtype).itemsize * numbers.get(name, 1) for name, dtype in keep.dtypes(classes).items())


@dataclass(frozen=True, eq=False)
class Rows:
    """What is kept of N rows.  The entries of a row are its K classes, largest first, and then the classes drawn.

    Args:
        entries: (N,) int64, how many entries each row has; C of a dense row.
        ids: the classes of all entries, row after row; None where they are all of them (`dense`).
        logprobs: (N, K), the log-probabilities of the first K entries; None without.
        counts: how often each of the other entries was drawn, row after row; None without.
        tail: (N,), the mass outside the K classes; None where it was not kept.
        entropy: (N,), that of the teacher's whole distribution, in nats; None where it is unknown.
    """

    entries: NDArray[np.int64]
    ids: NDArray[Any] | None = None
    logprobs: NDArray[Any] | None = None
    counts: NDArray[Any] | None = None
    tail: NDArray[Any] | None = None
    entropy: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in vars(self).values() if part is not None)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one after another."""
        some = [part for part in parts if len(part)]
        if len(some) <= 1:
            return (some or parts)[0]
        columns: dict[str, Any] = {name: [getattr(part, name) for part in some] for name in vars(some[0])}
        joined: dict[str, Any] = {
            name: None if column[0] is None else np.concatenate(column) for name, column in columns.items()
        }
        return cls(**joined)


def uniforms(seed: int, first_row: int, rows: int, draws: int) -> NDArray[np.float64]:
    """The random numbers in [0, 1) of some rows, (rows, draws): those of a row depend on the seed and its number alone.

    They are words of the counter-based generator Philox, so that no row has to be drawn for another one's sake.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011.

    Example:
        >>> bool((uniforms(0, 0, 9, 5)[4:6] == uniforms(0, 4, 2, 5)).all())
        True
    """
    blocks = -(-draws // 4)  # a step of the counter gives four words
    words = np.random.Philox(key=seed).advance(first_row * blocks).random_raw(rows * blocks * 4)
    return (words.reshape(rows, blocks * 4)[:, :draws] >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keep_rows(
    head: Head,
    keep: Keep,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    first_row: int = 0,
    where: Callable[[int], str] = "row {}".format,
) -> Rows:
    """Keep what `keep` says of the rows of a head, a block of logits at a time.

    Args:
        head: N rows of C classes.
        keep: what is kept.
        temperature: T of `p = softmax(z / T)`.
        seed: of the draws.
        first_row: the number of the head's first row in the whole of the data; with the seed it says what is drawn.
        where: how a row of the head is called in an error.

    Raises:
        ValueError: a row whose logits hold NaN or +inf, or −inf everywhere.

    Example:
        >>> from likely.heads import Logits
        >>> rows = keep_rows(Logits(torch.tensor([[0.0, 2.0, 1.0]])), Keep.parse("top:2+tail"))
        >>> rows.ids.tolist(), rows.logprobs.astype(float).round(2).tolist(), rows.tail.astype(float).round(3).tolist()
        ([1, 2], [[-0.41, -1.41]], [0.09])
    """
    C, size = head.classes, torch.finfo(head.acc).bits // 8
    width = C if C <= _CELL else -(-C // _CELL) * _CELL
    block = max(1, min(head.rows, _BLOCK_BYTES // (width * size)))
    part = max(1, min(block, _PART_BYTES // (max(width, 4 * keep.draws * min(C, _CELL)) * size)))
    buffer_nP = torch.full((block, width), _FILL, dtype=head.acc, device=head.device)
    # All classes of all rows, which are large, are written where they stay.
    log_p_NC = empty(head.rows, C, dtype=torch.float32) if keep.kind == "dense" else None
    found: list[Rows] = []
    for start in range(0, head.rows, block):
        stop = min(start + block, head.rows)
        z_nP = buffer_nP[: stop - start]
        z_nP[:, C:] = _FILL
        head.logits(slice(start, stop), out=z_nP[:, :C])
        for at in range(0, stop - start, part):
            here, row = z_nP[at : at + part], start + at
            u_nM = uniforms(seed, first_row + row, len(here), keep.draws) if keep.draws else None
            log_p_nC = None if log_p_NC is None else log_p_NC[row : row + len(here)]
            rows = _kept(here, C, keep, temperature, u_nM, log_p_nC)
            assert rows.entropy is not None
            wrong_n = ~np.isfinite(rows.entropy)
            require(
                not wrong_n.any(),
                f"the teacher gives NaN or infinite logits at {where(row + int(wrong_n.argmax()))}; "
                "see what it makes of that input, or leave the example out",
            )
            found.append(rows)
    kept = Rows.join(found)
    return kept if log_p_NC is None else replace(kept, logprobs=log_p_NC.numpy())


def _kept(
    z_nP: Tensor, C: int, keep: Keep, temperature: float, u_nM: NDArray[np.float64] | None, log_p_nC: Tensor | None
) -> Rows:
    """What is kept of a part; its logits, filled up to whole cells, are overwritten.

    All log-probabilities, where they are kept, are written to `log_p_nC`.
    """
    n, dtypes = len(z_nP), keep.dtypes(C)
    if temperature != 1:
        z_nP.div_(temperature)
    z_nK, index_nK = _largest(z_nP, C, max(1, keep.top))
    s_nP, s_nK = z_nP.sub_(z_nK[:, :1]), z_nK - z_nK[:, :1]
    e_nP = s_nP.exp()
    expected_n = torch.linalg.vecdot(e_nP, s_nP)
    if not bool(torch.isfinite(expected_n).all()):  # an impossible class: 0 · −inf
        expected_n = (e_nP * torch.where(e_nP == 0, 0, s_nP)).sum(dim=-1)
    # The mass of the other classes is added up by itself: beside the largest a small one would lose its digits.
    e_nK = e_nP.gather(-1, index_nK)
    e_nP.scatter_(-1, index_nK, 0)
    cells_nB = e_nP.view(n, -1, min(C, _CELL)).sum(dim=-1).double()
    rest_n = cells_nB.sum(dim=-1)
    mass_n = e_nK.sum(dim=-1, dtype=torch.float64) + rest_n
    log_mass_n = mass_n.log()
    entropy_n = log_mass_n - expected_n / mass_n
    common: dict[str, Any] = {"entropy": entropy_n.cpu().numpy().astype(dtypes["entropy"])}
    if log_p_nC is not None:
        log_p_nC.copy_(s_nP[:, :C] - log_mass_n[:, None])
        return Rows(np.full(n, C), **common)
    ids = np.empty((n, 0), dtype=np.int64)
    if keep.top:
        ids = index_nK.cpu().numpy()
        common["logprobs"] = (s_nK - log_mass_n[:, None]).cpu().numpy().astype(dtypes["target_logprobs"])
    else:  # drawn like the others
        e_nP.scatter_(-1, index_nK, e_nK)
        cells_nB.scatter_add_(-1, index_nK // _CELL, e_nK.double())
    if keep.tail:
        common["tail"] = (rest_n / mass_n).cpu().numpy().astype(dtypes["tail_mass"])
    kept = np.ones(ids.shape, dtype=bool)
    if u_nM is not None:
        drawn_nM, first_nM, counts = _counted(_drawn(e_nP, cells_nB, torch.from_numpy(u_nM).to(e_nP.device)))
        ids, kept = np.concatenate([ids, drawn_nM], axis=1), np.concatenate([kept, first_nM], axis=1)
        common["counts"] = counts.astype(dtypes["target_counts"])
    return Rows(kept.sum(axis=1), ids=ids[kept].astype(dtypes["target_token_ids"]), **common)


def _largest(z_nP: Tensor, C: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their classes, largest first: sought in the k cells with the largest maxima."""
    if 2 * k * _CELL < z_nP.shape[-1]:
        cells_nBW = z_nP.unflatten(-1, (-1, _CELL))
        cell_nk = cells_nBW.amax(dim=-1).topk(k).indices
        some_nkW = cells_nBW.gather(1, cell_nk[:, :, None].expand(-1, -1, _CELL))
        value_nk, at_nk = some_nkW.flatten(1).topk(k)
        index_nk = cell_nk.gather(-1, at_nk // _CELL) * _CELL + at_nk % _CELL
        if not bool((index_nk >= C).any()):  # where a row has not k possible classes
            return value_nk, index_nk
    return z_nP[:, :C].topk(k)


def _drawn(e_nP: Tensor, cells_nB: Tensor, u_nM: Tensor) -> NDArray[np.int64]:
    """Classes with chances proportional to `e`, (n, M): the first at which the running sum exceeds `u` times its end.

    The sum over the cells is followed first, and then that in the cell.  A class without mass is never such a one.
    A row without mass gives −1.
    """
    n, M = u_nM.shape
    inner = e_nP[:, None] if cells_nB.shape[-1] == 1 else e_nP.unflatten(-1, (-1, _CELL))
    ends_nB = cells_nB.cumsum(dim=-1)
    t_nM = u_nM * ends_nB[:, -1:]
    cell_nM = torch.searchsorted(ends_nB, t_nM, right=True).clamp_max_(cells_nB.shape[-1] - 1)
    t_nM -= (ends_nB - cells_nB).gather(-1, cell_nM)
    if inner.shape[1] > 1:
        sums = inner.gather(1, cell_nM[:, :, None].expand(-1, -1, _CELL)).cumsum(dim=-1, dtype=torch.float64)
        end_nM1, t = sums[:, :, -1:], t_nM[:, :, None]
    else:
        sums = inner[:, 0].cumsum(dim=-1, dtype=torch.float64)
        end_nM1, t = sums[:, -1:], t_nM
    # The sums of the cells were rounded otherwise than these: what is left of t stays within its cell.
    at = torch.searchsorted(sums, torch.minimum(t.clamp_min(0), end_nM1 * (1 - 2.0**-52)), right=True).view(n, M)
    drawn_nM = cell_nM * _CELL + at
    return torch.where(ends_nB[:, -1:] > 0, drawn_nM, -1).cpu().numpy()


def _counted(drawn_nM: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Draws in order; which of them stand for the first time in their row, none where there are none; their counts."""
    n, M = drawn_nM.shape
    drawn_nM = np.sort(drawn_nM, axis=1)
    first_nM = np.diff(drawn_nM, axis=1, prepend=-1) != 0
    starts = np.flatnonzero(first_nM)
    # The count is the distance to the next class, or to the end of the row.
    ends = np.minimum(np.append(starts[1:], n * M)[: len(starts)], (starts // M + 1) * M)
    return drawn_nM, first_nM, ends - starts
