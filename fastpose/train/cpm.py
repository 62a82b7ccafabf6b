"""What convolutional pose machines are taught, and how fast each of their layers learns.

Wei, Ramakrishna, Kanade, Sheikh, Convolutional Pose Machines, CVPR 2016, and the training code and
Caffe graphs that were released with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastpose import ops
from fastpose.errors import ModelError
from fastpose.models.cpm import CPM, CPMVGG, CPMPerson
from fastpose.models.spec import ModelSpec
from fastpose.train.targets import to_cells


def cpm_targets(
    joints: Tensor, labelled: Tensor, spec: ModelSpec, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Targets of a released CPM: Gaussians of 7 pixels, cut off under 1 %, and the background.

    Stage 1, which is told of no person of interest, learns everybody's joints; people's Gaussians
    add up to 1 at most. Later stages learn the person of interest alone. The background is 1 less
    the highest joint.

    Args:
        joints: [N, P, K, 2] (x, y) in window pixels, the person of interest first; [N, K, 2] where
            nobody else is known of.
        labelled: [N, P, K] or [N, K], 0 where there is no such joint: its map is empty, and counts.
        spec: the network.
        size: (h, w) of the windows.

    Returns:
        of stage 1 and of the stages behind it, [N, K + 1, h / stride, w / stride] each.
    """
    if joints.ndim == 3:
        joints, labelled = joints[:, None], labelled[:, None]
    cells = size[0] // spec.stride, size[1] // spec.stride
    points, _ = to_cells(joints, spec, size, cells)

    def draw(people: int) -> Tensor:
        return ops.render(
            points[:, :people],
            labelled[:, :people],
            cells,
            sigma=spec.sigma,
            style="caffe",
            people="sum-clamped",
            background=spec.background,
            peak_value=spec.peak_value,
        )

    return draw(points.shape[1]), draw(1)


def euclidean_loss(maps: Tensor, target: Tensor) -> Tensor:
    """Caffe's: half the sum of the squares, by the number of pictures; [N, ...] each."""
    return (maps.float() - target).square().sum() / (2 * len(maps))


def cpm_loss(stages: Sequence[Tensor], first: Tensor, later: Tensor) -> Tensor:
    """The sum of all stages' losses, equally weighted.

    Args:
        stages: what the network gives.
        first: target of stage 1; see `cpm_targets`.
        later: of the others.
    """
    losses = [euclidean_loss(stages[0], first)]
    losses += [euclidean_loss(maps, later) for maps in stages[1:]]
    return torch.stack(losses).sum()


def cpm_parameter_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """For an optimiser: each layer with the factor of its rate that its released graph states.

    Stage 1 learns 5 times as fast as the rest. In the networks on VGG-19 it is the stages behind it
    that learn 4 times as fast. Biases learn twice as fast as their kernels and do not decay.

    Args:
        network: a `CPM`, `CPMVGG` or `CPMPerson`.
        decay: weight decay of the kernels.

    Raises:
        ModelError: the network is none of these.
    """
    match network:
        case CPM():
            mark, factor = "_stage1.", 5.0
        case CPMVGG() | CPMPerson():
            mark, factor = "Mconv", 4.0
        case _:
            raise ModelError(f"rates by layer are not known of {type(network).__name__}")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault((mark in name, parameter.ndim == 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "factor": (factor if fast else 1.0) * (2.0 if bias else 1.0),
            "weight_decay": 0.0 if bias else decay,
        }
        for (fast, bias), parameters in groups.items()
    ]
