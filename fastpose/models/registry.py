"""The registry: what every network is, as data. Reading it needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastpose.models.cascade import FINE
from fastpose.models.spec import DetectorSpec, ModelSpec
from fastpose.skeleton import Skeleton

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
MPII_MEAN = (112.3, 113.2, 110.3)  # red first
CPN_MEAN = (122.7717, 115.9465, 102.9801)  # of COCO, red first


def _cpn(name: str, size: tuple[int, int], depth: int, style: str, parameters: int) -> ModelSpec:
    """A published CPN, with the pixels, boxes and targets of its release."""
    return ModelSpec(
        name=name,
        network="cpn:CPN",
        size=size,
        stride=4,
        skeleton="coco17",
        mean=CPN_MEAN if style == "torch" else CPN_MEAN[::-1],
        std=(255.0, 255.0, 255.0),
        rgb=style == "torch",
        convention="cpn",
        padding=(1.2, 1.3),
        method="cpn",
        sigma=1.7 if size == (384, 288) else 1.4,  # of the narrowest kernel: 9 cells, or 7
        peak_value=255.0,
        paper="Chen, Wang, Peng, Zhang, Yu, Sun, Cascaded Pyramid Network for Multi-Person Pose "
        "Estimation, CVPR 2018",
        parameters=parameters,
        kwargs={"depth": depth, "style": style},
    )


# The released CPMs show a person of height b pixels at a scale of (41 / 35) / (b / 200): 234.3 of
# the window's 368 pixels. FLIC's rule, (41 / 35) / (0.0110 t) for a torso box t pixels high, is the
# same one where a person is taken to be 2.2 t high: the box is then that square, and its centre
# lies on the middle line of the torso box, 0.3 of its height below its top.
CPM_PADDING = 368 / (200 * 41 / 35)
CPM_VIEWS = tuple(10 / tenths for tenths in range(7, 14))  # enlarging by m is a box 1 / m as big
CPM_PAPER = "Wei, Ramakrishna, Kanade, Sheikh, Convolutional Pose Machines, CVPR 2016"
CENTRE = Skeleton("centre", ("centre",), (), (), (0.079,))  # a body's: as sure as a shoulder


def _cpm(
    name: str, skeleton: str, parameters: int, network: str = "cpm:CPM", **changes: Any
) -> ModelSpec:
    """A released CPM: 7 views of a person, 368 pixels of Caffe's kind, a map for the background."""
    fields: dict[str, Any] = {
        "name": name,
        "network": network,
        "size": (368, 368),
        "stride": 8,
        "skeleton": skeleton,
        "mean": (128.0, 128.0, 128.0),
        "std": (256.0, 256.0, 256.0),
        "rgb": False,
        "convention": "caffe",
        "padding": CPM_PADDING,
        "method": "argmax",
        "sigma": 7 / 8,
        "peak_value": 1.0,
        "paper": CPM_PAPER,
        "parameters": parameters,
        "background": True,
        "views": CPM_VIEWS,
        "enlarge": 8,  # to pixels of the window; the published prediction is the highest one
    }
    return ModelSpec(**fields | changes)


def _cpn_variant(
    name: str, parameters: int, kwargs: Mapping[str, Any] | None = None, **fields: Any
) -> ModelSpec:
    """A relative of the CPN on ResNet-50, by what it does not share with it."""
    spec = _cpn(name, (256, 192), 50, "torch", parameters)
    return replace(spec, kwargs={**spec.kwargs, **(kwargs or {})}, **fields)


# A bonded pin is found by its feet, which look alike: which is which their order alone tells.
PIN = Skeleton("pin", ("left_foot", "right_foot"), ((0, 1),), ((0, 1),), (0.079, 0.079))


def _structured(name: str, side: int, skeleton: str, parameters: int, **kwargs: Any) -> ModelSpec:
    """Structured feature learning: seen at scales of 2 ** (1 / 10) down to 224 pixels."""
    levels = math.floor(10 * math.log2(side / 224))
    return ModelSpec(
        name=name,
        network="structured:Structured",
        size=(side, side),
        stride=8,
        skeleton=skeleton,
        mean=(128.0, 128.0, 128.0),
        std=(1.0, 1.0, 1.0),
        rgb=False,
        convention="caffe",
        padding=1.0,
        method="tree",
        sigma=1.0,
        peak_value=1.0,
        paper="Chu, Ouyang, Li, Wang, Structured Feature Learning for Pose Estimation, CVPR 2016",
        parameters=parameters,
        kwargs=kwargs,
        output="parts",
        views=tuple(2 ** (level / 10) for level in range(levels)),
        tree=kwargs["tree"],
    )


