"""The losses of libraries: what is known of each is found. Those of others are written here from their descriptions."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import likely
from likely.doctor import examine

MASKED = {"aligned": True}


def forward_kl_of_a_tuner(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """`−Σ p log q` in float32, masked by aligned labels, over the valid tokens; called a forward KL."""
    p = F.softmax(teacher_logits, dim=-1, dtype=torch.float32)
    log_q = F.log_softmax(student_logits, dim=-1, dtype=torch.float32)
    rows = torch.where(torch.isinf(student_logits), 0, p * log_q).sum(-1).flatten()
    keep = (labels != -100).flatten()
    return -(rows * keep).sum() / keep.sum()


def symmetric_kl_of_a_tuner(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Half of that cross-entropy and half of a true reverse KL."""
    q = student_logits.softmax(-1)
    rows = (q * (student_logits.log_softmax(-1) - teacher_logits.log_softmax(-1))).sum(-1)
    keep = labels != -100
    return 0.5 * forward_kl_of_a_tuner(student_logits, teacher_logits, labels) + 0.5 * rows[keep].mean()


def generalised_jsd_of_a_trainer(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """The Jensen–Shannon divergence of aligned, valid tokens; softened, without T²."""
    log_q, log_p = (student_logits / temperature).log_softmax(-1), (teacher_logits / temperature).log_softmax(-1)
    log_m = torch.log(beta * log_p.exp() + (1 - beta) * log_q.exp())
    rows = beta * F.kl_div(log_m, log_p, reduction="none", log_target=True)
    rows = rows + (1 - beta) * F.kl_div(log_m, log_q, reduction="none", log_target=True)
    keep = labels != -100
    return rows[keep].sum() / keep.sum()


def kd_of_image_classifiers(y_s: Tensor, y_t: Tensor, T: float = 4.0) -> Tensor:
    """As in repositories of methods for image classifiers: summed, times T², over the batch."""
    return F.kl_div(F.log_softmax(y_s / T, dim=1), F.softmax(y_t / T, dim=1), reduction="sum") * T**2 / y_s.shape[0]


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """likely's cross-entropy with a teacher's probabilities."""
    return likely.functional.cross_entropy(logits / temperature, (target.detach() / temperature).softmax(-1))


EVERYWHERE = {"extremes", "bfloat16"}
"""What a loss of torch's own kl_div has: NaN where a class is impossible in both, and half precision as it comes."""

KNOWN: list[tuple[Any, dict[str, Any], set[str]]] = [
    (F.kl_div, {}, {"reduction", "extremes"}),
    (F.kl_div, {"call": {"reduction": "batchmean"}}, {"extremes"}),
    (F.kl_div, {"call": {"log_target": True, "reduction": "batchmean"}}, {"extremes"}),
    (torch.nn.KLDivLoss, {}, {"reduction", "extremes"}),
    (likely.functional.kl_div, {"call": {"reduction": "batchmean"}}, set()),
    (likely.nn.KLDivLoss, {"call": {"reduction": "batchmean"}}, set()),
    (soft_cross_entropy, {"expect": "cross_entropy"}, {"t_squared"}),
    (likely.functional.cross_entropy, {"expect": "cross_entropy"}, {"t_squared"}),
    (torch.nn.CrossEntropyLoss, {"expect": "cross_entropy"}, {"extremes"}),
    (F.cross_entropy, {}, {"extremes", "zero"}),
    (kd_of_image_classifiers, {}, EVERYWHERE),
    (forward_kl_of_a_tuner, MASKED, {"zero", "micro_batches", "all_masked"}),
    (forward_kl_of_a_tuner, {}, {"zero", "micro_batches", "all_masked", "shift"}),
    (symmetric_kl_of_a_tuner, MASKED, {"direction", "zero", "micro_batches", "all_masked", *EVERYWHERE}),
    (
        generalised_jsd_of_a_trainer,
        MASKED | {"expect": "jsd:0.5"},
        {"t_squared", "micro_batches", "all_masked", *EVERYWHERE},
    ),
    (lambda z, t: likely.nll(likely.Logits(z), likely.teacher(t)).kl, {"names": {"student": "z"}}, set()),
    (lambda z, t: likely.reverse_kl(likely.Logits(z), t).mean(), {"expect": "reverse"}, set()),
    (lambda z, t: likely.jensen_shannon(likely.Logits(z), t, beta=0.1).mean(), {"expect": "jsd:0.1"}, set()),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "options", "failed"), KNOWN)
def test_what_is_known_is_found(loss: Any, options: dict[str, Any], failed: set[str]) -> None:
    found = examine(loss, **options)
    assert set(found.failed) == failed, str(found)


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="it is not installed")
def test_a_fused_loss() -> None:
    fused = importlib.import_module("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss
    options: dict[str, Any] = {"shape": "rows", "call": {"compiled": False}, "expect": "jsd:0.5"}
    found = examine(fused, **options)
    assert set(found.failed) == {"t_squared", "micro_batches", "vocabulary", "extremes"}, str(found)
    assert "has the weight 0.5 beside 0.5 of labels" in found["reduction"].reason
    soft = options["call"] | {"weight_hard_loss": 0.0, "weight_soft_loss": 1.0, "beta": 0.0}
    found = examine(fused, **(options | {"call": soft, "expect": "forward"}))
    assert set(found.failed) == {"t_squared", "micro_batches", "vocabulary", "extremes", "bfloat16"}, str(found)
    assert "taken for 0" in found["vocabulary"].reason
