"""Targets: what each row should be, as a measure over the classes.

Legend: N rows, C classes, K stored classes per row.

Every kind is a constructor that lowers what a user has to one of the two normal forms in `forms`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from likely._checks import (
    as_tensor,
    is_integer,
    require,
    require_class_indices,
    require_distribution,
    require_rows,
    values_can_be_read,
)
from likely.forms import SIGNED, Dense, Sparse, Target
from likely.heads import Head, Logits

TAILS = ("uniform", "renormalise", "bucket")


def labels(
    y: Any,
    classes: int,
    *,
    smoothing: float = 0.0,
    confidence: float | None = None,
    ignore_index: int = -100,
    class_weight: Any = None,
    weight: Any = None,
) -> Target:
    """The target of labels: all mass on one class, less what smoothing spreads over the others.

    With smoothing `ε` and class weights `w`, a row labelled `y` has `μ_c = w_y (1 − ε)[c = y] + w_c ε / C`, which is
    PyTorch's rule, and its `count` is `w_y`.  `confidence=c` says the same in the other spelling: the labelled class
    gets `c` and each other class `(1 − c)/(C − 1)`, which is `ε = (1 − c) C/(C − 1)`.

    Parameters
    ----------
    y : integers of shape (N,)
    classes : int
        C.
    smoothing : float in [0, 1]
    confidence : float in [1/C, 1], instead of `smoothing`
    ignore_index : int
        Rows with this label cost nothing and count for nothing.
    class_weight : shape (C,), optional
    weight : shape (N,), optional
        Weights of the rows; they multiply `count` too, so that a mean is a weighted mean.

    Raises
    ------
    IndexError
        A label that is no class; the first such row is named.

    Examples
    --------
    >>> import torch, likely
    >>> z = likely.Logits(torch.zeros(1, 4))
    >>> float(likely.nll(z, likely.labels([2], 4, smoothing=0.2)).entropy)    # of (0.05, 0.05, 0.85, 0.05)
    0.5875...
    >>> float(likely.nll(z, likely.labels([2], 4, confidence=0.85)).entropy)
    0.5875...

    Source: Szegedy et al., Rethinking the Inception Architecture, 2015; `torch.nn.CrossEntropyLoss`.
    """
    y = as_tensor(y, "y")
    require(
        is_integer(y),
        f"y: has dtype {y.dtype}; labels are integers (probabilities go through probabilities())",
        TypeError,
    )
    require(y.dim() == 1, f"y: has shape {tuple(y.shape)}; labels are one integer per row")
    y = y.long()
    require_class_indices("y", y, classes, ignore_index)
    if confidence is not None:
        require(smoothing == 0, "confidence: says the same as smoothing in another spelling; give one of them")
        require(0 <= confidence <= 1, f"confidence: is {confidence}; it is a probability")
        require(classes > 1 or confidence == 1, "confidence: a single class leaves nothing to spread")
        smoothing = 0.0 if confidence == 1 else (1 - confidence) * classes / (classes - 1)
    else:
        require(0 <= smoothing <= 1, f"smoothing: is {smoothing}; it is a fraction between 0 and 1")
    base_C = _class_weight(class_weight, classes, y.device)
    ignored_N: Tensor | None = y == ignore_index
    if values_can_be_read(y) and not bool(ignored_N.any()):  # type: ignore[union-attr]
        ignored_N = None
    index_N = y if ignored_N is None else torch.where(ignored_N, 0, y)
    own = torch.get_default_dtype() if base_C is None else base_C.dtype
    weight_N = torch.ones(y.shape, dtype=own, device=y.device) if base_C is None else base_C[index_N]
    if ignored_N is not None:
        weight_N = torch.where(ignored_N, 0, weight_N)
    floor_N = None
    if smoothing:
        floor_N = torch.full(y.shape, smoothing / classes, dtype=torch.float64, device=y.device)
        if ignored_N is not None:
            floor_N = torch.where(ignored_N, 0, floor_N)
    row_weight_N, count_N = _row_weight(weight, weight_N)
    signed = base_C is not None and values_can_be_read(base_C) and bool((base_C < 0).any())
    return Sparse(
        classes=classes,
        index=index_N[:, None],
        value=((1 - smoothing) * weight_N.double() if smoothing else weight_N)[:, None],
        floor=floor_N,
        base=base_C if smoothing else None,
        weight=row_weight_N,
        count=count_N,
        ignored=ignored_N,
        no_entropy=SIGNED if signed or smoothing < 0 else None,
    )


def probabilities(p: Any, *, class_weight: Any = None, weight: Any = None) -> Target:
    """The target of distributions: annotators' votes, blended labels, a teacher's probabilities.

    `μ_c = w_c p_c`, without class weights `μ = p`.  At the temperature `T` of its Term the row is softened like the
    student, `p_c^(1/T) / Σ p^(1/T)`.  Its gradient is unbiased for the distribution it is.

    Parameters
    ----------
    p : shape (N, C)
        Rows that are non-negative and sum to one, within the tolerance of their dtype.
    class_weight : shape (C,), optional
    weight : shape (N,), optional

    Raises
    ------
    ValueError
        A row that is no distribution; the worst row is named.

    Examples
    --------
    >>> import torch, likely
    >>> votes = torch.tensor([[0.5, 0.5, 0.0]])
    >>> score = likely.nll(likely.Logits(torch.zeros(1, 3)), likely.probabilities(votes))
    >>> round(float(score.cross_entropy), 4), round(float(score.entropy), 4), round(float(score.kl), 4)
    (1.0986, 0.6931, 0.4055)

    Source: `torch.nn.CrossEntropyLoss`, targets of class probabilities.
    """
    p = _dense(p, "p")
    require_distribution("p", p)
    return _given(p, class_weight, weight, softens=True)


def measure(mu: Any, *, class_weight: Any = None, weight: Any = None) -> Target:
    """The target of a measure as given: unnormalised, even signed, and free to require a gradient.

    The loss is `M·A(z) − ⟨μ, z⟩` with `M = Σ μ`.  A measure is taken as it is at any temperature.  For `μ ≥ 0`, entropy
    and KL are `M·H(μ/M)` and `M·KL(μ/M ‖ q)`; for a signed one they raise.

    Examples
    --------
    >>> import torch, likely
    >>> z = likely.Logits(torch.zeros(1, 2))
    >>> round(float(likely.nll(z, likely.measure([[2.0, 1.0]])).cross_entropy), 4)     # 3 log 2
    2.0794
    >>> likely.nll(z, likely.measure([[2.0, -1.0]])).kl
    Traceback (most recent call last):
    ...
    ValueError: kl: the target has negative entries, so it is no distribution and has no entropy; ...
    """
    return _given(_dense(mu, "mu"), class_weight, weight, softens=False)


def top_k(index: Any, p: Any, classes: int, *, tail: str, temperature: float = 1.0, weight: Any = None) -> Target:
    """The target of a record that kept the k largest probabilities of each row.

    What the record says of the missing mass `r = 1 − Σ p` is the caller's to choose:

    * `tail="uniform"`: spread over the other classes, `r/(C − K)` each.  A distribution; *biased* towards a flat tail.
    * `tail="renormalise"`: left out, `p / Σ p`.  *Biased*: at the optimum the student has no mass outside the record.
    * `tail="bucket"`: one cell of mass `r`, whose shape is left to the student.  Entropy and KL are those of K + 1
      cells, lower bounds of the full ones; *biased* in that it says nothing of the tail's shape (`samples` is not).

    Parameters
    ----------
    index : integers of shape (N, K)
        The stored classes, distinct within a row.
    p : shape (N, K)
        Their probabilities.
    classes : int
    tail : "uniform", "renormalise" or "bucket"
        There is no default.
    temperature : float
        The temperature at which the record was taken; a Term with another one refuses it.
    weight : shape (N,), optional

    Examples
    --------
    >>> import torch, likely
    >>> z = likely.Logits(torch.zeros(1, 10))
    >>> kept = likely.top_k([[3, 5]], [[0.6, 0.2]], 10, tail="bucket")
    >>> round(float(likely.nll(z, kept).kl), 4)
    0.9364

    Source: https://arxiv.org/abs/2503.16870 (on the bias of truncated targets).
    """
    require(tail in TAILS, f"tail: is {tail!r}; say how the missing mass is meant: {', '.join(map(repr, TAILS))}")
    index, p = _index(index, "index", classes), as_tensor(p, "p")
    require(p.dtype.is_floating_point, f"p: has dtype {p.dtype}; probabilities are floating point numbers", TypeError)
    require(p.shape == index.shape, f"p: has shape {tuple(p.shape)} where index has {tuple(index.shape)}")
    require(not p.requires_grad, "p: requires a gradient; a record is constant (detach it)")
    stored = p.shape[-1]
    require(0 < stored <= classes, f"index: stores {stored} classes of {classes}")
    readable = values_can_be_read(p, index) and p.numel() > 0
    tolerance = 1e-2 if p.dtype in (torch.bfloat16, torch.float16) else 1e-4
    if p.dtype in (torch.bfloat16, torch.float16):
        p = p.float()
    sums_N = p.sum(dim=-1)
    if readable:
        twice_N = (index.sort(dim=-1).values.diff(dim=-1) == 0).any(dim=-1)
        require(not bool(twice_N.any()), f"index: row {int(twice_N.int().argmax())} stores a class twice; add them up")
        wrong_N = ~torch.isfinite(p).all(dim=-1) | (p < 0).any(dim=-1)
        require(
            not bool(wrong_N.any()),
            f"p: row {int(wrong_N.int().argmax())} holds a value that is no probability; they are 0 … 1",
        )
        most = int(sums_N.argmax())
        require(
            float(sums_N[most]) <= 1 + tolerance,
            f"p: row {most} sums to {float(sums_N[most]):.6g}, more than 1; divide it by its sum",
        )
        if tail == "renormalise" or stored == classes:
            least = int(sums_N.argmin())
            short = float(sums_N[least])
            require(short > 0, f"p: row {least} has no mass to renormalise; leave it out")
            full = tail == "renormalise" or short >= 1 - tolerance
            require(full, f"p: row {least} sums to {short:.6g}, though all {classes} classes are stored")
    p = p / sums_N.clamp_min(1)[:, None]  # a sum over 1 within the tolerance above is rounding
    rest_N = (1 - sums_N).clamp_min(0)
    row_weight_N, count_N = _row_weight(weight, torch.ones_like(sums_N))
    common: dict[str, Any] = {
        "classes": classes,
        "index": index,
        "temperature": float(temperature),
        "weight": row_weight_N,
        "count": count_N,
    }
    if tail == "bucket" and stored < classes:
        return Sparse(value=p, rest=rest_N, **common)
    if tail == "uniform" and stored < classes:
        floor_N = rest_N / (classes - stored)
        return Sparse(value=p - floor_N[:, None], floor=floor_N, **common)
    return Sparse(value=p / p.sum(dim=-1, keepdim=True), **common)


def samples(
    index: Any, count: Any, classes: int, *, entropy: Any = None, temperature: float = 1.0, weight: Any = None
) -> Target:
    """The target of draws from a distribution: classes with their counts.

    `μ_c = count_c / Σ count`.  The cross-entropy and its gradient are *unbiased* for the distribution that was drawn
    from, whatever the number of draws.  The counts' own entropy is not that distribution's, so its entropy is given
    (`entropy=`, one value per row, in nats); without it `.entropy` and `.kl` raise.  With it, `kl` is an unbiased
    estimate, which a single row may have below 0.

    Parameters
    ----------
    index : integers of shape (N, K)
        The classes drawn.  An entry with count 0 is padding; a class may stand twice.
    count : shape (N, K)
        How often each was drawn, or any non-negative importance weights.
    classes : int
    entropy : shape (N,), optional
    temperature : float
        The temperature at which the draws were made; a Term with another one refuses them.

    Examples
    --------
    >>> import torch, likely
    >>> drawn = likely.samples([[4, 7]], [[3, 1]], 10)
    >>> z = torch.zeros(1, 10); z[0, 4] = 2.0
    >>> round(float(likely.nll(likely.Logits(z), drawn).cross_entropy), 4)
    1.2966

    Source: https://arxiv.org/abs/2503.16870 (random sampling distillation).
    """
    index, count = _index(index, "index", classes), as_tensor(count, "count")
    require(count.shape == index.shape, f"count: has shape {tuple(count.shape)} where index has {tuple(index.shape)}")
    require(not count.requires_grad, "count: requires a gradient; a record is constant (detach it)")
    value = count.to(torch.float64)
    sums_N = value.sum(dim=-1)
    if values_can_be_read(value) and value.numel():
        wrong_N = ~torch.isfinite(value).all(dim=-1) | (value < 0).any(dim=-1)
        require(
            not bool(wrong_N.any()),
            f"count: row {int(wrong_N.int().argmax())} holds a value that is no count; they are finite and at least 0",
        )
        require(bool((sums_N > 0).all()), f"count: row {int(sums_N.argmin())} has no draws; leave it out")
    if entropy is not None:
        entropy = as_tensor(entropy, "entropy").to(value.device)
        require(entropy.shape == sums_N.shape, f"entropy: has shape {tuple(entropy.shape)}; it is one value per row")
    row_weight_N, count_N = _row_weight(weight, torch.ones_like(sums_N))
    return Sparse(
        classes=classes,
        index=index,
        value=value / sums_N[:, None],
        temperature=float(temperature),
        known_entropy=entropy,
        no_entropy=None
        if entropy is not None
        else "samples do not know the entropy of what they were drawn from; "
        "give samples(..., entropy=), one value per row",
        weight=row_weight_N,
        count=count_N,
    )


def teacher(head: Head | Tensor, *, weight: Any = None) -> Dense:
    """The target of a teacher: a head (or its logits), softened tile by tile by the temperature of the Term.

    `p = softmax(z_teacher / T)`.  Its gradient is exact.  A teacher gets no gradient and is refused if it asks for one.

    Parameters
    ----------
    head : Head, or logits of shape (N, C)
    weight : shape (N,), optional

    Examples
    --------
    >>> import torch, likely
    >>> z = torch.tensor([[2.0, 0.0, -1.0]])
    >>> likely.nll(likely.Logits(z), likely.teacher(z), temperature=4.0).kl
    tensor([0.])

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.
    """
    own = head if isinstance(head, Head) else Logits(as_tensor(head, "head"))
    require(
        not any(t is not None and t.requires_grad for t in own.tensors),
        "teacher: its tensors require a gradient; a teacher is constant: compute it under torch.no_grad() or detach it",
    )
    row_weight_N, count_N = _row_weight(weight, torch.ones(own.rows, dtype=own.acc, device=own.device))
    return Dense(classes=own.classes, head=own, weight=row_weight_N, count=count_N)


def _dense(p: Any, name: str) -> Tensor:
    p = as_tensor(p, name)
    require(p.dim() == 2, f"{name}: has shape {tuple(p.shape)}; it is (rows, classes)")
    return p if p.dtype.is_floating_point else p.to(torch.get_default_dtype())


def _given(p_NC: Tensor, class_weight: Any, weight: Any, softens: bool) -> Target:
    row_weight_N, count_N = _row_weight(weight, torch.ones(p_NC.shape[0], device=p_NC.device))
    return Dense(
        classes=p_NC.shape[1],
        given=p_NC,
        class_weight=_class_weight(class_weight, p_NC.shape[1], p_NC.device),
        weight=row_weight_N,
        count=count_N,
        softens=softens,
    )


def _index(index: Any, name: str, classes: int) -> Tensor:
    index = as_tensor(index, name)
    require(is_integer(index), f"{name}: has dtype {index.dtype}; classes are integers", TypeError)
    require(index.dim() == 2, f"{name}: has shape {tuple(index.shape)}; it is (rows, stored classes)")
    require_class_indices(name, index, classes)
    return index.long()


def _class_weight(class_weight: Any, classes: int, device: torch.device) -> Tensor | None:
    if class_weight is None:
        return None
    weight_C = as_tensor(class_weight, "class_weight")
    weight_C = weight_C if weight_C.dtype.is_floating_point else weight_C.to(torch.get_default_dtype())
    require(
        weight_C.shape == (classes,),
        f"class_weight: has shape {tuple(weight_C.shape)}; it is one weight for each of {classes} classes",
    )
    require(weight_C.device == device, f"class_weight: is on {weight_C.device} where the target is on {device}")
    return weight_C


def _row_weight(weight: Any, count_N: Tensor) -> tuple[Tensor | None, Tensor]:
    """The rows' weights, and the counts times them."""
    if weight is None:
        return None, count_N
    weight_N = as_tensor(weight, "weight").to(count_N.device)
    require(weight_N.dim() == 1, f"weight: has shape {tuple(weight_N.shape)}; it is one number per row")
    require_rows("weight", weight_N.shape[0], count_N.shape[0], "the target")
    if values_can_be_read(weight_N) and weight_N.numel():
        wrong_N = ~torch.isfinite(weight_N) | (weight_N < 0)
        require(
            not bool(wrong_N.any()),
            f"weight: row {int(wrong_N.int().argmax())} is negative or not finite; a row to leave out has weight 0",
        )
    if not weight_N.dtype.is_floating_point:
        weight_N = weight_N.to(torch.get_default_dtype())
    return weight_N, weight_N.double() * count_N  # a product of two half-precision weights is not rounded
