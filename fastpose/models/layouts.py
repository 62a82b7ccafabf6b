"""How other projects name the tensors of the networks that we have, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fastpose.models.parts import part_tree
from fastpose.models.registry import IMAGENET_MEAN, IMAGENET_STD

CAFFE_FILES = (".caffemodel", ".npz")

UNKNOWN_TERMS = "unknown: see where the file came from"
CMU_TERMS = (
    "those of the CPM release, by Carnegie Mellon University: non-commercial research of academic "
    "and non-profit organisations alone"
)
IMAGENET_TERMS = "BSD-3-Clause as torchvision's code; learnt from ImageNet, which has its own terms"
OPENMMLAB_TERMS = "Apache-2.0 as OpenMMLab's code; the data they were learnt from has its own terms"
UNSTATED_TERMS = "none stated by the authors: ask them before other use than research"


@dataclass(frozen=True)
class Rows:
    """Where a tensor belongs: into one of ours, or into one of `count` equal blocks of its rows.

    Attributes:
        name: of our tensor, or of the layer that it is of.
        block: which of the blocks, from 0 on.
        count: 1 for the whole tensor.
    """

    name: str
    block: int = 0
    count: int = 1


@dataclass(frozen=True)
class Pixels:
    """What a network was taught to see: (value - mean) / std, in units of 0-255.

    Attributes:
        layer: their name of the convolution that sees it.
        mean, std: per channel.
        rgb: red comes first.
    """

    layer: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rgb: bool


@dataclass(frozen=True)
class Layout:
    """How another project names the tensors of a network.

    Attributes:
        name: of the project or of its network.
        mark: pattern; names that begin with it occur in this layout alone.
        models: names of ours that have the network, or the part of it that the layout has; none
            for a network that we have not.
        renames: (pattern, replacement) pairs that turn a name into ours, applied in turn.
        rows: their layers that are blocks of one of ours; the others are renamed.
        files: suffixes of the files that have the layout; () for those of torch and all others.
        terms: under which the weights may be used, as far as it is stated.
        note: what must be known of such weights and is not seen in the file.
        pixels: for a trunk that saw other pixels than our network does; see `foreign.refit`.
    """

    name: str
    mark: str
    models: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    rows: Mapping[str, Rows] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    terms: str = UNKNOWN_TERMS
    note: str = ""
    pixels: Pixels | None = None

    def place(self, name: str) -> Rows:
        """Where a tensor of theirs belongs."""
        layer, _, kind = name.rpartition(".")
        if layer in self.rows:
            rows = self.rows[layer]
            return Rows(f"{rows.name}.{kind}", rows.block, rows.count)
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return Rows(name)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many blocks those of our layers have that are more than one of theirs."""
        return {rows.name: rows.count for rows in self.rows.values()}


def _vgg(blocks: tuple[int, ...]) -> dict[str, int]:
    """Caffe's names of a VGG's convolutions, and their places in torchvision's `features`."""
    places, place = {}, 0
    for block, count in enumerate(blocks, 1):
        for layer in range(1, count + 1):
            places[f"conv{block}_{layer}"] = place
            place += 2  # a ReLU follows each
        place += 1  # and a pooling each block
    return places


VGG16, VGG19 = _vgg((2, 2, 3, 3, 3)), _vgg((2, 2, 4, 4, 4))
VGG16_TO_TRUNK = tuple((rf"^{name}\.", f"trunk.{place}.") for name, place in VGG16.items())
VGG19_TO_CAFFE = tuple((rf"^features\.{place}\.", f"{name}.") for name, place in VGG19.items())


def _structured_rows(tree: str) -> dict[str, Rows]:
    """The released layers for each part and each edge, numbered from 1, in our joined ones.

    `fconv7` are those of the upward pass, `fconvb27` of the downward one.
    """
    parents = part_tree(tree).parents
    parts, edges = len(parents), len(parents) - 1
    rows = {}
    for part in range(parts):
        rows[f"fconv7_{part + 1}"] = Rows("fcn7", part, 2 * parts)
        rows[f"fconvb27_{part + 1}"] = Rows("fcn7", parts + part, 2 * parts)
        rows[f"fconv9_{part + 1}"] = Rows("classify", part, parts)
    children = [part for part in range(parts) if parents[part] >= 0]
    for edge, child in enumerate(children):
        parent = parents[child] + 1
        for step in (1, 2):
            ours = f"transforms.{step - 1}"
            rows[f"fconv7_{child + 1}to{parent}_step{step}"] = Rows(ours, edge, 2 * edges)
            down = f"fconvb27_{parent}to{child + 1}_step{step}"
            rows[down] = Rows(ours, edges + edge, 2 * edges)
    return rows


STRUCTURED = Layout(
    "StructuredFeature",
    r"fconv6_bn\.",
    ("structured-lsp",),
    (
        *VGG16_TO_TRUNK,
        (r"^fcn6_new\.", "fcn6.0."),
        (r"^fconv6_bn\.", "fcn6.1."),
        (r"^fconvb27_27\.", "background.0."),
        (r"^fconv9_27\.", "background.3."),
    ),
    _structured_rows("lsp26"),
    terms=UNSTATED_TERMS,
    note="left and right are those of the picture, not of the person; and which offsets a part's "
    "13 types stand for was not published, so the tree takes those of our own clustering",
)

