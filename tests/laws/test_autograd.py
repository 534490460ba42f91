"""Whatever autograd can ask of the chunked kernel is what the definition says, and holds one block at a time.

Legend: N rows, C classes, D features.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import likely
from likely.kernels import operator, parts
from tests.cases import CLASSES, Draw, Kernel, make, make_case, make_head, requiring_grad
from tests.laws.test_memory import BLOCK, C, D, Largest, linear, records

Tensors = tuple[Tensor, ...]
Function = Callable[[Tensors], Any]

EAGER, CHUNKED = Kernel("eager"), Kernel("chunked")


def like(tree: Any, seed: int) -> Any:
    """Fixed numbers of the tree's shapes, which a function that is 0 by mistake cannot hide behind."""

    def one(t: Tensor) -> Tensor:
        return torch.cos(1.3 * torch.arange(t.numel(), dtype=torch.float64) + seed).reshape(t.shape).to(t.dtype)

    return pytree.tree_map(one, tree)


def one_number(function: Function) -> Function:
    def number(at: Tensors) -> Tensor:
        return sum(((out * like(out, 3)).sum() for out in pytree.tree_leaves(function(at))), torch.zeros(()))

    return number


def vjp(function: Function) -> Function:
    def pulled(at: Tensors) -> Any:
        made, back = torch.func.vjp(function, at)[:2]
        return back(like(made, 2))

    return pulled


def batched(function: Function, which: slice) -> Function:
    """Three points along a line, on which only the tensors `which` move, and no probability below 0."""

    def moved(at: Tensors, s: Tensor) -> Tensors:
        kept, line = list(at), like(at, 4)
        kept[which] = [t + s * v.abs() for t, v in zip(at[which], line[which])]
        return tuple(kept)

    s = torch.tensor([0.0, 0.05, 0.1], dtype=torch.float64)
    return lambda at: torch.vmap(lambda one: function(moved(at, one)))(s)


LIGHT: dict[str, Callable[[Function], Function]] = {
    "grad": lambda f: torch.func.grad(one_number(f)),
    "jvp": lambda f: lambda at: torch.func.jvp(f, (at,), (like(at, 1),))[1],
    "vjp": vjp,
    "vmap": lambda f: batched(f, slice(None)),
    "vmap of the first": lambda f: batched(f, slice(0, 1)),
}
TRANSFORMS = {**LIGHT, "jacrev": torch.func.jacrev, "jacfwd": torch.func.jacfwd}

FIELDS = ("given", "class_weight", "value", "floor", "rest")


def case(target: str, head: str, way: str, rows: int = 4) -> tuple[Callable[[Kernel], Function], Tensors]:
    """A function of the head's tensors (and, `way` says so, of the target's), and where it is taken."""
    made, own = make_case(target, head, rows=rows, classes=4)
    temperature = made.temperatures[-1]
    of_head = tuple(t for t in own.tensors if t is not None)
    names = [name for name in FIELDS if getattr(made.target, name, None) is not None] if "target" in way else []
    of_target = tuple(getattr(made.target, name).double() for name in names)

    def function_of(kernel: Kernel) -> Function:
        def function(at: Tensors) -> Any:
            tensors = [*at[: len(of_head)], *[None] * (len(own.tensors) - len(of_head))]
            fields: dict[str, Any] = dict(zip(names, at[len(of_head) :]))
            target = dataclasses.replace(made.target, **fields)
            if "rows" in way:
                score = kernel.nll(own.with_tensors(tensors), target, temperature)
                return (score.cross_entropy, 0.3 * score.kl, score.entropy) if made.known else score.cross_entropy
            term = likely.Term(target, weight=0.7, temperature=temperature)
            return kernel.objective(own.with_tensors(tensors), [term, term], z_loss=0.1)[0]

        return function

    return function_of, of_head + of_target


