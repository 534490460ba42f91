"""The stacked L-BFGS: each problem arrives where it would alone, whatever its neighbours do."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from likely.training.minimise import Objective, minimise


def quadratics(conditions: list[float], parameters: int = 6) -> tuple[Objective, Tensor]:
    """½ (θ − c)ᵀ A (θ − c) with matrices of these condition numbers, and the minima c."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(len(conditions), parameters, generator=generator, dtype=torch.float64)
    spread = torch.stack([torch.logspace(0, float(torch.tensor(c).log10()), parameters) for c in conditions]).double()

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        gradient = spread * (theta - centre)
        return 0.5 * ((theta - centre) * gradient).sum(1), gradient

    return objective, centre


def rosenbrock(theta: Tensor) -> tuple[Tensor, Tensor]:
    theta = theta.detach().requires_grad_()
    x, y = theta.unbind(1)
    loss = (1 - x) ** 2 + 100 * (y - x**2) ** 2
    (gradient,) = torch.autograd.grad(loss.sum(), theta)
    return loss.detach(), gradient


@pytest.mark.parametrize("conditions", [[1.0], [10.0, 1e4], [1.0, 1e3, 1e5, 2.0]])
def test_quadratics(conditions: list[float]) -> None:
    objective, centre = quadratics(conditions)
    found = minimise(objective, torch.zeros_like(centre), tolerance=1e-9, flat=0.0)
    torch.testing.assert_close(found.theta, centre, rtol=0, atol=1e-7)
    assert bool(found.converged.all())
    assert float(found.gradient.max()) <= 1e-9


def test_a_curved_valley_from_several_starts() -> None:
    start = torch.tensor([[-1.2, 1.0], [2.0, 2.0], [0.0, -3.0]], dtype=torch.float64)
    found = minimise(rosenbrock, start, tolerance=1e-8, flat=0.0, evaluations=500)
    torch.testing.assert_close(found.theta, torch.ones_like(start), rtol=0, atol=1e-6)


def test_it_takes_about_as_many_evaluations_as_scipys() -> None:
    start = torch.tensor([[-1.2, 1.0]], dtype=torch.float64)

    def one(x: object) -> tuple[float, object]:
        loss, gradient = rosenbrock(torch.as_tensor(x)[None])
        return float(loss), gradient[0].numpy()

    scipys = minimize(one, start[0].numpy(), jac=True, method="L-BFGS-B", options={"gtol": 1e-8, "ftol": 0})
    assert minimise(rosenbrock, start, tolerance=1e-8, flat=0.0).evaluations < 2 * scipys.nfev


def test_a_step_out_of_the_domain_is_shortened_and_harms_no_neighbour() -> None:
    """x − log x is NaN at x ≤ 0, where Newton's step from 9 leads: to 2x − x² = −63."""
    rejected = []

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        rejected.append((theta <= 0).any(1).tolist())
        return (theta - theta.log()).sum(1), torch.where(theta > 0, 1 - 1 / theta, torch.nan)

    start = torch.tensor([[9.0], [1e-3], [0.5]], dtype=torch.float64)
    found = minimise(objective, start, tolerance=1e-9, flat=0.0)
    assert [True, False, False] in rejected, "the case did not arise"
    torch.testing.assert_close(found.theta, torch.ones_like(start), rtol=0, atol=1e-7)
    assert bool(found.converged.all())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_unit_of_the_loss_does_not_matter(scale: float) -> None:
    quadratic, centre = quadratics([100.0, 1.0])

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = quadratic(theta)
        return scale * loss, scale * gradient

    found = minimise(objective, torch.zeros_like(centre), tolerance=1e-8 * scale, flat=0.0)
    torch.testing.assert_close(found.theta, centre, rtol=0, atol=1e-6)
    assert found.evaluations < 60


def test_the_loss_never_rises_and_is_watched_from_the_start() -> None:
    seen: list[tuple[int, Tensor]] = []
    start = torch.tensor([[-1.2, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = minimise(rosenbrock, start, watch=lambda step, theta: seen.append((step, rosenbrock(theta)[0])))
    assert [step for step, _ in seen] == list(range(found.evaluations + 1))
    losses = torch.stack([loss for _, loss in seen])
    assert bool((losses.diff(dim=0) <= 0).all())
    torch.testing.assert_close(losses[-1], found.loss)
    assert bool((losses[:, 1] == 0).all()), "a problem that starts at its minimum stays there"


def test_the_budget_is_kept_and_what_has_not_arrived_says_so() -> None:
    start = torch.tensor([[-1.2, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = minimise(rosenbrock, start, evaluations=5)
    assert found.evaluations == 5
    assert found.converged.tolist() == [False, True]


def test_the_start_is_not_written_to() -> None:
    start = torch.tensor([[-1.2, 1.0]], dtype=torch.float64)
    minimise(rosenbrock, start, evaluations=5)
    assert start.tolist() == [[-1.2, 1.0]]


def test_a_loss_that_is_not_finite_at_the_start_is_refused() -> None:
    with pytest.raises(ValueError, match="is not finite where it starts"):
        minimise(lambda theta: (theta.log().sum(1), 1 / theta), torch.zeros(1, 1))
