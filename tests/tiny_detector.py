"""A two-stage detector that is trained and exported in seconds, with its spec."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from seeded import seed_weights, uniform
from torch import Tensor, nn

from fastpose import models
from fastpose.models.fpn import FPNDetector
from fastpose.models.layers import conv
from fastpose.models.spec import DetectorSpec

TINY = DetectorSpec(
    name="fpn-tiny",
    network="tiny_detector:build",
    size=(64, 96),
    classes=("person",),
    mean=(120.0, 110.0, 100.0),
    std=(60.0, 60.0, 60.0),
    rgb=True,
    strides=(8, 16, 32, 64),
    pooled=3,
    anchors=((12.0,), (24.0,), (44.0,), (80.0,)),
    ratios=(0.8, 1.6),
    canonical=40.0,
    width=24,
    per_level=40,
    proposals=24,
    batch=8,
    promising=0.05,
    score=0.3,
    paper="none",
    parameters=57_104,
    pool=5,
)


class Trunk(nn.Module):
    """Strides 8, 16 and 32, even kernels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 4, 2), conv(16, 16, 2, 2), conv(16, 24, 2, 2))
        self.c4, self.c5 = conv(24, 32, 2, 2), conv(32, 32, 2, 2)

    def stages(self, image: Tensor) -> list[Tensor]:
        c3 = self.stem(image)
        c4 = self.c4(c3)
        return [c3, c4, self.c5(c4)]


def build(*, classes: int, anchors: int, levels: int) -> FPNDetector:
    return FPNDetector(
        classes=classes,
        anchors=anchors,
        levels=levels,
        trunk=Trunk(),
        channels=(24, 32, 32),
        width=24,
        hidden=(48,),
        reduced=16,
        norm=True,
        pool=5,
    )


def fill(network: nn.Module) -> None:
    """`seed_weights`, with fully connected layers that keep their input's scale."""
    seed_weights(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            wide = (6 / weight.shape[1]) ** 0.5
            weight.data.copy_((2 * uniform(name, tuple(weight.shape)) - 1) * wide)


def make_tiny() -> FPNDetector:
    """The network with weights that make every fault of folding visible, as kept in half."""
    network = build(classes=1, anchors=2, levels=4)
    fill(network)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and "running" not in name:
            tensor.copy_(tensor.half())
    return network.eval()


def register(patch: pytest.MonkeyPatch, spec: DetectorSpec = TINY) -> None:
    """The tiny detector has a name for the length of a test."""
    module = ModuleType("fastpose.models.tiny_detector")
    module.build = build
    patch.setitem(sys.modules, "fastpose.models.tiny_detector", module)
    patch.setitem(models.DETECTORS, spec.name, spec)
