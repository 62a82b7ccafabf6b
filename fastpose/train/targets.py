"""Joints -> target heat maps, through `ops.render`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpose import ops
from fastpose.geometry import grid, invert
from fastpose.models.spec import ModelSpec

# Widths of the four levels' Gaussians, coarse level first, in units of the refined maps' width:
# the ratio of the automatic sigmas of kernels 15, 11, 9 and 7, as the released CPN code pairs them.
LEVELS = (2.6 / 1.4, 2.0 / 1.4, 1.7 / 1.4, 1.0)


def cascade_targets(
    joints: Tensor, labelled: Tensor, spec: ModelSpec, size: tuple[int, int]
) -> tuple[list[Tensor], Tensor]:
    """Targets of a cascaded pyramid network.

    A labelled joint outside the window has an empty map and still counts, so that it is taught to
    score low; an unlabelled one has no weight.

    Args:
        joints: [N, K, 2] (x, y) in window pixels.
        labelled: [N, K], 0 or 1.
        spec: the network; its sigma holds at its own size, and shrinks with `size`.
        size: (h, w) of the windows.

    Returns:
        four maps [N, K, h / stride, w / stride], coarse level first, and weights [N, K].
    """
    cells = size[0] // spec.stride, size[1] // spec.stride
    affine = torch.from_numpy(invert(grid(spec.convention, size, cells))).to(joints)
    points = joints @ affine[:, :2].T + affine[:, 2]
    limit = torch.tensor([cells[1], cells[0]]).to(points)
    inside = ((points >= -0.5) & (points < limit - 0.5)).all(dim=-1).to(points)
    sigma = spec.sigma * size[0] / spec.size[0]
    maps = [
        ops.render(
            points, labelled * inside, cells, sigma=sigma * level, peak_value=spec.peak_value
        )
        for level in LEVELS
    ]
    return maps, labelled
