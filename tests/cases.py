"""The lists that the laws run over: HEADS, TARGETS, KERNELS, DTYPES.  A new kind adds one line and meets every law.

Legend: N rows, C classes, D features, K stored classes per row.

Every target is made together with its twin: the measure it must mean, written out densely in NumPy and float64 from the
very numbers that the constructor was given.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import likely
from likely.kernels import loop, native

Array = NDArray[np.float64]

ROWS, CLASSES, FEATURES = 7, 5, 3  # no block of 2 or 3 rows divides 7

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def double(tensor: Tensor) -> Array:
    """The numbers of a tensor, exactly, in float64."""
    return tensor.detach().double().numpy()


@dataclass
class Draw:
    """Random numbers of one case, in its dtype, with the classes in the order `order`."""

    name: str
    rows: int = ROWS
    classes: int = CLASSES
    dtype: torch.dtype = torch.float64
    order: NDArray[np.int64] | None = None
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(zlib.crc32(self.name.encode()))

    def tensor(self, array: Any) -> Tensor:
        return torch.tensor(np.asarray(array)).to(self.dtype)

    def columns(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array whose last axis is the classes, in the case's order of classes."""
        return array if self.order is None else array[..., self.order]

    def renamed(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class numbers as they are called in the case's order of classes."""
        return index if self.order is None else np.argsort(self.order)[index]

    def y(self) -> NDArray[np.int64]:
        return self.renamed(self.rng.integers(0, self.classes, self.rows))

    def p(self, zeros: bool = False) -> Tensor:
        p_NC = self.rng.dirichlet(np.ones(self.classes), self.rows)
        if zeros and self.classes > 2:
            p_NC[:, 1:][self.rng.random((self.rows, self.classes - 1)) < 0.4] = 0
            p_NC /= p_NC.sum(axis=-1, keepdims=True)
        return self.tensor(self.columns(p_NC))

    def class_weight(self) -> Tensor:
        return self.tensor(self.columns(self.rng.uniform(0.3, 3.0, self.classes)))

    def row_weight(self) -> Tensor:
        weight_N = self.rng.uniform(0.3, 3.0, self.rows)
        weight_N[1:2] = 0
        return self.tensor(weight_N)

    def top(self, temperature: float = 1.0) -> tuple[Tensor, Tensor, Array]:
        """Classes, probabilities and stored mask of the largest half of the classes."""
        stored = (self.classes + 1) // 2
        p_NC = self.rng.dirichlet(np.ones(self.classes), self.rows)
        index_NK = np.argsort(-p_NC, axis=-1)[:, :stored].reshape(self.rows, stored)
        p_NK = self.tensor(np.take_along_axis(p_NC, index_NK, -1))
        return torch.tensor(self.renamed(index_NK)), p_NK, double(p_NK)


@dataclass(frozen=True)
class Made:
    """A target and its twin."""

    target: likely.Target
    mu: Callable[[float], Array]
    """The dense measure (N, C) at a temperature; without the mass `rest`, where there is one."""
    weight: Array
    count: Array
    rest: Array | None = None
    """The mass (N,) that lies anywhere outside the stored classes."""
    outside: NDArray[np.bool_] | None = None
    """The classes (N, C) that are not stored."""
    entropy: Array | None = None
    """An entropy that was given."""
    temperatures: tuple[float, ...] = (1.0, 2.5)

    @property
    def known(self) -> bool:
        return self.target.entropy_unknown() is None


# ------------------------------------------------------------------------------------------------------ targets


def _labels(
    *,
    smoothing: float = 0.0,
    confidence: float | None = None,
    ignored: bool = False,
    class_weight: bool = False,
    row_weight: bool = False,
) -> Callable[[Draw], Made]:
    def make(draw: Draw) -> Made:
        y_N, classes = draw.y(), draw.classes
        gone_N = np.zeros(draw.rows, dtype=bool)
        if ignored:
            gone_N[::3] = True
        w_C = draw.class_weight() if class_weight else None
        r_N = draw.row_weight() if row_weight else None
        target = likely.labels(
            torch.tensor(np.where(gone_N, -100, y_N)),
            classes,
            smoothing=smoothing,
            confidence=confidence,
            class_weight=w_C,
            weight=r_N,
        )
        if confidence is None:
            p_NC = np.full((draw.rows, classes), smoothing / classes) + (1 - smoothing) * np.eye(classes)[y_N]
        else:
            p_NC = np.where(np.eye(classes)[y_N] == 1, confidence, (1 - confidence) / max(classes - 1, 1))
        weight_C = np.ones(classes) if w_C is None else double(w_C)
        mu_NC = p_NC * weight_C * ~gone_N[:, None]
        weight_N = np.ones(draw.rows) if r_N is None else double(r_N)
        return Made(target, lambda T: mu_NC, weight_N, weight_N * weight_C[y_N] * ~gone_N)

    return make


def soften(p_NC: Array, temperature: float) -> Array:
    raised_NC = p_NC ** (1 / temperature)
    return p_NC if temperature == 1 else raised_NC / raised_NC.sum(axis=-1, keepdims=True)


def _probabilities(
    *, zeros: bool = False, class_weight: bool = False, row_weight: bool = False
) -> Callable[[Draw], Made]:
    def make(draw: Draw) -> Made:
        p_NC = draw.p(zeros)
        w_C = draw.class_weight() if class_weight else None
        r_N = draw.row_weight() if row_weight else None
        target = likely.probabilities(p_NC, class_weight=w_C, weight=r_N)
        weight_C = np.ones(draw.classes) if w_C is None else double(w_C)
        weight_N = np.ones(draw.rows) if r_N is None else double(r_N)
        return Made(target, lambda T: soften(double(p_NC), T) * weight_C, weight_N, weight_N)

    return make


def _measure(*, signed: bool = False, class_weight: bool = False) -> Callable[[Draw], Made]:
    def make(draw: Draw) -> Made:
        mu = (
            draw.rng.normal(size=(draw.rows, draw.classes))
            if signed
            else draw.rng.gamma(1, 2, (draw.rows, draw.classes))
        )
        if draw.rows > 2:
            mu[1, 0], mu[2] = 0, 0
        mu_NC = draw.tensor(draw.columns(mu))
        w_C = draw.class_weight() if class_weight else None
        weight_C = np.ones(draw.classes) if w_C is None else double(w_C)
        target = likely.measure(mu_NC, class_weight=w_C)
        return Made(target, lambda T: double(mu_NC) * weight_C, np.ones(draw.rows), np.ones(draw.rows))

    return make


def _top_k(tail: str, *, temperature: float = 1.0, row_weight: bool = False) -> Callable[[Draw], Made]:
    def make(draw: Draw) -> Made:
        index_NK, p_NK, twin_NK = draw.top()
        r_N = draw.row_weight() if row_weight else None
        target = likely.top_k(index_NK, p_NK, draw.classes, tail=tail, temperature=temperature, weight=r_N)
        mu_NC = np.zeros((draw.rows, draw.classes))
        outside_NC = np.ones((draw.rows, draw.classes), dtype=bool)
        np.put_along_axis(outside_NC, index_NK.numpy(), False, -1)
        np.put_along_axis(mu_NC, index_NK.numpy(), twin_NK, -1)
        rest_N = 1 - twin_NK.sum(axis=-1)
        if tail == "uniform":
            mu_NC += outside_NC * (rest_N / outside_NC.sum(axis=-1))[:, None]
        elif tail == "renormalise":
            mu_NC /= twin_NK.sum(axis=-1, keepdims=True)
        weight_N = np.ones(draw.rows) if r_N is None else double(r_N)
        bucket: dict[str, Any] = {"rest": rest_N, "outside": outside_NC} if tail == "bucket" else {}
        return Made(target, lambda T: mu_NC, weight_N, weight_N, temperatures=(temperature,), **bucket)

    return make


def _samples(*, entropy: bool = False, row_weight: bool = False) -> Callable[[Draw], Made]:
    def make(draw: Draw) -> Made:
        # Drawn with replacement: a class may stand twice, and the last entry is padding.
        index_NK = draw.renamed(draw.rng.integers(0, draw.classes, (draw.rows, 4)))
        count_NK = draw.rng.integers(1, 6, (draw.rows, 4))
        count_NK[:, -1] = 0
        given_N = draw.tensor(draw.rng.uniform(0.1, 1.0, draw.rows)) if entropy else None
        r_N = draw.row_weight() if row_weight else None
        target = likely.samples(index_NK, count_NK, draw.classes, entropy=given_N, weight=r_N)
        mu_NC = np.zeros((draw.rows, draw.classes))
        for row in range(draw.rows):
            np.add.at(mu_NC[row], index_NK[row], count_NK[row] / count_NK[row].sum())
        weight_N = np.ones(draw.rows) if r_N is None else double(r_N)
        known = None if given_N is None else double(given_N)
        return Made(target, lambda T: mu_NC, weight_N, weight_N, entropy=known, temperatures=(1.0,))

    return make


def softmax(z_NC: Array) -> Array:
    e_NC = np.exp(z_NC - z_NC.max(axis=-1, keepdims=True, initial=-1e300))
    return e_NC / e_NC.sum(axis=-1, keepdims=True)


def _teacher(*, linear: bool = False, impossible: bool = False, row_weight: bool = False) -> Callable[[Draw], Made]:
    def make(draw: Draw) -> Made:
        r_N = draw.row_weight() if row_weight else None
        weight_N = np.ones(draw.rows) if r_N is None else double(r_N)
        if linear:  # wider than the student, as teachers are
            x_ND = draw.tensor(draw.rng.normal(size=(draw.rows, 2 * FEATURES)))
            weight_CD = draw.tensor(draw.columns(draw.rng.normal(size=(2 * FEATURES, draw.classes))).T.copy())
            head: likely.Head = likely.Linear(x_ND, weight_CD)
        else:
            z = 2 * draw.rng.normal(size=(draw.rows, draw.classes))
            if impossible and draw.classes > 2:
                z[::2, 1] = -np.inf
            head = likely.Logits(draw.tensor(draw.columns(z)))
        # A half-precision product is rounded, by the teacher and so by its twin.
        z_NC = double(head.logits())
        return Made(likely.teacher(head, weight=r_N), lambda T: softmax(z_NC / T), weight_N, weight_N)

    return make


TARGETS: dict[str, Callable[[Draw], Made]] = {
    "labels": _labels(),
    "labels ignored": _labels(ignored=True),
    "labels row weight": _labels(row_weight=True),
    "labels class weight": _labels(class_weight=True),
    "labels smoothing": _labels(smoothing=0.2),
    "labels smoothing 1": _labels(smoothing=1.0),
    "labels confidence": _labels(confidence=0.7),
    "labels smoothing all": _labels(smoothing=0.2, ignored=True, class_weight=True, row_weight=True),
    "labels confidence all": _labels(confidence=0.7, ignored=True, class_weight=True, row_weight=True),
    "probabilities": _probabilities(),
    "probabilities zeros": _probabilities(zeros=True),
    "probabilities row weight": _probabilities(row_weight=True),
    "probabilities class weight": _probabilities(zeros=True, class_weight=True),
    "probabilities all": _probabilities(zeros=True, class_weight=True, row_weight=True),
    "measure": _measure(),
    "measure signed": _measure(signed=True),
    "measure class weight": _measure(class_weight=True),
    "top_k uniform": _top_k("uniform"),
    "top_k uniform row weight": _top_k("uniform", row_weight=True),
    "top_k renormalise": _top_k("renormalise"),
    "top_k bucket": _top_k("bucket"),
    "top_k bucket at T=2": _top_k("bucket", temperature=2.0, row_weight=True),
    "samples": _samples(),
    "samples entropy": _samples(entropy=True, row_weight=True),
    "teacher logits": _teacher(),
    "teacher impossible": _teacher(impossible=True),
    "teacher linear": _teacher(linear=True),
    "teacher linear row weight": _teacher(linear=True, row_weight=True),
}

DISTRIBUTIONS = [
    name for name in TARGETS if not any(word in name for word in ("class weight", "measure", "all", "ignored"))
]


def make(name: str, **sizes: Any) -> Made:
    return TARGETS[name](Draw(name, **sizes))


# -------------------------------------------------------------------------------------------------------- heads


def _logits(
    *, impossible: bool = False, offset: float = 0.0, scale: float = 2.0
) -> Callable[[Draw, Made | None], likely.Head]:
    def make_head(draw: Draw, made: Made | None) -> likely.Head:
        z_NC = scale * draw.rng.normal(size=(draw.rows, draw.classes))
        if impossible:
            # A class that no target gives mass; of the classes that share a rest at least one stays possible.
            empty_NC = np.ones(z_NC.shape, dtype=bool) if made is None else made.mu(made.temperatures[0]) == 0
            if made is not None and made.outside is not None:
                first_NC = np.cumsum(made.outside, axis=-1) == 1
                empty_NC &= ~(made.outside & first_NC)
            empty_NC &= draw.rng.random(z_NC.shape) < 0.6
            empty_NC[empty_NC.all(axis=-1)] = False
            z_NC[empty_NC] = -np.inf
        return likely.Logits(draw.tensor(z_NC + offset))

    return make_head


def _binary(draw: Draw, made: Made | None) -> likely.Head:
    return likely.Binary(draw.tensor(2 * draw.rng.normal(size=draw.rows)))


def _linear(*, bias: bool = False, softcap: float | None = None) -> Callable[[Draw, Made | None], likely.Head]:
    def make_head(draw: Draw, made: Made | None) -> likely.Head:
        x_ND = draw.tensor(draw.rng.normal(size=(draw.rows, FEATURES)))
        weight_CD = draw.tensor(draw.rng.normal(size=(draw.classes, FEATURES)))
        bias_C = draw.tensor(draw.rng.normal(size=draw.classes)) if bias else None
        return likely.Linear(x_ND, weight_CD, bias_C, softcap=softcap)

    return make_head


HEADS: dict[str, Callable[[Draw, Made | None], likely.Head]] = {
    "logits": _logits(),
    "logits impossible": _logits(impossible=True),
    "logits offset": _logits(offset=-512.0),
    "logits confident": _logits(scale=64.0),
    "binary": _binary,
    "linear": _linear(),
    "linear bias": _linear(bias=True),
    "linear softcap": _linear(bias=True, softcap=1.5),
}


def make_head(name: str, made: Made | None = None, **sizes: Any) -> likely.Head:
    return HEADS[name](Draw(name, **sizes), made)


def requiring_grad(head: likely.Head) -> tuple[likely.Head, list[Tensor]]:
    """The head on leaves that want a gradient, and those leaves."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in head.tensors]
    return head.with_tensors(leaves), [t for t in leaves if t is not None]


def make_case(target: str, head: str, **sizes: Any) -> tuple[Made, likely.Head]:
    """A target and a head of equal sizes; the binary head has two classes."""
    if head == "binary":
        sizes = {**sizes, "classes": 2}
    made = make(target, **sizes)
    return made, make_head(head, made, **sizes)


# ------------------------------------------------------------------------------------------------------ kernels


@dataclass(frozen=True)
class Kernel:
    name: str
    rows: int | None = None
    """Rows in a block; None leaves the kernel its own."""
    row_pass: str | None = None
    """One of `likely.kernels.native.available()`; None leaves the best."""

    def __str__(self) -> str:
        words = [self.name, *([] if self.rows is None else ["by", str(self.rows)]), *filter(None, [self.row_pass])]
        return " ".join(words)

    @contextmanager
    def at(self, head: likely.Head) -> Iterator[str]:
        """The kernel's name, while its blocks of this head have the given number of rows."""
        with ExitStack() as stack:
            if self.row_pass is not None:
                stack.enter_context(native.using(self.row_pass))
            if self.rows is not None:
                size = self.rows * head.classes * (native.dtype_of(head) or head.acc).itemsize
                stack.enter_context(mock.patch.object(loop, "BLOCK_BYTES", size))
            yield self.name

    def nll(self, head: likely.Head, target: likely.Target, temperature: float = 1.0) -> likely.Score:
        with self.at(head) as name:
            return likely.nll(head, target, temperature=temperature, kernel=name)

    def objective(self, head: likely.Head, terms: Any, **keywords: Any) -> tuple[Tensor, likely.Scores]:
        with self.at(head) as name:
            return likely.objective(head, terms, kernel=name, **keywords)

    def gradients(self, loss: Tensor, head: likely.Head, leaves: list[Tensor], **keywords: Any) -> list[Tensor]:
        with self.at(head):
            return list(torch.autograd.grad(loss, leaves, **keywords))


KERNELS = [
    Kernel("eager"),
    Kernel("chunked"),
    Kernel("chunked", 3),
    Kernel("chunked", 1),
    Kernel("chunked", row_pass="plain"),
    Kernel("chunked", 3, "plain"),
]
