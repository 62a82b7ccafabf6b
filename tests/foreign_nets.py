"""Names and shapes of published networks, written down from their code, without ours.

Norms have their counters, as in files of torch.
"""

from __future__ import annotations

import torch
from seeded import seeded_values
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

VGG16, VGG19 = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def conv(name: str, cin: int, cout: int, kernel: int = 1, *, bias: bool = True) -> Shapes:
    weight = {f"{name}.weight": (cout, cin, kernel, kernel)}
    return weight | ({f"{name}.bias": (cout,)} if bias else {})


def norm(name: str, channels: int) -> Shapes:
    kinds = ("weight", "bias", "running_mean", "running_var")
    counter: Shapes = {f"{name}.num_batches_tracked": ()}
    return {f"{name}.{kind}": (channels,) for kind in kinds} | counter


def row(names: str, channels: list[int], kernels: list[int]) -> Shapes:
    """Convolutions one behind the other, of names with their numbers from 1."""
    shapes: Shapes = {}
    for i, kernel in enumerate(kernels):
        shapes |= conv(names.format(i + 1), channels[i], channels[i + 1], kernel)
    return shapes


def vgg(blocks: tuple[int, ...], name: str = "conv{}_{}") -> Shapes:
    """Its convolutions as in Caffe."""
    shapes: Shapes = {}
    cin = 3
    for block, count in enumerate(blocks, 1):
        for layer in range(1, count + 1):
            cout = min(32 * 2**block, 512)
            shapes |= conv(name.format(block, layer), cin, cout, 3)
            cin = cout
    return shapes


def caffe_vgg(blocks: tuple[int, ...]) -> Shapes:
    fully = {"fc6.weight": (4096, 25088), "fc6.bias": (4096,), "fc8.bias": (1000,)}
    return vgg(blocks) | fully


