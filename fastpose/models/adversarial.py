"""Adversarial PoseNet: a generator of pose and occlusion maps, and its two discriminators."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.models.hourglass import DEPTH, Hourglass, Residual
from fastpose.models.layers import check_image, check_joints


class StackMaps(NamedTuple):
    """What one stack of the generator says.

    Attributes:
        pose: [N, K, h, w], a peak of 1 at each joint.
        occlusion: [N, K, h, w], a peak of 1 at each joint that is hidden; None of a generator
            that was made without these maps.
    """

    pose: Tensor
    occlusion: Tensor | None

    @property
    def joined(self) -> Tensor:
        """All maps, pose before occlusion, as the discriminators take them: [N, 2 K or K, h, w]."""
        return self.pose if self.occlusion is None else torch.cat(self, dim=1)


class AdversarialPoseNet(nn.Module):
    """The generator G of Adversarial PoseNet, the only part that runs in prediction.

    Chen, Shen, Wei, Liu, Yang, Adversarial PoseNet: A Structure-aware Convolutional Network for
    Human Pose Estimation, ICCV 2017. Each stack is two hourglasses in a row: the first finds the
    joints, the second, which sees its features too, those that are hidden. The maps of both are
    brought back to the width of the image's features X and added to them: the next stack's input.

    The paper leaves open the widths of the stem, the depth of an hourglass, the inside of its
    residuals and whether anything stands between the two convolutions of a head; here they are
    those of the stacked hourglass that it follows, and nothing.

    Args:
        num_keypoints: K.
        stacks: number of stacks.
        channels: of the features.
        stem: channels of the first convolution, and of the residuals before the features.
        depth: how often an hourglass halves the resolution.
        occlusion: False leaves out the second hourglasses and the occlusion maps: the
            single-task network of the paper's ablation.

    Raises:
        ModelError: an argument is not as above.
    """

    def __init__(
        self,
        num_keypoints: int = 16,
        stacks: int = 4,
        channels: int = 512,
        stem: tuple[int, int] = (64, 128),
        depth: int = DEPTH,
        occlusion: bool = True,
    ) -> None:
        super().__init__()
        check_joints(num_keypoints)
        widths = (channels, *stem)
        if min(stacks, depth, *widths) < 1 or any(width % 2 for width in widths):
            raise ModelError(
                "AdversarialPoseNet needs stacks and depth from 1 on and even channels and stem, "
                f"got {stacks}, {depth}, {channels} and {stem}"
            )
        self.multiple = 4 * 2**depth
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem[0], 7, 2, padding=3),
            nn.BatchNorm2d(stem[0]),
            nn.ReLU(inplace=True),
            Residual(stem[0], stem[1]),
            nn.MaxPool2d(2),
            Residual(stem[1], stem[1]),
            Residual(stem[1], channels),
        )
        self.stacks = nn.ModuleList(
            Stack(num_keypoints, channels, depth, occlusion) for _ in range(stacks)
        )
        self.remaps = nn.ModuleList(
            Remap(num_keypoints, channels, occlusion) for _ in range(stacks - 1)
        )

    def forward(self, image: Tensor) -> list[StackMaps]:
        """[N, 3, h, w] -> the pose and occlusion maps of each stack, [N, K, h / 4, w / 4] each.

        Raises:
            ValueError: the image is not as above, or h or w is no multiple of 4 * 2^depth.
        """
        features, x = self._start(image)
        maps = [self.stacks[0](x)]
        for stack, remap in zip(self.stacks[1:], self.remaps, strict=True):
            maps.append(stack(features + remap(maps[-1])))
        return maps

    def predict(self, image: Tensor) -> Tensor:
        """[N, 3, h, w] -> the last stack's pose maps [N, K, h / 4, w / 4].

        They are those of `forward`, to the bit; the last stack's second hourglass, which they do
        not depend on, is not run.

        Raises:
            ValueError: as in `forward`.
        """
        features, x = self._start(image)
        for stack, remap in zip(self.stacks[:-1], self.remaps, strict=True):
            x = features + remap(stack(x))
        _, pose = self.stacks[-1].find_joints(x)
        return pose

    def _start(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The image's features X, and the first stack's input, which is X itself."""
        check_image(image, (3,), self.multiple)
        features = self.stem(image)
        return features, features


class Stack(nn.Module):
    """Two hourglasses in a row and what each of them finds."""

    def __init__(self, num_keypoints: int, channels: int, depth: int, occlusion: bool) -> None:
        super().__init__()
        self.pose = Hourglass(depth, channels)
        self.pose_head = _head(channels, num_keypoints)
        self.occlusion = Hourglass(depth, channels) if occlusion else None
        self.occlusion_head = _head(channels, num_keypoints) if occlusion else None

    def forward(self, x: Tensor) -> StackMaps:
        """[N, channels, h, w] -> maps of the same h and w."""
        features, pose = self.find_joints(x)
        if self.occlusion is None or self.occlusion_head is None:
            return StackMaps(pose, None)
        return StackMaps(pose, self.occlusion_head(self.occlusion(features + x)))

    def find_joints(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, channels, h, w] -> the first hourglass's features and the pose maps."""
        features = self.pose(x)
        return features, self.pose_head(features)


