"""The stacked hourglass and its blocks, from which PBN and Adversarial PoseNet are built too."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.models.layers import check_image, check_joints

DEPTH = 4  # of the published hourglasses: from 64x64 cells down to 4x4


class Residual(nn.Module):
    """Norm, ReLU and convolution three times, 1x1, 3x3, 1x1, round a shortcut.

    He, Zhang, Ren, Sun, Identity Mappings in Deep Residual Networks, ECCV 2016, as in the
    hourglass. The shortcut is the identity, or a 1x1 convolution without norm where the number of
    channels changes. All convolutions have a bias.

    Args:
        cin, cout: channels.
        mid: channels of the 3x3; `cout` / 2 unless said.
        groups: blocks of channels that never meet, each a residual of its own.
    """

    def __init__(self, cin: int, cout: int, mid: int | None = None, *, groups: int = 1) -> None:
        super().__init__()
        mid = mid or cout // 2
        self.bn1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, mid, 1, groups=groups)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, padding=1, groups=groups)
        self.bn3 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, cout, 1, groups=groups)
        self.project = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return self.conv3(F.relu(self.bn3(y))) + self.project(x)


class Hourglass(nn.Module):
    """Features at every scale, added up: half the resolution, a smaller hourglass, and back.

    Newell, Yang, Deng, Stacked Hourglass Networks for Human Pose Estimation, ECCV 2016.

    Args:
        depth: how often the resolution is halved.
        channels: of all features.
        blocks: residuals in each place.
    """

    def __init__(self, depth: int, channels: int, blocks: int = 1) -> None:
        super().__init__()
        if depth < 1:
            raise ModelError(f"an hourglass halves its input at least once, got depth {depth}")
        self.skip = residuals(channels, blocks)
        self.down = residuals(channels, blocks)
        self.inner = (
            Hourglass(depth - 1, channels, blocks) if depth > 1 else residuals(channels, blocks)
        )
        self.up = residuals(channels, blocks)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, h, w] -> the same, h and w being multiples of 2^depth."""
        low = self.up(self.inner(self.down(F.max_pool2d(x, 2))))
        return self.skip(x) + F.interpolate(low, scale_factor=2.0, mode="nearest")


class StackedHourglass(nn.Module):
    """Hourglasses in a row; each but the first corrects the heat maps of the one before.

    Newell, Yang, Deng, Stacked Hourglass Networks for Human Pose Estimation, ECCV 2016, as the
    public PyTorch code `bearpaw/pytorch-pose` builds it, for which there are trained weights.

    Args:
        num_keypoints: K.
        stacks: number of hourglasses.
        blocks: residuals in each place of an hourglass, and behind it.
        channels: of the features, a multiple of 4.

    Raises:
        ModelError: an argument is not as above.
    """

    def __init__(
        self, num_keypoints: int, stacks: int = 8, blocks: int = 1, channels: int = 256
    ) -> None:
        super().__init__()
        check_joints(num_keypoints)
        if min(stacks, blocks, channels) < 1 or channels % 4:
            raise ModelError(
                "StackedHourglass needs stacks and blocks from 1 on and channels in multiples of "
                f"4, got {stacks}, {blocks} and {channels}"
            )
        half = channels // 2
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels // 4, 7, 2, padding=3),
            nn.BatchNorm2d(channels // 4),
            nn.ReLU(inplace=True),
            Residual(channels // 4, half),
            nn.MaxPool2d(2),
            Residual(half, channels),
            Residual(channels, channels),
        )
        between = range(stacks - 1)
        self.hourglasses = nn.ModuleList(Hourglass(DEPTH, channels, blocks) for _ in range(stacks))
        self.residuals = nn.ModuleList(residuals(channels, blocks) for _ in range(stacks))
        self.features = nn.ModuleList(_features(channels) for _ in range(stacks))
        self.scores = nn.ModuleList(nn.Conv2d(channels, num_keypoints, 1) for _ in range(stacks))
        self.remap_features = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in between)
        self.remap_scores = nn.ModuleList(nn.Conv2d(num_keypoints, channels, 1) for _ in between)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N, 3, h, w] -> the maps of each stack, [N, K, h / 4, w / 4]; a peak is 1 high.

        Raises:
            ValueError: the image is not as above, or h or w is no multiple of 64.
        """
        check_image(image, (3,), 4 * 2**DEPTH)
        x = self.stem(image)
        maps = []
        for stack, hourglass in enumerate(self.hourglasses):
            y = self.features[stack](self.residuals[stack](hourglass(x)))
            maps.append(self.scores[stack](y))
            if stack < len(self.remap_scores):
                x = x + self.remap_features[stack](y) + self.remap_scores[stack](maps[-1])
        return maps

    def predict(self, image: Tensor) -> Tensor:
        """[N, 3, h, w] -> the maps of the last stack, [N, K, h / 4, w / 4]."""
        return self.forward(image)[-1]


def residuals(channels: int, count: int) -> nn.Sequential:
    """Residuals in a row that keep the number of channels."""
    return nn.Sequential(*(Residual(channels, channels) for _ in range(count)))


def _features(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )
