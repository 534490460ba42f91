"""Probabilistic classifiers from labels, from probabilities and from teachers.

One objective: the head gives logits `z`, the target a distribution `p`, and the cross-entropy `A(z) − ⟨p, z⟩` is
`H(p) + KL(p ‖ softmax z)`.

>>> import torch, likely
>>> head = likely.Linear(torch.ones(2, 3), torch.zeros(5, 3))
>>> mean = likely.nll(head, likely.labels([0, 4], 5)).mean()
>>> round(float(mean.cross_entropy), 4)          # log 5, in nats
1.6094
"""

from typing import Any

from likely import functional, measures, nn
from likely.divergences import jensen_shannon, reverse_kl
from likely.forms import Dense, Sparse, Target
from likely.heads import Binary, Head, Linear, Logits
from likely.measures import Estimate, estimate
from likely.objective import Scores, Term, nll, objective
from likely.score import Score, ScoreEstimate
from likely.targets import labels, measure, probabilities, samples, teacher, top_k

__version__ = "0.1.0"

__all__ = [
    "Binary",
    "Dense",
    "Estimate",
    "Head",
    "Linear",
    "LogisticRegression",
    "Logits",
    "Score",
    "ScoreEstimate",
    "Scores",
    "SoftmaxRegression",
    "Sparse",
    "Target",
    "Term",
    "estimate",
    "functional",
    "jensen_shannon",
    "labels",
    "load",
    "measure",
    "measures",
    "nll",
    "nn",
    "objective",
    "probabilities",
    "reverse_kl",
    "samples",
    "teacher",
    "top_k",
]


def __getattr__(name: str) -> Any:
    if name in ("LogisticRegression", "SoftmaxRegression"):  # scikit-learn comes only with them
        from likely import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module 'likely' has no attribute {name!r}")


def load(directory: Any) -> Any:
    """Load a model that `likely fit` or `likely distill` saved: `likely.load(DIR).predict_proba(data)`.

    See `likely.networks.model.Model`, which it returns.
    """
    from likely.networks.model import load as load_model  # pyarrow and the table code come only with it

    return load_model(directory)
