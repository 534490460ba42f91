"""A training program written against torch, run as it was and with `likely` in its place: the same loss curve."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as torch_nn
import torch.nn.functional as torch_functional
from sklearn.datasets import load_digits
from torch import Tensor

import likely.functional
import likely.nn

# What follows is the program.  It knows nothing of likely: `F` and `nn` are its two imports.


def train(F: ModuleType, nn: ModuleType, dtype: torch.dtype, autocast: bool = False) -> dict[str, list[float]]:
    """Digits by a small network, with every loss that torch has for it, in minibatches, and the curves they leave."""
    torch.manual_seed(0)
    x, y, generator = *_digits(dtype), torch.Generator().manual_seed(1)
    body = torch_nn.Sequential(torch_nn.Linear(64, 32), torch_nn.ReLU()).to(dtype)
    classify, detect = torch_nn.Linear(32, 10).to(dtype), torch_nn.Linear(32, 10).to(dtype)
    criterion = nn.CrossEntropyLoss(weight=torch.linspace(0.5, 1.5, 10, dtype=dtype), label_smoothing=0.1)
    binary = nn.BCEWithLogitsLoss(pos_weight=torch.full((10,), 3.0, dtype=dtype))
    parameters = [*body.parameters(), *classify.parameters(), *detect.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    curves: dict[str, list[float]] = {}
    for _ in range(3):
        for rows in torch.randperm(len(x), generator=generator).split(128):
            labels = torch.where(torch.rand(len(rows), generator=generator) < 0.1, -100, y[rows])
            seen = y[rows]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                hidden = body(x[rows])
                z = classify(hidden)
                log_q = torch.log_softmax(z, dim=-1)
                soft = 0.7 * torch_functional.one_hot(seen, 10).to(dtype) + 0.03
                losses: dict[str, Tensor] = {
                    "smoothed": criterion(z, labels),
                    "hard": F.cross_entropy(z, labels, ignore_index=-100),
                    "soft": F.cross_entropy(z, soft),
                    "distilled": F.kl_div(log_q, soft, reduction="batchmean"),
                    "rows": F.cross_entropy(z, seen, reduction="none").clamp(max=4).mean(),
                    "nll": F.nll_loss(log_q, seen),
                    "detected": binary(detect(hidden), torch_functional.one_hot(seen, 10).to(dtype)),
                    "tokens": F.linear_cross_entropy(hidden, classify.weight, seen, linear_bias=classify.bias),
                }
                loss = torch.stack([value.to(dtype) for value in losses.values()]).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch_nn.utils.clip_grad_norm_(parameters, 5.0)
            optimiser.step()
            for name, value in losses.items():
                curves.setdefault(name, []).append(value.item())
    return curves


def _digits(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    images, digits = load_digits(return_X_y=True)
    return torch.from_numpy(np.asarray(images) / 16).to(dtype), torch.from_numpy(np.asarray(digits)).long()


# Here it ends.


def _torchs(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    if not hasattr(torch_functional, "linear_cross_entropy"):

        def linear_cross_entropy(x: Tensor, weight: Tensor, target: Tensor, *, linear_bias: Tensor) -> Tensor:
            return torch_functional.cross_entropy(torch_functional.linear(x, weight, linear_bias), target)

        monkeypatch.setattr(torch_functional, "linear_cross_entropy", linear_cross_entropy, raising=False)
    return torch_functional, torch_nn


@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [(torch.float64, False, 1e-9), (torch.float32, False, 2e-3), (torch.float32, True, 0.1)],
    ids=["float64", "float32", "autocast to bfloat16"],
)
def test_the_loss_curves_are_the_same(
    dtype: torch.dtype, autocast: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_it_was = train(*_torchs(monkeypatch), dtype, autocast)
    dropped_in = train(likely.functional, likely.nn, dtype, autocast)
    assert as_it_was.keys() == dropped_in.keys()
    for name, expected in as_it_was.items():
        found: Any = dropped_in[name]
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance, err_msg=name)
        assert expected[-1] < expected[0], f"{name}: the program trains nothing"
