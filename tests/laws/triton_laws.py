"""Laws of the Triton row pass; `test_triton` runs them in a process whose Triton interprets.

They hold compiled too: on a machine with a CUDA device, `python -m pytest tests/laws/triton_laws.py`.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import likely
from likely.kernels import eager, triton
from likely.kernels.triton_rows import compiled
from tests.cases import requiring_grad

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
N, C, D = 7, 37, 5
INF = math.inf
kinds = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)

if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("neither Triton's interpreter (TRITON_INTERPRET=1) nor a CUDA device", allow_module_level=True)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


HEADS: dict[str, Callable[[torch.dtype], likely.Head]] = {
    "logits": lambda dtype: likely.Logits(3 * normal(N, C, dtype=dtype)),
    "linear": lambda dtype: likely.Linear(normal(N, D, dtype=dtype), normal(C, D, seed=1, dtype=dtype)),
    "linear softcap": lambda dtype: likely.Linear(
        normal(N, D, dtype=dtype), normal(C, D, seed=1, dtype=dtype), normal(C, seed=2, dtype=dtype), softcap=2.0
    ),
}


def index(stored: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.stack([torch.randperm(C, generator=generator)[:stored] for _ in range(N)]).to(DEVICE)


def y(ignored: bool = False) -> Tensor:
    y_N = index(1)[:, 0]
    if ignored:
        y_N[::3] = -100
    return y_N


def share(*shape: int) -> Tensor:
    return torch.softmax(2 * normal(*shape, seed=4), dim=-1)


def class_weight() -> Tensor:
    return normal(C, seed=5).abs()


def repeated() -> Tensor:
    at = index(5)
    at[:, 3] = at[:, 0]
    return at


def counts() -> Tensor:
    count = torch.tensor([3.0, 1.0, 2.0, 4.0, 0.0], device=DEVICE)  # an entry with count 0 is padding
    return count.expand(N, 5)


def teacher_head(dtype: torch.dtype) -> likely.Linear:
    return likely.Linear(normal(N, 2 * D, seed=8, dtype=dtype), normal(C, 2 * D, dtype=dtype))


TARGETS: dict[str, tuple[Callable[[torch.dtype], likely.Target], float]] = {
    "labels": (lambda dtype: likely.labels(y(), C), 1.0),
    "labels at T": (lambda dtype: likely.labels(y(), C), 3.0),
    "labels smoothing": (lambda dtype: likely.labels(y(True), C, smoothing=0.2), 1.0),
    "labels class weight": (lambda dtype: likely.labels(y(True), C, smoothing=0.2, class_weight=class_weight()), 2.0),
    "top_k uniform": (lambda dtype: likely.top_k(index(20), 0.9 * share(N, 20), C, tail="uniform"), 1.0),
    "top_k renormalise": (lambda dtype: likely.top_k(index(3), share(N, 3), C, tail="renormalise"), 1.0),
    "samples": (lambda dtype: likely.samples(repeated(), counts(), C), 1.0),
    "probabilities": (lambda dtype: likely.probabilities(share(N, C).to(dtype)), 1.0),
    "probabilities at T": (lambda dtype: likely.probabilities(share(N, C), class_weight=class_weight()), 2.0),
    "measure": (lambda dtype: likely.measure(normal(N, C, seed=6, dtype=dtype)), 2.0),
    "teacher logits": (lambda dtype: likely.teacher(3 * normal(N, C, seed=7, dtype=dtype)), 1.0),
    "teacher head": (lambda dtype: likely.teacher(teacher_head(dtype)), 2.0),
}


def wide(tensor: Tensor | None) -> Tensor | None:
    return tensor.double() if tensor is not None and tensor.dtype.is_floating_point else tensor


def in_float64(target: likely.Target) -> likely.Target:
    """The same numbers in float64."""
    fields = {k: wide(v) for k, v in vars(target).items() if isinstance(v, Tensor)}
    own = getattr(target, "head", None)
    if own is not None:
        fields["head"] = own.with_tensors([wide(t) for t in own.tensors])
    return type(target)(**{**vars(target), **fields})


def in_eager(
    head: likely.Head, terms: Any, coefficients: Any, z_coefficient: Tensor | None, dtype: torch.dtype
) -> tuple[Any, list[Tensor]]:
    head, leaves = requiring_grad(head.with_tensors([None if t is None else t.to(dtype) for t in head.tensors]))
    if dtype == torch.float64:
        terms = [(in_float64(target), T) for target, T in terms]
    result = eager.run(head, terms, coefficients, z_coefficient, True)
    assert result.loss is not None
    return result, list(torch.autograd.grad(result.loss, leaves))


def close_to_eager(head: likely.Head, terms: Any, coefficients: Any, z_coefficient: Tensor | None = None) -> Any:
    """`err(triton) ≤ 1.5 · err(eager, same dtype) + ulp`, in the largest element, and the rows near float64's."""
    assert triton.refuses(head, terms) is None
    found = triton.run(head, terms, coefficients, z_coefficient, True)
    true, true_grads = in_eager(head, terms, coefficients, z_coefficient, dtype=torch.float64)
    plain, plain_grads = in_eager(head, terms, coefficients, z_coefficient, dtype=head.dtype)
    grads = [g for g in found.grads or [] if g is not None]
    for name, t, p, f in zip(
        ("loss", "first", "second", "third"),
        (true.loss, *true_grads),
        (plain.loss, *plain_grads),
        (found.loss, *grads),
    ):
        dtype = head.dtype if name != "loss" else torch.float32
        ours, theirs = (float((g.double() - t).abs().max()) for g in (f, p))
        ulp = 4 * torch.finfo(torch.float32).eps * max(1.0, float(t.abs().max()))
        ulp += torch.finfo(dtype).eps * float(t.abs().max())
        assert ours <= 1.5 * theirs + ulp, f"{name}: {ours:.2e}, eager {theirs:.2e}, ulp {ulp:.2e}"
    for three, row in zip(found.rows, true.rows):
        for name, f, r in zip(("cross_entropy", "entropy", "kl"), three, row):
            if r is not None:
                torch.testing.assert_close(f.double(), r, rtol=1e-5, atol=2e-5, msg=name)
    return found


