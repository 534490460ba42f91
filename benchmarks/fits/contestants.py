"""Who fits: `likely`, scikit-learn's solvers, and the other packages where they solve the same problem.

A contestant is a function of a problem and a tolerance that fits from zero and gives coefficients and intercepts.  It
has a ladder of tolerances, loosest first; the time to an accuracy is that of the first rung that reaches it.

Labels and probabilities: who takes class indices only gets every row repeated K times, with the probabilities as
weights (rows of weight 0 left out).  Repeating is a part of the fit: its user has to do it.

scikit-learn's objective is `C Σ loss + ½ ‖W‖²`; with `C = 1/(λ n)` it is ours, and the intercept is penalised in
neither.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from benchmarks.fits.problems import Problem, Spec

Fitted = tuple[np.ndarray, np.ndarray]
LADDER = tuple(10.0**-k for k in range(2, 14))
NO_LIMIT = 1_000_000
LARGEST = 12 * 2**30
"""Bytes of repeated rows beyond which the workaround is not tried."""


@dataclass(frozen=True)
class Contestant:
    """`refuses(spec)` is the reason why it does not solve a problem, or None."""

    name: str
    fit: Callable[[Problem, float], Fitted]
    refuses: Callable[[Spec], str | None] = lambda spec: None
    ladder: Sequence[float] = LADDER
    needs: str | None = None


def repeated(problem: Problem) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """X, labels and weights: with probabilities every row K times."""
    if not problem.soft:
        return problem.x, problem.target, None
    rows, labels = np.nonzero(problem.target)
    return problem.x[rows], labels, problem.target[rows, labels]


def too_large(spec: Spec) -> str | None:
    entries = 60 if spec.kind in ("sparse", "votes") else spec.D
    size = spec.n * spec.K * entries * 8
    return f"its rows repeated K times would need {size / 2**30:.0f} GiB" if spec.soft and size > LARGEST else None


# ------------------------------------------------------------------------------------------------------- likely


def ours(problem: Problem, tol: float) -> Fitted:
    import likely

    kind = likely.LogisticRegression if problem.binary else likely.SoftmaxRegression
    model = kind(penalty_strength=problem.penalty, fit_intercept=problem.spec.intercept, tol=tol)
    model.fit(problem.x, problem.target, covariance="none")
    return model.coef_, model.intercept_


# ------------------------------------------------------------------------------------------------- scikit-learn


def sklearn(solver: str, **keywords: Any) -> Callable[[Problem, float], Fitted]:
    def fit(problem: Problem, tol: float) -> Fitted:
        from sklearn.linear_model import LogisticRegression

        x, y, weight = repeated(problem)
        # The rows of weight 1 that the repeated ones make up are those of the problem: n counts them once.
        strength = 1 / (problem.penalty * problem.x.shape[0]) if problem.penalty else np.inf
        model = LogisticRegression(
            C=strength,
            solver=solver,
            tol=tol,
            max_iter=NO_LIMIT,
            fit_intercept=problem.spec.intercept,
            random_state=0,
            **keywords,
        )
        model.fit(x, y, sample_weight=weight)
        return model.coef_, model.intercept_ if problem.spec.intercept else np.zeros(len(model.coef_))

    return fit


def no_cholesky(spec: Spec) -> str | None:
    parameters = spec.D * (1 if spec.binary else spec.K)
    size = 8 * parameters**2
    return too_large(spec) or (f"its Hessian would need {size / 2**30:.0f} GiB" if size > LARGEST else None)


def no_liblinear(spec: Spec) -> str | None:
    if not spec.binary:
        return "is binary"
    return "penalises the intercept" if spec.intercept else too_large(spec)


# ------------------------------------------------------------------------------------------------------- others


def statsmodels(problem: Problem, tol: float) -> Fitted:
    import statsmodels.api as sm

    x = np.column_stack([problem.x, np.ones(problem.x.shape[0])])
    if problem.binary:
        target = problem.target[:, 1] if problem.soft else problem.target
        found = sm.GLM(target, x, family=sm.families.Binomial()).fit(tol=tol, maxiter=1000)
        return found.params[None, :-1], found.params[-1:]
    found = sm.MNLogit(problem.target, x).fit(method="newton", tol=tol, maxiter=1000, disp=False)
    w = np.column_stack([np.zeros(x.shape[1]), np.asarray(found.params)])
    return w[:-1].T, w[-1]


def no_statsmodels(spec: Spec) -> str | None:
    if spec.strength > 0:
        return "has no Newton fit with a penalty that spares the intercept"
    return "takes labels where there are more than two classes" if spec.soft and not spec.binary else None


def glum(problem: Problem, tol: float) -> Fitted:
    from glum import GeneralizedLinearRegressor

    target = problem.target[:, 1] if problem.soft else problem.target.astype(np.float64)
    model = GeneralizedLinearRegressor(
        family="binomial",
        alpha=problem.penalty,
        l1_ratio=0,
        fit_intercept=problem.spec.intercept,
        gradient_tol=tol,
        max_iter=1000,
    )
    model.fit(problem.x, target)
    return np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)


def snapml(problem: Problem, tol: float) -> Fitted:
    from snapml import LogisticRegression

    model = LogisticRegression(
        regularizer=problem.penalty * problem.x.shape[0],
        fit_intercept=False,
        dual=True,
        tol=tol,
        max_iter=10_000,
        n_jobs=threads(),
        random_state=0,
    )
    model.fit(problem.x, problem.target)
    return np.atleast_2d(np.asarray(model.coef_, np.float64)), np.zeros(1)


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def no_snapml(spec: Spec) -> str | None:
    if not spec.binary:
        return "fits one class against the rest, which is another problem"
    if spec.intercept:
        return "penalises the intercept"
    return "takes no weights for the rows" if spec.soft else None


def skglm(problem: Problem, tol: float) -> Fitted:
    from skglm import GeneralizedLinearEstimator
    from skglm.datafits import Logistic
    from skglm.penalties import L2
    from skglm.solvers import LBFGS

    solver = LBFGS(max_iter=NO_LIMIT, tol=tol)
    solver.fit_intercept = solver.warm_start = False  # the estimator asks for them, and the solver has none
    model = GeneralizedLinearEstimator(Logistic(), L2(problem.penalty), solver)
    x = scipy.sparse.csc_matrix(problem.x) if problem.sparse else problem.x
    model.fit(x, problem.target)
    return np.atleast_2d(model.coef_), np.zeros(1)


def no_skglm(spec: Spec) -> str | None:
    if not spec.binary:
        return "has no multinomial"
    if spec.intercept:
        return "its solver of this problem (LBFGS) fits no intercept"
    return "takes no weights for the rows" if spec.soft else None


def adelie(problem: Problem, tol: float) -> Fitted:
    import adelie as ad

    K = problem.classes
    if problem.binary:
        target = problem.target[:, 1] if problem.soft else problem.target.astype(np.float64)
        glm, strength = ad.glm.binomial(np.ascontiguousarray(target)), problem.penalty
    else:
        full = problem.target if problem.soft else np.eye(K)[problem.target]
        # Its multinomial loss is divided by K.
        glm, strength = ad.glm.multinomial(np.asfortranarray(full)), problem.penalty / K
    x = problem.x if problem.sparse else np.asfortranarray(problem.x)
    if problem.sparse:
        x = ad.matrix.sparse(scipy.sparse.csc_matrix(x), method="naive", n_threads=threads())
    state = ad.grpnet(
        x,
        glm,
        alpha=0,
        lmda_path=[strength],
        intercept=problem.spec.intercept,
        early_exit=False,
        tol=tol,
        irls_tol=tol,
        n_threads=threads(),
        progress_bar=False,
    )
    coef = np.asarray(state.betas[-1].toarray()).reshape(-1)
    intercept = np.atleast_1d(np.asarray(state.intercepts[-1], np.float64))
    if problem.binary:
        return coef[None], intercept
    return coef.reshape(-1, K).T.copy(), intercept


def quiet(fit: Callable[[Problem, float], Fitted]) -> Callable[[Problem, float], Fitted]:
    def run(problem: Problem, tol: float) -> Fitted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fit(problem, tol)

    return run


OURS = "likely"
ALL = {
    one.name: one
    for one in [
        Contestant(OURS, ours),
        Contestant("sklearn lbfgs", sklearn("lbfgs"), too_large),
        Contestant("sklearn newton-cholesky", sklearn("newton-cholesky"), no_cholesky),
        Contestant("sklearn newton-cg", sklearn("newton-cg"), too_large),
        Contestant("sklearn liblinear", sklearn("liblinear"), no_liblinear),
        Contestant("sklearn liblinear dual", sklearn("liblinear", dual=True), no_liblinear),
        Contestant("statsmodels", statsmodels, no_statsmodels, needs="statsmodels"),
        Contestant("glum", glum, lambda spec: None if spec.binary else "has no multinomial", needs="glum"),
        Contestant("snapml", snapml, no_snapml, needs="snapml"),
        Contestant("skglm", skglm, no_skglm, needs="skglm"),
        Contestant("adelie", adelie, needs="adelie"),
    ]
}
