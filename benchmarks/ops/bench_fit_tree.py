"""`ops.fit_tree` on one thread, interleaved with its reference in numpy.

    python benchmarks/ops/bench_fit_tree.py

26 parts of 13 types each, on maps of 42x42 cells. The reference looks at all cells of a row, then
of a column, vectorised over the types of a part; the answers are compared before they are timed.
The second table shows what the distance transform is for: its time for each cell stays the same as
maps grow. Times are medians of the processor time of the one thread, of functions called by turns.
"""

from __future__ import annotations

import functools
import platform

import numpy as np
from interleave import interleave, report

from fastpose.models.parts import PART_TREES
from fastpose.ops import cpp, fit_tree

TREE, PEOPLE, SIZE = PART_TREES["lsp26"], (1, 8, 32), 42
SIDES = (21, 42, 84, 168)


def probabilities(people: int, side: int) -> np.ndarray:
    """A peak for each part, the rest low, as a softmax over all types leaves it."""
    random = np.random.default_rng(people)
    scores = random.random((people, len(TREE.parts), TREE.types, side, side), np.float32)
    return np.where(scores > 0.9999, scores, scores * 1e-3)


def against_reference(people: tuple[int, ...] = PEOPLE) -> dict[int, float]:
    """Ratio by number of people."""
    ratios = {}
    for count in people:
        scores = probabilities(count, SIZE)
        slow, fast = (
            functools.partial(fit_tree, scores, TREE.parents, TREE.anchors, backend=backend)
            for backend in ("reference", "cpp")
        )
        for expected, actual in zip(slow(), fast(), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-9)
        times = interleave(slow, fast, rounds=max(3, 16 // count))
        ratios[count] = report(f"tree, our reference, {count} people", *times)
    return ratios


def by_size() -> dict[int, float]:
    """Nanoseconds for each cell of a map by the side of the maps."""
    runs = [
        functools.partial(fit_tree, probabilities(1, side), TREE.parents, TREE.anchors)
        for side in SIDES
    ]
    maps = len(TREE.parts) * TREE.types
    found = {}
    for side, time in zip(SIDES, interleave(*runs, rounds=5), strict=True):
        found[side] = 1e3 * time / (maps * side**2)
        print(f"maps of {side}x{side}: {time:8.0f} us, {found[side]:5.1f} ns a cell")
    return found


def bench_tree_beside_its_reference():
    """A kernel that takes twice its time does not pass: measured are 14 and, of that, 6.3."""
    assert against_reference((1,))[1] >= 9


def bench_tree_is_linear_in_the_cells():
    """64 times the cells in at most 64 x 2 the time, where looking at each would take 64 x 8."""
    found = by_size()
    assert found[SIDES[-1]] <= 2 * found[SIDES[0]]


def main() -> None:
    cpp.set_num_threads(1)
    print(f"{platform.machine()}, {cpp.best_isa()}, one thread, {len(TREE.parts)} parts, "
          f"{TREE.types} types, maps of {SIZE}x{SIZE}")  # fmt: skip
    against_reference()
    by_size()


if __name__ == "__main__":
    main()