def _hourglass(name: str, parameters: int, network: str, kwargs: dict[str, Any]) -> ModelSpec:
    """An hourglass for MPII's joints, with the pixels and windows of the public code."""
    return ModelSpec(
        name=name,
        network=network,
        size=(256, 256),
        stride=4,
        skeleton="mpii16",
        mean=MPII_MEAN,
        std=(255.0, 255.0, 255.0),
        rgb=True,
        convention="hourglass",
        padding=1.25,
        method="quarter",
        sigma=1.0,
        peak_value=1.0,
        paper="Newell, Yang, Deng, Stacked Hourglass Networks for Human Pose Estimation, ECCV 2016",
        parameters=parameters,
        kwargs=kwargs,
    )


def _adversarial(name: str, skeleton: str, parameters: int) -> ModelSpec:
    """A generator of Adversarial PoseNet, with the pixels and windows of the hourglass's code.

    LSP's network is trained on MPII's pictures too.
    """
    return replace(
        _hourglass(name, parameters, "adversarial:AdversarialPoseNet", {}),
        skeleton=skeleton,
        paper="Chen, Shen, Wei, Liu, Yang, Adversarial PoseNet: A Structure-aware Convolutional "
        "Network for Human Pose Estimation, ICCV 2017",
    )


def _pbn(name: str, skeleton: str, groups: str, parameters: int, **kwargs: Any) -> ModelSpec:
    """A PBN of eight stacks; the paper takes each map's highest cell, and does not shift pixels."""
    spec = _hourglass(name, parameters, "pbn:PBN", {"groups": groups, **kwargs})
    return replace(
        spec,
        skeleton=skeleton,
        mean=(0.0, 0.0, 0.0),
        method="argmax",
        paper="Tang, Wu, Does Learning Specific Features for Related Parts Help Human Pose "
        "Estimation?, CVPR 2019",
    )


def _tompson(
    name: str, layout: str, pools: int, size: tuple[int, int], skeleton: str, parameters: int
) -> ModelSpec:
    """A cascade whose coarse maps have 1 / 2 ** pools of the input's resolution."""
    return ModelSpec(
        name=name,
        network="tompson:Cascade",
        size=size,
        stride=2**pools,
        skeleton=skeleton,
        mean=(127.5, 127.5, 127.5),  # the network sees contrast alone, and grey round the picture
        std=(255.0, 255.0, 255.0),
        rgb=True,
        convention="symmetric",
        padding=1.25,
        method="argmax",
        sigma=1.5,
        peak_value=1.0,
        paper="Tompson, Goroshin, Jain, LeCun, Bregler, Efficient Object Localization Using "
        "Convolutional Networks, CVPR 2015",
        parameters=parameters,
        kwargs={"layout": layout, "pools": pools},
        output="cascade",
        fine=FINE,
    )