class Remap(nn.Module):
    """A stack's maps, each kind by a 1x1 convolution of its own, at the width of the features.

    It begins at 0, and every stack as a first one. With an initial value at random each stack would
    be some six times as loud as the one before.
    """

    def __init__(self, num_keypoints: int, channels: int, occlusion: bool) -> None:
        super().__init__()
        self.pose = nn.Conv2d(num_keypoints, channels, 1)
        self.occlusion = nn.Conv2d(num_keypoints, channels, 1) if occlusion else None
        _silence(self)

    def forward(self, maps: StackMaps) -> Tensor:
        """[N, K, h, w] each -> their sum [N, channels, h, w]."""
        if self.occlusion is None:
            return self.pose(maps.pose)
        return self.pose(maps.pose) + self.occlusion(maps.occlusion)


class Discriminator(nn.Module):
    """What both discriminators are: an hourglass between two residuals, one number a joint.

    The paper says that they are encoder-decoders with skips that end in K numbers from 0 to 1.
    Their depth and width, and the mean over all cells that makes a map a number, are ours.
    """

    def __init__(self, cin: int, num_keypoints: int, channels: int, depth: int) -> None:
        super().__init__()
        if min(num_keypoints, depth, channels // 2) < 1 or channels % 2:
            raise ModelError(
                "a discriminator needs num_keypoints and depth from 1 on and an even number of "
                f"channels, got {num_keypoints}, {depth} and {channels}"
            )
        self.cin, self.multiple = cin, 2**depth
        self.judge = nn.Sequential(
            Residual(cin, channels),
            Hourglass(depth, channels),
            Residual(channels, channels),
            nn.Conv2d(channels, num_keypoints, 1),
        )

    def verdict(self, x: Tensor) -> Tensor:
        """[N, cin, h, w] -> [N, K] float32, from 0 to 1."""
        return torch.sigmoid(self.judge(x).mean(dim=(2, 3)).float())


class PoseDiscriminator(Discriminator):
    """P of Adversarial PoseNet: is each joint at a plausible place, in this image?

    Chen et al., ICCV 2017.

    Args:
        num_keypoints: K.
        occlusion: whether the generator gives occlusion maps too.
        channels: of the features.
        depth: how often its hourglass halves the maps.

    Raises:
        ModelError: an argument is not as above.
    """

    def __init__(
        self,
        num_keypoints: int = 16,
        occlusion: bool = True,
        channels: int = 128,
        depth: int = DEPTH,
    ) -> None:
        super().__init__(3 + (1 + occlusion) * num_keypoints, num_keypoints, channels, depth)

    def forward(self, image: Tensor, maps: Tensor) -> Tensor:
        """The image, averaged down to the size of the maps, beside them.

        Args:
            image: [N, 3, H, W], as the generator sees it.
            maps: [N, 2 K, h, w], pose before occlusion; [N, K, h, w] without occlusion.

        Returns:
            [N, K] float32, from 0 to 1.

        Raises:
            ValueError: the maps are not as above, or h or w is no multiple of 2^depth.
        """
        _check_maps(maps, self.cin - 3, self.multiple)
        small = F.interpolate(image, size=maps.shape[2:], mode="area")
        return self.verdict(torch.cat((small.to(maps.dtype), maps), dim=1))


class ConfidenceDiscriminator(Discriminator):
    """C of Adversarial PoseNet: is each map as sure of its joint as a true one? It sees no image.

    Chen et al., ICCV 2017.

    Args, Raises: as in `PoseDiscriminator`.
    """

    def __init__(
        self,
        num_keypoints: int = 16,
        occlusion: bool = True,
        channels: int = 128,
        depth: int = DEPTH,
    ) -> None:
        super().__init__((1 + occlusion) * num_keypoints, num_keypoints, channels, depth)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps and result as in `PoseDiscriminator`."""
        _check_maps(maps, self.cin, self.multiple)
        return self.verdict(maps)


def _check_maps(maps: Tensor, channels: int, multiple: int) -> None:
    if (
        maps.ndim != 4
        or maps.shape[1] != channels
        or any(side < 1 or side % multiple for side in maps.shape[2:])
    ):
        raise ValueError(
            f"maps must be [N, {channels}, h, w] with h and w multiples of {multiple}, "
            f"got {list(maps.shape)}"
        )


def _head(channels: int, num_keypoints: int) -> nn.Sequential:
    """A reduction to the number of joints and a linear classifier, as the paper calls them.

    The classifier begins at 0, so the maps begin empty, which nearly all of every true map is. At
    random they would begin loud, and RMSprop would long remember the first gradients.
    """
    classifier = nn.Conv2d(num_keypoints, num_keypoints, 1)
    _silence(classifier)
    return nn.Sequential(nn.Conv2d(channels, num_keypoints, 1), classifier)


def _silence(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
