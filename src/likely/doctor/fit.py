"""Which form a loss has: its values on random cases, explained by least squares.

Legend: D cases, J columns; `*` is (N,) or (B, L), C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from likely.doctor import forms
from likely.doctor.forms import Form
from likely.doctor.subject import STORED, Case

EXACT = 3e-5
"""The relative error up to which values count as explained: a loss may compute in float32 whatever it is given."""


@dataclass(frozen=True)
class Reading:
    """How a form is read: at which temperatures, with which rows paired, and with which labels.

    Args:
        student, teacher: the temperature that divides the logits of each.
        offset: student row i stands against teacher row i + offset.
        hard: the label of row i is that of i + hard; None where labels play no part.
        hard_temperature: what divides the student's logits in the labels' part.
    """

    student: float = 1.0
    teacher: float = 1.0
    offset: int = 0
    hard: int | None = None
    hard_temperature: float = 1.0


@dataclass(frozen=True)
class Found:
    """A form that explains the loss: `loss = Σ_rows (Σ_j weights_j column_j + hard · cross-entropy of the label)`.

    Args:
        form: the form.
        reading: how it is read.
        weights: (J,) one per column, the same for all where the form is tied.
        hard: the weight of the labels' cross-entropy.
        rows: (*) booleans: the rows that count.
        error: the largest relative error.
    """

    form: Form
    reading: Reading
    weights: tuple[float, ...]
    hard: float
    rows: Tensor
    error: float

    @property
    def scale(self) -> float:
        """The weight of a row's divergence."""
        return max(self.weights, key=abs)

    def soft_rows(self, z: Tensor, t: Tensor) -> Tensor:
        """(*) the divergence of each row, times its weight."""
        columns = _columns(self.form, self.reading, z, t)
        return sum((a * column for a, column in zip(self.weights, columns)), torch.zeros((), dtype=z.dtype))

    def hard_rows(self, z: Tensor, y: Tensor) -> Tensor:
        """(*) the labels' cross-entropy of each row, times its weight."""
        if self.reading.hard is None:
            return torch.zeros(z.shape[:-1], dtype=z.dtype)
        return self.hard * _surprisal(self.reading, z, y)

    def hard_value(self, case: Case) -> float:
        """What the labels' part adds to a case whose rows all count."""
        return float(self.hard_rows(case.z.detach().double(), case.y)[self.rows_of(case)].sum())

    def rows_of(self, case: Case) -> Tensor:
        """The rows that count, for a case of fewer sequences."""
        return self.rows if self.rows.shape == case.y.shape else self.rows[: case.y.shape[0]]

    def gradient(self, case: Case) -> Tensor:
        """The gradient that the value implies, in float64."""
        z = case.z.detach().double().requires_grad_()
        rows = self.soft_rows(z, case.t.detach().double()) + self.hard_rows(z, case.y)
        return torch.autograd.grad(rows[self.rows_of(case)].sum(), z)[0]


def explain(cases: Sequence[Case], values: Sequence[float], form: Form, reading: Reading, rows: Tensor) -> Found | None:
    """The weights with which a form explains the values, or None where it does not."""
    solved = _solve(cases, values, form, reading, rows)
    if solved is None or not solved[1] <= EXACT:
        return None
    weights, error, shares = solved
    weights = [weight if share > 100 * EXACT else 0.0 for weight, share in zip(weights, shares)]
    hard = weights.pop() if reading.hard is not None else 0.0
    if not any(weights):
        return None
    weights = weights * len(form.columns) if form.tied else weights
    return Found(form, reading, tuple(weights), hard, rows, error)


def _solve(
    cases: Sequence[Case], values: Sequence[float], form: Form, reading: Reading, rows: Tensor
) -> tuple[list[float], float, list[float]] | None:
    """The best weights, their relative error, and the largest share of each in a value."""
    listed = []
    for case in cases:
        z, t = case.z.double(), case.t.double()
        sums = [column[rows].sum() for column in _columns(form, reading, z, t)]
        row = [torch.stack(sums).sum()] if form.tied else sums
        listed.append(torch.stack(row if reading.hard is None else [*row, _surprisal(reading, z, case.y)[rows].sum()]))
    column_DJ, value_D = torch.stack(listed), torch.tensor(values, dtype=torch.float64)
    size = float(value_D.abs().max())
    if not math.isfinite(size) or size == 0 or not bool(torch.isfinite(column_DJ).all()):
        return None
    weight_J = torch.linalg.lstsq(column_DJ, value_D[:, None]).solution[:, 0]
    error = float((column_DJ @ weight_J - value_D).abs().max()) / size
    return weight_J.tolist(), error, ((column_DJ * weight_J).abs().amax(dim=0) / size).tolist()


