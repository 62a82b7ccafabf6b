"""What each network is trained for: its published targets and loss, chosen by its spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastpose.errors import ModelError
from fastpose.models.spec import ModelSpec
from fastpose.train.losses import cpn_loss, hard_keypoint_loss, mean_loss
from fastpose.train.targets import cascade_targets, megvii_targets

Objective: TypeAlias = Callable[[Any, Tensor, Tensor, tuple[int, int]], Tensor]
"""(network's output, joints [N, K, 2] in window pixels, visibility [N, K], (h, w)) -> loss."""


def objective(spec: ModelSpec, hard: int) -> Objective:
    """The loss of a network.

    Args:
        spec: of the network.
        hard: M of online hard keypoint mining.

    Raises:
        ModelError: nothing is known of how this network is trained.
    """
    match spec.network:
        case "cpn_light:LightCPN":
            return _light(spec, hard)
        case "cpn:CPN":
            return _published(spec, hard)
    raise ModelError(f"{spec.name} cannot be trained here")


def _light(spec: ModelSpec, hard: int) -> Objective:
    """GlobalNet's plain loss on every level and RefineNet's mined one, both unweighted.

    Hidden joints count on both, and windows may have any size.
    """

    def loss(output: Any, joints: Tensor, visibility: Tensor, size: tuple[int, int]) -> Tensor:
        coarse, refined = output
        labelled = (visibility > 0).to(joints)
        targets, weights = cascade_targets(joints, labelled, spec, size)
        refine = hard_keypoint_loss(refined, targets[-1], weights, hard)
        levels = zip(coarse, targets, strict=True)
        plain = [mean_loss(maps, target, weights) for maps, target in levels]
        return refine + torch.stack(plain).sum()

    return loss


def _published(spec: ModelSpec, hard: int) -> Objective:
    """Chen et al., Cascaded Pyramid Network, CVPR 2018, as its code was released."""

    def loss(output: Any, joints: Tensor, visibility: Tensor, size: tuple[int, int]) -> Tensor:
        if size != spec.size:
            raise ModelError(
                f"{spec.name} is trained at {spec.size[0]}x{spec.size[1]}, got {size[0]}x{size[1]}"
            )
        targets = megvii_targets(joints, visibility, spec)
        return cpn_loss(output, targets, style=spec.kwargs["style"], top=hard)

    return loss
