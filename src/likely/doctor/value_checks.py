"""The checks of what a loss is: its divergence, its temperature, its gradient, its optimum.

Legend: C classes; `*` is (N,) or (B, L).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from likely.doctor import forms
from likely.doctor.findings import Finding
from likely.doctor.fit import Found
from likely.doctor.study import TEMPERATURES, Study
from likely.doctor.subject import Case

UNKNOWN = "its form was not found (see divergence)"
SINGLE = 1e-6
"""The relative error that single precision leaves, and no fault."""


def divergence(study: Study) -> Finding:
    """Which function of the two distributions it is."""
    found, name = study.found, "divergence"
    if found is not None:
        kind = found.form.kind
        if kind in ("misuse", "other"):
            fix = found.form.fix or "a divergence of the two distributions: KL(teacher ‖ student)"
            return Finding(name, "fail", f"{found.form.said}: this is no divergence of the two", fix)
        return Finding(name, "pass", f"its values are those of {said(found)}", number=found.error)
    values = study.values(study.cases)
    if not any(math.isfinite(value) for value in values):
        fix = "of torch's kl_div: log-probabilities first; log-probabilities as target need log_target=True"
        return Finding(name, "fail", f"it is {values[0]} for ordinary logits", fix)
    if not bool(study.rows.any()):
        return Finding(name, "fail", "its value does not depend on the student's logits", "let it depend on them")
    if study.subject.value(study.cases[0]) != study.subject.value(study.cases[0]):
        return Finding(name, "fail", "it gives two values for one input", "leave dropout and sampling out of the loss")
    reason = "its values are those of no divergence of the two that is known here, nor of a known mistake"
    if _misalignment(study) <= 100 * SINGLE:
        reason += "; its gradient is that of KL(teacher ‖ student)"
    return Finding(name, "fail", reason, "compare it with Σ p (log p − log q), the sum over classes, row by row")


def _misalignment(study: Study) -> float:
    """How far the gradient of each row is from a multiple of softmax(z) − softmax(t)."""
    case = study.cases[0]
    g = study.subject.gradients(case)[0].double()
    wanted = case.z.double().softmax(-1) - case.t.double().softmax(-1)
    multiple = (g * wanted).sum(-1, keepdim=True) / wanted.square().sum(-1, keepdim=True)
    return float((g - multiple * wanted).norm() / g.norm()) if bool(g.any()) else math.inf


def said(found: Found) -> str:
    """What a form is called, with the weights of a mixture."""
    if found.form.tied:
        return found.form.said
    return " + ".join(
        f"{weight / found.scale:.3g} × {part}" for weight, part in zip(found.weights, forms.PARTS) if weight
    ).replace("+ -", "− ")


def direction(study: Study) -> Finding:
    """Whether it is the divergence that is meant."""
    found, name, expected = study.found, "direction", study.expected
    if found is None or found.form.kind in ("misuse", "other"):
        return Finding(name, "not applicable", "it is no divergence that has one" if found else UNKNOWN)
    wanted = {"forward": forms.PLAIN[0].said, "reverse": "KL(student ‖ teacher)", "cross_entropy": forms.PLAIN[1].said}
    meant = wanted.get(expected.kind, "a Jensen–Shannon divergence")
    if expected.kind == "jsd" and not math.isnan(expected.beta):
        meant += f" with β = {expected.beta:g}"
    if _as_expected(study, found):
        return Finding(name, "pass", f"it is {said(found)}, as expected")
    fix = f"write {meant}; or, if {said(found)} is meant, say so"
    kind = {"reverse": "reverse", "jsd": f"jsd:{found.form.parameter:.3g}"}.get(found.form.kind)
    return Finding(name, "fail", f"it is {said(found)}, not {meant}", fix + (f" (expect {kind})" if kind else ""))


def _as_expected(study: Study, found: Found, exchanged: bool = False) -> bool:
    """Whether the form is the expected one, or the expected one with student and teacher exchanged."""
    form, expected = found.form, study.expected
    if expected.kind == "jsd":
        beta = 1 - expected.beta if exchanged else expected.beta
        return form.kind == "jsd" and (math.isnan(beta) or abs(form.parameter - beta) < 1e-3)
    backwards = (expected.kind == "reverse") != exchanged
    if form.kind == "mixture":
        forward, reverse, *_ = found.weights
        return (forward == 0) if backwards else (reverse == 0)
    return form.kind not in ("jsd", "misuse", "other") and form.reversed == backwards


def order(study: Study) -> Finding:
    """Whether student and teacher stand in their places."""
    name, binding = "order", study.subject.binding
    given = f"{binding.name('student')} is the student's"
    fix = "exchange the two where they are used"
    if not study.subject.has("index"):
        z, t = _safely(study, study.cases[0])
        if not bool(z.any()) and bool(t.any()):
            return Finding(name, "fail", f"{given}, but the gradient goes to the teacher's alone", fix)
    found = study.found
    if found is None or found.form.kind in ("misuse", "other"):
        return Finding(name, "not applicable", "it is no divergence that has one" if found else UNKNOWN)
    if not _as_expected(study, found) and _as_expected(study, found, exchanged=True):
        reason = f"{said(found)} is what is expected with the two exchanged"
        return Finding(name, "fail", reason, f"{fix}; or say that it is meant (see direction)")
    return Finding(name, "pass", "student and teacher are where they belong")


def _safely(study: Study, case: Case) -> tuple[Tensor, Tensor]:
    """Both gradients; none for the teacher of a loss that refuses to give one."""
    try:
        return study.subject.gradients(case, teacher=True)
    except Exception:
        return study.subject.gradients(case)


def zero(study: Study) -> Finding:
    """Whether it is zero at student = teacher."""
    name, found = "zero", study.found
    if found is None and study.labels_matter:
        return Finding(name, "not applicable", f"it has a part for labels, and {UNKNOWN}")
    same = [case.but(t=case.z) for case in study.cases]
    values = [study.soft(case) for case in same]
    worst = max(values, key=lambda value: math.inf if math.isnan(value) else abs(value))
    if abs(worst) <= 10 * SINGLE * study.size:
        return Finding(name, "pass", f"|loss| ≤ {abs(worst):.1g} at student = teacher", number=worst)
    entropies = [math.nan] if found is None else [_entropy(found, case) for case in same]
    if len(entropies) == len(values) and all(abs(v - h) <= 1e-4 * abs(h) for v, h in zip(values, entropies)):
        reason = f"at student = teacher it is {values[0]:.4g}, the teacher's entropy: this is a cross-entropy"
        if study.expected.kind == "cross_entropy":
            return Finding(name, "pass", reason, number=values[0])
        fix = "subtract the teacher's entropy −Σ p log p, or call it a cross-entropy: as a KL it never reaches 0"
        return Finding(name, "fail", reason, fix, values[0])
    fix = "KL is Σ p (log p − log q), of the same softened distributions and over all classes"
    return Finding(name, "fail", f"at student = teacher it is {worst:.4g}", fix, worst)


def _entropy(found: Found, case: Case) -> float:
    """What the teacher's entropy amounts to under the loss's own weights."""
    reading = found.reading
    t = case.t.double() / reading.teacher
    if found.form.kind == "truncated":
        log_p = torch.topk(forms.log_softmax(t), int(found.form.parameter), dim=-1).values
        rows = forms.cross(log_p, log_p)
    else:
        rows = forms.entropy_p(t, t)
    return float(found.scale * rows[found.rows].sum())


def gradient(study: Study) -> Finding:
    """Whether autograd's gradient is the one that the value implies, in float64."""
    name = "gradient"
    if study.found is None:
        return Finding(name, "not applicable", UNKNOWN)
    worst, ratio = 0.0, 1.0
    for T, found in ({1.0: study.found} | study.tempered).items():
        if found is None:
            continue
        case = study.cases[0].but(temperature=T if study.subject.has("temperature") else None)
        g, wanted = study.subject.gradients(case)[0].double(), found.gradient(case)
        error = float((g - wanted).abs().max() / wanted.abs().max())
        if not error <= worst:
            worst, ratio = error, float((g * wanted).sum() / wanted.square().sum())
    if worst <= 100 * SINGLE:
        precision = "" if worst <= 1e-10 else "; it computes in single precision whatever it is given"
        return Finding(name, "pass", f"{_formula(study)}, within {worst:.1g}{precision}", number=worst)
    if ratio == 0:
        fix = "remove detach() and no_grad() from the student's side"
        return Finding(name, "fail", "no gradient reaches the student", fix, worst)
    fix = "check backward() of the custom function: its factors, and that grad_output is used"
    return Finding(name, "fail", f"it is {ratio:.4g} times, within {worst:.1g}, what the value implies", fix, worst)