CASES = [
    ("labels ignored", "logits", "sum, target"),
    ("labels smoothing all", "linear bias", "sum"),
    ("top_k bucket", "linear softcap", "rows"),
    ("teacher linear", "linear", "sum"),
    ("top_k bucket", "linear bias", "sum, target"),
    ("measure class weight", "logits", "sum, target"),
    ("top_k bucket at T=2", "logits", "rows, target"),
    ("probabilities", "binary", "rows, target"),
    ("labels smoothing all", "binary", "sum"),
]
cases = pytest.mark.parametrize(("target", "head", "way"), CASES)


def assert_the_same(found: Any, wanted: Any, name: str) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11, msg=lambda m: f"{name}: {m}")


@cases
def test_every_nesting_of_two_transforms_is_the_definitions(target: str, head: str, way: str) -> None:
    function_of, at = case(target, head, way)
    definition, chunked = function_of(EAGER), function_of(CHUNKED)
    for outer, inner in itertools.product(TRANSFORMS, TRANSFORMS):
        if "jac" in outer and "jac" in inner and head != "linear softcap":
            continue  # large and slow, and the same nestings as of grad, vjp and jvp with vmap
        one, other = TRANSFORMS[outer], TRANSFORMS[inner]
        assert_the_same(one(other(chunked))(at), one(other(definition))(at), f"{outer} of {inner}")


@pytest.mark.parametrize(("target", "head", "way"), CASES[1:5])
def test_the_size_of_a_block_changes_no_derivative(target: str, head: str, way: str) -> None:
    function_of, at = case(target, head, way)
    definition, chunked = function_of(EAGER), function_of(Kernel("chunked", 3))
    for outer, inner in itertools.product(LIGHT, LIGHT):
        one, other = LIGHT[outer], LIGHT[inner]
        assert_the_same(one(other(chunked))(at), one(other(definition))(at), f"{outer} of {inner}")


@pytest.mark.parametrize(("target", "head", "way"), CASES[2:5])
def test_a_third_derivative(target: str, head: str, way: str) -> None:
    function_of, at = case(target, head, way)
    for nesting in (("grad", "grad", "grad"), ("jvp", "jvp", "jvp"), ("jvp", "grad", "vmap"), ("vmap", "vjp", "jvp")):
        found, wanted = function_of(CHUNKED), function_of(EAGER)
        for name in reversed(nesting):
            found, wanted = TRANSFORMS[name](found), TRANSFORMS[name](wanted)
        assert_the_same(found(at), wanted(at), " of ".join(nesting))


@pytest.mark.parametrize(("target", "head", "way"), CASES[::2])
def test_plain_autograd_agrees_with_differences(target: str, head: str, way: str) -> None:
    function_of, at = case(target, head, way, rows=3)
    function = function_of(Kernel("chunked", 2))
    leaves = tuple(t.detach().clone().requires_grad_() for t in at)
    assert torch.autograd.gradcheck(
        lambda *own: function(own),
        leaves,
        fast_mode=True,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        lambda *own: function(own),
        leaves,
        fast_mode=True,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
    )


@pytest.mark.parametrize("way", ["rows", "sum"])
def test_forward_mode_and_a_backward_pass_through_its_tangent(way: str) -> None:
    function_of, at = case("labels smoothing all", "linear softcap", way)
    found = []
    for kernel in (EAGER, Kernel("chunked", 3)):
        leaves = [t.detach().clone().requires_grad_() for t in at]
        with forward_ad.dual_level():
            duals = tuple(forward_ad.make_dual(t, v) for t, v in zip(leaves, like(at, 1)))
            tangent = forward_ad.unpack_dual(one_number(function_of(kernel))(duals)).tangent
        assert tangent is not None
        found.append([tangent.detach(), *torch.autograd.grad(tangent, leaves)])
    assert_the_same(found[1], found[0], "reverse over forward")


