"""The solver that fits the shape of a problem, and what came of it.

Shapes: n rows, D features, K classes, M columns of parameters (K, or 1 for a binary model).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from likely._checks import require
from likely.solvers.certificate import Gap
from likely.solvers.collinear import Dependence, dependence, least_norm, row_space
from likely.solvers.conjugate import MOST_GRAM, newton_cg
from likely.solvers.descend import Path, Step
from likely.solvers.limited import lbfgs
from likely.solvers.newton import factored, newton_cholesky, parameters_of
from likely.solvers.passes import gram
from likely.solvers.problem import Problem, as_dense
from likely.solvers.rows import Memory, chain, random_rows
from likely.solvers.separation import Separation, separation

SOLVERS = ("auto", "newton-cholesky", "newton-cg", "lbfgs")
MOST_PARAMETERS, CHEAP_PARAMETERS, CHEAP_PRODUCTS = 4000, 200, 5e9
"""The Hessian is formed up to the first number of parameters, if they are no more than the second or, without a
penalty, where the last step has to be exact, if it takes no more products than the third."""
RUNNING = 0.1
"""A Newton step multiplies the probability that a separated row leaves to what it excludes by 1 − δ with δ near 1.
Where no δ of an exact step is larger than this at the end, no row is on its way."""
MOST_DENSE = 50_000_000
"""Entries of a matrix that is made dense to be decomposed."""
FEW_ROWS = 8192
"""The least number of rows of a first, small problem."""

Start = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Solution:
    """Where a solver ended.

    Attributes:
        coef: (K, D), its columns sum to zero over the classes; (1, D) for a binary model.
        intercept: (K,) or (1,).
        loss: F there, nats, the penalty included.
        gap: an upper bound on F minus its infimum, nats; NaN where there is none.
        conditional: λ = 0 and the bound holds up to residual · distance to the optimum, in standardised columns.
        residual: ρ, the norm of what keeps the dual point from being stationary, in standardised columns.
        certificate: in words, what the gap is or why there is none.
        kl_lower_bound: λ = 0: no linear model on these features is nearer to the targets, nats; else NaN.
        n_iter: Newton steps, at least 1.
        solver: the one that was used.
        history: the way there.
        warnings: what the user should know.
        separable: λ = 0 and some direction lowers the loss for ever: there is no maximum likelihood estimate.
        collinear: columns that repeat combinations of others; constant: columns that do not vary.
        separation: the direction, where it was found.
        hessian: None; `likely.solvers.newton.hessian` forms it.
    """

    coef: np.ndarray
    intercept: np.ndarray
    loss: float
    gap: float
    conditional: bool
    residual: float
    certificate: str
    kl_lower_bound: float
    n_iter: int
    converged: bool
    solver: str
    history: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    separable: bool = False
    collinear: list[int] = field(default_factory=list)
    constant: list[int] = field(default_factory=list)
    separation: Separation | None = None
    hessian: np.ndarray | None = None


def solve(
    problem: Problem,
    penalty: float = 0.0,
    *,
    solver: str = "auto",
    tol: float = 1e-8,
    max_iter: int = 200,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    random_state: int | np.random.Generator | None = None,
    callback: Callable[[Step], object] | None = None,
) -> Solution:
    """Minimise `F(W, b)` of `likely.solvers.problem` until its certified gap is at most `tol` nats.

    Args:
        penalty: λ ≥ 0.
        solver: one of `SOLVERS`.
        tol: on the gap, nats.
        start: coefficients (M, D) and intercepts (M,) to begin from; by default zero and the classes' frequencies.
        random_state: seeds the choice of the rows of a first, small problem; 0 by default.
        callback: called with each `Step`.

    Raises: ValueError for an unknown solver or a penalty that is negative or not finite.

    >>> x, y = np.array([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]]), np.array([0, 0, 1, 0, 1, 1])
    >>> found = solve(Problem.make(x, y, classes=2, binary=True))
    >>> found.converged, found.coef.round(4), found.intercept.round(4)    # log 4 and log(1/2)
    (True, array([[1.3863]]), array([-0.6931]))
    """
    require(solver in SOLVERS, f"solver: is {solver!r}; it is one of {', '.join(SOLVERS)}")
    require(penalty >= 0 and np.isfinite(penalty), f"penalty: is {penalty}; it is a finite number, at least 0")
    began = time.perf_counter()
    rng = np.random.default_rng(0 if random_state is None else random_state)
    how = {"tol": tol, "max_iter": max_iter, "began": began, "report": callback or (lambda step: None)}
    absent = problem.absent()
    if absent is not None:
        return _without(problem, absent, penalty, solver, start, rng, how)
    small = isinstance(problem.source, Memory) and problem.n * problem.D <= MOST_DENSE
    if penalty == 0 and problem.n <= problem.D and small and start is None:
        return _in_row_space(problem, solver, rng, how)
    return _solve(problem, penalty, solver, start, rng, how)


def _solve(
    problem: Problem, penalty: float, solver: str, start: Start | None, rng: np.random.Generator, how: dict[str, Any]
) -> Solution:
    warnings = []
    constant = np.flatnonzero(problem.constant).tolist()
    if constant:
        warnings.append(_still(constant))
    theta = first_theta(problem) if start is None else problem.to_standard(*start)
    if not problem.binary:
        theta = theta - theta.mean(axis=1, keepdims=True)
    chosen = solver == "auto"
    if chosen:
        solver = choose(problem, penalty)
    inverse, found = problem.inverse.copy(), None
    few = _few(problem, rng) if start is None else None
    if penalty == 0:
        if problem.n <= problem.D:
            warnings.append(
                f"{problem.n} rows do not determine {problem.D} columns without a penalty: "
                "the coefficients are not unique"
            )
        # What is independent on some of the rows is so on all of them.
        if few is None or look_for_dependence(few) is not None:
            found = look_for_dependence(problem)
        if found is not None:
            told = "; ".join(found.sentences())
            warnings.append(f"{told}: of the coefficients that fit equally well, those of least norm are given")
            theta = _onto_basis(theta, found)
            problem.drop(found.columns)
    try:
        known: dict[str, Any] = {}
        if few is not None:
            theta, known = _first_on_few(problem, few, penalty, solver, theta, rng)
        path = _descend(problem, penalty, solver, theta, rng, {**how, **known})
        left = how["max_iter"] - path.iterations
        formed = chosen and solver != "newton-cholesky" and parameters_of(problem) <= MOST_PARAMETERS
        if formed and not path.converged and left > 0:
            # Conjugate gradients came to the end of float64; a factor of the whole Hessian goes on.
            solver, before = "newton-cholesky", path
            path = _descend(problem, penalty, solver, path.theta, rng, {**how, "max_iter": left})
            path.history[:0] = before.history
            path.iterations += before.iterations
    finally:
        problem.inverse = inverse
    theta = path.theta
    if not problem.binary:
        theta = theta - theta.mean(axis=1, keepdims=True)
    if found is not None:
        theta = least_norm(theta, inverse, found)
    coef, intercept = problem.from_standard(theta)
    apart, separable = None, False
    if penalty == 0 and path.largest > RUNNING:
        apart, separable = _diagnose(problem, coef, intercept, path)
    if separable:
        what = "the classes are separable" if apart is None else _told(apart)
        warnings.append(
            f"{what}: there is no maximum likelihood estimate, the coefficients grow for ever; "
            "use a penalty or label smoothing"
        )
    if not path.converged:
        why = path.message or "the gap has not been certified"
        warnings.append(f"not converged: {why} (tol = {tol_of(how):g} nats); raise max_iter or tol")
    gap = path.gap
    bound = max(0.0, path.value.loss - gap.gap - problem.entropy) if penalty == 0 else float("nan")
    return Solution(
        coef,
        intercept,
        path.value.loss,
        gap.gap,
        gap.conditional,
        gap.residual,
        words(gap, penalty),
        bound,
        max(1, path.iterations),
        path.converged,
        solver,
        path.history,
        warnings,
        separable,
        [] if found is None else found.columns.tolist(),
        constant,
        apart,
    )


def _in_row_space(problem: Problem, solver: str, rng: np.random.Generator, how: dict[str, Any]) -> Solution:
    """Fewer rows than columns and no penalty: the fit in coordinates of the rows' span, and the least norm of it."""
    source = problem.source
    assert isinstance(source, Memory)
    x = np.vstack([as_dense(problem.features(block)) for block in chain(source)])
    space = row_space((x - problem.centre) * problem.inverse, source.weight)
    inner = Memory(space.coordinates, source.target, source.weight, source.offset)
    reduced = Problem(inner, problem.K, problem.binary, problem.intercept, problem.smoothing, problem.total)
    found = _solve(reduced, 0.0, solver, None, rng, how)
    coef, intercept = problem.from_standard(space.theta(found.coef, found.intercept, problem.scale))
    apart = found.separation
    if apart is not None:
        apart = separation(source.x, source.target, source.weight, coef, intercept, gap=max(found.gap, 1e-9))
    warnings = [
        f"{problem.n} rows do not determine {problem.D} columns without a penalty: "
        "of the coefficients that fit equally well, those of least norm are given",
        *found.warnings,
    ]
    constant = np.flatnonzero(problem.constant).tolist()
    if constant:
        warnings.insert(0, _still(constant))
    return replace(
        found, coef=coef, intercept=intercept, warnings=warnings, separation=apart, constant=constant, collinear=[]
    )