def _formula(study: Study) -> str:
    """The gradient of a row in words, where it has a short form."""
    found = study.found
    assert found is not None
    if found.form.kind not in ("forward", "cross_entropy"):
        return "it is that of its value"
    power = power_of_t(study)
    if power is None:
        own = found.reading.student
        return (
            f"(softmax(z) − softmax(t)) times the row's weight{'' if own == 1 else f', of logits divided by {own:g}'}"
        )
    factor = {2: "T·", 1: "", 0: ""}.get(round(power), "")
    return f"{factor}(softmax(z/T) − softmax(t/T)){'/T' if round(power) == 0 else ''} times the row's weight"


def power_of_t(study: Study) -> float | None:
    """The k of the factor T^k before the divergence of softened distributions."""
    powers = [
        math.log(found.scale / study.found.scale) / math.log(T)
        for T, found in study.tempered.items()
        if found is not None and study.found is not None
    ]
    return None if len(powers) < len(TEMPERATURES) or max(powers) - min(powers) > 1e-2 else sum(powers) / len(powers)


def temperature(study: Study) -> Finding:
    """Whether the temperature softens both."""
    name, found = "temperature", study.found
    if not study.subject.has("temperature"):
        own = found.reading.student if found is not None else 1.0
        reason = "it takes none" if own == 1 else f"it takes none; its own is {own:g}"
        return Finding(name, "not applicable", reason)
    case, T = study.cases[0], TEMPERATURES[0]
    if study.subject.value(case) == study.subject.value(case.but(temperature=T)):
        return Finding(name, "fail", "another temperature changes nothing", "divide both logits by it before softmax")
    if study.subject.has("index"):
        return Finding(name, "not applicable", "a record is softened where it is captured: keep to its temperature")
    if found is None:
        return Finding(name, "not applicable", UNKNOWN)
    at = study.tempered[T]
    if at is None:
        reason = f"at T = {T:g} it is not {said(found)} of anything softened by T"
        return Finding(name, "fail", reason, "divide both logits by T, and nothing else")
    reading = at.reading
    if reading.student == reading.teacher == T:
        return Finding(name, "pass", "it divides the logits of both")
    if reading.student == T and study.subject.binding.teacher_form != "logits":
        return Finding(name, "pass", "it divides the student's logits; the teacher's are the caller's to soften")
    softened = [who for who, own in (("student", reading.student), ("teacher", reading.teacher)) if own == T]
    reason = f"it softens the {softened[0]} alone" if softened else "it scales the loss, but softens neither"
    return Finding(name, "fail", reason, "divide both logits by it before softmax")


