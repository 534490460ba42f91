"""PyTorch's own sample generators, turned into cases that any face of the library can be run on.

A `Subject` is what is under test: a module of functions and a module of classes with torch's names.  A `Case` is one
sample of one of torch's generators.  It is run three times: with torch in float64 (the truth), with torch in the
sample's own dtype (the honest alternative, whose error is the budget) and with the subject.  The first two take torch's
plain path; only the subject is given `options`.
"""

from __future__ import annotations

import importlib
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Imported by name: the type checker need not read 25,000 lines of torch's tests.
_METHODS = importlib.import_module("torch.testing._internal.common_methods_invocations")
_MODULES = importlib.import_module("torch.testing._internal.common_modules")

FUNCTIONS = (
    ("cross_entropy", ""),
    ("linear_cross_entropy", ""),
    ("linear_cross_entropy", "chunked"),
    ("linear_cross_entropy", "chunked_none"),
    ("nll_loss", ""),
    ("kl_div", ""),
    ("binary_cross_entropy", ""),
    ("binary_cross_entropy_with_logits", ""),
)
CLASSES = ("CrossEntropyLoss", "NLLLoss", "KLDivLoss", "BCELoss", "BCEWithLogitsLoss", "LinearCrossEntropyLoss")
HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# (rtol, atol) beside which the honest alternative's own error is granted, one and a half times.  In half precision rtol
# is of the largest element: products are rounded to it, and elements that cancel keep the rounding of the large ones.
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 2e-6),
    torch.float16: (2e-3, 1e-4),
    torch.bfloat16: (1.6e-2, 1e-3),
}
BUDGET = 1.5

# Cases that the subject may fail, by name, each with its reason.  The suite allows one in a hundred.
EXCEPTED: dict[str, str] = {}

# How many cases of each family ran, by subject; printed at the end of the run.
LEDGER: dict[str, Counter[str]] = {}


@dataclass(frozen=True)
class Subject:
    """A face under test: where its functions and its classes are, and the dtype of a half-precision loss."""

    name: str
    functional: ModuleType | Any
    nn: ModuleType | Any
    half_loss: torch.dtype | None = None  # None: the input's own, as torch has it


class Call(Protocol):
    def __call__(
        self, subject: Subject, args: list[Any], dtype: torch.dtype | None, plain: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """The value, and the parameters that were made on the way; `plain` drops torch's `options`."""


@dataclass
class Case:
    """One sample: how a subject is called, with which arguments, and torch's own reference for the value, if any."""

    name: str
    dtype: torch.dtype
    args: list[Any]
    call: Call
    reference: Callable[[list[Any]], Tensor] | None = None


@dataclass
class Outcome:
    """What came of one run: the value and the gradients to every argument and parameter that asks for one."""

    value: Tensor
    grads: list[Tensor | None] = field(default_factory=list)


def torch_subject() -> Subject:
    return Subject("torch", torch.nn.functional, torch.nn)


def seed(number: int = 0) -> None:
    """Torch's generators draw from torch and, when they mend a sample, from `random`."""
    torch.manual_seed(number)
    random.seed(number)


@contextmanager
def quiet() -> Iterator[None]:
    """Torch warns of options it does not follow and of `reduction='mean'` in kl_div: not the matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fresh(value: Any, dtype: torch.dtype | None = None) -> Any:
    """A leaf of its own with the same layout, dtype and wish for a gradient; `dtype` recasts floating tensors."""
    if isinstance(value, Tensor):
        copy = value.detach().clone(memory_format=torch.preserve_format)
        if dtype is not None and copy.is_floating_point():
            copy = copy.to(dtype)
        return copy.requires_grad_(value.requires_grad)
    if isinstance(value, torch.dtype) and dtype is not None and value.is_floating_point:
        return dtype
    if isinstance(value, (list, tuple)):
        return type(value)(fresh(item, dtype) for item in value)
    if isinstance(value, dict):
        return {key: fresh(item, dtype) for key, item in value.items()}
    return value


def _function_call(function: str, kwargs: dict[str, Any]) -> Call:
    def call(subject: Subject, args: list[Any], dtype: torch.dtype | None, plain: bool) -> tuple[Tensor, list[Tensor]]:
        extra = fresh(kwargs, dtype)
        if plain:
            extra.pop("options", None)
        wanted = [value for value in extra.values() if isinstance(value, Tensor) and value.requires_grad]
        return getattr(subject.functional, function)(*args, **extra), wanted

    return call


def _module_call(name: str, args0: tuple[Any, ...], kwargs0: dict[str, Any], state: dict[str, Tensor]) -> Call:
    def call(subject: Subject, args: list[Any], dtype: torch.dtype | None, plain: bool) -> tuple[Tensor, list[Tensor]]:
        kwargs = fresh(kwargs0, dtype)
        if plain:
            kwargs.pop("options", None)
        module = getattr(subject.nn, name)(*fresh(args0, dtype), **kwargs)
        module.load_state_dict(fresh(state, dtype))
        return module(*args), list(module.parameters())

    return call


def function_cases(function: str, variant: str, dtype: torch.dtype) -> Iterator[Case]:
    """Every sample of torch's generator for one function; the generator is consumed one sample at a time."""
    seed()
    op = next(o for o in _METHODS.op_db if o.name == f"nn.functional.{function}" and o.variant_test_name == variant)
    label = f"{function}.{variant}" if variant else function
    if dtype not in op.dtypes:
        return
    for number, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=True)):
        args = [fresh(value) for value in (sample.input, *sample.args)]
        yield Case(f"{label}/{_short(dtype)}/{number}", dtype, args, _function_call(function, fresh(sample.kwargs)))


