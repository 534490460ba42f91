"""The far ends: logits to 1e30, impossible classes, probabilities of zero, rows that do not count."""

from __future__ import annotations

import math

import pytest
import torch

import likely
from tests.cases import CLASSES, DTYPES, KERNELS, ROWS, TARGETS, Kernel, make, make_case, requiring_grad

kernels = pytest.mark.parametrize("kernel", KERNELS, ids=str)
INF = math.inf


def loss_and_gradient(kernel: Kernel, z: torch.Tensor, target: likely.Target) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = z.clone().requires_grad_()
    loss, _ = kernel.objective(likely.Logits(leaf), target, total=1)
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e10, 1e30])
def test_logits_of_any_size(size: float, dtype: torch.dtype, kernel: Kernel) -> None:
    z = torch.tensor([[size, 0.0, -size], [0.0, size, -size]], dtype=dtype)
    size = float(z[0, 0])  # as the dtype holds it
    loss, grad = loss_and_gradient(kernel, z, likely.labels([0, 0], 3))
    assert float(loss) == pytest.approx(size, rel=1e-6)
    assert torch.equal(grad, torch.tensor([[0, 0, 0], [-1, 1, 0]], dtype=dtype))
    soft = likely.probabilities(torch.tensor([[0.5, 0.25, 0.25]] * 2, dtype=dtype))
    loss, grad = loss_and_gradient(kernel, z, soft)
    assert float(loss) == pytest.approx(0.75 * size + size, rel=1e-6)
    assert torch.equal(grad, torch.tensor([[0.5, -0.25, -0.25], [-0.5, 0.75, -0.25]], dtype=dtype))
    loss, grad = loss_and_gradient(kernel, z, likely.teacher(z))
    assert float(loss) == 0
    assert torch.equal(grad, torch.zeros_like(z))


@kernels
@pytest.mark.parametrize("size", [1e5, 1e30])
def test_binary_logits_of_any_size(size: float, kernel: Kernel) -> None:
    z = torch.tensor([size, size, -size, -size], dtype=torch.float64, requires_grad=True)
    score = kernel.nll(likely.Binary(z), likely.labels([1, 0, 1, 0], 2))
    assert score.cross_entropy.tolist() == [0, size, size, 0]
    (grad,) = torch.autograd.grad(score.cross_entropy.sum(), z)
    assert grad.tolist() == [0, 1, -1, 0]


@kernels
@pytest.mark.parametrize("offset", [1e4, -1e4, 2.0**40])
@pytest.mark.parametrize("target", TARGETS)
def test_a_huge_common_offset_loses_only_the_logits_own_digits(target: str, offset: float, kernel: Kernel) -> None:
    made, own = make_case(target, "logits")
    (z_NC,) = (t for t in own.tensors if t is not None)
    moved_NC = z_NC + offset
    temperature = made.temperatures[0] if made.temperatures[0] != 2.5 else 1.0
    one = kernel.nll(likely.Logits(moved_NC), made.target, temperature)
    two = kernel.nll(likely.Logits(moved_NC - offset), made.target, temperature)
    torch.testing.assert_close(one.cross_entropy, two.cross_entropy, rtol=1e-14, atol=1e-14)


