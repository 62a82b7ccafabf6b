"""What structured feature learning is taught: labels in few cells, and which cells count.

Chu, Ouyang, Li, Wang, Structured Feature Learning for Pose Estimation, CVPR 2016, and the code that
its authors released for LSP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.models.parts import PartTree
from fastpose.models.structured import STRIDE, Structured

SAMPLING = ("uniform", "ring")

UNIFORM_SHARE = 5e-4  # of all negative cells, in the paper
RING = (0.4, 0.5)  # radii in pose scales, the inner one rounded down and the outer one up
RING_KEEP, RING_WEIGHT = 0.5, 0.5
EMPTY_KEEP = 0.01  # of a picture without people

# Median lengths of the limbs, from part 1 on, in lengths of the first: of the 1000 training
# pictures of LSP; tests/train/test_structured_loss.py measures them again.
LIMB_RATIOS = {
    "lsp26": (
        1.0, 0.747, 0.615, 0.615, 0.541, 0.541, 0.799, 0.799, 0.799, 0.885, 0.885, 0.926, 0.926,
        0.767, 0.607, 0.607, 0.558, 0.558, 0.791, 0.791, 0.791, 0.881, 0.881, 0.955, 0.955,
    ),
}  # fmt: skip
SMALLEST_LIMB = 18.0  # pixels; shorter first limbs are not believed


@dataclass(frozen=True)
class PartLabels:
    """Where the parts of N people are, and which.

    Attributes:
        cells: [N, P, 2] (x, y) of the cell of each part, in the map or outside; whole.
        known: [N, P] bool.
        types: [N, P] of T.
        count: T.
    """

    cells: Tensor
    known: Tensor
    types: Tensor
    count: int


def label_cells(points: Tensor) -> Tensor:
    """The cell that is taught for a point, as released: [..., 2] window pixels -> whole cells.

    With pixels and cells counted from 1 that is round((x + 4) / 8). The points of cell g then lie
    around 8 g + 3, half a pixel from the centre of the 8 pixels that the cell was pooled from.
    """
    return torch.floor((points - 3) / STRIDE + 0.5)


def part_labels(joints: Tensor, labelled: Tensor, tree: PartTree) -> PartLabels:
    """Cells and types of the parts of N people.

    A part is known if its joints are, and, where it has types, if the part that tells its type is.

    Args:
        joints: [N, K, 2] (x, y) in window pixels.
        labelled: [N, K] bool.
        tree: of the parts.
    """
    parts, known = _to_parts(joints, labelled, tree)
    types = tree.nearest_types(parts / STRIDE)
    if tree.types > 1:
        known = known & np.isfinite(tree.offsets(parts)).all(axis=-1)
    here = torch.from_numpy(np.nan_to_num(parts)).to(joints)
    return PartLabels(
        label_cells(here),
        torch.from_numpy(known).to(joints.device),
        torch.from_numpy(types).to(joints.device),
        tree.types,
    )


def label_maps(labels: PartLabels, cells: tuple[int, int]) -> Tensor:
    """[N, P * T + 1, h, w] what each cell is to be taken for, of sum 1.

    The types of the parts in a cell share it equally; a cell without one is background, the last.
    """
    h, w = cells
    n, p = labels.known.shape
    x, y = labels.cells.long().unbind(-1)
    inside = labels.known & (x >= 0) & (x < w) & (y >= 0) & (y < h)
    channel = torch.arange(p, device=x.device) * labels.count + labels.types
    person = torch.arange(n, device=x.device)[:, None].expand(n, p)
    maps = torch.zeros(n, p * labels.count + 1, h, w, device=x.device)
    maps[person[inside], channel[inside], y[inside], x[inside]] = 1.0
    hits = maps.sum(dim=1)
    maps[:, -1] = (hits == 0).float()
    return maps / hits.clamp(min=1)[:, None]


def uniform_cells(
    targets: Tensor, share: float = UNIFORM_SHARE, generator: torch.Generator | None = None
) -> Tensor:
    """[N, h, w] weight of each cell, as in the paper: the parts', and few of all others.

    Args:
        targets: of `label_maps`.
        share: chance of a cell without a part.
        generator: decides; None for torch's own.
    """
    positive = targets[:, -1] == 0
    return (positive | (_random(positive, generator) < share)).float()


def ring_cells(
    targets: Tensor, labels: PartLabels, scales: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """[N, h, w] weight of each cell, as released: the parts', and half of those around them.

    With g the pose's scale, a cell more than floor(0.4 g) cells from all parts, and at most
    ceil(0.5 g) from one, is taken with a chance of a half and has a weight of a half. All others
    but the parts' are nothing to the loss. Where there is no part in the whole picture, each cell
    is taken with a chance of 0.01, with a weight of a half.

    Args:
        targets: of `label_maps`.
        labels: that they were made of.
        scales: [N] g in cells, of `pose_scales`.
        generator: decides; None for torch's own.
    """
    positive = targets[:, -1] == 0
    h, w = positive.shape[1:]
    x, y = (labels.cells[..., axis, None, None] for axis in (0, 1))
    dx = torch.arange(w, device=x.device) - x  # [N, P, 1, w]
    dy = torch.arange(h, device=x.device)[:, None] - y  # [N, P, h, 1]
    away = torch.where(labels.known[..., None, None], (dx**2 + dy**2).sqrt(), torch.inf)
    nearest = away.amin(dim=1)
    inner, outer = ((scale * scales)[:, None, None] for scale in RING)
    ring = (nearest > inner.floor()) & (nearest <= outer.ceil())
    empty = ~positive.any(dim=(1, 2), keepdim=True)
    chance = torch.where(empty, EMPTY_KEEP, RING_KEEP * ring)
    taken = _random(positive, generator) < chance
    return torch.where(positive, 1.0, RING_WEIGHT * taken)


def pose_scales(joints: Tensor, labelled: Tensor, tree: PartTree) -> Tensor:
    """[N] half the extent of a part in cells: how large a person is drawn.

    Each limb gives the length that the tree's first limb should have; their 75 % quantile counts,
    but at least 18 pixels. (As released, but in pixels of the window and not of the picture.)

    Args:
        joints: [N, K, 2] (x, y) in window pixels.
        labelled: [N, K] bool.
        tree: of the parts.

    Raises:
        ModelError: nobody measured how long the limbs of this tree are.
    """
    if tree.name not in LIMB_RATIOS:
        known = ", ".join(LIMB_RATIOS)
        raise ModelError(f"lengths of limbs are known for {known}, not for {tree.name}")
    parts, _ = _to_parts(joints, labelled, tree)
    first = np.ma.masked_invalid(limb_lengths(parts, tree) / np.array(LIMB_RATIOS[tree.name]))
    scales = [
        np.quantile(row.compressed(), 0.75, method="hazen") if row.count() else 0.0 for row in first
    ]
    return torch.tensor(scales).to(joints).clamp(min=SMALLEST_LIMB) / STRIDE


def limb_lengths(parts: npt.NDArray[np.floating], tree: PartTree) -> npt.NDArray[np.floating]:
    """[N, P - 1] how far each part but the root, in order, is from its parent."""
    children = [part for part, parent in enumerate(tree.parents) if parent >= 0]
    parents = [tree.parents[part] for part in children]
    return np.linalg.norm(parts[:, children] - parts[:, parents], axis=-1)


def divergence(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the targets, over the cells that were selected.

    The sum, each cell with its weight, is divided by the number of cells, not of their weights.

    Args:
        logits: [N, C, h, w], the network's output.
        targets: [N, C, h, w] of `label_maps`.
        weights: [N, h, w] of `uniform_cells` or `ring_cells`; 0 leaves a cell out.
    """
    selected = weights > 0
    found = logits.movedim(1, -1)[selected].float().log_softmax(dim=-1)
    each = F.kl_div(found, targets.movedim(1, -1)[selected], reduction="none").sum(dim=-1)
    return (each * weights[selected]).sum() / max(1, len(each))


