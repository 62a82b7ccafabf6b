"""Checkpoints of other projects: what is read, what is refused, what is taken."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastpose.errors import WeightsError
from fastpose.models import create
from fastpose.models.foreign import (
    LAYOUTS,
    Layout,
    fill,
    models_that_fit,
    read_checkpoint,
    recognise,
)


def tensors() -> dict[str, Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def under(prefix: str, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    return {prefix + name: t for name, t in (state or tensors()).items()}


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refused(path: Path) -> str:
    """The one line that says why a file is not read; it begins with the file."""
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


# Reading


@pytest.mark.parametrize(
    "content",
    [
        tensors(),
        OrderedDict(tensors()),
        {"state_dict": tensors()},
        {"model": tensors(), "optimizer": {"state": {}}, "epoch": 3},
        {"model_state": tensors()},
        {"model": {"state_dict": tensors()}},
        under("module."),
        under("_orig_mod.module."),
        under("module.model."),
        {"epoch": 32, "state_dict": under("module."), "optimizer": {"state": {}, "lr": 1e-4}},
        {"state_dict": tensors(), "ema_state_dict": under("x.")},
        {**tensors(), "norm.num_batches_tracked": torch.tensor(7)},
        {name: nn.Parameter(t) for name, t in tensors().items()},
    ],
)
@pytest.mark.parametrize("new", [True, False])  # the format of torch from 1.6 on, or before
def test_wrappers_are_taken_off(tmp_path: Path, content: Any, new: bool) -> None:
    path = saved(content, tmp_path / "c.pth.tar", _use_new_zipfile_serialization=new)
    state = read_checkpoint(path)
    assert list(state) == ["a.weight", "a.bias"]
    assert all(torch.equal(state[name], t) for name, t in tensors().items())


@pytest.mark.parametrize("name", ["c.safetensors", "model.bin"])
def test_safetensors_by_name_or_by_content(tmp_path: Path, name: str) -> None:
    save_file(under("module."), tmp_path / name)
    state = read_checkpoint(tmp_path / name)
    assert sorted(state) == ["a.bias", "a.weight"]


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    content = {**under("module."), "b": torch.ones(1)}
    assert list(read_checkpoint(saved(content, tmp_path / "c.pth"))) == list(content)


def test_a_dict_that_holds_itself_is_read_to_an_end(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    content["model"] = content
    text = refused(saved(content, tmp_path / "c.pth"))
    assert text == "no tensors in it: expected a state dict, got a dict of epoch, model"


class Trap:
    """Reading it with pickle runs a command of the shell."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("how", ["zip", "old", "inside", "bare 2", "bare 4"])
def test_a_pickle_is_never_run(tmp_path: Path, how: str) -> None:
    path, mark = tmp_path / "trap.pth", tmp_path / "mark"
    trap = Trap(mark)
    match how.split():
        case ["zip"]:
            saved(trap, path)
        case ["old"]:
            saved(trap, path, _use_new_zipfile_serialization=False)
        case ["inside"]:
            saved({"state_dict": tensors(), "meta": trap}, path)
        case ["bare", protocol]:
            path.write_bytes(pickle.dumps(trap, protocol=int(protocol)))
    text = refused(path)
    assert not mark.exists()
    if how != "bare 4":  # which torch gives up before it comes to the name
        assert text.startswith("refused: reading it would run code: its pickle asks for posix.sys")
    torch.load(path, weights_only=False) if how in ("zip", "old", "inside") else pickle.loads(
        path.read_bytes()
    )
    assert mark.exists()  # the trap works


def test_a_pickled_module_is_refused_with_its_class(tmp_path: Path) -> None:
    text = refused(saved(nn.Linear(2, 2), tmp_path / "m.pt"))
    assert "its pickle asks for torch.nn.modules.linear.Linear" in text
    assert text.endswith("a file with the state dict alone is read")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({}, "an empty dict"),
        ({"state_dict": {}}, "a dict of state_dict"),
        ({"epoch": 3, "lr": 0.1, "best": 0.7, "x": 1}, "a dict of epoch, lr, best"),
        ([torch.ones(2)], "list"),
        (torch.ones(2), "Tensor"),
        (3, "int"),
        ({"x.num_batches_tracked": torch.tensor(3)}, "a dict of x.num_batches_tracked"),
        ({"a.weight": [1.0, 2.0], "b": "text"}, "a dict of a.weight, b"),
    ],
)
def test_files_without_tensors(tmp_path: Path, content: Any, got: str) -> None:
    path = saved(content, tmp_path / "c.pth")
    assert refused(path) == f"no tensors in it: expected a state dict, got {got}"


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_file_that_was_cut_off(tmp_path: Path, new: bool, part: float) -> None:
    content = {"a": torch.ones(999)}
    path = saved(content, tmp_path / "c.pth", _use_new_zipfile_serialization=new)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert refused(path).startswith("damaged, cut off, or no checkpoint")


@pytest.mark.parametrize("content", [bytes(range(256)) * 8, b"<!DOCTYPE html><html>Quota</html>"])
def test_bytes_that_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pth").write_bytes(content)
    assert refused(tmp_path / "c.pth").startswith("damaged, cut off, or no checkpoint")


