"""The checks of numbers and of bad input: half precision, impossible classes, vocabularies, the teacher's gradient.

Legend: C classes; `*` is (N,) or (B, L).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from likely.doctor.findings import Finding
from likely.doctor.fit import Found
from likely.doctor.study import CLASSES, Study
from likely.doctor.subject import Case
from likely.doctor.value_checks import UNKNOWN

MANY = 512
"""Classes where the rounding of half precision is looked at."""
TOLERATED = 0.01
"""The error of a gradient in bfloat16: rounding the right one leaves 0.002."""


def vocabulary(study: Study) -> Finding:
    """What it makes of a student and a teacher with different classes."""
    name, found, few = "vocabulary", study.found, CLASSES - 2
    if study.subject.has("index"):
        return Finding(name, "not applicable", "a record names its classes")
    if found is None:
        return Finding(name, "not applicable", UNKNOWN)
    refused = 0
    for lacking in ("student", "teacher"):
        case = study.cases[0].but(y=study.cases[0].y % few)
        cut = case.but(z=case.z[..., :few]) if lacking == "student" else case.but(t=case.t[..., :few])
        try:
            value = study.subject.value(cut)
        except Exception:
            refused += 1
            continue
        explained = _explained(found, cut, value)
        fix = "refuse it, or map classes to classes; a class that one of the two lacks has no logit 0"
        said = f"of a {lacking} with {few} classes where the other has {CLASSES}"
        if explained == "zeros":
            reason = f"{said} the missing logits are taken for 0: classes that do not exist get probability"
            return Finding(name, "fail", reason, fix)
        if explained == "sliced":
            return Finding(name, "note", f"{said} the further classes are cut off in silence", fix)
        return Finding(name, "fail", f"{said} it makes the number {value:.4g}, and does not complain", fix)
    return Finding(name, "pass", "different numbers of classes are refused", number=refused)


def _explained(found: Found, case: Case, value: float) -> str:
    """Which padding gives the value."""
    most, few = max(case.z.shape[-1], case.t.shape[-1]), min(case.z.shape[-1], case.t.shape[-1])
    padded = [torch.nn.functional.pad(x.double(), (0, most - x.shape[-1])) for x in (case.z, case.t)]
    hypotheses = {"zeros": padded, "sliced": [x.double()[..., :few] for x in (case.z, case.t)]}
    for said, (z, t) in hypotheses.items():
        rows = found.soft_rows(z, t) + found.hard_rows(z, case.y)
        if abs(float(rows[found.rows].sum()) - value) <= 1e-4 * abs(value):
            return said
        other = found.soft_rows(z, t) + found.hard_rows(case.z.double(), case.y)
        if abs(float(other[found.rows].sum()) - value) <= 1e-4 * abs(value):
            return said
    return ""


def extremes(study: Study) -> Finding:
    """Whether impossible classes and far logits give numbers."""
    name, subject, case = "extremes", study.subject, study.cases[0]
    impossible = torch.zeros_like(case.z, dtype=torch.bool)
    impossible[..., -1] = True
    z, t = (x.masked_fill(impossible, -math.inf) for x in (case.z, case.t))
    labelled = case.but(y=case.y % (CLASSES - 1))
    tried = [("a class with logit −inf in both", labelled.but(z=z, t=t))]
    forwards = study.found is None or not (study.found.form.reversed or study.found.form.kind == "mixture")
    if forwards:
        tried.append(("a class that the teacher holds impossible", labelled.but(t=t)))
    if subject.binding.student_form == "logits" and forwards:
        far = case.but(z=(100 * case.z).float(), t=(100 * case.t).float())
        tried.append(("logits hundreds apart in float32", far))
    for said, extreme in tried:
        value, g = _outcome(study, extreme)
        if value is None:
            return Finding(name, "not applicable", f"{said}: {g}")
        if not math.isfinite(value) or not isinstance(g, Tensor) or not bool(torch.isfinite(g).all()):
            what = f"the loss {value}" if not math.isfinite(value) else f"the loss {value:.3g} with NaN in its gradient"
            fix = "leave classes without mass out before the product: torch.where(p == 0, 0, log_q), then p * that"
            if "hundreds" in said:
                fix = "log_softmax, not the logarithm of softmax"
            return Finding(name, "fail", f"{said} gives {what}", fix)
    return Finding(name, "pass", "impossible classes and far logits give finite numbers")


def _outcome(study: Study, case: Case) -> tuple[float | None, Tensor | str]:
    try:
        return study.subject.value(case), study.subject.gradients(case)[0]
    except Exception as error:
        return None, f"it raises {type(error).__name__}: {error}"[:200]


def bfloat16(study: Study) -> Finding:
    """The error of the gradient in bfloat16, where the student is near its teacher."""
    name, subject, binding = "bfloat16", study.subject, study.subject.binding
    if binding.student_form != "logits" or binding.teacher_form == "probs":
        return Finding(name, "not applicable", "it is given (log-)probabilities: their rounding is done before it")
    if study.found is not None and study.found.form.kind in ("misuse", "other"):
        return Finding(name, "not applicable", "it is no divergence (see divergence)")
    far = study.case(1, classes=MANY)
    near = far.but(z=(far.z + 0.1 * (far.t - far.z)).bfloat16(), t=far.z.bfloat16())
    exact = near.but(z=near.z.to(study.dtype), t=near.t.to(study.dtype))
    try:
        g = subject.gradients(near)[0].double()
        reading = subject.value(near.but(t=near.z)) - subject.value(exact.but(t=exact.z))
    except Exception as error:
        return Finding(name, "not applicable", f"it takes no bfloat16: {type(error).__name__}: {error}"[:200])
    wanted = subject.gradients(exact)[0].double()
    if not bool(wanted.any()):
        return Finding(name, "not applicable", "no gradient reaches the student (see gradient)")
    off = float((g - wanted).norm() / wanted.norm())
    whose = ", that of the labels included," if study.found is not None and study.found.hard else ""
    reason = f"near student = teacher the gradient{whose} is {100 * off:.2g} % off"
    if off <= TOLERATED:
        return Finding(name, "pass", reason, number=off)
    reason += f"; identical logits read {reading:+.2g} nats" if abs(reading) > 1e-4 else ""
    return Finding(name, "fail", reason, "both logits .float() before log_softmax; the sums in float32", off)


def teacher_gradient(study: Study) -> Finding:
    """Whether a gradient flows into the teacher."""
    name = "teacher_gradient"
    if study.subject.has("index"):
        return Finding(name, "not applicable", "a record has none")
    try:
        _, g = study.subject.gradients(study.cases[0], teacher=True)
    except Exception as error:
        return Finding(name, "pass", f"a teacher that wants one is refused ({type(error).__name__})")
    if not bool(g.any()):
        return Finding(name, "pass", "none flows into the teacher")
    reason = "a teacher that requires grad gets one, and learns from its student"
    return Finding(name, "note", reason, "run the teacher under torch.no_grad(), or detach() it in the loss")
