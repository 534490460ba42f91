"""Training stacks of networks: the loss of each is its own, and the objective of a plain program."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import likely
from likely.networks.layers import Mlp, build
from likely.training import fit as module
from likely.training.fit import Stack, fit
from likely.training.threads import in_threads

D, H, C = 5, 4, 3


def networks(count: int, seed: int = 0) -> list[torch.nn.Module]:
    generator = torch.Generator().manual_seed(seed)
    return [Mlp(D, H, C, generator=generator) for _ in range(count)]


def rows(sizes: list[int], seed: int = 1) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Inputs, labels and a teacher's logits for networks with these numbers of rows."""
    g = torch.Generator().manual_seed(seed)
    x = [torch.randn(n, D, generator=g, dtype=torch.float64) for n in sizes]
    y = [torch.randint(C, (n,), generator=g) for n in sizes]
    z = [3 * torch.randn(n, C, generator=g, dtype=torch.float64) for n in sizes]
    return x, y, z


def parameters(network: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def twin(network: torch.nn.Module, x: Tensor, y: Tensor, T: float, smoothing: float, penalty: float) -> Tensor:
    """The loss of one network as anybody would write it with torch."""
    z = network(x)
    if y.dim() == 1:
        loss = T**2 * F.cross_entropy(z / T, y, label_smoothing=smoothing)
    else:
        loss = T**2 * F.cross_entropy(z / T, torch.softmax(y / T, 1))
    return loss + penalty / 2 * sum((p**2).sum() for p in network.parameters() if p.dim() > 1)


@pytest.mark.parametrize(
    ("soft", "T", "smoothing"), [(False, 1.0, 0.0), (False, 1.0, 0.1), (True, 1.0, 0.0), (True, 4.0, 0.0)]
)
def test_value_and_gradient_are_those_of_separate_programs(soft: bool, T: float, smoothing: float) -> None:
    x, y, z = rows([7, 4, 9])  # padded to 9: what fills up must add nothing
    target, some, penalties = (z if soft else y), networks(3), [0.0, 0.1, 2.0]
    stack = Stack(some)
    x_BnD, weight_N = module._padded(x)
    flat = torch.cat([module._pad(one, 9) for one in target])
    goal: likely.Target
    if soft:
        goal = module.teacher(flat, weight=weight_N)
    else:
        goal = module.labels(flat, C, smoothing=smoothing, weight=weight_N)
    penalty_B = torch.tensor(penalties, dtype=torch.float64)
    loss_B, gradient_BP = module._stacked_loss(stack, x_BnD, goal, T, penalty_B)(stack.parameters())
    for b, network in enumerate(some):
        expected = twin(network, x[b], target[b], T, smoothing, penalties[b])
        slope = torch.autograd.grad(expected, list(network.parameters()))
        assert float(loss_B[b]) == pytest.approx(float(expected.detach()), rel=1e-12)
        torch.testing.assert_close(gradient_BP[b], torch.cat([one.reshape(-1) for one in slope]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("soft", "T", "smoothing"), [(False, 1.0, 0.0), (False, 1.0, 0.3), (True, 1.0, 0.0), (True, 4.0, 0.0)]
)
def test_the_loss_that_is_reported_is_that_of_the_trained_network(soft: bool, T: float, smoothing: float) -> None:
    x, y, z = rows([9, 14])
    target, some = (z if soft else y), networks(2)
    found = fit(some, x, target, C, temperature=T, smoothing=smoothing, penalty=[0.01, 0.2], evaluations=40)
    for b, (network, penalty) in enumerate(zip(some, (0.01, 0.2))):
        expected = twin(network, x[b], target[b], T, smoothing, penalty)
        assert float(found.loss[b]) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert found.evaluations <= 40


def test_a_penalised_linear_fit_is_scikit_learns() -> None:
    x, y, _ = rows([60, 45])
    nets: list[torch.nn.Module] = [build("linear", D, C) for _ in range(2)]
    found = fit(nets, x, y, C, penalty=[0.05, 0.5], evaluations=400)
    assert bool(found.converged.all())
    for net, x_nD, y_n, penalty in zip(nets, x, y, (0.05, 0.5)):
        theirs = LogisticRegression(C=1 / (penalty * len(y_n)), tol=1e-10, max_iter=10_000).fit(x_nD, y_n)
        ours = torch.softmax(net(x_nD).detach(), 1)
        np.testing.assert_allclose(ours, theirs.predict_proba(x_nD), atol=2e-4)


def test_each_network_learns_its_own_rows_whatever_its_neighbours() -> None:
    """A convex problem has one minimum, so a stack and separate fits must meet there."""
    x, y, _ = rows([30, 12, 50])
    together: list[torch.nn.Module] = [build("linear", D, C) for _ in range(3)]
    fit(together, x, y, C, penalty=0.1, evaluations=400)
    for b, network in enumerate(together):
        alone = build("linear", D, C)
        fit([alone], [x[b]], [y[b]], C, penalty=0.1, evaluations=400)
        torch.testing.assert_close(parameters(network), parameters(alone), rtol=0, atol=1e-4)


def test_a_student_of_the_same_architecture_finds_its_teacher() -> None:
    (teacher_net,) = networks(1, seed=5)
    x, _, _ = rows([400])
    z = [teacher_net(x[0]).detach()]
    student = networks(1, seed=6)
    fit(student, x, z, C, temperature=2.0, evaluations=800)
    log_p, log_q = torch.log_softmax(z[0], 1), torch.log_softmax(student[0](x[0]).detach(), 1)
    assert float((log_p.exp() * (log_p - log_q)).sum(1).mean()) < 1e-4


def test_parts_and_threads_change_nothing_but_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _ = rows([20] * 6)

    def trained(threads: int) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            nets = networks(6)
            fit(nets, x, y, C, penalty=1e-3, evaluations=30)
            assert torch.get_num_threads() == threads
            return torch.stack([parameters(net) for net in nets])
        finally:
            torch.set_num_threads(before)

    monkeypatch.setattr(module, "_NETWORKS", 2)
    one, two = trained(1), trained(2)
    assert bool((one == two).all())
    monkeypatch.setattr(module, "_ROWS", 1)  # more rows than a part may have: a network at a time
    assert len(module._parts(x)) == 6
    assert bool(torch.isfinite(trained(1)).all())


def test_the_work_is_told_in_shares_that_add_up_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NETWORKS", 1)
    x, y, _ = rows([20, 8, 3])  # the smallest arrives long before the budget is used up
    shares: list[float] = []
    fit(networks(3), x, y, C, penalty=0.5, evaluations=100, tick=shares.append)
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) >= -1e-12


def test_held_out_rows_are_watched() -> None:
    x, y, _ = rows([20, 12])
    held, _, _ = rows([5, 9], seed=2)
    nets = networks(2)
    before = [net(h).detach() for net, h in zip(nets, held)]
    seen: list[list[Tensor]] = []

    def watch(step: int, forward: Callable[..., list[Tensor]]) -> None:
        seen.append(forward(held))

    fit(nets, x, y, C, evaluations=10, watch=watch)
    assert [z.shape for z in seen[0]] == [(5, C), (9, C)]
    for z, start in zip(seen[0], before):
        torch.testing.assert_close(z, start)
    for z, net, h in zip(seen[-1], nets, held):
        torch.testing.assert_close(z, net(h).detach())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 1}, "x, target: 2 and 1 of them for 2 networks"),
        ({"penalty": [0.1]}, "penalty: 1 of them for 2 networks"),
        ({"smoothing": 0.1, "soft": True}, "smoothing: is for labels"),
        ({"other": True}, "number 1 has other parameters"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    x, y, z = rows([4, 4])
    some = networks(2)
    if change.pop("other", False):
        some[1] = Mlp(D, H + 1, C)
    target = (z if change.pop("soft", False) else y)[: int(str(change.pop("target", 2)))]
    with pytest.raises(ValueError, match=message):
        fit(some, x, target, C, **change)  # type: ignore[arg-type]


def test_an_error_in_one_task_stops_the_others() -> None:
    begun, told = Event(), []

    def endless(stop: Event) -> None:
        begun.set()
        told.append(stop.wait(20))

    def fails(stop: Event) -> None:
        assert begun.wait(20)
        raise ValueError("this one")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="this one"):
            in_threads([fails, endless])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert told == [True]
