"""Each fault fails its own check, with what follows from it, and no other; without a fault nothing fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from examples import faulty_losses
from likely.doctor import CHECKS, examine
from tests.doctor import losses
from tests.doctor.losses import recipe, without_total

Loss = Callable[..., Tensor]


def no_clamp(rows: Tensor, labels: Tensor, total: int | None) -> Tensor:
    return rows.sum() / (rows.shape[0] if total is None else total)


def divided_twice(rows: Tensor, labels: Tensor, total: int | None) -> Tensor:
    return losses.by_total(rows, labels, None) / (1 if total is None else total)


def constant_zero(rows: Tensor, labels: Tensor, total: int | None) -> Tensor:
    return losses.by_total(rows, labels, total) if rows.shape[0] else torch.tensor(0.0)


def plain_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


FAULTS: list[tuple[str, Loss, set[str]]] = [
    ("nothing", recipe(), set()),
    ("log(softmax)", recipe(student=lambda z, T: (z / T).softmax(-1).log()), {"extremes"}),
    ("NaN where p is 0", recipe(divergence=plain_kl), {"extremes"}),
    ("mean over classes", recipe(divergence=lambda p, q: losses.kl(p, q) / p.shape[-1]), {"reduction"}),
    ("batchmean", recipe(divide=lambda rows, y, _: rows.sum() / y.shape[0]), {"reduction", "micro_batches"}),
    ("T² missing", recipe(factor=lambda T: 1), {"t_squared"}),
    ("T once", recipe(factor=lambda T: T), {"t_squared"}),
    (
        "T ignored",
        recipe(student=lambda z, T: z.log_softmax(-1), teacher=lambda t, T: t.log_softmax(-1), factor=lambda T: 1),
        {"temperature"},
    ),
    ("T of the teacher alone", recipe(student=lambda z, T: z.log_softmax(-1)), {"temperature"}),
    ("T of the student alone", recipe(teacher=lambda t, T: t.log_softmax(-1)), {"temperature"}),
    ("swapped", recipe(divergence=losses.swapped), {"direction", "order"}),
    ("Jensen–Shannon", recipe(divergence=losses.mixture), {"direction"}),
    ("cross-entropy", recipe(divergence=lambda p, q: -(p.exp() * q.clamp(min=-1e30)).sum(-1)), {"zero"}),
    (
        "softmax for log_softmax",
        recipe(student=lambda z, T: (z / T).softmax(-1)),
        {"divergence", "zero", "fixed_point", "non_negative"},
    ),
    (
        "logits for log_softmax",
        recipe(student=lambda z, T: (z / T).clamp(min=-1e4)),
        {"divergence", "zero", "fixed_point", "non_negative"},
    ),
    (
        "softmax twice",
        recipe(teacher=lambda t, T: (t / T).softmax(-1).log_softmax(-1)),
        {"divergence", "zero", "fixed_point", "extremes"},
    ),
    ("padding counted", recipe(choose=lambda z, t, keep: (z[:, :-1].flatten(0, 1), t[:, :-1].flatten(0, 1))), {"mask"}),
    ("padding divides", without_total(recipe(divide=lambda rows, y, _: rows.sum() / y[:, 1:].numel())), {"mask"}),
    ("no shift", recipe(choose=lambda z, t, keep: (z[keep], t[keep])), {"shift"}),
    ("teacher one later", recipe(choose=losses.later_teacher), {"shift", "zero", "fixed_point"}),
    ("mean of means", without_total(recipe()), {"micro_batches"}),
    ("total unused", recipe(divide=lambda rows, y, _: losses.by_total(rows, y, None)), {"micro_batches"}),
    ("divided twice", recipe(divide=divided_twice), {"micro_batches"}),
    ("top-k renormalised", recipe(divergence=partial(losses.top_k, renormalise=True)), {"zero", "fixed_point"}),
    ("top-k as it is", recipe(divergence=partial(losses.top_k, renormalise=False)), {"fixed_point", "non_negative"}),
    ("NaN of nothing", without_total(recipe(divide=no_clamp)), {"micro_batches", "all_masked"}),
    ("constant 0 of nothing", recipe(divide=constant_zero), {"all_masked"}),
    ("zero padding", recipe(match=losses.zero_padded), {"vocabulary"}),
    ("half precision", recipe(take=lambda x: x), {"bfloat16"}),
    ("backward with a factor", recipe(divergence=lambda p, q: losses.kl(p, losses.Doubled.apply(q))), {"gradient"}),
    ("student without a gradient", recipe(student=lambda z, T: (z.detach() / T).log_softmax(-1)), {"gradient"}),
    ("mean of chunks' means", losses.chunked, {"chunks"}),
    *((loss.__name__, loss, set(failed)) for loss, failed in (
        (faulty_losses.right, []),
        (faulty_losses.mean_over_classes, ["reduction"]),
        (faulty_losses.cross_entropy_called_kl, ["zero"]),
        (faulty_losses.temperature_not_squared, ["t_squared"]),
        (faulty_losses.padding_counted, ["mask"]),
        (faulty_losses.top_k_renormalised, ["zero", "fixed_point"]),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "failed"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_fault_fails_its_checks_and_no_other(loss: Loss, failed: set[str]) -> None:
    found = examine(loss)
    assert set(found.failed) == failed, str(found)
    assert all(one.reason for one in found)
    assert all(one.fix for one in found if one.verdict == "fail")


def test_the_right_one_passes_everything() -> None:
    found = examine(faulty_losses.right)
    assert [one.name for one in found] == list(CHECKS)
    assert {one.verdict for one in found} == {"pass"}, str(found)


def test_every_check_is_failed_by_some_fault() -> None:
    assert {name for _, _, failed in FAULTS for name in failed} == CHECKS.keys() - {"teacher_gradient"}
