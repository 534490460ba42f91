"""What a network makes of every row of some examples: its distance to a teacher, its loss on labels, its certainty.

Legend: E examples, N rows, L of them labelled, n rows of a batch or of one block, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from likely._checks import require
from likely.data.examples import IGNORED, Batch, Examples, name_of
from likely.forms import Dense, Sparse, Target
from likely.heads import Head
from likely.networks import Identity, Network, number_of, require_same_classes
from likely.objective import Term, objective
from likely.targets import labels
from likely.targets import teacher as teacher_target
from likely.teachers.capture import at_rest, require_lengths
from likely.training.goal import moved_to

if TYPE_CHECKING:
    from likely.teachers.record import Record

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

EXACT = "exact"
ESTIMATED = "estimated"
BOUND = "a lower bound"

_BLOCK_BYTES = 2**25  # of logits whose largest is looked for at a time


@dataclass(frozen=True, eq=False)
class Measured:
    """A few numbers of every row, all in float64 on the CPU; losses in nats.

    Args:
        network: what was measured.
        classes: its classes, or their number.
        data: the fingerprint of the examples.
        language: whether the classes are tokens, so that a perplexity means something.
        example, group: (N,) the example and the document of each row.
        label: (N,) the class of each row, `IGNORED` where it has none.
        prediction: (N,) the network's most probable class, the first of equals.
        confidence: (N,) its probability.
        nll: (L,) the negative log-likelihood of the label, of the rows that have one, in their order.
        teacher: the hash of the network whose distribution `cross_entropy`, `entropy` and `kl` are of; None without.
        record: what was kept of it, where it was read from a record.
        temperature: at which both were softened for these three; everything else is at 1.
        fidelity: what the three are: "exact"; "estimated", without bias, from the draws of a record; or "a lower bound"
            where a record of the largest classes has one cell for all the others.
        cross_entropy: (N,) to the teacher, `entropy + kl`; None without a teacher.
        entropy, kl: (N,) the teacher's entropy, and the divergence from it; None where it is unknown.
        teacher_prediction: (N,) the teacher's most probable class; None where draws do not say it.
        example_group: (E,) the document of each example.
        example_bytes: (E,) the bytes of text that an example's rows predict; None where they predict no text.
    """

    network: Identity
    classes: tuple[str, ...] | int
    data: str
    language: bool
    example: Integers
    group: Integers
    label: Integers
    prediction: Integers
    confidence: Array
    nll: Array
    example_group: Integers
    example_bytes: Integers | None = None
    teacher: str | None = None
    record: str | None = None
    temperature: float = 1.0
    fidelity: str = EXACT
    cross_entropy: Array | None = None
    entropy: Array | None = None
    kl: Array | None = None
    teacher_prediction: Integers | None = None

    def __len__(self) -> int:
        return len(self.example)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(N,) which rows have a label."""
        return self.label != IGNORED

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(L,) whether the prediction of a row with a label is its label."""
        return (self.prediction == self.label)[self.labelled]

    @property
    def agreement(self) -> NDArray[np.bool_] | None:
        """(N,) whether the prediction is the teacher's; None where that is unknown."""
        return None if self.teacher_prediction is None else self.prediction == self.teacher_prediction

    @property
    def is_teacher(self) -> bool:
        """Whether the network is the teacher that it was measured against."""
        return self.teacher == self.network.sha256


