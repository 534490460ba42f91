"""The deliberate differences from torch, all of them, and what is kept although it looks like one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import likely.functional as LF
import likely.nn

INF = torch.inf
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


# -------------------------------------------------------------- a class without target mass costs nothing, even at −inf


def _masked() -> tuple[Tensor, Tensor]:
    z = torch.tensor([[1.0, -INF, 0.5], [0.0, 2.0, -INF]], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([[0.25, 0.0, 0.75], [0.5, 0.5, 0.0]], dtype=torch.float64)
    return z, p


def _over_the_possible(z: Tensor, p: Tensor) -> Tensor:
    """The loss of each row with the impossible class struck out."""
    keep = torch.isfinite(z)
    return torch.stack([F.cross_entropy(z[i][keep[i]], p[i][keep[i]]) for i in range(len(z))])


def test_a_masked_class_costs_nothing_in_cross_entropy() -> None:
    z, p = _masked()
    assert F.cross_entropy(z, p, reduction="none").isnan().all()
    found, expected = LF.cross_entropy(z, p, reduction="none"), _over_the_possible(z, p)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(loss.sum(), z)[0] for loss in (found, expected)]
    torch.testing.assert_close(grads[0], grads[1])
    assert torch.isfinite(torch.autograd.grad(LF.cross_entropy(z, p), z)[0]).all()


def test_a_masked_class_costs_nothing_with_class_weights_and_labels() -> None:
    z, _ = _masked()
    weight = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    y = torch.tensor([1, 0])
    assert F.cross_entropy(z, y, weight).isnan()
    torch.testing.assert_close(LF.cross_entropy(z, y, weight), F.cross_entropy(z[1:], y[1:]))


def test_a_masked_class_costs_nothing_in_the_binary_loss() -> None:
    z, y = torch.tensor([-INF], requires_grad=True), torch.tensor([0.0])
    assert F.binary_cross_entropy_with_logits(z, y).isnan()
    loss = LF.binary_cross_entropy_with_logits(z, y)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0
    assert z.grad == 0


def test_a_masked_class_costs_nothing_in_kl_div() -> None:
    z, p = _masked()
    log_q = torch.log_softmax(z, dim=-1)
    assert F.kl_div(log_q, p, reduction="sum").isnan()
    entropy = torch.special.entr(p).sum(dim=-1)
    expected = _over_the_possible(z, p) - entropy
    for target, log_target in ((p, False), (p.log(), True)):
        found = LF.kl_div(log_q, target, reduction="none", log_target=log_target)
        torch.testing.assert_close(found.sum(dim=-1), expected, rtol=1e-6, atol=1e-6)
        assert torch.isfinite(torch.autograd.grad(found.sum(), log_q, retain_graph=True)[0]).all()


def test_in_log_space_a_class_without_mass_costs_nothing_at_any_logit() -> None:
    log_q, log_p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
    assert F.kl_div(log_q, log_p, reduction="sum", log_target=True).isnan()
    torch.testing.assert_close(LF.kl_div(log_q, log_p, reduction="sum", log_target=True), torch.tensor(2.0).log())


def test_mass_on_an_impossible_class_is_infinite_as_in_torch() -> None:
    z = torch.tensor([[1.0, -INF]])
    p = torch.tensor([[0.5, 0.5]])
    assert LF.cross_entropy(z, p) == INF == F.cross_entropy(z, p)
    assert LF.cross_entropy(z, torch.tensor([1])) == INF
    assert LF.kl_div(torch.log_softmax(z, -1), p, reduction="sum") == INF


# --------------------------------------------------------------------- half precision: the loss comes back in float32


@pytest.mark.filterwarnings("ignore:reduction")
@HALF
@REDUCTIONS
def test_half_precision_losses_are_float32_and_gradients_are_not(dtype: torch.dtype, reduction: str) -> None:
    z = torch.randn(4, 3, dtype=dtype, requires_grad=True)
    p = torch.rand(4, 3, dtype=dtype, requires_grad=True)
    x, w = torch.randn(4, 5, dtype=dtype, requires_grad=True), torch.randn(3, 5, dtype=dtype, requires_grad=True)
    b = torch.randn(3, dtype=dtype, requires_grad=True)
    y = torch.tensor([0, 1, 2, 0])
    losses = [
        LF.cross_entropy(z, y, reduction=reduction),
        LF.cross_entropy(z, p, reduction=reduction, label_smoothing=0.1),
        LF.nll_loss(z, y, reduction=reduction),
        LF.kl_div(z, p, reduction=reduction),
        LF.binary_cross_entropy_with_logits(z, p, reduction=reduction),
        LF.binary_cross_entropy(p, p.detach(), reduction=reduction),
        LF.linear_cross_entropy(x, w, y, linear_bias=b, reduction=reduction),
        LF.linear_cross_entropy(x, w, p, linear_bias=b, reduction=reduction),
    ]
    leaves = [z, p, x, w, b]
    for loss in losses:
        assert loss.dtype == torch.float32
        for leaf, grad in zip(leaves, torch.autograd.grad(loss.sum(), leaves, allow_unused=True), strict=True):
            assert grad is None or grad.dtype == leaf.dtype


def test_a_half_precision_loss_keeps_what_float32_can_hold() -> None:
    z = torch.zeros(3000, 2, dtype=torch.float16)
    z[:, 1] = 100
    assert F.cross_entropy(z, torch.zeros(3000, dtype=torch.long), reduction="sum") == INF
    assert LF.cross_entropy(z, torch.zeros(3000, dtype=torch.long), reduction="sum") == 300_000


def test_a_half_precision_target_is_complemented_in_float32() -> None:
    z, y = torch.tensor([100.0]).bfloat16(), torch.tensor([0.001]).bfloat16()
    exact = F.binary_cross_entropy_with_logits(z.double(), y.double())
    torch.testing.assert_close(LF.binary_cross_entropy_with_logits(z, y).double(), exact, rtol=1e-6, atol=0)


# ---------------------------------------------------------------------- bfloat16 through many blocks is more exact


def _linear_problem() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4096, 16).bfloat16().requires_grad_()
    weight = torch.randn(4096, 16).mul(0.25).bfloat16().requires_grad_()
    return x, weight, torch.randint(0, 4096, (4096,))


def test_bfloat16_linear_cross_entropy_is_more_exact_than_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own chunked path sums the chunks' losses in bfloat16; 256 blocks here lose nothing."""
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip(f"torch {torch.__version__} has no linear_cross_entropy")
    from likely.kernels import loop

    x, weight, y = _linear_problem()
    truth = F.cross_entropy(x.detach().double() @ weight.detach().double().T, y).item()
    monkeypatch.setattr(loop, "BLOCK_BYTES", 16 * 4096 * 4)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=16, chunking_method=None)
    theirs = F.linear_cross_entropy(x, weight, y, options=options).item()
    ours = LF.linear_cross_entropy(x, weight, y, options=options).item()
    assert abs(ours - truth) < 1e-3 * truth
    assert abs(ours - truth) < abs(theirs - truth) / 10, (ours, theirs, truth)


# ------------------------------------------------------------------------------------------------------------ kept


def test_the_clamp_of_binary_cross_entropy_is_kept() -> None:
    p, y = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    assert LF.binary_cross_entropy(p, y, reduction="none").tolist() == [100, 100]
    assert likely.nn.BCELoss(reduction="sum")(p, y) == 200


def test_a_mean_over_nothing_is_nan_here_and_zero_in_the_core() -> None:
    z, y = torch.zeros(2, 3, requires_grad=True), torch.tensor([-100, -100])
    assert LF.cross_entropy(z, y).isnan()
    assert LF.linear_cross_entropy(z, torch.zeros(5, 3), y).isnan()
    assert LF.cross_entropy(z, likely.labels(y, 3)).isnan()
    loss, _ = likely.objective(likely.Logits(z), likely.labels(y, 3))
    assert loss == 0
