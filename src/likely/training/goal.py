"""What a student is trained towards: labels, a teacher, or both, as the terms of one objective.

Legend: N rows of a step, L of them labelled, n rows of a micro-batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from likely import divergences
from likely._checks import require
from likely.data.examples import IGNORED, Batch, Examples
from likely.forms import Dense, Sparse, Target
from likely.heads import Head, Logits
from likely.networks import Network, require_same_classes
from likely.objective import Term, objective
from likely.score import Score
from likely.targets import labels
from likely.targets import teacher as teacher_target
from likely.teachers.manifest import digest
from likely.training.settings import Settings

if TYPE_CHECKING:
    from likely.teachers.record import Record


def formula(settings: Settings) -> str:
    """The loss in force, in numbers.

    >>> formula(Settings(temperature=2))
    'loss = 0.5 · CE(labels) + 0.5 · T² · CE(teacher ‖ student at T = 2)'
    >>> formula(Settings(hard_weight=1, soft_weight=0))
    'loss = 1 · CE(labels)'
    >>> formula(Settings(hard_weight=0, soft_weight=1, beta=1))
    'loss = 1 · KL(student ‖ teacher)'
    """
    T = settings.temperature
    at, square = (f" at T = {T:g}", "T² · ") if T != 1 else ("", "")
    if settings.beta == 0:
        divergence = f"CE(teacher ‖ student{at})"
    elif settings.beta == 1:
        divergence = f"KL(student ‖ teacher{at})"
    else:
        divergence = f"JSD(teacher, student{at}; β = {settings.beta:g})"
    hard = [f"{settings.hard_weight:g} · CE(labels)"] if settings.hard_weight else []
    soft = [f"{settings.soft_weight:g} · {square}{divergence}"] if settings.soft_weight else []
    return "loss = " + " + ".join(hard + soft)


class Goal:
    """A student with its labels and its teacher, checked against each other.

    Args:
        measured: the goal is only measured, so it need not have a teacher.

    Raises: ValueError for what does not fit together, naming the difference.
    """

    def __init__(
        self,
        student: Network,
        examples: Examples,
        settings: Settings,
        teacher: Network | Record | None,
        *,
        measured: bool = False,
    ) -> None:
        require(student.module is not None, "student: cannot be trained; give one with a torch module")
        assert student.module is not None
        self.student, self.settings, self.module = student, settings, student.module
        self.live: Network | None = teacher if hasattr(teacher, "head") else None  # type: ignore[assignment]
        self.record: Record | None = None if self.live is not None else teacher  # type: ignore[assignment]
        self.hard = measured or settings.hard_weight > 0
        self.soft = (measured or settings.soft_weight > 0) and teacher is not None
        self.formula = formula(settings)
        if not measured:
            require(
                settings.hard_weight > 0 or settings.soft_weight > 0,
                "hard_weight: is 0 and soft_weight too; there is nothing to learn from",
            )
            require(
                settings.soft_weight == 0 or teacher is not None,
                f"soft_weight: is {settings.soft_weight:g} and there is no teacher; give one, or 0 (--soft-weight 0)",
            )
        self.device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        require(
            settings.mixed_precision != "fp16" or self.device.type == "cuda",
            f"mixed_precision: fp16 wants a GPU, and the student is on {self.device}; use bf16",
        )
        if examples.classes is not None:
            require_same_classes(student.classes, examples.classes, "student", "data")
        for whose, network in (("student", student), ("teacher", self.live)):
            most, longest = None if network is None else network.max_length, int(examples.row_counts.max())
            require(
                most is None or longest <= 1 or longest < most,  # a stretch of L tokens has L − 1 to predict
                f"data: example {int(examples.row_counts.argmax())} has more than {longest} tokens, and the {whose} "
                f"reads {most}; cut them when the data are loaded (max_length, --max-length)",
            )
        self.teacher_id = self._check_teacher(examples)

    def _check_teacher(self, examples: Examples) -> str | None:
        if self.live is not None:
            require_same_classes(self.live.classes, self.student.classes, "teacher", "student")
            theirs, own = self.live.identity.tokenizer, examples.tokenizer
            require(
                theirs is None or own is None or theirs == own,
                "teacher: its tokenizer is not the one that made the data's tokens; distil between equal vocabularies",
            )
            if self.live.module is not None:
                own_parameters = {id(p) for p in self.module.parameters()}
                require(
                    not any(id(p) in own_parameters for p in self.live.module.parameters()),
                    "teacher: shares its parameters with the student; load it a second time",
                )
                self.live.module.eval()
            return self.live.identity.sha256
        if self.record is None:
            return None
        self.record.require_matches(
            data=examples.fingerprint,
            tokenizer=examples.tokenizer,
            classes=self.student.classes,
            temperature=self.settings.temperature,
        )
        one = self.record.target([0], tail=self.settings.tail)  # which refuses a tail that does not suit it
        require(
            self.settings.beta == 0 or isinstance(one, Dense),
            f"beta: is {self.settings.beta:g}, which wants every class's probability; "
            "the record holds some of them: use a dense record, a live teacher, or beta 0",
        )
        return digest(self.record.manifest.to_dict())

    def labelled(self, batch: Batch) -> int:
        """The rows that have a label."""
        return int((batch.labels != IGNORED).sum())

    # ------------------------------------------------------------------------------------------------- a micro-batch

    def backward(
        self, batch: Batch, indices: Sequence[int], N: int, L: int, scaler: torch.amp.GradScaler, step: int
    ) -> dict[str, float]:
        """Add the gradient of a micro-batch; returns its share of the step's loss and of each part.

        Raises: ValueError where the loss is not finite, naming the step and what was not.
        """
        hard = self.hard and self.labelled(batch) > 0
        soft = self.soft and len(batch.labels) > 0
        if not hard and not soft:
            return {}
        batch = batch.to(self.device)
        settings, T = self.settings, self.settings.temperature
        with self.autocast():
            target = self._target(batch, indices) if soft else None
            head = self.student.head(batch)
            terms, names = [], []
            if hard:
                terms.append(Term(labels(batch.labels, head.classes), weight=settings.hard_weight / L))
                names.append("hard")
            if target is not None and settings.beta == 0:
                terms.append(Term(target, weight=settings.soft_weight / N, temperature=T))
                names.append("soft")
            found: dict[str, Tensor] = {}
            loss: Any = 0.0
            if terms:
                loss, scores = objective(head, terms, total=1.0)
                for name, score in zip(names, scores):
                    found |= _pieces(name, score, L if name == "hard" else N)
            if target is not None and settings.beta != 0:
                rows_n = divergences.jensen_shannon(head, _teacher_head(target, T), beta=settings.beta, temperature=T)
                mean = rows_n.sum() / N
                found["reverse_kl" if settings.beta == 1 else "jensen_shannon"] = mean.detach()
                loss = loss + settings.soft_weight * T**2 * mean
        values = torch.stack([loss.detach().double(), *(value.double() for value in found.values())]).tolist()
        if not math.isfinite(values[0]):
            raise ValueError(f"step {step}: the loss is {values[0]}: {_blame(head, target)}")
        scaler.scale(loss).backward()
        return dict(zip(["loss", *found], values))

    @torch.no_grad()
    def measure(self, batch: Batch, indices: Sequence[int]) -> dict[str, float]:
        """The sums over the rows of a batch of each part of the score, and the number of rows."""
        rows, labelled = len(batch.labels), self.labelled(batch)
        if rows == 0:
            return {}
        batch = batch.to(self.device)
        with self.autocast():
            head = self.student.head(batch).detached()
            terms = [Term(labels(batch.labels, head.classes))]
            if self.soft:
                terms.append(Term(self._target(batch, indices), temperature=self.settings.temperature))
            _, scores = objective(head, terms, total=1.0)
        found: dict[str, float] = {}
        for name, score in zip(("hard", "soft"), scores):
            found |= {key: float(value) for key, value in _pieces(name, score, 1).items()}
        return {**found, "rows": float(rows), "labelled_rows": float(labelled)}

    def autocast(self) -> AbstractContextManager[Any]:
        to = torch.float16 if self.settings.mixed_precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=to, enabled=self.settings.mixed_precision is not None)

    def _target(self, batch: Batch, indices: Sequence[int]) -> Target:
        if self.live is not None:
            with torch.no_grad():
                return teacher_target(self.live.head(batch).autocast().detached())
        assert self.record is not None
        target = self.record.target(indices, tail=self.settings.tail)
        require(
            target.rows == len(batch.labels),
            f"teacher: the record has {target.rows} rows where the data has {len(batch.labels)}; capture it again",
        )
        return moved_to(target, self.device)


def _pieces(name: str, score: Score, total: int) -> dict[str, Tensor]:
    """Means of a score under the names of what they are; a label's entropy is 0, so its KL is its cross-entropy."""
    mean = score.mean(total=total)
    pieces = {f"{name}_cross_entropy": mean.cross_entropy}
    if name == "soft" and mean.unknown is None:
        pieces |= {"soft_entropy": mean.entropy, "soft_kl": mean.kl}
    return pieces