def _still(constant: list[int]) -> str:
    return f"{_named('column', constant)}: without variation the coefficient is 0"


def tol_of(how: dict[str, Any]) -> float:
    return float(how["tol"])


def choose(problem: Problem, penalty: float) -> str:
    """Newton with a Cholesky factor where the Hessian is cheap; beyond, L-BFGS for two classes of dense rows with a
    penalty, where its metric is so near the Hessian that a step does what a product does; else conjugate gradients."""
    parameters = parameters_of(problem)
    cheap = parameters <= CHEAP_PARAMETERS or (penalty == 0 and problem.n * parameters**2 <= CHEAP_PRODUCTS)
    if parameters <= MOST_PARAMETERS and cheap:
        return "newton-cholesky"
    near = problem.binary and not problem.sparse and problem.D <= MOST_GRAM and problem.n >= 4 * problem.D
    return "lbfgs" if near and penalty > 0 else "newton-cg"


def _descend(
    problem: Problem, penalty: float, solver: str, theta: np.ndarray, rng: np.random.Generator, how: dict[str, Any]
) -> Path:
    if solver == "newton-cholesky":
        return newton_cholesky(problem, penalty, theta, **how)
    if solver == "lbfgs":
        return lbfgs(problem, penalty, theta, rng, **how)
    return newton_cg(problem, penalty, theta, rng, **how)


