"""A head and its terms as plain tensors and a note of what they are, and back.

Functions of autograd and registered operators see tensors only where they stand in the arguments themselves; a tensor
inside an object is out of their sight.  The note holds strings, numbers, booleans and tuples of them, no tensor.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from likely.forms import Dense, Sparse, Target
from likely.heads import Binary, Head, Linear, Logits
from likely.kernels.common import Result, RowScores, transformed
from likely.kernels.loop import Terms

Note = tuple[Any, ...]

SPARSE = ("index", "value", "floor", "base", "rest", "known_entropy", "count", "ignored")
DENSE = ("given", "class_weight", "count", "ignored")
SHARED = ("base", "class_weight")
"""The tensors of a target that all rows share; of a head, all but the first."""


class Parts(NamedTuple):
    note: Note
    tensors: list[Tensor]
    per_row: list[bool]
    """Whether the first dimension of the tensor is the rows."""
    heads: int
    """How many of the tensors are the head's; they stand first."""


def refuses(head: Head, terms: Terms) -> str | None:
    """Only the heads and forms of this package can be taken apart."""
    heads = [head, *(t.head for t, _ in terms if isinstance(t, Dense) and t.head is not None)]
    for own in heads:
        if type(own) not in (Logits, Binary, Linear):
            return f"it does not know the head {type(own).__name__}"
    for target, _ in terms:
        if type(target) not in (Sparse, Dense):
            return f"it does not know the target {type(target).__name__}"
    return None


def take_apart(head: Head, terms: Terms, known: Sequence[bool]) -> Parts:
    """`known` says of each term whether its entropy is wanted and known."""
    tensors: list[Tensor] = []
    per_row: list[bool] = []
    head_note = _head(head, tensors, per_row)
    heads = len(tensors)
    notes = [_term(target, temperature, k, tensors, per_row) for (target, temperature), k in zip(terms, known)]
    return Parts((head_note, *notes), tensors, per_row, heads)


def _head(head: Head, tensors: list[Tensor], per_row: list[bool]) -> Note:
    own = [t for t in head.tensors if t is not None]
    tensors.extend(own)
    per_row.extend(at == 0 for at in range(len(own)))
    if isinstance(head, Linear):
        return ("linear", len(own), head.softcap)
    return ("binary" if isinstance(head, Binary) else "logits", len(own), None)


def _term(target: Target, temperature: float, known: bool, tensors: list[Tensor], per_row: list[bool]) -> Note:
    sparse = isinstance(target, Sparse)
    present = []
    for name in SPARSE if sparse else DENSE:
        tensor = getattr(target, name)
        if tensor is not None:
            present.append(name)
            tensors.append(tensor.detach() if name == "count" else tensor)  # no loss depends on it
            per_row.append(name not in SHARED)
    teacher, softens = None, False
    if isinstance(target, Dense):
        softens = target.softens
        teacher = None if target.head is None else _head(target.head, tensors, per_row)
    return ("sparse" if sparse else "dense", tuple(present), teacher, softens, temperature, known)


def put_together(note: Note, tensors: Sequence[Tensor]) -> tuple[Head, list[tuple[Target, float]], list[bool]]:
    """The head, the terms and `known`, on other tensors than `take_apart` was given: a block of rows, say."""
    left = list(tensors)
    head_note, *notes = note
    head = _made(head_note, left)
    terms: list[tuple[Target, float]] = []
    for form, present, teacher, softens, temperature, _ in notes:
        fields: dict[str, Any] = {name: left.pop(0) for name in present}
        target: Target
        if form == "sparse":
            target = Sparse(classes=head.classes, **fields)
        else:
            own = None if teacher is None else _made(teacher, left)
            target = Dense(classes=head.classes, head=own, softens=softens, **fields)
        terms.append((target, temperature))
    return head, terms, [known for *_, known in notes]


def _made(note: Note, left: list[Tensor]) -> Head:
    kind, count, softcap = note
    own = [left.pop(0) for _ in range(count)]
    if kind == "linear":
        return Linear(own[0], own[1], own[2] if count == 3 else None, softcap)
    return Binary(*own) if kind == "binary" else Logits(*own)