@kinds
@pytest.mark.parametrize("head", ["logits", "linear"])
@pytest.mark.parametrize("target", TARGETS)
def test_rows_and_gradients_are_as_near_to_float64_as_those_of_eager(
    target: str, head: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "LEAST_BYTES", 3 * C * 6)  # chunks of 3 rows, which do not divide 7
    make, temperature = TARGETS[target]
    a_N = torch.linspace(-1, 2, N, device=DEVICE)
    close_to_eager(HEADS[head](dtype), [(make(dtype), temperature)], [a_N])


@kinds
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("temperatures", [(1.0, 2.0), (2.0, 3.0)], ids=str)
def test_several_terms_and_the_z_loss_add_up(temperatures: tuple[float, float], head: str, dtype: torch.dtype) -> None:
    terms = [
        (likely.labels(y(True), C, smoothing=0.1), temperatures[0]),
        (likely.teacher(teacher_head(dtype)), temperatures[1]),
    ]
    one_N, two_N = torch.linspace(0, 1, N, device=DEVICE), torch.linspace(2, 1, N, device=DEVICE)
    z_N = torch.linspace(0.2, 0, N, device=DEVICE)
    found = close_to_eager(HEADS[head](dtype), terms, [one_N, two_N], z_N)
    assert float(found.z_loss) > 0


@pytest.mark.parametrize("target", ["labels smoothing", "teacher head"])
def test_other_strides_and_float16(target: str) -> None:
    make, temperature = TARGETS[target]
    terms = [(make(torch.float16), temperature)]
    a_N = torch.linspace(-1, 2, N, device=DEVICE)
    close_to_eager(likely.Logits(3 * normal(C, N).T), terms, [a_N])
    close_to_eager(likely.Logits(3 * normal(N, 2 * C)[:, ::2]), terms, [a_N])
    close_to_eager(likely.Logits(3 * normal(N, C, dtype=torch.float16)), terms, [a_N])
    close_to_eager(HEADS["linear"](torch.float16), terms, [a_N])
    close_to_eager(HEADS["linear softcap"](torch.float32), terms, [a_N])


