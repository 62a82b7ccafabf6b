"""How far a low precision moves the joints, in pixels of the network's input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.engines.engine import Engine
from fastpose.models.joints import locate_joints
from fastpose.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]

CONFIDENT = 0.3  # score from which a joint counts
FAR = 2.0  # input pixels
MEDIAN_LIMIT = {"bf16": 0.1, "f16": 0.1, "int8": 0.5}  # input pixels
MOVED_LIMIT = 0.005
LOSS_LIMIT = {"bf16": 0.3, "f16": 0.3, "int8": 1.0}  # points of the data set's first metric


@dataclass(frozen=True)
class Shift:
    """Distances between the joints of two engines, over those that the reference is sure of.

    Attributes:
        joints: how many.
        median, p95, largest: in pixels of the network's input.
        moved: share of them that moved by more than 2 pixels, or were lost.
    """

    joints: int
    median: float
    p95: float
    largest: float
    moved: float

    def passes(self, precision: str, loss: float) -> bool:
        """Within the bounds of a low precision; `loss` is what the metric fell, in points."""
        return bool(
            self.median <= MEDIAN_LIMIT[precision]
            and self.moved <= MOVED_LIMIT
            and loss <= LOSS_LIMIT[precision]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, distances to a thousandth of a pixel; None for a joint that was lost."""
        return {
            key: round(value, 4 if key == "moved" else 3) if np.isfinite(value) else None
            for key, value in asdict(self).items()
        }


def measure_shift(reference: Engine, engine: Engine, batches: Iterable[Floats]) -> Shift:
    """Run two engines of one network over the same windows.

    Args:
        reference: the fp32 engine.
        engine: the other one.
        batches: windows, [N, 3, h, w] each.

    Raises:
        ValueError: the reference is sure of no joint in all of them.
    """
    spec = reference.manifest.spec.single_view()
    moves: list[npt.NDArray[np.floating]] = []
    for batch in batches:
        truth, scores = _joints(reference(batch), spec)
        points, _ = _joints(engine(batch), spec)
        sure = scores > CONFIDENT
        distance = np.linalg.norm(points[sure] - truth[sure], axis=1)
        moves.append(np.nan_to_num(distance, nan=np.inf))  # a lost joint moved as far as can be
    all_moves = np.concatenate(moves) if moves else np.zeros(0)
    if not len(all_moves):
        raise ValueError("the reference is sure of no joint: nothing can be compared")
    return Shift(
        len(all_moves),
        float(np.median(all_moves)),
        float(np.quantile(all_moves, 0.95, method="higher")),
        float(all_moves.max()),
        float((all_moves > FAR).mean()),
    )


def _joints(results: Floats, spec: ModelSpec) -> tuple[Floats, Floats]:
    """Joints in input pixels and their scores."""
    return locate_joints(results, np.tile(np.eye(2, 3), (len(results), 1, 1)), spec)
