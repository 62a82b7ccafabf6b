"""Weight files: what is written is what is read, and nothing else is."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from seeded import seed_weights
from torch import nn

from fastpose.errors import WeightsError
from fastpose.models import create
from fastpose.models.weights import load_weights, save_weights

safetensors = pytest.importorskip("safetensors.torch")
load_file = safetensors.load_file
save_file = safetensors.save_file


def small() -> nn.Module:
    """A network with every kind of tensor that a weight file knows."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    network = small()
    seed_weights(network)
    path = tmp_path / "small.safetensors"
    save_weights(network.state_dict(), path)
    return network, path


def test_round_trip_rounds_to_half_precision_but_for_statistics(
    saved: tuple[nn.Module, Path],
) -> None:
    network, path = saved
    other = small()
    load_weights(other, path)
    for name, tensor in network.state_dict().items():
        loaded = other.state_dict()[name]
        assert loaded.dtype == tensor.dtype
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(loaded, tensor), name
        else:
            assert torch.equal(loaded, tensor.half().float()), name


def test_file_holds_half_precision_and_no_counters(saved: tuple[nn.Module, Path]) -> None:
    stored = load_file(str(saved[1]))
    kinds = {name: tensor.dtype for name, tensor in stored.items()}
    assert kinds.pop("1.running_mean") == kinds.pop("1.running_var") == torch.float32
    assert set(kinds) == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}
    assert set(kinds.values()) == {torch.float16}


def test_all_can_be_kept_in_single_precision(tmp_path: Path) -> None:
    network = small()
    save_weights(network.state_dict(), tmp_path / "w.safetensors", half=False)
    other = small()
    load_weights(other, tmp_path / "w.safetensors")
    for name, tensor in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_what_leaves_the_range_of_half_precision_stays_single(tmp_path: Path) -> None:
    state = small().state_dict()
    state["0.weight"][0, 0, 0, 0], state["3.weight"][0, 0, 0, 0] = 65504.0, -65536.0
    save_weights(state, tmp_path / "w.safetensors")
    stored = load_file(str(tmp_path / "w.safetensors"))
    assert stored["0.weight"].dtype == torch.float16
    assert torch.equal(stored["3.weight"], state["3.weight"])


def test_channels_last_weights_can_be_saved(tmp_path: Path) -> None:
    network = small().to(memory_format=torch.channels_last)
    save_weights(network.state_dict(), tmp_path / "w.safetensors")
    other = small()
    load_weights(other, tmp_path / "w.safetensors")
    torch.testing.assert_close(other[0].weight, network[0].weight, atol=1e-3, rtol=0)


def test_create_loads_and_gives_the_network_that_was_saved(tmp_path: Path) -> None:
    network = create("cpn-light")
    seed_weights(network)
    save_weights(network.state_dict(), tmp_path / "light.safetensors")
    loaded = create("cpn-light", tmp_path / "light.safetensors")
    assert not loaded.training
    name = "final.1.weight"
    expected = network.state_dict()[name].half().float()
    assert torch.equal(loaded.state_dict()[name], expected)


def rewritten(path: Path, change: str) -> None:
    state = load_file(str(path))
    match change:
        case "missing":
            del state["3.bias"]
        case "extra":
            state["4.bias"] = torch.zeros(2)
        case "shape":
            state["3.bias"] = torch.zeros(5)
    save_file(state, str(path))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("missing", r"weights of another network: 1 missing \(3.bias\), 0 unknown \(-\)"),
        ("extra", r"weights of another network: 0 missing \(-\), 1 unknown \(4.bias\)"),
        ("shape", r"3.bias must be \[2\], got \[5\]"),
    ],
)
def test_weights_of_another_network(saved: tuple[nn.Module, Path], change: str, text: str) -> None:
    rewritten(saved[1], change)
    network = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=text) as error:
        load_weights(network, saved[1])
    assert str(saved[1]) in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "noise", "folder", "pickle"])
def test_files_that_are_no_weights(saved: tuple[nn.Module, Path], damage: str) -> None:
    network, path = saved
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "noise":
            path.write_bytes(bytes(range(256)) * 8)
        case "folder":
            path.mkdir()
        case "pickle":
            torch.save(network.state_dict(), path)
    with pytest.raises(WeightsError, match="not a readable safetensors file") as error:
        load_weights(small(), path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


class Trap:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "trap.safetensors", tmp_path / "mark"
    path.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(WeightsError):
        load_weights(small(), path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # the trap works
