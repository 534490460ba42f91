"""The row pass in Triton, for CUDA: softmax, losses and gradients of a tile of logits between products of cuBLAS.

Legend: N rows, C classes, D features, K stored classes per row, n rows of one tile.

Why so, on paper, for (N, D, C) = (8192, 4096, 128256), bfloat16, on an H100 (about 700 TFLOP/s, 3.3 TB/s).  A product
is 2NDC = 8.6 TFLOP, 12 ms.  Logits in float32 that pass through memory are 4.2 GB: written once, read twice by the row
pass, and a bfloat16 gradient written once and read by two products make 19 GB, 6 ms.  Tiles with an online logsumexp
that recompute the logits save these 6 ms and pay a fourth product, 12 ms: so the logits pass through memory, a chunk of
rows at a time, and there are three products (four with a teacher).  Every chunk reads and writes the weight's gradient
in float32 once, 8CD bytes beside 6nCD flops: 280/n of the time of the products, so chunks are large; their scratch, 6nC
bytes, may be what that gradient takes, 4CD bytes, which is n ≤ 2D/3: 2,048 rows here, in 1.6 GB.

Logits are float32 whatever the inputs are: the product of bfloat16 operands is written so.  Sums are per lane and
joined once at the end of the row.  One program is one row; it reads the row twice, and the second time from the caches
where they hold it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from likely.forms import Dense, DenseTile, Sparse, Target
from likely.heads import Head, Linear, Logits, finished
from likely.kernels.common import weighted_sum
from likely.kernels.exact import TiledSum, exact
from likely.kernels.triton_rows import compiled

Terms = Sequence[tuple[Target, float]]

STORED = 4096
"""A row's stored classes are held in registers; beyond so many of them the other kernels serve."""
LEAST_BYTES = 2**28
"""Scratch that a chunk may always take, 256 MiB."""


