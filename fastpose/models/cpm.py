"""Convolutional pose machines: the released Caffe networks, and the one that mmpose trains."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpose import ops
from fastpose.errors import ModelError
from fastpose.models.layers import check_image, check_joints

STRIDE = 8
CENTRE_SIGMA = 21.0  # pixels
POOLINGS = ("caffe", "2x2", "padded")
STAGE_REDUCES = ("last", "sum")

# VGG-19 down to stride 8, as (name, channels) of its 3x3 convolutions, block by block
VGG_BLOCKS = (
    (("conv1_1", 64), ("conv1_2", 64)),
    (("conv2_1", 128), ("conv2_2", 128)),
    (("conv3_1", 256), ("conv3_2", 256), ("conv3_3", 256), ("conv3_4", 256)),
)


class _PoseMachine(nn.Module):
    """Convolutions under the names they have in Caffe, so that released weights fit 1:1.

    Args:
        num_keypoints: P.
        stages: T, how often the maps are predicted.
        stage_reduce: what of the stages is decoded: "last", or "sum" of all.
    """

    def __init__(self, num_keypoints: int, stages: int, stage_reduce: str) -> None:
        super().__init__()
        check_joints(num_keypoints)
        if type(stages) is not int or stages < 1:
            raise ModelError(f"a CPM needs at least 1 stage, got {stages!r}")
        if stage_reduce not in STAGE_REDUCES:
            raise ModelError(
                f"stage_reduce must be {' or '.join(STAGE_REDUCES)}, got {stage_reduce!r}"
            )
        self.stages, self.stage_reduce = stages, stage_reduce

    def predict(self, image: Tensor) -> Tensor:
        """The maps that are decoded, as `forward` gives them, of one stage or summed over all."""
        stages = self(image)
        return torch.stack(stages).sum(dim=0) if self.stage_reduce == "sum" else stages[-1]

    def _add(self, names: Sequence[str], channels: Sequence[int], kernels: Sequence[int]) -> None:
        """Convolutions one behind the other; channels are the input's and each one's own."""
        for name, (cin, cout), kernel in zip(names, pairwise(channels), kernels, strict=True):
            self.add_module(name, nn.Conv2d(cin, cout, kernel, padding=kernel // 2))

    def _run(self, names: Sequence[str], x: Tensor) -> Tensor:
        """Those convolutions, a ReLU behind each."""
        for name in names:
            x = F.relu(self.get_submodule(name)(x))
        return x

    def _refine(self, names: Sequence[str], x: Tensor) -> Tensor:
        """A stage's own convolutions, the last of them without ReLU: its maps."""
        maps: Tensor = self.get_submodule(names[-1])(self._run(names[:-1], x))
        return maps


