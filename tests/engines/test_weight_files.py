"""Weight files that lie anywhere: the card beside them names the model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny_network import TINY, make_tiny

from fastpose import Pose
from fastpose.engines import open_engine
from fastpose.engines.manifest import file_hash
from fastpose.errors import FastposeError, WeightsError
from fastpose.models.weights import save_weights

torch = pytest.importorskip("torch")


@pytest.fixture
def weights(registered: Path, tmp_path: Path) -> Path:
    """Weights of the tiny network, which itself is untrained, and their card."""
    path = tmp_path / "mine.safetensors"
    save_weights(make_tiny().state_dict(), path, half=False)
    write_card(path)
    return path


def write_card(weights: Path, **changes: object) -> None:
    card = {"name": "tiny", "weights_sha256": file_hash(weights), **changes}
    weights.with_suffix(".json").write_text(json.dumps(card))


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime", "torch"])
@pytest.mark.parametrize("text", [str, Path])
def test_a_weight_file_is_opened_as_the_model_of_its_card(weights, kind, text):
    images = np.random.default_rng(0).normal(size=(2, 3, *TINY.size)).astype(np.float32)
    with torch.inference_mode():
        expected = make_tiny().predict(torch.from_numpy(images)).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the weights are not random ones
        engine = open_engine(text(weights), kind=kind, threads=1)
    assert engine.manifest.name == "tiny"
    assert engine.manifest.weights_hash == file_hash(weights)
    assert engine.manifest.precision == "f32"
    np.testing.assert_allclose(engine(images), expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_pose_takes_a_weight_file(weights):
    with Pose(weights, detector="none") as pose:
        assert len(pose(np.zeros((80, 60, 3), np.uint8))) == 1


def test_weights_that_are_partly_random_are_told(weights):
    write_card(weights, random=3)
    with pytest.warns(UserWarning, match=r"mine\.safetensors: 3 tensors are random"):
        open_engine(weights, kind="torch", threads=1)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("absent", r"none\.safetensors: no such file"),
        ("card", r"mine\.json: no card of a model"),
        ("damaged", r"mine\.json: not a model's card"),
        ("changed", r"mine\.json: not the card of mine\.safetensors: weights_sha256 differs"),
        ("unknown", r"unknown model 'tinier'; known: "),
        ("nameless", r"unknown model 'None'; known: "),
    ],
)
def test_files_that_do_not_belong_together(weights, fault, text):
    card = weights.with_suffix(".json")
    match fault:
        case "absent":
            weights = weights.with_name("none.safetensors")
        case "card":
            card.unlink()
        case "damaged":
            card.write_text("[")
        case "changed":
            weights.write_bytes(weights.read_bytes() + b" ")
        case "unknown":
            write_card(weights, name="tinier")
        case "nameless":
            card.write_text(json.dumps({"weights_sha256": file_hash(weights)}))
    with pytest.raises(FastposeError, match=text) as error:
        open_engine(weights, threads=1)
    assert "\n" not in str(error.value)


def test_weights_of_another_network(weights):
    save_weights({"other": torch.zeros(3)}, weights)
    write_card(weights)
    with pytest.raises(WeightsError, match=r"mine\.safetensors: weights of another network"):
        open_engine(weights, threads=1)
