"""The loss under examination, called in one way whatever its signature is.

Legend: B sequences, L positions, N rows, C classes, K stored classes of a row; `*` is (N,) or (B, L).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from likely.doctor.binding import Binding

STORED = 3
"""K: the stored classes of a row, where the loss takes a record."""
IGNORED = -100


@dataclass(frozen=True)
class Case:
    """What a loss is called with.

    Args:
        z: (*, C) the student's logits.
        t: (*, C) the teacher's.
        y: (*) labels; position i holds the token at i, unless the loss is given those of the next one.
        mask: (*) booleans, False where a row is to be left out; ones by default.
        temperature: 1 by default.
        total: the number of rows that count, for a loss that is given it.
        chunk: rows at a time, for a loss that is given it.
    """

    z: Tensor
    t: Tensor
    y: Tensor
    mask: Tensor | None = None
    temperature: float | None = None
    total: int | None = None
    chunk: int | None = None

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def part(self, rows: slice) -> Case:
        """Some of the rows (of the sequences)."""
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, z=self.z[rows], t=self.t[rows], y=self.y[rows], mask=mask)


class Subject:
    """A loss with its binding: `subject(case)` is its value, summed where it returns rows.

    Args:
        binding: its parameters by role.
    """

    def __init__(self, binding: Binding) -> None:
        self.binding = binding
        self.mask_dtype = torch.bool
        self.returned: tuple[int, ...] | None = None
        """The shape of what it returned last; () where it reduces."""
        self._made: dict[tuple[Any, ...], Any] = {}

    def has(self, role: str) -> bool:
        return self.binding.has(role)

    @property
    def labelled(self) -> bool:
        """Whether it takes labels, aligned or not."""
        return self.has("labels") or self.has("shifted")

    def __call__(self, case: Case) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = _number(self._call(case))
        self.returned = tuple(out.shape)
        return out.sum() if out.dim() else out

    def value(self, case: Case) -> float:
        with torch.no_grad():
            return float(self(case.but(z=case.z.detach().clone(), t=case.t.detach().clone())))

    def gradients(self, case: Case, teacher: bool = False) -> tuple[Tensor, Tensor]:
        """The gradients in z, and in t where it is asked for; zeros where none arrives."""
        z, t = case.z.detach().requires_grad_(), case.t.detach().requires_grad_(teacher)
        with torch.enable_grad():
            out = self(case.but(z=z.clone(), t=t.clone()))  # a loss may write into what it is given
            if not out.requires_grad:
                return torch.zeros_like(z), torch.zeros_like(t)
            found = torch.autograd.grad(out, [z, t] if teacher else [z], allow_unused=True)
        given = [torch.zeros_like(own) if g is None else g for own, g in zip((z, t), (*found, None))]
        return given[0], given[1]

    def _call(self, case: Case) -> Any:
        temperature = 1.0 if case.temperature is None else case.temperature
        binding = self.binding
        values: dict[str, Any] = {"temperature": temperature, "labels": case.y, "shifted": case.y}
        values["student"] = _given(case.z, binding.student_form)
        values["teacher"] = _given(case.t, binding.teacher_form)
        values["mask"] = (torch.ones_like(case.y) if case.mask is None else case.mask).to(self.mask_dtype)
        if binding.has("index"):
            top = torch.topk(torch.log_softmax(case.t, dim=-1), STORED, dim=-1)
            values |= {"index": top.indices, "stored": top.values, "stored_mask": torch.ones_like(top.indices).bool()}
        for role, own in (("student_weight", case.z), ("teacher_weight", case.t)):
            values[role] = torch.eye(own.shape[-1], dtype=own.dtype)
        values |= {"total": self._or_default("total", case.total, case.y.numel())}
        values |= {"chunk": self._or_default("chunk", case.chunk, 2)}
        call = {name: values[role] for role, name in binding.called.items()}
        return self._made_for({name: values[role] for role, name in binding.built.items()})(
            **call, **binding.called_with
        )

    def _or_default(self, role: str, value: Any, otherwise: int) -> Any:
        if value is not None or not self.has(role):
            return value
        default = self.binding.defaults[self.binding.name(role)]
        return otherwise if default is inspect.Parameter.empty else default

    def _made_for(self, built: dict[str, Any]) -> Any:
        key = tuple(sorted(built.items()))
        if key not in self._made:
            self._made[key] = self.binding.make(**built, **self.binding.built_with)
        return self._made[key]


def _given(z: Tensor, form: str) -> Tensor:
    if form == "logits":
        return z
    return torch.log_softmax(z, dim=-1) if form == "log_probs" else torch.softmax(z, dim=-1)


def _number(out: Any) -> Tensor:
    """The loss in what was returned: a tensor, the first of several, the entry or attribute `loss`.

    Raises: TypeError where there is none.
    """
    if isinstance(out, Mapping):
        out = out.get("loss", next(iter(out.values()), None))
    elif isinstance(out, tuple | list):
        out = out[0] if out else None
    elif not isinstance(out, Tensor) and hasattr(out, "loss"):
        out = out.loss
    if isinstance(out, float | int):
        out = torch.tensor(float(out), dtype=torch.float64)
    if not isinstance(out, Tensor):
        raise TypeError(f"loss: returned a {type(out).__name__}; it returns a tensor, or one first or under 'loss'")
    return out
