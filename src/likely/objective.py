"""The verb: the negative log-likelihood of a head under a target, and the objective of several terms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from likely import kernels
from likely._checks import require
from likely.forms import Target
from likely.heads import Head
from likely.score import Score, shares


@dataclass(frozen=True, eq=False)
class Term:
    """A target with its weight in the objective and the temperature that softens it and the student alike.

    Examples
    --------
    >>> import torch, likely
    >>> likely.Term(likely.teacher(torch.zeros(2, 3)), weight=0.5, temperature=4.0).temperature
    4.0
    """

    target: Target
    weight: float = 1.0
    temperature: float = 1.0


class Scores(tuple[Score, ...]):
    """One detached Score per term, and the z-loss that was added to the loss (0 where none was asked for)."""

    z_loss: Tensor

    def __new__(cls, scores: Iterable[Score], z_loss: Tensor) -> Scores:
        new = super().__new__(cls, tuple(scores))
        new.z_loss = z_loss
        return new


def nll(head: Head, target: Target, *, temperature: float = 1.0, kernel: str | None = None) -> Score:
    """The negative log-likelihood of each row, which is its cross-entropy = entropy + KL, in nats.

    `cross_entropy = M·A(z/T) − ⟨μ, z/T⟩`, with `A = logsumexp` and `M = Σ μ`; its gradient in `z` is
    `(M·softmax(z/T) − μ)/T`.  No `T²` is applied here.

    Parameters
    ----------
    head : Head
        N rows of C logits.
    target : Target
    temperature : float
    kernel : str, optional
        "eager" or "chunked", to insist on one; its reason is raised when it cannot serve.

    Returns
    -------
    Score
        Per row, differentiable.

    Examples
    --------
    >>> import torch, likely
    >>> x, weight = torch.randn(5, 3), torch.randn(7, 3, requires_grad=True)
    >>> score = likely.nll(likely.Linear(x, weight), likely.labels([0, 1, 2, 3, 6], 7))
    >>> score.mean().cross_entropy.backward()
    >>> weight.grad.shape
    torch.Size([7, 3])

    Source: Bishop, Pattern Recognition and Machine Learning, section 4.3.4.
    """
    result = kernels.run(head, [(target, float(temperature))], kernel=kernel)
    return _score(target, result.rows[0])


def objective(
    head: Head,
    terms: Term | Target | Sequence[Term | Target],
    *,
    total: Any = None,
    z_loss: float = 0.0,
    memory: str | None = None,
    kernel: str | None = None,
) -> tuple[Tensor, Scores]:
    """One loss from several terms, in one pass over the logits, which are never held whole.

    `loss = Σ_terms weight · T² · Σ_rows w · CE(p_T, softmax(z/T)) / total + z_loss · mean A(z)²`

    Parameters
    ----------
    head : Head
    terms : a Term or Target, or a sequence of them
    total : number, optional
        The denominator; by default each term's own sum of counts.  Give the whole batch's when this is a part of it:
        the sum over the parts is then the loss of the whole.  A mean over nothing is 0, with zero gradient.
    z_loss : float
        The weight of the mean squared log-normaliser, at T = 1, over the rows that any term counts (divided by `total`
        where it is given).
    memory : "minimal" or "inplace", optional
        "minimal", for a Linear head: hold a tile of 2 to 4 MiB of logits and no more, and compute them twice; four
        products, not three.  "inplace", for Logits that are no leaf: overwrite them with their gradient, which one
        backward pass hands on; whatever else saved them raises autograd's error.
    kernel : str, optional

    Returns
    -------
    loss : Tensor
        A single number; half precision comes back in float32.
    scores : Scores
        A detached Score per term, without `T²` and weights, and `scores.z_loss`, what the z-loss added.

    Examples
    --------
    >>> import torch, likely
    >>> h, W = torch.randn(6, 4), torch.randn(9, 4, requires_grad=True)
    >>> ht, Wt = torch.randn(6, 8), torch.randn(9, 8)
    >>> y = torch.tensor([0, 1, 2, 3, 4, -100])
    >>> loss, scores = likely.objective(likely.Linear(h, W), [
    ...     likely.Term(likely.labels(y, 9), weight=0.5),
    ...     likely.Term(likely.teacher(likely.Linear(ht, Wt)), weight=0.5, temperature=2.0)])
    >>> loss.backward()
    >>> soft = scores[1].mean()
    >>> bool(torch.isclose(soft.cross_entropy, soft.entropy + soft.kl))
    True

    Source: Hinton, Vinyals and Dean, 2015, section 2 (the factor T²); Chowdhery et al., PaLM, 2022 (the z-loss).
    """
    modes = (None, "minimal", "inplace")
    require(memory in modes, f"memory: is {memory!r}; it is 'minimal', 'inplace', or None for the fastest")
    require(memory is None or kernel in (None, memory), f"memory: {memory!r} is a kernel of its own, not {kernel!r}")
    kernel = kernel if memory is None else memory
    given = [terms] if isinstance(terms, Term | Target) else terms
    listed = [term if isinstance(term, Term) else Term(term) for term in given]
    require(len(listed) > 0, "terms: is empty; an objective has at least one term")
    coefficients: list[Tensor] = []
    counted_N: Tensor | None = None
    for term in listed:
        target = term.target
        share_N = shares(target.weight, target.count, total)
        coefficients.append(term.weight * term.temperature**2 * share_N)
        counts_N = target.count > 0
        counted_N = counts_N if counted_N is None or counted_N.shape != counts_N.shape else counted_N | counts_N
    z_coefficient_N = None
    if z_loss:
        assert counted_N is not None
        counted_N = counted_N.double()
        z_coefficient_N = z_loss * counted_N * shares(None, counted_N, total)
    pairs = [(term.target, float(term.temperature)) for term in listed]
    result = kernels.run(head, pairs, coefficients, z_coefficient_N, kernel=kernel)
    assert result.loss is not None
    added = torch.zeros_like(result.loss.detach()) if result.z_loss is None else result.z_loss
    scores = [_score(term.target, rows) for term, rows in zip(listed, result.rows)]
    return result.loss, Scores(scores, added)


def _score(target: Target, rows: kernels.RowScores) -> Score:
    unknown = target.entropy_unknown() if rows.entropy is None else None
    return Score(rows.cross_entropy, rows.entropy, rows.kl, target.weight, target.count, unknown)
