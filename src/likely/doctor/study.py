"""A loss made ready for its checks: called in a shape that it takes, and its form found.

Legend: B sequences, L positions, N rows, C classes; `*` is (N,) or (B, L).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from likely.doctor.binding import Binding
from likely.doctor.fit import Found, at_temperature, explain, identify
from likely.doctor.subject import IGNORED, Case, Subject

ROWS, SEQUENCES, CLASSES = 10, (4, 6), 7
"""Sizes of which no product or quotient is another, so that a divisor tells what it counts."""
CASES = 14
TEMPERATURES = (2.3, 3.7)
SPREAD = 1.5
"""The standard deviation of random logits."""


@dataclass(frozen=True)
class Expected:
    """What the author means.

    Args:
        kind: forward, reverse, jsd or cross_entropy.
        beta: of a Jensen–Shannon divergence; NaN where any will do.
        aligned: whether the label of a position is that of the next token already.
    """

    kind: str = "forward"
    beta: float = math.nan
    aligned: bool = False


@dataclass(frozen=True)
class Counted:
    """Which rows of a case with masked ones count, and what each weighs next to a case without.

    Args:
        rows: (*) those that count in the divergence.
        weight: (*) their weight in it, relative to that without a mask; None where the form is not known.
        labels: (*) those that count in the part for labels.
    """

    rows: Tensor
    weight: Tensor | None
    labels: Tensor


class Study:
    """One loss in one shape.

    Args:
        subject: the loss.
        expected: what it should be.
        sequences: whether it is given (B, L, C), or (N, C).
        dtype: what it is given.
        seed: of the random cases.
    """

    def __init__(self, subject: Subject, expected: Expected, sequences: bool, dtype: torch.dtype, seed: int) -> None:
        self.subject, self.expected, self.sequences, self.dtype, self.seed = subject, expected, sequences, dtype, seed
        self.lead = SEQUENCES if sequences else (ROWS,)
        self.aligned = expected.aligned or subject.has("shifted")

    def case(self, number: int, lead: tuple[int, ...] | None = None, classes: int = CLASSES) -> Case:
        """A random case; the same number and sizes give the same."""
        lead = self.lead if lead is None else lead
        random = torch.Generator().manual_seed(self.seed * 1000 + number)
        z, t = (SPREAD * torch.randn(*lead, classes, generator=random, dtype=torch.float64) for _ in range(2))
        return Case(z.to(self.dtype), t.to(self.dtype), torch.randint(classes, lead, generator=random))

    @functools.cached_property
    def cases(self) -> list[Case]:
        return [self.case(number) for number in range(CASES)]

    def values(self, cases: Sequence[Case]) -> list[float]:
        return [self.subject.value(case) for case in cases]

    def counted(self, case: Case) -> Tensor:
        """(*) the rows whose student's or teacher's logits change the value."""
        before = self.subject.value(case)
        other = self.case(CASES + 1, tuple(case.y.shape), case.z.shape[-1])
        rows = torch.zeros(case.y.shape, dtype=torch.bool)
        for at in itertools.product(*(range(size) for size in case.y.shape)):
            changed = case.z.clone()
            changed[at] = other.z[at]
            after = self.subject.value(case.but(z=changed))
            rows[at] = not abs(after - before) <= 1e-9 * abs(before) or math.isnan(after)
        return rows

    @functools.cached_property
    def rows(self) -> Tensor:
        """(*) the rows that count where none is masked."""
        return self.counted(self.cases[0])

    @functools.cached_property
    def labels_matter(self) -> bool:
        """Whether it holds a part that depends on the labels' classes."""
        case = self.cases[0]
        other = case.but(y=(case.y + 1) % CLASSES)
        return self.subject.labelled and self.subject.value(case) != self.subject.value(other)

    @functools.cached_property
    def found(self) -> Found | None:
        """Its form at T = 1."""
        if not bool(self.rows.any()):
            return None
        record = self.subject.has("index")
        return identify(self.cases, self.values(self.cases), self.rows, labelled=self.labels_matter, record=record)

    @functools.cached_property
    def tempered(self) -> dict[float, Found | None]:
        """Its form at other temperatures."""
        if self.found is None or not self.subject.has("temperature"):
            return {}
        found = {}
        for T in TEMPERATURES:
            cases = [case.but(temperature=T) for case in self.cases]
            found[T] = at_temperature(cases, self.values(cases), self.found, T)
        return found

    @functools.cached_property
    def divisor(self) -> tuple[str, float] | None:
        """What the weight of a row is divided by, and the factor that is left; None where sizes do not explain it."""
        if self.found is None:
            return None
        sizes: list[tuple[tuple[int, ...], int]] = [(self.lead, CLASSES), (self.lead, 9)]
        sizes += [((6, 6), CLASSES), ((4, 9), CLASSES)] if self.sequences else [((14,), CLASSES)]
        weights, counts = [], []
        for lead, classes in sizes:
            cases = [self.case(number, lead, classes) for number in range(CASES)]
            rows = self.counted(cases[0])
            found = explain(cases, self.values(cases), self.found.form, self.found.reading, rows)
            if found is None:
                return None
            weights.append(found.scale)
            counts.append(_divisors(lead, classes, int(rows.sum())))
        for name in counts[0]:
            factors = [weight * count[name] for weight, count in zip(weights, counts)]
            if max(factors) - min(factors) <= 1e-3 * abs(factors[0]):
                return name, factors[0]
        return None

    def soft(self, case: Case) -> float:
        """The value without the labels' part, at T = 1 and with every row counted."""
        value = self.subject.value(case)
        return value if self.found is None else value - self.found.hard_value(case)

    @functools.cached_property
    def size(self) -> float:
        """What a value amounts to on random cases."""
        return max((abs(value) for value in self.values(self.cases) if math.isfinite(value)), default=1.0) or 1.0

    @functools.cached_property
    def ragged(self) -> Case:
        """A case with a prompt and padding masked, of another length in each sequence; of rows, every third."""
        case = self.case(CASES + 2)
        keep = torch.ones(case.y.shape, dtype=torch.bool)
        if self.sequences:
            for row, (start, stop) in enumerate([(2, 5), (1, 6), (3, 4), (2, 4)]):
                keep[row] = False
                keep[row, start:stop] = True
        else:
            keep[1::3] = False
        return case.but(y=torch.where(keep, case.y, IGNORED))

    def count(self, case: Case) -> Counted:
        """The rows that count; of a form that is known by their gradients, otherwise by whether the value changes."""
        found = self.found
        if found is not None:
            g = self.subject.gradients(case)[0].double()
            z = case.z.detach().double().requires_grad_()
            soft = torch.autograd.grad(found.soft_rows(z, case.t.double()).sum(), z, retain_graph=True)[0]
            columns = [soft]
            if found.hard:
                label = torch.where(case.y < 0, 0, case.y)
                columns.append(torch.autograd.grad(found.hard_rows(z, label).sum(), z)[0])
            matrix = torch.stack(columns, dim=-1)
            weights = torch.linalg.lstsq(matrix, g[..., None]).solution
            wrong = (matrix @ weights - g[..., None]).norm(dim=(-2, -1)) > 1e-3 * g.abs().max()
            weights = weights[..., 0]
            weights = torch.where(weights.abs() > 1e-4, weights, 0)
            if not bool(wrong.any()):
                labels = weights[..., -1] != 0 if found.hard else torch.zeros_like(wrong)
                return Counted(weights[..., 0] != 0, weights[..., 0], labels)
        rows = self.counted(case)
        return Counted(rows, None, torch.zeros_like(rows))

    @functools.cached_property
    def by_labels(self) -> Counted:
        """What counts where labels mask a prompt and padding."""
        return self.count(self.ragged)

    def masked(self, case: Case) -> Case:
        """The same rows left out through the mask, not through the labels."""
        whole = self.case(CASES + 2)
        return case.but(y=whole.y, mask=case.y != IGNORED)


