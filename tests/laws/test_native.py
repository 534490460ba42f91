"""The compiled row pass, in every instruction set that this processor has, against the definition in float64.

Legend: N rows, C classes.  Sizes that no register divides, results that start as NaN, classes stored twice, several
terms at once, one thread and more.
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import likely
from likely.kernels import loop, native
from tests.cases import HEADS, TARGETS, Draw, Kernel, make_case, requiring_grad

SETS = [name for name in native.available() if name != "plain"]
CLASSES = [2, 3, 5, 16, 33, 67]
SERVED = [name for name in TARGETS if "bucket" not in name]

pytestmark = pytest.mark.skipif(not SETS, reason="the row pass was not built: no C++ compiler was found")


@pytest.fixture(params=SETS, autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.using(request.param):
        yield request.param


def exact(target: likely.Target, head: likely.Head, temperature: float) -> tuple[list[Tensor], list[Tensor]]:
    """Rows and gradients of the definition in float64, on the very numbers of the head and the target."""
    wide, leaves = requiring_grad(head.with_tensors([None if t is None else t.double() for t in head.tensors]))
    score = likely.nll(wide, target, temperature=temperature, kernel="eager")
    grads = torch.autograd.grad((score.cross_entropy * weights(head.rows)).sum(), leaves)
    known = target.entropy_unknown() is None
    return [score.cross_entropy, *([score.entropy, score.kl] if known else [])], list(grads)


def weights(rows: int) -> Tensor:
    return torch.linspace(0.5, 1.5, rows, dtype=torch.float64)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", SERVED)
def test_equals_the_definition(name: str, classes: int) -> None:
    made, head = make_case(name, "logits", classes=classes, rows=6, dtype=torch.float32)
    temperature = made.temperatures[-1]
    rows, grads = exact(made.target, head, temperature)
    leaf, leaves = requiring_grad(head)
    score = Kernel("chunked", 4).nll(leaf, made.target, temperature)
    found = [score.cross_entropy, *([score.entropy, score.kl] if len(rows) == 3 else [])]
    for ours, truth in zip(found, rows):
        torch.testing.assert_close(ours.double(), truth, atol=3e-6, rtol=3e-6)
    carried = torch.autograd.grad((score.cross_entropy * weights(6)).sum(), leaves)
    for own, true in zip(carried, grads):
        torch.testing.assert_close(own.double(), true, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear bias", "linear softcap", "logits impossible"])
def test_several_terms_at_once_and_a_z_loss(name: str, dtype: torch.dtype) -> None:
    head = HEADS[name](Draw("terms", rows=9, classes=37, dtype=dtype), None)
    index = torch.tensor([[0, 5, 5, 36]] * 9)  # one class twice
    teacher = torch.randn(9, 37, generator=torch.Generator().manual_seed(1)).to(dtype)
    possible = torch.isfinite(head.logits())
    terms = [
        likely.Term(likely.teacher(teacher), weight=0.5, temperature=2.0),
        likely.Term(likely.labels(possible.int().argmax(-1), 37, ignore_index=1)),
        likely.Term(likely.samples(index, torch.tensor([[2, 1, 3, 4]] * 9), 37), weight=0.1),
    ]
    if name == "logits impossible":
        terms = terms[1:2] * 3
    results = []
    for kernel, row_pass in (("eager", "plain"), ("chunked", native.active())):
        with native.using(row_pass):
            leaf, leaves = requiring_grad(head)
            loss, _ = likely.objective(leaf, terms, z_loss=0.3, kernel=kernel)
            results.append((loss, *torch.autograd.grad(loss, leaves)))
    for plain, ours in zip(*results):
        scale = 1e-5 if dtype == torch.float32 else 2e-2
        largest = float(plain.detach().abs().max())
        torch.testing.assert_close(ours.double(), plain.double(), atol=scale * largest, rtol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 7, 32, 36])
def test_nan_and_infinity_reach_the_loss_and_the_gradient_of_their_row_alone(bad: float, at: int) -> None:
    z = torch.randn(4, 37, generator=torch.Generator().manual_seed(0))
    z[2, at] = bad
    for target in (
        likely.labels([3, 3, 3, 3], 37),
        likely.teacher(torch.zeros(4, 37)),
        likely.measure(torch.ones(4, 37)),
    ):
        leaf = z.clone().requires_grad_()
        score = likely.nll(likely.Logits(leaf), target, kernel="chunked")
        score.cross_entropy.sum().backward()
        assert leaf.grad is not None
        expected = torch.tensor([False, False, True, False])
        assert torch.equal(score.cross_entropy.isnan(), expected)
        assert torch.equal(leaf.grad.isnan().all(-1), expected)
        assert torch.equal(leaf.grad.isnan().any(-1), expected)


def test_a_wide_row_is_summed_in_blocks() -> None:
    """Equal logits over many classes: float sums of one block after another would drift."""
    C = 300_001
    z = torch.zeros(2, C, requires_grad=True)
    loss = likely.nll(likely.Logits(z), likely.labels([0, C - 1], C), kernel="chunked").cross_entropy
    torch.testing.assert_close(loss.double(), torch.full((2,), math.log(C), dtype=torch.float64), rtol=1e-7, atol=0)


def test_threads_change_nothing() -> None:
    made, head = make_case("teacher linear", "linear", classes=40_000, rows=6, dtype=torch.float32)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            leaf, leaves = requiring_grad(head)
            loss, _ = Kernel("chunked", 4).objective(leaf, [made.target])
            found.append((loss, *torch.autograd.grad(loss, leaves)))
        finally:
            torch.set_num_threads(before)
    for one, three in zip(*found):
        torch.testing.assert_close(one, three, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("blocks", [1, 2, 3, 7])
def test_a_bfloat16_sum_of_products_is_kept_in_float32(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two planes hold the float32 sum of the blocks' products exactly, and it is rounded once."""
    monkeypatch.setattr(native.PlaneSum, "PART_BYTES", 64 * 5 * 2)
    generator = torch.Generator().manual_seed(0)
    g, x = (torch.randn(7 * 3, n, generator=generator).bfloat16() for n in (133, 5))
    total = native.PlaneSum(torch.empty(133, 5, dtype=torch.bfloat16), torch.float32, blocks)
    plain = torch.zeros(133, 5)
    for part in torch.arange(21).tensor_split(blocks):
        total.add(g[part], x[part])
        plain += g[part].T @ x[part]
    if blocks == 2:  # the second product is added before it is rounded
        exact = g.double().T @ x.double()
        ours, rounded = (float((t.double() - exact).abs().max()) for t in (total.result(), plain))
        assert ours <= 1.01 * rounded + 2**-9 * float(exact.abs().max())
    else:
        assert torch.equal(total.result(), plain.bfloat16())