def t_squared(study: Study) -> Finding:
    """Whether T² keeps the gradient's size as T grows."""
    name, found = "t_squared", study.found
    fix = "multiply by T**2: without it the gradient falls as 1/T², and the labels' part outweighs it"
    if found is None:
        return Finding(name, "not applicable", UNKNOWN)
    if found.form.kind in ("misuse", "other"):
        return Finding(name, "not applicable", "it is no divergence of softened distributions")
    if not study.subject.has("temperature"):
        own = found.reading.student
        if own == 1 or study.divisor is None:
            return Finding(name, "not applicable", "it takes no temperature")
        power = math.log(study.divisor[1]) / math.log(own)
    else:
        given = study.subject.binding.teacher_form != "logits"
        tempered = study.tempered.values()
        if any(at is None or at.reading.student == 1 or (at.reading.teacher == 1 and not given) for at in tempered):
            return Finding(name, "not applicable", "the temperature does not soften both (see temperature)")
        known = power_of_t(study)
        if known is None:
            return Finding(name, "fail", "its factor is no power of T", fix)
        power = known
    if abs(power - 2) < 1e-2:
        return Finding(name, "pass", "it is multiplied by T²", number=power)
    factor = "no factor T" if abs(power) < 1e-2 else f"the factor T^{power:.3g}"
    return Finding(name, "fail", f"it has {factor}: at T = 4 its gradient is {4 ** (power - 2):.3g} times", fix, power)


