"""What a finding says: the fault by its name and figure, what is meant and passes, and what does not apply."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from likely.doctor import examine
from tests.doctor import losses
from tests.doctor.losses import recipe


@pytest.mark.parametrize(
    ("loss", "options", "name", "words"),
    [
        (recipe(divergence=lambda p, q: -(p.exp() * q).sum(-1)), {}, "zero", "the teacher's entropy: this is a cross-"),
        (recipe(divergence=losses.swapped), {}, "direction", "it is KL(student ‖ teacher), not KL(teacher ‖ student)"),
        (recipe(divergence=losses.mixture), {}, "direction", "Jensen–Shannon divergence with β = 0.3, not"),
        (recipe(divergence=losses.mixture), {"expect": "jsd:0.7"}, "order", "with the two exchanged"),
        (recipe(student=lambda z, T: (z / T).softmax(-1)), {}, "divergence", "student's probabilities stand where its"),
        (recipe(student=lambda z, T: z / T), {}, "divergence", "student's logits stand where its log-probabilities"),
        (recipe(teacher=lambda t, T: t.softmax(-1).log_softmax(-1)), {}, "divergence", "put through softmax twice"),
        (recipe(student=lambda z, T: (z / T).log_softmax(0)), {}, "chunks", "depends on the other rows"),
        (recipe(match=losses.zero_padded), {}, "vocabulary", "are taken for 0"),
        (recipe(choose=losses.later_teacher), {}, "shift", "of the student stands against row i+1 of the teacher"),
        (recipe(divergence=lambda p, q: losses.kl(p, losses.Doubled.apply(q))), {}, "gradient", "it is 2 times"),
        (recipe(student=lambda z, T: z.detach().log_softmax(-1)), {}, "gradient", "no gradient reaches the student"),
        (recipe(factor=lambda T: 1), {}, "t_squared", "at T = 4 its gradient is 0.0625 times"),
        (recipe(student=lambda z, T: z.log_softmax(-1)), {}, "temperature", "softens the teacher alone"),
        (recipe(divergence=lambda p, q: (p - q).square().sum(-1) ** 0.25), {}, "divergence", "no divergence of th"),
        (lambda student, teacher: (teacher - student).square().mean(), {}, "divergence", "squared difference of the l"),
        (lambda student, teacher: teacher.softmax(-1).mean(), {}, "divergence", "not depend on the student's logits"),
        (lambda student, teacher: F.kl_div(student, teacher), {}, "divergence", "nan for ordinary logits"),
        (F.kl_div, {}, "reduction", "rows × classes"),
        (F.kl_div, {"inputs": "logits,probs"}, "divergence", "student's logits stand where its log-probabilities"),
        (torch.nn.KLDivLoss, {"call": {"reduction": "batchmean"}}, "reduction", "the rows that count"),
        (torch.nn.KLDivLoss(reduction="sum"), {}, "reduction", "it is a sum"),
        (partial(F.kl_div, reduction="none"), {"inputs": "log_probs,probs"}, "reduction", "values of shape (10, 7)"),
        (torch.nn.KLDivLoss(reduction="batchmean"), {"shape": "sequences"}, "reduction", "by the batch alone"),
        (losses.hinton, {"call": {"alpha": 0.25}}, "reduction", "has the weight 0.25 beside 0.75 of labels"),
        (losses.hinton, {"call": {"alpha": 0.25}}, "mask", "a row with label −100 has no part for its label"),
        (losses.hinton_shifted, {}, "mask", "24 rows count where 11 are valid"),
        (losses.hinton_shifted, {}, "shift", "does not go by the labels"),
        (losses.record, {}, "fixed_point", "biased by 1/P"),
        (losses.record, {}, "non_negative", "it falls to -"),
        (losses.with_mask, {}, "mask", "rows masked by attention_mask = 0 are left out, and not counted"),
        (losses.with_mask, {}, "micro_batches", "a row of one weighs up to 2.7 times another's"),
        (losses.by_sequence, {}, "mask", "a row of a short sequence weighs up to 5 times that of a long one"),
        (losses.OfConstructor, {}, "t_squared", "at T = 4 its gradient is 0.0625 times"),
        (losses.OfConstructor(), {}, "t_squared", "no factor T"),
        (losses.OfConstructor(), {}, "temperature", "it takes none; its own is 4"),
    ],
)  # fmt: skip
def test_the_reason_says_it(loss: Any, options: dict[str, Any], name: str, words: str) -> None:
    assert words in examine(loss, **options)[name].reason


@pytest.mark.parametrize(
    ("loss", "options", "name", "verdict"),
    [
        (recipe(detach=False), {}, "teacher_gradient", "note"),
        (recipe(match=losses.cut_to_fit), {}, "vocabulary", "note"),
        (recipe(divergence=losses.bucket), {}, "fixed_point", "note"),
        (recipe(divergence=losses.swapped), {"expect": "reverse"}, "direction", "pass"),
        (recipe(divergence=losses.mixture), {"expect": "jsd"}, "direction", "pass"),
        (recipe(divergence=lambda p, q: -(p.exp() * q).sum(-1)), {"expect": "cross_entropy"}, "zero", "pass"),
        (recipe(choose=lambda z, t, keep: (z[keep], t[keep])), {"aligned": True}, "shift", "pass"),
        (recipe(), {"aligned": True}, "shift", "fail"),
        (losses.hinton, {"call": {"alpha": 0.25}}, "micro_batches", "pass"),
        (losses.record, {}, "vocabulary", "not applicable"),
        (losses.by_sequence, {}, "mask", "note"),
        (losses.OfConstructor, {"call": {"reduction": "sum"}}, "reduction", "pass"),
    ],
)
def test_what_is_meant_and_what_does_not_apply(loss: Any, options: dict[str, Any], name: str, verdict: str) -> None:
    assert examine(loss, **options)[name].verdict == verdict