class CPM(_PoseMachine):
    """Convolutional pose machine: every stage predicts all maps anew, from the last stage's.

    Wei, Ramakrishna, Kanade, Sheikh, Convolutional Pose Machines, CVPR 2016. Stage 1 sees the
    picture alone. Stage t sees 32 channels of image features, the maps of stage t - 1 and a map of
    where the person of interest stands; its three 11x11 layers relate joints far apart.

    Args:
        num_keypoints: P; the network gives P + 1 maps, the last one the background's.
        stages: T; the released networks have 4 (FLIC) and 6 (LSP and MPII).
        pooling: "caffe", 3x3 with stride 2 on a grid without padding, the last window cut off at
            the border, as released; "2x2", with which the paper's text reckons; "padded", 3x3 with
            a padding of 1, as other people's ports have it, whose cells look at what lies 7 pixels
            further up and left: weights of one are of no use in another.
        stage_reduce: see `predict`; "sum" is not in the paper.
        width: channels of the 9x9 and 11x11 layers, 128 as published; the rest is in proportion.

    Raises:
        ModelError: an argument is none of these.
    """

    def __init__(
        self,
        num_keypoints: int = 14,
        stages: int = 6,
        pooling: str = "caffe",
        stage_reduce: str = "last",
        width: int = 128,
    ) -> None:
        super().__init__(num_keypoints, stages, stage_reduce)
        if pooling not in POOLINGS:
            raise ModelError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        if type(width) is not int or width < 4 or width % 4:
            raise ModelError(f"width must be a multiple of 4 from 4, got {width!r}")
        self.pooling = pooling
        maps, narrow, wide = num_keypoints + 1, width // 4, width * 4
        self._add(
            _names("conv{}_stage1", 7),
            (3, width, width, width, narrow, wide, wide, maps),
            (9, 9, 9, 5, 9, 1, 1),
        )
        if stages > 1:  # features for all further stages, with weights of their own
            self._add(_names("conv{}_stage2", 3), (3, width, width, width), (9, 9, 9))
        for stage in range(2, stages + 1):
            self._add([_reduction(stage)], (width, narrow), (5,))
            self._add(
                _names(f"Mconv{{}}_stage{stage}", 5),
                (narrow + maps + 1, width, width, width, width, maps),
                (11, 11, 11, 1, 1),
            )
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N, 3, h, w], or [N, 4, h, w] with the centre map -> T maps [N, P + 1, h / 8, w / 8].

        Without a centre map the person of interest stands in the middle: see `centre_map`.

        Raises:
            ValueError: h or w is no multiple of 8, or there are other channels.
        """
        image, centre = _split(image, padded=self.pooling == "padded")
        x = self._run(["conv4_stage1", "conv5_stage1"], self._features(image, 1))
        x = self._run(["conv6_stage1"], F.dropout(x, 0.5, self.training))
        beliefs = [self.get_submodule("conv7_stage1")(F.dropout(x, 0.5, self.training))]
        if self.stages == 1:
            return beliefs
        features = self._features(image, 2)
        for stage in range(2, self.stages + 1):
            own = self._run([_reduction(stage)], features)
            x = torch.cat((own, beliefs[-1], centre), dim=1)
            beliefs.append(self._refine(_names(f"Mconv{{}}_stage{stage}", 5), x))
        return beliefs

    def _features(self, image: Tensor, branch: int) -> Tensor:
        """[N, 3, h, w] -> [N, 128, h / 8, w / 8]."""
        x = image
        for name in _names(f"conv{{}}_stage{branch}", 3):
            x = self._pool(self._run([name], x))
        return x

    def _pool(self, x: Tensor) -> Tensor:
        match self.pooling:
            case "caffe":
                return F.max_pool2d(x, 3, 2, ceil_mode=True)
            case "2x2":
                return F.max_pool2d(x, 2, 2)
            case _:
                return F.max_pool2d(x, 3, 2, padding=1)


class _VGGMachine(_PoseMachine):
    """Stages of five 7x7 layers on features that start as VGG-19 does; 2x2 pooling.

    Args:
        deeper: (name, channels) of the 3x3 layers behind the third pooling; the last one's output
            is what every stage sees of the picture.
        head: names of stage 1's two 1x1 layers.
        num_keypoints, stages, stage_reduce: see `_PoseMachine`.
        centred: the stages see a centre map, and the last map is the background's.
    """

    def __init__(
        self,
        deeper: Sequence[tuple[str, int]],
        head: tuple[str, str],
        num_keypoints: int,
        stages: int,
        stage_reduce: str,
        *,
        centred: bool,
    ) -> None:
        super().__init__(num_keypoints, stages, stage_reduce)
        maps = num_keypoints + centred
        self._deeper, self._head = [name for name, _ in deeper], head
        layers = [layer for block in VGG_BLOCKS for layer in block] + list(deeper)
        channels = [3, *(channels for _, channels in layers)]
        self._add([name for name, _ in layers], channels, [3] * len(layers))
        self._add(head, (channels[-1], 512, maps), (1, 1))
        for stage in range(2, stages + 1):
            self._add(
                _names(f"Mconv{{}}_stage{stage}", 7),
                (maps + channels[-1] + centred, 128, 128, 128, 128, 128, 128, maps),
                (7, 7, 7, 7, 7, 1, 1),
            )
        self.apply(_initialise)

    def _beliefs(self, image: Tensor, *context: Tensor) -> list[Tensor]:
        """The maps of all stages; `context` is joined to what stages 2 to T see."""
        x = image
        for block in VGG_BLOCKS:
            x = F.max_pool2d(self._run([name for name, _ in block], x), 2, 2)
        features = self._run(self._deeper, x)
        beliefs = [self._refine(self._head, features)]
        for stage in range(2, self.stages + 1):
            x = torch.cat((beliefs[-1], features, *context), dim=1)
            beliefs.append(self._refine(_names(f"Mconv{{}}_stage{stage}", 7), x))
        return beliefs


class CPMVGG(_VGGMachine):
    """The convolutional pose machine that was released later, on VGG-19's first ten layers.

    Its features are shared by all stages as they are. Arguments and errors are those of `CPM`.
    """

    DEEPER = (
        ("conv4_1", 512), ("conv4_2", 512), ("conv4_3_CPM", 256), ("conv4_4_CPM", 256),
        ("conv4_5_CPM", 256), ("conv4_6_CPM", 256), ("conv4_7_CPM", 128),
    )  # fmt: skip

    def __init__(
        self, num_keypoints: int = 14, stages: int = 6, stage_reduce: str = "last"
    ) -> None:
        head = ("conv5_1_CPM", "conv5_2_CPM")
        super().__init__(self.DEEPER, head, num_keypoints, stages, stage_reduce, centred=True)

    def forward(self, image: Tensor) -> list[Tensor]:
        """As in `CPM`."""
        return self._beliefs(*_split(image))


class CPMPerson(_VGGMachine):
    """The release's network that finds where people stand: one map of their centres.

    It sees the whole picture and knows of no person of interest, so there is no centre map; and
    there is no background. Arguments and errors are those of `CPM`.
    """

    DEEPER = (
        ("conv4_1", 512), ("conv4_2", 512), ("conv4_3", 512), ("conv4_4", 512),
        ("conv5_1", 512), ("conv5_2_CPM", 128),
    )  # fmt: skip

    def __init__(self, num_keypoints: int = 1, stages: int = 4, stage_reduce: str = "last") -> None:
        head = ("conv6_1_CPM", "conv6_2_CPM")
        super().__init__(self.DEEPER, head, num_keypoints, stages, stage_reduce, centred=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N, 3, h, w] -> T maps [N, 1, h / 8, w / 8].

        Raises:
            ValueError: h or w is no multiple of 8, or there are other channels.
        """
        check_image(image, (3,), STRIDE)
        return self._beliefs(image)


