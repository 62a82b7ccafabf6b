"""Losses on heat maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def joint_errors(maps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """[N, K] mean squared error of each map, times its weight.

    Args:
        maps: [N, K, h, w].
        targets: [N, K, h, w].
        weights: [N, K]; 0 leaves a joint out.
    """
    return (maps.float() - targets).square().mean(dim=(2, 3)) * weights


def mean_loss(maps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean of `joint_errors` over all joints, those left out counting as 0."""
    return joint_errors(maps, targets, weights).mean()


def hard_keypoint_loss(
    maps: Tensor, targets: Tensor, weights: Tensor, top: int, reduce: str = "mean"
) -> Tensor:
    """Online hard keypoint mining: only the `top` worst joints of each sample count.

    Chen et al., Cascaded Pyramid Network for Multi-Person Pose Estimation, CVPR 2018.

    Args:
        maps: [N, K, h, w].
        targets: [N, K, h, w].
        weights: [N, K].
        top: M, how many joints; at most K.
        reduce: "mean" divides by M, as the released code does; "sum" does not, as the paper says.

    Raises:
        ValueError: `top` is not from 1 to K, or `reduce` is neither of the two.
    """
    if not 1 <= top <= maps.shape[1]:
        raise ValueError(f"top must be 1 to {maps.shape[1]} joints, got {top}")
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce must be mean or sum, got {reduce!r}")
    worst = joint_errors(maps, targets, weights).topk(top, dim=1).values
    return (worst.mean(dim=1) if reduce == "mean" else worst.sum(dim=1)).mean()


def hard_pixel_loss(
    maps: Tensor,
    targets: Tensor,
    weights: Tensor,
    share: float = 0.25,
    peak_value: float = 255.0,
) -> Tensor:
    """Online hard mining of cells, for maps that hold several joints each.

    Per sample the mean squared error of the hardest cells of all its maps, and of every cell near
    a joint. With all cells it is `mean_loss`. A map is too few to choose joints from, so CPN's
    mining (Chen et al., CVPR 2018) goes to its cells; which and how many is our own choice.

    Args:
        maps: [N, C, h, w].
        targets: [N, C, h, w].
        weights: [N, C]; 0 leaves a map out.
        share: of the cells of a sample that count as hard, above 0 and at most 1.
        peak_value: height of a target's peak; cells above 1 % of it always count.

    Raises:
        ValueError: `share` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    errors = ((maps.float() - targets).square() * weights[..., None, None]).flatten(1)
    hardest = errors.topk(math.ceil(share * errors.shape[1]), dim=1).indices
    kept = (targets.flatten(1) > peak_value / 100).scatter(1, hardest, value=True)
    return ((errors * kept).sum(dim=1) / kept.sum(dim=1)).mean()


def global_loss(maps: list[Tensor], targets: list[Tensor], *, style: str) -> Tensor:
    """The plain loss of GlobalNet's levels: every joint counts, with an empty target too.

    Args:
        maps: of the levels, [N, K, h, w] each.
        targets: likewise.
        style: half of the sum ("torch") or of the mean ("tf") of the levels' mean squares.

    Raises:
        ValueError: `style` is neither of the two.
    """
    if style not in ("torch", "tf"):
        raise ValueError(f"style must be torch or tf, got {style!r}")
    everything = maps[0].new_ones(maps[0].shape[:2])
    levels = torch.stack(
        [mean_loss(level, target, everything) for level, target in zip(maps, targets, strict=True)]
    )
    return (levels.sum() if style == "torch" else levels.mean()) / 2


def cpn_loss(
    maps: tuple[list[Tensor], Tensor],
    targets: tuple[list[Tensor], Tensor, Tensor],
    *,
    style: str,
    top: int | None = 8,
    ohkm_reduce: str = "mean",
) -> Tensor:
    """The loss of the published CPN: plain on GlobalNet's levels, mined on RefineNet's map.

    Chen et al., Cascaded Pyramid Network for Multi-Person Pose Estimation, CVPR 2018.

    Args:
        maps: the network's output, four coarse maps and the refined one, [N, K, h, w] each.
        targets: of `megvii_targets`.
        style: of `global_loss`.
        top: M of `hard_keypoint_loss`; None mines nothing, which makes the paper's CPN*.
        ohkm_reduce: `reduce` of `hard_keypoint_loss`.

    Raises:
        ValueError: `style`, `top` or `ohkm_reduce` is not as above.
    """
    (coarse, refined), (coarse_targets, refined_target, weights) = maps, targets
    plain = global_loss(coarse, coarse_targets, style=style)
    if top is None:
        return plain + mean_loss(refined, refined_target, weights)
    return plain + hard_keypoint_loss(refined, refined_target, weights, top, ohkm_reduce)
