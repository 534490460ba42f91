"""The losses the way people write them in PyTorch, on materialised logits.

They are the contestant `eager`, what `torch.compile` is given, and in float64 the reference.  A teacher's loss is
`T² · KL` with the mean over rows (`batchmean`), in the direction KL(teacher ‖ student).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems import SMOOTHING, TEMPERATURE, Problem


def logits(problem: Problem) -> Tensor:
    return F.linear(problem["x"], problem["weight"]) if problem.case.has_head else problem["z"]


def distillation(z_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    log_q_NC = F.log_softmax(z_NC / TEMPERATURE, dim=-1)
    p_NC = F.softmax(teacher_NC / TEMPERATURE, dim=-1)
    return F.kl_div(log_q_NC, p_NC, reduction="batchmean") * TEMPERATURE**2


def teacher_logits(problem: Problem) -> Tensor:
    with torch.no_grad():
        return F.linear(problem["x_teacher"], problem["weight_teacher"])


def spread(problem: Problem, dtype: torch.dtype) -> Tensor:
    """A top-k record with a uniform tail as the dense probabilities that it stands for."""
    index, kept, classes = problem["index"], problem["kept"], problem.case.classes
    tail_N1 = (1 - kept.sum(-1, keepdim=True)) / max(1, classes - kept.shape[-1])
    p_NC = tail_N1.expand(-1, classes).to(dtype, copy=True)
    return p_NC.scatter_(1, index, kept.to(dtype))


def loss_of(problem: Problem) -> Tensor:
    z = logits(problem)
    match problem.case.target:
        case "labels":
            return F.cross_entropy(z, problem["y"])
        case "smoothed":
            return F.cross_entropy(z, problem["y"], label_smoothing=SMOOTHING)
        case "probabilities":
            return F.cross_entropy(z, problem["p"])
        case "teacher-logits":
            return distillation(z, problem["z_teacher"])
        case "teacher-head":
            return distillation(z, teacher_logits(problem))
        case "top-32":
            return F.cross_entropy(z, spread(problem, z.dtype))
        case "half-teacher":
            return 0.5 * F.cross_entropy(z, problem["y"]) + 0.5 * distillation(z, teacher_logits(problem))
        case "binary":
            return F.binary_cross_entropy_with_logits(z, problem["y"])
    raise ValueError(f"target: there is none named {problem.case.target!r}")
