"""PBN, the part-based branching network: features of their own for each group of joints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.models.groups import Partition, partition
from fastpose.models.hourglass import DEPTH, Hourglass, Residual
from fastpose.models.layers import check_image

PROPAGATE = ("shared", "specific")


class PBN(nn.Module):
    """A shared hourglass, then a small branch for each group of related joints; all that stacked.

    Tang and Wu, Does Learning Specific Features for Related Parts Help Human Pose Estimation?,
    CVPR 2019. The number of stacks of the published model is not known to us; eight are the
    hourglass's. Nor is it known whether its convolutions outside the residuals are normed; ours of
    the stem are, and the branches' first ones are not, as a residual begins with a norm.

    Each stack adds its shared features to its input, whose shortcuts alone add up to five copies of
    it, so that features grow about sixfold from stack to stack until training stems that. Without
    norm behind the branches' first convolution the maps grow likewise, and eight stacks did not
    learn in our trials; with `norm_branches` they did, from the first batch. Eight untrained stacks
    also leave the range of half precision, unless `remap_features` damps them; bfloat16 holds them.

    Args:
        num_keypoints: K.
        groups: the joints of each branch, G of them, or their name in `fastpose.models.groups`.
        stacks: T.
        width: W, channels of a branch.
        depth: D, residuals of a branch.
        propagate: what the next stack is told beside the maps: the "shared" features or the
            branches' "specific" ones, which the authors found to be worse.
        remap_features: the shared features pass a 1x1 convolution first, as the hourglass's do;
            the specific ones always do.
        norm_branches: norm and ReLU behind the branches' first convolutions; see above.
        channels: of the shared features, a multiple of 4.

    Raises:
        ModelError: an argument is not as above, or the groups are of another number of joints.
    """

    def __init__(
        self,
        num_keypoints: int,
        groups: str | Partition = "mpii16-hand6",
        stacks: int = 8,
        width: int = 64,
        depth: int = 1,
        propagate: str = "shared",
        remap_features: bool = False,
        norm_branches: bool = False,
        channels: int = 256,
    ) -> None:
        super().__init__()
        parts = partition(groups) if isinstance(groups, str) else groups
        if len(parts.owners) != num_keypoints:
            raise ModelError(
                f"{parts.name} groups {len(parts.owners)} joints, the network has {num_keypoints}"
            )
        odd = width % 2 or channels % 4
        if min(stacks, width, channels) < 1 or odd or depth < 0 or propagate not in PROPAGATE:
            raise ModelError(
                "PBN needs stacks from 1 on, an even width, a depth from 0 on, channels in "
                f"multiples of 4 and propagate {' or '.join(PROPAGATE)}, got {stacks}, {width}, "
                f"{depth}, {channels} and {propagate!r}"
            )
        self.propagate = propagate
        quarter, half = channels // 4, channels // 2
        self.stem = nn.Sequential(
            *_conv(3, quarter),
            nn.MaxPool2d(2),
            *_conv(quarter, quarter),
            *_conv(quarter, quarter),
            Residual(quarter, half),
            nn.MaxPool2d(2),
            Residual(half, half),
            Residual(half, channels),
        )
        self.trunks = nn.ModuleList(
            nn.Sequential(Hourglass(DEPTH, channels), Residual(channels, channels))
            for _ in range(stacks)
        )
        self.branches = nn.ModuleList(
            Branches(parts, channels, width, depth, norm_branches) for _ in range(stacks)
        )
        told = channels if propagate == "shared" else len(parts.groups) * width
        remapped = remap_features or propagate == "specific"
        self.remap_features = nn.ModuleList(
            nn.Conv2d(told, channels, 1) if remapped else nn.Identity() for _ in range(stacks - 1)
        )
        self.remap_maps = nn.ModuleList(
            nn.Conv2d(num_keypoints, channels, 1) for _ in range(stacks - 1)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N, 3, h, w] -> the maps of each stack, [N, K, h / 4, w / 4]; a peak is 1 high.

        Raises:
            ValueError: the image is not as above, or h or w is no multiple of 64.
        """
        check_image(image, (3,), 4 * 2**DEPTH)
        x = self.stem(image)
        maps = []
        for stack, (trunk, branches) in enumerate(zip(self.trunks, self.branches, strict=True)):
            shared = trunk(x)
            specific, heatmaps = branches(shared)
            maps.append(heatmaps)
            if stack < len(self.remap_maps):
                told = shared if self.propagate == "shared" else specific
                x = x + self.remap_maps[stack](heatmaps) + self.remap_features[stack](told)
        return maps

    def predict(self, image: Tensor) -> Tensor:
        """[N, 3, h, w] -> the maps of the last stack, [N, K, h / 4, w / 4]."""
        return self.forward(image)[-1]


class Branches(nn.Module):
    """The branches of all groups at once: what belongs to one group never meets another.

    The first 1x1 convolutions of G branches are one with G * W channels, their residuals one
    grouped residual; norms work channel by channel as it is.

    Args:
        parts: G groups of K joints.
        channels: C of the shared features.
        width: W, channels of a branch.
        depth: D, residuals of a branch.
        norm: norm and ReLU behind the first convolutions.
    """

    def __init__(
        self, parts: Partition, channels: int, width: int, depth: int, norm: bool = False
    ) -> None:
        super().__init__()
        count = len(parts.groups)
        self.enter = nn.Conv2d(channels, count * width, 1)
        self.norm = (
            nn.Sequential(nn.BatchNorm2d(count * width), nn.ReLU()) if norm else nn.Identity()
        )
        self.residuals = nn.Sequential(
            *(
                Residual(count * width, count * width, count * width // 2, groups=count)
                for _ in range(depth)
            )
        )
        self.maps = GroupedMaps(parts, width)

    def forward(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, h, w] -> specific features [N, G * W, h, w] and heat maps [N, K, h, w]."""
        specific = self.residuals(self.norm(self.enter(shared)))
        return specific, self.maps(specific)


class GroupedMaps(nn.Module):
    """A 1x1 convolution from the features of each joint's group to its heat map.

    Groups differ in size, so this is one convolution of all features whose kernel is 0 outside the
    joint's own group. It gives the maps in the order of the joints. The kernels start near 0, as
    those of Xiao et al., Simple Baselines for Human Pose Estimation and Tracking, ECCV 2018: the
    features are not normed, and kernels of the usual strength would begin with maps a hundred times
    as strong as the true ones.

    Args:
        parts: G groups of K joints.
        width: W, channels of a group's features.
    """

    def __init__(self, parts: Partition, width: int) -> None:
        super().__init__()
        joints = len(parts.owners)
        self.weight = nn.Parameter(torch.empty(joints, width, 1, 1))  # a row sees its own group
        self.bias = nn.Parameter(torch.zeros(joints))
        nn.init.normal_(self.weight, std=0.001)
        self.before = [group * width for group in parts.owners]
        self.channels = len(parts.groups) * width

    def forward(self, specific: Tensor) -> Tensor:
        """[N, G * W, h, w] -> [N, K, h, w]."""
        rows = [
            F.pad(row, (0, 0, 0, 0, before, self.channels - before - len(row)))
            for row, before in zip(self.weight, self.before, strict=True)
        ]
        return F.conv2d(specific, torch.stack(rows), self.bias)


def _conv(cin: int, cout: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)