def module_cases(name: str, dtype: torch.dtype) -> Iterator[Case]:
    """Every sample of torch's generator for one module, in training and in evaluation."""
    info = next(i for i in _MODULES.module_db if i.module_cls.__name__ == name)
    if dtype not in info.dtypes:
        return
    # Losses do not know the two apart: the second draw of samples is for the dtype that sees the smallest differences.
    for training in (True, False) if dtype == torch.float64 else (True,):
        seed(int(training))
        samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
        for number, sample in enumerate(samples):
            made = sample.constructor_input
            module: nn.Module = info.module_cls(*made.args, **made.kwargs)
            forward = sample.forward_input
            assert not forward.kwargs
            mode = "train" if training else "eval"
            yield Case(
                f"{name}/{_short(dtype)}/{mode}/{number}{'/' + sample.desc if sample.desc else ''}",
                dtype,
                [fresh(value) for value in forward.args],
                _module_call(name, made.args, made.kwargs, fresh(dict(module.state_dict()))),
                _reference(module, sample.reference_fn),
            )


def _reference(module: nn.Module, reference: Callable[..., Tensor] | None) -> Callable[[list[Any]], Tensor] | None:
    if reference is None:
        return None
    return lambda args: reference(module, *args)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cotangent(shape: torch.Size) -> Tensor:
    generator = torch.Generator().manual_seed(20)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def run(
    case: Case, subject: Subject, dtype: torch.dtype | None = None, *, plain: bool = False, second: bool = False
) -> Outcome:
    """The value and the gradients along a fixed random cotangent; `second` adds those of the gradients."""
    args = [fresh(value, dtype) for value in case.args]
    versions = [value._version for value in args if isinstance(value, Tensor)]
    value, extra = case.call(subject, args, dtype, plain)
    leaves = [leaf for leaf in args if isinstance(leaf, Tensor) and leaf.requires_grad]
    leaves += [leaf for leaf in extra if leaf.requires_grad]
    grads: list[Tensor | None] = []
    if leaves:
        cotangent = _cotangent(value.shape).to(value.dtype)
        grads = list(torch.autograd.grad(value, leaves, cotangent, create_graph=second, allow_unused=True))
    if second:
        first = [g for g in grads if g is not None and g.requires_grad]
        along = [_cotangent(g.shape).to(g.dtype) for g in first]
        grads += torch.autograd.grad(first, leaves, along, allow_unused=True)
    assert versions == [value._version for value in args if isinstance(value, Tensor)], "an argument was written to"
    return Outcome(value.detach(), grads)


def differences(case: Case, subject: Subject, *, second: bool = False) -> list[str]:
    """What differs between the subject and torch, one line each; nothing where they agree."""
    with quiet():
        truth = run(case, torch_subject(), torch.float64, plain=True, second=second)
        plain = run(case, torch_subject(), plain=True, second=second)
        try:
            found = run(case, subject, second=second)
        except Exception as error:
            return [f"{type(error).__name__}: {error}"]
        lines = []
        loss = subject.half_loss if case.dtype in HALF and subject.half_loss is not None else plain.value.dtype
        if found.value.dtype != loss:
            lines.append(f"value: dtype {found.value.dtype}, expected {loss}")
        lines += _difference("value", case.dtype, found.value, truth.value, plain.value)
        if case.reference is not None and case.dtype not in HALF and not second:
            reference = case.reference([fresh(value) for value in case.args]).detach().double()
            lines += _difference("value beside torch's reference", case.dtype, found.value, reference, plain.value)
        for number, (got, exact, own) in enumerate(zip(found.grads, truth.grads, plain.grads, strict=True)):
            name = f"gradient {number}"
            if got is None or exact is None or own is None:
                # A gradient that torch has no path to may also be zero.
                missing = got is None and exact is not None and bool((exact != 0).any())
                surplus = exact is None and got is not None and bool((got != 0).any())
                lines += [f"{name}: torch gives {exact}, the subject {got}"] if missing or surplus else []
                continue
            if got.dtype != own.dtype:
                lines.append(f"{name}: dtype {got.dtype}, expected {own.dtype}")
            lines += _difference(name, case.dtype, got, exact, own)
    return lines