def test_a_cotangent_of_zero_and_a_coefficient_of_zero_have_derivatives() -> None:
    """The product with the Jacobian is the derivative of the backward pass in its cotangent, wherever that is."""
    made, own = make_case("probabilities", "linear bias")
    head, leaves = requiring_grad(own)
    v = like(tuple(leaves), 1)
    a_N = torch.zeros(head.rows, dtype=torch.float64, requires_grad=True)
    rows_N = CHUNKED.nll(head, made.target).cross_entropy
    back = torch.autograd.grad(rows_N, leaves, a_N, create_graph=True)
    (found,) = torch.autograd.grad(back, a_N, v)
    wanted = torch.func.jvp(
        lambda *own: EAGER.nll(head.with_tensors(own), made.target).cross_entropy, tuple(leaves), v
    )[1]
    assert_the_same(found, wanted, "by two backward passes")
    # The same of the rows' weights in an objective.
    w_N = torch.zeros(head.rows, dtype=torch.float64, requires_grad=True)
    target = dataclasses.replace(made.target, weight=w_N)
    loss, _ = CHUNKED.objective(head, target, total=1)
    back = torch.autograd.grad(loss, leaves, create_graph=True)
    (found,) = torch.autograd.grad(back, w_N, v)
    assert_the_same(found, wanted, "in the rows' weights")


def test_gradients_switched_off_and_gradients_to_weights() -> None:
    draw = Draw("switched off", rows=5)
    given = {
        "x": draw.tensor(draw.rng.normal(size=(5, 3))),
        "weight": draw.tensor(draw.rng.normal(size=(CLASSES, 3))),
        "bias": draw.tensor(draw.rng.normal(size=CLASSES)),
        "mu": draw.p(),
        "class_weight": draw.class_weight(),
        "row_weight": draw.row_weight(),
        "total": torch.tensor(3.0, dtype=torch.float64),
    }

    def loss(kernel: Kernel, named: dict[str, Tensor]) -> Tensor:
        target = likely.measure(named["mu"], class_weight=named["class_weight"], weight=named["row_weight"])
        head = likely.Linear(named["x"], named["weight"], named["bias"])
        return kernel.objective(head, [target, likely.labels(range(5), CLASSES)], total=named["total"], z_loss=0.2)[0]

    subsets = [set(one) for size in (1, 2) for one in itertools.combinations(given, size)]
    for wanted in [*subsets, set(given)]:
        found = []
        for kernel in (EAGER, Kernel("chunked", 2)):
            named = {name: t.clone().requires_grad_(name in wanted) for name, t in given.items()}
            leaves = [named[name] for name in given if name in wanted]
            once = torch.autograd.grad(loss(kernel, named).square(), leaves, create_graph=True)
            twice = torch.autograd.grad(once, leaves, like(once, 1))
            found.append([*once, *twice])
        # In a row of weight 0 the definition takes the logits for constants, and loses the mixed derivative.
        count = len(wanted) if "row_weight" in wanted else 2 * len(wanted)
        assert_the_same(found[1][:count], found[0][:count], f"gradients to {wanted}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_retained_graph_gives_gradients_that_are_the_callers_own(dtype: torch.dtype) -> None:
    head, leaves = requiring_grad(linear(dtype))
    loss, _ = CHUNKED.objective(head, records(dtype)["labels"])
    once = [g.clone() for g in torch.autograd.grad(loss, leaves, retain_graph=True)]
    definition, of_definition = requiring_grad(linear(dtype))
    wanted, _ = EAGER.objective(definition, records(dtype)["labels"])
    near: dict[str, Any] = {"rtol": 10 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).eps}
    torch.testing.assert_close(
        [loss.detach(), *once], [wanted.detach(), *torch.autograd.grad(wanted, of_definition)], **near
    )
    rows = CHUNKED.nll(head, records(dtype)["labels"]).mean().cross_entropy
    torch.testing.assert_close(list(torch.autograd.grad(rows, leaves)), once, **near)
    for _ in range(3):
        for g in torch.autograd.grad(loss, leaves, retain_graph=True):
            g.zero_()  # in place, as clipping does
    for times in range(1, 5):
        loss.backward(retain_graph=times < 4)
        torch.testing.assert_close([t.grad for t in leaves], [times * g for g in once])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(use_reentrant: bool) -> None:
    made, own = make_case("teacher logits", "linear softcap")
    for way in ("sum", "rows"):
        found = []
        for through in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=use_reentrant)):
            _, leaves = requiring_grad(own)

            def step(*tensors: Tensor, way: str = way) -> Tensor:
                head = own.with_tensors(tensors)
                if way == "sum":
                    return CHUNKED.objective(head, made.target)[0]
                return CHUNKED.nll(head, made.target).cross_entropy.square().sum()

            loss = through(step, *leaves)
            loss.backward()
            found.append([loss.detach(), *(t.grad for t in leaves)])
        assert_the_same(found[1], found[0], way)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_give_the_same_bits(dtype: torch.dtype) -> None:
    def once() -> list[Tensor]:
        head, leaves = requiring_grad(linear(dtype))
        with CHUNKED.at(head):
            loss, scores = likely.objective(head, list(records(dtype).values()), z_loss=0.1, kernel="chunked")
            grads = torch.autograd.grad(loss, leaves, create_graph=True)
            second = torch.autograd.grad(grads, leaves, like(grads, 1))
            assert all(g.dtype == dtype for g in (*grads, *second))
        return [loss, *(score.cross_entropy for score in scores), *grads, *second]

    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(a, b) for a, b in zip(once(), once()))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("way", ["sum", "rows"])
