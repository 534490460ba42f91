"""Whether a maximum likelihood estimate exists: the classes of a sample may be separable.

Shapes: N rows, C classes, D features.
"""

from __future__ import annotations

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special

from likely._checks import require_rows

# Beyond this many numbers in the linear program, or this many seconds, the question is left open.
MOST_ENTRIES, MOST_SECONDS = 5_000_000, 30.0


def separable(x_ND: np.ndarray, possible_NC: np.ndarray) -> bool | None:
    """Whether some linear classifier ranks every row's possible classes first: then the likelihood has no maximum.

    Along a direction `d` of the parameters with logits `z = d · (1, x)` the cross-entropy of a row to a target never
    rises if the logits of its possible classes are equal and no other is larger, and falls towards its limit for ever
    if another is smaller. A linear program looks for the `d` in a box that makes the sum of those gaps largest.

    Args:
        x_ND: (N, D) features.
        possible_NC: (N, C) booleans: where the target has mass. For labels one a row; a row of all is never separated.

    Returns:
        False: a maximum likelihood estimate exists. True: it does not, since all rows are separated (completely) or
        some are (quasi-completely). None where the program is too large to be asked.

    Raises: ValueError for shapes that do not fit.
    Source: Albert and Anderson, On the existence of maximum likelihood estimates in logistic regression models,
        Biometrika 71 (1984); Konis, Linear programming algorithms for detecting separated data (2007).

    >>> y = np.eye(2, dtype=bool)
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> separable(x, y[[0, 0, 1, 1]]), separable(x, y[[0, 1, 0, 1]])
    (True, False)
    """
    require_rows("x", len(x_ND), len(possible_NC), "possible")
    open_N = ~possible_NC.all(axis=1)
    x_ND, possible_NC = x_ND[open_N], possible_NC[open_N]
    N, C = possible_NC.shape
    if N == 0:
        return False
    scale_D = x_ND.std(axis=0)
    x = (x_ND - x_ND.mean(axis=0)) / np.where(scale_D > 0, scale_D, 1.0)
    x = np.concatenate([x, np.ones((N, 1))], axis=1)
    if 2 * N * (C - 1) * x.shape[1] > MOST_ENTRIES:
        return None
    # One inequality for each row and class other than its first possible one, gap = z_first − z_class ≥ 0, and = 0
    # where that class is possible too. The parameters of class 0 stay 0: only differences of logits count.
    first_N = possible_NC.argmax(axis=1)
    row_G, class_G = np.nonzero(np.arange(C) != first_N[:, None])
    G = len(row_G)
    which = scipy.sparse.csr_matrix(
        (np.repeat([1.0, -1.0], G), (np.tile(np.arange(G), 2), np.concatenate([first_N[row_G], class_G]))), (G, C)
    )[:, 1:]
    gaps = scipy.sparse.hstack([which[:, [c]].multiply(x[row_G]) for c in range(C - 1)]).tocsr()
    equal_G = possible_NC[row_G, class_G]
    free, tied = gaps[~equal_G], gaps[equal_G]
    result = scipy.optimize.linprog(
        -np.asarray(free.sum(axis=0)).ravel() / N,
        A_ub=-free,
        b_ub=np.zeros(free.shape[0]),
        A_eq=tied if tied.shape[0] else None,
        b_eq=np.zeros(tied.shape[0]) if tied.shape[0] else None,
        bounds=(-1, 1),
        method="highs",
        options={"time_limit": MOST_SECONDS},
    )
    if result.status != 0:
        return None
    # The program holds its inequalities to 1e-7; in standardised columns a separating direction opens gaps near 1.
    return bool((free @ result.x).max() > 1e-4)


def looks_separable(x_ND: np.ndarray, p_NC: np.ndarray, z_NC: np.ndarray, converged: bool) -> bool:
    """Whether a fit without a penalty ran away, judged by what it came to and decided by `separable` where it can be.

    Where the classes are separated, some row's probability of what its target excludes has gone to zero; if none is
    below 1/1000 and the descent has converged, the program need not be asked. Where it is too large to be asked, a
    descent that has not converged and leaves such rows is taken to have run away.

    Args:
        x_ND: (N, D) features. p_NC: (N, C) target. z_NC: (N, C) fitted logits. converged: of the descent.

    >>> x, p = np.array([[0.0], [1.0]]), np.eye(2)
    >>> looks_separable(x, p, np.array([[9.0, -9.0], [-9.0, 9.0]]), converged=False)
    True
    """
    q_NC = scipy.special.softmax(z_NC, axis=1)
    excluded_NC = p_NC == 0
    gone = bool(np.where(excluded_NC, q_NC, 0.0).sum(axis=1)[excluded_NC.any(axis=1)].min(initial=1.0) < 1e-3)
    if converged and not gone:
        return False
    answer = separable(x_ND, p_NC > 0)
    return gone and not converged if answer is None else answer
