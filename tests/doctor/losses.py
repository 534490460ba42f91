"""A distillation loss by its parts, each of which may be exchanged for a faulty one.

Shapes: B sequences, L positions, N rows that count, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Part = Callable[..., Any]


def upcast(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def same_classes(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    if z.shape != t.shape:
        raise ValueError("student and teacher differ in their classes")
    return z, t


def shifted(z: Tensor, t: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) the rows that count."""
    return z[:, :-1][keep[:, 1:]], t[:, :-1][keep[:, 1:]]


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(N,) without the classes that p has no mass on."""
    empty = torch.isneginf(log_p)
    log_p, log_q = torch.where(empty, 0, log_p), torch.where(empty, 0, log_q)
    return torch.where(empty, 0, log_p.exp() * (log_p - log_q)).sum(-1)


def by_total(rows: Tensor, labels: Tensor, total: int | None) -> Tensor:
    return rows.sum() / max(1, rows.shape[0] if total is None else total)


def recipe(
    *,
    take: Part = upcast,
    match: Part = same_classes,
    choose: Part = shifted,
    student: Part = lambda z, T: (z / T).log_softmax(-1),
    teacher: Part = lambda t, T: (t / T).log_softmax(-1),
    divergence: Part = kl,
    divide: Part = by_total,
    factor: Part = lambda T: T**2,
    detach: bool = True,
) -> Callable[..., Tensor]:
    """A loss of sequences, right where nothing is given."""

    def loss(
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        temperature: float = 1.0,
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        given = teacher_logits.detach() if detach else teacher_logits
        z, t = match(take(student_logits), take(given))
        z, t = choose(z, t, labels != -100)
        rows = divergence(teacher(t, temperature), student(z, temperature))
        return factor(temperature) * divide(rows, labels, num_items_in_batch)

    return loss


def without_total(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same loss for one batch alone."""

    def alone(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
        return loss(student_logits, teacher_logits, labels, temperature)

    return alone


# ------------------------------------------------------------------------------------------------------ faulty parts


def zero_padded(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    short = t.shape[-1] - z.shape[-1]
    return torch.nn.functional.pad(z, (0, max(0, short))), torch.nn.functional.pad(t, (0, max(0, -short)))


def cut_to_fit(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    few = min(z.shape[-1], t.shape[-1])
    return z[..., :few], t[..., :few]


def swapped(log_p: Tensor, log_q: Tensor) -> Tensor:
    return kl(log_q, log_p)


def later_teacher(z: Tensor, t: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    return z[:, :-1][keep[:, 1:]], t[:, 1:][keep[:, 1:]]


def mixture(log_p: Tensor, log_q: Tensor, beta: float = 0.3) -> Tensor:
    m = beta * log_p.exp() + (1 - beta) * log_q.exp()
    log_m = torch.where(m == 0, 1, m).log()
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def top_k(log_p: Tensor, log_q: Tensor, *, renormalise: bool, k: int = 3) -> Tensor:
    log_p, at = log_p.topk(k, dim=-1)
    return kl(log_p.log_softmax(-1) if renormalise else log_p, log_q.gather(-1, at))


def bucket(log_p: Tensor, log_q: Tensor, k: int = 3) -> Tensor:
    at = log_p.topk(k, dim=-1).indices
    inside = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, at, True)
    cells = [
        torch.cat([x.gather(-1, at), x.masked_fill(inside, -torch.inf).logsumexp(-1, keepdim=True)], -1)
        for x in (log_p, log_q)
    ]
    return kl(*cells)


class Doubled(torch.autograd.Function):
    """A custom function whose backward pass has lost a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * g


def chunked(student_logits: Tensor, teacher_logits: Tensor, chunk_size: int = 4) -> Tensor:
    """The mean of the chunks' means, of which the last is smaller."""
    pairs = zip(student_logits.split(chunk_size), teacher_logits.detach().split(chunk_size), strict=True)
    means = [kl(upcast(t).log_softmax(-1), upcast(z).log_softmax(-1)).mean() for z, t in pairs]
    return torch.stack(means).mean()


def hinton(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, T: float, alpha: float) -> Tensor:
    """The loss of image classifiers: `α T² KL + (1 − α) cross-entropy`."""
    z, t = same_classes(upcast(student_logits), upcast(teacher_logits.detach()))
    rows = kl((t / T).log_softmax(-1), (z / T).log_softmax(-1))
    return alpha * T**2 * rows.mean() + (1 - alpha) * torch.nn.functional.cross_entropy(z, labels)


def hinton_shifted(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, T: float = 2.0, alpha: float = 0.25
) -> Tensor:
    """The same for a language model, whose labels' part alone is shifted and masked."""
    rows = kl((teacher_logits / T).log_softmax(-1), (student_logits / T).log_softmax(-1))
    hard = torch.nn.functional.cross_entropy(student_logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return alpha * T**2 * rows.mean() + (1 - alpha) * hard


def record(
    student_logits: Tensor,
    target_token_ids: Tensor,
    target_logprobs: Tensor,
    target_mask: Tensor,
    kd_temperature: float,
) -> Tensor:
    """The teacher's stored log-probabilities as they are, on the stored classes alone."""
    log_q = (student_logits / kd_temperature).log_softmax(-1).gather(-1, target_token_ids)
    rows = (target_logprobs.exp() * (target_logprobs - log_q) * target_mask).sum(-1)
    return kd_temperature**2 * rows.mean()


def with_mask(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean over the positions that a mask keeps."""
    rows = kl(teacher.detach().log_softmax(-1), student.log_softmax(-1))
    return (rows * attention_mask).sum() / attention_mask.sum()


def by_sequence(student: Tensor, teacher: Tensor, loss_mask: Tensor) -> Tensor:
    """The mean over sequences of their means."""
    rows = kl(teacher.detach().log_softmax(-1), student.log_softmax(-1))
    return ((rows * loss_mask).sum(-1) / loss_mask.sum(-1)).mean()


class OfConstructor:
    """A loss whose temperature is the constructor's."""

    def __init__(self, tau: float = 4.0, reduction: str = "mean") -> None:
        self.tau, self.reduction = tau, reduction

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        rows = kl((teacher.detach() / self.tau).log_softmax(-1), (student / self.tau).log_softmax(-1))
        return rows.sum() if self.reduction == "sum" else rows.mean()