@pytest.mark.parametrize("name", records(torch.float32))
def test_second_derivatives_hold_one_block(name: str, way: str) -> None:
    kernel, own = Kernel("chunked", BLOCK), linear(torch.float32)

    def loss(*tensors: Tensor) -> Tensor:
        head = own.with_tensors([*tensors, None])
        if way == "rows":
            return likely.nll(head, target, kernel="chunked").cross_entropy.square().sum()
        return likely.objective(head, [target, target], z_loss=0.1, kernel="chunked")[0]

    with Largest() as seen, kernel.at(own):
        target = records(torch.float32)[name]
        leaves = tuple(t.requires_grad_() for t in (own.x.clone(), own.weight.clone()))
        v = tuple(torch.ones_like(t) for t in leaves)
        grads = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        twice = torch.autograd.grad(grads, leaves, v)
        plain = tuple(t.detach() for t in leaves)
        forward = torch.func.jvp(torch.func.grad(loss, argnums=(0, 1)), plain, v)[1]
        backward = torch.func.grad(lambda *own: torch.func.jvp(loss, own, v)[1], argnums=(0, 1))(*plain)
    for other in (forward, backward):
        torch.testing.assert_close(other, twice, rtol=1e-3, atol=1e-4)
    assert 0 < seen.numel <= max(BLOCK * C, C * 2 * D), f"a tensor of {seen.numel} numbers; a block has {BLOCK * C}"


def test_a_row_that_weighs_nothing_makes_no_nan_of_a_second_derivative() -> None:
    """Nor does an ignored one, whatever its logits."""
    z_NC = make_head("logits").logits().clone()
    weight_N = torch.ones(len(z_NC), dtype=torch.float64)
    weight_N[:2] = 0
    z_NC[0], z_NC[1, 0] = torch.nan, torch.inf
    z_NC[2, 1] = -torch.inf
    target = likely.labels([0, 1, 2, -100, 4, 0, 1], CLASSES, weight=weight_N)
    z_NC[3] = torch.nan
    z_NC.requires_grad_()
    loss, _ = CHUNKED.objective(likely.Logits(z_NC), target)
    (once,) = torch.autograd.grad(loss, z_NC, create_graph=True)
    (twice,) = torch.autograd.grad(once.nansum(), z_NC, retain_graph=True)
    (moved,) = torch.autograd.grad(once, z_NC, like(z_NC, 1))
    for found in (once, twice, moved):
        assert torch.isfinite(found).all()
        assert (found[[0, 1, 3]] == 0).all()
    assert moved[4:].abs().sum() > 0


