"""`ops.fit_tree` on one thread, beside its reference in numpy, and by the size of the maps.

26 parts of 13 types each. The reference looks at all cells of a row, then of a column, vectorised
over the types of a part. The distance transform's time for each cell stays the same as maps grow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from beside import within
from suite import Beside

from fastpose.models.parts import PART_TREES
from fastpose.ops import fit_tree

TREE, SIZE = PART_TREES["lsp26"], 42
SIDES = (21, 42, 84, 168)
LEAST = 7.9  # what takes twice its time does not pass: measured are 14 and, of that, 6.3


def probabilities(people: int, side: int) -> np.ndarray:
    """A peak for each part, the rest low, as a softmax over all types leaves it."""
    random = np.random.default_rng(people)
    scores = random.random((people, len(TREE.parts), TREE.types, side, side), np.float32)
    return np.where(scores > 0.9999, scores, scores * 1e-3)


def fit(scores: np.ndarray, backend: str | None = None) -> Callable[[], tuple[np.ndarray, ...]]:
    return functools.partial(fit_tree, scores, TREE.parents, TREE.anchors, backend=backend)


def check(scores: np.ndarray) -> str:
    """Compare places, types and sums with the reference's."""
    (points, types, total), (places, kinds, expected) = fit(scores)(), fit(scores, "reference")()
    within(float(np.abs(points - places).max()), 0.0, "cells")
    within(float((types != kinds).sum()), 0.0, "types")
    return f"reference: {within(float(np.abs(total / expected - 1).max()), 1e-9, 'of the sum')}"


def bench_fit_tree_beside_its_reference(timed, people, request):
    """A kernel that takes twice its time does not pass."""
    if people > (32 if request.config.getoption("--full") else 1):
        pytest.skip("its reference takes 0.16 s for each of them")
    scores = probabilities(people, SIZE)
    timed(
        "ops",
        "fit_tree",
        {"people": people, "backend": "cpp"},
        fit(scores),
        check=lambda: check(scores),
        beside={"reference": Beside(fit(scores, "reference"), at_least=LEAST)},
        rounds=5 if people == 1 else 4,
        repeats=1,
        warm_up=1,
    )


@pytest.mark.parametrize("side", SIDES[1:])
def bench_tree_is_linear_in_the_cells(timed, side, request):
    """At most twice the time for a cell, where looking at all others would take 2 to 8 times."""
    if side > 84 and not request.config.getoption("--full"):
        pytest.skip("its reference takes 13 s: --full")
    scores, small = probabilities(1, side), probabilities(1, SIDES[0])
    times = (side // SIDES[0]) ** 2

    def same_cells() -> None:
        for _ in range(times):
            fit_tree(small, TREE.parents, TREE.anchors)

    timed(
        "ops",
        "fit_tree",
        {"people": 1, "input": f"maps {side}x{side}"},
        fit(scores),
        check=lambda: check(scores),
        beside={"smaller maps": Beside(same_cells, at_least=0.5)},  # as many cells in all
        rounds=5,
        repeats=1,
        warm_up=1,
    )