def identify(
    cases: Sequence[Case], values: Sequence[float], rows: Tensor, *, labelled: bool, record: bool
) -> Found | None:
    """The first form that explains the values at T = 1, the plainest first."""
    hards: list[int | None] = [0, 1] if labelled else [None]
    if record:
        return _first(cases, values, forms.truncations(STORED), [Reading(hard=hard) for hard in hards], rows)
    plain = [Reading(hard=hard) for hard in hards]
    found = _first(cases, values, [*forms.PLAIN, forms.MIXTURE], plain, rows)
    found = found or _jensen_shannon(cases, values, plain, rows)
    if found is None:
        own = [Reading(T, T, hard=hard) for T in (2, 4, 3, 5, 1.5, 2.5, 6, 8, 10, 20, 0.5) for hard in hards]
        apart = [Reading(offset=offset, hard=hard) for offset in (1, -1) for hard in hards]
        found = _first(cases, values, forms.PLAIN[:4], [*apart, *own], rows)
    if found is None:
        cut = [form for kept in range(1, cases[0].z.shape[-1]) for form in forms.truncations(kept)]
        found = _first(cases, values, [*forms.misuses(), *cut], plain, rows)
    return found


def at_temperature(cases: Sequence[Case], values: Sequence[float], found: Found, T: float) -> Found | None:
    """The same form at another temperature, which both, one or neither of the two have."""
    hards = (1.0, T) if found.reading.hard is not None else (1.0,)
    readings = [
        replace(found.reading, student=student, teacher=teacher, hard_temperature=hard)
        for student, teacher in ((T, T), (1.0, 1.0), (T, 1.0), (1.0, T))
        for hard in hards
    ]
    return _first(cases, values, [found.form], readings, found.rows)


def _first(
    cases: Sequence[Case], values: Sequence[float], listed: Iterable[Form], readings: Sequence[Reading], rows: Tensor
) -> Found | None:
    few, some = cases[:6], values[:6]
    for form in listed:
        for reading in readings:
            # Few cases rule most forms out; all of them decide.
            if explain(few, some, form, reading, rows) is not None:
                found = explain(cases, values, form, reading, rows)
                if found is not None:
                    return found
    return None


def _jensen_shannon(
    cases: Sequence[Case], values: Sequence[float], readings: Sequence[Reading], rows: Tensor
) -> Found | None:
    """The β that explains the values best, by bisection of the golden section; None where none explains them."""

    def error(beta: float) -> float:
        form = forms.jensen_shannon(beta)
        solved = [_solve(cases[:8], values[:8], form, reading, rows) for reading in readings]
        return min((one[1] for one in solved if one is not None), default=math.inf)

    grid = [k / 20 for k in range(1, 20)]
    errors = [error(beta) for beta in grid]
    best = min(range(len(grid)), key=errors.__getitem__)
    low, high = grid[best] - 0.05, grid[best] + 0.05
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(0 if errors[best] <= EXACT else 30):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if error(left) < error(right) else (left, high)
    beta = grid[best] if errors[best] <= EXACT else (low + high) / 2
    return _first(cases, values, [forms.jensen_shannon(beta)], readings, rows)


def _columns(form: Form, reading: Reading, z: Tensor, t: Tensor) -> list[Tensor]:
    t = torch.roll(t, -reading.offset, dims=-2)
    return [column(z / reading.student, t / reading.teacher) for column in form.columns]


def _surprisal(reading: Reading, z: Tensor, y: Tensor) -> Tensor:
    """(*) `−log q` at the label that each row is held against; at a masked one 0."""
    assert reading.hard is not None
    label = torch.roll(y, -reading.hard, dims=-1)
    log_q = forms.log_softmax(z / reading.hard_temperature)
    return torch.where(label < 0, 0, -log_q.gather(-1, label.clamp_min(0)[..., None])[..., 0])