def test_an_entropy_that_does_not_exist_is_nan_inside_a_transform() -> None:
    """Outside, where the sign can be read, it raises."""
    mu_NC = torch.tensor([[2.0, -1.0], [0.5, 0.5]])
    head = likely.Logits(torch.zeros(2, 2))

    def rows(mu_NC: Tensor) -> tuple[Tensor, Tensor]:
        score = CHUNKED.nll(head, likely.measure(mu_NC))
        return score.cross_entropy, score.kl

    for found in (torch.func.vjp(rows, mu_NC)[0], torch.vmap(rows)(mu_NC[None])):
        assert torch.isfinite(found[0]).all()
        assert torch.isnan(found[1].flatten()[0])


def test_autocast_has_the_products_in_half_precision_and_no_more() -> None:
    own = make_head("linear bias", dtype=torch.float32)
    target = make("teacher logits", dtype=torch.float32).target

    def twice(head: likely.Head, leaves: list[Tensor]) -> list[Tensor]:
        loss, _ = CHUNKED.objective(head, likely.Term(target, temperature=2.0), z_loss=0.1)
        assert loss.dtype == torch.float32
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        return [loss, *grads, *torch.autograd.grad(grads, leaves, like(grads, 1))]

    head, leaves = requiring_grad(own)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = twice(head, leaves)
    _, leaves = requiring_grad(own)
    wanted = twice(own.with_tensors([t.bfloat16() for t in leaves]), leaves)
    assert all(t.dtype == torch.float32 for t in found)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------- torch.compile


def step(kernel: Kernel, way: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A training step on two terms, or on rows, and its leaves."""
    made, own = make_case("labels smoothing all", "linear softcap", dtype=torch.float32)
    teacher = make("teacher linear", dtype=torch.float32).target
    _, leaves = requiring_grad(own)

    def loss(*tensors: Tensor) -> Tensor:
        head = own.with_tensors(tensors)
        if way == "rows":
            score = kernel.nll(head, teacher, 2.5)
            return score.mean().cross_entropy + score.kl.square().sum()
        terms = [likely.Term(made.target, 0.5), likely.Term(teacher, 0.5, temperature=2.0)]
        total, scores = kernel.objective(head, terms, z_loss=0.1)
        return total + scores[0].cross_entropy.sum()

    return loss, leaves


class Plain(Kernel):
    """Without the change of the block's size, which a graph cannot hold."""

    def nll(self, head: likely.Head, target: likely.Target, temperature: float = 1.0) -> likely.Score:
        return likely.nll(head, target, temperature=temperature, kernel=self.name)

    def objective(self, head: likely.Head, terms: Any, **keywords: Any) -> tuple[Tensor, likely.Scores]:
        return likely.objective(head, terms, kernel=self.name, **keywords)


@pytest.mark.parametrize("way", ["sum", "rows"])
def test_a_compiled_training_step_is_one_graph_with_the_pass_in_it(way: str) -> None:
    loss, leaves = step(Plain("chunked"), way)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(graph.code)
        return aot_eager(graph, inputs)

    torch.compiler.reset()
    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    for scale in (1.0, 3.0):  # the second call finds the graph made
        found, wanted = compiled(*leaves), loss(*leaves)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(
            torch.autograd.grad(scale * found, leaves), torch.autograd.grad(scale * wanted, leaves)
        )
    assert len(graphs) == 1
    assert graphs[0].count("torch.ops.likely.scores") == 1
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(compiled(*leaves), leaves, create_graph=True)


def test_what_a_traced_graph_cannot_have_is_refused_or_left_to_the_definition() -> None:
    torch.compiler.reset()
    asked, leaves = step(Plain("chunked"), "sum")
    chosen, _ = step(Plain(None), "sum")  # type: ignore[arg-type]
    at = tuple(t.detach() for t in leaves)

    def forward(loss: Any) -> Any:
        return lambda *own: torch.func.jvp(loss, own, like(own, 1))[1]

    with pytest.raises(Exception, match=r"cannot serve: it is inside torch\.func or forward mode"):
        torch.compile(forward(asked), backend="eager", fullgraph=True)(*at)
    found = torch.compile(forward(chosen), backend="eager", fullgraph=True)(*at)
    torch.testing.assert_close(found, forward(asked)(*at))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(at, like(at, 1))]
        tangent = forward_ad.unpack_dual(torch.compile(chosen, backend="eager", fullgraph=True)(*duals)).tangent
    torch.testing.assert_close(tangent, found)

    def to_target(kernel: str | None) -> Any:
        mu_NC = torch.ones(3, 2, requires_grad=True)
        head = likely.Logits(torch.tensor([[0.0, 1.0]] * 3))
        loss = torch.compile(
            lambda mu: likely.objective(head, likely.measure(mu), kernel=kernel)[0], backend="eager", fullgraph=True
        )(mu_NC)
        return torch.autograd.grad(loss, mu_NC)[0][0] * 3

    torch.testing.assert_close(to_target(None), torch.nn.functional.softplus(torch.tensor([1.0, -1.0])))
    with pytest.raises(Exception, match=r"cannot serve: the target requires a gradient inside torch\.compile"):
        to_target("chunked")


