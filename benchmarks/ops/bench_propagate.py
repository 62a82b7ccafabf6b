"""`ops.propagate` on one thread, which on a CPU is torch, beside one convolution an edge.

The tree is that of 26 parts, both directions at once. Its network has maps of 128 channels and
42x42 cells, which takes seconds; without --full a quarter of the channels and of the cells.
"""

from __future__ import annotations

import functools
import itertools

import pytest
from beside import within
from suite import Beside

from fastpose.models.parts import PART_TREES
from fastpose.ops import propagate
from fastpose.ops.propagate import schedule

torch = pytest.importorskip("torch", reason="torch is not installed here")
import torch.nn.functional as F  # noqa: E402 - needs torch

PARENTS, SIDE = PART_TREES["lsp26"].parents, 7
TOLERANCE = 1e-5  # of the highest response


def weights(widths: tuple[int, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Kernels and biases of every edge in both directions, of messages as large as the maps."""
    random = torch.Generator().manual_seed(0)
    edges = len(PARENTS) - 1
    kernels, biases = [], []
    for cin, cout in itertools.pairwise(widths):
        kernel = torch.randn(2, edges, cout, cin, SIDE, SIDE, generator=random)
        kernels.append(kernel * (2 / cin) ** 0.5 / SIDE)
        biases.append(0.1 * torch.randn(2, edges, cout, generator=random))
    return kernels, biases


def by_edge(
    features: torch.Tensor, kernels: list[torch.Tensor], biases: list[torch.Tensor]
) -> torch.Tensor:
    """Every message by itself: [1, 2, J, C, H, W], all nodes up, then down."""
    steps = schedule(PARENTS, "both")
    waiting = {edge.target for edges in steps for edge in edges}
    parts = list(features.flatten(1, 2).unbind(1))
    maps = [part if node in waiting else F.relu(part) for node, part in enumerate(parts)]
    kernels, biases = [k.flatten(0, 1) for k in kernels], [b.flatten(0, 1) for b in biases]
    for edges in steps:
        for edge in edges:
            x = maps[edge.source]
            for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
                x = F.relu(x) if i else x
                x = F.conv2d(x, kernel[edge.kernel], bias[edge.kernel], padding=SIDE // 2)
            maps[edge.target] = maps[edge.target] + x
        for target in {edge.target for edge in edges}:
            maps[target] = F.relu(maps[target])
    return torch.stack(maps, dim=1).view(features.shape)


def apart(ours: torch.Tensor, others: torch.Tensor) -> str:
    """How far maps are apart, in words; raises `WrongAnswerError`."""
    worst = (ours - others).abs().max() / others.abs().max()
    return within(float(worst), TOLERANCE, "of the highest response")


@torch.inference_mode()
def bench_propagate_beside_convolutions(timed, request):
    full = request.config.getoption("--full")
    widths, cells = ((128, 64, 128), 42) if full else ((32, 16, 32), 21)
    kernels, biases = weights(widths)
    random = torch.Generator().manual_seed(1)
    features = torch.randn(1, 2, len(PARENTS), widths[0], cells, cells, generator=random)
    ours = functools.partial(propagate, features, kernels, biases, PARENTS, direction="both")
    theirs = functools.partial(by_edge, features, kernels, biases)

    def check() -> str:
        exact = by_edge(
            features.double(), [k.double() for k in kernels], [b.double() for b in biases]
        )
        return f"definition: {apart(ours(), exact)}"

    timed(
        "ops",
        "propagate",
        {"people": 1, "input": f"maps {widths[0]}x{cells}x{cells}"},
        ours,
        check=check,
        beside={
            "torch": Beside(theirs, lambda: apart(ours(), theirs()), version=torch.__version__)
        },
        rounds=5,
        repeats=1,
    )
