"""Columns that repeat combinations of others: found before an unpenalised fit, and the fit of least norm after it.

Shapes: D features, M columns of parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

TOLERANCE = 1e-11
"""A column of whose variance no more is left, once the others have explained theirs, is a combination of them."""


@dataclass(frozen=True, eq=False)
class Dependence:
    """`columns` (J,) are combinations of `basis` (I,): standardised, `x_columns = x_basis @ relation`, (I, J)."""

    columns: np.ndarray
    basis: np.ndarray
    relation: np.ndarray

    def sentences(self) -> list[str]:
        """One a column, at most ten of them."""
        told = []
        for j, column in enumerate(self.columns[:10]):
            strong = self.basis[np.abs(self.relation[:, j]) > 1e-6].tolist()
            others = ", ".join(map(str, strong[:8])) + (", …" if len(strong) > 8 else "")
            told.append(
                f"column {column} is a linear combination of {'column' if len(strong) == 1 else 'columns'} {others}"
            )
        if len(self.columns) > 10:
            told.append(f"and {len(self.columns) - 10} more columns are combinations of others")
        return told


def dependence(gram: np.ndarray, used: np.ndarray) -> Dependence | None:
    """Which columns depend on the others, by a Cholesky factor with pivots of their standardised Gram matrix.

    Args:
        gram: (D, D) of unit diagonal.
        used: the columns to look at.

    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), section 10.3.

    >>> found = dependence(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]), np.arange(3))
    >>> found.sentences()
    ['column 2 is a linear combination of column 0']
    """
    if not len(used):
        return None
    # Of columns that repeat each other the first is to be kept, and not the one that rounding favours.
    favour = 1 - 1e-14 * np.arange(len(used))
    favoured = gram[np.ix_(used, used)] * favour * favour[:, None]
    r, pivots, rank, _ = scipy.linalg.lapack.dpstrf(favoured, tol=TOLERANCE, lower=0)
    if rank == len(used):
        return None
    order = used[pivots - 1]
    relation = scipy.linalg.solve_triangular(r[:rank, :rank], r[:rank, rank:], lower=False)
    sort = np.argsort(order[rank:])
    return Dependence(order[rank:][sort], order[:rank], relation[:, sort])


@dataclass(frozen=True, eq=False)
class RowSpace:
    """Fewer rows than columns: coordinates (n, r) of the rows in an orthonormal basis (D, r) of what they span."""

    coordinates: np.ndarray
    basis: np.ndarray

    def theta(self, coef_MR: np.ndarray, intercept: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """θ, whose coefficients in the units of the columns have the least norm, of a fit to the coordinates.

        `V'(scale · W) = a` is solved by `W = Q (R')⁻¹ a` with `scale · V = Q R`.
        """
        q, r = np.linalg.qr(scale[:, None] * self.basis)
        w = q @ scipy.linalg.solve_triangular(r.T, coef_MR.T, lower=True)
        return np.vstack([w * scale[:, None], intercept])


def row_space(x: np.ndarray, weight: np.ndarray) -> RowSpace:
    """From a singular value decomposition of standardised rows, weighted: what it finds does not depend on how the
    weight of a row is cut into rows."""
    _, s, vt = np.linalg.svd(np.sqrt(weight)[:, None] * x, full_matrices=False)
    basis = vt[s > max(x.shape) * np.finfo(float).eps * s.max(initial=0.0)].T
    return RowSpace(x @ basis, basis)


def least_norm(theta: np.ndarray, inverse: np.ndarray, found: Dependence) -> np.ndarray:
    """Of all θ with the logits of this one, that whose coefficients, in the units of the columns, have least norm.

    With `x_J = x_I B` the logits fix `c = W_I + B W_J`; the least norm has `W_J = B' W_I`, so that
    `W_J = (1 + B'B)⁻¹ B' c` and `W_I = c − B W_J`. In standardised columns the intercept does not move.

    Args:
        theta: (D + 1, M), 0 in the dependent columns. inverse: (D,) 1 / scale of all columns.
    """
    i, j = found.basis, found.columns
    b = inverse[i, None] * found.relation / inverse[j]
    c = theta[i] * inverse[i, None]
    w_j = np.linalg.solve(np.eye(len(j)) + b.T @ b, b.T @ c)
    out = theta.copy()
    out[i] = (c - b @ w_j) / inverse[i, None]
    out[j] = w_j / inverse[j, None]
    return out