def refuses(head: Head, terms: Terms) -> str | None:
    """Why the pass cannot serve, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if head.device.type != "cuda" and not _interpreted():
        return f"the tensors are on {head.device}, not on a CUDA device"
    if not isinstance(head, Linear | Logits):
        return f"it does not know the head {type(head).__name__}"
    if head.classes == 0:
        return "the head has no classes"
    if head.acc != torch.float32:
        return f"it computes in float32, and the head has {head.dtype}"
    for target, _ in terms:
        if isinstance(target, Sparse):
            if target.rest is not None:
                return "the target has a mass that lies anywhere outside the stored classes"
            if target.index.shape[-1] > STORED:
                return f"the target stores more than {STORED} classes in a row"
        elif not isinstance(target, Dense):
            return f"it does not know the target {type(target).__name__}"
        elif target.head is not None and target.class_weight is not None:
            return "the target is a teacher with class weights"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


# ------------------------------------------------------------------------------------------------------- one tile


class Found(NamedTuple):
    """Of the rows of a tile, (n,) each in float32; entropy and KL are None where they were not asked for."""

    cross_entropy: Tensor
    entropy: Tensor | None
    kl: Tensor | None
    log_normaliser: Tensor
    """`A(z/T)`."""


class Gradient(NamedTuple):
    """Where the tile of gradients `a/T (M·softmax(z/T) − μ) + 2 b A softmax(z/T)` goes."""

    out: Tensor  # (n, C), the logits' own tile or another, of any dtype
    a: Tensor  # (n,), the rows' coefficients in the sum; 0 gives 0, whatever the logits are
    b: Tensor | None = None  # (n,), those of the squared normaliser
    add: bool = False  # to what stands there already; else in its place


def sparse_(z_nC: Tensor, tile: Sparse, temperature: float, gradient: Gradient | None = None) -> Found:
    """Losses of a tile of logits under the same rows of a sparse target (`Sparse.tile`, in float32)."""
    kernels = compiled()
    n, classes = z_nC.shape
    stored = tile.index.shape[-1]
    value_nK, mass_n = tile.value.contiguous(), tile.mass().contiguous()
    cross_entropy_n, A_n = (torch.empty(n, dtype=torch.float32, device=z_nC.device) for _ in range(2))
    out, a_n, b_n, flags = _gradient(z_nC, gradient, tile.ignored)
    if n:
        with torch.cuda.device_of(z_nC):
            kernels.sparse[(n,)](
                z_nC,
                z_nC.stride(0),
                out,
                out.stride(0),
                tile.index.contiguous(),
                value_nK,
                mass_n,
                mass_n if tile.floor is None else tile.floor.contiguous(),
                mass_n if tile.base is None else tile.base.contiguous(),
                a_n,
                b_n,
                cross_entropy_n,
                A_n,
                float(temperature),
                classes,
                stored,
                FLOOR=tile.floor is not None,
                BASE=tile.floor is not None and tile.base is not None,
                STORE=max(16, kernels.power(stored)),
                **flags,
                **_shape(classes),
            )
    if tile.ignored is not None:
        cross_entropy_n.masked_fill_(tile.ignored, 0)
    if tile.entropy_unknown() is not None:
        return Found(cross_entropy_n, None, None, A_n)
    entropy_n = tile.entropy()
    return Found(cross_entropy_n, entropy_n, cross_entropy_n - entropy_n, A_n)


def dense_(
    z_nC: Tensor,
    dense_nC: Tensor,
    temperature: float,
    gradient: Gradient | None = None,
    *,
    teacher: bool = False,
    class_weight: Tensor | None = None,
    known: bool = True,
) -> Found:
    """Losses of a tile of logits under a measure as it is, or the softmax of a teacher's logits at the temperature.

    `known` says whether the entropy and the divergence exist and are wanted.
    """
    n, classes = z_nC.shape
    results = torch.empty(4, n, dtype=torch.float32, device=z_nC.device)
    out, a_n, b_n, flags = _gradient(z_nC, gradient, None)
    dense_nC = dense_nC if dense_nC.stride(-1) == 1 else dense_nC.contiguous()
    if n:
        with torch.cuda.device_of(z_nC):
            compiled().dense[(n,)](
                z_nC,
                z_nC.stride(0),
                out,
                out.stride(0),
                dense_nC,
                dense_nC.stride(0),
                results if class_weight is None else class_weight.float().contiguous(),
                a_n,
                b_n,
                *results.unbind(),
                float(temperature),
                classes,
                TEACHER=teacher,
                CLASS_WEIGHT=class_weight is not None,
                KNOWN=known,
                **flags,
                **_shape(classes),
            )
    cross_entropy_n, entropy_n, kl_n, A_n = results.unbind()
    return Found(cross_entropy_n, entropy_n if known else None, kl_n if known else None, A_n)


def _gradient(
    z_nC: Tensor, gradient: Gradient | None, ignored_n: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, dict[str, bool]]:
    """The tile to write, the coefficients in float32, and the flags; anything of the right kind where not needed."""
    if gradient is None:
        return z_nC, z_nC, z_nC, {"GRADIENT": False, "ADD": False, "Z_LOSS": False}
    a_n = gradient.a.to(torch.float32)
    if ignored_n is not None:
        a_n = a_n.masked_fill(ignored_n, 0)
    b_n = a_n if gradient.b is None else gradient.b.to(torch.float32).contiguous()
    flags = {"GRADIENT": True, "ADD": gradient.add, "Z_LOSS": gradient.b is not None}
    return gradient.out, a_n.contiguous(), b_n, flags


def _shape(classes: int) -> dict[str, int]:
    block = max(16, min(4096, compiled().power(classes)))
    return {"BLOCK": block, "num_warps": max(1, min(16, block // 256))}


# ------------------------------------------------------------------------------------------------- all the rows


def chunks(head: Head) -> Iterator[slice]:
    """Slices of rows whose logits and gradients, 4 and (in half precision) 2 bytes each, take what the weight's
    gradient takes in float32, or `LEAST_BYTES`; as equal as multiples of 128 rows are."""
    a_row = max(1, head.classes * (4 + head.dtype.itemsize % 4))
    of_weight = 4 * head.tensors[1].numel() if isinstance(head, Linear) and head.tensors[1] is not None else 0
    most = max(1, max(LEAST_BYTES, of_weight) // a_row)
    rows = -(-head.rows // -(-head.rows // most)) if head.rows else 1
    if rows > 128:
        rows = min(most, -(-rows // 128) * 128)
    for start in range(0, head.rows, rows):
        yield slice(start, min(start + rows, head.rows))


class Pass:
    """One run over the rows, as `kernels.loop.Pass` is: the terms' rows, the weighted sums, and the gradients."""

    def __init__(self, head: Head, terms: Terms, known: Sequence[bool], needed: Sequence[bool]) -> None:
        self.head, self.terms, self.known = head.detached(), list(terms), list(known)
        self.grads = self.head.gradient_buffers(needed, TiledSum) if any(needed) else None
        empty: dict[str, Any] = {"dtype": torch.float32, "device": head.device}
        self.rows = [[torch.empty(head.rows, **empty) for _ in range(3)] for _ in terms]
        self.loss = torch.zeros((), **empty)
        self.z_loss = torch.zeros((), **empty)
        self.buffers: dict[str, Tensor] = {}

    def over(self, coefficients: Sequence[Tensor] | None, z_coefficient: Tensor | None) -> Pass:
        terms, given = list(self.terms), None if coefficients is None else list(coefficients)
        if z_coefficient is not None and given is not None and all(T != 1 for _, T in terms):
            terms.append((self._nothing(), 1.0))  # the z-loss goes with a term at T = 1
            given.append(torch.zeros_like(z_coefficient))
        with_z = next((at for at, (_, T) in enumerate(terms) if T == 1), None)
        for rows in chunks(self.head):
            z_nC = self._logits("z", self.head, rows)
            g_nC = None if self.grads is None or given is None else self._place(rows, z_nC, len(terms))
            for at, (target, temperature) in enumerate(terms):
                b_n = z_coefficient[rows] if z_coefficient is not None and at == with_z else None
                gradient = None
                if g_nC is not None and given is not None:
                    gradient = Gradient(g_nC, given[at][rows], b_n, add=at > 0)
                found = self._term(at, target, temperature, rows, z_nC, gradient)
                if at < len(self.terms):
                    for result_N, result_n in zip(self.rows[at], found[:3]):
                        if result_n is not None:
                            result_N[rows] = result_n
                    if given is not None:
                        self.loss += weighted_sum(found.cross_entropy, given[at][rows])
                if b_n is not None:
                    added = weighted_sum(found.log_normaliser.square(), b_n)
                    self.z_loss += added
                    self.loss += added
            if g_nC is not None and self.grads is not None:
                placed_nC = self.head.gradient_place(rows, self.grads)
                if placed_nC is None or placed_nC.data_ptr() != g_nC.data_ptr():
                    self.head.pull_back(rows, g_nC, z_nC, self.grads)
        if self.grads is not None:
            self.grads = finished(self.grads)
        return self

    def _nothing(self) -> Sparse:
        index = torch.zeros(self.head.rows, 1, dtype=torch.int64, device=self.head.device)
        return Sparse(classes=self.head.classes, index=index, value=index.float(), count=index[:, 0].float())

    def _buffer(self, name: str, rows: slice, dtype: torch.dtype) -> Tensor:
        n = rows.stop - rows.start
        if name not in self.buffers:
            self.buffers[name] = torch.empty(n, self.head.classes, dtype=dtype, device=self.head.device)
        return self.buffers[name][:n]

    def _logits(self, name: str, head: Head, rows: slice) -> Tensor:
        if isinstance(head, Logits) and head.z.stride(-1) == 1:
            return head.z[rows]  # read where they lie
        return exact(head).logits(rows, out=self._buffer(name, rows, head.acc))

    def _place(self, rows: slice, z_nC: Tensor, terms: int) -> Tensor:
        """Where the gradients go: several terms are added up in float32."""
        assert self.grads is not None
        if terms > 1 or self.head.keeps_logits:
            return self._buffer("sum", rows, torch.float32)
        if isinstance(self.head, Logits):
            own = self.grads[0]
            return own[rows] if own.stride(-1) == 1 else self._buffer("g", rows, own.dtype)
        return z_nC if self.head.dtype == torch.float32 else self._buffer("g", rows, self.head.dtype)

    def _term(
        self, at: int, target: Target, temperature: float, rows: slice, z_nC: Tensor, gradient: Gradient | None
    ) -> Found:
        if isinstance(target, Sparse):
            return sparse_(z_nC, target.tile(rows, temperature, torch.float32), temperature, gradient)
        assert isinstance(target, Dense)
        known = self.known[at]
        if target.head is not None:
            t_nC = self._logits(f"t{at}", target.head, rows)
            return dense_(z_nC, t_nC, temperature, gradient, teacher=True, known=known)
        assert target.given is not None
        mu_nC = target.given[rows]
        if target.softens and temperature != 1:
            tile = replace(target, class_weight=None).tile(rows, temperature, torch.float32)
            assert isinstance(tile, DenseTile)
            mu_nC = tile.mu
        return dense_(z_nC, mu_nC, temperature, gradient, class_weight=target.class_weight, known=known)


def run(
    head: Head, terms: Terms, coefficients: Sequence[Tensor] | None, z_coefficient: Tensor | None, entropy: bool
) -> Pass:
    """The rows, the sums and the gradients in every tensor of the head, with nothing seen by autograd."""
    known = [entropy and target.entropy_unknown() is None for target, _ in terms]
    needed = [t is not None and coefficients is not None for t in head.tensors]
    return Pass(head, terms, known, needed).over(coefficients, z_coefficient)
