"""One distillation loss written right, and five ways in which it is often written wrong, for `likely check` to find.

    likely check examples.faulty_losses:mean_over_classes
    python -m examples.faulty_losses

All of them compute in float32, shift the labels, and take the number of rows of the whole batch, so that each has the
one fault that it is named for, and what follows from it.

Shapes: B sequences, L positions, C classes, N rows that count, K stored classes of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

import likely


def right(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    num_items_in_batch: int | None = None,
) -> Tensor:
    """`T² Σ KL(teacher ‖ student) / rows`, by likely's own functions. (B, L, C), (B, L, C), (B, L)."""
    student_NC, teacher_NC = _rows(student_logits, labels), _rows(teacher_logits, labels).detach()
    score = likely.nll(likely.Logits(student_NC), likely.teacher(teacher_NC), temperature=temperature)
    return temperature**2 * score.kl.sum() / _count(student_NC, num_items_in_batch)


def mean_over_classes(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    num_items_in_batch: int | None = None,
) -> Tensor:
    """`reduction="mean"` instead of "batchmean": the loss is divided by the number of classes as well.

    It is the default of torch's `kl_div`, and stands in repositories of distillation methods whose loss weights were
    tuned around it.
    """
    log_p_NC, log_q_NC = _softened(student_logits, teacher_logits, labels, temperature)
    divergence_NC = log_p_NC.exp() * _difference(log_p_NC, log_q_NC)
    return temperature**2 * divergence_NC.sum() / _count(log_q_NC, num_items_in_batch) / log_q_NC.shape[-1]


def cross_entropy_called_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    num_items_in_batch: int | None = None,
) -> Tensor:
    """`−Σ p log q`, reported as a KL divergence: the teacher's entropy is left in.

    Seen in fine-tuning libraries under the name of a forward KL. The gradient is right; the number never gets to 0, and
    mixed with a reverse KL it weighs wrongly.
    """
    log_p_NC, log_q_NC = _softened(student_logits, teacher_logits, labels, temperature)
    cross_NC = -log_p_NC.exp() * torch.where(torch.isneginf(log_p_NC), 0, log_q_NC)
    return temperature**2 * cross_NC.sum() / _count(log_q_NC, num_items_in_batch)


def temperature_not_squared(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    num_items_in_batch: int | None = None,
) -> Tensor:
    """T² is missing: at T = 4 the gradient is a sixteenth, and a part for labels drowns it.

    Seen in trainers for language models and in the fused losses that they call; some libraries have it in one of their
    losses and not in the next.
    """
    log_p_NC, log_q_NC = _softened(student_logits, teacher_logits, labels, temperature)
    divergence_NC = log_p_NC.exp() * _difference(log_p_NC, log_q_NC)
    return divergence_NC.sum() / _count(log_q_NC, num_items_in_batch)


def padding_counted(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    num_items_in_batch: int | None = None,
) -> Tensor:
    """The labels are taken, but not looked at: prompt and padding are distilled too.

    Seen in a toolkit for model compression, and in an ablation whose winner changed once padding was left out.
    """
    every = torch.zeros_like(labels)
    log_p_NC, log_q_NC = _softened(student_logits, teacher_logits, every, temperature)
    divergence_NC = log_p_NC.exp() * _difference(log_p_NC, log_q_NC)
    return temperature**2 * divergence_NC.sum() / _count(log_q_NC, num_items_in_batch)


def top_k_renormalised(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    num_items_in_batch: int | None = None,
    top_k: int = 3,
) -> Tensor:
    """The teacher's k likeliest classes, divided by their mass P: at its optimum the student is sure of p / P.

    Seen in trainers that read a teacher's log-probabilities from a server or a file, which gives the first few of them.
    """
    log_p_NC, log_q_NC = _softened(student_logits, teacher_logits, labels, temperature)
    log_p_NK, top_NK = log_p_NC.topk(top_k, dim=-1)
    log_p_NK = log_p_NK.log_softmax(dim=-1)
    divergence_NK = log_p_NK.exp() * (log_p_NK - log_q_NC.gather(-1, top_NK))
    return temperature**2 * divergence_NK.sum() / _count(log_q_NC, num_items_in_batch)


FAULTY = (mean_over_classes, cross_entropy_called_kl, temperature_not_squared, padding_counted, top_k_renormalised)


def _rows(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, C) the rows whose next label counts, in float32 at least."""
    rows_NC = logits[:, :-1][labels[:, 1:] != -100]
    return rows_NC if rows_NC.dtype == torch.float64 else rows_NC.float()


def _count(rows_NC: Tensor, num_items_in_batch: int | None) -> int:
    return max(1, rows_NC.shape[0] if num_items_in_batch is None else num_items_in_batch)


def _softened(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The teacher's and the student's log-probabilities, both (N, C)."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher_logits: have the shape {tuple(teacher.shape)}, student_logits {tuple(student.shape)}"
        )
    log_p_NC = (_rows(teacher, labels).detach() / temperature).log_softmax(dim=-1)
    return log_p_NC, (_rows(student, labels) / temperature).log_softmax(dim=-1)


def _difference(log_p_NC: Tensor, log_q_NC: Tensor) -> Tensor:
    """`log p − log q`, and 0 where p is 0."""
    empty_NC = torch.isneginf(log_p_NC)
    return torch.where(empty_NC, 0, log_p_NC) - torch.where(empty_NC, 0, log_q_NC)
