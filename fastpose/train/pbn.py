"""What PBN and the stacked hourglass are taught, and PBN's views.

Tang and Wu, Does Learning Specific Features for Related Parts Help Human Pose Estimation?, CVPR
2019, which takes most of it from Newell, Yang, Deng, Stacked Hourglass Networks for Human Pose
Estimation, ECCV 2016.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastpose import ops
from fastpose.crop import Augmentation
from fastpose.models.spec import ModelSpec
from fastpose.train.losses import mean_loss
from fastpose.train.targets import to_cells

STYLES = {  # at the joint, or its cell
    "pbn:PBN": "exact",
    "hourglass:StackedHourglass": "msra",
    "cpm:CPMBatchNorm": "msra",
}
# Largest shear by what its published +-0.5 is taken for: a factor, which is 27 degrees, or degrees.
SHEARS = {"off": 0.0, "factor": 0.5, "degrees": math.tan(math.radians(0.5))}


def stacked_targets(
    joints: Tensor, labelled: Tensor, spec: ModelSpec, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The one target of all stacks: a Gaussian of `spec.sigma` cells at each joint in the window.

    Args:
        joints: [N, K, 2] (x, y) in window pixels.
        labelled: [N, K], 0 or 1.
        spec: the network; its sigma is in cells whatever the size.
        size: (h, w) of the windows.

    Returns:
        maps [N, K, h / stride, w / stride], empty where no joint is, and weights [N, K], 0 there:
        what is not known teaches nothing. (In the hourglass's first code it teaches emptiness.)
    """
    cells = size[0] // spec.stride, size[1] // spec.stride
    points, inside = to_cells(joints, spec, size, cells)
    weights = labelled * inside
    style = STYLES[spec.network]
    maps = ops.render(
        points, weights, cells, sigma=spec.sigma, style=style, peak_value=spec.peak_value
    )
    return maps, weights


def stacked_loss(maps: Sequence[Tensor], targets: Tensor, weights: Tensor) -> Tensor:
    """Sum of the stacks' mean squared errors, each against the same target.

    Args:
        maps: of each stack, [N, K, h, w].
        targets: [N, K, h, w].
        weights: [N, K]; 0 leaves a joint out.
    """
    return torch.stack([mean_loss(stack, targets, weights) for stack in maps]).sum()


def augmentation(shear: str = "off") -> Augmentation:
    """The published views: turned by up to 30 degrees, zoomed by a quarter, mirrored, recoloured.

    The publication does not say how angles and zooms are drawn; here they are uniform.

    Args:
        shear: the publication has +-0.5 of it without a unit. "factor": half a pixel to the side
            for each pixel down, at most; "degrees"; or "off", the default.

    Raises:
        ValueError: `shear` is none of these.
    """
    if shear not in SHEARS:
        raise ValueError(f"shear must be one of {', '.join(SHEARS)}, got {shear!r}")
    return Augmentation(
        turn=30.0,
        rotated=1.0,
        widen=(0.75, 1.25),
        shift=0.0,
        half_body=0.0,
        grey=0.0,
        shear=SHEARS[shear],
    )
