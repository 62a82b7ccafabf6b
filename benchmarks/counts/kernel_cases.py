"""What the C++ kernels are counted on: fixed random numbers, small enough for a simulator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from fastpose import ops
from fastpose.geometry import boxes_to_affines
from fastpose.ops import cpp
from fastpose.ops.decode import METHODS

PEOPLE, JOINTS = 8, 17
# valgrind knows no AVX-512
ISAS = ("scalar",) if cpp.best_isa() == "scalar" else ("scalar", "avx2")


@dataclass(frozen=True)
class KernelCase:
    """One kernel on one input.

    Attributes:
        name: of the op.
        run: calls the op, given a backend; its answer is arrays, or a tuple of them.
        case: what it is run on.
        isa: that the kernel is told to use; "" for a kernel that has one form.
        tolerance: within which the answer is the reference's.
    """

    name: str
    run: Callable[[str], Any]
    case: dict[str, Any] = field(default_factory=dict)
    isa: str = ""
    tolerance: float = 1e-3

    @property
    def key(self) -> str:
        words = [f"{name}={value}" for name, value in self.case.items()]
        return " ".join([self.name, *words, *([f"isa={self.isa}"] if self.isa else [])])

    def answer(self, backend: str = "cpp") -> list[np.ndarray]:
        """Run it once."""
        with _instruction_set(self.isa):
            found = self.run(backend)
        return [np.array(part) for part in (found if isinstance(found, tuple) else (found,))]


@contextmanager
def _instruction_set(isa: str) -> Iterator[None]:
    """The kernels that are written for several are told to use this one."""
    if not isa:
        yield
        return
    told = {
        name: functools.partial(getattr(cpp, name), isa=isa)
        for name in ("warp", "decode", "decode_simcc")
    }
    with mock.patch.multiple(cpp, **told):
        yield


def kernel_cases() -> dict[str, KernelCase]:
    """All cases, by key."""
    found = [
        KernelCase(name, run, case, isa) for name, run, case in _by_isa() for isa in ISAS
    ] + list(_in_one_form())
    return {case.key: case for case in found}


def _by_isa() -> Iterator[tuple[str, Callable[[str], Any], dict[str, Any]]]:
    random = np.random.default_rng(0)
    frame = random.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    features = random.random((1, 16, 64, 48), dtype=np.float32)
    corners = random.uniform((0, 0), (400, 200), (PEOPLE, 2))
    boxes = np.concatenate((corners, np.add(corners, (120, 260))), axis=1)
    numbers = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    for turned in (0.0, 20.0):
        affines = boxes_to_affines(boxes, (128, 96), rotation=turned)
        run = functools.partial(_warp, frame, affines, (128, 96), **numbers)
        yield "warp", run, {"people": PEOPLE, "input": f"640x480 turned {turned:.0f}"}
    cells = boxes_to_affines(boxes / 10, (14, 14))
    yield (
        "warp",
        functools.partial(_warp, features, cells, (14, 14), layout="chw", area=2),
        {"people": PEOPLE, "input": "maps 16x64x48"},
    )
    heatmaps = _heatmaps(random)
    for method in METHODS:
        run = functools.partial(_decode, heatmaps, method)
        yield "decode", run, {"method": method, "people": PEOPLE}
    vectors = [random.random((PEOPLE, JOINTS, bins), dtype=np.float32) for bins in (384, 512)]
    yield "decode_simcc", functools.partial(_simcc, vectors), {"people": PEOPLE}


def _heatmaps(random: np.random.Generator) -> np.ndarray:
    """[PEOPLE, JOINTS, 64, 48]: a Gaussian in each, inside and at the border, on some noise."""
    y, x = np.mgrid[:64, :48]
    centres = random.uniform((0, 0), (48, 64), (PEOPLE, JOINTS, 2))[..., None, None]
    square = (x - centres[:, :, 0]) ** 2 + (y - centres[:, :, 1]) ** 2
    noise = 0.05 * random.random((PEOPLE, JOINTS, 64, 48))
    return (np.exp(-square / 8) + noise).astype(np.float32)


def _warp(
    frame: np.ndarray, affines: np.ndarray, size: tuple[int, int], backend: str, **options: Any
) -> Any:
    source = np.zeros(len(affines), np.int32)
    return ops.warp(frame, affines, size, source=source, backend=backend, **options)


def _decode(heatmaps: np.ndarray, method: str, backend: str) -> Any:
    return ops.decode(heatmaps, method=method, backend=backend)


def _simcc(vectors: list[np.ndarray], backend: str) -> Any:
    return ops.decode_simcc(*vectors, backend=backend)


def _in_one_form() -> Iterator[KernelCase]:
    random = np.random.default_rng(1)
    corners = random.uniform(0, 300, (300, 2))
    boxes = np.concatenate((corners, corners + random.uniform(20, 90, (300, 2))), axis=1)
    scores = random.random(300)

    def suppress(method: str, backend: str) -> Any:
        return ops.suppress_boxes(boxes, scores, method=method, backend=backend)

    for method in ("hard", "soft-gaussian"):
        run = functools.partial(suppress, method)
        yield KernelCase("suppress_boxes", run, {"method": method, "input": f"{len(boxes)} boxes"})
    poses = random.uniform(0, 200, (60, JOINTS, 2))
    areas, sigmas = random.uniform(1e3, 1e4, 60), np.full(JOINTS, 0.07)

    def suppress_poses(backend: str) -> Any:
        return ops.suppress_poses(poses, scores[:60], areas, sigmas=sigmas, backend=backend)

    yield KernelCase("suppress_poses", suppress_poses, {"input": f"{len(poses)} poses"})
    parts = random.normal(size=(1, 14, 3, 32, 32)).astype(np.float32)
    parents = np.array([-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 10, 11, 12])
    anchors = random.integers(-4, 5, (14, 3, 2))

    def fit(backend: str) -> Any:
        return ops.fit_tree(parts, parents, anchors, backend=backend)

    yield KernelCase("fit_tree", fit, {"input": "14 parts of 3 types on 32x32"})
