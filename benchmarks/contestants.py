"""Who computes: PyTorch, `likely`, and the limit set by matrix products or by memory.

A contestant is built once per process; `bind(problem)` gives it the inputs and returns the call that is timed, one
forward and backward pass from inputs to gradients.  A call returns the loss and the gradients, new ones every time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import likely
from benchmarks.definitions import loss_of
from benchmarks.problems import SMOOTHING, TEMPERATURE, Case, Problem
from likely import _products

Outcome = tuple[float, list[Any]]
Call = Callable[[], Outcome]
Bind = Callable[[Problem], Call]


class NotRun(Exception):
    """Why a contestant does not take part."""


def heads_only(case: Case) -> str | None:
    return None if case.has_head else "is for a linear head"


def logits_only(case: Case) -> str | None:
    return "is for given logits" if case.has_head else None


def plain_labels_only(case: Case) -> str | None:
    plain = case.has_head and case.target == "labels"
    return None if plain else "takes a head and plain labels only; for other targets it materialises the logits"


@dataclass(frozen=True)
class Contestant:
    """`refuses(case)` is the reason why it does not solve a case; `build(case)` may raise another, as NotRun.

    kind : "ours", "peer" (also the tuned ones: the best of them is the one to beat), "eager" or "limit"
    compiles : its first call compiles, see `memory`
    materialises : how many N × C float32 arrays it holds, roughly, to refuse what does not fit
    """

    name: str
    kind: str
    build: Callable[[Case], Bind]
    compiles: bool = False
    materialises: int = 0
    refuses: Callable[[Case], str | None] = lambda case: None


def differentiated(loss_of: Callable[[Problem], Tensor]) -> Bind:
    """The call of a loss that PyTorch differentiates."""

    def bind(problem: Problem) -> Call:
        for leaf in problem.leaves:
            leaf.requires_grad_()

        def call() -> Outcome:
            loss = loss_of(problem)
            loss.backward()
            return loss.item(), [leaf.grad for leaf in problem.leaves]

        return call

    return bind


# ------------------------------------------------------------------------------------------------------ PyTorch


def eager(case: Case) -> Bind:
    return differentiated(loss_of)


def compiled(case: Case) -> Bind:
    return differentiated(torch.compile(loss_of, dynamic=False))


def chunked(rows: int | None) -> Callable[[Case], Bind]:
    """torch's `linear_cross_entropy` with its default options, or with blocks of this many rows."""

    def build(case: Case) -> Bind:
        options_of = getattr(torch.nn, "LinearCrossEntropyOptions", None)
        if options_of is None:
            raise NotRun(f"torch {torch.__version__} has no chunked linear_cross_entropy")
        options = options_of() if rows is None else options_of(batch_chunk_size=rows)
        return differentiated(
            lambda problem: F.linear_cross_entropy(problem["x"], problem["weight"], problem["y"], options=options)
        )

    return build


# ------------------------------------------------------------------------------------------------------- likely


def head_of(problem: Problem) -> likely.Head:
    if problem.case.has_head:
        return likely.Linear(problem["x"], problem["weight"])
    return (likely.Binary if problem.case.target == "binary" else likely.Logits)(problem["z"])


def terms_of(problem: Problem) -> list[likely.Term]:
    classes = problem.case.classes
    match problem.case.target:
        case "labels" | "smoothed" as kind:
            smoothing = SMOOTHING if kind == "smoothed" else 0.0
            return [likely.Term(likely.labels(problem["y"], classes, smoothing=smoothing))]
        case "probabilities":
            return [likely.Term(likely.probabilities(problem["p"]))]
        case "teacher-logits":
            teacher: Any = likely.Logits(problem["z_teacher"])
            return [likely.Term(likely.teacher(teacher), temperature=TEMPERATURE)]
        case "teacher-head":
            teacher = likely.Linear(problem["x_teacher"], problem["weight_teacher"])
            return [likely.Term(likely.teacher(teacher), temperature=TEMPERATURE)]
        case "top-32":
            return [likely.Term(likely.top_k(problem["index"], problem["kept"], classes, tail="uniform"))]
        case "half-teacher":
            teacher = likely.Linear(problem["x_teacher"], problem["weight_teacher"])
            return [
                likely.Term(likely.labels(problem["y"], classes), weight=0.5),
                likely.Term(likely.teacher(teacher), weight=0.5, temperature=TEMPERATURE),
            ]
    raise NotRun("the objective is not measured on this target")


def no_minimal(case: Case) -> str | None:
    if "memory" not in inspect.signature(likely.objective).parameters:
        return f"likely.objective of {likely.__version__} has no option memory"
    return heads_only(case)


def no_objective(case: Case) -> str | None:
    return "functional is measured on binary targets" if case.target == "binary" else None


def no_inplace(case: Case) -> str | None:
    return logits_only(case) or no_objective(case)


def no_functional(case: Case) -> str | None:
    teacher = "teacher" in case.target
    return "functional returns the cross-entropy to a teacher; objective reports the KL" if teacher else None