@torch.no_grad()
def measure(
    network: Network,
    examples: Examples,
    *,
    teacher: Network | Record | None = None,
    batch_size: int = 8,
    temperature: float = 1.0,
    progress: Callable[[int], None] | None = None,
) -> Measured:
    """Measure a network on every row of some examples, against their labels and a teacher.

    `cross_entropy = H(p) + KL(p ‖ q)` with `p = softmax(t/T)` of the teacher and `q = softmax(z/T)` of the network, the
    divergence being summed term by term where all of p is known, and `nll = −log softmax(z)` at the label.  Both are in
    eval mode, and their logits are taken in blocks of rows: the N × C of neither are ever held.

    What a record of a teacher can say depends on what it kept.  `dense` is exact.  `samples` and `hybrid` give an
    estimate without bias, whose single rows may lie below 0, less the exact entropy that the record stores.  `top`
    knows the mass of the other classes but not its shape: what is given is of the K + 1 cells, hence a lower bound.

    Args:
        network: whatever gives a head for a batch; it is left as it was found.
        examples: E examples; those without rows are left out.
        teacher: a network, or a record of these examples; the network itself to have the teacher measured, too.
        batch_size: examples at a time.
        temperature: T.
        progress: called with the number of examples done.

    Returns: Measured.

    Raises:
        ValueError: classes, tokenizers, or data of a record that do not fit, the difference being named; an example
            that is longer than the network reads; a network or a teacher that gives NaN, with the example and its row.

    Example:
        A classifier that says the same of everything:

        >>> from types import SimpleNamespace
        >>> from likely.heads import Logits
        >>> network = SimpleNamespace(classes=("a", "b"), max_length=None, module=None,
        ...     identity=Identity("entry", "m:f", "00"),
        ...     head=lambda batch: Logits(torch.tensor([[0.0, np.log(3.0)]]).repeat(len(batch.labels), 1)))
        >>> examples = SimpleNamespace(classes=("a", "b"), fingerprint="11", tokenizer=None, byte_counts=None,
        ...     row_counts=np.array([1, 1]), groups=np.array([0, 1]),
        ...     batch=lambda at: Batch({}, torch.tensor([1, -100])[at], torch.tensor(at)))
        >>> found = measure(network, examples)
        >>> found.prediction, found.confidence.round(4), found.nll.round(4), found.correct
        (array([1, 1]), array([0.75, 0.75]), array([0.2877]), array([ True]))

    Source: T. M. Cover and J. A. Thomas, Elements of Information Theory (2006), section 2.3.
    """
    require(batch_size > 0, f"batch_size: is {batch_size}; it is at least 1")
    require(temperature > 0, f"temperature: is {temperature}; it is a positive number")
    side = _Teacher(teacher, network, examples, float(temperature))
    if examples.classes is not None:
        require_same_classes(network.classes, examples.classes, "network", "data")
    row_counts = np.asarray(examples.row_counts, dtype=np.int64)
    shown = np.flatnonzero(row_counts).tolist()
    parts: list[dict[str, NDArray[Any]]] = []
    with at_rest(network.module), at_rest(side.module):
        for start in range(0, len(shown), batch_size):
            indices = shown[start : start + batch_size]
            parts.append(_rows(network, examples, indices, side))
            if progress is not None:
                progress(start + len(indices))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    groups = np.asarray(examples.groups, dtype=np.int64)
    bytes_E = examples.byte_counts
    example_N = columns.pop("example", np.empty(0, np.int64))
    return Measured(
        network=network.identity,
        classes=network.classes if isinstance(network.classes, int) else tuple(network.classes),
        data=examples.fingerprint,
        language=examples.classes is None or bytes_E is not None,
        example=example_N,
        group=groups[example_N],
        example_group=groups,
        example_bytes=None if bytes_E is None else np.asarray(bytes_E, dtype=np.int64),
        teacher=side.name,
        record=side.keep,
        temperature=float(temperature),
        fidelity=side.fidelity,
        **{**side.nothing(), **columns},
    )


class _Teacher:
    """A live teacher, a record, or none: checked against the network and the data."""

    def __init__(
        self, teacher: Network | Record | None, network: Network, examples: Examples, temperature: float
    ) -> None:
        self.live: Network | None = teacher if hasattr(teacher, "head") else None  # type: ignore[assignment]
        self.record: Record | None = None if self.live is not None else teacher  # type: ignore[assignment]
        self.own = teacher is network
        self.temperature = temperature
        self.module: torch.nn.Module | None = None
        self.name: str | None = None
        self.keep: str | None = None
        self.fidelity = EXACT
        if self.live is not None:
            require_same_classes(self.live.classes, network.classes, "teacher", "network")
            for whose, tokenizer in (
                ("teacher", self.live.identity.tokenizer),
                ("network", network.identity.tokenizer),
            ):
                require(
                    tokenizer is None or examples.tokenizer is None or tokenizer == examples.tokenizer,
                    f"{whose}: its tokenizer is not the one that made the data's tokens; make them with its own",
                )
            self.module, self.name = self.live.module, self.live.identity.sha256
        elif self.record is not None:
            self.record.require_matches(
                data=examples.fingerprint,
                tokenizer=examples.tokenizer,
                classes=network.classes,
                temperature=temperature,
            )
            keep = self.record.manifest.keep
            self.name, self.keep = self.record.manifest.teacher.sha256, str(keep)
            self.fidelity = EXACT if keep.kind == "dense" else BOUND if keep.kind == "top" else ESTIMATED

    def target(self, batch: Batch, indices: Sequence[int], head: Head) -> Target:
        """What the rows of a batch should be; `head` is the network's own."""
        if self.own:
            return teacher_target(head)
        if self.live is not None:
            require_lengths(batch, indices, self.live.max_length)
            return teacher_target(self.live.head(batch).detached())
        assert self.record is not None
        target = self.record.target(indices, tail="bucket" if self.record.manifest.keep.kind == "top" else None)
        require(
            target.rows == head.rows,
            f"teacher: the record has {target.rows} rows where the data has {head.rows}; capture it again",
        )
        return moved_to(target, head.device)

    def largest(self, target: Target, own_n: Tensor) -> Tensor | None:
        """(n,) the teacher's most probable class; `own` is the network's."""
        if self.own:
            return own_n
        if isinstance(target, Dense):
            assert target.head is not None
            return _largest(target.head)[0]
        assert self.record is not None
        assert isinstance(target, Sparse)
        top = self.record.manifest.keep.top  # the first entries of a row, and the only ones that are exact
        return target.index[:, :top].gather(1, target.value[:, :top].argmax(1, keepdim=True))[:, 0] if top else None

    def nothing(self) -> dict[str, NDArray[Any]]:
        """The columns of no rows at all."""
        soft = ("cross_entropy", "entropy", "kl") if self.name is not None else ()
        return {
            **{name: np.empty(0) for name in ("confidence", "nll", *soft)},
            **{name: np.empty(0, np.int64) for name in ("label", "prediction")},
        }


