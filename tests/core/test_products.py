"""Products of float32 matrices by MKL and by oneDNN: the same to rounding, for every layout that a head may have."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import likely
from likely import _products

SIZES = [(1, 1, 2), (5, 3, 7), (33, 64, 1030), (130, 100, 2100), (64, 770, 900)]


@pytest.fixture(params=list(_products.available()), autouse=True)
def library(request: pytest.FixtureRequest) -> Iterator[str]:
    with _products.using(request.param):
        yield request.param


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize(("n", "D", "C"), SIZES)
@pytest.mark.parametrize("layout", ["plain", "rows of more", "columns of more", "transposed"])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_products(n: int, D: int, C: int, layout: str, biased: bool) -> None:
    x, weight, g = drawn(n, D), drawn(C, D), drawn(n, C)
    bias = drawn(C) if biased else None
    if layout == "rows of more":
        x, g = torch.cat([x, x])[:n], torch.cat([g, g])[:n]
    elif layout == "columns of more":
        x, weight = torch.cat([x, x], dim=1)[:, :D], torch.cat([weight, weight], dim=1)[:, :D]
    elif layout == "transposed":
        x, weight, g = x.T.contiguous().T, weight.T.contiguous().T, g.T.contiguous().T
    wide = [x.double(), weight.double(), g.double()]
    room = torch.full((n + 2, C), torch.nan)
    found = _products.logits(x, weight, bias, room[1 : n + 1])
    near(found, wide[0] @ wide[1].T + (0 if bias is None else bias.double()))
    assert room[0].isnan().all()
    assert room[-1].isnan().all()

    dx = torch.full((n, D), torch.nan)
    near(_products.rows_gradient(g, weight, dx), wide[2] @ wide[1])
    near(_products.rows_gradient(g, weight, dx, add=True), 2 * wide[2] @ wide[1])
    total = torch.full((C, D), torch.nan)
    near(_products.weight_gradient(g, x, total, add=False), wide[2].T @ wide[0])
    near(_products.weight_gradient(g, x, total, add=True), 2 * wide[2].T @ wide[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_pytorchs(dtype: torch.dtype) -> None:
    x, weight = drawn(8, 5, dtype=dtype), drawn(9, 5, dtype=dtype)
    out = torch.empty(8, 9, dtype=dtype)
    torch.testing.assert_close(_products.logits(x, weight, None, out), torch.mm(x, weight.T), rtol=0, atol=0)


def test_nan_and_infinity_go_where_they_would() -> None:
    x, weight = drawn(40, 70), drawn(50, 70)
    x[3, 5], x[7, 0], weight[11, 2] = torch.nan, torch.inf, -torch.inf
    out = _products.logits(x, weight, None, torch.empty(40, 50))
    wanted = x.double() @ weight.double().T
    assert torch.equal(out.isnan(), wanted.isnan())
    assert torch.equal(out.isinf(), wanted.isinf())


def test_nothing_gives_nothing() -> None:
    x, weight = torch.empty(0, 4), drawn(6, 4)
    assert _products.logits(x, weight, None, torch.empty(0, 6)).shape == (0, 6)
    total = torch.full((6, 4), torch.nan)
    assert not _products.weight_gradient(torch.empty(0, 6), x, total, add=False).any()
    assert not _products.logits(torch.empty(3, 0), torch.empty(6, 0), None, torch.ones(3, 6)).any()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_at_every_call(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made = []
        for _ in range(2):
            x, weight = drawn(600, 80).requires_grad_(), drawn(3000, 80).requires_grad_()
            labels = torch.arange(600) * 5
            likely.objective(likely.Linear(x, weight), likely.Term(likely.labels(labels, 3000)))[0].backward()
            made.append((x.grad, weight.grad))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*made):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_unknown_libraries_are_named() -> None:
    with pytest.raises(ValueError, match="name: is 'blas'; with this PyTorch there are"), _products.using("blas"):
        pass
    code = "from likely import _products; print(_products.active())"
    for asked, wanted in (("torch", "torch"), ("blas", "LIKELY_PRODUCTS: is 'blas'")):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"LIKELY_PRODUCTS": asked, "PATH": ""}, capture_output=True, text=True
        )
        assert wanted in done.stdout + done.stderr