class CPMBatchNorm(_PoseMachine):
    """`CPM` with batch norm and padded pooling, without centre map and background.

    The network of OpenMMLab's mmpose, with the names of its checkpoints. Arguments and errors are
    those of `CPM`.
    """

    def __init__(
        self, num_keypoints: int = 16, stages: int = 6, stage_reduce: str = "last"
    ) -> None:
        super().__init__(num_keypoints, stages, stage_reduce)
        maps, later = num_keypoints, range(stages - 1)
        self.stem = nn.Sequential(
            *_pooled_features(),
            _norm_conv(128, 32, 5),
            _norm_conv(32, 512, 9),
            _norm_conv(512, 512, 1),
            _named(conv=nn.Conv2d(512, maps, 1)),
        )
        self.middle = nn.Sequential(*_pooled_features())
        self.middle_conv = nn.ModuleList(nn.Sequential(_norm_conv(128, 32, 5)) for _ in later)
        self.cpm_stages = nn.ModuleList(
            _named(
                model=nn.Sequential(
                    _norm_conv(32 + maps, 128, 11),
                    _norm_conv(128, 128, 11),
                    _norm_conv(128, 128, 11),
                )
            )
            for _ in later
        )
        self.out_convs = nn.ModuleList(
            nn.Sequential(_norm_conv(128, 128, 1), _named(conv=nn.Conv2d(128, maps, 1)))
            for _ in later
        )
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N, 3, h, w] -> T maps [N, K, h / 8, w / 8].

        Raises:
            ValueError: h or w is no multiple of 8, or there are other channels.
        """
        check_image(image, (3,), STRIDE)
        beliefs = [self.stem(image)]
        if self.stages == 1:
            return beliefs
        features = self.middle(image)
        for own, stage, out in zip(self.middle_conv, self.cpm_stages, self.out_convs, strict=True):
            beliefs.append(out(stage(torch.cat((beliefs[-1], own(features)), dim=1))))
        return beliefs


def centre_map(size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Where the person of interest stands: [1, 1, h, w], 1 at pixel (w / 2 - 1, h / 2 - 1).

    The authors' code puts the peak there, half a pixel before the middle, and in prediction does
    not cut the Gaussian off.
    """
    h, w = size
    # made where it is used: a CUDA graph cannot hold a copy from the host
    x, y = (torch.full((1, 1), side / 2 - 1, device=device) for side in (w, h))
    middle = torch.stack((x, y), dim=-1)
    seen = torch.ones(1, 1, device=device)
    return ops.render(middle, seen, size, sigma=CENTRE_SIGMA, style="exact")


def pool_centre(centre: Tensor, *, padded: bool = False) -> Tensor:
    """[N, 1, h, w] -> [N, 1, h / 8, w / 8]: means of 9x9 pixels, of fewer at the far border."""
    if padded:
        return F.avg_pool2d(centre, 9, STRIDE, padding=1)
    return F.avg_pool2d(centre, 9, STRIDE, ceil_mode=True)


def _split(image: Tensor, *, padded: bool = False) -> tuple[Tensor, Tensor]:
    """The picture [N, 3, h, w], and its pooled centre map [N, 1, h / 8, w / 8].

    One that is drawn here is pooled before it is repeated, so that it is a constant to compilers.
    """
    check_image(image, (3, 4), STRIDE)
    count, channels, h, w = image.shape
    if channels == 4:
        return image[:, :3], pool_centre(image[:, 3:], padded=padded)
    pooled = pool_centre(centre_map((h, w), image.device), padded=padded).to(image)
    return image, pooled.expand(count, 1, h // STRIDE, w // STRIDE)


def _names(pattern: str, count: int) -> list[str]:
    return [pattern.format(number) for number in range(1, count + 1)]


def _reduction(stage: int) -> str:
    """The layer that brings the shared features to 32 channels for a stage."""
    return "conv4_stage2" if stage == 2 else f"conv1_stage{stage}"


def _pooled_features() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for cin in (3, 128, 128):
        layers += (_norm_conv(cin, 128, 9), nn.MaxPool2d(3, 2, padding=1))
    return layers


def _norm_conv(cin: int, cout: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False)
    return _named(conv=convolution, bn=nn.BatchNorm2d(cout), activate=nn.ReLU(inplace=True))


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _initialise(module: nn.Module) -> None:
    """N(0, 0.01) and biases of 0, as all the released networks started."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
