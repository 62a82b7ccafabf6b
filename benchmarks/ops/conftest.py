"""By how many people the kernels are measured."""

from __future__ import annotations

from contextlib import suppress

import pytest

with suppress(ImportError):
    import torch  # noqa: F401 - the fixture that gives all one thread gives it to what is loaded

PEOPLE, MORE = (1, 8, 32), (128,)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "people" in metafunc.fixturenames:
        more = MORE if metafunc.config.getoption("--full") else ()
        metafunc.parametrize("people", (*PEOPLE, *more))