def structured_loss(
    logits: Tensor,
    joints: Tensor,
    labelled: Tensor,
    tree: PartTree,
    *,
    neg_sampling: str = "uniform",
    share: float = UNIFORM_SHARE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The network's loss on N people.

    Args:
        logits: [N, P * T + 1, h, w], the network's output.
        joints: [N, K, 2] (x, y) in window pixels.
        labelled: [N, K] bool.
        tree: of the parts.
        neg_sampling: how cells without a part are selected: "uniform", `uniform_cells`, as in the
            paper, or "ring", `ring_cells`, as released for LSP.
        share: of `uniform_cells`.
        generator: decides; None for torch's own.

    Raises:
        ValueError: `neg_sampling` is neither.
        ModelError: "ring" was asked for a tree that `pose_scales` does not know.
    """
    if neg_sampling not in SAMPLING:
        raise ValueError(f"neg_sampling must be {' or '.join(SAMPLING)}, got {neg_sampling!r}")
    labels = part_labels(joints, labelled, tree)
    targets = label_maps(labels, (logits.shape[2], logits.shape[3]))
    if neg_sampling == "uniform":
        weights = uniform_cells(targets, share, generator)
    else:
        weights = ring_cells(targets, labels, pose_scales(joints, labelled, tree), generator)
    return divergence(logits, targets, weights)


def structured_parameter_groups(network: Structured, decay: float) -> list[dict[str, Any]]:
    """For an optimiser: parameters with the factors of rate and decay as released for LSP.

    What is not VGG's learns ten times as fast, biases twice as fast as their kernels, a norm at the
    plain rate. Kernels decay, those of messages twice as much; nothing else does.

    Args:
        network: the parameters' own.
        decay: weight decay of the trunk's kernels.
    """
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            factor, share = 1.0 if path.startswith("trunk") else 10.0, 0.0
            if isinstance(module, nn.BatchNorm2d):
                factor = 1.0
            elif name == "bias":
                factor *= 2
            else:
                share = 2.0 if path.startswith("transforms") else 1.0
            members.setdefault((factor, share), []).append(parameter)
    return [
        {"params": found, "factor": factor, "weight_decay": decay * share}
        for (factor, share), found in members.items()
    ]


def _to_parts(
    joints: Tensor, labelled: Tensor, tree: PartTree
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.bool_]]:
    """Of tensors on any device: see `PartTree.joints_to_parts`."""
    return tree.joints_to_parts(joints.detach().cpu().numpy(), labelled.cpu().numpy())


def _random(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device)
