"""What each network is trained for: its published targets and loss, chosen by its spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastpose.errors import ModelError
from fastpose.models.parts import part_tree
from fastpose.models.spec import ModelSpec
from fastpose.train.cpm import cpm_loss, cpm_targets
from fastpose.train.losses import (
    cpn_loss,
    global_loss,
    hard_keypoint_loss,
    hard_pixel_loss,
    mean_loss,
)
from fastpose.train.pbn import stacked_loss, stacked_targets
from fastpose.train.structured import LIMB_RATIOS, structured_loss
from fastpose.train.targets import MEGVII_SIGMAS, cascade_targets, megvii_targets
from fastpose.train.tompson import cascade_loss

Objective: TypeAlias = Callable[[Any, Tensor, Tensor, tuple[int, int]], Tensor]
"""(network's output, joints [N, K, 2] in window pixels, visibility [N, K], (h, w)) -> loss."""


def objective(spec: ModelSpec, hard: int, hard_cells: float = 0.25) -> Objective:
    """The loss of a network.

    Args:
        spec: of the network.
        hard: M of online hard keypoint mining.
        hard_cells: `share` of `hard_pixel_loss`, where a map holds several joints.

    Raises:
        ModelError: nothing is known of how this network is trained.
    """
    match spec.network:
        case "cpn_light:LightCPN":
            return _light(spec, hard)
        case "cpn:CPN" if spec.peaks > 1:
            return _peaks(spec, hard_cells)
        case "cpn:CPN":
            return _published(spec, hard)
        case "cpn:CPNStar":
            return _published(spec, None)
        case "cpm:CPM" | "cpm:CPMVGG":
            return _pose_machine(spec)
        case "structured:Structured":
            return _structured(spec)
        case "pbn:PBN" | "hourglass:StackedHourglass" | "cpm:CPMBatchNorm":
            return _stacked(spec)
        case "tompson:Cascade":
            return cascade_objective(spec)
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


def _published(spec: ModelSpec, top: int | None) -> Objective:
    """Chen et al., Cascaded Pyramid Network, CVPR 2018, as its code was released.

    Of a GlobalNet without RefineNet, its own term.
    """

    def loss(output: Any, joints: Tensor, visibility: Tensor, size: tuple[int, int]) -> Tensor:
        if size != spec.size:
            raise ModelError(
                f"{spec.name} is trained at {spec.size[0]}x{spec.size[1]}, got {size[0]}x{size[1]}"
            )
        targets = megvii_targets(joints, visibility, spec)
        style = spec.kwargs["style"]
        if output[1] is None:
            return global_loss(output[0], targets[0], style=style)
        return cpn_loss(output, targets, style=style, top=top)

    return loss


def _peaks(spec: ModelSpec, share: float) -> Objective:
    """CPN's loss with cells mined in the place of joints; windows may have any size.

    A joint is as large in each of them, so the kernels are those of 256x192.
    """

    def loss(output: Any, joints: Tensor, visibility: Tensor, size: tuple[int, int]) -> Tensor:
        coarse, refined = output
        sized = replace(spec, size=size)
        coarse_targets, target, weights = megvii_targets(
            joints, visibility, sized, MEGVII_SIGMAS[64, 48]
        )
        plain = global_loss(coarse, coarse_targets, style=spec.kwargs["style"])
        return plain + hard_pixel_loss(refined, target, weights, share, spec.peak_value)

    return loss


def _pose_machine(spec: ModelSpec) -> Objective:
    """Wei et al., Convolutional Pose Machines, CVPR 2016.

    Stage 1 would learn all the people of a window; the data knows of one, so it learns that one.
    Windows may have any size.
    """

    def loss(output: Any, joints: Tensor, visibility: Tensor, size: tuple[int, int]) -> Tensor:
        return cpm_loss(output, *cpm_targets(joints, visibility > 0, spec, size))

    return loss


def _structured(spec: ModelSpec) -> Objective:
    """Chu et al., Structured Feature Learning, CVPR 2016: as released for LSP, else as published.

    Windows may have any size.
    """
    tree = part_tree(spec.tree)
    sampling = "ring" if tree.name in LIMB_RATIOS else "uniform"

    def loss(output: Any, joints: Tensor, visibility: Tensor, size: tuple[int, int]) -> Tensor:
        return structured_loss(output, joints, visibility > 0, tree, neg_sampling=sampling)

    return loss


def _stacked(spec: ModelSpec) -> Objective:
    """Newell et al., Stacked Hourglass Networks, ECCV 2016; Tang and Wu, PBN, CVPR 2019.

    Windows may have any size.
    """

    def loss(output: Any, joints: Tensor, visibility: Tensor, size: tuple[int, int]) -> Tensor:
        labelled = (visibility > 0).to(joints)
        return stacked_loss(output, *stacked_targets(joints, labelled, spec, size))

    return loss


def cascade_objective(spec: ModelSpec, phase: int = 3) -> Objective:
    """Tompson et al., Efficient Object Localization Using Convolutional Networks, CVPR 2015.

    Windows may have any size. `phase` is that of `train.tompson.set_phase`.
    """

    def loss(output: Any, joints: Tensor, visibility: Tensor, size: tuple[int, int]) -> Tensor:
        labelled = (visibility > 0).to(joints)
        return cascade_loss(output, joints, labelled, spec, size, phase=phase)

    return loss