def _few(problem: Problem, rng: np.random.Generator) -> Problem | None:
    """Some of the rows, where there are many more of them than parameters."""
    many = max(FEW_ROWS, 20 * parameters_of(problem), problem.n // 25)
    if not isinstance(problem.source, Memory) or problem.n < 8 * many:
        return None
    few = problem.subset(random_rows(problem.n, many, rng))
    lost = np.any(few.masses <= 0) or np.any(few.constant & ~problem.constant)
    return None if lost else few


def _first_on_few(
    problem: Problem, few: Problem, penalty: float, solver: str, theta: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any]]:
    """θ fitted to some of the rows, and what they tell of the objective there; it is polished on all of them, which
    need not be like these."""
    # The optimum on so few rows is that far from the one on all: there is no use in coming nearer.
    enough = 0.02 * parameters_of(problem) / few.n
    start = few.to_standard(*problem.from_standard(theta))
    few.drop(problem.inverse == 0)
    path = _descend(few, penalty, solver, start, rng, {"tol": enough, "max_iter": 20, "enough": enough})
    moved = problem.to_standard(*few.from_standard(path.theta))
    if not np.isfinite(moved).all():
        return theta, {}
    known: dict[str, Any] = {"bend": path.bend}
    if solver == "newton-cholesky":
        assert isinstance(few.source, Memory)
        some = problem.on(few.source)
        # Of the curvature of so many random rows the relative error is about √(parameters / rows).
        known |= {"start": factored(problem, moved, penalty, some), "rate": 4 * parameters_of(problem) / few.n}
    return moved, known


