"""What the Tompson cascade is taught, and in which order."""

from __future__ import annotations

from torch import Tensor

from fastpose import ops
from fastpose.errors import ModelError
from fastpose.models.cascade import FINE, FINE_STRIDE, SNAP
from fastpose.models.spec import ModelSpec
from fastpose.models.tompson import Cascade, CascadeMaps
from fastpose.train.losses import mean_loss
from fastpose.train.targets import to_cells

LAMBDA = 0.1  # weight of the fine network's error where both networks learn
PHASES = (1, 2, 3)  # the coarse network, the fine one behind it, both


def set_phase(network: Cascade, phase: int) -> None:
    """Choose what of a cascade, in training mode, learns.

    1: the coarse network, and nothing else is computed. 2: the fine network; the coarse one is as
    in prediction, without dropout, and stays as it is. 3: both.

    Raises:
        ValueError: `phase` is none of these.
        ModelError: the network has no fine network to train.
    """
    if phase not in PHASES:
        raise ValueError(f"phase must be 1, 2 or 3, got {phase!r}")
    if phase != 1 and network.fine is None:
        raise ModelError(f"phase {phase} needs a fine network, and there is none")
    network.coarse_only = phase == 1
    network.coarse.requires_grad_(phase != 2).train(phase != 2)
    for part in (network.fine, network.picture):
        if part is not None:
            part.requires_grad_(phase != 1)


def phase_at(epoch: int, epochs: int) -> int:
    """The phase of an epoch, counted from 0: each of the three has a third of the epochs."""
    return 1 + len(PHASES) * epoch // epochs


def cascade_loss(
    output: CascadeMaps,
    joints: Tensor,
    labelled: Tensor,
    spec: ModelSpec,
    size: tuple[int, int],
    *,
    phase: int = 3,
    weight: float = LAMBDA,
) -> Tensor:
    """E1 of the coarse maps, E2 of the fine ones, or E3 = E1 + weight * E2: one for each phase.

    Tompson, Goroshin, Jain, LeCun, Bregler, Efficient Object Localization Using Convolutional
    Networks, CVPR 2015.

    Args:
        output: of the network; with fine maps but for phase 1.
        joints: [N, J, 2] (x, y) in input pixels.
        labelled: [N, J], 0 or 1.
        spec: of the network.
        size: (h, w) of the input.
        phase: as in `set_phase`.
        weight: lambda.
    """
    if phase == 1:
        return coarse_error(output, joints, labelled, spec, size)
    fine = fine_error(output, joints, labelled, spec)
    if phase == 2:
        return fine
    return coarse_error(output, joints, labelled, spec, size) + weight * fine


def coarse_error(
    output: CascadeMaps, joints: Tensor, labelled: Tensor, spec: ModelSpec, size: tuple[int, int]
) -> Tensor:
    """E1: squared error summed over a map, then the mean over all joints and pictures.

    A joint without a label adds 0. One outside the picture is taught an empty map. Arguments as in
    `cascade_loss`.
    """
    cells = size[0] // spec.stride, size[1] // spec.stride
    points, inside = to_cells(joints, spec, size, cells)
    return _map_error(output.coarse, points, inside, labelled, spec)


def fine_error(output: CascadeMaps, joints: Tensor, labelled: Tensor, spec: ModelSpec) -> Tensor:
    """E2: as `coarse_error`, of the windows' maps; a joint outside its window has an empty one."""
    assert output.fine is not None, "made by every phase but the first"
    assert output.corners is not None, "it comes with the fine maps"
    points = (joints + 0.5 - SNAP * output.corners) / FINE_STRIDE - 0.5
    inside = ((points >= -0.5) & (points < FINE - 0.5)).all(dim=2)
    return _map_error(output.fine, points, inside, labelled, spec)


def _map_error(
    maps: Tensor, points: Tensor, inside: Tensor, labelled: Tensor, spec: ModelSpec
) -> Tensor:
    size = (maps.shape[2], maps.shape[3])
    targets = ops.render(
        points, labelled * inside, size, sigma=spec.sigma, peak_value=spec.peak_value
    )
    return mean_loss(maps, targets, labelled) * size[0] * size[1]
