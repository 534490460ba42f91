"""What a loss may be, by definition: the divergences, and the well-known ways to write them wrong.

Each form gives a value per row from the two softened logits. None of it is shared with the code that computes likely's
own losses, so that the doctor does not judge those by themselves.

Legend: `*` any shape of rows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Logarithms = Callable[[Tensor], Tensor]
Rows = Callable[[Tensor, Tensor], Tensor]
"""From the student's and the teacher's softened logits, both (*, C), to values (*)."""


@dataclass(frozen=True)
class Form:
    """A hypothesis: `loss = Σ_rows Σ_j a_j · column_j`, with the weights `a` to be found, all alike if it is `tied`.

    Args:
        kind: forward, reverse, jsd, cross_entropy, reverse_cross_entropy, mixture, truncated, misuse or other.
        said: what it is called, to print.
        columns: the functions that it is the sum of.
        tied: whether all have one weight.
        fix: what to write instead of a fault.
        parameter: beta of a Jensen–Shannon divergence, or the number of classes kept.
        reversed: whether the student's distribution stands first.
    """

    kind: str
    said: str
    columns: tuple[Rows, ...]
    tied: bool = True
    fix: str = ""
    parameter: float = math.nan
    reversed: bool = False


def log_softmax(z: Tensor) -> Tensor:
    return torch.log_softmax(z, dim=-1)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """`Σ a (log a − log b)`."""
    return (log_a.exp() * (log_a - log_b)).sum(dim=-1)


def cross(log_a: Tensor, log_b: Tensor) -> Tensor:
    """`−Σ a log b`."""
    return -(log_a.exp() * log_b).sum(dim=-1)


def forward(z: Tensor, t: Tensor) -> Tensor:
    return kl(log_softmax(t), log_softmax(z))


def reverse(z: Tensor, t: Tensor) -> Tensor:
    return kl(log_softmax(z), log_softmax(t))


def entropy_p(z: Tensor, t: Tensor) -> Tensor:
    return cross(log_softmax(t), log_softmax(t))


def entropy_q(z: Tensor, t: Tensor) -> Tensor:
    return cross(log_softmax(z), log_softmax(z))


def squared_logits(z: Tensor, t: Tensor) -> Tensor:
    return (z - t).square().sum(dim=-1)


def squared_probabilities(z: Tensor, t: Tensor) -> Tensor:
    return (z.softmax(dim=-1) - t.softmax(dim=-1)).square().sum(dim=-1)


PLAIN = (
    Form("forward", "KL(teacher ‖ student)", (forward,)),
    Form("cross_entropy", "cross-entropy −Σ p log q of the student q under the teacher p", (forward, entropy_p)),
    Form("reverse", "KL(student ‖ teacher)", (reverse,), reversed=True),
    Form(
        "reverse_cross_entropy",
        "cross-entropy −Σ q log p of the teacher p under the student q",
        (reverse, entropy_q),
        reversed=True,
    ),
    Form("other", "squared difference of the logits", (squared_logits,)),
    Form("other", "squared difference of the probabilities", (squared_probabilities,)),
)
MIXTURE = Form("mixture", "", (forward, reverse, entropy_p, entropy_q), tied=False)
PARTS = ("KL(teacher ‖ student)", "KL(student ‖ teacher)", "entropy of the teacher", "entropy of the student")


def jensen_shannon(beta: float) -> Form:
    """The generalised divergence, `β KL(p ‖ m) + (1 − β) KL(q ‖ m)` with `m = β p + (1 − β) q`."""

    def rows(z: Tensor, t: Tensor) -> Tensor:
        log_q, log_p = log_softmax(z), log_softmax(t)
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)

    return Form("jsd", f"Jensen–Shannon divergence with β = {beta:.3g}", (rows,), parameter=beta)


# ---------------------------------------------------------------------------------------- softmax in the wrong place


def _twice(z: Tensor) -> Tensor:
    return log_softmax(torch.softmax(z, dim=-1))


def _across(z: Tensor) -> Tensor:
    return torch.log_softmax(z, dim=z.dim() - 2)


def _as_it_is(z: Tensor) -> Tensor:
    return z


def _probabilities(z: Tensor) -> Tensor:
    return torch.softmax(z, dim=-1)


_STUDENT: dict[str, Logarithms] = {
    "": log_softmax,
    "the student's probabilities stand where its log-probabilities belong": _probabilities,
    "the student's logits stand where its log-probabilities belong": _as_it_is,
    "the student is put through softmax twice": _twice,
    "the student's softmax is over the rows, not over the classes": _across,
}
_TEACHER: dict[str, Logarithms] = {
    "": log_softmax,
    "the teacher is put through softmax twice": _twice,
    "the teacher's softmax is over the rows, not over the classes": _across,
}


def misuses() -> list[Form]:
    """`Σ p (log p − log q)` and `−Σ p log q` with something else for p, for log q or for both."""

    def written(divergence: Callable[[Tensor, Tensor], Tensor], log_q: Logarithms, log_p: Logarithms) -> Rows:
        return lambda z, t: divergence(log_p(t), log_q(z))

    fix = "write log_softmax(student / T, dim=-1) and softmax(teacher / T, dim=-1), each once"
    return [
        Form("misuse", " and ".join(filter(None, (wrong_q, wrong_p))), (written(divergence, log_q, log_p),), fix=fix)
        for wrong_q, log_q in _STUDENT.items()
        for wrong_p, log_p in _TEACHER.items()
        for divergence in (kl, cross)
        if wrong_q or wrong_p
    ]


# ----------------------------------------------------------------------------------------- a teacher that is cut short


def truncations(kept: int) -> list[Form]:
    """What may be made of the `kept` likeliest classes S of the teacher, whose mass is P."""

    def over(rows: Callable[..., Tensor]) -> Rows:
        """With `log p` and `log q` on S, and the logarithms of the mass that each has outside."""

        def values(z: Tensor, t: Tensor) -> Tensor:
            log_p, at = torch.topk(log_softmax(t), kept, dim=-1)
            inside = torch.zeros_like(z, dtype=torch.bool).scatter(-1, at, True)
            rest_p, rest_q = (
                log_softmax(x).masked_fill(inside, -torch.inf).logsumexp(-1, keepdim=True) for x in (t, z)
            )
            return rows(log_p, log_softmax(z).gather(-1, at), rest_p, rest_q)

        return values

    def whole(log: Tensor) -> Tensor:
        return log - log.logsumexp(dim=-1, keepdim=True)

    def flat(z: Tensor, t: Tensor) -> Tensor:
        log_p, at = torch.topk(log_softmax(t), kept, dim=-1)
        each = torch.log1p(-log_p.exp().sum(-1, keepdim=True)) - math.log(z.shape[-1] - kept)
        return kl(each.expand(z.shape).scatter(-1, at, log_p), log_softmax(z))

    short = f"the {kept} likeliest classes"
    listed: list[tuple[str, Rows]] = [
        (f"KL(teacher ‖ student) summed over {short} alone", over(lambda p, q, *_: kl(p, q))),
        (f"cross-entropy summed over {short} alone", over(lambda p, q, *_: cross(p, q))),
        (f"KL(teacher ‖ student), the teacher renormalised over {short}", over(lambda p, q, *_: kl(whole(p), q))),
        (f"cross-entropy, the teacher renormalised over {short}", over(lambda p, q, *_: cross(whole(p), q))),
        (f"KL(teacher ‖ student), both renormalised over {short}", over(lambda p, q, *_: kl(whole(p), whole(q)))),
        (f"KL(student ‖ teacher) summed over {short} alone", over(lambda p, q, *_: kl(q, p))),
        (f"KL(student ‖ teacher), both renormalised over {short}", over(lambda p, q, *_: kl(whole(q), whole(p)))),
        (f"KL(teacher ‖ student) of {short} and one cell for the rest", over(_cells(kl))),
        (f"cross-entropy of {short} and one cell for the rest", over(_cells(cross))),
        (f"KL(teacher ‖ student), the teacher flat outside {short}", flat),
    ]
    return [
        Form("truncated", said, (rows,), parameter=kept, reversed=said.startswith("KL(student"))
        for said, rows in listed
    ]


def _cells(divergence: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda p, q, rest_p, rest_q: divergence(torch.cat([p, rest_p], -1), torch.cat([q, rest_q], -1))
