"""Bytes that a frame's path allocates: a gate on temporaries, and on what is not given back.

Counted by `tracemalloc`, which numpy tells of its arrays: the most that one call holds at a time
beyond what was held before it, its results included, and what many calls leave behind. The heap of
the C++ kernels is counted in bench_instructions.py. The network is one that gives prepared maps:
its own memory is the runtime's.
"""

from __future__ import annotations

import gc
import platform
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from suite import WrongAnswerError

from fastpose import ops
from fastpose.bench.rows import Row
from fastpose.geometry import boxes_to_affines
from fastpose.models import model_spec
from fastpose.pipeline import estimate
from fastpose.types import Boxes

PEOPLE = (1, 8, 32)
FRAME = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
SPEC = model_spec("cpn-light")
JOINTS, SIZE = len(SPEC.joints), (64, 48)
SETTLED, CALLS = 5, 50  # calls before anything is counted, and over which nothing may grow
SLACK = 512  # bytes: the counters of tracemalloc's own frames


class Prepared:
    """An engine whose network gives the same maps for every window."""

    def __init__(self, maps: np.ndarray) -> None:
        self.maps = maps
        self.manifest = SimpleNamespace(spec=SPEC, buckets=(len(maps),))
        self.images = np.zeros((len(maps), 3, *SPEC.size), np.float32)

    def buffer(self, count: int) -> np.ndarray:
        return self.images[:count]

    def run(self, count: int) -> np.ndarray:
        return self.maps[:count]


def boxes_of(people: int) -> np.ndarray:
    """[people, 4]"""
    corners = np.random.default_rng(people).uniform(0, (1000, 300), (people, 2))
    return np.concatenate((corners, np.add(corners, (150, 350))), axis=1).astype(np.float32)


def peaks(people: int) -> tuple[np.ndarray, np.ndarray]:
    """[people, JOINTS, 2] whole cells, and the maps that are 1 there, 0 elsewhere."""
    random = np.random.default_rng(people)
    cells = random.integers(2, (SIZE[1] - 2, SIZE[0] - 2), (people, JOINTS, 2))
    maps = np.zeros((people, JOINTS, *SIZE), np.float32)
    person, joint = np.indices((people, JOINTS))
    maps[person, joint, cells[..., 1], cells[..., 0]] = 1
    return cells, maps


def right(worst: float, bound: float, unit: str) -> str:
    """That an answer is right, in words."""
    if not worst <= bound:
        raise WrongAnswerError(f"{worst:.3g} {unit} from the truth, over {bound}")
    return f"within {worst:.1g} {unit} of the truth" if worst else "equal to the truth"


def warp_case(people: int) -> tuple[Callable[[], Any], str]:
    affines = boxes_to_affines(boxes_of(people), SPEC.size)
    out = np.empty((people, 3, *SPEC.size), np.float32)
    ops.warp(FRAME, affines, SPEC.size, out=out)
    true = ops.warp(FRAME, affines, SPEC.size, backend="reference")
    check = right(float(np.abs(out - true).max()), 0.05, "grey levels")
    return lambda: ops.warp(FRAME, affines, SPEC.size, out=out), check


def decode_case(people: int) -> tuple[Callable[[], Any], str]:
    cells, maps = peaks(people)
    points, _ = ops.decode(maps, method="quarter")
    check = right(float(np.abs(points - cells).max()), 0.0, "cells")
    return lambda: ops.decode(maps, method="quarter"), check


def estimate_case(people: int) -> tuple[Callable[[], Any], str]:
    cells, maps = peaks(people)
    engine, found = Prepared(maps), [Boxes(boxes_of(people), np.ones(people, np.float32))]
    (pose,) = estimate([FRAME], found, engine)
    check = right(float(np.abs(pose.keypoints - places(cells, people)).max()), 8.0, "pixels")
    return lambda: estimate([FRAME], found, engine), check


def places(cells: np.ndarray, people: int) -> np.ndarray:
    """Where peaks lie in the frame, but for the part of a cell that decoding adds."""
    affines = boxes_to_affines(
        boxes_of(people), SPEC.size, padding=SPEC.window.padding, convention=SPEC.convention
    )
    points = cells * np.divide(SPEC.size[::-1], SIZE[::-1])
    turned = affines[:, None, :, :2] @ points[..., None]
    return turned[..., 0] + affines[:, None, :, 2]


CASES = {"warp": warp_case, "decode": decode_case, "estimate": estimate_case}


def allocated(call: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that a call holds at most, and that `CALLS` of them leave behind."""
    for _ in range(SETTLED):
        call()
    gc.collect()
    tracemalloc.start()
    try:
        call()  # tracemalloc sees what a cache makes once
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        most = tracemalloc.get_traced_memory()[1] - before
        for _ in range(CALLS):
            call()
        gc.collect()
        return most, tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("people", PEOPLE)
@pytest.mark.parametrize("name", CASES)
def bench_allocated_bytes(name: str, people: int, counted: Callable[..., Row]) -> None:
    call, check = CASES[name](people)
    most, left = allocated(call)
    assert left <= SLACK, f"{name}: {CALLS} calls leave {left} bytes behind"
    python = ".".join(platform.python_version_tuple()[:2])
    counted(
        name,
        {"people": people},
        {"allocated_bytes": most},
        check=f"{check}; {CALLS} calls leave nothing behind",
        held="allocated_bytes",
        tools=f"Python {python}, numpy {np.__version__.rpartition('.')[0]}",
        key=f"{name} people={people}",
    )
