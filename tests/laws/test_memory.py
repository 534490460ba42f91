"""Neither the student's nor the teacher's N × C logits are held whole, and no target is more than what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import likely
from likely.kernels import loop, native
from tests.cases import Kernel, requiring_grad

N, C, D, BLOCK = 32, 301, 3, 5


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return result


def linear(dtype: torch.dtype, features: int = D) -> likely.Linear:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, features, generator=generator).to(dtype) for n in (N, C))
    return likely.Linear(x, weight)


def records(dtype: torch.dtype) -> dict[str, likely.Target]:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(C, (N,), generator=generator)
    index = torch.stack([torch.randperm(C, generator=generator)[:4] for _ in range(N)])
    p = torch.full((N, 4), 0.2)
    return {
        "labels": likely.labels(y, C, smoothing=0.1, class_weight=torch.ones(C)),
        "top_k uniform": likely.top_k(index, p, C, tail="uniform"),
        "top_k bucket": likely.top_k(index, p, C, tail="bucket"),
        "samples": likely.samples(index, torch.ones(N, 4), C, entropy=torch.ones(N)),
        "teacher": likely.teacher(linear(dtype, 2 * D)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", records(torch.float32))
@pytest.mark.parametrize("way", ["rows", "objective", "mixture"])
def test_the_largest_tensor_is_a_block(name: str, way: str, dtype: torch.dtype) -> None:
    kernel = Kernel("chunked", BLOCK)
    head, leaves = requiring_grad(linear(dtype))
    with Largest() as seen:
        target = records(dtype)[name]
        if way == "rows":
            loss = kernel.nll(head, target).mean().cross_entropy
        else:
            terms = [target] if way == "objective" else [target, *records(dtype).values()]
            loss, _ = kernel.objective(head, terms, z_loss=0.1)
        kernel.gradients(loss, head, leaves)
    assert 0 < seen.numel <= max(BLOCK * C, C * 2 * D), f"a tensor of {seen.numel} numbers; a block has {BLOCK * C}"


@pytest.mark.parametrize("divergence", [likely.reverse_kl, likely.jensen_shannon])
def test_divergences_hold_no_more(divergence: Callable[..., Tensor]) -> None:
    kernel = Kernel("chunked", BLOCK)
    head, leaves = requiring_grad(linear(torch.float32))
    with Largest() as seen, kernel.at(head):
        loss = divergence(head, linear(torch.float32, 2 * D)).sum()
        kernel.gradients(loss, head, leaves)
    assert 0 < seen.numel <= max(BLOCK * C, C * 2 * D)


def test_the_watch_sees_the_whole_logits_where_they_are_held() -> None:
    head, leaves = requiring_grad(linear(torch.float32))
    with Largest() as seen:
        loss, _ = likely.objective(head, records(torch.float32)["labels"], kernel="eager")
        torch.autograd.grad(loss, leaves)
    assert seen.numel == N * C


def sizes_of(rows: int, classes: int, dtype: torch.dtype = torch.float32, teacher: bool = False) -> list[int]:
    terms = [(likely.teacher(likely.Linear(torch.empty(rows, 1), torch.empty(classes, 1))), 1.0)] if teacher else []
    whole = loop.blocks(likely.Logits(torch.empty(rows, classes, dtype=dtype, device="meta")), terms)
    assert [r.start for r in whole[1:]] == [r.stop for r in whole[:-1]]
    assert (whole[0].start, whole[-1].stop) == (0, rows)
    return [r.stop - r.start for r in whole]


@pytest.mark.skipif(native.active() == "plain", reason="blocks are of float32 without the compiled row pass")
def test_bfloat16_has_two_blocks_where_a_sum_over_more_would_take_as_much() -> None:
    def sizes(rows: int, features: int) -> list[int]:
        x, weight = (torch.empty(size, features, dtype=torch.bfloat16) for size in (rows, 50_000))
        return [r.stop - r.start for r in loop.blocks(likely.Linear(x, weight))]

    assert sizes(2048, 600) == [1024, 1024]
    assert sizes(2048, 500) == [512] * 4
    assert sizes(1000, 600) == [512, 488]


def test_a_default_block_keeps_the_rate_of_products_and_never_grows_with_the_rows() -> None:
    """256 rows where the classes are many, what the caches hold where they are few, never above 128 MiB."""
    assert set(sizes_of(4096, 32_000)) == {256}
    assert set(sizes_of(65_536, 32_000)) == {256}
    assert set(sizes_of(65_536, 32_000, torch.bfloat16)) <= {256, 512}  # 512 where the row pass was compiled
    assert sizes_of(300, 32_000) == [192, 108]
    assert set(sizes_of(65_536, 32_000, teacher=True)) == {384, 256}  # one more product to each
    few = sizes_of(2**16, 1000)
    assert 2**20 <= max(few) * 1000 * 4 <= 2**29
    assert max(few) - min(few[:-1]) <= 64
    assert max(sizes_of(300, 2**20)) == 2**27 // (2**20 * 4)
    assert sizes_of(3, 2**26) == [1, 1, 1]
