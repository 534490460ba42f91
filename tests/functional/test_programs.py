"""Inside existing programs: autocast, no_grad, torch.func, torch.compile, copies, state dicts, determinism."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import likely.functional as LF
import likely.nn

N, C, D = 7, 5, 4


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------------------ autocast


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_products_and_not_losses(dtype: torch.dtype) -> None:
    x = torch.randn(N, D, requires_grad=True)
    weight = torch.randn(C, D, requires_grad=True)
    bias = torch.randn(C, requires_grad=True)
    y, p = torch.randint(0, C, (N,)), torch.rand(N, C)
    class_weight = torch.rand(C) + 0.5
    with torch.autocast("cpu", dtype=dtype):
        z = F.linear(x, weight, bias)
        assert z.dtype == dtype
        for name, target in (("cross_entropy", y), ("cross_entropy", p), ("binary_cross_entropy_with_logits", p)):
            loss = getattr(LF, name)(z, target)
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, getattr(F, name)(z.float(), target))
        weighted = LF.cross_entropy(z, y, class_weight)
        torch.testing.assert_close(weighted, F.cross_entropy(z.float(), y, class_weight))
        for hidden in (x, x.to(dtype)):
            loss = LF.linear_cross_entropy(hidden, weight, y, linear_bias=bias)
            torch.testing.assert_close(loss, F.cross_entropy(F.linear(x, weight, bias).float(), y))
            for leaf, grad in zip((x, weight, bias), torch.autograd.grad(loss, (x, weight, bias)), strict=True):
                assert grad.dtype == leaf.dtype == torch.float32
    with torch.autocast("cpu", dtype=dtype):
        module = likely.nn.LinearCrossEntropyLoss(D, C)
        module(x, y).backward()
    assert [None if p.grad is None else p.grad.dtype for p in module.parameters()] == [torch.float32]


def test_under_autocast_double_stays_double() -> None:
    x, weight = torch.randn(N, D, dtype=torch.float64), torch.randn(C, D, dtype=torch.float64)
    y = torch.randint(0, C, (N,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LF.linear_cross_entropy(x, weight, y)
    torch.testing.assert_close(found, F.cross_entropy(x @ weight.T, y), rtol=1e-12, atol=1e-12)


def test_a_scaled_loss_gives_scaled_gradients() -> None:
    """As a gradient scaler would: half-precision gradients that are too small without it survive."""
    x = torch.randn(N, D).half().requires_grad_()
    weight = (1e-3 * torch.randn(C, D)).half().requires_grad_()
    y = torch.randint(0, C, (N,))
    found = torch.autograd.grad(LF.linear_cross_entropy(x, weight, y, total=1e6) * 2**14, [x, weight])
    exact = torch.autograd.grad(
        F.cross_entropy(x.double() @ weight.double().T, y, reduction="sum") * 2**14 / 1e6, [x, weight]
    )
    for mine, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-7)


# ------------------------------------------------------------------------------------------------- without gradients


def test_without_gradients() -> None:
    x, weight = torch.randn(N, D, requires_grad=True), torch.randn(C, D, requires_grad=True)
    y = torch.randint(0, C, (N,))
    expected = F.cross_entropy(x @ weight.T, y)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            loss = LF.linear_cross_entropy(x, weight, y)
            assert not loss.requires_grad
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(LF.cross_entropy(x @ weight.T, y, reduction="none").mean(), expected)
    frozen = LF.linear_cross_entropy(x.detach(), weight, y)
    (grad,) = torch.autograd.grad(frozen, weight)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, weight)[0])


def test_a_graph_may_be_used_twice() -> None:
    z = torch.randn(N, C, requires_grad=True)
    for reduction in ("mean", "none"):
        loss = LF.cross_entropy(z, torch.randint(0, C, (N,)), reduction=reduction).sum()
        first = torch.autograd.grad(loss, z, retain_graph=True)[0]
        assert torch.equal(first, torch.autograd.grad(loss, z)[0])


def test_an_input_changed_in_place_is_noticed() -> None:
    z = torch.randn(N, C, requires_grad=True)
    inner = z * 1
    loss = LF.cross_entropy(inner, torch.randint(0, C, (N,)), reduction="none")
    inner += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_two_runs_are_equal_to_the_bit(reduction: str) -> None:
    x, weight = torch.randn(500, 32, requires_grad=True), torch.randn(700, 32, requires_grad=True)
    y = torch.randint(0, 700, (500,))
    runs = []
    for _ in range(2):
        loss = LF.linear_cross_entropy(x, weight, y, reduction=reduction, label_smoothing=0.1)
        runs.append([loss, *torch.autograd.grad(loss.sum(), [x, weight])])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# ---------------------------------------------------------------------------------------------------------- torch.func

Y = torch.tensor([0, 3, -100, 1, 4, 1, 2])
LOSSES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "labels": lambda f, z: f.cross_entropy(z, Y),
    "smoothed": lambda f, z: f.cross_entropy(z, Y, label_smoothing=0.2, reduction="sum"),
    "probabilities": lambda f, z: f.cross_entropy(z, torch.linspace(0, 1, N * C, dtype=z.dtype).reshape(N, C)),
    "binary": lambda f, z: f.binary_cross_entropy_with_logits(
        z, torch.linspace(0, 1, N * C, dtype=z.dtype).reshape(N, C)
    ),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_function_transforms(kind: str) -> None:
    z = torch.randn(N, C, dtype=torch.float64)
    along = torch.randn(N, C, dtype=torch.float64)
    batch = torch.randn(3, N, C, dtype=torch.float64)
    theirs, ours = (lambda z: LOSSES[kind](F, z)), (lambda z: LOSSES[kind](LF, z))
    close: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(torch.func.grad(ours)(z), torch.func.grad(theirs)(z), **close)
    torch.testing.assert_close(torch.func.jvp(ours, (z,), (along,)), torch.func.jvp(theirs, (z,), (along,)), **close)
    torch.testing.assert_close(torch.func.vmap(ours)(batch), torch.func.vmap(theirs)(batch), **close)
    per_sample = torch.func.vmap(torch.func.grad(ours))
    torch.testing.assert_close(per_sample(batch), torch.func.vmap(torch.func.grad(theirs))(batch), **close)
    torch.testing.assert_close(torch.func.hessian(ours)(z), torch.func.hessian(theirs)(z), **close)


def test_per_sample_gradients_of_a_linear_head() -> None:
    """vmap over rows and their labels, the usual recipe for per-sample gradients."""
    x, weight, y = torch.randn(N, D, dtype=torch.float64), torch.randn(C, D, dtype=torch.float64), Y.clamp_min(0)

    def ours(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return LF.linear_cross_entropy(x[None], weight, y[None])

    def theirs(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x[None], weight), y[None])

    found, expected = (torch.func.vmap(torch.func.grad(f), (None, 0, 0))(weight, x, y) for f in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_forward_mode() -> None:
    z = torch.randn(N, C, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z, torch.ones_like(z))
        for reduction in ("mean", "none"):
            found, expected = (
                torch.autograd.forward_ad.unpack_dual(f.cross_entropy(dual, Y, reduction=reduction)).tangent  # type: ignore[attr-defined]
                for f in (LF, F)
            )
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", ["z", "p"])
def test_gradcheck(target: str) -> None:
    z = torch.randn(3, C, dtype=torch.float64, requires_grad=True)
    p = torch.rand(3, C, dtype=torch.float64, requires_grad=target == "p")
    for loss in (LF.cross_entropy, LF.binary_cross_entropy_with_logits):
        assert torch.autograd.gradcheck(loss, (z, p))
        assert torch.autograd.gradgradcheck(loss, (z, p))
    x = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(C, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(LF.linear_cross_entropy, (x, weight, p))
    assert torch.autograd.gradgradcheck(LF.linear_cross_entropy, (x, weight, p))
    assert torch.autograd.gradgradcheck(lambda x, w: LF.linear_cross_entropy(x, w, Y[:3], softcap=2.0), (x, weight))


@pytest.mark.filterwarnings("ignore")  # torch's own, of itself
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_programs(dynamic: bool | None) -> None:
    def step(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        return LF.linear_cross_entropy(torch.relu(x), weight, y, label_smoothing=0.1)

    whole = not torch.__version__.startswith("2.9.")  # whose Dynamo knows no default argument that is a slice
    compiled = torch.compile(step, backend="aot_eager", fullgraph=whole, dynamic=dynamic)
    x, weight = torch.randn(N, D, requires_grad=True), torch.randn(C, D, requires_grad=True)
    found, expected = compiled(x, weight, Y), step(x, weight, Y)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(*(torch.autograd.grad(loss, [x, weight]) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


# ------------------------------------------------------------------------------------------------------------- modules

MODULES: dict[str, Callable[[], nn.Module]] = {
    "CrossEntropyLoss": lambda: likely.nn.CrossEntropyLoss(torch.rand(C), temperature=2.0),
    "NLLLoss": lambda: likely.nn.NLLLoss(torch.rand(C)),
    "KLDivLoss": lambda: likely.nn.KLDivLoss(reduction="batchmean", log_target=True),
    "BCELoss": lambda: likely.nn.BCELoss(torch.rand(C)),
    "BCEWithLogitsLoss": lambda: likely.nn.BCEWithLogitsLoss(pos_weight=torch.rand(C)),
    "LinearCrossEntropyLoss": lambda: likely.nn.LinearCrossEntropyLoss(
        D, C, out_features=(2,), bias=True, weight=torch.rand(C), softcap=3.0
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_copied_saved_and_shown(name: str) -> None:
    module = MODULES[name]()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(module)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert repr(twin) == repr(module)
    assert [k for k, _ in twin.named_buffers()] == [k for k, _ in module.named_buffers()]
    double = module.double()
    assert all(t.dtype == torch.float64 for t in double.state_dict().values())
    if hasattr(nn, name) and name != "LinearCrossEntropyLoss":
        assert isinstance(module, getattr(nn, name))


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason=f"torch {torch.__version__} has no such class")
def test_a_linear_module_takes_torchs_state() -> None:
    weight = torch.rand(C) + 0.5
    theirs = nn.LinearCrossEntropyLoss(D, C, out_features=(2,), bias=True, weight=weight)
    ours = likely.nn.LinearCrossEntropyLoss(D, C, out_features=(2,), bias=True, weight=weight)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x, y = torch.randn(N, D), torch.randint(0, C, (N, 2))
    torch.testing.assert_close(ours(x, y), theirs(x, y))
    theirs.load_state_dict(ours.state_dict())


def test_a_fresh_linear_module_starts_where_torchs_does() -> None:
    torch.manual_seed(3)
    expected = nn.Linear(D, C * 2, bias=True).weight
    torch.manual_seed(3)
    assert torch.equal(likely.nn.LinearCrossEntropyLoss(D, C, out_features=(2,), bias=True).linear.weight, expected)


def test_modules_pass_their_settings_on() -> None:
    z, y, p = torch.randn(N, C), Y.clamp_min(0), torch.rand(N, C)
    w = torch.rand(N)
    module = likely.nn.CrossEntropyLoss(temperature=2.0, z_loss=0.1, label_smoothing=0.1)
    options: dict[str, Any] = {"row_weight": w, "total": 5}
    expected = LF.cross_entropy(z, y, temperature=2.0, z_loss=0.1, label_smoothing=0.1, **options)
    assert torch.equal(module(z, y, **options), expected)
    linear = likely.nn.LinearCrossEntropyLoss(C, 6, bias=True, softcap=2.0, temperature=3.0, z_loss=0.2, ignore_index=1)
    expected = LF.linear_cross_entropy(
        z,
        linear.linear.weight,
        y,
        linear_bias=linear.linear.bias,
        softcap=2.0,
        temperature=3.0,
        z_loss=0.2,
        ignore_index=1,
        **options,
    )
    assert torch.equal(linear(z, y, **options), expected)
    binary = likely.nn.BCEWithLogitsLoss(temperature=2.0)
    assert torch.equal(binary(z, p, total=3), LF.binary_cross_entropy_with_logits(z, p, temperature=2.0, total=3))
    positive = torch.rand(C) + 0.5
    weighted = likely.nn.BCEWithLogitsLoss(weight=w[:, None], pos_weight=positive)
    expected = LF.binary_cross_entropy_with_logits(z, p, w[:, None], pos_weight=positive)
    assert torch.equal(weighted(z, p), expected)
    assert torch.equal(likely.nn.NLLLoss()(z, y, total=3), LF.nll_loss(z, y, total=3))
    assert torch.equal(likely.nn.BCELoss()(p, p, total=3), LF.binary_cross_entropy(p, p, total=3))
