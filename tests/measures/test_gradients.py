"""The gradients of the definitions: those of the formulas, and finite at zeros."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from likely.measures import cross_entropy, entropy, kl_divergence, surprisal


def rows(seed: int, zeros: bool = False) -> Tensor:
    p = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(5), size=4))
    if zeros:
        p = p.index_fill(1, torch.tensor([1, 3]), 0.0)
    return (p / p.sum(-1, keepdim=True)).requires_grad_()


def test_gradcheck() -> None:
    # check=False: the finite differences leave the simplex.
    p, q = rows(0), rows(1)
    log_p, log_q = (x.detach().log().requires_grad_() for x in (p, q))
    assert torch.autograd.gradcheck(lambda x: entropy(x, check=False), p)
    assert torch.autograd.gradcheck(lambda x: entropy(x, log_input=True, base=2, check=False), log_p)
    assert torch.autograd.gradcheck(lambda x: surprisal(x, check=False), p)
    for measure in (cross_entropy, kl_divergence):
        for is_log_p, a in ((False, p), (True, log_p)):
            for is_log_q, b in ((False, q), (True, log_q)):
                assert torch.autograd.gradcheck(
                    lambda x, y, m=measure, f=is_log_p, g=is_log_q: m(x, y, log_p=f, log_q=g, check=False), (a, b)
                )


@pytest.mark.parametrize("log_p", [False, True])
@pytest.mark.parametrize("log_q", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_at_shared_zeros_are_finite(log_p: bool, log_q: bool, dtype: torch.dtype) -> None:
    p, q = (rows(seed, zeros=True).detach() for seed in (2, 3))
    p, q = (p.log() if log_p else p).to(dtype).requires_grad_(), (q.log() if log_q else q).to(dtype).requires_grad_()
    total = entropy(p, log_input=log_p) + cross_entropy(p, q, log_p=log_p, log_q=log_q)
    total = total + kl_divergence(p, q, log_p=log_p, log_q=log_q)
    assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for x, gradient in zip((p, q), torch.autograd.grad(total.sum(), (p, q))):
        assert gradient.dtype == dtype
        assert torch.isfinite(gradient).all(), gradient
        assert (gradient[:, [1, 3]] == 0).all()
        assert (gradient[:, [0, 2, 4]] != 0).all(), x


def test_values_of_the_gradients() -> None:
    p, q = rows(4, zeros=True), rows(5)
    by_p, by_q = torch.autograd.grad(cross_entropy(p, q).sum(), (p, q))
    torch.testing.assert_close(by_p, -q.detach().log())  # at p = 0 as well
    torch.testing.assert_close(by_q, -(p / q).detach())
    (by_h,) = torch.autograd.grad(entropy(p).sum(), p)
    torch.testing.assert_close(by_h, torch.where(p == 0, 0.0, -p.log() - 1).detach())
    by_p, by_q = torch.autograd.grad(kl_divergence(p, q).sum(), (p, q))
    torch.testing.assert_close(by_p, -by_h - q.detach().log())  # KL = CE − H in the slopes too
    torch.testing.assert_close(by_q, -(p / q).detach())


def test_the_gradient_through_a_softmax_is_softmax_minus_p() -> None:
    z = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    p = rows(6, zeros=True).detach()
    for measure in (cross_entropy, kl_divergence):
        (gradient,) = torch.autograd.grad(measure(p, z.log_softmax(-1), log_q=True).sum(), z)
        torch.testing.assert_close(gradient, z.detach().softmax(-1) - p)


def test_masked_logits_leave_finite_gradients() -> None:
    z = torch.tensor([1.0, -math.inf, 0.5], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.25, 0.0, 0.75], dtype=torch.float64)
    loss = kl_divergence(p, z.log_softmax(-1), log_q=True) + entropy(z.log_softmax(-1), log_input=True)
    (gradient,) = torch.autograd.grad(loss, z)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("log_q", [False, True])
def test_where_the_value_is_infinite_no_gradient_is_nan(log_q: bool) -> None:
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    q = (q.log() if log_q else q).requires_grad_()
    for measure in (cross_entropy, kl_divergence):
        value = measure(p, q, log_q=log_q)
        assert value == math.inf
        for gradient in torch.autograd.grad(value, (p, q)):
            assert not torch.isnan(gradient).any()
