"""Where losses are usually wrong, and torch's generators do not look: likely beside torch, value and gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import likely.functional
import likely.nn

Loss = Callable[..., Tensor]
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
DOUBLE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def linear_reference(
    x: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None, **options: Any
) -> Tensor:
    """What torch's linear_cross_entropy says it does, for versions of torch that have none."""
    logits = F.linear(x, linear_weight.flatten(0, -2), None if linear_bias is None else linear_bias.flatten())
    return F.cross_entropy(logits.reshape(*x.shape[:-1], *linear_weight.shape[:-1]), target, **options)


def same(name: str, tensors: list[Tensor], *rest: Any, **kwargs: Any) -> None:
    """The same value and the same gradients to `tensors` from both faces, and the same again on a second run."""
    theirs: Loss = getattr(F, name, linear_reference)
    ours: Loss = getattr(likely.functional, name)
    outcomes = []
    for loss in (theirs, ours, ours):
        value = loss(*tensors, *rest, **kwargs)
        wanted = [t for t in tensors if t.requires_grad]
        generator = torch.Generator().manual_seed(1)
        along = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
        outcomes.append([value, *torch.autograd.grad(value, wanted, along)])
    for expected, found, again in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, **DOUBLE)
        assert torch.equal(found.nan_to_num(), again.nan_to_num()), "two runs differ"


@REDUCTIONS
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize(
    "shape", [(0, 3), (1, 3), (4, 1), (0, 3, 2), (2, 3, 0), (2, 1, 3), (2, 3, 1, 2, 1), (7, 257)], ids=str
)
def test_shapes(shape: tuple[int, ...], smoothing: float, reduction: str) -> None:
    classes = shape[1]
    y = torch.randint(0, classes, (shape[0], *shape[2:]))
    y.flatten()[::3] = -100
    weight = torch.rand(classes, dtype=torch.float64) + 0.5
    options: dict[str, Any] = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    same("cross_entropy", [leaf(*shape)], y, **options)
    same("cross_entropy", [leaf(*shape), leaf(*shape)], **options)
    same("nll_loss", [leaf(*shape)], y, weight=weight, reduction=reduction)
    same("binary_cross_entropy_with_logits", [leaf(*shape), leaf(*shape)], reduction=reduction)


@REDUCTIONS
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_one_unbatched_row(smoothing: float, reduction: str) -> None:
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    same("cross_entropy", [leaf(5)], torch.tensor(2), **options)
    same("cross_entropy", [leaf(5)], torch.tensor(-100), **options)
    same("cross_entropy", [leaf(5), leaf(5)], **options)
    same("linear_cross_entropy", [leaf(3), leaf(5, 3)], torch.tensor(2), **options)
    same("linear_cross_entropy", [leaf(3), leaf(5, 3), leaf(5)], **options)


@REDUCTIONS
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("positions", [(), (2,), (3, 2)], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_linear_heads(rows: int, positions: tuple[int, ...], smoothing: float, reduction: str) -> None:
    x, weight = leaf(rows, 4), leaf(6, *positions, 4)
    y = torch.randint(0, 6, (rows, *positions))
    y.flatten()[::3] = 1
    class_weight = torch.rand(6, dtype=torch.float64) + 0.5
    options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction, "weight": class_weight}
    same("linear_cross_entropy", [x, weight], y, ignore_index=1, **options)
    same("linear_cross_entropy", [x, weight, leaf(rows, 6, *positions)], linear_bias=leaf(6, *positions), **options)


@REDUCTIONS
def test_all_rows_ignored(reduction: str) -> None:
    """A mean over nothing is NaN, with zero gradient, as in torch; with a total it is 0."""
    y = torch.full((4,), -100)
    for smoothing in (0.0, 0.1):
        same("cross_entropy", [leaf(4, 3)], y, reduction=reduction, label_smoothing=smoothing)
        same("linear_cross_entropy", [leaf(4, 2), leaf(3, 2)], y, reduction=reduction, label_smoothing=smoothing)
    assert likely.functional.cross_entropy(leaf(4, 3), y, total=7) == 0


