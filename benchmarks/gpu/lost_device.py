"""A plugin of pytest-xdist's workers: one whose device is lost ends, and another takes its place.

After an illegal access every call of the process fails. So the worker would go through the tests
that are left in no time, and fail them all.
"""

from __future__ import annotations

import os
from typing import Any

import torch

_failed = False


def pytest_runtest_logreport(report: Any) -> None:
    """Remember that the test failed."""
    global _failed
    _failed |= report.failed


def pytest_runtest_logfinish() -> None:
    """End, before the test counts as done, so that the crash is put down to it."""
    global _failed
    if _failed and "PYTEST_XDIST_WORKER" in os.environ and is_lost():
        os._exit(1)
    _failed = False


def is_lost() -> bool:
    """Whether the device no longer works for this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
