"""Losses on heat maps."""

from __future__ import annotations

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


def cpn_loss(
    maps: tuple[list[Tensor], Tensor],
    targets: tuple[list[Tensor], Tensor, Tensor],
    *,
    style: str,
    top: int = 8,
    ohkm_reduce: str = "mean",
) -> Tensor:
    """The loss of the published CPN: plain on GlobalNet's levels, mined on RefineNet's map.

    Chen et al., Cascaded Pyramid Network for Multi-Person Pose Estimation, CVPR 2018.

    Args:
        maps: the network's output, four coarse maps and the refined one, [N, K, h, w] each.
        targets: of `megvii_targets`.
        style: GlobalNet's term is half of the sum ("torch") or of the mean ("tf") of its levels.
        top: M of `hard_keypoint_loss`.
        ohkm_reduce: `reduce` of `hard_keypoint_loss`.

    Raises:
        ValueError: `style`, `top` or `ohkm_reduce` is not as above.
    """
    if style not in ("torch", "tf"):
        raise ValueError(f"style must be torch or tf, got {style!r}")
    (coarse, refined), (coarse_targets, refined_target, weights) = maps, targets
    levels = torch.stack(
        [
            mean_loss(level, target, torch.ones_like(weights))
            for level, target in zip(coarse, coarse_targets, strict=True)
        ]
    )
    plain = (levels.sum() if style == "torch" else levels.mean()) / 2
    return plain + hard_keypoint_loss(refined, refined_target, weights, top, ohkm_reduce)
