"""Binary logistic regression."""

from __future__ import annotations

from likely.estimators.base import LinearClassifier


class LogisticRegression(LinearClassifier):
    """Logistic regression of two classes, from labels or probabilities, with a certificate that it is the optimum.

    It minimises `Σ w_i [log(1 + exp z_i) − q_i z_i] / Σ w + λ/2 ‖coef‖²`, in nats, where `z = x · coef + intercept` is
    the log odds of the second class and q its probability in the target (0 or 1 for labels). The default, λ = 0, is
    the maximum likelihood estimate.

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
        classes_ (K,); coef_ (1, D); intercept_ (1,); n_features_in_; feature_names_in_, where X has names.
        loss_, cross_entropy_, entropy_, kl_: of the fit, in nats: the objective, and the mean `cross-entropy =
            entropy + KL` of the target.
        gap_: an upper bound on `loss_` minus its minimum, in nats; `certificate_` says in words what it rests on.
        kl_lower_bound_: without a penalty, a bound below which no linear model on these features brings the KL.
        separation_: None, or how the classes are separable: a dict of `direction`, `features`, `rows`, `complete`.
        penalty_: λ. n_iter_, converged_, solver_, separable_, warnings_ (what was warned of), residual_ (what is left
            of the dual point's balance), history_ (steps, 4): iteration, loss, gap, seconds.

    Raises: ValueError on fitting, for more than two classes and for data that cannot be used.

    Source: Cox, The regression analysis of binary sequences (1958); Hastie, Tibshirani and Friedman, The Elements of
    Statistical Learning (2009), section 4.4.

    >>> import numpy as np
    >>> x, y = np.array([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]]), np.array(["a", "a", "b", "a", "b", "b"])
    >>> model = LogisticRegression().fit(x, y)
    >>> model.coef_.round(4), model.predict_proba([[0.0]]).round(4)    # log 4, and the frequencies
    (array([[1.3863]]), array([[0.6667, 0.3333]]))
    """

    _binary = True
