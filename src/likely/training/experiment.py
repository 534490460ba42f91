"""The experiment of `likely distill`: a teacher, students that differ in their targets alone, and several splits.

Legend: S splits, R rows of the table, m held-out rows of a split, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Event

import numpy as np
import torch
from torch import Tensor

from likely._checks import require
from likely.evaluation import calibration_error
from likely.heads import Logits
from likely.networks.layers import Mlp
from likely.objective import nll
from likely.targets import labels, teacher
from likely.training.fit import Forward, Trained, fit
from likely.training.threads import in_threads

# Streams of random starts: all kinds of students start alike, so that they differ in their targets alone.
TEACHER, STUDENT, INNER = 0, 1, 2
HARD, TUNED = "hard labels", "hard labels, tuned penalty"


@dataclass(frozen=True)
class Plan:
    """What is trained, and how: the numbers of one experiment.

    A penalty is the λ in `loss + λ/2 · ‖weights‖²`, the loss being a mean in nats. That of the teacher is fixed
    beforehand; that of the tuned student is chosen among `penalties` on its own labelled rows. `coarse_evaluations` of
    the objective are for what takes long and gains little from more: penalised fits on all rows, as the teacher's, and
    the inner folds of cross-validation.
    """

    splits: int = 8
    labelled: int = 100
    hidden: int = 32
    members: int = 4
    temperature: float = 4.0
    smoothing: float = 0.1
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    inner_folds: int = 5
    teacher_penalty: float = 1e-3
    evaluations: int = 200
    coarse_evaluations: int = 150
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"splits": 2, "labelled": 2 * self.inner_folds, "inner_folds": 2}
        for name, smallest in (
            least | dict.fromkeys(("hidden", "members", "evaluations", "coarse_evaluations"), 1)
        ).items():
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
    """One kind of student on every split: its networks, held-out logits, penalties and learning curve in nats."""

    job: Job
    networks: list[torch.nn.Module]
    held_out: list[Tensor]
    trained: Trained
    penalty: list[float]
    curve: dict[str, list[float]]


@dataclass(eq=False)
class Results:
    """Everything that was trained, by the names of the jobs; `teacher_RC` has the logits of all rows for each split."""

    splits: list[Split]
    y_R: Tensor
    classes: int
    teacher_RC: list[Tensor]
    bags: list[list[torch.nn.Module]]
    kinds: dict[str, Kind] = field(default_factory=dict)
    full: dict[str, Kind] = field(default_factory=dict)
    without: dict[str, Kind] = field(default_factory=dict)
    left_out: int | None = None


Stage = Callable[[str, float], Callable[[float], None]]


@dataclass(frozen=True, eq=False)
class Job:
    """One kind of student to train on every split: which rows it sees, and what it is told about them."""

    group: str
    name: str
    rows: Sequence[Tensor]
    from_teacher: bool = False
    temperature: float = 1.0
    smoothing: float = 0.0
    penalty: float | None = 0.0  # None: chosen by cross-validation among the plan's
    coarse: bool = False  # trained with the plan's coarse_evaluations

    def cost(self, plan: Plan) -> float:
        """The work, in rows times evaluations; a network has some of its own whatever its rows."""
        once = float(sum(len(rows) + 100 for rows in self.rows))
        inner = len(plan.penalties) * plan.inner_folds if self.penalty is None else 0
        last = plan.coarse_evaluations if self.coarse else plan.evaluations
        return once * (last + inner * plan.coarse_evaluations)


def folds(y_R: np.ndarray, splits: int, seed: int) -> list[np.ndarray]:
    """S disjoint folds that cover the rows, each with its share of every class.

    >>> [fold.tolist() for fold in folds(np.array([0, 0, 1, 1]), 2, seed=0)]
    [[0, 2], [1, 3]]
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
    least = int(count >= len(kinds))
    while wanted.sum() != count:  # by largest remainder: one more where most is lacking, one less where most is over
        more = wanted.sum() < count
        lacking = np.where(wanted < sizes if more else wanted > least, exact - wanted, -np.inf if more else np.inf)
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


