"""What truncating a teacher's record costs a student too small for its teacher: a toy with nothing in it but that.

A teacher of 100 classes, a linear student, and records of equal size: labels drawn from the teacher, its K largest
classes renormalised or with a bucket for the rest, and K draws from it.  Each student is brought to its optimum (the
problem is convex), and the exact KL divergence from the teacher on fresh rows is compared with that of the student of
the whole teacher.  Truncation is biased: more rows do not help it.  Draws are not.

    python -m examples.truncation

Shapes: N rows, D features, C classes, K stored entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from likely import Linear, Logits, Target, labels, nll, objective, samples, teacher, top_k
from likely.measures import Estimate, estimate

FEATURES, HIDDEN, CLASSES = 12, 48, 100


def teachers_logits(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, D) features and the (N, C) logits that a network of two layers, no linear one, makes of them."""
    draw = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(12)
    first = torch.randn(FEATURES, HIDDEN, generator=fixed) * (2.0 / FEATURES**0.5)
    second = torch.randn(HIDDEN, CLASSES, generator=fixed) * (5.0 / HIDDEN**0.5)
    x_ND = torch.randn(rows, FEATURES, generator=draw)
    return x_ND, torch.tanh(x_ND @ first) @ second


def optimum(x_ND: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """The weight and the bias at which a linear student has the least cross-entropy to a target."""
    weight = torch.zeros(CLASSES, FEATURES, requires_grad=True)
    bias = torch.zeros(CLASSES, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-7)

    def loss() -> Tensor:
        search.zero_grad()
        value, _ = objective(Linear(x_ND, weight, bias), target)
        value.backward()
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def records(z_NC: Tensor, stored: int, seed: int) -> dict[str, Target]:
    """What is known of a teacher by each way of keeping `stored` entries of a row; of a label there is one."""
    p_NC = z_NC.softmax(dim=-1)
    largest = p_NC.topk(stored)
    draws_NK = torch.multinomial(p_NC, stored, replacement=True, generator=torch.Generator().manual_seed(seed))
    return {
        "labels": labels(draws_NK[:, 0], CLASSES),
        "top, renormalised": top_k(largest.indices, largest.values, CLASSES, tail="renormalise"),
        "top, with a bucket": top_k(largest.indices, largest.values, CLASSES, tail="bucket"),
        "samples": samples(draws_NK, torch.ones(draws_NK.shape), CLASSES),
    }


def excess(stored: int, seeds: Sequence[int] = range(3), rows: int = 8000) -> dict[str, Estimate]:
    """The KL divergence from the teacher in excess of that of full distillation, in nats, over some seeds."""
    found: dict[str, list[float]] = {}
    for seed in seeds:
        x_ND, z_NC = teachers_logits(rows, seed)
        fresh_ND, fresh_NC = teachers_logits(rows, 1000 + seed)

        def divergence(target: Target, x_ND: Tensor = x_ND, z: Tensor = fresh_NC, fresh: Tensor = fresh_ND) -> float:
            return float(nll(Linear(fresh, *optimum(x_ND, target)), teacher(Logits(z))).mean().kl)

        full = divergence(teacher(Logits(z_NC)))
        for name, target in records(z_NC, stored, seed).items():
            found.setdefault(name, []).append(divergence(target) - full)
    return {name: estimate(values) for name, values in found.items()}


def main() -> None:
    print("excess KL over full distillation, in nats (± one standard error of three data sets)\n")
    for stored in (3, 5):
        for name, value in excess(stored).items():
            print(f"{stored} stored entries   {name:<20}{value}")


if __name__ == "__main__":
    main()
