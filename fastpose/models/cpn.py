"""CPN, the cascaded pyramid network, as its two public releases built it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.models.layers import check_image, check_joints, conv

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # bottlenecks of a ResNet's four stages, by depth
LEVELS = ("C5", "C4", "C3", "C2")  # of the pyramid
TRUNK = (2048, 1024, 512, 256)  # channels of C5, C4, C3, C2
WIDTH = 256  # channels of the pyramid
FACTORS = (8, 4, 2, 1)  # cells of the maps per cell of P5, P4, P3, P2
STYLES = ("torch", "tf")

# RefineNet's bottlenecks on P5, P4, P3, P2, before they are joined
REFINEMENTS = {"cascade": (3, 2, 1, 0), "single": (1, 1, 1, 1), "concat": (0, 0, 0, 0)}


class CPN(nn.Module):
    """Cascaded pyramid network on a ResNet: GlobalNet finds the easy joints, RefineNet the hard.

    Chen, Wang, Peng, Zhang, Yu, Sun, Cascaded Pyramid Network for Multi-Person Pose Estimation,
    CVPR 2018. The authors' TensorFlow release and its PyTorch successor differ in the bilinear
    grid, in where biases and norms stand and in RefineNet's shortcuts; `style` chooses. In style
    "torch" the names of the state dict are those of the PyTorch release, so its checkpoints fit,
    and in both styles `resnet` has torchvision's names, so ImageNet weights of a ResNet fit it.

    Args:
        num_keypoints: K.
        depth: of the ResNet, 50 or 101.
        style: "torch" or "tf".
        refine: RefineNet's form. "cascade" is the published one, with more bottlenecks the coarser
            the level. The paper compares it with "concat", whose levels are joined as they are,
            "single", which has one bottleneck on each, and "none": GlobalNet alone. All but the
            last end in one bottleneck on what is joined.
        levels: how many levels RefineNet reads, from the finest: 1 is C2, 4 is C2 to C5.
        decoded: what `predict` gives: the maps of "refine", or of a level of GlobalNet, "C5" to
            "C2". None is RefineNet's or, without it, those of "C2".

    Raises:
        ModelError: an argument is none of these.
    """

    def __init__(
        self,
        num_keypoints: int = 17,
        depth: int = 50,
        style: str = "torch",
        refine: str = "cascade",
        levels: int = 4,
        decoded: str | None = None,
    ) -> None:
        super().__init__()
        check_joints(num_keypoints)
        if depth not in BLOCKS or style not in STYLES:
            raise ModelError(
                f"CPN needs depth 50 or 101 and style torch or tf, got {depth!r} and {style!r}"
            )
        if refine not in (*REFINEMENTS, "none"):
            known = ", ".join(REFINEMENTS)
            raise ModelError(f"CPN needs refine {known} or none, got {refine!r}")
        if levels not in range(1, 5):
            raise ModelError(f"CPN's RefineNet reads 1 to 4 levels, got {levels!r}")
        self.decoded = decoded or ("C2" if refine == "none" else "refine")
        offered = LEVELS if refine == "none" else ("refine", *LEVELS)
        if self.decoded not in offered:
            raise ModelError(
                f"CPN with refine {refine} gives {', '.join(offered)}, got decoded {decoded!r}"
            )
        self.resnet = ResNet(BLOCKS[depth])
        self.global_net = GlobalNet(num_keypoints, style)
        self.refine_net = (
            RefineNet(num_keypoints, style, REFINEMENTS[refine][-levels:])
            if refine != "none"
            else None
        )
        self.apply(_initialise)
        if style == "tf":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps, module.momentum = 1e-9, 0.01

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """[N, 3, h, w] -> GlobalNet's four maps (of C5 first) and RefineNet's, if there is one.

        Each is [N, K, h / 4, w / 4], without activation; a peak is 255 high.

        Raises:
            ValueError: the image has another shape, or h or w is no multiple of 32.
        """
        check_image(image, (3,), 32)
        pyramid, coarse = self.global_net(self.resnet(image))
        return coarse, self.refine_net(pyramid) if self.refine_net else None

    def predict(self, image: Tensor) -> Tensor:
        """The maps that are decoded, see `decoded`, without the work for the others."""
        check_image(image, (3,), 32)
        stages = self.resnet(image)
        if self.decoded == "refine":
            assert self.refine_net is not None, "checked when the network was built"
            return self.refine_net(self.global_net.pyramid(stages))
        level = LEVELS.index(self.decoded)
        pyramid = self.global_net.pyramid(stages[: level + 1])
        return self.global_net.predict[level](pyramid[level])


class CPNStar(CPN):
    """CPN*, as the paper calls the CPN that is trained without mining: the network is the same."""


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 round a shortcut (He et al., Deep Residual Learning, CVPR 2016).

    The stride lies in the 3x3. The shortcut is a 1x1 projection, or the identity without `project`.
    """

    def __init__(self, cin: int, mid: int, cout: int, stride: int = 1, *, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, cout, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.downsample = (
            nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))
            if project
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """A ResNet's stem and four stages, without its classifier."""

    def __init__(self, blocks: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks[0], stride=1)
        self.layer2 = _stage(256, 128, blocks[1], stride=2)
        self.layer3 = _stage(512, 256, blocks[2], stride=2)
        self.layer4 = _stage(1024, 512, blocks[3], stride=2)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N, 3, h, w] -> C5, C4, C3, C2, at 1/32, 1/16, 1/8 and 1/4 of the image."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, 2, padding=1)
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [self.layer4(c4), c4, c3, c2]