def jobs(splits: Sequence[Split], y_R: Tensor, plan: Plan, left_out: int | None) -> list[Job]:
    """The students of the experiment, in the order of the table."""
    T, own, everything = plan.temperature, [split.labelled for split in splits], [split.train for split in splits]
    softened = f"teacher, T = {T:g}"
    some = [
        Job("kinds", HARD, own),
        Job("kinds", TUNED, own, penalty=None),
        Job("kinds", f"smoothed labels, {plan.smoothing:g}", own, smoothing=plan.smoothing),
        Job("kinds", "teacher, T = 1", own, from_teacher=True),
        Job("kinds", softened, own, from_teacher=True, temperature=T),
        Job("full", f"{HARD}, penalised", everything, penalty=plan.teacher_penalty, coarse=True),
        Job("full", softened, everything, from_teacher=True, temperature=T),
    ]
    if left_out is not None:
        own = [rows[y_R[rows] != left_out] for rows in own]
        everything = [rows[y_R[rows] != left_out] for rows in everything]
        some += [
            Job("without", HARD, own),
            Job("without", softened, own, from_teacher=True, temperature=T),
            Job("without", f"{softened}, all rows", everything, from_teacher=True, temperature=T),
        ]
    return [job for number, job in enumerate(some) if T != 1 or number != 4]


def experiment(
    splits: Sequence[Split],
    y_R: Tensor,
    classes: int,
    plan: Plan,
    *,
    teacher_RC: Tensor | None = None,
    left_out: int | None = None,
    stage: Stage = lambda name, share: lambda done: None,
) -> Results:
    """Train the teacher and every kind of student on every split.

    Args:
        splits: from `make_splits`.
        y_R: labels of all the rows.
        classes: C.
        plan: the numbers.
        teacher_RC: the logits of a teacher that exists already; without them a bag of MLPs is trained on every split,
            whose logits are the logarithm of the members' mean probability.
        left_out: a class that the students of the last part never see.
        stage: called with the name of each stage and its share of the work; it gives the `tick` of `fit`.

    Raises: ValueError where a split has too few rows for what is asked.
    """
    todo = jobs(splits, y_R, plan, left_out)
    bag = Job("teacher", "teacher", [split.train for split in splits for _ in range(plan.members)], coarse=True)
    bagging = 0.0 if teacher_RC is not None else bag.cost(plan)
    whole = bagging + sum(job.cost(plan) for job in todo)
    bags: list[list[torch.nn.Module]] = []
    if teacher_RC is None:
        bags = _bags(splits, y_R, classes, plan, stage("teacher", bagging / whole))
        teachers = [bag_logits(bag, split.x_RD) for bag, split in zip(bags, splits)]
    else:
        teachers = [teacher_RC] * len(splits)
    results = Results(list(splits), y_R, classes, teachers, bags, left_out=left_out)

    def run(job: Job, stop: Event) -> Kind:
        tick = stage(job.name, job.cost(plan) / whole)

        def going_on(done: float) -> None:
            if stop.is_set():
                raise InterruptedError("stopped")
            tick(done)

        return _students(job, results, plan, going_on)

    for job, kind in zip(todo, in_threads([partial(run, job) for job in todo])):
        getattr(results, job.group)[job.name] = kind
    return results


