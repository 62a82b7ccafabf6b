"""Structured feature learning: parts exchange feature maps along a tree, not scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastpose import ops
from fastpose.errors import ModelError
from fastpose.models.layers import check_image
from fastpose.models.parts import part_tree

# convolutions of VGG-16 by width; "pool" halves the map, "none" is where a pool was taken out
VGG = (
    64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool",
    512, 512, 512, "none", 512, 512, 512,
)  # fmt: skip
STRIDE = 8
KERNEL = 7  # side of fcn6 and of the transform kernels
BACKGROUND = 512  # hidden channels of the background's branch


class Structured(nn.Module):
    """A VGG-16, a feature map for each part, and messages between neighbours in the body.

    Chu, Ouyang, Li, Wang, Structured Feature Learning for Pose Estimation, CVPR 2016. Every part
    has two maps of its own, made from the shared fcn6. One set is refined from the leaves of the
    tree to its root, the other from the root to the leaves, by learnt geometrical transform
    kernels, which shift and deform a neighbour's features before they are added. Both maps of a
    part are classified together: is it here, and turned how, or is this the background?

    The defaults are the model that the authors released for LSP. The paper's own form has
    `fcn6_channels` 4096 without norm, three transform kernels as wide as the maps, `pre_activate`
    and one type.

    Args:
        num_keypoints: K, the joints that the tree's parts are made of.
        tree: a name of `fastpose.models.parts.PART_TREES`: P parts.
        types: T, kinds of each part that are told apart; None for as many as the tree has.
        fcn6_channels: width of fcn6.
        batch_norm: fcn6 is normed.
        part_channels: width of a part's map.
        num_transform_convs: kernels that a message goes through, with a ReLU between two.
        transform_mid_channels: width between two of them.
        pre_activate: a part's own map goes through the ReLU before messages are added, too.

    Raises:
        ModelError: there is no such tree, or it is made of other joints than K, or one of the
            numbers is below 1.
    """

    def __init__(
        self,
        num_keypoints: int,
        tree: str = "lsp26",
        types: int | None = None,
        fcn6_channels: int = 1024,
        batch_norm: bool = True,
        part_channels: int = 128,
        num_transform_convs: int = 2,
        transform_mid_channels: int = 64,
        pre_activate: bool = False,
    ) -> None:
        super().__init__()
        parts = part_tree(tree)
        if num_keypoints != len(parts.joints):
            raise ModelError(
                f"the parts of {tree} are made of the {len(parts.joints)} joints of "
                f"{parts.skeleton}, got {num_keypoints}"
            )
        types = parts.types if types is None else types
        numbers = (
            types, fcn6_channels, part_channels, num_transform_convs, transform_mid_channels
        )  # fmt: skip
        if min(numbers) < 1:
            raise ModelError(
                "types, fcn6_channels, part_channels, num_transform_convs and "
                f"transform_mid_channels must be at least 1, got {numbers}"
            )
        self.parents = parts.parents
        self.activate = "before" if pre_activate else "after"
        count, edges = len(parts.parts), len(parts.parts) - 1

        self.trunk = _vgg16()
        self.fcn6 = nn.Sequential(
            nn.Conv2d(512, fcn6_channels, KERNEL, padding=KERNEL // 2),
            # one tenth of the new statistics: Caffe calls that a momentum of 0.9
            nn.BatchNorm2d(fcn6_channels, eps=1e-7, momentum=0.1) if batch_norm else nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.5),
        )
        # the raw maps of all parts, first those that are refined upwards
        self.fcn7 = nn.Conv2d(fcn6_channels, 2 * count * part_channels, 1)
        widths = [part_channels, *[transform_mid_channels] * (num_transform_convs - 1)]
        # a group for each edge, ordered by child, of the upward pass, then of the downward one;
        # never called as they stand, since an edge waits for those before it
        self.transforms = nn.ModuleList(
            nn.Conv2d(2 * edges * cin, 2 * edges * cout, KERNEL, groups=2 * edges)
            for cin, cout in zip(widths, [*widths[1:], part_channels], strict=True)
        )
        self.classify = nn.Conv2d(count * 2 * part_channels, count * types, 1, groups=count)
        self.background = nn.Sequential(
            nn.Conv2d(fcn6_channels, BACKGROUND, 1),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.5),
            nn.Conv2d(BACKGROUND, 1, 1),
        )
        self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """[N, 3, h, w] -> [N, P * T + 1, h / 8, w / 8], logits.

        The T types of the first part come first, the background last.

        Raises:
            ValueError: the image is none of 3 channels with h and w multiples of 8.
        """
        check_image(image, (3,), STRIDE)
        shared = self.fcn6(self.trunk(image))
        maps = self.fcn7(shared).unflatten(1, (2, len(self.parents), -1))
        refined = self.pass_messages(maps).transpose(1, 2)
        return torch.cat((self.classify(refined.flatten(1, 3)), self.background(shared)), dim=1)

    def pass_messages(self, maps: Tensor) -> Tensor:
        """[N, 2, P, C, h, w] raw -> refined maps, [:, 0] upwards and [:, 1] downwards."""
        edges = (2, len(self.parents) - 1, -1)
        return ops.propagate(
            maps,
            [transform.weight.unflatten(0, edges) for transform in self.transforms],
            [transform.bias.unflatten(0, edges) for transform in self.transforms],
            self.parents,
            direction="both",
            activate=self.activate,
        )

    def predict(self, image: Tensor) -> Tensor:
        """[N, 3, h, w] -> probabilities [N, P * T + 1, h / 8, w / 8], of sum 1 in each cell.

        Float32 at least: in half precision no cell would have that sum.
        """
        logits = self(image)
        return logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def _initialise(self) -> None:
        """As released where something was; VGG-16 should be given its ImageNet weights."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        for module in self.trunk:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fcn6[0].weight, std=0.001)
        nn.init.normal_(self.classify.weight, std=0.1)
        nn.init.normal_(self.background[-1].weight, std=0.1)


def _vgg16() -> nn.Sequential:
    """conv1_1 to conv5_3 without pool4 and pool5, at 1/8 of the image, named as by torchvision.

    Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR
    2015: its `features.N` is our `trunk.N`.
    """
    layers: list[nn.Module] = []
    cin = 3
    for item in VGG:
        match item:
            case int():
                layers += [nn.Conv2d(cin, item, 3, padding=1), nn.ReLU(inplace=True)]
                cin = item
            case "pool":
                layers.append(nn.MaxPool2d(2))
            case _:
                layers.append(nn.Identity())
    return nn.Sequential(*layers)
