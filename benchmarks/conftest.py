"""Gates of `pytest benchmarks`: one thread, and ratios alone, with half of the margin."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import pytest

from fastpose.ops import cpp, set_num_threads


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before, theirs = cpp.get_num_threads(), cv2.getNumThreads()
    set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    set_num_threads(before)
    cv2.setNumThreads(theirs)
