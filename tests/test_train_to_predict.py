"""The whole life of a model: train, release, read the card, and use what was written."""

import json
from dataclasses import asdict

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from fastpose.cli import main
from fastpose.engines import open_engine
from fastpose.engines.manifest import file_hash
from fastpose.models import create, model_spec, trained

SPEC = model_spec("cpn-light")


def lsp(folder, count=3):
    """A set of `count` training and `count` test pictures in the shared layout."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(2 * count):
        name = f"im{i + 1:04d}.jpg"
        cv2.imwrite(str(folder / "images" / name), rng.integers(0, 255, (120, 90, 3), np.uint8))
        joints = np.concatenate((rng.uniform(10, 80, (14, 2)), np.ones((14, 1))), axis=1)
        rows.append(
            {
                "file": name,
                "index": i + 1,
                "split": "train" if i < count else "test",
                "width": 90,
                "height": 120,
                "joints": joints.tolist(),
            }
        )
    (folder / "annotations.json").write_text(json.dumps({"images": rows}))
    return folder


def test_train_writes_weights_graph_and_card_that_belong_together(tmp_path, capsys, monkeypatch):
    data, out = f"lsp:{lsp(tmp_path / 'lsp')}", tmp_path / "run"
    words = ["train", "cpn-light", "--data", data, "--val", data, f"--out={out}", "--batch", "3"]
    words += ["--schedule", "64x64:1", "--precision", "f32", "--device", "cpu", "--json"]
    monkeypatch.setattr("sys.argv", ["fastpose", *words])
    assert main(words) == 0
    card = json.loads(capsys.readouterr().out)
    assert card == json.loads((out / "cpn-light.json").read_text())
    assert card["graph_sha256"] == file_hash(out / "cpn-light.onnx")
    assert card["weights_sha256"] == file_hash(out / "cpn-light.safetensors")
    assert card["command"].startswith("fastpose train cpn-light --data lsp:lsp --val lsp:lsp ")
    assert "--out=run" in card["command"]
    assert str(tmp_path) not in json.dumps(card)  # no folder of this machine
    assert card["measured_on"] == {"kind": "lsp", "images": 3, "flip": False}
    assert set(card["engines"]) >= {"openvino f32"}
    assert "pck@0.2" in card["accuracy"]
    assert card["data"][0]["samples"] == 3
    assert "Leeds Sports Pose" in card["terms"]
    assert json.loads(json.dumps(asdict(SPEC))) == card["spec"]

    monkeypatch.setattr(trained, "folder", lambda: out)  # as if it had been put into trained/
    network = create("cpn-light", out / "cpn-light.safetensors")
    window = np.random.default_rng(1).standard_normal((1, 3, *SPEC.size)).astype(np.float32)
    import torch

    with torch.inference_mode():
        expected = network(torch.from_numpy(window))[-1].numpy()
    actual = open_engine("cpn-light", precision="f32")(window)
    # the graph keeps its folded weights in half
    assert np.abs(actual - expected).max() <= 5e-3 * np.abs(expected).max()
    assert main(["eval", "cpn-light", "--data", data, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["pck@0.2"] == pytest.approx(card["accuracy"]["pck@0.2"], abs=0.01)