def non_negative(study: Study) -> Finding:
    """Whether it falls below zero."""
    name = "non_negative"
    if study.found is None and study.labels_matter:
        return Finding(name, "not applicable", f"it has a part for labels, and {UNKNOWN}")
    tried = [*study.cases]
    for case in study.cases:
        # Near each other, and a student that is surer than its teacher.
        tried += [case.but(t=case.z + 0.01 * (case.t - case.z)), case.but(z=2 * case.t), case.but(z=case.t / 2)]
    least = min((study.soft(case) for case in tried), default=0.0)
    if least >= -10 * SINGLE * study.size:
        return Finding(name, "pass", f"at least {max(least, 0.0):.1g} on {len(tried)} pairs", number=least)
    fix = "sum over all classes, of distributions that sum to 1; clamping at 0 would hide it and stop the gradient"
    return Finding(name, "fail", f"it falls to {least:.4g}: no divergence does", fix, least)


def fixed_point(study: Study) -> Finding:
    """Whether the student that it is smallest for is the teacher."""
    name, found = "fixed_point", study.found
    if found is None:
        return Finding(name, "not applicable", UNKNOWN)
    cut = found.form.kind == "truncated"
    case = study.cases[0]
    at_teacher = study.subject.gradients(case.but(z=case.t))[0].double()
    # The labels' part has an optimum of its own, which is not the divergence's.
    labels = found.gradient(case.but(z=case.t)) - _soft_gradient(found, case.but(z=case.t))
    usual = float(_soft_gradient(found, case).abs().max())
    slope = float((at_teacher - labels).abs().max()) / usual
    if slope <= 100 * SINGLE and not cut:
        return Finding(name, "pass", "the gradient vanishes at student = teacher", number=slope)
    few = case.part(slice(0, 1 if study.sequences else 5))
    rows = found.rows_of(few)
    log_q, log_p = forms.log_softmax(_optimum(found, few)), forms.log_softmax(few.t.double())
    apart = float(forms.kl(log_p, log_q)[rows].mean())
    if not cut:
        fix = "write the divergence of the two softened distributions (see divergence)"
        return Finding(name, "fail", f"its optimum is {apart:.3g} nats (KL) away from the teacher", fix, apart)
    top = torch.topk(log_p, int(found.form.parameter), dim=-1).indices
    P, Q = (float(log.gather(-1, top).exp().sum(-1)[rows].mean()) for log in (log_p, log_q))
    if abs(Q - P) < 1e-3:
        reason = f"the stored classes get their mass {P:.3f}; the shape of the rest is left to the student"
        return Finding(name, "note", reason, "draws of the tail would be unbiased (likely.samples)", apart)
    reason = f"at its optimum the stored classes have the mass {Q:.3f}, where the teacher gives them {P:.3f}"
    reason += f": biased by 1/P, {Q / P:.3g} times" if Q > P else ": biased"
    fix = "store draws (likely.samples, unbiased), or one cell for the rest (likely.top_k(..., tail='bucket'))"
    return Finding(name, "fail", reason, fix, Q / P)


def _soft_gradient(found: Found, case: Case) -> Tensor:
    z = case.z.detach().double().requires_grad_()
    return torch.autograd.grad(found.soft_rows(z, case.t.detach().double())[found.rows].sum(), z)[0]


def _optimum(found: Found, case: Case) -> Tensor:
    """(*, C) the student's logits that the form is smallest for, from all zeros."""
    z, rows = torch.zeros_like(case.t, dtype=torch.float64).requires_grad_(), found.rows_of(case)
    search = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> Tensor:
        search.zero_grad()
        loss = found.soft_rows(z, case.t.double())[rows].sum() / found.scale
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(closure)  # type: ignore[no-untyped-call]
    return z.detach()
