"""Joints -> target heat maps, through `ops.render`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpose import ops
from fastpose.errors import ModelError
from fastpose.geometry import grid, invert
from fastpose.models.spec import ModelSpec

# Widths of the four levels' Gaussians, coarse level first, in units of the refined maps' width:
# the ratio of the automatic sigmas of kernels 15, 11, 9 and 7, as the released CPN code pairs them.
LEVELS = (2.6 / 1.4, 2.0 / 1.4, 1.7 / 1.4, 1.0)

# The released CPN's own widths by size of the maps: automatic sigmas of kernels 15, 11, 9 and 7,
# and of 23, 17, 13 and 9.
MEGVII_SIGMAS = {(64, 48): (2.6, 2.0, 1.7, 1.4), (96, 72): (3.8, 2.9, 2.3, 1.7)}


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
    points, inside = to_cells(joints, spec, size, cells)
    sigma = spec.sigma * size[0] / spec.size[0]
    maps = [
        ops.render(
            points, labelled * inside, cells, sigma=sigma * level, peak_value=spec.peak_value
        )
        for level in LEVELS
    ]
    return maps, labelled


def megvii_targets(
    joints: Tensor,
    visibility: Tensor,
    spec: ModelSpec,
    sigmas: tuple[float, ...] | None = None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Targets of the published CPN, as its releases drew them.

    GlobalNet learns visible joints only: one that is hidden (v = 1) has an empty map there, just
    as one without a label or outside the window, and the empty map counts. RefineNet learns
    visible and hidden joints; the others have no weight.

    Where a map holds several joints (`spec.peaks`) it is the larger of their Gaussians, and counts
    in RefineNet if all of them have a label: what is not in the window is then known to be absent.

    Args:
        joints: [N, K, 2] (x, y) in window pixels.
        visibility: [N, K], COCO's v: 0 without a label, 1 hidden, 2 visible.
        spec: a CPN of the registry. In style "torch" the coarse level has the widest Gaussian; in
            "tf" the fine level has, a slip that its authors kept for their weights' sake.
        sigmas: of the four kernels, widest first; None takes those published for this size.

    Returns:
        four maps [N, C, h, w] for GlobalNet, that of C5 first; the map for RefineNet, with the
        narrowest Gaussian; weights [N, C] of RefineNet's maps. C = K / `spec.peaks`, and a peak is
        `spec.peak_value` high.

    Raises:
        ModelError: no kernels were published for maps of this size.
    """
    if sigmas is None:
        sigmas = _published_sigmas(spec)
    points, inside = to_cells(joints, spec, spec.size, spec.cells)
    weights = (visibility > 0) & (inside > 0) if spec.peaks == 1 else visibility > 0
    drawn, visibility = _by_peak(points, spec.peaks), _by_peak(visibility * inside, spec.peaks)

    def draw(least: int, sigma: float) -> Tensor:
        return ops.render(
            drawn,
            visibility >= least,
            spec.cells,
            sigma=sigma,
            style="megvii",
            peak_value=spec.peak_value,
        )

    ordered = sigmas[::-1] if spec.kwargs["style"] == "tf" else sigmas
    whole = _by_peak(weights, spec.peaks).all(dim=1).to(points)
    return [draw(2, sigma) for sigma in ordered], draw(1, sigmas[-1]), whole


def _published_sigmas(spec: ModelSpec) -> tuple[float, ...]:
    if spec.cells not in MEGVII_SIGMAS:
        known = " and ".join(f"{h}x{w}" for h, w in MEGVII_SIGMAS)
        raise ModelError(
            f"{spec.name}: kernels are published for maps of {known} cells, "
            f"not of {spec.cells[0]}x{spec.cells[1]}"
        )
    return MEGVII_SIGMAS[spec.cells]


def _by_peak(values: Tensor, peaks: int) -> Tensor:
    """[N, K, ...] of joints -> [N, peaks, K / peaks, ...]: those of one map are neighbours."""
    return values.unflatten(1, (-1, peaks)).transpose(1, 2)


def to_cells(
    joints: Tensor, spec: ModelSpec, size: tuple[int, int], cells: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Window pixels [N, K, 2] -> cells, and [N, K] 1 where the cell is in the map, else 0."""
    affine = torch.from_numpy(invert(grid(spec.convention, size, cells))).to(joints)
    points = joints @ affine[:, :2].T + affine[:, 2]
    limit = torch.tensor([cells[1], cells[0]]).to(points)
    return points, ((points >= -0.5) & (points < limit - 0.5)).all(dim=-1).to(points)
