"""The examination: a battery of checks on one loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from likely._checks import require
from likely.doctor import number_checks, row_checks, value_checks
from likely.doctor.binding import bind
from likely.doctor.findings import Examination, Finding
from likely.doctor.study import Expected, Study, prepare
from likely.doctor.value_checks import said
from likely.networks.entry import imported

CHECKS: dict[str, Callable[[Study], Finding]] = {
    check.__name__: check
    for check in (
        *(value_checks.divergence, value_checks.direction, value_checks.order, value_checks.zero),
        *(value_checks.gradient, value_checks.fixed_point, value_checks.non_negative),
        *(value_checks.temperature, value_checks.t_squared, row_checks.reduction),
        *(row_checks.mask, row_checks.shift, row_checks.micro_batches, row_checks.chunks, row_checks.all_masked),
        *(number_checks.vocabulary, number_checks.extremes, number_checks.bfloat16, number_checks.teacher_gradient),
    )
}
"""The checks by name, in the order in which they are reported."""


def examine(
    loss: Any,
    *,
    call: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    inputs: str | None = None,
    shape: str = "auto",
    expect: str = "forward",
    aligned: bool = False,
    accept: Iterable[str] = (),
    seed: int = 0,
) -> Examination:
    """Examines a distillation loss: does it compute what its author means?

    The loss is called on small random cases. Its values tell which divergence it is, what it divides by and at which
    temperature; the checks compare that, its gradients and its behaviour with what a distillation loss should do.

    Args:
        loss: A function, a class whose instances are called, or such an instance.
        call: Values of further parameters, of the call or of the constructor.
        names: Which parameter is the student's, the teacher's, the temperature, the labels, the mask or the total,
            where the table of known names (`likely.doctor.binding.NAMES`) does not say so.
        inputs: "logits", "log_probs" or "probs", or two of them, "student's,teacher's"; by default told by names.
        shape: "rows" (N, C), "sequences" (B, L, C), or "auto".
        expect: "forward", "reverse", "jsd", "jsd:β" or "cross_entropy": what is meant.
        aligned: The label of a position is that of the next token already.
        accept: Checks whose failure is meant; it becomes a note.
        seed: Of the random cases.

    Returns:
        One finding per check.

    Raises:
        TypeError: `loss` cannot be called, or does not return a tensor.
        ValueError: it cannot be called with what its parameters seem to be; an option that does not exist.

    Examples:
        >>> import torch.nn.functional as F
        >>> def loss(student, teacher):
        ...     return F.kl_div(student.log_softmax(-1), teacher.softmax(-1))
        >>> found = examine(loss)
        >>> found["reduction"].reason
        'it divides by rows × classes: the gradient is as many times too small as there are classes'

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.
    """
    accepted = list(accept)
    for name in accepted:
        require(name in CHECKS, f"accept: {name!r} is no check; they are {', '.join(CHECKS)}")
    require(shape in ("auto", "rows", "sequences"), f"shape: is {shape!r}; it is 'auto', 'rows' or 'sequences'")
    binding = bind(loss, call or {}, names or {}, inputs)
    random = torch.get_rng_state()
    try:
        study = prepare(binding, _expected(expect, aligned), shape, seed)
        findings = [_checked(name, check, study) for name, check in CHECKS.items()]
    finally:
        torch.set_rng_state(random)
    meant = "; accepted as meant"
    findings = [
        replace(one, verdict="note", reason=one.reason + meant, fix="")
        if one.name in accepted and one.verdict == "fail"
        else one
        for one in findings
    ]
    name = getattr(loss, "__qualname__", type(loss).__name__)
    return Examination(name, _formula(study), binding.described(), tuple(findings))


def _expected(expect: str, aligned: bool) -> Expected:
    kind, _, beta = expect.partition(":")
    require(
        kind in ("forward", "reverse", "jsd", "cross_entropy") and (not beta or kind == "jsd"),
        f"expect: is {expect!r}; it is 'forward', 'reverse', 'jsd', 'jsd:β' or 'cross_entropy'",
    )
    try:
        return Expected(kind, float(beta) if beta else math.nan, aligned)
    except ValueError:
        raise ValueError(f"expect: {beta!r} is no number; write jsd:0.5") from None


def _checked(name: str, check: Callable[[Study], Finding], study: Study) -> Finding:
    """A loss that raises in a check has failed it."""
    try:
        return check(study)
    except Exception as error:
        reason = f"it raises {type(error).__name__}: {' '.join(str(error).split())}"
        return Finding(name, "fail", reason[:300], "let it take what this check gives it")


def _formula(study: Study) -> str:
    """What the loss computes, in one line."""
    found = study.found
    if found is None:
        return "no known divergence"
    power = value_checks.power_of_t(study)
    text = said(found)
    if power is not None and abs(power) > 1e-2:
        text = f"T{'' if abs(power - 1) < 1e-2 else '²' if abs(power - 2) < 1e-2 else f'^{power:.2g}'} · {text}"
    if study.divisor is None:
        return text
    divisor, factor = study.divisor
    factor_text = "" if abs(factor - 1) < 1e-3 else f"{factor:.4g} · "
    hard = "" if not found.hard else f" + {found.hard / found.scale * factor:.4g} · cross-entropy of the labels"
    return f"{factor_text}{text}{hard}" + ("" if divisor == "nothing" else f", divided by {divisor}")


def load(name: str) -> Any:
    """What `package.module:name` names, from where Python finds it, the current folder last. Importing runs its code.

    Raises:
        ValueError: the name is not of this form, or there is no such module or attribute.
    """
    module_name, _, path = name.partition(":")
    require(bool(module_name and path), f"{name}: is not package.module:name")
    try:
        found = imported(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name}: there is no module {error.name}; is its folder the current one?") from None
    require(found is not None, f"{name}: {module_name} has no {path}")
    return found
