"""A light CPN for CPUs: the cascade of cpn.py on a small trunk that mirrors exactly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpose.models.layers import check_image, check_joints, conv

FACTORS = (8, 4, 2, 1)  # cells of the maps per cell of P5, P4, P3, P2


class Residual(nn.Module):
    """Two 3x3 convolutions round an identity (He et al., Deep Residual Learning, CVPR 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(width, width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 round an identity, or round a projection where the width changes."""

    def __init__(self, cin: int, cout: int, mid: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(cin, mid, 1),
            conv(mid, mid),
            nn.Conv2d(mid, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
        )
        self.skip = (
            nn.Identity()
            if cin == cout
            else nn.Sequential(nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.body(x))


def upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear with cells as areas: exact under mirroring, one resize operator when exported."""
    if factor == 1:
        return x
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


class LightTrunk(nn.Module):
    """Residual stages at strides 4 to 32 with even kernels wherever the stride is 2.

    So maps(mirror(x)) = mirror(maps(x)) can hold exactly and a flip test needs no shift.

    Args:
        blocks: of the stages C2 to C5.
        widest: channels of C5.
    """

    def __init__(self, blocks: tuple[int, int, int, int] = (2, 2, 2, 3), widest: int = 512) -> None:
        super().__init__()
        n2, n3, n4, n5 = blocks
        self.stem = nn.Sequential(conv(3, 32, 4, 2), conv(32, 64, 4, 2))
        self.c2 = nn.Sequential(*(Residual(64) for _ in range(n2)))
        self.c3 = nn.Sequential(conv(64, 128, 2, 2), *(Residual(128) for _ in range(n3)))
        self.c4 = nn.Sequential(conv(128, 256, 2, 2), *(Residual(256) for _ in range(n4)))
        self.c5 = nn.Sequential(
            conv(256, widest, 2, 2),
            *(Bottleneck(widest, widest, widest // 4) for _ in range(n5)),
        )

    def stages(self, image: Tensor) -> list[Tensor]:
        """[N, 3, h, w] -> C2, C3, C4, C5 at strides 4, 8, 16, 32."""
        levels = [self.c2(self.stem(image))]
        for stage in (self.c3, self.c4, self.c5):
            levels.append(stage(levels[-1]))
        return levels


class LightCPN(LightTrunk):
    """Cascaded pyramid network with a trunk of 4.6 M parameters and pyramids of 128 channels.

    GlobalNet, RefineNet and their losses are those of Chen et al., Cascaded Pyramid Network for
    Multi-Person Pose Estimation, CVPR 2018. The trunk is ours.

    Args:
        num_keypoints: K.
        width: channels of the pyramid.

    Raises:
        ModelError: there is no joint.
    """

    def __init__(self, num_keypoints: int = 14, width: int = 128) -> None:
        super().__init__()
        check_joints(num_keypoints)
        trunk = (512, 256, 128, 64)  # from C5 to C2, the order of the pyramid below
        self.laterals = nn.ModuleList(conv(c, width, 1) for c in trunk)
        self.merges = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
            for _ in trunk[1:]
        )
        self.heads = nn.ModuleList(
            nn.Sequential(conv(width, width, 1), nn.Conv2d(width, num_keypoints, 3, padding=1))
            for _ in trunk
        )
        self.cascade = nn.ModuleList(
            nn.Sequential(*(Bottleneck(width, width, width // 2) for _ in range(count)))
            for count in (3, 2, 1, 0)
        )
        self.final = nn.Sequential(
            Bottleneck(4 * width, width, width // 2),
            nn.Conv2d(width, num_keypoints, 3, padding=1),
        )

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """[N, 3, h, w] -> P5, P4, P3, P2, each [N, width, h / s, w / s], s = 32, 16, 8, 4."""
        check_image(image, (3,), 32)
        levels = self.stages(image)
        merged = [self.laterals[0](levels[3])]
        for lateral, merge, level in zip(
            self.laterals[1:], self.merges, reversed(levels[:3]), strict=True
        ):
            merged.append(lateral(level) + merge(upsample(merged[-1], 2)))
        return merged

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """[N, 3, h, w] -> GlobalNet's four maps (P5 first), RefineNet's; [N, K, h / 4, w / 4]."""
        pyramid = self.pyramid(image)
        levels = zip(self.heads, pyramid, FACTORS, strict=True)
        return [upsample(head(p), f) for head, p, f in levels], self.refine(pyramid)

    def predict(self, image: Tensor) -> Tensor:
        """The maps that are decoded: RefineNet's."""
        return self.refine(self.pyramid(image))

    def refine(self, pyramid: list[Tensor]) -> Tensor:
        """P5 to P2 -> RefineNet's maps."""
        levels = zip(self.cascade, pyramid, FACTORS, strict=True)
        return self.final(torch.cat([upsample(stage(p), f) for stage, p, f in levels], dim=1))