def prepare(binding: Binding, expected: Expected, shape: str, seed: int) -> Study:
    """The loss in the first shape and dtype in which it is called without an error and its form is found.

    Args:
        shape: "rows", "sequences" or "auto": sequences first where it takes labels or a mask.

    Raises:
        ValueError: it can be called in none.
    """
    subject = Subject(binding)
    both = [True, False] if subject.labelled or subject.has("mask") else [False, True]
    tried = [shape == "sequences"] if shape != "auto" else both
    first: Study | None = None
    reason: Exception | None = None
    for sequences in tried:
        masks = (torch.bool, torch.int64, torch.float32) if subject.has("mask") else (torch.bool,)
        for dtype, mask in itertools.product((torch.float64, torch.float32), masks):
            subject = Subject(binding)
            subject.mask_dtype = mask
            study = Study(subject, expected, sequences, dtype, seed)
            try:
                subject.value(study.cases[0])
                subject.gradients(study.cases[0])
                known = study.found is not None
            except Exception as error:
                reason = reason or error
                continue
            if known:
                return study
            first = first or study
            break
    if first is not None:
        return first
    given = ", ".join(f"{name} ← {what}" for name, what in binding.described().items())
    raise ValueError(
        f"loss: cannot be called: {type(reason).__name__}: {reason} (it was given {given}; name its parameters, give "
        "further ones a value, or say what its inputs are)"
    )


def _divisors(lead: tuple[int, ...], classes: int, counted: int) -> dict[str, int]:
    """The sizes that a loss may be divided by, the likeliest first."""
    rows = math.prod(lead)
    found = {"the rows that count": counted, "the rows": rows, "nothing": 1, "rows × classes": rows * classes}
    if len(lead) == 2:
        found |= {"the batch": lead[0], "the length": lead[1], "batch × classes": lead[0] * classes}
        found |= {"counted rows × classes": counted * classes, "length × classes": lead[1] * classes}
    return found | {"the classes": classes}
