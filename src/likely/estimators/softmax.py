"""Softmax (multinomial logistic) regression."""

from __future__ import annotations

from likely.estimators.base import LinearClassifier


class SoftmaxRegression(LinearClassifier):
    """Softmax regression of K ≥ 2 classes, from labels or probabilities, with a certificate that it is the optimum.

    It minimises `Σ w_i [logsumexp z_i − ⟨q_i, z_i⟩] / Σ w + λ/2 ‖coef‖²`, in nats, where `z = coef · x + intercept`
    holds a logit for each class and q is the target. Of all coefficients that say the same, `coef_` and `intercept_`
    are those that sum to zero over the classes. The default, λ = 0, is the maximum likelihood estimate.

    With two classes it has two columns of parameters, ±δ/2, where LogisticRegression has one, δ. Their squares sum to
    δ²/2: at equal λ the two columns are penalised half as much as the one. `SoftmaxRegression(penalty_strength=2 * s)`
    is `LogisticRegression(penalty_strength=s)`.

    Args:
        penalty_strength: λ ≥ 0. The intercept is not penalised.
        C: scikit-learn's spelling, `λ = 1 / (C · Σ weights)`; give one of the two. `inf` is no penalty.
        fit_intercept: whether there is an intercept.
        class_weight: a dict from classes to weights, "balanced", or None.
        label_smoothing: ε, mixes every target with the uniform distribution.
        classes: the classes in their order, for targets that do not name them (0 … K − 1 otherwise).
        solver: "auto" chooses by shape; "newton-cholesky", "newton-cg" or "lbfgs".
        tol: how far the mean loss may be from its minimum, in nats: a bound on the certified gap `gap_`.
        max_iter: the most iterations of the solver.
        warm_start: begin at the coefficients of the fit before.
        random_state: seeds the rows of a first, small problem, where the solver begins with one.
        verbose: 1 shows a line of progress on standard error.
        device: None or "cpu", where these solvers compute.

    Attributes:
        classes_ (K,); coef_ (K, D); intercept_ (K,); n_features_in_; feature_names_in_, where X has names.
        loss_, cross_entropy_, entropy_, kl_: of the fit, in nats: the objective, and the mean `cross-entropy =
            entropy + KL` of the target.
        gap_: an upper bound on `loss_` minus its minimum, in nats; `certificate_` says in words what it rests on.
        kl_lower_bound_: without a penalty, a bound below which no linear model on these features brings the KL.
        separation_: None, or how the classes are separable: a dict of `direction`, `features`, `rows`, `complete`.
        penalty_: λ. n_iter_, converged_, solver_, separable_, warnings_ (what was warned of), residual_ (what is left
            of the dual point's balance), history_ (steps, 4): iteration, loss, gap, seconds.

    Raises: ValueError on fitting, for data that cannot be used.

    Source: McFadden, Conditional logit analysis of qualitative choice behavior (1974); Hastie, Tibshirani and
    Friedman, The Elements of Statistical Learning (2009), section 4.4.

    >>> import numpy as np
    >>> x, p = np.array([[0.0], [1.0]]), np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
    >>> model = SoftmaxRegression(tol=1e-12).fit(x, p)
    >>> model.predict_proba(x).round(4), abs(round(model.kl_, 6))
    (array([[0.5 , 0.25, 0.25],
           [0.2 , 0.2 , 0.6 ]]), 0.0)
    """

    _binary = False
