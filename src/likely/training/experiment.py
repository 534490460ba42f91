"""The experiment of `likely distill`: a teacher, students that differ in their targets alone, and several splits.

Legend: S splits, R rows of the table, m held-out rows of a split, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from likely._checks import require
from likely.evaluation import calibration_error
from likely.heads import Logits
from likely.objective import nll
from likely.targets import labels, teacher
from likely.training.fit import Forward, Trained, fit
from likely.training.networks import Mlp

# Seeds: each network of a run draws its start from a stream of its own, so that no kind of student depends on another.
TEACHER, STUDENT, INNER = 0, 1, 2


@dataclass(frozen=True)
class Plan:
    """What is trained, and how: the numbers of one experiment.

    `penalty` in `teacher_penalty` and `penalties` is λ in `loss + λ/2 · ‖weights‖²`, the loss being a mean in nats.
    """

    splits: int = 8
    labelled: int = 100
    hidden: int = 20
    members: int = 4
    temperature: float = 4.0
    smoothing: float = 0.1
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    inner_folds: int = 5
    teacher_penalty: float = 1e-4
    evaluations: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"splits": 2, "labelled": 2, "hidden": 1, "members": 1, "inner_folds": 2, "evaluations": 1}
        for name, smallest in least.items():
            require(getattr(self, name) >= smallest, f"{name}: is {getattr(self, name)}; give {smallest} or more")
        require(self.temperature > 0, f"temperature: is {self.temperature}; it is a positive number")
        require(0 <= self.smoothing < 1, f"smoothing: is {self.smoothing}; it is at least 0 and below 1")
        require(len(self.penalties) > 0, "penalties: is empty; give at least one to choose from")


@dataclass(frozen=True, eq=False)
class Split:
    """One fold held out: features as the training rows scale them, and the rows for each purpose (indices)."""

    x_RD: Tensor
    train: Tensor
    test: Tensor
    labelled: Tensor


@dataclass(eq=False)
class Kind:
    """One kind of student on every split: its networks, its held-out logits and its learning curve."""

    name: str
    networks: list[torch.nn.Module]
    held_out: list[Tensor]
    trained: Trained
    curve: dict[str, list[float]] = field(default_factory=dict)
    penalty: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Results:
    """Everything that was trained; logits are on the held-out rows of each split unless the name says otherwise."""

    splits: list[Split]
    y_R: Tensor
    classes: int
    teacher_RC: list[Tensor]
    bags: list[list[torch.nn.Module]]
    kinds: dict[str, Kind]
    full: dict[str, Kind]
    without: dict[str, Kind]
    left_out: int | None
    test_train_ratio: float | None


Stage = Callable[[str, float], Callable[[float], None]]


def folds(y_R: np.ndarray, splits: int, seed: int) -> list[np.ndarray]:
    """S disjoint folds that cover the rows, each with its share of every class.

    >>> [fold.tolist() for fold in folds(np.array([0, 0, 1, 1]), 2, seed=0)]
    [[0, 3], [1, 2]]
    """
    require(len(y_R) >= 2 * splits, f"splits: {splits} of them need {2 * splits} rows or more, there are {len(y_R)}")
    shuffled = np.random.default_rng(seed).permutation(len(y_R))
    # Sorted by class and dealt out like cards: no fold has more than one row of a class more than another.
    dealt = shuffled[np.argsort(y_R[shuffled], kind="stable")]
    return [np.sort(dealt[number::splits]) for number in range(splits)]


def stratified(y_n: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Positions of `count` rows that hold the classes in the proportions of `y`, at least one of each where it can be.

    >>> rows = stratified(np.array([0] * 60 + [1] * 30 + [2] * 10), 10, np.random.default_rng(0))
    >>> np.bincount(np.array([0] * 60 + [1] * 30 + [2] * 10)[rows])
    array([6, 3, 1])
    """
    kinds, sizes = np.unique(y_n, return_counts=True)
    exact = sizes * count / len(y_n)
    wanted = np.minimum(np.maximum(np.floor(exact).astype(int), 1), sizes)
    while wanted.sum() != count:  # by largest remainder: one more where most is lacking, one less where most is over
        more = wanted.sum() < count
        lacking = np.where(wanted < sizes if more else wanted > 0, exact - wanted, -np.inf if more else np.inf)
        wanted[lacking.argmax() if more else lacking.argmin()] += 1 if more else -1
    chosen = [generator.permutation(np.flatnonzero(y_n == kind))[:n] for kind, n in zip(kinds, wanted)]
    return np.sort(np.concatenate(chosen))


def make_splits(
    y_R: np.ndarray, encode: Callable[[np.ndarray], np.ndarray], plan: Plan
) -> tuple[list[Split], float | None]:
    """The splits, and n_test / n_train where the students' rows overlap (None where they do not).

    The labelled rows of a split come from the fold that follows the one held out. Where that fold has enough of them,
    neither the test rows nor the students' rows of two splits overlap, and splits are independent but for the teacher.
    Where it has not, the following folds are drawn upon, and intervals need the correction of Nadeau and Bengio.
    """
    parts = folds(y_R, plan.splits, plan.seed)
    splits, overlap = [], None
    for number, test in enumerate(parts):
        others = [parts[(number + ahead) % plan.splits] for ahead in range(1, plan.splits)]
        train = np.sort(np.concatenate(others))
        require(
            plan.labelled <= len(train),
            f"labelled: {plan.labelled} rows, but {len(train)} of {len(y_R)} are there to train on; give fewer",
        )
        pool, used = others[0], 1
        while len(pool) < plan.labelled:
            pool, used = np.concatenate([pool, others[used]]), used + 1
        if used > 1:
            overlap = len(test) / len(train)
        drawn = pool[stratified(y_R[pool], plan.labelled, np.random.default_rng([plan.seed, number]))]
        x_RD = torch.from_numpy(encode(train))
        splits.append(Split(x_RD, *(torch.from_numpy(np.sort(rows)) for rows in (train, test, drawn))))
    return splits, overlap