def _rows(network: Network, examples: Examples, indices: list[int], side: _Teacher) -> dict[str, NDArray[Any]]:
    """The columns of one batch."""
    batch = examples.batch(indices)
    require_lengths(batch, indices, network.max_length)
    device = None if network.module is None else next((p.device for p in network.module.parameters()), None)
    batch = batch if device is None else batch.to(device)
    head = network.head(batch).detached()
    counts = np.asarray(examples.row_counts, dtype=np.int64)[indices]
    expected = int(counts.sum())
    classes = number_of(network.classes)
    require(
        (head.rows, head.classes, len(batch.labels)) == (expected, classes, expected),
        f"network: gives {head.rows} rows of {head.classes} classes for examples {indices[0]} … {indices[-1]}, which "
        f"have {len(batch.labels)} labels, where {expected} rows of {classes} classes are due",
    )
    prediction_n, confidence_n = _largest(head)
    example_n = torch.from_numpy(np.repeat(np.asarray(indices, dtype=np.int64), counts))

    def require_numbers(whose: str, value_n: Tensor) -> None:
        """What is infinite was held impossible, and is an answer; NaN is none."""
        if not bool(value_n.isnan().any()):
            return
        row = int(value_n.isnan().int().argmax())
        place = int((example_n == example_n[row]).int().argmax())
        raise ValueError(
            f"{whose} gives NaN or infinite logits at {name_of(examples, int(example_n[row]))}, row {row - place} of "
            "it; see what it makes of that input, or leave the example out"
        )

    require_numbers("the network", confidence_n)
    columns = {"example": example_n, "label": batch.labels, "prediction": prediction_n, "confidence": confidence_n}
    labelled_n = batch.labels != IGNORED
    terms = [Term(labels(batch.labels, head.classes))]
    if side.name is not None:
        target = side.target(batch, indices, head)
        terms.append(Term(target, temperature=side.temperature))
        predicted_n = side.largest(target, prediction_n)
        if predicted_n is not None:
            columns["teacher_prediction"] = predicted_n
    _, scores = objective(head, terms, total=1.0)
    columns["nll"] = scores[0].cross_entropy[labelled_n]
    if side.name is not None:
        score = scores[1]
        require_numbers("the teacher", score.cross_entropy)
        columns["cross_entropy"] = score.cross_entropy
        if score.unknown is None:
            columns |= {"entropy": score.entropy.double(), "kl": score.kl.double()}
            # Of two parts that were each summed by themselves, so that the identity holds in every row.
            columns["cross_entropy"] = columns["entropy"] + columns["kl"]
    return {name: _array(column_n) for name, column_n in columns.items()}


def _largest(head: Head) -> tuple[Tensor, Tensor]:
    """(n,) each row's most probable class, and its probability: a block of logits at a time."""
    size = torch.finfo(head.acc).bits // 8
    block = max(1, min(head.rows, _BLOCK_BYTES // (head.classes * size)))
    buffer_nC = torch.empty(block, head.classes, dtype=head.acc, device=head.device)
    at_n = torch.empty(head.rows, dtype=torch.int64, device=head.device)
    confidence_n = torch.empty(head.rows, dtype=head.acc, device=head.device)
    for start in range(0, head.rows, block):
        rows = slice(start, min(start + block, head.rows))
        z_nC = head.logits(rows, out=buffer_nC[: rows.stop - start])
        m_n, at_n[rows] = z_nC.max(dim=-1)
        confidence_n[rows] = 1 / z_nC.sub_(m_n[:, None]).exp_().sum(dim=-1)
    return at_n, confidence_n


def _array(column_n: Tensor) -> NDArray[Any]:
    return (column_n.double() if column_n.is_floating_point() else column_n.long()).cpu().numpy()
