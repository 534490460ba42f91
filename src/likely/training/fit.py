"""Training a stack of small networks on the objective, all in one call.

Legend: B networks, n rows of each (padded to the longest), N = B · n rows of the stack, D features, C classes,
P parameters of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event

import torch
from torch import Tensor

from likely._checks import require
from likely.heads import Logits
from likely.objective import Term, objective
from likely.targets import Target, labels, teacher
from likely.training.minimise import Minimum, minimise
from likely.training.threads import in_threads

# A stack is trained in parts of so many networks, and so many rows: enough to outweigh the overhead of a call, few
# enough to stay in the cache.
_NETWORKS, _ROWS = 40, 6400

Forward = Callable[[Sequence[Tensor]], list[Tensor]]


class Stack:
    """Networks of one architecture as one function of a matrix of parameters (B, P), row b being network b.

    >>> import torch
    >>> stack = Stack([torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)])
    >>> stack.logits(stack.parameters(), torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 2])
    """

    def __init__(self, networks: Sequence[torch.nn.Module]) -> None:
        require(len(networks) > 0, "networks: is empty; give at least one network to train")
        self.networks = list(networks)
        self.shapes = {name: p.shape for name, p in networks[0].named_parameters()}
        for number, network in enumerate(networks):
            same = {name: p.shape for name, p in network.named_parameters()} == self.shapes
            require(same, f"networks: number {number} has other parameters than number 0; a stack has one architecture")

    def parameters(self) -> Tensor:
        """The parameters of the networks, (B, P)."""
        rows = [torch.cat([p.detach().reshape(-1) for p in network.parameters()]) for network in self.networks]
        return torch.stack(rows)

    def is_weight(self) -> Tensor:
        """Ones where a parameter is a weight and zeros where it is a bias, (P,): a penalty leaves biases alone."""
        first = next(self.networks[0].parameters())
        return torch.cat([first.new_full((shape.numel(),), float(len(shape) > 1)) for shape in self.shapes.values()])

    def _split(self, theta_BP: Tensor) -> dict[str, Tensor]:
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = theta_BP.split(sizes, dim=1)
        return {name: part.unflatten(1, shape) for (name, shape), part in zip(self.shapes.items(), parts)}

    def logits(self, theta_BP: Tensor, x_BnD: Tensor) -> Tensor:
        """The logits (B, n, C) of the networks with these parameters, each on its own rows."""

        def one(parameters: dict[str, Tensor], x_nD: Tensor) -> Tensor:
            return torch.func.functional_call(self.networks[0], parameters, (x_nD,))

        return torch.vmap(one)(self._split(theta_BP), x_BnD)

    def set(self, theta_BP: Tensor) -> None:
        """Write the parameters back into the networks."""
        for number, network in enumerate(self.networks):
            parts = self._split(theta_BP[number : number + 1])
            network.load_state_dict({name: part[0] for name, part in parts.items()}, strict=False)


@dataclass(frozen=True)
class Trained:
    """What `fit` reports of B networks: final `loss` (B,) in nats, `converged` (B,), `evaluations` of the objective."""

    loss: Tensor
    converged: Tensor
    evaluations: int


def fit(
    networks: Sequence[torch.nn.Module],
    x: Sequence[Tensor],
    target: Sequence[Tensor],
    classes: int,
    *,
    smoothing: float = 0.0,
    temperature: float = 1.0,
    penalty: float | Sequence[float] = 0.0,
    evaluations: int = 300,
    watch: Callable[[int, Forward], None] | None = None,
    tick: Callable[[float], None] | None = None,
) -> Trained:
    """Train every network in place, network b on its own rows: full batch, L-BFGS.

        loss_b = T² · mean_n CE(p_n, softmax(z_n / T)) + penalty_b / 2 · ‖weights_b‖²

    The first part is `likely.objective`, formed once for the whole stack, its rows weighted by 1/n_b, so that it is the
    sum of the networks' means. A row adds nothing to another network's loss or gradient.

    Args:
        networks: B modules of one architecture, mapping (n, D) to (n, C).
        x: B matrices (n_b, D); the numbers of rows may differ.
        target: B vectors (n_b,) of labels, or B matrices (n_b, C) of a teacher's logits, softened by `temperature`.
        classes: C.
        smoothing: label smoothing ε, for labels.
        temperature: T, of the Term.
        penalty: one number, or one for each network; biases are not penalised.
        evaluations: of the objective, at most.
        watch: called with the number of evaluations and a function from held-out inputs to logits, network by network.
        tick: called with the share of the work done since the last call; the shares add up to 1.

    Raises: ValueError for stacks that do not fit each other, and where the loss is not finite at the start.
    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), for T².

    >>> import torch
    >>> net = torch.nn.Linear(1, 2, dtype=torch.float64)
    >>> x, y = torch.tensor([[-1.0], [0.0], [1.0], [2.0]], dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    >>> round(fit([net], [x], [y], 2).loss.item(), 4)
    0.5869
    """
    B = len(networks)
    require(len(x) == B and len(target) == B, f"x, target: {len(x)} and {len(target)} of them for {B} networks")
    penalties = [float(penalty)] * B if isinstance(penalty, (int, float)) else list(penalty)
    require(len(penalties) == B, f"penalty: {len(penalties)} of them for {B} networks")
    hard = target[0].dim() == 1
    require(hard or smoothing == 0, "smoothing: is for labels; a teacher's logits say themselves how sure they are")

    def train(part: slice, stop: Event) -> Minimum:
        stack = Stack(networks[part])
        x_BnD, weight_N = _padded(x[part])
        y = torch.cat([_pad(one, x_BnD.shape[1]) for one in target[part]])
        goal = labels(y, classes, smoothing=smoothing, weight=weight_N) if hard else teacher(y, weight=weight_N)
        share = len(stack.networks) / B

        def progress(evaluation: int, theta_BP: Tensor) -> None:
            if stop.is_set():
                raise InterruptedError("stopped")
            if tick is not None and evaluation:
                tick(share / evaluations)
            if watch is not None:
                watch(evaluation, lambda held: _logits(stack, theta_BP, held))

        found = minimise(
            _stacked_loss(stack, x_BnD, goal, temperature, torch.tensor(penalties[part], dtype=x_BnD.dtype)),
            stack.parameters(),
            evaluations=evaluations,
            watch=progress,
        )
        if tick is not None:
            tick(share * (1 - found.evaluations / evaluations))
        stack.set(found.theta)
        return found

    # What the parts are does not depend on the number of threads, so that neither does what comes of them.
    found = in_threads([partial(train, part) for part in (_parts(x) if watch is None else [slice(0, B)])])
    return Trained(
        torch.cat([one.loss for one in found]),
        torch.cat([one.converged for one in found]),
        max(one.evaluations for one in found),
    )


def _stacked_loss(
    stack: Stack, x_BnD: Tensor, goal: Target, temperature: float, penalty_B: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The function that `minimise` wants: parameters (B, P) to losses (B,) and gradients (B, P)."""
    assert goal.weight is not None
    weight_N = goal.weight
    penalised_P = stack.is_weight()

    def evaluate(theta_BP: Tensor) -> tuple[Tensor, Tensor]:
        theta_BP = theta_BP.detach().requires_grad_()
        z_NC = stack.logits(theta_BP, x_BnD).flatten(0, 1)
        loss, (score,) = objective(Logits(z_NC), [Term(goal, temperature=temperature)], total=1.0)
        (gradient_BP,) = torch.autograd.grad(loss, theta_BP)
        # The objective gives the sum over the stack; each network's part of it is told apart by its rows' scores.
        loss_B = temperature**2 * (weight_N * score.cross_entropy).unflatten(0, (len(penalty_B), -1)).sum(1)
        penalised_BP = penalised_P * theta_BP.detach()
        return (
            loss_B + 0.5 * penalty_B * penalised_BP.square().sum(1),
            gradient_BP + penalty_B[:, None] * penalised_BP,
        )

    return evaluate


def _parts(x: Sequence[Tensor]) -> list[slice]:
    """Slices of the stack that are trained together."""
    size = max(1, min(_NETWORKS, _ROWS // max(len(one) for one in x)))
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _padded(x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Inputs (B, n, D) and weights (B · n,): 1/n_b for a row of network b, 0 for what only fills up."""
    longest = max(len(one) for one in x)
    weights = [_pad(one.new_full((len(one),), 1 / len(one)), longest) for one in x]
    return torch.stack([_pad(one, longest) for one in x]), torch.cat(weights)


def _pad(one: Tensor, rows: int) -> Tensor:
    return torch.cat([one, one.new_zeros(rows - len(one), *one.shape[1:])])


def _logits(stack: Stack, theta_BP: Tensor, held: Sequence[Tensor]) -> list[Tensor]:
    x_BnD, _ = _padded(held)
    with torch.no_grad():
        return [z_nC[: len(one)] for z_nC, one in zip(stack.logits(theta_BP, x_BnD), held)]
