"""The two-stage detector in two CUDA graphs: of a frame, the numbers of a few boxes come down.

Without CUDA the same steps run one by one, not captured, so that they can be tested anywhere.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fastpose import ops
from fastpose.crop import cut_windows, sample_counts
from fastpose.detect.regions import REGION_AREA, Indices, choose_boxes, region_affines
from fastpose.engines import Graph
from fastpose.errors import EngineError
from fastpose.geometry import Doubles
from fastpose.graph import Block, FrameMemory, capture, host_tensor, memory_pool, wait
from fastpose.models.anchors import anchors
from fastpose.models.spec import DetectorSpec
from fastpose.ops.choose import Array
from fastpose.types import Floats

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SIGN_APART = 0x7FFFFFFF  # all bits of a float32 but its sign
LOW_HALF = 0xFFFFFFFF


class StreamGraph(Graph, Protocol):
    """A graph that can also only enqueue its work on torch's current stream.

    Attributes:
        device: where.
        type: of its input.
    """

    device: torch.device
    type: torch.dtype

    def enqueue(self, given: Tensor) -> tuple[Tensor, ...]:
        """Its outputs, in their order, without waiting for them."""


class GraphHalves:
    """Both halves of a `TwoStageDetector` where they compute, each captured as a CUDA graph.

    The first takes a frame, by address, to the pyramid, which stays on the device, and of every
    level to the highest anchors, which come down. The second takes `spec.batch` boxes up, cuts
    their windows out of the pyramid, and brings down what the head says of them. Both are captured
    here, and none later.

    Args:
        spec: the detector.
        proposer, head: as in `TwoStageDetector`, of one device. They are closed with this.

    Raises:
        EngineError: one of them cannot be captured.
    """

    reads_device = True

    def __init__(self, spec: DetectorSpec, proposer: StreamGraph, head: StreamGraph) -> None:
        self._spec, self._graphs = spec, (proposer, head)
        pool = memory_pool(proposer.device)
        self._frames = FrameMemory(proposer.device)
        self._first: _Proposals | None = _Proposals(spec, proposer, pool)
        self._second: _Regions | None = _Regions(spec, head, self._first, pool)

    def propose(self, frame: Array, affine: Doubles) -> Floats:
        """See `fpn.Halves`; the frame may be a tensor on the device, which is read in place."""
        if self._first is None:
            raise self._closed()
        (placed,) = self._frames.upload([frame])
        kept, logits, deltas = self._first(placed, affine)
        spec = self._spec
        boxes, _ = choose_boxes(
            kept, logits, deltas, spec, spec.size, spec.proposals, floor=spec.promising
        )
        return boxes

    def classify(self, boxes: Floats) -> tuple[Floats, Floats]:
        """See `fpn.Halves`."""
        if self._second is None:
            raise self._closed()
        level, affines = region_affines(boxes, self._spec)
        runs = (slice(i, i + self._spec.batch) for i in range(0, len(boxes), self._spec.batch))
        parts = [self._second(level[rows], affines[rows]) for rows in runs]
        logits, deltas = (np.concatenate(rows) for rows in zip(*parts, strict=True))
        return logits, deltas

    def close(self) -> None:
        """Free graphs, their memory, and both networks; further use raises EngineError."""
        self._first = self._second = None
        for graph in self._graphs:
            graph.close()

    def _closed(self) -> EngineError:
        return EngineError(f"{self._spec.name}: the graph is closed")


class _Proposals:
    """Frame -> input -> pyramid and proposals -> the highest anchors of each level.

    Attributes:
        pyramid: the levels that are pooled, [1, C, h / s, w / s] each, of the last run. In a
            captured graph they lie where they always do.
    """

    def __init__(self, spec: DetectorSpec, proposer: StreamGraph, pool: Any) -> None:
        import torch

        self._spec, self._proposer = spec, proposer
        device = proposer.device
        self._given = Block(
            {
                "frame": ((1, 4), np.int64),
                "affine": ((1, 2, 3), np.float32),
                "source": ((1,), np.int32),
                "area": ((1,), np.int32),
            },
            device,
        )
        self._given.host["area"][:] = 1
        self._image = torch.empty((1, *spec.size, 3), dtype=proposer.type, device=device)
        self._counts = np.bincount(anchors(spec, spec.size)[1]).tolist()
        self._last_first = LOW_HALF - torch.arange(sum(self._counts), device=device)
        total = sum(min(count, spec.per_level) for count in self._counts)
        self._keys = host_tensor((total,), torch.int64, device)
        self._deltas = host_tensor((total, 4), torch.float32, device)
        self.pyramid: list[Tensor] = []
        self._replay = capture(self._run, device, pool)

    def __call__(self, frame: Tensor, affine: Doubles) -> tuple[Indices, Floats, Floats]:
        """The numbers, objectness and deltas of the highest sound anchors, by rising number."""
        given = self._given.host
        given["frame"][:] = ops.frame_rows([frame])
        given["affine"][:] = affine
        given["area"][:] = sample_counts(affine)
        self._replay()
        wait(self._proposer.device)
        numbers, logits = _read_keys(self._keys.numpy())
        order = np.argsort(numbers)
        order = order[np.isfinite(logits[order])]
        return numbers[order], logits[order], self._deltas.numpy()[order]

    def _run(self) -> None:
        """What is captured: everything is enqueued, nothing waited for."""
        spec = self._spec
        self._given.upload()
        given = self._given.device
        cut_windows(
            ops.FrameTable(given["frame"]),
            given["affine"],
            given["area"],
            spec.window,
            source=given["source"],
            out=self._image,
            out_layout="nhwc",
        )
        *pyramid, logits, deltas = self._proposer.enqueue(self._image.permute(0, 3, 1, 2))
        self.pyramid = pyramid
        deltas = deltas[0].float()
        keys = _keys(logits[0].float(), deltas, self._last_first)
        best = _highest(keys, self._counts, spec.per_level)
        self._keys.copy_(best, non_blocking=True)
        self._deltas.copy_(deltas.index_select(0, LOW_HALF - (best & LOW_HALF)), non_blocking=True)


class _Regions:
    """Boxes -> a window of features each -> what the head says of it."""

    def __init__(
        self, spec: DetectorSpec, head: StreamGraph, proposals: _Proposals, pool: Any
    ) -> None:
        import torch

        self._spec, self._head, self._proposals = spec, head, proposals
        device, rows, side = head.device, (spec.pooled, spec.batch), spec.pool
        self._given = Block({"affines": ((*rows, 2, 3), np.float32)}, device)
        self._windows = torch.empty((*rows, side, side, spec.width), dtype=head.type, device=device)
        classes = len(spec.classes)
        self._logits = host_tensor((spec.batch, classes + 1), torch.float32, device)
        self._deltas = host_tensor((spec.batch, classes, 4), torch.float32, device)
        self._replay = capture(self._run, device, pool)

    def __call__(self, level: Indices, affines: Floats) -> tuple[Floats, Floats]:
        """Logits [R, classes + 1] and deltas [R, classes, 4] of R windows, at most a batch.

        Args:
            level: [R] of the pyramid.
            affines: [R, 2, 3] window -> cell of that level.
        """
        given, count = self._given.host["affines"], len(level)
        given[:] = np.nan  # in every level but its own a window is border, which is 0
        given[level, np.arange(count)] = affines
        self._replay()
        wait(self._head.device)
        return self._logits.numpy()[:count].copy(), self._deltas.numpy()[:count].copy()

    def _run(self) -> None:
        """What is captured: everything is enqueued, nothing waited for."""
        self._given.upload()
        affines = self._given.device["affines"]
        for level, features in enumerate(self._proposals.pyramid):
            ops.warp(
                features,
                affines[level],
                (self._spec.pool, self._spec.pool),
                layout="chw",
                area=REGION_AREA,
                out_layout="nhwc",
                out=self._windows[level],
            )
        # of each window one level is not 0, so the sum is exact in any type
        logits, deltas = self._head.enqueue(self._windows.sum(0).permute(0, 3, 1, 2))
        self._logits.copy_(logits.float(), non_blocking=True)
        self._deltas.copy_(deltas.float(), non_blocking=True)


def _keys(logits: Tensor, deltas: Tensor, last_first: Tensor) -> Tensor:
    """[M] int64 that put anchors in order: the higher objectness, and of equal ones the first.

    The upper half of a key is the objectness, -inf if it or a delta is not finite, as an integer of
    the same order; the lower half counts the anchors down. So no two are equal, and the highest are
    the same ones whatever the algorithm that finds them.

    Args:
        logits: [M] float32.
        deltas: [M, 4] float32.
        last_first: [M] int64, the lower halves.
    """
    import torch

    largest = torch.maximum(deltas.abs().amax(1), logits.abs())
    ranks = logits.where(largest < math.inf, -math.inf) + 0.0  # NaN is not less; -0.0 becomes 0.0
    bits = ranks.view(torch.int32)
    rising = bits ^ ((bits >> 31) & SIGN_APART)  # bits of negative floats rise as the floats fall
    return torch.add(last_first, rising, alpha=LOW_HALF + 1)


def _highest(keys: Tensor, counts: list[int], most: int) -> Tensor:
    """The highest `most` of each level, in no order within it; levels have `counts` keys."""
    import torch

    return torch.cat(
        [
            level.topk(min(count, most), sorted=False).values
            for level, count in zip(keys.split(counts), counts, strict=True)
        ]
    )


def _read_keys(keys: npt.NDArray[np.int64]) -> tuple[Indices, Floats]:
    """Numbers of anchors, and their objectness, from their keys."""
    rising = (keys >> 32).astype(np.int32)
    bits = rising ^ ((rising >> 31) & np.int32(SIGN_APART))
    return LOW_HALF - (keys & LOW_HALF), bits.view(np.float32)