def _teacher_head(target: Target, temperature: float) -> Head:
    """A dense target as the head whose softmax at the temperature it is."""
    assert isinstance(target, Dense)
    if target.head is not None:
        return target.head
    assert target.given is not None
    own = target.given.log()  # −inf where a class is impossible, which a logit may be
    return Logits(own if target.softens else own * temperature)


def moved_to(target: Target, device: torch.device) -> Target:
    if target.count.device == device:
        return target
    changed: dict[str, Any] = {}
    for one in fields(target):
        value = getattr(target, one.name)
        if isinstance(value, Tensor):
            changed[one.name] = value.to(device)
        elif isinstance(value, Head):
            changed[one.name] = value.with_tensors([None if t is None else t.to(device) for t in value.tensors])
    return replace(target, **changed)


def _blame(head: Head, target: Target | None) -> str:
    """What is not finite, of a head and a target."""
    if isinstance(target, Dense):
        theirs = target.head.logits() if target.head is not None else target.given
        if theirs is not None and bool(theirs.isnan().any()):
            return f"the teacher's logits hold NaN, first in row {int(theirs.isnan().any(dim=-1).int().argmax())}"
    if isinstance(target, Sparse) and bool(target.value.isnan().any()):
        return "the teacher's record holds NaN"
    own = head.logits()
    if bool(own.isnan().any()):
        return (
            f"the student's logits hold NaN, first in row {int(own.isnan().any(dim=-1).int().argmax())}; "
            "lower the learning rate, or the gradient's length (clip)"
        )
    return "the student holds a class impossible (a logit of −inf) that the labels or the teacher have mass on"