# it counts the levels of an hourglass from the innermost; a level has a residual beside it,
# one before and one behind the next level, and the innermost one in the middle
HOURGLASS = (
    *(
        (rf"^hg\.(\d+)\.hg\.{level}\.", rf"hourglasses.\1.{'inner.' * (3 - level)}")
        for level in range(4)
    ),
    *(
        (rf"^(hourglasses\.\d+\.(?:inner\.)*){place}\.", rf"\1{name}.")
        for place, name in enumerate(("skip", "down", "up", "inner"))
    ),
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"^layer1\.0\.", "stem.3."),
    (r"^layer2\.0\.", "stem.5."),
    (r"^layer3\.0\.", "stem.6."),
    (r"\.downsample\.0\.", ".project."),
    (r"^res\.", "residuals."),
    (r"^fc\.", "features."),
    (r"^score\.", "scores."),
    (r"^fc_\.", "remap_features."),
    (r"^score_\.", "remap_scores."),
)

CPN_TORCH = ("cpn50", "cpn101", "cpn50-384", "cpn101-384")
CPN = (*CPN_TORCH, "cpn50-tf", "cpn101-tf")
CPM = ("cpm-flic", "cpm-lsp")
CPM_ON_VGG = ("cpm-vgg", "cpm-person")

LAYOUTS = (
    Layout(
        "pytorch-cpn",
        r"global_net\.predict\.\d\.5\.",
        CPN_TORCH,
        terms="none stated of the weights; the code that trains them is under GPL-3.0",
    ),
    Layout(
        "torchvision ResNet",
        r"layer4\.2\.conv3\.",
        CPN,
        ((r"^", "resnet."),),
        terms=IMAGENET_TERMS,
    ),
    Layout(
        "OpenMMLab ResNet",
        r"backbone\.layer4\.2\.conv3\.",
        CPN,
        ((r"^backbone\.", "resnet."),),
        terms=OPENMMLAB_TERMS,
    ),
    # OpenPose came from the CPM release, but has two branches, of joints and of limbs
    Layout("OpenPose", r"(\w+\.)?M?conv\d+(_\d+)?_(CPM|stage\d)_L\d"),
    Layout("CPM release", r"conv7_stage1\.", CPM, files=CAFFE_FILES, terms=CMU_TERMS),
    Layout(
        "CPM with Caffe's names",
        r"conv7_stage1\.",
        CPM,
        note="right if converted from the Caffe release; networks trained by PyTorch ports may "
        "pad their poolings, order the maps otherwise or draw a narrower centre map",
    ),
    Layout("CPM release on VGG-19", r"conv4_7_CPM\.", ("cpm-vgg",), terms=CMU_TERMS),
    Layout("CPM release, persons", r"conv6_1_CPM\.", ("cpm-person",), terms=CMU_TERMS),
    Layout(
        "mmpose CPM",
        r"(backbone\.)?cpm_stages\.",
        ("cpm-bn",),
        ((r"^backbone\.", ""),),
        terms=OPENMMLAB_TERMS,
    ),
    Layout(
        "pytorch-pose",
        r"hg\.\d+\.hg\.\d\.",
        ("hourglass2", "hourglass8"),
        HOURGLASS,
        terms="none stated of the weights; the code that trains them is under GPL-3.0",
    ),
    STRUCTURED,
    Layout("Caffe VGG-19", r"conv5_4\.", CPM_ON_VGG, terms="those of Oxford's VGG group"),
    Layout(
        "Caffe VGG-16",
        r"conv5_3\.",
        ("structured-lsp", "structured-flic"),
        VGG16_TO_TRUNK,
        terms="those of Oxford's VGG group",
    ),
    Layout("torchvision VGG with batch norm", r"features\.\d+\.running_mean"),
    Layout(
        "torchvision VGG-19",
        r"features\.34\.",
        CPM_ON_VGG,
        VGG19_TO_CAFFE,
        terms=IMAGENET_TERMS,
        pixels=Pixels("features.0", IMAGENET_MEAN, IMAGENET_STD, rgb=True),
    ),
    Layout(
        "torchvision VGG-16",
        r"features\.24\.",
        ("structured-lsp", "structured-flic"),
        ((r"^features\.", "trunk."),),
        terms=IMAGENET_TERMS,
        pixels=Pixels("features.0", IMAGENET_MEAN, IMAGENET_STD, rgb=True),
    ),
    # CPN's successors in mmpose, which has no CPN: a ReLU behind each sum of the pyramid, other
    # heads, no RefineNet
    Layout("mmpose MSPN", r"backbone\.multi_stage_mspn\."),
    Layout("mmpose RSN", r"backbone\.multi_stage_rsn\."),
    # its hourglass is CornerNet's: strided basic blocks in place of poolings and bottlenecks
    Layout("mmpose hourglass", r"backbone\.hourglass_modules\."),
    Layout("HRNet", r"(backbone\.)?stage4\.0\.branches\."),
    Layout("ViTPose", r"(backbone\.)?patch_embed\.proj"),
    Layout("RTMPose", r"head\.cls_x\."),
)