def test_rows_without_coefficients_make_no_gradient() -> None:
    head, target = HEADS["linear"](torch.float32), TARGETS["teacher head"][0](torch.float32)
    found = triton.run(head, [(target, 2.0)], None, None, True)
    assert found.grads is None
    rows = eager.run(head, [(target, 2.0)], None, None, True).rows[0]
    torch.testing.assert_close(found.rows[0], list(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 16, 300, 4096, 5000])
@pytest.mark.parametrize("target", ["labels", "teacher"])
def test_any_number_of_classes(target: str, classes: int) -> None:
    z_NC, t_NC = 3 * normal(3, classes), 3 * normal(3, classes, seed=1)
    y_N = torch.tensor([0, classes - 1, classes // 2], device=DEVICE)
    made = likely.labels(y_N, classes, smoothing=0.1) if target == "labels" else likely.teacher(t_NC)
    close_to_eager(likely.Logits(z_NC), [(made, 1.0)], [torch.ones(3, device=DEVICE)])


def gradient_of(z: Tensor, target: likely.Target, temperature: float = 1.0, a: Any = None) -> tuple[Tensor, Tensor]:
    a_N = torch.ones(z.shape[0], device=DEVICE) if a is None else torch.tensor(a, device=DEVICE)
    found = triton.run(likely.Logits(z), [(target, temperature)], [a_N], None, True)
    assert found.grads is not None
    return found.rows[0][0], found.grads[0]


@pytest.mark.parametrize("margin", [1.0, 20.0, 60.0])
def test_a_confident_and_right_row_keeps_the_digits_of_its_loss_and_gradient(margin: float) -> None:
    z = torch.tensor([[0.0, -margin, -margin - 3, -margin - 0.25]], device=DEVICE)
    exact = math.log1p(sum(math.exp(v) for v in z[0, 1:].tolist()))
    certain = likely.probabilities(torch.tensor([[1.0, 0, 0, 0]], device=DEVICE))
    for target in (likely.labels(torch.tensor([0], device=DEVICE), 4), certain):
        loss, grad = gradient_of(z, target)
        assert float(loss) == pytest.approx(exact, rel=5e-6)
        assert float(grad[0, 0]) == pytest.approx(math.expm1(-exact), rel=5e-6)
        assert float(grad.double().sum()) == pytest.approx(0, abs=1e-6 * exact)


@pytest.mark.parametrize("size", [1e10, 1e30])
def test_logits_of_any_size(size: float) -> None:
    z = torch.tensor([[size, 0.0, -size], [0.0, size, -size]], device=DEVICE)
    loss, grad = gradient_of(z, likely.labels(torch.tensor([0, 0], device=DEVICE), 3))
    assert loss.tolist() == [0, pytest.approx(size)]
    assert grad.tolist() == [[0, 0, 0], [-1, 1, 0]]
    loss, grad = gradient_of(z, likely.teacher(z))
    assert loss.tolist() == [0, 0]
    assert (grad == 0).all()


IMPOSSIBLE = [1.0, -INF, 2.0, 0.5, -INF]
FREE: dict[str, Callable[[], likely.Target]] = {
    "labels": lambda: likely.labels([2], 5),
    "labels class weight": lambda: likely.labels([2], 5, smoothing=0.2, class_weight=torch.tensor([1.0, 0, 2, 1, 0])),
    "probabilities": lambda: likely.probabilities([[0.5, 0.0, 0.25, 0.25, 0.0]]),
    "measure": lambda: likely.measure([[3.0, 0.0, -1.0, 0.0, 0.0]]),
    "top_k uniform": lambda: likely.top_k([[0, 1, 2]], [[0.25, 0.0, 0.75]], 5, tail="uniform"),
    "top_k uniform zero stored": lambda: likely.top_k([[0, 1, 4]], [[0.25, 0.0, 0.0]], 5, tail="uniform"),
    "samples": lambda: likely.samples([[0, 0, 1]], [[2, 1, 0]], 5),
    "teacher": lambda: likely.teacher(torch.tensor([[0.0, -INF, 1.0, -INF, -INF]])),
}
COSTLY: dict[str, Callable[[], likely.Target]] = {
    "labels": lambda: likely.labels([1], 5),
    "labels smoothing": lambda: likely.labels([2], 5, smoothing=0.2),
    "probabilities": lambda: likely.probabilities([[0.5, 0.25, 0.25, 0.0, 0.0]]),
    "top_k uniform": lambda: likely.top_k([[0, 1, 4]], [[0.25, 0.25, 0.5]], 5, tail="uniform"),
    "teacher": lambda: likely.teacher(torch.zeros(1, 5)),
}


@pytest.mark.parametrize("name", FREE)
def test_an_impossible_class_without_mass_costs_nothing(name: str) -> None:
    with torch.device(DEVICE):
        loss, grad = gradient_of(torch.tensor([IMPOSSIBLE]), FREE[name]())
        near, near_grad = gradient_of(torch.tensor([[-1e4 if v == -INF else v for v in IMPOSSIBLE]]), FREE[name]())
    torch.testing.assert_close(loss, near)
    torch.testing.assert_close(grad, near_grad)


@pytest.mark.parametrize("name", COSTLY)
def test_mass_on_an_impossible_class_is_infinite_and_no_nan(name: str) -> None:
    with torch.device(DEVICE):
        loss, grad = gradient_of(torch.tensor([IMPOSSIBLE]), COSTLY[name]())
    assert loss.tolist() == [INF]
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("target", ["labels", "labels smoothing", "teacher logits", "probabilities"])
def test_nan_and_inf_stay_in_their_row_and_an_idle_row_gives_nothing(target: str, value: float) -> None:
    z_NC = normal(N, C)
    z_NC[1, 3] = z_NC[2, 3] = z_NC[3, 3] = value
    z_NC[3] = value
    made = TARGETS[target][0](torch.float32)
    a = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    loss, grad = gradient_of(z_NC, made, a=a)
    bad = {1, 2, 3} - ({0, 3, 6} if target == "labels smoothing" else set())  # those are ignored
    assert {int(row) for row in torch.isnan(loss).nonzero()} == bad
    assert {int(row) for row in torch.isnan(grad).all(dim=-1).nonzero()} == bad - {2}
    assert (grad[2] == 0).all()
    assert torch.isfinite(grad[[0, 4, 5, 6]]).all()


def test_what_it_cannot_serve_is_said() -> None:
    head = likely.Logits(normal(N, C))
    ours = [(likely.labels(y(), C), 1.0)]
    bucket = likely.top_k(index(3), 0.5 * share(N, 3), C, tail="bucket")
    assert (
        triton.refuses(head, [(bucket, 1.0)]) == "the target has a mass that lies anywhere outside the stored classes"
    )
    assert triton.refuses(likely.Binary(normal(N)), ours) == "it does not know the head Binary"
    reason = triton.refuses(likely.Logits(normal(N, C).double()), ours)
    assert reason == "it computes in float32, and the head has torch.float64"
    assert triton.refuses(likely.Logits(normal(N, 0)), ours) == "the head has no classes"


def test_chunks_are_whole_and_take_what_they_may() -> None:
    def head(rows: int, features: int, classes: int) -> likely.Linear:
        one = torch.zeros(1, 1, dtype=torch.bfloat16)
        return likely.Linear(one.expand(rows, features), one.expand(classes, features))

    for rows, features, classes, first in ((8192, 4096, 128256, 2048), (1000, 64, 32000, 1000), (0, 3, 4, 0)):
        found = list(triton.chunks(head(rows, features, classes)))
        assert [r.start for r in found[1:]] == [r.stop for r in found[:-1]]
        assert sum(r.stop - r.start for r in found) == rows
        assert not found or found[0] == slice(0, first)
    assert not list(itertools.islice(triton.chunks(head(0, 3, 4)), 1))
    assert compiled() is compiled()