@REDUCTIONS
def test_layouts(reduction: str) -> None:
    """Transposed, sliced, expanded and channels-last inputs."""
    y = torch.randint(0, 3, (4,))
    wide, tall, one = leaf(4, 6), leaf(3, 4), leaf(1, 3)
    for view in (lambda: wide[:, ::2], lambda: tall.T, lambda: one.expand(4, 3)):
        grads = []
        for module in (F, likely.functional):
            loss = module.cross_entropy(view(), y, reduction=reduction)  # type: ignore[attr-defined, no-untyped-call]
            grads.append([loss, *torch.autograd.grad(loss.sum(), [wide, tall, one], allow_unused=True)])
        for theirs, ours in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs, **DOUBLE)
    image = leaf(2, 3, 5, 4).detach().to(memory_format=torch.channels_last).requires_grad_()
    same("cross_entropy", [image], torch.randint(0, 3, (2, 5, 4)), reduction=reduction)
    p = torch.rand(2, 5, 4, 3, dtype=torch.float64).movedim(-1, 1).requires_grad_()
    same("cross_entropy", [image, p], reduction=reduction)
    x, weight = leaf(8, 4), leaf(4, 9)
    same("linear_cross_entropy", [x[::2], weight.T[:, :]], torch.randint(0, 9, (4,)), reduction=reduction)


def test_bytes_are_labels() -> None:
    same("cross_entropy", [leaf(3, 4)], torch.tensor([0, 3, 1], dtype=torch.uint8))


@REDUCTIONS
def test_labels_that_stand_for_nothing(reduction: str) -> None:
    """`ignore_index` inside and outside the classes, and class weights that are 0 or negative."""
    y = torch.tensor([0, 2, 1, 2, 0])
    for ignored in (-1, 2, 77):
        target = torch.where(y == 2, ignored, y)
        for smoothing in (0.0, 0.2):
            same("cross_entropy", [leaf(5, 3)], target, None, None, ignored, None, reduction, smoothing)
    same("cross_entropy", [leaf(5, 3)], y, torch.tensor([0.0, 2.0, -0.5], dtype=torch.float64), reduction=reduction)
    zeros = torch.zeros(3, dtype=torch.float64)
    same("cross_entropy", [leaf(5, 3), leaf(5, 3)], zeros, reduction=reduction)
    if reduction == "mean":  # nothing over nothing; torch's gradient is NaN too here, ours 0
        assert likely.functional.cross_entropy(leaf(5, 3), y, zeros).isnan()
    else:
        same("cross_entropy", [leaf(5, 3)], y, zeros, reduction=reduction)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_a_common_offset_and_large_logits(offset: float) -> None:
    y = torch.randint(0, 7, (5,))
    same("cross_entropy", [(leaf(5, 7) * 300 + offset).detach().requires_grad_()], y)
    same("cross_entropy", [(leaf(5, 7) + offset).detach().requires_grad_(), torch.rand(5, 7, dtype=torch.float64)])


def test_logits_of_any_size() -> None:
    """Beyond what torch's log-softmax keeps: the loss of a large logit is its distance to the target's."""
    z = torch.tensor([[1e30, 0.0, -1e30]], requires_grad=True)
    for label, expected in ((0, 0.0), (1, 1e30), (2, 2e30)):
        loss = likely.functional.cross_entropy(z, torch.tensor([label]))
        assert loss.item() == pytest.approx(expected)
        assert torch.isfinite(torch.autograd.grad(loss, z)[0]).all()
    logits = torch.tensor([1e30, -1e30], dtype=torch.float64, requires_grad=True)
    for y in ([1.0, 0.0], [0.0, 1.0], [0.25, 0.75]):
        same("binary_cross_entropy_with_logits", [logits], torch.tensor(y, dtype=torch.float64), reduction="none")