def reported(loss: Tensor, terms: list[likely.Term], scores: likely.Scores) -> float:
    """The loss, less the teacher's entropy: what the peers report of a teacher is T² · KL."""
    if all(term.temperature == 1 for term in terms):
        return loss.item()
    means = [score.mean() for score in scores]
    parts = [float(mean.kl if term.temperature != 1 else mean.cross_entropy) for term, mean in zip(terms, means)]
    return sum(term.weight * term.temperature**2 * part for term, part in zip(terms, parts))


def objective(**keywords: Any) -> Callable[[Case], Bind]:
    """`likely.objective`, whose loss is the cross-entropy and which reports the KL beside it."""

    def build(case: Case) -> Bind:
        def bind(problem: Problem) -> Call:
            for leaf in problem.leaves:
                leaf.requires_grad_()

            def call() -> Outcome:
                terms = terms_of(problem)
                loss, scores = likely.objective(head_of(problem), terms, **keywords)
                loss.backward()
                return reported(loss, terms, scores), [leaf.grad for leaf in problem.leaves]

            return call

        return bind

    return build


def functional(case: Case) -> Bind:
    """`likely.functional`, which has torch's own names."""

    def loss(problem: Problem) -> Tensor:
        smoothing = SMOOTHING if case.target == "smoothed" else 0.0
        if case.target == "binary":
            return likely.functional.binary_cross_entropy_with_logits(problem["z"], problem["y"])
        if case.target == "top-32":
            target: Any = terms_of(problem)[0].target
        else:
            target = problem["p" if case.target == "probabilities" else "y"]
        if case.has_head:
            return likely.functional.linear_cross_entropy(
                problem["x"], problem["weight"], target, label_smoothing=smoothing
            )
        return likely.functional.cross_entropy(problem["z"], target, label_smoothing=smoothing)

    return differentiated(loss)


class InPlace:
    """The gradient in the logits' own memory, which `refill` makes logits again, outside the time of a call."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.work_NC = problem["z"].detach().clone().requires_grad_()

    def __call__(self) -> Outcome:
        terms = terms_of(self.problem)
        z_NC = self.work_NC.view_as(self.work_NC)  # no leaf
        loss, scores = likely.objective(likely.Logits(z_NC), terms, memory="inplace")
        return reported(loss, terms, scores), list(torch.autograd.grad(loss, z_NC))

    def refill(self) -> None:
        self.work_NC.detach().copy_(self.problem["z"].detach())


# ------------------------------------------------------------------------------------------------------- limits


def products(block: int | None) -> Callable[[Case], Bind]:
    """The matrix products that cannot be avoided, on preallocated buffers: logits, dx, dW, and a teacher's logits.

    Whole, or in blocks of rows whose results stay in the cache.  Three times 2NDC flops, and 2N(2D)C for a teacher.
    """

    def build(case: Case) -> Bind:
        def bind(problem: Problem) -> Call:
            x_ND, weight_CD = problem["x"], problem["weight"]
            rows = min(block or case.rows, case.rows)
            z_nC = x_ND.new_empty(rows, case.classes)
            g_nC = torch.full_like(z_nC, 1e-3)
            dx_ND, dweight_CD = torch.empty_like(x_ND), torch.zeros_like(weight_CD)

            def call() -> Outcome:
                for start in range(0, case.rows, rows):
                    at = slice(start, min(start + rows, case.rows))
                    n = at.stop - at.start
                    if case.has_teacher_head:
                        likely.Linear(problem["x_teacher"], problem["weight_teacher"]).logits(at, out=z_nC[:n])
                    likely.Linear(x_ND, weight_CD).logits(at, out=z_nC[:n])  # the fastest product that is known
                    _products.rows_gradient(g_nC[:n], weight_CD, dx_ND[at])
                    _products.weight_gradient(g_nC[:n], x_ND[at], dweight_CD, add=rows < case.rows)
                return 0.0, []

            return call

        return bind

    return build


def copy(case: Case) -> Bind:
    """The traffic that cannot be avoided on given logits: read them and the target, write a gradient; preallocated."""

    def bind(problem: Problem) -> Call:
        z, out = problem["z"], torch.zeros_like(problem["z"])
        target = next((problem[name] for name in ("p", "z_teacher") if name in problem.tensors), None)
        target = problem["y"] if case.target == "binary" else target

        def call() -> Outcome:
            out.copy_(z) if target is None else torch.add(z, target, out=out)
            return 0.0, []

        return call

    return bind


OURS = "likely"
CONTESTANTS = [
    Contestant(OURS, "ours", objective(), refuses=no_objective),
    Contestant("likely minimal", "ours", objective(memory="minimal"), refuses=no_minimal),
    Contestant("likely functional", "ours", functional, refuses=no_functional),
    Contestant("likely inplace", "ours", lambda case: InPlace, materialises=2, refuses=no_inplace),
    Contestant("eager", "eager", eager, materialises=3),
    Contestant("torch.compile", "peer", compiled, compiles=True, materialises=2),
    Contestant("torch chunked", "peer", chunked(None), refuses=plain_labels_only),
    Contestant("torch chunked 256", "peer", chunked(256), refuses=plain_labels_only),
    Contestant("torch chunked 512", "peer", chunked(512), refuses=plain_labels_only),
    Contestant("products", "limit", products(None), materialises=2, refuses=heads_only),
    Contestant("products by 512", "limit", products(512), refuses=heads_only),
    Contestant("copy", "limit", copy, refuses=logits_only),
]
