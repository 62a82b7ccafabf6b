"""`ops.propagate` on CUDA: checked in float32, timed against the matmul rate and cuDNN.

    python benchmarks/gpu/propagate.py --out FILE.json

Both directions of a tree at once. The peers run cuDNN with its benchmark on: one convolution in
channels-last for every edge, with the addition and the ReLU as kernels of their own, which is how
this is written without a kernel; and the reference, which groups the edges of a level. Maps and
kernels lie in memory as a network in channels-last has them, so nobody has to copy them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timing import Bench, Peer, Work, agree

from fastpose.models.parts import part_tree
from fastpose.ops import propagate
from fastpose.ops.propagate import schedule

# Of a sum rounded after each of up to 27 convolutions, against float32 all the way.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.5e-2}


@dataclass(frozen=True)
class Case:
    """A network's messages.

    Attributes:
        name: of the network.
        parents: of each node, -1 for the root.
        widths: channels of the maps, between two kernels, and of the maps again.
        cells: side of the maps.
        activate: as in `propagate`.
        side: of the kernels.
    """

    name: str
    parents: tuple[int, ...]
    widths: tuple[int, ...]
    cells: int
    activate: str
    side: int = 7


CASES = [
    Case("paper", part_tree("flic18").parents, (128, 128, 128, 128), 56, "before"),
    Case("structured-lsp", part_tree("lsp26").parents, (128, 64, 128), 42, "after"),
]
TINY = Case("tiny", (-1, 0, 0), (16, 16, 16), 8, "after", 3)
TYPES = (torch.bfloat16, torch.float16)
BATCHES = (4, 8, 1)  # those with a target first


class Weights:
    """Random kernels and biases of every edge in both directions, and the same for cuDNN."""

    def __init__(self, bench: Bench, case: Case, dtype: torch.dtype) -> None:
        edges, side = len(case.parents) - 1, case.side
        pairs = list(zip(case.widths, case.widths[1:], strict=False))
        # messages as large as the maps that they come from: a wrong one shows, and none overflows
        self.kernels = [
            channels_last(
                bench.normal(2 * edges * cout, cin, side, side, std=(2 / cin) ** 0.5 / side), dtype
            ).unflatten(0, (2, edges, cout))
            for cin, cout in pairs
        ]
        self.biases = [0.1 * bench.normal(2, edges, cout).to(dtype) for _, cout in pairs]
        self.by_edge = [list(kernel.flatten(0, 1)) for kernel in self.kernels]


def channels_last(maps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[N, C, h, w] in that type and order of memory."""
    return maps.to(dtype, memory_format=torch.channels_last)


def by_edge(maps: list[torch.Tensor], weights: Weights, case: Case) -> list[torch.Tensor]:
    """Every message by itself: maps [N, C, H, W] in channels-last, all nodes up, then down."""
    steps = schedule(case.parents, "both")
    waiting = {edge.target for edges in steps for edge in edges}
    if case.activate == "before":
        maps = [F.relu(m) for m in maps]
    maps = [m if node in waiting else F.relu(m) for node, m in enumerate(maps)]
    biases = [bias.flatten(0, 1) for bias in weights.biases]
    for edges in steps:
        for edge in edges:
            x = maps[edge.source]
            for i, (kernels, bias) in enumerate(zip(weights.by_edge, biases, strict=True)):
                x = F.relu(x) if i else x
                x = F.conv2d(x, kernels[edge.kernel], bias[edge.kernel], padding=case.side // 2)
            maps[edge.target] = maps[edge.target] + x
        for target in {edge.target for edge in edges}:
            maps[target] = F.relu(maps[target])
    return maps


def measure(bench: Bench, case: Case, weights: Weights, batch: int, grouped: bool = False) -> None:
    """One row: a network's messages for a batch, in the type of its weights."""
    nodes, channels = len(case.parents), case.widths[0]
    dtype = weights.kernels[0].dtype
    kind = str(dtype).removeprefix("torch.")
    shape = (batch, 2, nodes, channels, case.cells, case.cells)
    moved = dtype.itemsize * (2 * batch * 2 * nodes * channels * case.cells**2)
    moved += dtype.itemsize * sum(kernel.numel() for kernel in weights.kernels)
    sets = bench.sets(moved)
    flat = (batch, 2 * nodes * channels, case.cells, case.cells)
    features = [
        channels_last(bench.normal(*flat), dtype).unflatten(1, (2, nodes, channels))
        for _ in range(sets)
    ]
    # cuDNN's maps are dense each by itself, and it is not charged for making them so
    listed = [[channels_last(m, dtype) for m in f.flatten(1, 2).unbind(1)] for f in features]

    def call(i: int, backend: str) -> torch.Tensor:
        return propagate(
            features[i],
            weights.kernels,
            weights.biases,
            case.parents,
            direction="both",
            activate=case.activate,
            backend=backend,
        )

    def truth() -> torch.Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            return propagate(
                features[0].float(),
                [kernel.float() for kernel in weights.kernels],
                [bias.float() for bias in weights.biases],
                case.parents,
                direction="both",
                activate=case.activate,
                backend="reference",
            )

    exact: list[torch.Tensor] = []

    def check() -> float:
        exact.append(truth())
        return agree(call(0, "triton"), exact[0], relative=TOLERANCE[kind])

    def check_by_edge() -> None:
        maps = torch.stack(by_edge(listed[0], weights, case), dim=1).view(shape)
        agree(maps, exact[0], relative=TOLERANCE[kind])

    if grouped:
        peers = [Peer("cuDNN grouped", lambda i: call(i, "reference"))]
    else:
        limit = 1.3 if batch >= 4 else None
        edge_by_edge = functools.partial(by_edge, weights=weights, case=case)
        peers = [Peer("cuDNN by edge", lambda i: edge_by_edge(listed[i]), check_by_edge, limit)]
    products = sum(cin * cout for cin, cout in zip(case.widths, case.widths[1:], strict=False))
    flops = 2.0 * batch * case.cells**2 * case.side**2 * products * 2 * (nodes - 1)
    bench.measure(
        "propagate",
        {
            "batch": batch,
            "network": case.name,
            "dtype": kind,
            "nodes": nodes,
            "cells": case.cells,
            "beside": "groups" if grouped else "edges",
        },
        lambda i: call(i, "triton"),
        sets=sets,
        work=Work(flops=flops, dtype=dtype),
        check=check,
        peers=peers,
        limits={"matmul_share": 0.5} if batch >= 4 else {},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every network in both types, the batches with a target first."""
    bench = Bench(__file__, arguments)
    torch.backends.cudnn.benchmark = True
    cases, types, batches = (TINY,), (torch.float16,), (1,)
    if not bench.dry:
        cases, types, batches = CASES, TYPES, BATCHES
    # cuDNN may search long for a way to do groups, so they come last, and few
    for grouped in (False, True):
        for dtype in types[:1] if grouped else types:
            for case in cases:
                weights = Weights(bench, case, dtype)
                for batch in batches[:1] if grouped else batches:
                    with torch.inference_mode():
                        measure(bench, case, weights, batch, grouped)
    bench.close()


if __name__ == "__main__":
    main()