class GlobalNet(nn.Module):
    """A feature pyramid with a 1x1 convolution in each step down, and heat-maps at every level."""

    def __init__(self, num_keypoints: int, style: str) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(conv(channels, WIDTH, 1) for channels in TRUNK)
        self.upsamples = nn.ModuleList(_merge(style) for _ in TRUNK[1:])
        self.predict = nn.ModuleList(_head(num_keypoints, factor, style) for factor in FACTORS)

    def forward(self, stages: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """C5 to C2 -> P5 to P2, [N, 256, ...] each, and their maps [N, K, h / 4, w / 4]."""
        pyramid = self.pyramid(stages)
        return pyramid, [head(p) for head, p in zip(self.predict, pyramid, strict=True)]

    def pyramid(self, stages: list[Tensor]) -> list[Tensor]:
        """C5, and the finer ones that are given -> P5 and as many, [N, 256, ...] each."""
        pyramid = [self.laterals[0](stages[0])]
        finer = list(zip(self.laterals[1:], self.upsamples, strict=True))
        for (lateral, merge), stage in zip(finer, stages[1:], strict=False):
            pyramid.append(lateral(stage) + merge(pyramid[-1]))
        return pyramid


class RefineNet(nn.Module):
    """Levels of the pyramid, the coarse ones through more bottlenecks, joined into one map.

    Args:
        num_keypoints: K.
        style: of the release.
        bottlenecks: on each level that is read, the finest last.
    """

    def __init__(self, num_keypoints: int, style: str, bottlenecks: tuple[int, ...]) -> None:
        super().__init__()
        project = style == "torch"
        factors = FACTORS[-len(bottlenecks) :]
        self.cascade = nn.ModuleList(
            nn.Sequential(
                *(Bottleneck(WIDTH, WIDTH // 2, WIDTH, project=project) for _ in range(count)),
                Upsample(factor, style),
            )
            for count, factor in zip(bottlenecks, factors, strict=True)
        )
        self.final_predict = nn.Sequential(
            Bottleneck(len(factors) * WIDTH, WIDTH // 2, WIDTH, project=True),
            nn.Conv2d(WIDTH, num_keypoints, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_keypoints),
        )

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """P5 to P2 -> [N, K, h / 4, w / 4]."""
        read = pyramid[-len(self.cascade) :]
        levels = [branch(p) for branch, p in zip(self.cascade, read, strict=True)]
        return self.final_predict(torch.cat(levels, dim=1))


class Upsample(nn.Module):
    """Bilinear enlargement by a whole factor, on the grid of the chosen release.

    "torch" lays the outer cells' centres over each other (align_corners). "tf" is TensorFlow 1's
    old grid: cell u of the result lies at u / factor, cells beyond the last repeat it.
    """

    def __init__(self, factor: int, style: str) -> None:
        super().__init__()
        self.factor, self.style = factor, style

    def forward(self, x: Tensor) -> Tensor:
        if self.factor == 1:
            return x
        h, w = x.shape[2:]
        if self.style == "torch":
            return _enlarge(x, h * self.factor, w * self.factor)
        # one repeated cell more on each axis makes align_corners step by exactly 1 / factor
        x = F.pad(x, (0, 1, 0, 1), mode="replicate")
        return _enlarge(x, h * self.factor + 1, w * self.factor + 1)[:, :, :-1, :-1]


def _enlarge(x: Tensor, h: int, w: int) -> Tensor:
    return F.interpolate(x, size=(h, w), mode="bilinear", align_corners=True)


def _stage(cin: int, mid: int, count: int, stride: int) -> nn.Sequential:
    cout = 4 * mid
    return nn.Sequential(
        Bottleneck(cin, mid, cout, stride, project=True),
        *(Bottleneck(cout, mid, cout, project=False) for _ in range(count - 1)),
    )


def _merge(style: str) -> nn.Sequential:
    """From a level of the pyramid to what is added to the next: the difference from an FPN."""
    if style == "tf":
        return nn.Sequential(Upsample(2, style), nn.Conv2d(WIDTH, WIDTH, 1))
    return nn.Sequential(
        Upsample(2, style), nn.Conv2d(WIDTH, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH)
    )


def _head(num_keypoints: int, factor: int, style: str) -> nn.Sequential:
    """Maps of one level. The norm stands before the enlargement in "tf", behind it in "torch"."""
    norm, up = nn.BatchNorm2d(num_keypoints), Upsample(factor, style)
    return nn.Sequential(
        *conv(WIDTH, WIDTH, 1),
        nn.Conv2d(WIDTH, num_keypoints, 3, padding=1, bias=False),
        *((up, norm) if style == "torch" else (norm, up)),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Bottleneck):
        # 33 residual branches of full strength would leave the range of half precision
        nn.init.constant_(module.bn3.weight, 0.25)