def test_the_pass_that_runs_is_named(instruction_set: str) -> None:
    assert native.active() == instruction_set
    with native.using("plain"):
        assert native.active() == "plain"
        assert native.dtype_of(likely.Logits(torch.zeros(1, 2))) is None
    with pytest.raises(ValueError, match="on this machine there are"), native.using("sse9"):
        pass
    assert loop.blocks(likely.Logits(torch.zeros(0, 3))) == []


# ---------------------------------------------------------------------------------------------- binary rows, tiles


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_rows_equal_the_definition(reduction: str, dtype: torch.dtype, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    z, y = (8 * torch.randn(5, 41, generator=generator)).to(dtype), torch.rand(5, 41, generator=generator).to(dtype)
    z[0, :4], y[0, :4] = torch.tensor([1e30, -1e30, -math.inf, 0.0]), torch.tensor([1.0, 0.5, 0.0, 0.5])
    w, pos = (torch.rand(41, generator=generator) + 0.5 for _ in range(2))
    options = {"weight": w, "pos_weight": pos} if weighted else {}
    found = []
    for own in (torch.float64, dtype):
        leaf = z.to(own).requires_grad_()
        given: dict[str, Any] = {name: t.to(own) for name, t in options.items()}
        with native.using("plain" if own == torch.float64 else native.active()):
            loss = likely.functional.binary_cross_entropy_with_logits(leaf, y.to(own), reduction=reduction, **given)
        loss.backward(None if reduction != "none" else torch.linspace(0, 1, 41, dtype=loss.dtype).expand(5, 41))
        assert leaf.grad is not None
        found.append((loss.detach().double(), leaf.grad.double()))
    rounding = 2e-6 if dtype == torch.float32 else 5e-3
    for truth, ours in zip(*found):
        torch.testing.assert_close(ours, truth, rtol=rounding, atol=rounding * float(truth.abs().median()))


def test_binary_rows_hear_nan_and_infinity_and_differentiate_again() -> None:
    z = torch.tensor([0.5, math.nan, math.inf, -2.0], requires_grad=True)
    y = torch.tensor([0.3, 0.5, 1.0, 0.0])
    rows = likely.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
    assert rows.isnan().tolist() == [False, True, True, False]
    (grad,) = torch.autograd.grad(rows.sum(), z, retain_graph=True)
    assert grad.isnan().tolist() == [False, True, True, False]
    x = torch.tensor([0.5, -2.0], requires_grad=True)
    loss = likely.functional.binary_cross_entropy_with_logits(x, y[[0, 3]])
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    q = torch.sigmoid(x.detach())
    torch.testing.assert_close(second, q * (1 - q) / 2)
    loss = likely.functional.binary_cross_entropy_with_logits(x, y[[0, 3]]) * 3
    one, two = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(one, 3 * (q - y[[0, 3]]) / 2)
    assert torch.equal(one, two)
    assert one.data_ptr() != two.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tile_of_some_classes(dtype: torch.dtype) -> None:
    z = (3 * torch.randn(7, 133, generator=torch.Generator().manual_seed(0))).to(dtype)
    z[1, 3], z[2], z[3, 5] = -math.inf, -math.inf, math.nan
    A = torch.logsumexp(z.double() / 2, -1)
    torch.testing.assert_close(native.tile_normaliser(z, 2.0).double(), A, rtol=1e-6, atol=1e-6, equal_nan=True)
    c = torch.linspace(0, 1, 7)
    exact = (c[:, None] * (z.double() / 2 - A[:, None] - 1).exp()).masked_fill((c == 0)[:, None], 0)
    ours = native.exponentials_(z.clone(), 2.0, A.float() + 1, c)
    rounding = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(ours.double(), exact, rtol=rounding, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", ["probabilities", "teacher", "labels", "smoothed"])
def test_a_row_that_is_sure_of_nothing_has_a_gradient_as_exact_as_torchs(name: str) -> None:
    """Were the largest logit's gradient minus the sum of the others, it would bring the rounding of all of them."""
    generator = torch.Generator().manual_seed(0)
    z, t = torch.randn(16, 32_000, generator=generator), torch.randn(16, 32_000, generator=generator)
    y = torch.randint(32_000, (16,), generator=generator)
    targets = {
        "probabilities": lambda own: likely.measure(t.softmax(-1).to(own)),
        "teacher": lambda own: likely.teacher(t.to(own)),
        "labels": lambda own: likely.labels(y, 32_000),
        "smoothed": lambda own: likely.labels(y, 32_000, smoothing=0.1),
    }
    found = []
    for own, row_pass in ((torch.float64, "plain"), (torch.float32, native.active()), (torch.float32, "plain")):
        leaf = z.to(own).requires_grad_()
        with native.using(row_pass):
            loss, _ = likely.objective(likely.Logits(leaf), likely.Term(targets[name](own), temperature=2.0))
        found.append(torch.autograd.grad(loss, leaf)[0].double())
    for ours in found[1:]:
        assert float((ours - found[0]).abs().max()) <= 1e-6 * float(found[0].abs().max())


@pytest.mark.parametrize("row_pass", native.available())
@pytest.mark.parametrize("margin", [1.0, 60.0, 300.0])
def test_a_rest_that_the_student_gives_almost_nothing_keeps_its_digits(margin: float, row_pass: str) -> None:
    """The classes that are not stored, far below those that are: `exp` of them relative to the largest would be 0."""
    z = torch.tensor([[0.5, -margin, 1.0, -margin - 2, -margin + 1]])
    target = likely.top_k([[2, 0]], [[0.5, 0.2]], 5, tail="bucket")
    found = []
    for dtype, pick in ((torch.float64, "plain"), (torch.float32, row_pass)):
        own = z.to(dtype).requires_grad_()
        with native.using(pick):
            loss, _ = likely.objective(likely.Logits(own), target)
        found.append((loss.detach().double(), torch.autograd.grad(loss, own)[0].double()))
    for exact, here in zip(*found):
        torch.testing.assert_close(here, exact, rtol=2e-6, atol=1e-7)
