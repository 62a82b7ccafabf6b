"""Timing of single-threaded functions by turns, in processor time of the calling thread.

Neither the moment nor waiting for a core counts, so ratios hold on a busy machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

ROUNDS = 40


def interleave(
    *functions: Callable[[], object],
    rounds: int = ROUNDS,
    before: Callable[[], object] = lambda: None,
) -> list[float]:
    """Median processor microseconds of each function, called by turns.

    `before` is called before each of them, off the clock: it restores what they write over, and
    leaves the caches alike for all.
    """
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, own in zip(functions, times, strict=True):
            before()
            begin = time.thread_time()
            function()
            own.append(1e6 * (time.thread_time() - begin))
    return [statistics.median(own) for own in times]


def report(name: str, theirs: float, ours: float) -> float:
    """One line: microseconds of theirs and of ours, and their ratio, which is returned."""
    print(f"{name:48} {theirs:10.0f} us {ours:8.0f} us {theirs / ours:7.1f} x")
    return theirs / ours