@pytest.mark.parametrize(("target", "head"), [("labels smoothing all", "linear softcap"), ("top_k bucket", "binary")])
def test_opcheck(target: str, head: str) -> None:
    made, own = make_case(target, head)
    with_grad, _ = requiring_grad(own)
    terms = [(made.target, made.temperatures[0])] * 2
    taken = parts.take_apart(with_grad, terms, [True] * 2)
    weights = [torch.rand(own.rows, dtype=torch.float64) for _ in range(3)]
    for summed, own_weights in ((True, weights), (False, [])):
        form = parts.Form.of(taken, [True] * 2, summed, summed)
        assert parts.read(form.text) == form
        torch.library.opcheck(operator.scores_operator, ([*taken.tensors, *own_weights], form.text))
    plain = [t.detach() for t in taken.tensors]
    torch.library.opcheck(operator.head_gradient_operator, (plain, weights[:2], form.text, [0]))


def test_the_operator_raises_where_it_has_no_derivative() -> None:
    made, own = make_case("probabilities", "linear")
    taken = parts.take_apart(requiring_grad(own)[0], [(made.target, 1.0)], [True])
    weights = [torch.ones(own.rows, dtype=torch.float64, requires_grad=True)]
    form = parts.Form.of(taken, [True], True, False)
    outputs = operator.scores_operator([*taken.tensors, *weights], form.text)
    assert not outputs[0].requires_grad  # the rows, of which the sum is
    with pytest.raises(NotImplementedError, match="a derivative of its losses in the head alone"):
        torch.autograd.grad(outputs[3], weights)


class Foreign(likely.Logits):
    pass


def test_kinds_it_does_not_know_and_tensors_without_values_are_refused_aloud() -> None:
    target = make("labels").target
    z_NC = torch.zeros(target.rows, CLASSES)
    with pytest.raises(ValueError, match="kernel: 'chunked' cannot serve: it does not know the head Foreign"):
        likely.nll(Foreign(z_NC), target, kernel="chunked")
    likely.nll(Foreign(z_NC), target)
    meta = likely.Logits(torch.zeros(2, 2, device="meta"))
    p_NC = likely.measure(torch.ones(2, 2, device="meta"))
    with pytest.raises(ValueError, match="kernel: 'chunked' cannot serve: the tensors are on the meta device"):
        likely.nll(meta, p_NC, kernel="chunked")
