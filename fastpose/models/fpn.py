"""The person detector: a feature pyramid, proposals from anchors, and a head for each of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpose.models.cpn import BLOCKS, TRUNK, ResNet
from fastpose.models.cpn_light import LightTrunk
from fastpose.models.layers import conv

LIGHT_BLOCKS = (1, 2, 1, 1)
LIGHT_WIDEST = 256


class FPNDetector(nn.Module):
    """Two-stage detector: `propose` a few boxes from all anchors, then `classify` each of them.

    Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, on Ren et al., Faster
    R-CNN, NIPS 2015. Between the two halves the caller chooses boxes and cuts a window of features
    for each (RoIAlign; He et al., Mask R-CNN, ICCV 2017): nothing in either has a shape that
    depends on the picture. This is the person detector of Chen et al., Cascaded Pyramid Network for
    Multi-Person Pose Estimation, CVPR 2018.

    Args:
        classes: without the background.
        anchors: at each place of a level.
        levels: of the pyramid; those past the trunk's are P5 subsampled, for anchors alone.
        trunk: the stages it is built on.
        channels: of the trunk's stages that are used, finest first.
        width: channels of the pyramid.
        hidden: widths of the head's fully connected layers.
        reduced: channels of a 3x3 convolution before them; None has none.
        norm: the pyramid's output convolutions have batch norm and ReLU.
        pool: side of the window of features of a box.
    """

    HEAD = ("head", "logits", "deltas")  # the parts that `classify` uses and `propose` does not

    def __init__(
        self,
        *,
        classes: int,
        anchors: int,
        levels: int,
        trunk: nn.Module,
        channels: Sequence[int],
        width: int,
        hidden: Sequence[int],
        reduced: int | None = None,
        norm: bool = False,
        pool: int = 7,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.levels = levels
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.outputs = nn.ModuleList(
            conv(width, width) if norm else nn.Conv2d(width, width, 3, padding=1) for _ in channels
        )
        self.rpn = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.objectness = nn.Conv2d(width, anchors, 1)
        self.rpn_deltas = nn.Conv2d(width, 4 * anchors, 1)
        sizes = [(reduced or width) * pool * pool, *hidden]
        dense = (
            layer
            for cin, cout in itertools.pairwise(sizes)
            for layer in (nn.Linear(cin, cout), nn.ReLU(inplace=True))
        )
        narrow = nn.Identity() if reduced is None else conv(width, reduced)
        self.head = nn.Sequential(narrow, nn.Flatten(), nn.Sequential(*dense))
        self.logits = nn.Linear(sizes[-1], classes + 1)
        self.deltas = nn.Linear(sizes[-1], 4 * classes)
        for layer in (self.objectness, self.rpn_deltas, self.logits, self.deltas):
            nn.init.normal_(layer.weight, std=0.001 if layer is self.deltas else 0.01)
            nn.init.zeros_(layer.bias)

    def propose(self, image: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """[N, 3, h, w] -> the pyramid, objectness and deltas of every anchor.

        The pyramid is a list of [N, width, h / s, w / s], finest first; objectness [N, M] is before
        the sigmoid; deltas are [N, M, 4]. Anchors go by level, row, column, and then as the spec
        lists them.
        """
        stages = self.trunk.stages(image)[-len(self.laterals) :]
        merged = [self.laterals[-1](stages[-1])]
        for lateral, stage in zip(reversed(self.laterals[:-1]), reversed(stages[:-1]), strict=True):
            merged.insert(0, lateral(stage) + F.interpolate(merged[0], scale_factor=2.0))
        pyramid = [output(level) for output, level in zip(self.outputs, merged, strict=True)]
        searched = list(pyramid)
        while len(searched) < self.levels:
            searched.append(searched[-1][:, :, ::2, ::2])
        seen = [self.rpn(level) for level in searched]
        scores = [self.objectness(level).permute(0, 2, 3, 1).flatten(1) for level in seen]
        deltas = [
            self.rpn_deltas(level).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
            for level in seen
        ]
        return pyramid, torch.cat(scores, 1), torch.cat(deltas, 1)

    def classify(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """[R, width, pool, pool] -> logits [R, classes + 1] and deltas [R, classes, 4].

        The background is the first of the logits.
        """
        features = self.head(windows)
        return self.logits(features), self.deltas(features).unflatten(1, (-1, 4))

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """`propose`."""
        return self.propose(image)


class _ResNetStages(ResNet):
    def stages(self, image: Tensor) -> list[Tensor]:
        """[N, 3, h, w] -> C2, C3, C4, C5."""
        return self(image)[::-1]


def resnet_fpn(*, classes: int, anchors: int, levels: int, depth: int = 50) -> FPNDetector:
    """The published form: all stages of a ResNet, 256 channels, two layers of 1024 in the head."""
    return FPNDetector(
        classes=classes,
        anchors=anchors,
        levels=levels,
        trunk=_ResNetStages(BLOCKS[depth]),
        channels=TRUNK[::-1],
        width=256,
        hidden=(1024, 1024),
    )


def light_fpn(*, classes: int, anchors: int, levels: int, width: int = 96) -> FPNDetector:
    """For CPUs: the pose network's trunk with fewer blocks, from stride 8, and a narrow head.

    Every part answers a mirrored picture with mirrored features, up to its weights.
    """
    return FPNDetector(
        classes=classes,
        anchors=anchors,
        levels=levels,
        trunk=LightTrunk(LIGHT_BLOCKS, LIGHT_WIDEST),
        channels=(128, 256, LIGHT_WIDEST),
        width=width,
        hidden=(128,),
        reduced=64,
        norm=True,
    )
