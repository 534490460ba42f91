"""Binary logistic and softmax regression by limited-memory BFGS, and an answer to whether it arrived.

Shapes: N rows, C classes, D features; the parameters have one row for each class, or a single one for two classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.optimize
import torch

from likely._checks import require, require_rows
from likely.heads import Binary, Head, Linear
from likely.objective import Term, objective

if TYPE_CHECKING:
    from likely.targets import Target

FunctionAndGradient = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where a minimisation ended: `x`, the value there, `gradient` = max |∂f/∂x|, and whether that is small enough."""

    x: np.ndarray
    value: float
    gradient: float
    iterations: int
    converged: bool
    message: str


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A fitted linear classifier, `z = x · weightᵀ + bias`, and the minimisation that it came from.

    `weight` is (C, D) and `bias` (C,); for a binary fit (1, D) and (1,), the log odds of the second class.
    """

    weight: np.ndarray
    bias: np.ndarray
    minimum: Minimum

    @property
    def converged(self) -> bool:
        return self.minimum.converged

    def logits(self, x_ND: np.ndarray) -> np.ndarray:
        """The (N, C) logits of rows."""
        z = x_ND @ self.weight.T + self.bias
        return z if len(self.bias) > 1 else np.concatenate([np.zeros_like(z), z], axis=1)


def minimise(
    function: FunctionAndGradient, x0: np.ndarray, *, tolerance: float = 1e-8, max_iterations: int = 2000
) -> Minimum:
    """Minimise a smooth function from its value and gradient; converged means `max |∂f/∂x| ≤ tolerance`.

    The line search fails when the function no longer changes in float64 while the gradient still does. Then the
    remembered curvature is dropped and the descent goes on from where it is, as long as the gradient shrinks.

    Raises: ValueError where the function is not finite at its start.
    Source: Liu and Nocedal, On the limited memory BFGS method (1989), as in `scipy.optimize.minimize`.

    >>> found = minimise(lambda x: (float(((x - 3) ** 2).sum()), 2 * (x - 3)), np.zeros(2))
    >>> found.converged, found.x.round(6)
    (True, array([3., 3.]))
    """
    value, gradient = function(np.asarray(x0, dtype=np.float64))
    require(bool(np.isfinite(value)), "objective: is not finite where it starts; rescale features that are huge")
    x, size, iterations, message = np.asarray(x0, dtype=np.float64), float(np.abs(gradient).max()), 0, "at the start"
    while size > tolerance and iterations < max_iterations:
        options = {"maxcor": 30, "ftol": 0.0, "gtol": tolerance, "maxiter": max_iterations - iterations}
        options |= {"maxfun": 10 * max_iterations, "maxls": 50}
        result = scipy.optimize.minimize(function, x, jac=True, method="L-BFGS-B", options=options)
        iterations += int(result.nit)
        smaller = float(np.abs(result.jac).max()) < 0.5 * size
        if result.fun <= value:
            x, value, size = result.x, float(result.fun), float(np.abs(result.jac).max())
        message = str(result.message)
        if not smaller or result.nit == 0:
            break
    return Minimum(x, value, size, iterations, size <= tolerance, message)


def fit_linear(
    x_ND: np.ndarray,
    target: Target,
    *,
    binary: bool = False,
    penalty: float = 0.0,
    tolerance: float = 1e-8,
    max_iterations: int = 2000,
) -> LinearFit:
    """The linear classifier that minimises `mean cross-entropy + penalty/2 · ‖weight‖²` (biases go free), in nats.

    The mean is weighted by the rows' weights. Without a penalty this is the maximum likelihood estimate, if there is
    one. (In scikit-learn's terms `C = 1 / (N · penalty)`.) The columns are standardised inside and the coefficients
    carried back, so that neither the path nor the tolerance depends on the units; the penalty is still that of
    `weight` as it is returned. The descent starts at zero, so that the rows of a softmax's weight sum to zero.

    Args:
        x_ND: (N, D) finite numbers.
        target: of N rows and C classes.
        binary: one row of parameters instead of two; needs C = 2.
        penalty: λ ≥ 0.
        tolerance: on the largest derivative of the objective in the standardised columns.

    Raises: ValueError for shapes that do not fit or a negative penalty.
    Source: Hastie, Tibshirani and Friedman, The Elements of Statistical Learning (2009), section 4.4.

    >>> import likely
    >>> x, y = np.array([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]]), np.array([0, 0, 1, 0, 1, 1])
    >>> fit = fit_linear(x, likely.labels(y, 2), binary=True)
    >>> fit.converged, fit.bias.round(4), fit.weight.round(4)    # log(1/2), and log 2 − log(1/2)
    (True, array([-0.6931]), array([[1.3863]]))
    """
    require_rows("x", len(x_ND), target.rows, "target")
    require(not binary or target.classes == 2, f"binary: the target has {target.classes} classes, not two")
    require(penalty >= 0 and np.isfinite(penalty), f"penalty: is {penalty}; it is a finite number, at least 0")
    mean_D, scale_D = x_ND.mean(axis=0), x_ND.std(axis=0)
    scale_D = np.where(scale_D > 1e-12 * np.abs(mean_D), scale_D, 1.0)
    x = torch.from_numpy((x_ND - mean_D) / scale_D)
    scale = torch.from_numpy(scale_D)
    rows, D = 1 if binary else target.classes, x_ND.shape[1]

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.from_numpy(flat.reshape(rows, D + 1).copy()).requires_grad_()
        weight, bias = theta[:, :D], theta[:, D]
        head: Head = Binary(x @ weight[0] + bias) if binary else Linear(x, weight, bias)
        loss, _ = objective(head, [Term(target)])
        if penalty:
            loss = loss + penalty / 2 * (weight / scale).square().sum()
        loss.backward()
        assert theta.grad is not None
        return float(loss.detach()), theta.grad.numpy().reshape(-1)

    minimum = minimise(function, np.zeros(rows * (D + 1)), tolerance=tolerance, max_iterations=max_iterations)
    theta = minimum.x.reshape(rows, D + 1)
    weight = theta[:, :D] / scale_D
    return LinearFit(weight, theta[:, D] - weight @ mean_D, minimum)
