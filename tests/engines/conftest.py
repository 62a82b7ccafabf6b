"""A tiny network, registered and trained for the length of a test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fastpose import models
from fastpose.models import trained
from fastpose.models.spec import ModelSpec

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
nn = torch.nn


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> None:
    torch.set_num_threads(1)  # more of them only wait for each other on networks of this size


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


@pytest.fixture
def network() -> nn.Module:
    return make_tiny()


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network as ONNX, in float32."""
    from fastpose.engines.build import export_onnx

    path = tmp_path_factory.mktemp("graph") / "tiny.onnx"
    export_onnx(make_tiny(), TINY, path, half=False)
    return path


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tiny network has a name, and an empty folder stands for `trained/`: the folder."""
    module = ModuleType("fastpose.models.tiny")
    module.Tiny = Tiny
    monkeypatch.setitem(sys.modules, "fastpose.models.tiny", module)
    monkeypatch.setitem(models.MODELS, "tiny", TINY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "trained"
    folder.mkdir()
    monkeypatch.setattr(trained, "folder", lambda: folder)
    return folder


@pytest.fixture
def tiny(registered: Path, graph: Path) -> Path:
    """`registered`, with the network's graph, weights and card in the folder."""
    from fastpose.models.weights import save_weights

    (registered / "tiny.onnx").write_bytes(graph.read_bytes())
    save_weights(make_tiny().state_dict(), registered / "tiny.safetensors")
    write_card(registered, {"weights_sha256": "ab" * 32})
    return registered


def write_card(folder: Path, values: dict) -> None:
    (folder / "tiny.json").write_text(json.dumps({"spec": TINY.to_dict(), **values}))
