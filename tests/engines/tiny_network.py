"""A network that compiles at once, with its spec and its card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastpose.engines.manifest import file_hash
from fastpose.models.spec import ModelSpec

torch = pytest.importorskip("torch")
nn = torch.nn

TINY = ModelSpec(
    name="tiny",
    network="tiny:Tiny",
    size=(16, 24),
    stride=4,
    skeleton="lsp14",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    rgb=True,
    convention="symmetric",
    padding=1.25,
    method="parabola",
    sigma=1.0,
    peak_value=1.0,
    paper="none",
)


class Tiny(nn.Module):
    """Convolutions and a transposed one, each with a norm; a coarse output and a final one."""

    def __init__(self, num_keypoints: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, 8, 4, 4, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.deeper = nn.Conv2d(8, 8, 2, 2)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 4, 2, padding=1, bias=False)
        self.up_norm = nn.BatchNorm2d(8)
        self.coarse = nn.Conv2d(8, num_keypoints, 1)
        self.final = nn.Conv2d(8, num_keypoints, 3, padding=1)

    def forward(self, image):
        if image.shape[2] % 8:
            raise ValueError("image must be a multiple of 8 high")
        x = self.down(image)
        y = torch.relu(self.norm(self.deeper(x)))
        y = self.up_norm(self.up(y))
        return [self.coarse(x)], self.final(x + y)

    def predict(self, image):
        return self(image)[1]


def make_tiny() -> nn.Module:
    """The network with weights and statistics that make every fault of folding visible."""
    generator = torch.Generator().manual_seed(3)
    network = Tiny(len(TINY.joints))
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.2, 3.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0.0, 0.5, generator=generator)
            tensor.copy_(tensor.half())  # as it comes back from a weight file
    return network.eval()


def write_card(folder: Path, **values: object) -> None:
    """The card of what lies in the folder."""
    graph_hash = file_hash(folder / "tiny.onnx")
    hashes = {"graph_sha256": graph_hash, "weights_sha256": "ab" * 32}
    (folder / "tiny.json").write_text(json.dumps({"spec": TINY.to_dict(), **hashes, **values}))