def _difference(name: str, dtype: torch.dtype, got: Tensor, exact: Tensor, own: Tensor) -> list[str]:
    """The worst element where the subject's error is beyond the tolerance and the alternative's own error."""
    if got.shape != exact.shape:
        return [f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"]
    got, own = got.double(), own.double()
    if dtype == torch.float16:  # what overflows half precision in torch may be finite in the truth, and back
        finite = torch.isfinite(own) | (own == exact)
        got, own, exact = got[finite], own[finite], exact[finite]
    if not torch.equal(torch.isnan(got), torch.isnan(exact)):
        return [f"{name}: NaN where {got.isnan().sum()} and not {exact.isnan().sum()} are expected"]
    same = (got == exact) | torch.isnan(exact)
    error = torch.where(same, 0.0, (got - exact).abs())
    budget = torch.where(torch.isfinite(own - exact), (own - exact).abs(), 0.0)
    rtol, atol = TOLERANCE[dtype]
    size = torch.where(torch.isfinite(exact), exact.abs(), 0.0)
    size = size.max() if dtype in HALF and size.numel() else size
    allowed = atol + rtol * size + BUDGET * (budget.max() if budget.numel() else 0.0)
    over = torch.where(same, -1.0, error - allowed)
    if not over.numel() or over.max() <= 0:
        return []
    at = over.flatten().argmax()
    worst = f"{got.flatten()[at]:.9g}, expected {exact.flatten()[at]:.9g} (torch {own.flatten()[at]:.9g})"
    return [f"{name}: element {int(at)} is {worst}"]


def check(cases: Iterator[Case], subject: Subject, family: str) -> None:
    """Run every case, count them, and fail with the list of those that differ."""
    seen: set[str] = set()
    failures = []
    for case in cases:
        assert case.name not in seen, f"two cases are named {case.name}"
        seen.add(case.name)
        lines = differences(case, subject)
        LEDGER.setdefault(subject.name, Counter())[family] += 1
        if case.name in EXCEPTED and subject.name != "torch":
            LEDGER[subject.name]["excepted"] += 1
            assert lines, f"{case.name} is excepted, but passes: take it off the list"
            continue
        failures += [f"{case.name}: {line}" for line in lines]
    assert not failures, f"{len(failures)} differences in {len(seen)} cases\n" + "\n".join(failures[:25])


def error_cases(name: str) -> Iterator[tuple[str, type[Exception], str, Callable[[Subject], Any]]]:
    """Torch's own list of misuse, of a function or a module: (label, exception, regex, a call that must raise)."""
    seed()
    if name in CLASSES:
        info = next(i for i in _MODULES.module_db if i.module_cls.__name__ == name)
        make = info.module_error_inputs_func
        for dtype in (torch.float32, torch.float64):
            errors = make(info, device="cpu", dtype=dtype, requires_grad=False, training=True) if make else ()
            for number, error in enumerate(errors):
                made, forward = error.module_error_input.constructor_input, error.module_error_input.forward_input

                def construct_and_run(subject: Subject, made: Any = made, forward: Any = forward) -> Any:
                    return getattr(subject.nn, name)(*made.args, **made.kwargs)(*forward.args, **forward.kwargs)

                label = f"{name}/{_short(dtype)}/{number}"
                yield label, error.error_type, error.error_regex, construct_and_run
        return
    for op in (o for o in _METHODS.op_db if o.name == f"nn.functional.{name}"):
        for number, error in enumerate(op.error_inputs("cpu") if op.error_inputs_func else ()):
            sample = error.sample_input

            def run_function(subject: Subject, sample: Any = sample) -> Any:
                return getattr(subject.functional, name)(sample.input, *sample.args, **sample.kwargs)

            yield f"{name}.{op.variant_test_name}/{number}", error.error_type, error.error_regex, run_function
