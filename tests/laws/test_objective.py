"""Laws of the objective: several terms in one pass, temperatures, totals, the z-loss, and estimates of scores."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import likely
from tests.cases import (
    CLASSES,
    HEADS,
    KERNELS,
    ROWS,
    TARGETS,
    Draw,
    Kernel,
    double,
    make,
    make_case,
    make_head,
    requiring_grad,
)
from tests.laws.twin import logsumexp, twin

kernels = pytest.mark.parametrize("kernel", KERNELS, ids=str)


@kernels
@pytest.mark.parametrize("head", [h for h in HEADS if h != "binary"])
def test_a_mixture_in_one_pass_is_the_weighted_sum_of_its_terms_with_the_squared_temperatures(
    head: str, kernel: Kernel
) -> None:
    names = ["labels smoothing all", "teacher linear", "probabilities class weight", "measure signed", "top_k bucket"]
    mades = [make(name) for name in names]
    weights, temperatures = [0.5, 2.0, -0.25, 0.125, 1.0], [3.0, 2.5, 1.5, 2.0, 1.0]
    own = make_head(head, mades[0]) if head != "logits impossible" else make_head("logits")
    z_NC = double(own.logits())
    wanted, parts = 0.0, []
    for made, weight, T in zip(mades, weights, temperatures):
        true = twin(z_NC, made, T)
        parts.append((made.weight * true.cross_entropy).sum() / made.count.sum())
        wanted += weight * T**2 * parts[-1]
    terms = [likely.Term(m.target, weight=w, temperature=T) for m, w, T in zip(mades, weights, temperatures)]
    with_grad, leaves = requiring_grad(own)
    loss, scores = kernel.objective(with_grad, terms)
    assert abs(float(loss.detach()) - wanted) < 1e-11 * abs(wanted)
    # What is reported is without the weight and without T².
    np.testing.assert_allclose([float(s.mean().cross_entropy) for s in scores], parts, rtol=1e-12)
    assert not any(s.cross_entropy.requires_grad for s in scores)
    assert float(scores.z_loss) == 0
    together = kernel.gradients(loss, own, leaves)
    apart = [torch.zeros_like(t) for t in leaves]
    for term in terms:
        one_head, one_leaves = requiring_grad(own)
        one, _ = kernel.objective(one_head, term)
        apart = [a + g for a, g in zip(apart, kernel.gradients(one, own, one_leaves))]
    torch.testing.assert_close(together, apart, rtol=1e-11, atol=1e-12)


@kernels
@pytest.mark.parametrize("name", TARGETS)
def test_the_scores_of_an_objective_are_those_of_nll(name: str, kernel: Kernel) -> None:
    made, own = make_case(name, "linear bias")
    T = made.temperatures[-1]
    one = kernel.nll(own, made.target, T)
    loss, (two,) = kernel.objective(own, likely.Term(made.target, temperature=T))
    assert torch.equal(one.cross_entropy, two.cross_entropy)
    torch.testing.assert_close(loss, T**2 * one.mean().cross_entropy, rtol=1e-13, atol=1e-14)
    if made.known:
        assert torch.equal(one.entropy, two.entropy)
        assert torch.equal(one.kl, two.kl)


@kernels
def test_a_bare_target_is_a_term_and_a_sequence_may_mix_them(kernel: Kernel) -> None:
    made, own = make_case("labels", "logits")
    one, _ = kernel.objective(own, made.target)
    two, scores = kernel.objective(own, [made.target, likely.Term(made.target, weight=0.5)])
    torch.testing.assert_close(two, 1.5 * one)
    assert len(scores) == 2


@kernels
@pytest.mark.parametrize("head", ["logits", "linear bias", "binary"])
def test_the_z_loss_is_the_mean_square_of_the_log_normaliser_of_counted_rows(head: str, kernel: Kernel) -> None:
    made, own = make_case("labels ignored", head)
    with_grad, leaves = requiring_grad(own)
    loss, scores = kernel.objective(with_grad, likely.Term(made.target, temperature=3.0), z_loss=0.25)
    plain, plain_scores = kernel.objective(own, likely.Term(made.target, temperature=3.0))
    counted_N = made.count > 0
    wanted = 0.25 * (logsumexp(double(own.logits())) ** 2)[counted_N].mean()
    assert abs(float(scores.z_loss) - wanted) < 1e-13
    torch.testing.assert_close(loss.detach(), plain + wanted, rtol=1e-13, atol=0)
    assert torch.equal(scores[0].cross_entropy, plain_scores[0].cross_entropy), "the z-loss is part of no score"
    found = kernel.gradients(loss, own, leaves)
    reference, reference_leaves = requiring_grad(own)
    z_NC = reference.logits()[torch.tensor(counted_N)]
    alone = 0.25 * torch.logsumexp(z_NC, dim=-1).square().mean()
    labels_alone, _ = kernel.objective(reference, likely.Term(made.target, temperature=3.0))
    true = torch.autograd.grad(alone + labels_alone, reference_leaves)
    torch.testing.assert_close(found, list(true), rtol=1e-12, atol=1e-13)


@kernels
def test_the_z_loss_counts_the_rows_that_any_term_counts(kernel: Kernel) -> None:
    own = make_head("logits")
    terms = [
        likely.labels([0, -100, -100, 1, 2, -100, 3], CLASSES),
        likely.labels([-100, -100, 4, 1, 2, 3, 3], CLASSES),
    ]
    _, scores = kernel.objective(own, terms, z_loss=1.0)
    squares_N = logsumexp(double(own.logits())) ** 2
    assert abs(float(scores.z_loss) - squares_N[[0, 2, 3, 4, 5, 6]].mean()) < 1e-13


@kernels
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_a_mean_over_nothing_is_zero_with_zero_gradient(head: str, z_loss: float, kernel: Kernel) -> None:
    own = make_head(head, classes=2)
    nothing = likely.labels(torch.full((ROWS,), -100), 2)
    weightless = likely.probabilities(torch.full((ROWS, 2), 0.5), weight=torch.zeros(ROWS))
    for target in (nothing, weightless):
        with_grad, leaves = requiring_grad(own)
        loss, scores = kernel.objective(with_grad, target, z_loss=z_loss)
        assert float(loss.detach()) == 0
        assert float(scores[0].mean().cross_entropy) == 0
        assert all((g == 0).all() for g in kernel.gradients(loss, own, leaves))
    assert math.isnan(scores[0].estimate().cross_entropy.mean), "but there is nothing to estimate"


@kernels
def test_a_total_is_the_denominator_of_every_term(kernel: Kernel) -> None:
    one, own = make_case("labels smoothing all", "logits")
    two = make("teacher logits")
    terms = [likely.Term(one.target), likely.Term(two.target, temperature=2.0)]
    loss, scores = kernel.objective(own, terms, total=10)
    sums = [(m.weight * twin(double(own.logits()), m, T).cross_entropy).sum() for m, T in ((one, 1.0), (two, 2.0))]
    assert abs(float(loss) - (sums[0] + 4 * sums[1]) / 10) < 1e-12
    assert abs(float(scores[0].mean(total=torch.tensor(10)).cross_entropy) - sums[0] / 10) < 1e-12
    with pytest.raises(ValueError, match=r"total: has shape \(2,\); the denominator of a mean is one number"):
        likely.objective(own, terms, total=torch.ones(2))


def test_softening_makes_the_gradient_scale_with_one_over_T_squared() -> None:
    """Why T² is there: at high temperature the gradient of a soft term is (z − z_teacher)/(C T²)."""
    draw = Draw("hot")
    z_NC, teacher_NC = (torch.tensor(draw.rng.normal(size=(ROWS, CLASSES))) for _ in range(2))
    z_NC.requires_grad_()
    loss, _ = likely.objective(likely.Logits(z_NC), likely.Term(likely.teacher(teacher_NC), temperature=1e4))
    (grad,) = torch.autograd.grad(loss, z_NC)
    difference_NC = z_NC.detach() - teacher_NC
    limit_NC = (difference_NC - difference_NC.mean(dim=-1, keepdim=True)) / CLASSES / ROWS
    torch.testing.assert_close(grad, limit_NC, rtol=1e-3, atol=1e-5)


def test_an_estimate_has_the_mean_of_the_score_and_the_error_of_its_sample() -> None:
    for name in TARGETS:
        made, own = make_case(name, "logits")
        score = likely.nll(own, made.target, temperature=made.temperatures[0])
        mean, estimates = score.mean(), score.estimate()
        assert abs(estimates.cross_entropy.mean - float(mean.cross_entropy)) < 1e-12, name
        if made.known:
            assert estimates.entropy is not None
            assert abs(estimates.entropy.mean - float(mean.entropy)) < 1e-12
            assert estimates.kl is not None
            assert abs(estimates.kl.mean - float(mean.kl)) < 1e-12
        else:
            assert estimates.entropy is None
            assert estimates.kl is None
        # The delta method for a ratio, written out.
        rows_N = made.weight * double(score.cross_entropy)
        kept_N = (made.count != 0) | (rows_N != 0)
        e_N = (rows_N - rows_N.sum() / made.count.sum() * made.count)[kept_N] / made.count.sum()
        error = np.sqrt(len(e_N) / (len(e_N) - 1) * (e_N**2).sum())
        assert abs(estimates.cross_entropy.standard_error - error) < 1e-12, name
        assert estimates.cross_entropy.n == kept_N.sum()


def test_an_estimate_counts_rows_whose_class_weighs_nothing() -> None:
    """With smoothing a row of a weightless class still costs, though it adds nothing to the denominator."""
    target = likely.labels([0, 1, 2], 3, smoothing=0.2, class_weight=torch.tensor([1.0, 0.0, 2.0]))
    score = likely.nll(likely.Logits(torch.tensor([[1.0, 2, 3]] * 3).double()), target)
    assert abs(score.estimate().cross_entropy.mean - float(score.mean().cross_entropy)) < 1e-7
    assert score.estimate().cross_entropy.n == 3


def test_an_infinite_loss_is_an_infinite_mean_of_which_no_error_is_known() -> None:
    score = likely.nll(likely.Logits(torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])), likely.labels([1, 0], 2))
    assert float(score.mean().cross_entropy) == math.inf
    estimate = score.estimate().cross_entropy
    assert estimate.mean == math.inf
    assert math.isnan(estimate.standard_error)


def test_rows_of_one_group_are_not_independent() -> None:
    made, own = make_case("labels", "logits", rows=60)
    score = likely.nll(own, made.target)
    rows = [torch.cat([t, t]) for t in (score.cross_entropy, score.entropy, score.kl, score.count)]
    doubled = likely.Score(rows[0], rows[1], rows[2], None, rows[3])
    groups = list(range(60)) * 2
    true = score.estimate().cross_entropy
    assert abs(doubled.estimate(groups=groups).cross_entropy.standard_error - true.standard_error) < 1e-12
    assert doubled.estimate().cross_entropy.standard_error < 0.75 * true.standard_error


def test_more_smoothing_moves_the_optimum_towards_the_uniform() -> None:
    """At its optimum a constant head has the entropy of the smoothed label, which grows with ε."""
    head = likely.Logits(torch.zeros(1, CLASSES).double())
    entropies = [float(likely.nll(head, likely.labels([2], CLASSES, smoothing=e)).entropy) for e in (0, 0.1, 0.5, 1)]
    assert entropies[0] == 0
    assert abs(entropies[-1] - math.log(CLASSES)) < 1e-14
    assert all(a < b for a, b in pairwise(entropies))