def experiment(
    splits: Sequence[Split],
    y_R: Tensor,
    classes: int,
    plan: Plan,
    *,
    teacher_RC: Tensor | None = None,
    left_out: int | None = None,
    test_train_ratio: float | None = None,
    stage: Stage = lambda name, share: lambda done: None,
) -> Results:
    """Train the teacher and every kind of student on every split.

    Args:
        teacher_RC: the logits of a teacher that exists already; without them a bag of MLPs is trained on every split,
            whose logits are the logarithm of the members' mean probability.
        left_out: a class that the students of the last part never see.
        stage: called with the name of each stage and its share of the work; it gives the `tick` of `fit`.

    Raises: ValueError where a split has too few rows for what is asked.
    """
    lab = _Laboratory(list(splits), y_R, classes, plan, stage)
    lab.budget(builtin=teacher_RC is None, left_out=left_out)
    bags: list[list[torch.nn.Module]] = []
    if teacher_RC is None:
        bags = lab.bags()
        lab.teacher_RC = [bag_logits(bag, split.x_RD) for bag, split in zip(bags, splits)]
    else:
        lab.teacher_RC = [teacher_RC] * len(splits)
    own, everything = [split.labelled for split in splits], [split.train for split in splits]
    smoothed, softened = f"smoothed labels {plan.smoothing:g}", f"teacher, T = {plan.temperature:g}"
    kinds = [
        lab.train("hard labels", own),
        lab.tuned("hard labels, tuned penalty", own),
        lab.train(smoothed, own, smoothing=plan.smoothing),
        lab.train("teacher, T = 1", own, temperature=1.0),
    ]
    if plan.temperature != 1:
        kinds.append(lab.train(softened, own, temperature=plan.temperature))
    full = [
        lab.train("hard labels, all rows", everything, penalty=[plan.teacher_penalty] * len(splits)),
        lab.train(f"{softened}, all rows", everything, temperature=plan.temperature),
    ]
    without = []
    if left_out is not None:
        own, everything = lab.leave_out(own, left_out), lab.leave_out(everything, left_out)
        without = [
            lab.train("hard labels", own),
            lab.train(softened, own, temperature=plan.temperature),
            lab.train(f"{softened}, all rows", everything, temperature=plan.temperature),
        ]
    named: list[dict[str, Kind]] = [{kind.name: kind for kind in some} for some in (kinds, full, without)]
    return Results(list(splits), y_R, classes, lab.teacher_RC, bags, *named, left_out, test_train_ratio)


def bag_logits(bag: Sequence[torch.nn.Module], x_RD: Tensor) -> Tensor:
    """The logits of a bag of networks: the logarithm of their mean probability, (R, C).

    >>> two = [torch.nn.Linear(1, 2), torch.nn.Linear(1, 2)]
    >>> mean = sum(torch.softmax(one(torch.ones(1, 1)), 1) for one in two) / 2
    >>> bool(torch.allclose(bag_logits(two, torch.ones(1, 1)), mean.log()))
    True
    """
    with torch.no_grad():
        logs = torch.stack([torch.log_softmax(member(x_RD), dim=1) for member in bag])
    return torch.logsumexp(logs, dim=0) - float(np.log(len(bag)))


def measure(z_mC: Tensor, y_m: Tensor, teacher_mC: Tensor) -> dict[str, float]:
    """What is reported of one student on the held-out rows of one split, all at T = 1, in nats and as fractions.

    >>> z = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> one = measure(z, torch.tensor([0, 0]), z)
    >>> one["error"], one["kl"], round(one["cross_entropy"] - one["entropy"], 12)
    (0.5, 0.0, 0.0)
    """
    head, classes = Logits(z_mC), z_mC.shape[1]
    on_labels, on_teacher = nll(head, labels(y_m, classes)).mean(), nll(head, teacher(teacher_mC)).mean()
    prediction_m = z_mC.argmax(1)
    return {
        "error": float((prediction_m != y_m).double().mean()),
        "nll": float(on_labels.cross_entropy),
        "cross_entropy": float(on_teacher.cross_entropy),
        "entropy": float(on_teacher.entropy),
        "kl": float(on_teacher.kl),
        "agreement": float((prediction_m == teacher_mC.argmax(1)).double().mean()),
        "calibration_error": calibration_error(torch.softmax(z_mC, 1).numpy(), y_m.numpy()).mean,
    }


@dataclass(eq=False)
class _Laboratory:
    """The splits with what every training shares."""

    splits: list[Split]
    y_R: Tensor
    classes: int
    plan: Plan
    stage: Stage
    teacher_RC: list[Tensor] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
"""
