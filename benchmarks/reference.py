"""The float64 reference of a case, and the error of what a contestant returned.

`python -m benchmarks.reference CASE FOLDER [--inputs-only]` makes the inputs and the reference and saves them, in a
process of its own, so that neither stays in the memory of the one that drives the benchmark.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.definitions import loss_of
from benchmarks.problems import Case, Problem, make, mapped, save

BLOCK_BYTES = 2**26


def reference(problem: Problem) -> tuple[float, list[Tensor]]:
    """The loss and its gradients in float64, by automatic differentiation of the definition, in blocks of rows."""
    case, exact = problem.case, problem.double()
    leaves = [leaf.requires_grad_() for leaf in exact.leaves]
    block = max(1, BLOCK_BYTES // (8 * case.classes))
    total = 0.0
    for start in range(0, case.rows, block):
        part = exact.rows(slice(start, min(start + block, case.rows)))
        share = part.leaves[0].shape[0] / case.rows
        loss = loss_of(part) * share
        loss.backward()
        total += loss.item()
    return total, [leaf.grad for leaf in leaves if leaf.grad is not None]


def relative_error(found: Tensor, exact: Tensor) -> float:
    """`max |found − exact| / max |exact|`: the largest error, relative to the largest entry; NaN counts as infinite.

    >>> relative_error(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]))
    0.25
    """
    if found.shape != exact.shape or not exact.numel():
        return math.inf
    gap, size = 0.0, 0.0
    rows = max(1, 2**22 * exact.shape[0] // exact.numel()) if exact.dim() else 1
    for a, b in zip(
        found.detach().reshape(len(found) if found.dim() else 1, -1).split(rows),
        exact.reshape(len(exact) if exact.dim() else 1, -1).split(rows),
    ):
        part = float((a.cpu().double() - b.cpu().double()).abs().max())
        gap = math.inf if math.isnan(part) else max(gap, part)
        size = max(size, float(b.abs().max()))
    return gap / size if size else (0.0 if gap == 0 else math.inf)


def errors(case: Case, loss: float, gradients: Sequence[Tensor], folder: Path) -> dict[str, float]:
    """The relative errors of the loss and of each gradient against the reference saved in the folder."""
    exact = json.loads((folder / "reference.json").read_text())
    found = {
        "loss": relative_error(
            torch.tensor(loss, dtype=torch.float64), torch.tensor(exact["loss"], dtype=torch.float64)
        )
    }
    for k, gradient in enumerate(gradients):
        shape = tuple(exact["shapes"][k])
        found[exact["names"][k]] = relative_error(gradient, mapped(folder / f"gradient{k}.bin", shape, torch.float64))
    return found


def prepare(case: Case, folder: Path, inputs_only: bool = False) -> None:
    """Make the inputs and the reference of a case and save them."""
    problem = make(case)
    problem.save(folder)
    if inputs_only:
        return
    loss, gradients = reference(problem)
    for k, gradient in enumerate(gradients):
        save(gradient.cpu(), folder / f"gradient{k}.bin")
    names = ["dx", "dW"] if case.has_head else ["dz"]
    about = {"loss": loss, "names": names, "shapes": [list(g.shape) for g in gradients]}
    (folder / "reference.json").write_text(json.dumps(about))


if __name__ == "__main__":
    prepare(Case(**json.loads(sys.argv[1])), Path(sys.argv[2]), "--inputs-only" in sys.argv)