IMPOSSIBLE = torch.tensor([[1.0, -INF, 2.0, 0.5, -INF]], dtype=torch.float64)
FREE = {
    "labels": likely.labels([2], 5),
    "labels class weight": likely.labels([2], 5, smoothing=0.2, class_weight=torch.tensor([1.0, 0, 2, 1, 0])),
    "labels ignored": likely.labels([-100], 5, smoothing=0.2),
    "probabilities": likely.probabilities([[0.5, 0.0, 0.25, 0.25, 0.0]]),
    "probabilities class weight": likely.probabilities([[0.2] * 5], class_weight=torch.tensor([1.0, 0, 2, 1, 0])),
    "measure": likely.measure([[3.0, 0.0, -1.0, 0.0, 0.0]]),
    "top_k uniform": likely.top_k([[0, 2]], [[0.25, 0.75]], 5, tail="uniform"),
    "top_k uniform zero stored": likely.top_k([[0, 1, 2]], [[0.25, 0.0, 0.75]], 5, tail="uniform"),
    "top_k renormalise": likely.top_k([[0, 1, 2]], [[0.25, 0.0, 0.5]], 5, tail="renormalise"),
    "top_k bucket": likely.top_k([[0, 4]], [[0.25, 0.0]], 5, tail="bucket"),
    "samples": likely.samples([[0, 0, 1]], [[2, 1, 0]], 5, entropy=[0.3]),
    "teacher": likely.teacher(torch.tensor([[0.0, -INF, 1.0, -INF, -INF]])),
}
COSTLY = {
    "labels": likely.labels([1], 5),
    "labels smoothing": likely.labels([2], 5, smoothing=0.2),
    "labels class weight": likely.labels([2], 5, smoothing=0.2, class_weight=torch.tensor([1.0, 0, 2, 1, 1])),
    "probabilities": likely.probabilities([[0.5, 0.25, 0.25, 0.0, 0.0]]),
    "measure": likely.measure([[3.0, 2.0, 0.0, 0.0, 0.0]]),
    "top_k uniform": likely.top_k([[0, 2]], [[0.25, 0.5]], 5, tail="uniform"),
    "top_k uniform stored": likely.top_k([[0, 1, 4]], [[0.25, 0.25, 0.5]], 5, tail="uniform"),
    "top_k renormalise": likely.top_k([[0, 1]], [[0.25, 0.25]], 5, tail="renormalise"),
    "top_k bucket": likely.top_k([[0, 2, 3]], [[0.25, 0.25, 0.25]], 5, tail="bucket"),
    "samples": likely.samples([[0, 1]], [[2, 1]], 5, entropy=[0.3]),
    "teacher": likely.teacher(torch.zeros(1, 5)),
}