class Form(NamedTuple):
    """What stands where among the inputs and outputs.

    Inputs: the tensors of the head and of the terms; if `summed` one tensor of coefficients per term, and that of the
    z-loss.  Outputs: per term cross-entropy, entropy and KL, or the first alone; if `summed` the loss, and the z-loss.
    """

    note: Note
    tensors: int
    heads: int
    known: tuple[bool, ...]
    summed: bool
    with_z: bool
    of_target: bool = True
    """Whether a derivative may go to a tensor of a target."""
    needed: tuple[bool, ...] = ()
    """The tensors of the head whose gradients the forward pass forms."""
    kernel: str = "chunked"
    """Whose pass over the rows it is: "chunked", "minimal" or "triton"."""

    @property
    def text(self) -> str:
        return str(tuple(self))

    @staticmethod
    def of(own: Parts, known: Sequence[bool], summed: bool, with_z: bool, kernel: str = "chunked") -> Form:
        of_heads, of_targets = own.tensors[: own.heads], own.tensors[own.heads :]
        recorded, compiling = torch.is_grad_enabled(), torch.compiler.is_compiling()
        return Form(
            own.note,
            len(own.tensors),
            own.heads,
            tuple(known),
            summed,
            with_z,
            of_target=not compiling and (transformed(*of_targets) or any(t.requires_grad for t in of_targets)),
            needed=tuple(summed and recorded and t.requires_grad for t in of_heads),
            kernel=kernel,
        )

    @property
    def rows(self) -> int:
        return sum(3 if known else 1 for known in self.known)

    @property
    def outputs(self) -> tuple[bool, ...]:
        """Whether each output has one value per row."""
        return (True,) * self.rows + (False,) * (self.summed + self.with_z)

    @property
    def smooth(self) -> tuple[bool, ...]:
        """Whether each output has a derivative.  With known coefficients only the loss has; an entropy has one in the
        target alone."""
        if self.summed:
            return (False,) * self.rows + (True,) + (False,) * self.with_z
        three = (True, self.of_target, True)
        return tuple(one for known in self.known for one in (three if known else three[:1]))

    def weights(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor] | None, Tensor | None]:
        """The coefficients of the terms and of the z-loss."""
        if not self.summed:
            return None, None
        end = self.tensors + len(self.known)
        return list(inputs[self.tensors : end]), inputs[end] if self.with_z else None

    def arrived(self, cotangents: Sequence[Tensor | None], like: Tensor) -> list[Tensor] | None:
        """What the cotangents of the smooth outputs come to for the head: that of the sum, or a coefficient for every
        row of every term; None where they are none of the head's."""
        given = {at: c for at, c in zip([i for i, one in enumerate(self.smooth) if one], cotangents) if c is not None}
        if self.summed:
            return [given[self.rows]] if given else None
        first, arrived, any_given = 0, [], False
        for known in self.known:
            # Cross-entropy and KL differ by the entropy, a constant of the head, so their cotangents add up.
            pair = [given[at] for at in ((first, first + 2) if known else (first,)) if at in given]
            any_given |= bool(pair)
            arrived.append(sum(pair[1:], pair[0]) if pair else like.new_zeros(like.shape[0]))
            first += 3 if known else 1
        return arrived if any_given else None

    def made_of(
        self, inputs: Sequence[Tensor], arrived: Sequence[Tensor]
    ) -> tuple[Head, Terms, list[Tensor], Tensor | None]:
        """The head and the terms, and the coefficients of their rows and of the z-loss."""
        head, terms, _ = put_together(self.note, inputs[: self.tensors])
        coefficients, z_coefficient = self.weights(inputs)
        if coefficients is None:
            return head, terms, list(arrived), None
        (g,) = arrived
        return head, terms, [g * c for c in coefficients], None if z_coefficient is None else g * z_coefficient

    def result(self, outputs: Sequence[Tensor]) -> Result:
        rows, first = [], 0
        for known in self.known:
            entropy_N, kl_N = outputs[first + 1 : first + 3] if known else (None, None)
            rows.append(RowScores(outputs[first], entropy_N, kl_N))
            first += 3 if known else 1
        loss = outputs[first] if self.summed else None
        return Result(loss, rows, outputs[first + 1] if self.with_z else None)


@cache
def read(text: str) -> Form:
    """The Form that `Form.text` was made of."""
    return Form(*ast.literal_eval(text))
