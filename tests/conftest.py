"""Options and settings shared by all tests."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton decides at its import whether its own functions can be interpreted, and torch.compile
# imports it, too. Kernels are interpreted only where a test sets this once more.
os.environ["TRITON_INTERPRET"] = "1"
with contextlib.suppress(ImportError):
    import triton  # noqa: F401
del os.environ["TRITON_INTERPRET"]

settings.register_profile("flowdsl", deadline=None, max_examples=60, print_blob=True)
settings.load_profile("flowdsl")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--accept", action="store_true", help="write the outputs of the corpora as expected ones"
    )


@pytest.fixture
def accept(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--accept"))


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Tests marked `untraced` run without the tracer of line coverage, which triples their time.

    For tests that run the same lines thousands of times. (pytest-cov's own `no_cover` has no effect
    in the workers of pytest-xdist.)
    """
    if item.get_closest_marker("untraced") is None:
        return (yield)
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)
