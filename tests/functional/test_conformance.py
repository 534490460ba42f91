"""Every sample that PyTorch generates for its own tests of these losses, run on torch itself and on likely."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import likely.functional
import likely.nn
from tests.functional import harness
from tests.functional.harness import CLASSES, DTYPES, EXCEPTED, FUNCTIONS, LEDGER, Subject

TORCH = harness.torch_subject()
LIKELY = Subject("likely", likely.functional, likely.nn, half_loss=torch.float32)
SUBJECTS = pytest.mark.parametrize("subject", [TORCH, LIKELY], ids=lambda s: s.name)


@SUBJECTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("function", "variant"), FUNCTIONS)
def test_functions(function: str, variant: str, dtype: torch.dtype, subject: Subject) -> None:
    _needs(F, function)
    label = f"{function}.{variant}" if variant else function
    harness.check(harness.function_cases(function, variant, dtype), subject, label)


@SUBJECTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_modules(name: str, dtype: torch.dtype, subject: Subject) -> None:
    _needs(torch.nn, name)
    harness.check(harness.module_cases(name, dtype), subject, name)


@SUBJECTS
@pytest.mark.parametrize("name", [*dict(FUNCTIONS), *CLASSES])
def test_errors(name: str, subject: Subject) -> None:
    """Torch's lists of misuse raise the same type of exception, and a message that torch's own regex finds."""
    _needs(torch.nn if name in CLASSES else F, name)
    for label, error, regex, call in harness.error_cases(name):
        with harness.quiet(), pytest.raises(error) as caught:
            call(subject)
        with harness.quiet():  # one of the regexes makes `re` warn
            assert re.search(regex, str(caught.value)), f"{label}: {caught.value}"
        LEDGER[subject.name][f"errors {name}"] += 1


@SUBJECTS
@pytest.mark.parametrize("function", ["cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "kl_div"])
def test_second_derivatives(function: str, subject: Subject) -> None:
    cases = harness.function_cases(function, "", torch.float64)
    failures = [f"{c.name}: {line}" for c in cases for line in harness.differences(c, subject, second=True)]
    assert not failures, "\n".join(failures[:25])


@SUBJECTS
def test_second_derivatives_through_a_linear_head(subject: Subject) -> None:
    _needs(F, "linear_cross_entropy")
    cases = harness.function_cases("linear_cross_entropy", "", torch.float64)
    failures = [f"{c.name}: {line}" for c in cases for line in harness.differences(c, subject, second=True)]
    assert not failures, "\n".join(failures[:25])


def test_no_family_is_left_out_and_no_more_than_one_case_in_a_hundred_is_excepted() -> None:
    dtype = torch.float64
    functions = [(f, v) for f, v in FUNCTIONS if hasattr(F, f)]
    counts = {"".join(pair): sum(1 for _ in harness.function_cases(*pair, dtype)) for pair in functions}
    counts |= {c: sum(1 for _ in harness.module_cases(c, dtype)) for c in CLASSES if hasattr(torch.nn, c)}
    assert min(counts.values()) > 0
    if torch.__version__.startswith("2.13."):
        assert list(counts.values()) == [21, 119, 133, 77, 61, 16, 11, 26, 210, 56, 20, 12, 12, 1714]
    assert len(EXCEPTED) <= sum(counts.values()) // 100
    assert all(EXCEPTED.values())


def _spoilt(**functions: Any) -> Subject:
    return Subject("spoilt", SimpleNamespace(**functions), torch.nn)


SPOILT = {
    "a value that is off by one part in 10⁹": lambda z, y, **k: F.cross_entropy(z, y, **k) * (1 + 1e-9),
    "no gradient to the target": lambda z, y, **k: F.cross_entropy(z, y.detach(), **k),
    "a mean over all rows": lambda z, y, **k: (
        F.cross_entropy(z, y, **{**k, "reduction": "sum"}) / (z.numel() / z.shape[1])
        if k.get("reduction", "mean") == "mean"
        else F.cross_entropy(z, y, **k)
    ),
    "weights left out": lambda z, y, **k: F.cross_entropy(z, y, **{**k, "weight": None}),
    "targets brought to sum one": lambda z, y, **k: F.cross_entropy(
        z, y / y.sum(1, keepdim=True) if y.is_floating_point() else y, **k
    ),
    "single precision inside": lambda z, y, **k: F.cross_entropy(
        z.float(), y.float() if y.is_floating_point() else y, **{**k, "weight": None}
    ).double(),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_the_harness_sees_a_fault(fault: str) -> None:
    cases, subject = harness.function_cases("cross_entropy", "", torch.float64), _spoilt(cross_entropy=SPOILT[fault])
    with pytest.raises(AssertionError, match="differences in 21 cases"):
        harness.check(cases, subject, "faults")
    LEDGER.pop("spoilt")


def _needs(where: Any, name: str) -> None:
    if not hasattr(where, name):
        pytest.skip(f"torch {torch.__version__} has no {name}, and so no cases of it")
