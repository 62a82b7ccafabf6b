"""The table of costs against the networks, and the walk that made it against sums and gradients."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from seeded import uniform
from torch import Tensor, nn

from fastpose.cli import main
from fastpose.models import DETECTORS, MODELS
from fastpose.models.costs import COSTS
from fastpose.models.count import measure, receptive_field, walk
from fastpose.models.cpm import CPM
from fastpose.models.cpn import ResNet, Upsample


@pytest.mark.parametrize("name", [*MODELS, *DETECTORS])
def test_the_table_is_what_the_network_costs(name: str) -> None:
    assert name in COSTS, "no entry in costs.py; `python -m fastpose.models.count` prints them all"
    assert measure(name) == COSTS[name]


def test_the_table_has_no_others() -> None:
    assert COSTS.keys() == {*MODELS, *DETECTORS}


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("cpm-flic", 154.5),
        ("cpm-lsp", 175.4),
        ("cpm-vgg", 88.4),
        ("cpm-person", 145.1),
        ("structured-lsp", 173.1),
    ],
)
def test_costs_that_are_known_from_the_layers_of_the_papers(name: str, gmacs: float) -> None:
    assert COSTS[name].gmacs == pytest.approx(gmacs, abs=0.05)


@pytest.mark.parametrize(("stages", "field"), [(1, 167), (2, 407), (3, 647), (4, 887), (6, 1367)])
def test_each_stage_of_a_pose_machine_sees_further(stages: int, field: int) -> None:
    with torch.device("meta"):
        network = CPM(9, stages=stages).eval()
    assert receptive_field(network.predict, (368, 368), (46, 46)) == field


@pytest.mark.parametrize(("blocks", "field"), [((3, 4, 6, 3), 427), ((3, 4, 23, 3), 971)])
def test_the_field_of_a_resnet_is_the_known_one(
    blocks: tuple[int, int, int, int], field: int
) -> None:
    """Those of ResNet-50 and -101 with the stride in the 3x3 convolution."""
    with torch.device("meta"):
        network = ResNet(blocks)
    assert receptive_field(network, (224, 224), (7, 7)) == field


class Branches(nn.Module):
    """Two scales that are cut, turned and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, 4, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        up = nn.functional.interpolate(self.coarse(x), scale_factor=4.0)
        joined = torch.cat((self.fine(x), up), dim=1).unflatten(1, (2, 4)).transpose(1, 2)
        return joined.flatten(1, 2)[:, :, 1:, 2:].flip(3).relu().sum(dim=1, keepdim=True)


def resized(factor: float, corners: bool) -> nn.Module:
    return nn.Sequential(
        nn.MaxPool2d(2),
        nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=corners),
    )


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(3, 2, 3, 2, padding=1),
    "dilated, of groups": lambda: nn.Conv2d(3, 6, (3, 5), padding=(2, 4), dilation=2, groups=3),
    "transposed": lambda: nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ConvTranspose2d(4, 2, 4, 2, 1)),
    "transposed, odd": lambda: nn.ConvTranspose2d(3, 2, 3, 3, output_padding=1),
    "pool over the edge": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "average": lambda: nn.AvgPool2d((3, 2), (2, 1), padding=(1, 0)),
    "bilinear": lambda: resized(2.0, False),
    "bilinear, corners": lambda: resized(3.0, True),
    "nearest": lambda: nn.Sequential(nn.AvgPool2d(4), nn.Upsample(scale_factor=4)),
    "TensorFlow's": lambda: nn.Sequential(nn.AvgPool2d(4), Upsample(4, "tf")),
    "zeros round it": lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 3, 0)), nn.AvgPool2d(2)),
    "mirrored": lambda: nn.Sequential(nn.ReflectionPad2d((1, 2, 3, 0)), nn.AvgPool2d(2)),
    "repeated": lambda: nn.Sequential(nn.ReplicationPad2d((1, 2, 3, 0)), nn.AvgPool2d(2)),
    "branches": Branches,
}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_cell_sees_the_pixels_that_move_it(layer: str) -> None:
    """The hull of where the gradient of a cell is not 0, weights being positive."""
    network = LAYERS[layer]().double()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    # higher towards every pixel in turn, so that each can be the highest of a pool
    images = 1 + uniform("pixels", (24, 3, 24, 16)).double()
    images.requires_grad_()
    maps = network(images)
    h, w = maps.shape[2:]
    with torch.device("meta"):
        rows, columns = walk(network.to("meta", torch.float32), (24, 16)).seen[h, w]
    for y, x in ((0, 0), (h // 2, w // 2), (h - 1, w - 1), (h // 3, w - 2)):
        (gradient,) = torch.autograd.grad(maps[:, :, y, x].sum(), images, retain_graph=True)
        touched = gradient.abs().amax(dim=(0, 1)) > 0
        seen = (rows.first[y], rows.last[y]), (columns.first[x], columns.last[x])
        if touched.any():
            moved = (touched.any(1).nonzero(), touched.any(0).nonzero())
            assert seen == tuple((pixels.min(), pixels.max()) for pixels in moved)
        else:  # it lies in the padding
            assert any(first > last for first, last in seen)


def test_what_looks_at_the_whole_image_has_no_end() -> None:
    class Contrast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.mean(dim=(1, 2, 3), keepdim=True)

    assert receptive_field(Contrast(), (8, 8), (8, 8)) is None
    assert receptive_field(nn.Identity(), (8, 8), (4, 4)) is None  # there is no such map


def test_multiply_adds_written_out() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, padding=1, groups=1),  # 8 x 6 cells of 8 x 27
        nn.Conv2d(8, 4, (1, 5), groups=4, padding=(0, 2)),  # 8 x 6 of 4 x 10
        nn.ConvTranspose2d(4, 2, 4, 2, padding=1),  # 8 x 6 of 4 x 32
        nn.Flatten(),
        nn.Linear(2 * 16 * 12, 5),
    ).to("meta")
    expected = 48 * 8 * 27 + 48 * 4 * 10 + 48 * 4 * 32 + 384 * 5
    assert walk(network, (16, 12)).macs == expected


def test_models_are_listed_with_their_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for kind in ("models", "detectors") for row in listed[kind]}
    assert {n: (r["gmacs"], r["receptive_field"]) for n, r in rows.items()} == {
        n: (c.gmacs, c.receptive_field) for n, c in COSTS.items()
    }
    assert rows["cpm-lsp"]["views"] == 7
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    (line,) = (line for line in lines if line.startswith("cpm-lsp "))
    assert line.split()[3:7] == ["31.22", "M", "7x175.4", "1367"]
    (line,) = (line for line in lines if line.startswith("tompson-mpii "))
    assert line.split()[5:7] == ["58.7", "all"]


def test_a_model_without_costs_is_listed_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(COSTS, "cpn50")
    assert main(["models"]) == 0
    (line,) = (s for s in capsys.readouterr().out.splitlines() if s.startswith("cpn50 "))
    assert line.split()[5:7] == ["-", "-"]
