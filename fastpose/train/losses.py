"""Losses on heat maps."""

from __future__ import annotations

from torch import Tensor


def joint_errors(maps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """[N, K] mean squared error of each map, times its weight.

    Args:
        maps, targets: [N, K, h, w].
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
        maps, targets: [N, K, h, w].
        weights: [N, K].
        top: M, how many joints; at most K.
        reduce: "mean" divides by M, as the released code does; "sum" does not, as the paper says.
    """
    worst = joint_errors(maps, targets, weights).topk(top, dim=1).values
    return (worst.mean(dim=1) if reduce == "mean" else worst.sum(dim=1)).mean()
