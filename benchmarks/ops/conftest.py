"""By how many people the kernels are measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

with suppress(ImportError):
    import torch  # noqa: F401 - the fixture that gives all one thread gives it to what is loaded

PEOPLE, MORE = (1, 8, 32), (128,)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "people" in metafunc.fixturenames:
        more = MORE if metafunc.config.getoption("--full") else ()
        metafunc.parametrize("people", (*PEOPLE, *more))


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    """On one core: a call of microseconds that wakes up on another finds its caches empty."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)
