"""Laws of the value: for every target, head, kernel and dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import likely
from tests.cases import (
    CLASSES,
    DISTRIBUTIONS,
    DTYPES,
    HEADS,
    KERNELS,
    ROWS,
    TARGETS,
    Array,
    Draw,
    Made,
    double,
    make,
    make_case,
    make_head,
)
from tests.laws.twin import TOLERANCE, twin

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
targets = pytest.mark.parametrize("target", TARGETS)


def tolerance(dtype: torch.dtype, head: str) -> float:
    """A half-precision product is rounded once, by blocks perhaps otherwise than whole."""
    return 1e-2 if dtype == torch.bfloat16 and "linear" in head else TOLERANCE[dtype]


def assert_close(ours: Tensor, true: Array, size: Array | float, relative: float, what: str) -> None:
    gap = np.abs(double(ours) - true) / size
    worst = int(gap.argmax()) if gap.size else 0
    assert ours.shape == true.shape
    assert np.all(gap <= relative), (
        f"{what}: row {worst} is {double(ours)[worst]}, not {true[worst]} (gap {gap[worst]:.2e})"
    )


@dtypes
@pytest.mark.parametrize("head", HEADS)
@targets
def test_equals_the_dense_twin(target: str, head: str, dtype: torch.dtype) -> None:
    made, own = make_case(target, head, dtype=dtype)
    near = tolerance(dtype, head)
    for temperature in made.temperatures:
        true = twin(double(own.logits()), made, temperature)
        for kernel in KERNELS:
            what = f"{kernel} at T={temperature}"
            score = kernel.nll(own, made.target, temperature)
            assert score.cross_entropy.dtype == own.acc
            assert_close(score.cross_entropy, true.cross_entropy, true.size, near, f"cross-entropy, {what}")
            mean = score.mean()
            wanted = (made.weight * true.cross_entropy).sum() / made.count.sum()
            size = (made.weight * true.size).sum() / made.count.sum()
            assert abs(float(mean.cross_entropy) - wanted) <= near * size, what
            if not made.known:
                with pytest.raises(ValueError, match="entropy"):
                    _ = score.entropy
                continue
            assert_close(score.entropy, true.entropy, true.size, near, f"entropy, {what}")
            assert_close(score.kl, true.kl, true.size, near, f"kl, {what}")
            # CE = H + KL, of the rows and of the mean
            assert_close(score.entropy + score.kl, double(score.cross_entropy), true.size, near, f"H + KL, {what}")
            assert abs(float(mean.entropy + mean.kl - mean.cross_entropy)) <= near * size, what
            if made.entropy is None:
                assert (double(score.kl) >= -near * true.size).all(), f"KL ≥ 0, {what}"


@targets
def test_the_denominator_is_the_sum_of_counts(target: str) -> None:
    made = make(target)
    np.testing.assert_allclose(double(made.target.count), made.count, rtol=1e-15)
    weight_N = np.ones(ROWS) if made.target.weight is None else double(made.target.weight)
    np.testing.assert_array_equal(weight_N, made.weight)


def measure_of(target: likely.Target, temperature: float, rows: slice = slice(None)) -> Tensor:
    """The measure itself, a tile of it: minus the gradient at q = 0."""
    n = len(range(*rows.indices(target.rows)))
    tile = target.tile(rows, temperature, torch.float64)
    return -tile.gradient_(
        torch.zeros(n, target.classes, dtype=torch.float64), lambda: torch.zeros(n, target.classes).double()
    )


@targets
def test_the_measure_is_the_twins_and_its_tiles_join(target: str) -> None:
    made = make(target)
    for temperature in made.temperatures:
        true = made.mu(temperature)
        if made.rest is not None and made.outside is not None:
            true = true + made.rest[:, None] * made.outside / made.outside.sum(axis=-1, keepdims=True)
        whole = measure_of(made.target, temperature)
        np.testing.assert_allclose(double(whole), true, rtol=1e-13, atol=1e-15)
        tiles = [measure_of(made.target, temperature, slice(at, min(at + 3, ROWS))) for at in range(0, ROWS, 3)]
        torch.testing.assert_close(torch.cat(tiles), whole, rtol=1e-14, atol=1e-16)  # BLAS sums a tile in its own order
        mass_N = made.target.tile(slice(None), temperature, torch.float64).mass()
        np.testing.assert_allclose(double(mass_N), true.sum(axis=-1), rtol=1e-13, atol=1e-14)


@dtypes
@pytest.mark.parametrize("target", DISTRIBUTIONS)
def test_rows_sum_to_one(target: str, dtype: torch.dtype) -> None:
    made = make(target, dtype=dtype)
    for temperature in made.temperatures:
        # Probabilities that were given are taken as they are, with the rounding of their dtype.
        near = torch.finfo(dtype).eps if target.startswith("probabilities") and temperature == 1 else 1e-6
        sums = double(measure_of(made.target, temperature).sum(dim=-1))
        np.testing.assert_allclose(sums, 1, atol=max(near, 1e-14))


@pytest.mark.parametrize("head", ["logits", "logits impossible", "logits confident"])
@targets
def test_a_constant_added_to_the_logits_changes_nothing(target: str, head: str) -> None:
    made, own = make_case(target, head)
    assert isinstance(own, likely.Logits)
    z_NC = (own.z * 2**20).round() / 2**20  # so that adding the constants below rounds nothing
    constant_N1 = torch.tensor([2.0**28, -(2.0**28), 0, 1024, -3, 0.5, 7]).double()[:, None]
    for temperature in (t for t in made.temperatures if t in (1, 2)):
        for kernel in KERNELS:
            before = kernel.nll(likely.Logits(z_NC), made.target, temperature)
            after = kernel.nll(likely.Logits(z_NC + constant_N1), made.target, temperature)
            assert torch.equal(before.cross_entropy, after.cross_entropy)


@pytest.mark.parametrize("head", ["logits", "logits impossible"])
@targets
def test_permuting_the_classes_permutes_the_measure_and_no_loss(target: str, head: str) -> None:
    order = np.array([3, 0, 4, 1, 2])
    made, own = make_case(target, head)
    assert isinstance(own, likely.Logits)
    other = make(target, order=order)
    for temperature in made.temperatures:
        permuted = double(measure_of(other.target, temperature))
        np.testing.assert_allclose(
            permuted, double(measure_of(made.target, temperature))[:, order], rtol=1e-13, atol=1e-15
        )
        for kernel in KERNELS[:2]:
            one = kernel.nll(own, made.target, temperature)
            two = kernel.nll(likely.Logits(own.z[:, order]), other.target, temperature)
            torch.testing.assert_close(one.cross_entropy, two.cross_entropy, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("head", ["logits", "logits impossible", "binary", "linear softcap"])
@targets
def test_the_size_of_a_block_changes_nothing(target: str, head: str) -> None:
    made, own = make_case(target, head)
    temperature = made.temperatures[-1]
    whole, *parts = [kernel.nll(own, made.target, temperature) for kernel in KERNELS if kernel.name == "chunked"]
    for part in parts:
        if "linear" in head:  # BLAS may sum a small product in another order
            torch.testing.assert_close(part.cross_entropy, whole.cross_entropy, rtol=1e-14, atol=1e-14)
        else:
            torch.testing.assert_close(part.cross_entropy, whole.cross_entropy, rtol=1e-15, atol=1e-15)
        if made.known:
            torch.testing.assert_close(part.entropy, whole.entropy, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("head", ["logits", "linear bias"])
@targets
def test_no_row_and_one_row(target: str, head: str, rows: int) -> None:
    made, own = make_case(target, head, rows=rows)
    for temperature in made.temperatures:
        true = twin(double(own.logits()), made, temperature) if rows else None
        for kernel in KERNELS:
            score = kernel.nll(own, made.target, temperature)
            assert score.cross_entropy.shape == (rows,)
            if true is not None:
                assert_close(score.cross_entropy, true.cross_entropy, true.size, 1e-13, str(kernel))
            if not rows:
                assert float(score.mean().cross_entropy) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_kl_is_zero_at_p_and_only_there(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    z_NC = 3 * torch.randn(500, 11, generator=generator, dtype=dtype)
    eps = torch.finfo(dtype).eps
    for temperature in (1.0, 3.0):
        p_NC = torch.softmax(z_NC, dim=-1)
        for kernel in KERNELS[:2]:
            own = kernel.nll(likely.Logits(z_NC), likely.teacher(z_NC), temperature)
            assert (own.kl == 0).all(), "a teacher's divergence from itself is 0 exactly"
            given = kernel.nll(likely.Logits(p_NC.log()), likely.probabilities(p_NC), temperature)
            assert given.kl.abs().max() <= 4 * eps
            for step in (1e-2, 1.0):
                other_NC = z_NC.clone()
                other_NC[:, 3] += step
                assert (kernel.nll(likely.Logits(other_NC), likely.teacher(z_NC), temperature).kl > 0).mean(
                    dtype=dtype
                ) > 0.9


def test_labels_smoothed_in_both_spellings_agree() -> None:
    draw = Draw("spellings")
    y_N, confidence = torch.tensor(draw.y()), 0.85
    smoothing = (1 - confidence) * CLASSES / (CLASSES - 1)
    head = make_head("logits")
    for class_weight in (None, draw.class_weight()):
        one = likely.nll(head, likely.labels(y_N, CLASSES, smoothing=smoothing, class_weight=class_weight))
        two = likely.nll(head, likely.labels(y_N, CLASSES, confidence=confidence, class_weight=class_weight))
        torch.testing.assert_close(one.cross_entropy, two.cross_entropy, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(one.entropy, two.entropy, rtol=1e-14, atol=1e-14)


def test_a_binary_head_is_two_classes_and_keeps_small_losses() -> None:
    z_N = torch.tensor([-700.0, -40.0, -1.0, 0.0, 1.0, 40.0, 700.0]).double()
    y_N = torch.tensor([0, 1, 0, 1, 1, 1, 1])
    pair_NC = torch.stack([torch.zeros_like(z_N), z_N], dim=-1)
    for kernel in KERNELS:
        one = kernel.nll(likely.Binary(z_N), likely.labels(y_N, 2))
        two = kernel.nll(likely.Logits(pair_NC), likely.labels(y_N, 2))
        assert torch.equal(one.cross_entropy, two.cross_entropy)
        signed = torch.where(y_N == 1, -z_N, z_N)
        torch.testing.assert_close(one.cross_entropy, torch.logaddexp(signed, torch.zeros(())), rtol=1e-14, atol=0)


def test_labels_are_labels_at_any_temperature_and_measures_are_taken_as_given() -> None:
    for name in ("labels smoothing", "measure"):
        made = make(name)
        assert torch.equal(measure_of(made.target, 1.0), measure_of(made.target, 7.0))


@pytest.mark.parametrize("name", ["top_k uniform", "samples"])
def test_a_record_refuses_another_temperature(name: str) -> None:
    made, head = make_case(name, "logits")
    with pytest.raises(ValueError, match=r"temperature: the record was taken at temperature 1 .* cannot be had at 4"):
        likely.nll(head, made.target, temperature=4.0)


@pytest.mark.parametrize("argument", ["y", "p", "mu", "index"])
def test_arrays_and_tensors_mean_the_same(argument: str) -> None:
    draw = Draw("arrays")
    p_NC, y_N = double(draw.p()), draw.y()
    index_NK, p_NK, _ = draw.top()
    p_NC.flags.writeable = False
    y_N.flags.writeable = False
    pairs: dict[str, Any] = {
        "y": (likely.labels(y_N, CLASSES), likely.labels(torch.tensor(y_N), CLASSES)),
        "p": (likely.probabilities(p_NC), likely.probabilities(torch.tensor(p_NC))),
        "mu": (likely.measure(p_NC), likely.measure(torch.tensor(p_NC))),
        "index": (
            likely.top_k(index_NK.numpy().astype(np.int32), p_NK.numpy(), CLASSES, tail="bucket"),
            likely.top_k(index_NK, p_NK, CLASSES, tail="bucket"),
        ),
    }
    head = make_head("logits")
    one, two = (likely.nll(head, target).cross_entropy for target in pairs[argument])
    assert torch.equal(one, two)


def test_every_case_says_what_it_is() -> None:
    """The cases themselves: each family of targets is there, with the twists that the laws must see."""
    mades: dict[str, Made] = {name: make(name) for name in TARGETS}
    assert any(m.rest is not None for m in mades.values())
    assert any((m.mu(1.0) < 0).any() for m in mades.values())
    assert any((m.count == 0).any() for m in mades.values())
    assert any(not np.allclose(m.mu(m.temperatures[0]).sum(axis=-1), 1) for m in mades.values())
    assert any(np.isneginf(double(make_head("logits impossible", m).logits())).any() for m in mades.values())