def torchvision_vgg(blocks: tuple[int, ...]) -> Shapes:
    features = {16: (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
                19: (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)}  # fmt: skip
    places = features[sum(blocks) + 3]
    shapes = list(vgg(blocks).values())
    state = {f"features.{n}.weight": shapes[2 * i] for i, n in enumerate(places)}
    state |= {f"features.{n}.bias": shapes[2 * i + 1] for i, n in enumerate(places)}
    return state | {"classifier.0.weight": (4096, 25088), "classifier.0.bias": (4096,)}


def cpm(maps: int, stages: int) -> Shapes:
    wide = [9, 9, 9, 5, 9, 1, 1]
    shapes = row("conv{}_stage1", [3, 128, 128, 128, 32, 512, 512, maps], wide)
    shapes |= row("conv{}_stage2", [3, 128, 128, 128, 32], wide[:4])
    for stage in range(2, stages + 1):
        if stage > 2:
            shapes |= conv(f"conv1_stage{stage}", 128, 32, 5)
        channels = [33 + maps, 128, 128, 128, 128, maps]
        shapes |= row(f"Mconv{{}}_stage{stage}", channels, [11, 11, 11, 1, 1])
    return shapes


def cpm_on_vgg(deeper: Shapes, features: int, maps: int, stages: int, centred: int) -> Shapes:
    shapes = vgg((2, 2, 4)) | deeper
    for stage in range(2, stages + 1):
        channels = [features + maps + centred, *[128] * 6, maps]
        shapes |= row(f"Mconv{{}}_stage{stage}", channels, [7, 7, 7, 7, 7, 1, 1])
    return shapes


def cpm_vgg() -> Shapes:
    deeper = row("conv4_{}", [256, 512, 512], [3, 3])
    for layer, cin, cout in (
        (3, 512, 256),
        (4, 256, 256),
        (5, 256, 256),
        (6, 256, 256),
        (7, 256, 128),
    ):
        deeper |= conv(f"conv4_{layer}_CPM", cin, cout, 3)
    deeper |= conv("conv5_1_CPM", 128, 512) | conv("conv5_2_CPM", 512, 15)
    return cpm_on_vgg(deeper, 128, 15, 6, 1)


def cpm_person() -> Shapes:
    deeper = row("conv4_{}", [256, 512, 512, 512, 512], [3] * 4) | conv("conv5_1", 512, 512, 3)
    deeper |= conv("conv5_2_CPM", 512, 128, 3)
    deeper |= conv("conv6_1_CPM", 128, 512) | conv("conv6_2_CPM", 512, 1)
    return cpm_on_vgg(deeper, 128, 1, 4, 0)


def mmpose_cpm(maps: int = 16) -> Shapes:
    def unit(name: str, cin: int, cout: int, kernel: int) -> Shapes:
        return conv(f"{name}.conv", cin, cout, kernel, bias=False) | norm(f"{name}.bn", cout)

    shapes: Shapes = {}
    for branch in ("stem", "middle"):
        for place, cin in zip((0, 2, 4), (3, 128, 128), strict=True):
            shapes |= unit(f"{branch}.{place}", cin, 128, 9)
    for place, cin, cout, kernel in ((6, 128, 32, 5), (7, 32, 512, 9), (8, 512, 512, 1)):
        shapes |= unit(f"stem.{place}", cin, cout, kernel)
    shapes |= conv("stem.9.conv", 512, maps)
    for stage in range(5):
        for place, cin in enumerate((32 + maps, 128, 128)):
            shapes |= unit(f"cpm_stages.{stage}.model.{place}", cin, 128, 11)
        shapes |= unit(f"middle_conv.{stage}.0", 128, 32, 5)
        shapes |= unit(f"out_convs.{stage}.0", 128, 128, 1)
        shapes |= conv(f"out_convs.{stage}.1.conv", 128, maps)
    return {f"backbone.{name}": shape for name, shape in shapes.items()}


def pytorch_pose(stacks: int, joints: int = 16) -> Shapes:
    def unit(name: str, cin: int, mid: int) -> Shapes:
        shapes = norm(f"{name}.bn1", cin) | conv(f"{name}.conv1", cin, mid)
        shapes |= norm(f"{name}.bn2", mid) | conv(f"{name}.conv2", mid, mid, 3)
        shapes |= norm(f"{name}.bn3", mid) | conv(f"{name}.conv3", mid, 2 * mid)
        return shapes | (conv(f"{name}.downsample.0", cin, 2 * mid) if cin != 2 * mid else {})

    shapes = conv("conv1", 3, 64, 7) | norm("bn1", 64)
    shapes |= unit("layer1.0", 64, 64) | unit("layer2.0", 128, 128) | unit("layer3.0", 256, 128)
    for stack in range(stacks):
        for level in range(4):
            for place in range(4 if level == 0 else 3):
                shapes |= unit(f"hg.{stack}.hg.{level}.{place}.0", 256, 128)
        shapes |= unit(f"res.{stack}.0", 256, 128)
        shapes |= conv(f"fc.{stack}.0", 256, 256) | norm(f"fc.{stack}.1", 256)
        shapes |= conv(f"score.{stack}", 256, joints)
        if stack < stacks - 1:
            shapes |= conv(f"fc_.{stack}", 256, 256) | conv(f"score_.{stack}", joints, 256)
    return shapes


def plain(name: str, cin: int, cout: int, kernel: int = 1) -> Shapes:
    return conv(name, cin, cout, kernel, bias=False)


def bottleneck(name: str, cin: int, mid: int, cout: int, projected: bool) -> Shapes:
    shapes = plain(f"{name}.conv1", cin, mid) | norm(f"{name}.bn1", mid)
    shapes |= plain(f"{name}.conv2", mid, mid, 3) | norm(f"{name}.bn2", mid)
    shapes |= plain(f"{name}.conv3", mid, cout) | norm(f"{name}.bn3", cout)
    if projected:
        shapes |= plain(f"{name}.downsample.0", cin, cout) | norm(f"{name}.downsample.1", cout)
    return shapes


def resnet(depth: int, prefix: str = "") -> Shapes:
    shapes = plain(f"{prefix}conv1", 3, 64, 7) | norm(f"{prefix}bn1", 64)
    cin = 64
    for stage, (count, mid) in enumerate(zip(STAGES[depth], (64, 128, 256, 512), strict=True), 1):
        for block in range(count):
            name = f"{prefix}layer{stage}.{block}"
            shapes |= bottleneck(name, cin, mid, 4 * mid, block == 0)
            cin = 4 * mid
    return shapes


def pytorch_cpn(depth: int, joints: int = 17) -> Shapes:
    shapes = resnet(depth, "resnet.")
    for level, channels in enumerate((2048, 1024, 512, 256)):
        lateral, predict = f"global_net.laterals.{level}", f"global_net.predict.{level}"
        shapes |= plain(f"{lateral}.0", channels, 256) | norm(f"{lateral}.1", 256)
        if level < 3:
            up = f"global_net.upsamples.{level}"
            shapes |= plain(f"{up}.1", 256, 256) | norm(f"{up}.2", 256)
        shapes |= plain(f"{predict}.0", 256, 256) | norm(f"{predict}.1", 256)
        shapes |= plain(f"{predict}.3", 256, joints, 3) | norm(f"{predict}.5", joints)
        for block in range(3 - level):
            shapes |= bottleneck(f"refine_net.cascade.{level}.{block}", 256, 128, 256, True)
    shapes |= bottleneck("refine_net.final_predict.0", 1024, 128, 256, True)
    last = "refine_net.final_predict"
    return shapes | plain(f"{last}.1", 256, joints, 3) | norm(f"{last}.2", joints)


def seeded_state(shapes: Shapes) -> dict[str, Tensor]:
    """Weights that depend on their names alone, as `seed_weights` makes them."""
    return {n: seeded_values(n, s) if s else torch.tensor(1000) for n, s in shapes.items()}
