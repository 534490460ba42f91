"""What logistic and softmax regression share: scikit-learn's interface on the solvers' statistics.

Shapes: n rows, D features, K classes, M columns of parameters (K, or 1 for a binary model).
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import scipy.sparse
import scipy.special
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from likely._checks import require, require_rows
from likely.estimators import inference, rows, targets
from likely.estimators.notices import notices, read_separation
from likely.forms import Target
from likely.heads import Binary, Logits
from likely.objective import nll
from likely.score import Score
from likely.solvers.solve import SOLVERS, Solution, Step, solve
from likely.targets import labels, probabilities

if TYPE_CHECKING:
    from likely.estimators.selection import CrossValidation, PenaltyPath
    from likely.estimators.summary import Summary

# A block of logits of so many rows, so that float32 features are widened a block at a time.
PREDICT_ROWS = 4096


class LinearClassifier(ClassifierMixin, BaseEstimator):
    """The base of `LogisticRegression` and `SoftmaxRegression`, which document the parameters."""

    _binary: ClassVar[bool]
    # Groups concern standard errors: a splitter's groups are not taken for them unless that is asked for.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {
        "groups": False,
        "covariance": False,
        "weights": False,
        "offset": False,
    }

    def __init__(
        self,
        *,
        penalty_strength: float = 0.0,
        C: float | None = None,
        fit_intercept: bool = True,
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        classes: Sequence[Any] | None = None,
        solver: str = "auto",
        tol: float = 1e-8,
        max_iter: int = 500,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
        device: Any = None,
    ) -> None:
        self.penalty_strength = penalty_strength
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.classes = classes
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        offset: Any = None,
        *,
        groups: Any = None,
        covariance: str | None = None,
        weights: str = "frequency",
    ) -> Self:
        """Minimise `weighted mean cross-entropy + λ/2 ‖coef‖²` until its certified gap is at most `tol` nats.

        Args:
            X: (n, D) features: NumPy, SciPy sparse, pandas, polars or torch, in float32 or float64. Or a stream: an
                iterable of blocks `(X, y[, weight[, offset]])` that can be iterated again, a function that returns
                one, or the path of Parquet shards; then `y` is None, for shards the name of its column or columns.
            y: (n,) labels, (n, K) probabilities, or a `likely` Target (a teacher among them).
            sample_weight: (n,) at least 0.
            offset: what is added to the logits and not fitted: (n,) log odds of the second class for
                LogisticRegression, (n, K) for SoftmaxRegression. Predictions take an `offset` of their own.
            groups: (n,) what belongs together (a patient, a document): standard errors are then clustered.
            covariance: what standard errors come from: "fisher" (the default for labels), "sandwich" (the default for
                distributions, for groups and for sampling weights), "none". Without a word it is left out where it
                would take longer than a moment.
            weights: what the weights are: "frequency", so many rows alike, or "sampling", inverse probabilities of
                being in the sample.

        Returns: self.

        Raises: ValueError naming the argument, the row and the fix.

        Warns: SeparationWarning, CollinearityWarning, scikit-learn's ConvergenceWarning.
        """
        self._check_parameters()
        inference.check_request(covariance, weights, groups)
        data = rows.read_rows(self, X, y, sample_weight, offset, binary=self._binary)
        group_n = inference.read_groups(groups, data)
        penalty = self._penalty(data.total)
        names = getattr(self, "feature_names_in_", None)
        problem = data.problem(binary=self._binary, intercept=self.fit_intercept, names=names)
        start = self._start(data) if self.warm_start else None
        solution = solve(
            problem,
            penalty,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_iter,
            start=start,
            random_state=self._seed(),
            callback=progress if self.verbose else None,
        )
        if self.verbose:
            print(file=sys.stderr)
        self._keep(data, problem.entropy, penalty, solution)
        self._warn(data, solution)
        self._inference = inference.infer(
            data, problem, solution, penalty, group_n=group_n, covariance=covariance, weights=weights
        )
        return self

    def _check_parameters(self) -> None:
        def number(name: str, low: float, high: float = math.inf, *, whole: bool = False, open_: bool = False) -> None:
            value = getattr(self, name)
            kind: Any = Integral if whole else Real
            fits = isinstance(value, kind) and not isinstance(value, bool | np.bool_)
            fits = fits and (low < value if open_ else low <= value) and value <= high
            bounds = f"{'more than' if open_ else 'at least'} {low}" + ("" if high == math.inf else f", at most {high}")
            require(fits, f"{name}: is {value!r}; it is {'a whole number' if whole else 'a number'}, {bounds}")

        number("penalty_strength", 0.0, sys.float_info.max)
        if self.C is not None:
            number("C", 0.0, open_=True)
            require(self.penalty_strength == 0, "C: says the same as penalty_strength; give one of them")
        number("label_smoothing", 0.0, 1.0)
        number("tol", 0.0)
        number("max_iter", 1, whole=True)
        for name in ("fit_intercept", "warm_start"):
            value = getattr(self, name)
            require(isinstance(value, bool | np.bool_), f"{name}: is {value!r}; it is True or False")
        require(
            isinstance(self.solver, str) and self.solver in SOLVERS,
            f"solver: is {self.solver!r}; it is one of {', '.join(SOLVERS)}",
        )
        require(
            self.device is None or torch.device(self.device).type == "cpu",
            f"device: is {self.device!r}; these solvers compute on the CPU (tensors elsewhere are copied there)",
        )

    def _penalty(self, total: float) -> float:
        """λ: as given, or `1 / (C · Σ weights)`."""
        return float(self.penalty_strength) if self.C is None else 1.0 / (float(self.C) * total)

    def _seed(self) -> Any:
        state = self.random_state
        if isinstance(state, np.random.RandomState):
            return int(state.randint(2**31 - 1))
        return state

    def _start(self, data: rows.Rows) -> tuple[np.ndarray, np.ndarray] | None:
        coef = getattr(self, "coef_", None)
        shape = (1 if self._binary else data.K, data.D)
        if coef is None or coef.shape != shape or not np.array_equal(self.classes_, data.classes):
            return None
        return coef, self.intercept_

    def _keep(self, data: rows.Rows, entropy: float, penalty: float, found: Solution) -> None:
        self.classes_ = data.classes
        self.coef_, self.intercept_ = found.coef, found.intercept
        self.n_iter_ = max(1, found.n_iter)
        self.penalty_ = penalty
        self.loss_, self.gap_ = float(found.loss), float(found.gap)
        self.cross_entropy_ = self.loss_ - penalty / 2 * float((found.coef**2).sum())
        self.entropy_ = float(entropy)
        self.kl_ = self.cross_entropy_ - self.entropy_
        self.kl_lower_bound_ = float(found.kl_lower_bound)
        self.certificate_ = found.certificate
        self.residual_ = float(found.residual)
        self.solver_, self.converged_, self.separable_ = found.solver, bool(found.converged), bool(found.separable)
        self.history_ = np.array([[s.iteration, s.loss, s.gap, s.seconds] for s in found.history]).reshape(-1, 4)

    def _warn(self, data: rows.Rows, found: Solution) -> None:
        names = self._feature_names()
        self.separation_ = read_separation(found, data.kept, names, self._binary)
        self.warnings_ = []
        for kind, text in notices(found, self.separation_, names, data.classes.tolist()):
            self.warnings_.append(text)
            warnings.warn(text, kind, stacklevel=3)

    def _feature_names(self) -> list[str]:
        names = getattr(self, "feature_names_in_", None)
        return [f"x{j}" for j in range(self.n_features_in_)] if names is None else [str(name) for name in names]

    # ---------------------------------------------------------------------------------------------- predictions

    def _logits(self, X: Any, offset: Any = None) -> np.ndarray:
        """(n, M): the logits, or the log odds of the second class."""
        check_is_fitted(self)
        X = rows.read_features(self, X, reset=False)
        n, M = X.shape[0], len(self.coef_)
        if scipy.sparse.issparse(X) or X.dtype == np.float64:
            z = np.asarray(X @ self.coef_.T, dtype=np.float64)
        else:
            z = np.empty((n, M))
            for at in range(0, n, PREDICT_ROWS):
                np.matmul(X[at : at + PREDICT_ROWS].astype(np.float64), self.coef_.T, out=z[at : at + PREDICT_ROWS])
        z += self.intercept_
        add = rows.read_offset(offset, n, len(self.classes_), self._binary)
        return z if add is None else z + add.reshape(n, M)

    def decision_function(self, X: Any, offset: Any = None) -> np.ndarray:
        """The logits (n, K), whose largest is predicted; for two classes the log odds of the second, (n,)."""
        z = self._logits(X, offset)
        if z.shape[1] > 2:
            return z
        return z[:, 0] if z.shape[1] == 1 else z[:, 1] - z[:, 0]

    def predict(self, X: Any, offset: Any = None) -> np.ndarray:
        """The most probable class of each row, (n,)."""
        z = self.decision_function(X, offset)
        return self.classes_[(z > 0).astype(np.int64) if z.ndim == 1 else z.argmax(axis=1)]

    def predict_proba(self, X: Any, offset: Any = None) -> np.ndarray:
        """The probabilities (n, K) of the classes, in the order of `classes_`."""
        z = self.decision_function(X, offset)
        if z.ndim == 1:
            return np.stack([scipy.special.expit(-z), scipy.special.expit(z)], axis=1)
        return scipy.special.softmax(z, axis=1)

    def predict_log_proba(self, X: Any, offset: Any = None) -> np.ndarray:
        """The log-probabilities (n, K) in nats, exact where the probability itself is 0 in floating point."""
        z = self.decision_function(X, offset)
        if z.ndim == 1:
            return np.stack([scipy.special.log_expit(-z), scipy.special.log_expit(z)], axis=1)
        return scipy.special.log_softmax(z, axis=1)

    def cross_entropy(self, X: Any, y: Any, sample_weight: Any = None, offset: Any = None) -> Score:
        """How the predictions score on other rows: `cross_entropy = entropy + kl` of each row, in nats.

        Args:
            y: labels among `classes_`, probabilities in their order, or a `likely` Target.
            sample_weight: (n,), weights of the rows in means.

        Returns: a Score; `.mean()` and `.estimate()` (with standard errors) make it one number.

        Raises: ValueError for a label that is no class, naming the row.
        """
        z = torch.from_numpy(self._logits(X, offset))
        head = Binary(z[:, 0]) if self._binary else Logits(z)
        n, K = z.shape[0], len(self.classes_)
        if isinstance(y, Target):
            require(y.classes == K, f"y: has {y.classes} classes where the model has {K}")
            require(sample_weight is None, "sample_weight: a Target carries its own weights; give them to it")
            require_rows("y", y.rows, n, "X")
            return nll(head, y)
        weight = None if sample_weight is None else torch.from_numpy(rows.read_weight(sample_weight, n))
        target, _, _ = targets.read_target(y, self.classes_)
        require_rows("y", len(target), n, "X")
        if target.ndim == 1:
            return nll(head, labels(target, K, weight=weight))
        return nll(head, probabilities(target, weight=weight))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The accuracy; of targets that are distributions the expected one: the mass at the predicted class."""
        if isinstance(y, Target) or (getattr(y, "ndim", 1) == 2 and np.shape(y)[1] > 1):
            check_is_fitted(self)
            target, _, mass = targets.read_target(y, self.classes_)
            at = self.decision_function(X)
            best = (at > 0).astype(np.int64) if at.ndim == 1 else at.argmax(axis=1)
            require_rows("y", len(target), len(best), "X")
            right = target == best if target.ndim == 1 else target[np.arange(len(best)), best]
            weight = rows.read_weight(sample_weight, len(best))
            return float(np.average(right, weights=weight if mass is None else weight * mass))
        if isinstance(y, torch.Tensor):
            y = y.cpu().numpy()
        return float(super().score(X, y, sample_weight=sample_weight))

    # ------------------------------------------------------------------------------------------------ the fit told

    def summary(self, reference: Any = None, confidence: float = 0.95) -> Summary:
        """Coefficients with standard errors, z, p and intervals, and the figures of the whole fit.

        See `likely.estimators.summary.Summary`: `print(model.summary())` is a text, a notebook shows a table.

        Args:
            reference: a class; coefficients are then differences to its. By default those of LogisticRegression are
                log odds of the second class, and those of SoftmaxRegression sum to zero over the classes.
            confidence: level of the intervals.

        Raises: ValueError for a reference that is no class. NotFittedError before the fit.
        """
        from likely.estimators.summary import summarise

        check_is_fitted(self)
        return summarise(self, reference, confidence)

    def path(self, X: Any, y: Any = None, strengths: Any = None, **fit_options: Any) -> PenaltyPath:
        """Fits for many penalties, from the strongest to the weakest, each from the one before.

        See `likely.estimators.selection.path`.
        """
        from likely.estimators.selection import path

        return path(self, X, y, strengths, **fit_options)

    def cv(self, X: Any, y: Any, strengths: Any = None, **options: Any) -> CrossValidation:
        """The penalty whose predictions of held-out rows have the least cross-entropy.

        See `likely.estimators.selection.cross_validate`.
        """
        from likely.estimators.selection import cross_validate

        return cross_validate(self, X, y, strengths, **options)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the model to a new folder: JSON and plain tensors, whole or not at all.

        `likely.estimators.load` brings the estimator back, and `likely.load` a model that predicts on tables.

        Raises: FileExistsError where the folder exists and `overwrite` was not asked for.
        """
        from likely.estimators.storage import save

        check_is_fitted(self)
        save(self, path, overwrite)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.multi_class = not self._binary
        return tags


def progress(step: Step) -> None:
    """A line on standard error that each step writes over."""
    gap = "none yet" if math.isnan(step.gap) else f"{step.gap:.2e} nats"
    line = f"\riteration {step.iteration}: loss {step.loss:.8f}, certified gap {gap}, {step.seconds:.1f} s"
    print(f"{line:<80}", end="", file=sys.stderr, flush=True)
