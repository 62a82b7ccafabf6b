"""A network whose joints stay where they are in every precision: it blurs what it sees."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from tiny_network import TINY

from fastpose import models
from fastpose.engines.manifest import file_hash
from fastpose.models import trained

torch = pytest.importorskip("torch")
nn = torch.nn

CALM = replace(TINY, name="calm", network="calm:Calm", size=(64, 48))
WIDTH = 8


class Calm(nn.Module):
    """Heat maps that follow the brightness, a little differently for each joint."""

    def __init__(self, num_keypoints: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, WIDTH, 4, 4)
        blurs = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(5))
        self.blur = nn.Sequential(*(layer for blur in blurs for layer in (blur, nn.ReLU())))
        self.final = nn.Conv2d(WIDTH, num_keypoints, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.down.weight[:] = 1 / 48
            kernel = torch.tensor([[0.02, 0.05, 0.02], [0.05, 0.72, 0.05], [0.02, 0.05, 0.02]])
            for blur in self.blur[::2]:
                blur.weight[range(WIDTH), range(WIDTH)] = kernel
            self.final.weight[:] = torch.linspace(0.5, 1, num_keypoints)[:, None, None, None] / 8

    def predict(self, image):
        return self.final(self.blur(self.down(image)))


def make_trained(folder: Path) -> None:
    """Graph, weights and card, as `trained/` has them."""
    from fastpose.engines.build import export_onnx
    from fastpose.models.weights import save_weights

    network = Calm(len(CALM.joints)).eval()
    weights, graph = folder / "calm.safetensors", folder / "calm.onnx"
    save_weights(network.state_dict(), weights)
    export_onnx(network, CALM, graph, half=False)
    card = {"weights_sha256": file_hash(weights), "graph_sha256": file_hash(graph)}
    (folder / "calm.json").write_text(json.dumps({"spec": CALM.to_dict(), **card}))


def register(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network has a name, and `folder` stands for `trained/`."""
    module = ModuleType("fastpose.models.calm")
    module.Calm = Calm
    monkeypatch.setitem(sys.modules, "fastpose.models.calm", module)
    monkeypatch.setitem(models.MODELS, "calm", CALM)
    monkeypatch.setattr(trained, "folder", lambda: folder)