@pytest.mark.parametrize("new", [True, False])
def test_flipped_bytes_raise_nothing_else(tmp_path: Path, new: bool) -> None:
    path = saved(tensors(), tmp_path / "c.pth", _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        with suppress(WeightsError):
            read_checkpoint(path)


def test_a_damaged_safetensors_file(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "c.safetensors")
    whole = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(whole[:-5])
    assert refused(tmp_path / "c.safetensors").startswith("not a readable safetensors file")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("net.onnx", "an ONNX graph, which `fastpose wrap` takes as it is"),
        ("snapshot_350.ckpt.data-00000-of-00001", "a part of a TensorFlow checkpoint; export"),
        ("snapshot_350.ckpt.index", "a part of a TensorFlow checkpoint; export it to ONNX"),
        ("snapshot_350.ckpt.meta", "a part of a TensorFlow checkpoint; export it to ONNX"),
        ("graph.pb", "a part of a TensorFlow checkpoint; export it to ONNX"),
        ("pose.caffemodel", "a part of a Caffe model; export it to ONNX"),
        ("model.H5", "a Keras or TensorFlow Lite model; export it to ONNX"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(b"\x08\x07")
    assert refused(tmp_path / name).startswith(text)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.pth") == "no such file"
    assert refused(tmp_path) == "a folder, not a file"
    (tmp_path / "snapshot.ckpt.index").touch()
    assert refused(tmp_path / "snapshot.ckpt").startswith("the name of a TensorFlow checkpoint")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit.trace
def test_torchscript_is_refused_and_a_plain_zip(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "s.pt"))
    assert refused(tmp_path / "s.pt").startswith("a TorchScript archive, which is code; export")
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as archive:
        archive.writestr("notes.txt", "none")
    assert refused(tmp_path / "z.pth").startswith("damaged, cut off, or no checkpoint")


@pytest.mark.parametrize("part", ["data.pkl", "data/0"])
def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path: Path, part: str) -> None:
    path = saved(tensors(), tmp_path / "c.pth")
    with zipfile.ZipFile(path) as whole:
        content = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(tmp_path / "packed.pth", "w") as archive:
        for name, data in content.items():
            packed = zipfile.ZIP_DEFLATED if name.endswith(part) else zipfile.ZIP_STORED
            archive.writestr(name, data, packed)
    assert torch.load(tmp_path / "packed.pth", weights_only=True), "torch would have read it"
    assert refused(tmp_path / "packed.pth").startswith("a packed archive, which torch.save never")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = saved(tensors(), tmp_path / "c.pth")
    monkeypatch.setattr(Path, "open", forbidden)
    assert refused(path) == "cannot be read: Permission denied"


def test_names_of_a_file_cannot_break_a_line(tmp_path: Path) -> None:
    assert refused(saved({"a\nb": 1, 7: 2}, tmp_path / "c.pth")).endswith("a dict of a?b, 7")
    state = read_checkpoint(saved({"a\nb": torch.ones(1), 7: torch.ones(1)}, tmp_path / "c.pth"))
    assert list(state) == ["a?b", "7"]


# Recognising


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("global_net.predict.3.5.weight", "pytorch-cpn"),
        ("layer4.2.conv3.weight", "torchvision ResNet"),
        ("backbone.layer4.2.conv3.weight", "OpenMMLab ResNet"),
    ],
)
def test_layouts_that_fit(name: str, layout: str) -> None:
    state = {"resnet.conv1.weight": 0, name: 0}
    assert recognise(state, Path("f.pth"), "cpn101").name == layout


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("backbone.multi_stage_mspn.0.downsample.layer1.0.conv1.weight", "mmpose MSPN"),
        ("backbone.multi_stage_rsn.0.downsample.layer1.0.conv_bn_relu1.conv.weight", "mmpose RSN"),
        ("stage4.0.branches.0.0.conv1.weight", "HRNet"),
        ("backbone.stage4.0.branches.0.0.conv1.weight", "HRNet"),
        ("backbone.patch_embed.proj.weight", "ViTPose"),
        ("backbone.patch_embed.projection.weight", "ViTPose"),
        ("head.cls_x.weight", "RTMPose"),
    ],
)
def test_networks_that_are_not_ours_are_named(name: str, layout: str) -> None:
    with pytest.raises(WeightsError) as error:
        recognise({"backbone.conv1.weight": 0, name: 0}, Path("f.pth"), "cpn50")
    assert str(error.value) == (
        f"f.pth: a checkpoint of {layout}, a network that is not ours; "
        "export it to ONNX for `fastpose wrap`"
    )


def test_an_unknown_layout_names_what_was_seen_and_what_is_known() -> None:
    with pytest.raises(WeightsError) as error:
        recognise(dict.fromkeys("abcd"), Path("f.pth"), "cpn50")
    assert str(error.value) == (
        "f.pth: a checkpoint of a layout that is not known (its names begin with a, b, c); "
        "known: pytorch-cpn, torchvision ResNet, OpenMMLab ResNet"
    )


