"""The solvers' tests run with the compiled passes of a binary model, where they were built, and without them."""

from collections.abc import Iterator

import pytest

from likely.kernels import native


@pytest.fixture(autouse=True, params=list(dict.fromkeys([native.active(), "plain"])))
def row_pass(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.using(request.param):
        yield request.param