@kernels
@pytest.mark.parametrize("name", FREE)
def test_an_impossible_class_without_mass_costs_nothing(name: str, kernel: Kernel) -> None:
    target = FREE[name]
    loss, grad = loss_and_gradient(kernel, IMPOSSIBLE, target)
    near_NC = torch.where(torch.isneginf(IMPOSSIBLE), -1e4, IMPOSSIBLE)  # e^(-1e4) is 0
    near_loss, near_grad = loss_and_gradient(kernel, near_NC, target)
    torch.testing.assert_close(loss, near_loss, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(grad, near_grad, rtol=1e-13, atol=1e-15)
    if target.entropy_unknown() is None:
        assert torch.isfinite(kernel.nll(likely.Logits(IMPOSSIBLE), target).kl).all()


@kernels
@pytest.mark.parametrize("name", COSTLY)
def test_mass_on_an_impossible_class_is_infinite_and_no_nan(name: str, kernel: Kernel) -> None:
    score = kernel.nll(likely.Logits(IMPOSSIBLE), COSTLY[name])
    assert score.cross_entropy.tolist() == [INF]
    assert score.kl.tolist() == [INF]
    assert torch.isfinite(score.entropy).all()
    if name != "top_k bucket":  # whose complement has no softmax here
        _, grad = loss_and_gradient(kernel, IMPOSSIBLE, COSTLY[name])
        assert torch.isfinite(grad).all()


@kernels
def test_entropies_of_zeros_and_of_everything_on_one_class(kernel: Kernel) -> None:
    head = likely.Logits(torch.zeros(2, 4).double())
    p_NC = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    score = kernel.nll(head, likely.probabilities(p_NC))
    torch.testing.assert_close(score.entropy, torch.tensor([0, math.log(2)]).double(), rtol=1e-7, atol=0)
    torch.testing.assert_close(score.kl, torch.tensor([math.log(4), math.log(2)]).double(), rtol=1e-7, atol=0)
    tiny = kernel.nll(head, likely.measure(torch.tensor([[5e-324, 0, 0, 0], [0, 0, 0, 0]]).double()))
    assert torch.isfinite(tiny.cross_entropy).all()
    assert tiny.entropy.tolist()[1] == 0


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", ["labels ignored", "labels smoothing all"])
def test_what_stands_in_an_ignored_row_is_never_seen(target: str, dtype: torch.dtype, kernel: Kernel) -> None:
    made, own = make_case(target, "logits", dtype=dtype)
    (z_NC,) = (t for t in own.tensors if t is not None)
    ignored_N = torch.tensor(made.count == 0)
    assert 0 < int(ignored_N.sum()) < ROWS
    wanted, wanted_grad = loss_and_gradient(kernel, z_NC, made.target)
    for rubbish in (math.nan, INF, -INF, 1e30):
        spoilt_NC = torch.where(ignored_N[:, None], rubbish, z_NC)
        loss, grad = loss_and_gradient(kernel, spoilt_NC, made.target)
        assert torch.equal(loss, wanted)
        assert torch.equal(grad, wanted_grad)
        assert made.target.ignored is not None
        assert (kernel.nll(likely.Logits(spoilt_NC), made.target).cross_entropy[made.target.ignored] == 0).all()


@kernels
def test_a_row_of_weight_zero_adds_nothing_even_where_it_is_infinite_or_nan(kernel: Kernel) -> None:
    z = torch.tensor([[0.0, -INF], [0.0, 1.0], [math.nan, 0.0]]).double()
    target = likely.labels([1, 1, 1], 2, weight=torch.tensor([0.0, 1.0, 0.0]))
    loss, grad = loss_and_gradient(kernel, z, target)
    alone, alone_grad = loss_and_gradient(kernel, z[1:2], likely.labels([1], 2))
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(grad[1:2], alone_grad)
    assert (grad[[0, 2]] == 0).all()
    assert float(kernel.nll(likely.Logits(z), target).mean().cross_entropy) == pytest.approx(float(alone))


@kernels
@pytest.mark.parametrize("target", ["labels", "probabilities", "teacher logits"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_logit_that_is_nan_or_infinite_is_heard(bad: float, target: str, kernel: Kernel) -> None:
    """As in torch, where either makes the whole row NaN: gradient scalers look for it."""
    made, own = make_case(target, "logits")
    (z_NC,) = (t for t in own.tensors if t is not None)
    z_NC = z_NC.clone()
    z_NC[2, 1] = bad
    score = kernel.nll(likely.Logits(z_NC), made.target)
    assert torch.isnan(score.cross_entropy).tolist() == [row == 2 for row in range(ROWS)]
    loss, grad_NC = loss_and_gradient(kernel, z_NC, made.target)
    assert math.isnan(float(loss))
    assert torch.isnan(grad_NC).all(-1).tolist() == [row == 2 for row in range(ROWS)]


@kernels
def test_a_single_class_is_certain(kernel: Kernel) -> None:
    z = torch.tensor([[3.0], [-1e30]])
    loss, grad = loss_and_gradient(kernel, z, likely.labels([0, 0], 1))
    assert float(loss) == 0
    assert (grad == 0).all()


@kernels
def test_softcapped_logits_stay_below_the_cap(kernel: Kernel) -> None:
    x, weight = torch.full((2, 1), 1e30), torch.tensor([[1.0], [-1.0]])
    x.requires_grad_()
    score = kernel.nll(likely.Linear(x, weight, softcap=5.0), likely.labels([0, 1], 2))
    torch.testing.assert_close(
        score.cross_entropy.detach(), torch.tensor([math.log1p(math.exp(-10)), 10 + math.log1p(math.exp(-10))])
    )
    (grad,) = torch.autograd.grad(score.cross_entropy.sum(), x)
    assert (grad == 0).all()


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_scaler_does_not_overflow_what_is_scaled_back(dtype: torch.dtype, kernel: Kernel) -> None:
    made, own = make_case("labels", "linear bias", dtype=dtype)
    head, leaves = requiring_grad(own)
    loss, _ = kernel.objective(head, made.target, total=1e6)  # a small share of a large batch
    found = kernel.gradients(loss * 2.0**16, own, leaves)
    reference, reference_leaves = requiring_grad(own)
    whole, _ = KERNELS[0].objective(reference, made.target, total=1e6)
    true = torch.autograd.grad(whole, reference_leaves)
    rtol, atol = (0.02, 1e-4) if dtype == torch.bfloat16 else (1e-4, 1e-6)
    torch.testing.assert_close(found, [t * 2.0**16 for t in true], rtol=rtol, atol=atol)


def test_a_class_more_than_the_target_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="target: is over 5 classes where the head has 6"):
        likely.nll(likely.Logits(torch.zeros(ROWS, CLASSES + 1)), make("labels").target)
