"""The pass that needs the least memory gives what the definition gives, whatever the tiles, and holds one tile.

Legend: N rows, C classes.
"""

from unittest import mock

import pytest
import torch

import likely
from likely.kernels import minimal, native
from tests.cases import TARGETS, Kernel, make_case, requiring_grad

HEADS = ["linear", "linear bias", "linear softcap"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("row_pass", [None, "plain"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_name", HEADS)
@pytest.mark.parametrize("name", TARGETS)
def test_equals_the_definition(name: str, head_name: str, dtype: torch.dtype, row_pass: str | None) -> None:
    made, head = make_case(name, head_name, dtype=dtype)
    terms = [likely.Term(made.target, temperature=made.temperatures[-1])]
    if minimal.refuses(head, [(t.target, t.temperature) for t in terms]) is not None:
        with pytest.raises(ValueError, match=r"'minimal' cannot serve: .* whole row at once"):
            likely.objective(head, terms, memory="minimal")
        return
    wide = head.with_tensors([None if t is None else t.double() for t in head.tensors])
    found = []
    for own, kernel in ((wide, Kernel("eager")), (head, Kernel("eager")), (head, Kernel("minimal", None, row_pass))):
        leaf, leaves = requiring_grad(own)
        with mock.patch.multiple(minimal, TILE=(512, 7 * 2), HALF_TILE=(512, 7 * 2)):  # two classes at a time
            loss, scores = kernel.objective(leaf, terms, z_loss=0.1)
            rows = [scores[0].cross_entropy, *([scores[0].kl] if made.known else [])]
            found.append([t.double() for t in (loss.detach(), *kernel.gradients(loss, leaf, leaves), *rows)])
    ulp = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 2e-2}[dtype]
    for truth, plain, ours in zip(*found):
        allowed = 1.5 * float((plain - truth).abs().max()) + ulp * max(float(truth.abs().max()), 1e-2)
        assert float((ours - truth).abs().max()) <= allowed


def test_nothing_larger_than_a_tile_or_a_gradient_is_held() -> None:
    from tests.laws.test_memory import Largest

    x, weight = torch.randn(64, 8, requires_grad=True), torch.randn(3000, 8, requires_grad=True)
    target = likely.labels(torch.arange(64), 3000)
    with Largest() as seen, mock.patch.object(minimal, "TILE", (512, 64 * 100)):
        likely.objective(likely.Linear(x, weight), target, memory="minimal")[0].backward()
    assert 0 < seen.numel <= 3000 * 8


@pytest.mark.parametrize("row_pass", native.available())
def test_labels_are_rounded_once(row_pass: str) -> None:
    """A confident bfloat16 row: softmax − 1 of the label's class keeps its digits."""
    x, weight = torch.tensor([[9.0]]).bfloat16(), torch.tensor([[1.0], [0.0], [-1.0]]).bfloat16()
    head, leaves = requiring_grad(likely.Linear(x, weight))
    with native.using(row_pass):
        loss, _ = likely.objective(head, likely.labels([0], 3), memory="minimal")
        grads = torch.autograd.grad(loss, leaves)
    q = torch.softmax(torch.tensor([9.0, 0.0, -9.0], dtype=torch.float64), 0)
    torch.testing.assert_close(grads[1][0].double(), (9 * (q[:1] - 1)), rtol=1e-2, atol=0)


def test_what_it_is_for_is_said() -> None:
    with pytest.raises(ValueError, match="for a Linear head"):
        likely.objective(likely.Logits(torch.zeros(2, 3)), likely.labels([0, 1], 3), memory="minimal")
    with pytest.raises(ValueError, match="memory: is 'small'"):
        likely.objective(likely.Logits(torch.zeros(2, 3)), likely.labels([0, 1], 3), memory="small")
