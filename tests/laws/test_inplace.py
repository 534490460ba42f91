"""A gradient in the logits' own memory is the gradient, nothing is held beside it, and it is handed on once.

Legend: N rows, C classes.
"""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import likely
from likely.kernels import loop
from tests.cases import TARGETS, Kernel, make_case

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def produced(z: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf, and logits made of it by an operation that saves nothing."""
    leaf = z.clone().requires_grad_()
    return leaf, leaf * 1.0


@pytest.mark.parametrize("row_pass", [None, "plain"])
@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TARGETS)
def test_equals_what_is_formed_elsewhere(name: str, dtype: torch.dtype, block: int | None, row_pass: Any) -> None:
    made, head = make_case(name, "logits", dtype=dtype)
    terms = [likely.Term(made.target, temperature=made.temperatures[-1], weight=0.7)]
    found = []
    for kernel in ("chunked", "inplace"):
        leaf, z = produced(head.tensors[0])  # type: ignore[arg-type]
        own = likely.Logits(z)
        run = Kernel(kernel, block, row_pass)
        loss, scores = run.objective(own, terms, z_loss=0.1)
        (grad,) = run.gradients(3 * loss, own, [leaf])
        kl = scores[0].kl if made.known else None
        found.append((loss.detach(), grad, scores[0].cross_entropy, kl, scores.z_loss))
        if kernel == "inplace":
            assert grad.data_ptr() != leaf.data_ptr()
            torch.testing.assert_close(z.detach(), grad)  # where the logits were
    for elsewhere, here in zip(*found):
        torch.testing.assert_close(here, elsewhere, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_nothing_is_held_beside_the_logits() -> None:
    from tests.laws.test_memory import Largest

    _, z = produced(torch.randn(64, 500))
    with Largest() as seen, mock.patch.object(loop, "BLOCK_BYTES", 4 * 500 * 4):
        loss, _ = likely.objective(likely.Logits(z), likely.labels(torch.arange(64), 500), memory="inplace")
        gradient = torch.autograd.grad(loss, z)[0]
    assert gradient.data_ptr() == z.data_ptr()
    assert seen.numel <= 64 * 500  # the gradient itself, as autograd returns it


def test_it_is_handed_on_once_and_whoever_saved_the_logits_is_told() -> None:
    target = likely.labels([0, 1], 3)
    leaf, z = produced(torch.randn(2, 3))
    loss = likely.functional.cross_entropy(z, torch.tensor([0, 1]), inplace=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace: a second backward pass"):
        loss.backward()
    leaf, z = produced(torch.randn(2, 3))
    saved = z.exp()  # does not save z
    square = z.square()  # does
    loss = likely.objective(likely.Logits(z), target, memory="inplace")[0]
    torch.autograd.grad(saved.sum(), leaf, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad((square.sum() + loss), leaf)


def test_logits_without_a_gradient_stay() -> None:
    z = torch.randn(2, 3)
    before = z.clone()
    loss = likely.functional.cross_entropy(z, torch.tensor([0, 1]), inplace=True)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(z, torch.tensor([0, 1])))
    assert torch.equal(z, before)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (lambda z: z.clone().requires_grad_(), "the logits are a leaf"),
        (lambda z: produced(z)[1][:1].expand(2, 3), "do not lie apart in memory"),
        (lambda z: produced(z.half())[1], "may underflow"),
    ],
)
def test_what_cannot_be_overwritten_is_refused(logits, message: str) -> None:  # type: ignore[no-untyped-def]
    z = logits(torch.randn(2, 3))
    before = z.detach().clone()
    with pytest.raises(ValueError, match=message):
        likely.objective(likely.Logits(z), likely.labels([0, 1], 3), memory="inplace")
    assert torch.equal(z, before)


def test_heads_rows_and_transforms_are_refused() -> None:
    y, (_, z) = likely.labels([0, 1], 3), produced(torch.randn(2, 3))
    with pytest.raises(ValueError, match="overwrites given logits"):
        likely.objective(likely.Linear(torch.randn(2, 4), torch.randn(3, 4)), y, memory="inplace")
    with pytest.raises(ValueError, match="the losses of the rows are asked for"):
        likely.functional.cross_entropy(z, torch.tensor([0, 1]), reduction="none", inplace=True)
    with pytest.raises(ValueError, match="of first order"):
        torch.func.grad(lambda z: likely.objective(likely.Logits(z), y, memory="inplace")[0])(torch.randn(2, 3))
    loss = likely.functional.cross_entropy(z, torch.tensor([0, 1]), inplace=True)
    with pytest.raises(RuntimeError, match="derivatives of a gradient"):
        torch.autograd.grad(loss, z, create_graph=True)
