"""The cascade of Tompson et al.: a coarse network, and a fine one on its features."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpose.crop import crop_features
from fastpose.errors import ModelError
from fastpose.models.cascade import FINE, FINE_STRIDE, SNAP, place_windows
from fastpose.models.layers import check_image, check_joints

LAYOUTS = ("flic", "mpii")
POOLS = (2, 3, 4)  # maps at 1/4, 1/8 and 1/16 of the input
BANKS = (2, 3)
FINES = ("shared", "crops", None)
TAP_STRIDES = (2, 4, 4, 8)  # input pixels per cell of the features that windows are cut from
LCN_RADIUS = 4  # pixels
LCN_SIGMA = 0.25 * (2 * LCN_RADIUS + 1)  # Torch's default Gaussian: a quarter of its side
LCN_FLOOR = 1e-4  # least divisor: level places stay level


class Widths(NamedTuple):
    """Channels: of the stages, of the 9x9 layer, of the 1x1 layers and of the fine network."""

    stage: int = 128
    context: int = 512
    head: int = 256
    fine: int = 64


class CascadeMaps(NamedTuple):
    """What the cascade says.

    Attributes:
        coarse: [N, J, h, w], a peak of 1 at each joint.
        fine: [N, J, 36, 36], the same at 2 input pixels a cell, in each joint's window; None where
            there is no fine network or it is left out.
        corners: [N, J, 2] int64 (x, y), where the windows lie: see `cascade.place_windows`; None
            with `fine`.
    """

    coarse: Tensor
    fine: Tensor | None
    corners: Tensor | None


class Cascade(nn.Module):
    """A coarse heat map for each joint, then a fine one in a window round its peak.

    Tompson, Goroshin, Jain, LeCun, Bregler, Efficient Object Localization Using Convolutional
    Networks, CVPR 2015. The fine network reads no new picture: its windows are cut out of the
    features that the coarse network has already. The paper's layer sizes are not public; those
    here were chosen within what is known of them.

    Args:
        num_keypoints: J.
        layout: of the coarse network: "flic" with 7 layers or "mpii" with 11.
        pools: 2, 3 or 4 poolings: coarse maps at 1/4, 1/8 or 1/16 of the input.
        fine: "shared"; "crops" for the standard cascade of the paper's ablation, whose fine
            network sees windows of the picture instead; or None for the coarse network alone.
        banks: 2 or 3 resolutions of the picture, from the full one on.
        drop_stage: fewer poolings than 3 also drop the convolutions between them.
        dropout: share of the maps that SpatialDropout takes away.
        jitter: standard deviation, in input pixels, of what is added to the windows' places in
            training.
        widths: channels.

    Raises:
        ModelError: an argument is none of these.
    """

    exact_picture = True  # float32: the rounding of a level place would pass for contrast

    def __init__(
        self,
        num_keypoints: int = 14,
        layout: str = "mpii",
        pools: int = 2,
        fine: str | None = "shared",
        banks: int = 3,
        drop_stage: bool = True,
        dropout: float = 0.5,
        jitter: float = 0.0,
        widths: Widths | None = None,
    ) -> None:
        super().__init__()
        check_joints(num_keypoints)
        if fine not in FINES or not jitter >= 0 or not 0 <= dropout < 1:  # NaN is neither
            raise ModelError(
                "Cascade needs fine shared, crops or None, dropout from 0 to 1 and jitter from 0 "
                f"on, got {fine!r}, {dropout!r} and {jitter!r}"
            )
        widths = widths or Widths()
        self.coarse = Coarse(num_keypoints, layout, pools, banks, drop_stage, dropout, widths)
        self.picture = PictureFeatures(widths.stage) if fine == "crops" else None
        self.fine = Fine(num_keypoints, widths) if fine else None
        self.jitter = jitter
        self.coarse_only = False  # for the phase of training that needs no fine maps
        self.multiple = max(self.coarse.stride, SNAP) if fine else self.coarse.stride
        self.apply(_initialise)
        for head in (self.coarse.head[-1], self.fine.head if self.fine else None):
            if head is not None:  # maps start near 0, which most of their cells shall be
                nn.init.normal_(head.weight, std=0.01)

    def forward(self, image: Tensor, centres: Tensor | None = None) -> CascadeMaps:
        """[N, 3, h, w] -> coarse and fine maps, and where the windows lie.

        No gradient flows to the places of the windows.

        Args:
            image: any scale and brightness; only local contrast is looked at.
            centres: [N, J, 2] (x, y) in input pixels, where the windows are to lie; None: at the
                peaks of the coarse maps.

        Raises:
            ValueError: the image is not as above, or h or w no multiple of the stride, or, where
                there are windows, of 8.
        """
        check_image(image, (3,), self.multiple)
        coarse, taps = self.coarse(image)
        if self.fine is None or self.coarse_only:
            return CascadeMaps(coarse, None, None)
        if self.picture is not None:
            half, quarter, eighth = map(local_contrast, pyramid(image, 4)[1:])
            taps = [half, quarter, quarter, eighth]
        if centres is None:
            centres = peak_pixels(coarse, self.coarse.stride)
        if self.training and self.jitter:
            centres = centres + self.jitter * torch.randn_like(centres)
        corners = place_windows(centres.detach()).long()
        windows = [
            crop_features(tap, corners * (SNAP // stride), FINE * FINE_STRIDE // stride)
            for tap, stride in zip(taps, TAP_STRIDES, strict=True)
        ]
        if self.picture is not None:
            windows = self.picture(windows)
        return CascadeMaps(coarse, self.fine(windows), corners)

    def predict(self, image: Tensor) -> Tensor:
        """[N, 3, h, w] -> coarse cells, then fine cells of each joint: [N, J, h' w' + 36 * 36].

        Without a fine network, the coarse maps [N, J, h', w'].
        """
        coarse, fine, _ = self(image)
        return coarse if fine is None else torch.cat((coarse.flatten(2), fine.flatten(2)), dim=2)


class Coarse(nn.Module):
    """Banks of convolutions, one for each resolution of the picture, summed, then 1x1 layers.

    The banks share no weights. Arguments and errors as in `Cascade`.
    """

    def __init__(
        self,
        num_keypoints: int,
        layout: str,
        pools: int,
        banks: int,
        drop_stage: bool,
        dropout: float,
        widths: Widths,
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS or pools not in POOLS or banks not in BANKS:
            raise ModelError(
                f"Cascade needs layout {' or '.join(LAYOUTS)}, 2 to 4 pools and 2 or 3 banks, "
                f"got {layout!r}, {pools!r} and {banks!r}"
            )
        self.stride = 2**pools
        stages = pools if drop_stage else max(pools, 3)
        self.banks = nn.ModuleList(Bank(layout, stages, pools, widths) for _ in range(banks))
        self.head = nn.Sequential(
            nn.Dropout2d(dropout),  # SpatialDropout: whole maps, since neighbours say the same
            *_layer(widths.context, widths.head, 1),
            *_layer(widths.head, widths.head, 1),
            nn.Conv2d(widths.head, num_keypoints, 1),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[N, 3, h, w] -> maps [N, J, h / stride, w / stride] and the features of four taps.

        The taps are the first two stages of the banks of the full and of the half picture, with
        TAP_STRIDES. Where the picture has to be padded, they go on as far as the padding.
        """
        h, w = image.shape[2:]
        # Up to a whole cell of the coarsest bank: otherwise its cells would lie across the others'.
        whole = self.stride * 2 ** (len(self.banks) - 1)
        features, taps = [], []
        for index, (bank, level) in enumerate(
            zip(self.banks, pyramid(image, len(self.banks)), strict=True)
        ):
            below, right = (-side % whole // 2**index for side in (h, w))
            stages, last = bank(F.pad(local_contrast(level), (0, right, 0, below)))
            taps += stages[:2]
            features.append(enlarge(last, 2**index))
        maps = self.head(sum(features[1:], features[0]))
        return maps[:, :, : h // self.stride, : w // self.stride], taps[:4]


class Bank(nn.Module):
    """The convolutions on one resolution of the picture.

    Each stage halves the resolution, but for those behind the last pooling.
    """

    def __init__(self, layout: str, stages: int, pools: int, widths: Widths) -> None:
        super().__init__()
        deep = layout == "mpii"
        self.stages = nn.ModuleList(
            nn.Sequential(
                *_layer(widths.stage if index else 3, widths.stage, 3 if deep and index else 5),
                *(_layer(widths.stage, widths.stage, 3) if deep else ()),
                *((nn.MaxPool2d(2),) if index < pools else ()),
            )
            for index in range(stages)
        )
        self.context = nn.Sequential(
            *(_layer(widths.stage, widths.stage, 3) if deep else ()),
            *_layer(widths.stage, widths.context, 9),
        )

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """[N, 3, h, w] -> the features of every stage, and the last ones."""
        stages = []
        for stage in self.stages:
            x = stage(x)
            stages.append(x)
        return stages, self.context(x)


class Fine(nn.Module):
    """The fine network: one set of weights for all joints but for the last layer.

    Args:
        num_keypoints: J.
        widths: channels.
    """

    def __init__(self, num_keypoints: int, widths: Widths) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.Sequential(
                *_layer(widths.stage, widths.fine, 5), *_layer(widths.fine, widths.fine, 5)
            )
            for _ in TAP_STRIDES
        )
        channels = num_keypoints * widths.fine
        self.head = nn.Conv2d(channels, num_keypoints, 1, groups=num_keypoints)

    def forward(self, windows: list[Tensor]) -> Tensor:
        """Windows of the taps, [N * J, C, 72 / stride, 72 / stride] each -> maps [N, J, 36, 36]."""
        maps = [
            enlarge(path(window), stride // FINE_STRIDE)
            for path, window, stride in zip(self.paths, windows, TAP_STRIDES, strict=True)
        ]
        total = sum(maps[1:], maps[0])
        # the joints of a picture side by side, each a group of channels of its own
        return self.head(total.reshape(-1, self.head.in_channels, FINE, FINE))


class PictureFeatures(nn.Module):
    """What the standard cascade has in place of features: a layer on each window of the picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(*_layer(3, channels, 5)) for _ in TAP_STRIDES)

    def forward(self, windows: list[Tensor]) -> list[Tensor]:
        """[N * J, 3, n, n] -> [N * J, C, n, n], for each tap."""
        return [layer(window) for layer, window in zip(self.layers, windows, strict=True)]


def pyramid(image: Tensor, levels: int) -> list[Tensor]:
    """The picture at 1, 1/2, 1/4, ... of its resolution, by averages of 2 x 2 pixels."""
    pictures = [image]
    while len(pictures) < levels:
        pictures.append(F.avg_pool2d(pictures[-1], 2))
    return pictures


def local_contrast(image: Tensor) -> Tensor:
    """Local contrast normalisation of [N, C, h, w]: less the mean round it, by the deviation.

    Both are taken in a Gaussian window of 9 x 9 pixels over all channels, as Torch's
    SpatialContrastiveNormalization does, and at the border over what there is of the window.
    Contrast below 1e-4 is not brought up. Reckoned in float32 at least: in half precision a level
    place's rounding would pass for contrast.
    """
    device = image.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return local_contrast(image)
    x = image.to(torch.promote_types(image.dtype, torch.float32))
    x = x - x.mean(dim=(1, 2, 3), keepdim=True)  # so that brightness costs no digits
    weight = _blur(x.new_ones(1, 1, *x.shape[2:]))
    x = x - _blur(x.mean(dim=1, keepdim=True)) / weight
    deviation = (_blur(x.square().mean(dim=1, keepdim=True)) / weight).sqrt()
    return (x / deviation.clamp(min=LCN_FLOOR)).to(image.dtype)


def _blur(x: Tensor) -> Tensor:
    """A Gaussian of sum 1 over [N, 1, h, w], zeros outside."""
    steps = torch.arange(-LCN_RADIUS, LCN_RADIUS + 1, dtype=x.dtype, device=x.device)
    bell = torch.exp(-0.5 * (steps / LCN_SIGMA) ** 2)
    bell = bell / bell.sum()
    x = F.conv2d(x, bell.reshape(1, 1, -1, 1), padding=(LCN_RADIUS, 0))
    return F.conv2d(x, bell.reshape(1, 1, 1, -1), padding=(0, LCN_RADIUS))


def peak_pixels(maps: Tensor, stride: int) -> Tensor:
    """[N, J, h, w] -> [N, J, 2] float32 (x, y): the input pixel of each map's first maximum."""
    peak = maps.flatten(2).argmax(dim=2)
    width = maps.shape[3]
    return (torch.stack((peak % width, peak // width), dim=2).float() + 0.5) * stride - 0.5


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Every cell repeated `factor` times on both axes."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="nearest")


def _layer(cin: int, cout: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(cin, cout, kernel, padding=kernel // 2), nn.ReLU(inplace=True)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        assert module.bias is not None, "there are no norms here"
        nn.init.zeros_(module.bias)