@REDUCTIONS
@pytest.mark.parametrize("label", [0, 1, 2])
def test_an_impossible_class(label: int, reduction: str) -> None:
    """A logit −inf elsewhere changes nothing that torch gives; at the label the loss is infinite."""
    z = leaf(2, 3).detach()
    z[0, 2] = -torch.inf
    z.requires_grad_()
    y = torch.tensor([label, 0])
    for module in (F, likely.functional):
        loss = module.cross_entropy(z, y, reduction=reduction)  # type: ignore[attr-defined]
        assert torch.isinf(loss).any() == (label == 2)
    if label != 2:
        same("cross_entropy", [z], y, reduction=reduction)


@REDUCTIONS
def test_weights_of_binary_targets(reduction: str) -> None:
    z, y = leaf(4, 3), torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    for shape in ((), (1,), (3,), (1, 3), (4, 1), (4, 3)):
        factor = torch.rand(shape, dtype=torch.float64) + 0.1
        same("binary_cross_entropy_with_logits", [z, y], weight=factor, reduction=reduction)
        same("binary_cross_entropy_with_logits", [z, y], pos_weight=factor, reduction=reduction)
        if factor.dim() == 2:
            prob = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
            same("binary_cross_entropy", [prob, y], weight=factor, reduction=reduction)


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("reduce", [None, True, False])
@pytest.mark.parametrize("size_average", [None, True, False])
def test_deprecated_arguments(size_average: bool | None, reduce: bool | None) -> None:
    old: dict[str, Any] = {"size_average": size_average, "reduce": reduce}
    y, p = torch.randint(0, 3, (4,)), torch.rand(4, 3, dtype=torch.float64)
    same("cross_entropy", [leaf(4, 3)], y, reduction="sum", **old)
    same("nll_loss", [leaf(4, 3)], y, reduction="sum", **old)
    same("kl_div", [leaf(4, 3)], p, reduction="sum", **old)
    same("binary_cross_entropy_with_logits", [leaf(4, 3)], p, reduction="sum", **old)
    same("binary_cross_entropy", [p.clone().requires_grad_()], p, reduction="sum", **old)
    for name in ("CrossEntropyLoss", "NLLLoss", "KLDivLoss", "BCELoss", "BCEWithLogitsLoss"):
        assert getattr(likely.nn, name)(**old).reduction == getattr(nn, name)(**old).reduction


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str)
def test_mixed_precision_promotes_as_in_torch(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    z, p = leaf(4, 3, dtype=dtypes[0]), torch.rand(4, 3, dtype=dtypes[1])
    for name in ("cross_entropy", "binary_cross_entropy_with_logits", "kl_div"):
        expected = getattr(F, name)(z, p, reduction="sum")
        found = getattr(likely.functional, name)(z, p, reduction="sum")
        # torch's binary loss takes the target's dtype even where the logits are wider
        same_dtype = name != "binary_cross_entropy_with_logits" or p.dtype == torch.float64
        torch.testing.assert_close(found, expected, check_dtype=same_dtype)


def test_a_target_may_have_negative_mass_and_any_sum() -> None:
    z = leaf(4, 3)
    mu = (torch.randn(4, 3, dtype=torch.float64) * 5).requires_grad_()
    class_weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    same("cross_entropy", [z, mu, class_weight])
    same("cross_entropy", [z, mu, class_weight], label_smoothing=0.4, reduction="none")


@pytest.mark.parametrize("name", likely.functional.__all__)
def test_signatures_begin_with_those_of_torch(name: str) -> None:
    if not hasattr(F, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")
    _begins(inspect.signature(getattr(likely.functional, name)), inspect.signature(getattr(F, name)))


@pytest.mark.parametrize("name", likely.nn.__all__)
def test_constructors_begin_with_those_of_torch(name: str) -> None:
    if not hasattr(nn, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")
    _begins(inspect.signature(getattr(likely.nn, name).__init__), inspect.signature(getattr(nn, name).__init__))


def _begins(ours: inspect.Signature, theirs: inspect.Signature) -> None:
    mine = [(p.name, p.kind, p.default) for p in ours.parameters.values()]
    torchs = [(p.name, p.kind, p.default) for p in theirs.parameters.values()]
    assert mine[: len(torchs)] == torchs
    assert all(kind == inspect.Parameter.KEYWORD_ONLY for _, kind, _ in mine[len(torchs) :])