MODELS = {
    "cpn-light": ModelSpec(
        name="cpn-light",
        network="cpn_light:LightCPN",
        size=(192, 160),
        stride=4,
        skeleton="lsp14",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        rgb=True,
        convention="symmetric",
        padding=1.1,
        method="parabola",
        sigma=2.0,
        peak_value=1.0,
        paper="after Chen et al., Cascaded Pyramid Network for Multi-Person Pose Estimation, "
        "CVPR 2018; the trunk is our own",
        parameters=5_452_550,
    ),
    "cpn50": _cpn("cpn50", (256, 192), 50, "torch", 27_406_826),
    "cpn101": _cpn("cpn101", (256, 192), 101, "torch", 46_398_954),
    "cpn50-tf": _cpn("cpn50-tf", (256, 192), 50, "tf", 27_009_770),
    "cpn101-tf": _cpn("cpn101-tf", (256, 192), 101, "tf", 46_001_898),
    "cpn50-384": _cpn("cpn50-384", (384, 288), 50, "torch", 27_406_826),
    "cpn101-384": _cpn("cpn101-384", (384, 288), 101, "torch", 46_398_954),
    "cpn50-global": _cpn_variant("cpn50-global", 25_112_264, kwargs={"refine": "none"}),
    "cpn50-star": _cpn_variant("cpn50-star", 27_406_826, network="cpn:CPNStar"),
    "cpn-pin": _cpn_variant(
        "cpn-pin",
        27_222_346,
        skeleton="pin",
        custom=PIN,
        peaks=2,
        padding=1.0,
        method="parabola",
    ),
    "cpm-flic": _cpm("cpm-flic", "flic9", 21_323_816, kwargs={"stages": 4}),
    "cpm-lsp": _cpm("cpm-lsp", "cpm14", 31_219_866, kwargs={"stages": 6}),
    "cpm-vgg": _cpm("cpm-vgg", "cpm14", 29_852_058, "cpm:CPMVGG"),
    "cpm-bn": _cpm(
        "cpm-bn",
        "mpii16",
        31_225_568,
        "cpm:CPMBatchNorm",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        rgb=True,
        convention="msra",
        padding=1.25,
        method="quarter",
        sigma=2.0,
        paper=f"{CPM_PAPER}; with batch norm, as in OpenMMLab's mmpose",
        background=False,
        views=(1.0,),
        enlarge=1,
    ),
    "cpm-person": _cpm(
        "cpm-person",
        "centre",
        25_714_372,
        "cpm:CPMPerson",
        size=(376, 656),
        custom=CENTRE,
        padding=1.0,
        background=False,
        views=(1.0,),
    ),
    "structured-lsp": _structured("structured-lsp", 336, "lsp14", 87_992_851, tree="lsp26"),
    "structured-flic": _structured(  # the paper's network, before its release for LSP
        "structured-flic",
        448,
        "flic10",
        220_361_299,
        tree="flic18",
        fcn6_channels=4096,
        batch_norm=False,
        num_transform_convs=3,
        transform_mid_channels=128,
        pre_activate=True,
    ),
    "adversarial-mpii": _adversarial("adversarial-mpii", "mpii16", 89_987_968),
    "adversarial-lsp": _adversarial("adversarial-lsp", "lsp14", 89_973_120),
    "pbn-mpii": _pbn("pbn-mpii", "mpii16", "mpii16-data5", 25_690_752),
    "pbn6-mpii": _pbn("pbn6-mpii", "mpii16", "mpii16-hand6", 25_931_904),
    "pbn-lsp": _pbn("pbn-lsp", "lsp14", "lsp14-data5", 25_686_128),
    # those to be trained: see `fastpose.models.pbn.PBN`
    "pbn-mpii-norm": _pbn(
        "pbn-mpii-norm", "mpii16", "mpii16-data5", 25_695_872, norm_branches=True
    ),
    "pbn-lsp-norm": _pbn("pbn-lsp-norm", "lsp14", "lsp14-data5", 25_691_248, norm_branches=True),
    "tompson-flic": _tompson("tompson-flic", "flic", 2, (240, 320), "flic9", 18_614_482),
    "tompson-mpii": _tompson("tompson-mpii", "mpii", 2, (256, 256), "cpm14", 19_157_916),
    "tompson-mpii-8x": _tompson("tompson-mpii-8x", "mpii", 3, (256, 256), "cpm14", 20_043_420),
    "tompson-mpii-16x": _tompson("tompson-mpii-16x", "mpii", 4, (256, 256), "cpm14", 20_928_924),
    "hourglass2": _hourglass("hourglass2", 6_730_912, "hourglass:StackedHourglass", {"stacks": 2}),
    "hourglass8": _hourglass("hourglass8", 25_594_624, "hourglass:StackedHourglass", {"stacks": 8}),
}
DEFAULT_MODEL = "cpn-light"

COCO80 = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


def _fpn(name: str, depth: int, parameters: int) -> DetectorSpec:
    """The published detector, its long side brought from 1333 to a multiple of every stride."""
    return DetectorSpec(
        name=name,
        network="fpn:resnet_fpn",
        size=(1344, 1344),
        classes=COCO80,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        rgb=True,
        strides=(4, 8, 16, 32, 64),
        pooled=4,
        anchors=((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
        ratios=(0.5, 1.0, 2.0),
        canonical=224.0,
        width=256,
        per_level=1000,
        proposals=1000,
        batch=256,
        promising=0.0,
        score=0.3,
        paper="Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, as in Chen et "
        "al., Cascaded Pyramid Network for Multi-Person Pose Estimation, CVPR 2018",
        parameters=parameters,
        kwargs=(("depth", depth),),
    )


DETECTORS = {
    "fpn-light": DetectorSpec(
        name="fpn-light",
        network="fpn:light_fpn",
        size=(320, 320),
        classes=("person",),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        rgb=True,
        strides=(8, 16, 32),
        pooled=3,
        anchors=((16.0, 32.0), (56.0, 96.0), (160.0, 270.0)),
        ratios=(0.6, 1.2, 2.4),
        canonical=112.0,
        width=96,
        per_level=200,
        proposals=64,
        batch=16,
        promising=0.4,
        score=0.5,
        paper="after Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017; the "
        "trunk is our own",
        parameters=3_232_484,
    ),
    "fpn50": _fpn("fpn50", 50, 41_753_056),
    "fpn101": _fpn("fpn101", 101, 60_745_184),
}
DEFAULT_DETECTOR = "fpn-light"