def look_for_dependence(problem: Problem) -> Dependence | None:
    if problem.D > MOST_GRAM or problem.D == 0:
        return None
    used = np.flatnonzero(problem.inverse > 0)
    return dependence(gram(problem, lambda block: block.weight)[:-1, :-1], used)


def _onto_basis(theta: np.ndarray, found: Dependence) -> np.ndarray:
    """The same logits without the dependent columns."""
    out = theta.copy()
    out[found.basis] += found.relation @ theta[found.columns]
    out[found.columns] = 0
    return out


def _diagnose(problem: Problem, coef: np.ndarray, intercept: np.ndarray, path: Path) -> tuple[Separation | None, bool]:
    """The separating direction, and whether there is one as far as can be told."""
    excess = path.value.loss - problem.entropy
    if isinstance(problem.source, Memory):
        source = problem.source
        found = (
            separation(
                source.x,
                source.target,
                source.weight,
                coef,
                intercept,
                gap=max(path.gap.gap, 0.0),
                fit_intercept=problem.intercept,
            )
            if problem.smoothing == 0
            else None
        )
        return found, found is not None
    return None, problem.entropy == 0 and excess <= np.log(2) / (2 * problem.n)


def _told(found: Separation) -> str:
    if found.complete:
        return "the classes are completely separated by the features"
    return (
        f"the classes of {len(found.rows)} rows are separated (quasi-completely) by {_named('column', found.features)}"
    )


def _named(noun: str, which: Sequence[int]) -> str:
    names = ", ".join(map(str, which[:10])) + (", …" if len(which) > 10 else "")
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{noun if len(which) == 1 else plural} {names}"


def words(gap: Gap, penalty: float) -> str:
    """What the gap means."""
    if gap.kind == "entropy":
        return "the loss minus the entropy of the targets: no model at all does better than that"
    if penalty > 0:
        point = "of a Newton step" if gap.kind == "newton" else "of the fitted probabilities"
        return f"certified by the dual point {point}: the loss is at most this far above its minimum"
    return (
        f"certified by the dual point of a Newton step, conditionally: up to {gap.residual:.1e} "
        "(the residual of its stationarity) times the distance to the optimum in standardised columns"
    )


def _without(
    problem: Problem,
    absent: np.ndarray,
    penalty: float,
    solver: str,
    start: Start | None,
    rng: np.random.Generator,
    how: dict[str, Any],
) -> Solution:
    """Classes without mass have an infimum at probability 0: the others are fitted, and theirs put far below."""
    present = np.setdiff1d(np.arange(problem.K), absent)
    some = problem.of_classes(present)
    if start is not None:
        start = (start[0][present], start[1][present])
    found = _solve(some, penalty, solver, start, rng, how)
    coef, intercept = np.zeros((problem.K, problem.D)), np.zeros(problem.K)
    coef[present], intercept[present] = found.coef, found.intercept
    theta = some.to_standard(found.coef, found.intercept)
    # Below every logit of the others by so much that the loss does not notice.
    lowest = float(theta[-1].min() - 10 * np.abs(theta[:-1]).sum(axis=0).max()) - 40
    intercept[absent] = max(lowest, -1e6)
    intercept -= intercept.mean()
    note = f"{_named('class', absent.tolist())} without mass in the target: the infimum is at probability 0, "
    note += "and the intercept stands far below the others"
    return replace(found, coef=coef, intercept=intercept, warnings=[note, *found.warnings])


def first_theta(problem: Problem) -> np.ndarray:
    """Coefficients of zero, and intercepts that give the classes their frequencies where nothing speaks against it."""
    theta = np.zeros((problem.D + 1, problem.M))
    if problem.intercept and np.all(problem.masses > 0) and np.all(np.asarray(problem.offset_mean) == 0):
        log = np.log(problem.masses)
        theta[-1] = log[1] - log[0] if problem.binary else log - log.mean()
    return theta
