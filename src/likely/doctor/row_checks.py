"""The checks of how a loss adds up its rows: divisor, masks, shift, parts of a batch.

Legend: B sequences, L positions; `*` is (N,) or (B, L).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from likely.doctor.findings import Finding
from likely.doctor.study import CLASSES, Counted, Study
from likely.doctor.subject import IGNORED
from likely.doctor.value_checks import UNKNOWN

UNMASKED = "it takes neither labels nor a mask: it is given the rows that count, and no others"
EQUAL = 1e-5
"""The relative difference up to which two values are one, where a loss computes in single precision."""


def reduction(study: Study) -> Finding:
    """What the sum over the rows is divided by."""
    name, found = "reduction", study.found
    if found is None or study.divisor is None:
        reason = UNKNOWN if found is None else "its weight of a row follows none of the sizes"
        return Finding(name, "not applicable", reason)
    divisor, factor = study.divisor
    study.subject.value(study.cases[0])
    if study.subject.returned:
        return Finding(name, "pass", f"it returns values of shape {study.subject.returned}; the caller adds them up")
    if "classes" in divisor:
        fix = 'reduction="batchmean", or the sum over classes before the mean'
        reason = f"it divides by {divisor}: the gradient is as many times too small as there are classes"
        return Finding(name, "fail", reason, fix, CLASSES)
    if divisor in ("the batch", "the length"):
        fix = "flatten (batch, length, classes) to rows first, and divide by the rows that count"
        return Finding(name, "fail", f"of (batch, length, classes) it divides by {divisor} alone", fix)
    said = "it is a sum" if divisor == "nothing" else f"it divides by {divisor}"
    if found.hard:
        said += f"; the divergence has the weight {factor:.3g} beside {found.hard / found.scale * factor:.3g} of labels"
    elif abs(factor - 1) > 1e-3 and found.reading.student == 1 and found.form.kind != "mixture":
        fix = "leave constant factors to the caller, unless this one is meant"
        return Finding(name, "note", f"{said}, and multiplies by {factor:.4g}", fix, factor)
    return Finding(name, "pass", said, number=factor)


# -------------------------------------------------------------------------------------------------------------- masks


def _next(keep: Tensor) -> Tensor:
    """(*) the positions whose next one is kept."""
    later = torch.roll(keep, -1, dims=-1)
    later[..., -1] = False
    return later


def mask(study: Study) -> Finding:
    """Whether padding and prompt are left out, in the sum and in its divisor."""
    name, subject = "mask", study.subject
    routes = []
    if subject.labelled:
        routes.append(("label −100", study.by_labels))
    if subject.has("mask"):
        routes.append((f"{subject.binding.name('mask')} = 0", study.count(study.masked(study.ragged))))
    if not routes:
        return Finding(name, "not applicable", UNMASKED)
    keep = study.ragged.y != IGNORED
    allowed = keep | _next(keep) if study.sequences else keep
    honoured = [(said, own) for said, own in routes if not bool((own.rows & ~allowed).any())]
    ignored = [said for said, own in routes if bool((own.rows & ~allowed).any())]
    if not honoured:
        counted, valid = int(routes[0][1].rows.sum()), int(keep.sum())
        reason = f"{counted} rows count where {valid} are valid: those with {' or '.join(ignored)} too"
        if not study.sequences and study.found is not None and study.found.hard:
            reason = f"a row with {ignored[0]} has no part for its label, but a divergence"
            return Finding(name, "note", reason, "right for an unlabelled example, wrong for padding: mask it there")
        fix = "keep = labels != -100; sum the rows where keep holds, and divide by keep.sum()"
        return Finding(name, "fail", reason, fix, counted / valid)
    for said, own in honoured:
        wrong = _divisor_wrong(study, own)
        if wrong:
            fix = "divide by the number of rows that count, keep.sum()"
            return Finding(name, "fail", f"rows masked by {said} are left out of the sum, but {wrong}", fix)
        weights = own.weight[own.rows] if own.weight is not None else torch.ones(1)
        if own.rows.any() and not study.subject.returned and float(weights.max()) > 1.001 * float(weights.min()):
            ratio = float(weights.max() / weights.min())
            reason = f"a row of a short sequence weighs up to {ratio:.3g} times that of a long one"
            fix = "sum over all rows that count, and divide once; a mean of sequences' means is another loss"
            return Finding(name, "note", reason, fix, ratio)
    said = " and by ".join(said for said, _ in honoured)
    if ignored:
        reason = f"rows masked by {said} are left out; those with {ignored[0]} are not"
        return Finding(name, "note", reason, "mask the prompt too")
    return Finding(name, "pass", f"rows masked by {said} are left out, and not counted")


def _divisor_wrong(study: Study, own: Counted) -> str:
    """What is wrong with the divisor of a batch with masked rows, or nothing."""
    if own.weight is None or study.divisor is None or not bool(own.rows.any()):
        return ""
    if study.subject.returned or study.divisor[0] == "nothing" or study.subject.has("total"):
        return ""
    weight = own.weight[own.rows]
    if float(weight.max() - weight.min()) > 1e-3:
        return ""
    ratio = float(weight.mean())
    return "counted in the divisor" if abs(ratio * int(own.rows.sum()) / int(study.rows.sum()) - 1) > 1e-3 else ""


def shift(study: Study) -> Finding:
    """Whether position i is held against the label of i + 1, and student and teacher at one position."""
    name, found = "shift", study.found
    if found is not None and found.reading.offset:
        reason = f"row i of the student stands against row i{found.reading.offset:+d} of the teacher"
        return Finding(name, "fail", reason, "student and teacher predict from one position: shift neither")
    if not study.sequences:
        return Finding(name, "not applicable", "it takes rows, not sequences: whoever flattens them shifts the labels")
    if not study.subject.labelled:
        return Finding(name, "not applicable", "it takes no labels")
    own, keep = study.by_labels, study.ragged.y != IGNORED
    wanted, other = (keep, _next(keep)) if study.aligned else (_next(keep), keep)
    parts = [("the divergence", own.rows)] + ([("the part for labels", own.labels)] if bool(own.labels.any()) else [])
    for said, rows in parts:
        if torch.equal(rows, other):
            fix = "labels are those of the next token already: shift nothing"
            reason = f"{said} counts position i where label i + 1 is valid: they are shifted twice"
            if not study.aligned:
                fix = "logits[:, :-1] with labels[:, 1:]; or, if labels are shifted before, say so (aligned)"
                reason = f"{said} counts position i where label i is valid, but i predicts label i + 1"
            return Finding(name, "fail", reason, fix)
    hard = None if found is None or not found.hard else found.reading.hard
    if hard is not None and hard != (0 if study.aligned else 1):
        fix = "logits[:, :-1] with labels[:, 1:], once"
        return Finding(name, "fail", f"position i is held against label i{hard:+d}".removesuffix("+0"), fix)
    if not torch.equal(own.rows, wanted):
        reason = "it does not go by the labels which positions count (see mask)"
        return Finding(name, "pass" if hard is not None else "not applicable", reason)
    said = "label i" if study.aligned else "label i + 1"
    return Finding(name, "pass", f"position i counts where {said} is valid")


# -------------------------------------------------------------------------------------------------- parts of a batch


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= EQUAL * max(abs(a), abs(b))


def micro_batches(study: Study) -> Finding:
    """Whether parts of a batch of unequal size add up to the whole."""
    name, subject = "micro_batches", study.subject
    whole = study.cases[0]
    if subject.labelled and not bool(study.by_labels.rows.all()):
        whole = study.ragged
    elif subject.has("mask"):
        whole = study.masked(study.ragged)
    half = study.lead[0] // 2
    parts = [whole.part(slice(0, half)), whole.part(slice(half, None))]
    valid = [int((part.y != IGNORED).sum() if part.mask is None else part.mask.sum()) for part in parts]
    if subject.has("total"):
        total, said = sum(valid), subject.binding.name("total")
        together, *apart = (subject.value(case.but(total=total)) for case in (whole, *parts))
        if _near(together, sum(apart)) and not _near(together, subject.value(whole.but(total=2 * total))):
            return Finding(name, "pass", f"given {said} of the whole batch, its parts add up to the whole")
        fix = f"divide by {said} and by nothing else"
        return Finding(name, "fail", f"{said} is taken, but parts do not add up to the whole", fix)
    together, *apart = (subject.value(case) for case in (whole, *parts))
    if subject.returned:
        return Finding(name, "pass", "it returns values, not their mean: the caller divides once")
    if _near(together, sum(apart)):
        return Finding(name, "pass", "the sum of its parts is the whole; divide by the rows of all parts")
    mean = sum(apart) / 2
    if not _near(together, mean):
        if math.isnan(together):
            return Finding(name, "not applicable", "it is NaN (see divergence)")
        ratio = max(valid) / min(valid)
        fix = "take the number of rows of the whole batch (num_items_in_batch), and divide the sum by it"
        reason = f"the mean over parts of {valid[0]} and {valid[1]} rows is {mean / together:.3g} times the whole's"
        return Finding(name, "fail", f"{reason}: a row of one weighs up to {ratio:.2g} times another's", fix, ratio)
    reason = "the mean over equal parts is the whole; parts of unequal size must be weighed by their rows"
    return Finding(name, "pass", reason)


def chunks(study: Study) -> Finding:
    """Whether rows are independent, and a size of chunks changes nothing."""
    name, subject, case = "chunks", study.subject, study.cases[0]
    if subject.has("chunk"):
        said = subject.binding.name("chunk")
        values = {}
        for size in (1, 2, 3, 5, 64):
            try:
                values[size] = subject.value(case.but(chunk=size))
            except Exception:  # a number of chunks may have to divide the rows
                continue
        if len(values) < 2:
            return Finding(name, "not applicable", f"{said}: it takes one value alone")
        least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
        if not _near(values[least], values[most]):
            reason = f"with {said} = {least} it is {values[least]:.4g}, with {most} {values[most]:.4g}"
            return Finding(name, "fail", reason, "sum over chunks, and divide once, by the rows of the whole")
    first = study.lead[0] * 3 // 10
    whole, a, b = (subject.value(one) for one in (case, case.part(slice(0, first)), case.part(slice(first, None))))
    share = first / study.lead[0]
    if _near(whole, a + b) or _near(whole, share * a + (1 - share) * b):
        return Finding(name, "pass", "rows cut in two parts give what they give together")
    fix = "softmax over the last dimension (dim=-1), and nothing that looks at the whole batch"
    return Finding(name, "fail", "what a row adds depends on the other rows", fix)


def all_masked(study: Study) -> Finding:
    """What a batch gives in which no row counts."""
    name, subject = "all_masked", study.subject
    if not subject.labelled and not subject.has("mask"):
        return Finding(name, "not applicable", UNMASKED)
    case = study.cases[0]
    nothing = torch.zeros_like(case.y, dtype=torch.bool)
    empty = case.but(y=torch.full_like(case.y, IGNORED)) if subject.labelled else case.but(mask=nothing)
    if subject.has("mask"):
        empty = empty.but(mask=nothing)
    fix = "divide by keep.sum().clamp(min=1): the sum over no rows is 0 and has a gradient, of zeros"
    z = empty.z.detach().requires_grad_()
    try:
        with torch.enable_grad():
            out = subject(empty.but(z=z))
    except Exception as error:
        return Finding(name, "fail", f"it raises {type(error).__name__}: {error}"[:200], fix)
    value = float(out.detach())
    if not math.isfinite(value):
        return Finding(name, "fail", f"it is {value}, which stops the training run", fix)
    if value != 0:
        return Finding(name, "not applicable", "masked rows count (see mask)")
    if not out.requires_grad:
        if not bool(subject.gradients(case)[0].any()):
            return Finding(name, "not applicable", "no gradient reaches the student (see gradient)")
        return Finding(name, "fail", "it is a constant 0 without a graph: backward() raises", fix)
    (g,) = torch.autograd.grad(out, z, allow_unused=True)
    if g is not None and not bool(torch.isfinite(g).all()):
        return Finding(name, "fail", "it is 0 with a gradient of NaN", fix)
    return Finding(name, "pass", "it is 0, and so is its gradient")