def test_a_layout_of_another_model() -> None:
    with pytest.raises(WeightsError, match=r"pytorch-cpn fits cpn50, .*, not cpn-light$"):
        recognise({"global_net.predict.0.5.weight": 0}, Path("f.pth"), "cpn-light")


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.models])
def test_a_trunk_has_the_names_of_every_model_of_its_layout(layout: Layout) -> None:
    prefix = {"torchvision ResNet": "", "OpenMMLab ResNet": "backbone."}.get(layout.name)
    for model in layout.models:
        with torch.device("meta"):
            expected = create(model).state_dict()
        names = [name for name in expected if prefix is None or name.startswith("resnet.")]
        theirs = names if prefix is None else [prefix + n.removeprefix("resnet.") for n in names]
        assert recognise(dict.fromkeys(theirs), Path("f.pth"), model) is layout
        assert [layout.rename(name) for name in theirs] == names


def test_the_models_that_a_checkpoint_fits_wholly() -> None:
    with torch.device("meta"):
        state = {k: t for k, t in create("cpn101").state_dict().items() if "num_batches" not in k}
    layout = recognise(state, Path("f.pth"), "cpn50")
    assert models_that_fit(state, layout) == ["cpn101", "cpn101-384"]
    del state["resnet.conv1.weight"]
    assert models_that_fit(state, layout) == []


# Filling

MINE = Layout("mine", r"a\.", (), ((r"^a\.", "0."), (r"^b\.", "1.")))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def foreign_state() -> dict[str, Any]:
    return {
        **tensors(),
        "b.weight": torch.full((2,), 0.5),
        "b.bias": torch.zeros(2),
        "b.running_mean": torch.ones(2),
        "b.running_var": torch.ones(2),
    }


def test_all_is_taken_and_renamed() -> None:
    ours, state = network(), foreign_state()
    report = fill(ours, state, MINE, Path("f.pth"))
    assert report.complete
    assert str(report) == "6 tensors taken"
    filled = ours.state_dict()
    for name, tensor in state.items():
        assert torch.equal(filled[MINE.rename(name)], tensor), name


def test_what_does_not_match_is_reported_and_left_alone() -> None:
    ours, state = network(), foreign_state()
    before = {name: t.clone() for name, t in ours.state_dict().items()}
    del state["b.running_mean"]
    state["a.weight"] = torch.ones(3, 2)
    state["a.bias"] = [1.0, 2.0]
    state["fc.weight"] = torch.ones(1)
    report = fill(ours, state, MINE, Path("f.pth"))
    assert report.to_dict() == {
        "layout": "mine",
        "taken": 3,
        "missing": ("0.bias", "1.running_mean"),
        "unexpected": ("a.bias", "fc.weight"),
        "wrong_shape": {"0.weight": {"expected": [2, 3], "found": [3, 2]}},
    }
    assert not report.complete
    assert str(report) == (
        "3 tensors taken, 2 missing (0.bias, 1.running_mean), 2 unexpected (a.bias, fc.weight), "
        "1 of another shape (0.weight: expected [2, 3], found [3, 2])"
    )
    for name in ("0.weight", "0.bias", "1.running_mean"):
        assert torch.equal(ours.state_dict()[name], before[name])


def test_an_error_tells_the_first_names_alone() -> None:
    report = fill(network(), {}, MINE, Path("f.pth"))
    assert "6 missing (0.weight, 0.bias, 1.weight, ...)" in str(report)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_point_becomes_single(dtype: torch.dtype) -> None:
    ours = network()
    state = {name: t.to(dtype) for name, t in foreign_state().items()}
    assert fill(ours, state, MINE, Path("f.pth")).complete
    assert ours[0].weight.dtype == torch.float32
    assert torch.equal(ours[0].weight, tensors()["a.weight"])


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.tensor([1.0, float("nan")]), "0.bias has values that are not finite"),
        (torch.tensor([1.0, 1e300], dtype=torch.float64), "0.bias has values that are not finite"),
        (torch.tensor([1, 2]), "0.bias must be a dense tensor of floating point, got torch.int64"),
        (torch.ones(2).to_sparse(), "0.bias must be a dense tensor of floating point"),
        (torch.ones(2, device="meta"), "0.bias must be a dense tensor of floating point"),
    ],
)
def test_values_that_no_network_can_have(tensor: Tensor, text: str) -> None:
    ours = network()
    before = ours[0].weight.clone()
    with pytest.raises(WeightsError, match=text):
        fill(ours, {**foreign_state(), "a.bias": tensor}, MINE, Path("f.pth"))
    assert torch.equal(ours[0].weight, before)


def test_a_variance_below_nothing() -> None:
    ours, state = network(), foreign_state()
    state["b.running_mean"][0], state["b.running_var"][1] = -3.0, -1e-3
    with pytest.raises(WeightsError, match=r"f\.pth: 1\.running_var has values below 0, which no"):
        fill(ours, state, MINE, Path("f.pth"))
    state["b.running_var"][1] = 0.0  # of a channel that is always the same
    assert fill(ours, state, MINE, Path("f.pth")).complete
