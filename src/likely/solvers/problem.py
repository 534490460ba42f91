"""The objective of a linear classifier as its sufficient statistics: after one pass the target is not needed again.

    F(W, b) = Σ_i w_i [A(z_i) − ⟨q_i, z_i⟩] + λ/2 ‖W‖²,   z_i = x_i W + b + offset_i,   Σ w_i = 1
            = Σ_i w_i A(z_i) − ⟨T, W⟩ − ⟨m, b⟩ − c + λ/2 ‖W‖²

with `T = X' D_w Q`, the masses `m = Q' w` and `c = Σ w ⟨q, offset⟩`. Smoothing is affine in them:
`T_ε = (1 − ε) T + (ε/K) (X' w) 1'`.

The solvers move θ = (V, c), the parameters of columns with mean 0 and variance 1: `V = scale · W`, `c = b + mean · W`.
The data are not copied for it. Derivatives are carried over instead, and the penalty becomes `λ/2 ‖V / scale‖²`.
Columns whose mean is far above their spread are shifted block by block, since there the carrying over would cancel.

Shapes: n rows, D features, K classes, M columns of parameters (K, or 1 for a binary model); θ is (D + 1, M), the
intercept last.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import scipy.sparse
import scipy.special

from likely._checks import require, require_rows
from likely.kernels.native import odds
from likely.solvers.rows import Block, Memory, Stream, as_matrix, reduce, workers

NARROW = 64
"""Up to so many classes labels are written out as distributions."""
SMALL, DIRECT = 4_000_000, 200_000
"""Below this many products of a pass, threads of our own do not pay. Up to this many logits of labelled rows the loss
and the derivative are formed from `p − q` row by row: near separation the statistics would cancel, and there it costs
nothing."""


class Problem:
    """The statistics of a target on features, in the units of the columns, and the standardisation.

    Attributes:
        n, D, K, M: rows, features, classes, columns of parameters.
        weight: (n,) the rows' weights, with sum 1; None for a stream.
        total: the sum of the weights as they were given.
        statistic: T, (D, K). masses: m, (K,). entropy: Σ w H(q), nats.
        mean, scale: (D,) the weighted mean and standard deviation of each column (without an intercept the root mean
            square); constant: (D,) where a column does not vary (without an intercept: is 0), and has no coefficient.
    """

    n: int
    D: int
    weight: np.ndarray | None
    source: Memory | Stream

    @classmethod
    def make(
        cls,
        x: Any,
        target: Any = None,
        weight: Any = None,
        *,
        classes: int,
        binary: bool = False,
        intercept: bool = True,
        offset: Any = None,
        label_smoothing: float = 0.0,
        block_rows: int | None = None,
    ) -> Problem:
        """Read the target once.

        Args:
            x: (n, D) NumPy array or SciPy sparse matrix; or a stream: a function without arguments that gives an
                iterable of `(X, target[, weight[, offset]])`, the same at every call.
            target: (n,) class indices or (n, K) probabilities; None for a stream.
            weight: (n,) at least 0, not all 0.
            classes: K ≥ 2.
            binary: one column of parameters, the log odds of class 1; K is 2.
            intercept: whether there is one; it is never penalised.
            offset: (n, K), or (n,) for a binary model: added to the logits.
            label_smoothing: ε, mixes every q with the uniform distribution.
            block_rows: so many rows are looked at at once.

        Raises: ValueError for shapes that do not fit, a class out of range, weights that are negative or all zero, and
            features that are not finite.

        >>> problem = Problem.make(np.array([[0.0], [1.0], [2.0]]), np.array([0, 1, 1]), classes=2)
        >>> problem.statistic.round(4), problem.masses.round(4)
        (array([[0., 1.]]), array([0.3333, 0.6667]))
        """
        require(classes >= 2, f"classes: is {classes}; there are at least 2")
        require(not binary or classes == 2, f"binary: the target has {classes} classes, not two")
        require(0 <= label_smoothing <= 1, f"label_smoothing: is {label_smoothing}; it lies between 0 and 1")
        if callable(x):
            require(target is None and weight is None and offset is None, "X: a stream gives target and weight itself")
            return cls(Stream(x), classes, binary, intercept, label_smoothing)
        x = as_matrix(x)
        n = x.shape[0]
        require(n > 0, "X: has no rows")
        target = np.asarray(target)
        require_rows("target", len(target), n, "X")
        weight_n = np.ones(n) if weight is None else np.asarray(weight, np.float64)
        require_rows("weight", len(weight_n), n, "X")
        if offset is not None:
            offset = np.asarray(offset, np.float64)
            wanted = (n,) if binary else (n, classes)
            require(offset.shape == wanted, f"offset: has shape {offset.shape} where {wanted} is needed")
        total = total_weight(weight_n)
        source = Memory(x, target, weight_n / total, offset, block_rows, classes=classes)
        return cls(source, classes, binary, intercept, label_smoothing, total)

    def __init__(
        self,
        source: Memory | Stream,
        classes: int,
        binary: bool,
        intercept: bool,
        smoothing: float,
        total: float | None = None,
    ) -> None:
        self.source, self.K, self.binary, self.intercept, self.smoothing = source, classes, binary, intercept, smoothing
        self.M = 1 if binary else classes
        self.weight = source.weight if isinstance(source, Memory) else None
        self.sparse, self.shift = source.sparse, _far_from_zero(source)
        self.threads = 1
        if isinstance(source, Memory):
            products = (source.x.nnz if source.sparse else source.x.size) * classes
            self.threads = workers() if products > SMALL and not source.sparse else 1
        self.direct = (
            isinstance(source, Memory)
            and source.target.ndim == 1
            and smoothing == 0
            and source.n * self.M <= DIRECT
            and not source.sparse
        )
        self._read(total)

    def _read(self, total: float | None) -> None:
        K, eps = self.K, self.smoothing
        label_entropy = float(scipy.special.entr(np.r_[1 - eps + eps / K, np.full(K - 1, eps / K)]).sum())

        def read(block: Block) -> tuple[Any, ...]:
            x, w, y = self.features(block), block.weight, block.target
            assert y is not None
            if total is None:
                total_weight(w, block.start, at_all=False)
            if y.ndim == 1:
                wq, entropy = one_hot(y, K, block.start, w), label_entropy * float(w.sum())
            else:
                require(y.shape[1] == K, f"target: has {y.shape[1]} columns where there are {K} classes")
                q = y.astype(np.float64, copy=False)
                entropy = float((w @ scipy.special.entr((1 - eps) * q + eps / K if eps else q)).sum())
                wq = q * w[:, None]
            dot = 0.0
            if block.offset is not None:
                r = (1 - eps) * as_dense(wq) + eps / K * w[:, None]
                dot = float((r[:, 1] * block.offset).sum() if self.binary else (r * block.offset).sum())
            offset = 0.0 if block.offset is None else w @ block.offset
            moved = float(block.offset is not None)
            m = over_rows(wq).astype(np.float64)
            t, first, second = _moments(x, wq, w)
            return t, m, entropy, first, second, dot, float(w.sum()), offset, moved

        sums = reduce(self.source, read, self.threads)
        if isinstance(self.source, Stream):
            self.source.total = total = sums[6]
            require_positive(total)
            sums = tuple(term / total for term in sums)
        assert total is not None
        t, m, self.entropy, self.first, second, self.offset_dot, _, self.offset_mean, moved = sums
        self.has_offset = moved > 0
        self.total, self.n, self.D = total, self.source.n, self.source.D
        wrong = np.flatnonzero(~np.isfinite(second))
        if len(wrong):
            _name_what_is_not_finite(self.source, int(wrong[0]))
        self.masses = (1 - eps) * m + eps / K
        self.t = (1 - eps) * t + eps / K * self.first[:, None]
        spread = np.maximum(second - self.first**2, 0.0) if self.intercept else second
        self.constant = spread <= (1e-14 * second if self.intercept else 0.0)
        self.scale = np.where(self.constant, 1.0, np.sqrt(spread))
        self.inverse = np.where(self.constant, 0.0, 1 / self.scale)
        self.centre = self.first if self.intercept else np.zeros(self.D)

    @property
    def statistic(self) -> np.ndarray:
        """T = X' D_w Q, (D, K)."""
        return self.t if self.shift is None else self.t + self.shift[:, None] * self.masses

    @property
    def mean(self) -> np.ndarray:
        """Σ w x, (D,)."""
        return self.first if self.shift is None else self.first + self.shift

    def features(self, block: Block) -> Any:
        """The block's features in float64, shifted where that is needed; a view where nothing has to be done."""
        if self.sparse:
            return block.x
        x = block.x.astype(np.float64, copy=False)
        return x if self.shift is None else x - self.shift

    def compiled(self, block: Block, x: Any) -> odds.Rows | None:
        """The block for the compiled passes of a binary model, which read dense rows once; None where none serves."""
        return odds.Rows(x, block.weight, block.offset) if self.binary and odds.serves(x) else None

    def drop(self, columns: np.ndarray) -> None:
        """From now on these columns have the coefficient 0."""
        self.inverse[columns] = 0.0

    def subset(self, index: np.ndarray) -> Problem:
        """The same problem on some of the rows."""
        assert isinstance(self.source, Memory)
        return Problem(self.source.subset(index), self.K, self.binary, self.intercept, self.smoothing, 1.0)

    def on(self, source: Memory) -> Problem:
        """Some of the rows in the units of all: for curvatures there, which ask for no statistics of a target."""
        some = copy.copy(self)
        some.source, some.weight, some.n = source, source.weight, source.n
        return some

    def sample(self, index: np.ndarray) -> Problem:
        """`on` these rows."""
        assert isinstance(self.source, Memory)
        return self.on(self.source.subset(index))

    def absent(self) -> np.ndarray | None:
        """Classes without mass, where a free intercept would send their probability to 0 and the others are several."""
        none = np.flatnonzero(self.masses <= 0)
        several = self.K - len(none) >= 2
        return none if len(none) and several and self.intercept and not self.binary else None

    def of_classes(self, classes: np.ndarray) -> Problem:
        """The same problem with some of the classes; those left out have no mass."""
        some = copy.copy(self)
        some.K = some.M = len(classes)
        some.masses, some.t = self.masses[classes], self.t[:, classes]
        if np.ndim(self.offset_mean):
            some.offset_mean = self.offset_mean[classes]
        some.source = self.source.of_classes(classes)
        return some

    # Parameters. W is (D, M) here, and `raw` speaks of features as `features` gives them.
    def raw(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(W, b) on `features` of θ in standardised columns."""
        w = theta[:-1] * self.inverse[:, None]
        return w, theta[-1] - self.centre @ w

    def to_standard(self, coef_MD: np.ndarray, intercept_M: np.ndarray) -> np.ndarray:
        """θ, (D + 1, M), of coefficients and intercepts in the units of the columns."""
        w = np.asarray(coef_MD, np.float64).T
        moved = self.centre if self.shift is None else self.centre + self.shift
        return np.vstack([w * self.scale[:, None], intercept_M + moved @ w])

    def from_standard(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (M, D) and intercepts (M,) in the units of the columns."""
        w, b = self.raw(theta)
        return w.T.copy(), b if self.shift is None else b - self.shift @ w

    def standardise(self, gradient: np.ndarray) -> np.ndarray:
        """A derivative by (W, b), (D + 1, M), as one by θ; in place."""
        if self.intercept:
            gradient[:-1] -= self.centre[:, None] * gradient[-1]
        else:
            gradient[-1] = 0
        gradient[:-1] *= self.inverse[:, None]
        return gradient

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """(T, m) of the columns of parameters: of class 1 alone in a binary model."""
        return (self.t[:, 1:], self.masses[1:]) if self.binary else (self.t, self.masses)


def _far_from_zero(source: Memory | Stream) -> np.ndarray | None:
    """Where the first rows have a mean far above their spread, that mean; None where no column needs it."""
    block = next(source.parts(1)[0], None)
    if block is None or source.sparse:
        return None
    x = block.x[:1024].astype(np.float64, copy=False)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    far = (np.abs(mean) > 1e3 * spread) & ((spread > 0) | (np.abs(mean) > 1e6)) & np.isfinite(mean)
    return np.where(far, mean, 0.0) if far.any() else None


def _name_what_is_not_finite(source: Memory | Stream, column: int) -> None:
    for part in source.parts(1):
        for block in part:
            values = as_dense(block.x[:, [column]])[:, 0]
            wrong = np.flatnonzero(~np.isfinite(values))
            if len(wrong):
                row = block.start + int(wrong[0])
                raise ValueError(f"X: row {row}, column {column} holds {values[wrong[0]]}; features are finite numbers")
    raise ValueError(f"X: column {column} holds numbers whose squares overflow; rescale it")


def xt(x: Any, r: np.ndarray) -> np.ndarray:
    """`x' r`."""
    if r.ndim == 2 and r.shape[1] == 1 and scipy.sparse.issparse(x):
        return np.asarray(x.T @ r[:, 0])[:, None]
    return np.asarray(x.T @ r)


def over_rows(r: Any) -> np.ndarray:
    """`1' r`; NumPy's sum over the rows of a narrow matrix takes ten times as long."""
    return np.asarray(np.ones(r.shape[0], r.dtype) @ r)


def xw(x: Any, w: np.ndarray) -> np.ndarray:
    """`x w`; for sparse rows and one column SciPy's product with a vector is twice as fast as that with a matrix."""
    if w.shape[1] == 1 and scipy.sparse.issparse(x):
        return np.asarray(x @ w[:, 0])[:, None]
    return np.asarray(x @ w)


def _moments(x: Any, wq: Any, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X' D_w Q, X' w and (X ∘ X)' w, in as few readings of X as there can be."""
    if wq.shape[1] == 2 and odds.serves(x):
        first, t, second = odds.Rows(x, w).moments(wq[:, 1])
        return np.stack([first[:-1] - t[:-1], t[:-1]], axis=1), first[:-1], second
    if wq.shape[1] == 2 and not scipy.sparse.issparse(x):
        # Two products with a vector read the rows twice, and are faster than one with three columns.
        first, t = w @ x, wq[:, 1] @ x
        return np.stack([first - t, t], axis=1).astype(np.float64), first.astype(np.float64), squares(x, w)
    if wq.shape[1] <= NARROW:
        both = xt(x, np.concatenate([as_dense(wq), w[:, None]], axis=1))
        return both[:, :-1].astype(np.float64), both[:, -1].astype(np.float64), squares(x, w)
    t = as_dense((wq.T @ x).T) if scipy.sparse.issparse(wq) else xt(x, wq)
    return t.astype(np.float64), xt(x, w).astype(np.float64), squares(x, w)


def squares(x: Any, w: np.ndarray) -> np.ndarray:
    """`(x ∘ x)' w`."""
    if scipy.sparse.issparse(x):
        values = x.data.astype(np.float64)
        return xt(scipy.sparse.csr_matrix((values * values, x.indices, x.indptr), shape=x.shape), w)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named by who asked
        return xt(x * x, w) if w.ndim == 2 else np.asarray(w @ (x * x))


def as_dense(x: Any) -> np.ndarray:
    return np.asarray(x.toarray() if scipy.sparse.issparse(x) else x)


def one_hot(y: np.ndarray, K: int, start: int, w: np.ndarray) -> Any:
    """Labels as (n, K) distributions times their weights, sparse where K is large; the first wrong one is named."""
    y = y.astype(np.int64, copy=False)
    if len(y) and (y.min() < 0 or y.max() >= K):
        row = int(((y < 0) | (y >= K)).argmax())
        raise ValueError(f"target: row {start + row} holds {int(y[row])}, which is no class; classes are 0 … {K - 1}")
    if K > NARROW:
        return scipy.sparse.csr_matrix((w, y, np.arange(len(y) + 1)), shape=(len(y), K))
    out = np.zeros((len(y), K))
    out[np.arange(len(y)), y] = w
    return out


def total_weight(weight: np.ndarray, start: int = 0, at_all: bool = True) -> float:
    wrong = ~(weight >= 0) | ~np.isfinite(weight)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"weight: row {start + row} holds {weight[row]:g}; weights are finite and at least 0")
    total = float(weight.sum())
    if at_all:
        require_positive(total)
    return total


def require_positive(total: float) -> None:
    require(total > 0 and np.isfinite(total), f"weight: sums to {total:g}; some row must have a weight above 0")