def _networks(count: int, split: Split, classes: int, plan: Plan, stream: int) -> list[torch.nn.Module]:
    """`count` networks whose starts depend on the seed and the stream alone: kinds of students start alike."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([plan.seed, stream]).generate_state(1)[0]))
    return [Mlp(split.x_RD.shape[1], plan.hidden, classes, generator=generator) for _ in range(count)]


def _bags(
    splits: Sequence[Split], y_R: Tensor, classes: int, plan: Plan, tick: Callable[[float], None]
) -> list[list[torch.nn.Module]]:
    members = [split for split in splits for _ in range(plan.members)]
    networks = _networks(len(members), splits[0], classes, plan, TEACHER)
    fit(
        networks,
        [split.x_RD[split.train] for split in members],
        [y_R[split.train] for split in members],
        classes,
        penalty=plan.teacher_penalty,
        evaluations=plan.coarse_evaluations,
        tick=tick,
    )
    return [networks[start : start + plan.members] for start in range(0, len(networks), plan.members)]


def _students(job: Job, results: Results, plan: Plan, tick: Callable[[float], None]) -> Kind:
    """Train one kind of student on every split."""
    splits, classes = results.splits, results.classes
    networks = _networks(len(splits), splits[0], classes, plan, STUDENT)
    penalty = [job.penalty or 0.0] * len(splits)
    rest = tick
    if job.penalty is None:
        inner = len(plan.penalties) * plan.inner_folds
        penalty = _chosen_penalties(job, results, plan, lambda done: tick(done * inner / (inner + 1)))

        def rest(done: float) -> None:
            tick(done / (inner + 1))

    curve: dict[str, list[float]] = {"step": [], "cross_entropy": [], "entropy": []}

    def watch(evaluation: int, forward: Forward) -> None:
        if evaluation != _rounded(evaluation):
            return
        scores = [
            nll(Logits(z_mC), teacher(teacher_RC[split.test])).mean()
            for z_mC, teacher_RC, split in zip(forward(held), results.teacher_RC, splits)
        ]
        curve["step"].append(evaluation)
        curve["cross_entropy"].append(float(torch.stack([score.cross_entropy for score in scores]).mean()))
        curve["entropy"].append(float(torch.stack([score.entropy for score in scores]).mean()))

    held = [split.x_RD[split.test] for split in splits]
    targets = results.teacher_RC if job.from_teacher else [results.y_R] * len(splits)
    trained = fit(
        networks,
        [split.x_RD[rows] for split, rows in zip(splits, job.rows)],
        [target[rows] for target, rows in zip(targets, job.rows)],
        classes,
        smoothing=job.smoothing,
        temperature=job.temperature,
        penalty=penalty,
        evaluations=plan.coarse_evaluations if job.coarse else plan.evaluations,
        watch=watch if job.group == "kinds" else None,
        tick=rest,
    )
    with torch.no_grad():
        logits = [network(x_mD) for network, x_mD in zip(networks, held)]
    return Kind(job, networks, logits, trained, penalty, curve)


def _chosen_penalties(job: Job, results: Results, plan: Plan, tick: Callable[[float], None]) -> list[float]:
    """The penalty of each split with the least cross-validated negative log-likelihood on the rows of the job.

    Every penalty is tried on every inner fold of every split: one stack of networks, which share their starts.
    """
    classes = results.classes
    x, y, penalties, held = [], [], [], []
    for penalty in plan.penalties:  # outermost, since those with the same penalty arrive together
        for split, rows in zip(results.splits, job.rows):
            y_n = results.y_R[rows]
            for fold in folds(y_n.numpy(), plan.inner_folds, plan.seed):
                kept = torch.ones(len(rows), dtype=torch.bool)
                kept[torch.from_numpy(fold)] = False
                x.append(split.x_RD[rows[kept]])
                y.append(y_n[kept])
                held.append((split.x_RD[rows[~kept]], y_n[~kept]))
                penalties.append(penalty)
    networks = _networks(len(x), results.splits[0], classes, plan, INNER)
    fit(networks, x, y, classes, penalty=penalties, evaluations=plan.coarse_evaluations, tick=tick)
    with torch.no_grad():
        losses = [
            nll(Logits(network(x_mD)), labels(y_m, classes)).cross_entropy.sum()
            for network, (x_mD, y_m) in zip(networks, held)
        ]
    total = torch.stack(losses).reshape(len(plan.penalties), len(results.splits), plan.inner_folds).sum(2)
    return [plan.penalties[int(best)] for best in total.argmin(0)]


def _rounded(evaluation: int) -> int:
    """Where a learning curve is drawn: each evaluation up to 10, and a tenth further each time from there on."""
    point = 0
    while point < evaluation:
        point += max(1, point // 10)
    return point


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
