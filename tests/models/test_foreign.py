"""Checkpoints of other projects: what is read, what is refused, what is taken."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caffe_files import caffemodel
from foreign_nets import (
    VGG16,
    VGG19,
    Shapes,
    caffe_vgg,
    cpm,
    cpm_person,
    cpm_vgg,
    mmpose_cpm,
    pytorch_pose,
    seeded_state,
    torchvision_vgg,
)
from seeded import seed_weights, uniform
from test_structured import released_blobs
from torch import Tensor, nn

from fastpose.errors import WeightsError
from fastpose.models import create, model_spec
from fastpose.models.foreign import fill, models_that_fit, read_checkpoint, recognise, refit
from fastpose.models.layouts import LAYOUTS, Layout
from fastpose.models.structured import Structured

safetensors = pytest.importorskip("safetensors.torch")
save_file = safetensors.save_file


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
        assert text.startswith("refused: its pickle asks for posix.system, and reading that could")
    torch.load(path, weights_only=False) if how in ("zip", "old", "inside") else pickle.loads(
        path.read_bytes()
    )
    assert mark.exists()  # the trap works


@pytest.mark.parametrize("best", [np.float64(0.8), np.arange(2.0)])
def test_a_checkpoint_with_more_than_tensors_and_plain_values_is_refused(
    tmp_path: Path, best: Any
) -> None:
    """Until its state dict is kept alone, as the text says."""
    content = {"state_dict": tensors(), "best_acc": best}
    path = saved(content, tmp_path / "c.pth")
    assert re.search(r"asks for numpy\S+, .*; a file with the state dict alone is", refused(path))
    saved(torch.load(path, weights_only=False)["state_dict"], path)
    assert read_checkpoint(path).keys() == tensors().keys()


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
        ("pose_deploy.prototxt", "the text of a Caffe net, which has no weights; those are in a"),
        ("pose_iter_10.solverstate", "the state of a Caffe solver; the .caffemodel saved with it"),
        ("pose_iter_10.solverstate.h5", "the state of a Caffe solver; the .caffemodel saved with"),
        ("pose.caffemodel.h5", "weights of Caffe in HDF5; save the net without HDF5, or its blobs"),
        ("vgg16.npy", "one array, or a pickled dict of them; save the blobs by numpy.savez"),
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


def structured() -> Shapes:
    """The layers of the released net for LSP, as `test_structured` has them."""
    with torch.device("meta"):
        blobs = released_blobs(create("structured-lsp"))
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{layer}.{kind}": tuple(tensor.shape)
        for layer, tensors in blobs.items()
        for kind, tensor in zip(kinds, tensors, strict=False)
    }


def empty(shapes: Shapes) -> dict[str, Tensor]:
    """As `read_checkpoint` gives it, without values."""
    return {n: torch.empty(s, device="meta") for n, s in shapes.items() if "num_batches" not in n}


@pytest.mark.parametrize(
    ("file", "shapes", "layout", "models"),
    [
        ("f.caffemodel", lambda: cpm(10, 4), "CPM release", ["cpm-flic"]),
        ("f.npz", lambda: cpm(15, 6), "CPM release", ["cpm-lsp"]),
        ("f.pth.tar", lambda: cpm(15, 6), "CPM with Caffe's names", ["cpm-lsp"]),
        ("f.caffemodel", cpm_vgg, "CPM release on VGG-19", ["cpm-vgg"]),
        ("f.caffemodel", cpm_person, "CPM release, persons", ["cpm-person"]),
        ("f.pth", mmpose_cpm, "mmpose CPM", ["cpm-bn"]),
        ("f.pth", lambda: mmpose_cpm(17), "mmpose CPM", []),  # COCO's joints
        ("f.pth.tar", lambda: pytorch_pose(2), "pytorch-pose", ["hourglass2"]),
        ("f.pth.tar", lambda: pytorch_pose(8), "pytorch-pose", ["hourglass8"]),
        ("f.pth.tar", lambda: pytorch_pose(1), "pytorch-pose", []),
        ("f.caffemodel", structured, "StructuredFeature", ["structured-lsp"]),
        ("f.pth", structured, "StructuredFeature", ["structured-lsp"]),
    ],
)
def test_published_networks_fit_wholly(
    file: str, shapes: Callable[[], Shapes], layout: str, models: list[str]
) -> None:
    state = empty(shapes())
    expected = next(each for each in LAYOUTS if each.name == layout)
    found = recognise(state, Path(file), expected.models[0])
    assert found is expected
    assert models_that_fit(state, found) == models


@pytest.mark.parametrize(
    ("shapes", "layout", "model", "taken", "unexpected"),
    [
        (lambda: caffe_vgg(VGG16), "Caffe VGG-16", "structured-lsp", 13, 0),
        (lambda: caffe_vgg(VGG16), "Caffe VGG-16", "structured-flic", 13, 0),
        (lambda: torchvision_vgg(VGG16), "torchvision VGG-16", "structured-lsp", 13, 0),
        (lambda: torchvision_vgg(VGG16), "torchvision VGG-16", "structured-flic", 13, 0),
        # of conv4 and conv5 the CPMs have but some as they are in VGG-19
        (lambda: caffe_vgg(VGG19), "Caffe VGG-19", "cpm-vgg", 10, 6),
        (lambda: torchvision_vgg(VGG19), "torchvision VGG-19", "cpm-vgg", 10, 6),
        (lambda: caffe_vgg(VGG19), "Caffe VGG-19", "cpm-person", 13, 3),
        (lambda: torchvision_vgg(VGG19), "torchvision VGG-19", "cpm-person", 13, 3),
    ],
)
def test_published_trunks_fit_in_part(
    shapes: Callable[[], Shapes], layout: str, model: str, taken: int, unexpected: int
) -> None:
    state = shapes()
    found = recognise(state, Path("f.pth"), model)
    assert found.name == layout
    with torch.device("meta"):
        own = create(model).state_dict()
    fitting = [
        name
        for name, shape in state.items()
        if (ours := found.place(name).name) in own and tuple(own[ours].shape) == shape
    ]
    assert len(fitting) == 2 * taken
    convolutions = [name for name in state if name.startswith(("conv", "features"))]
    assert len(convolutions) == 2 * (taken + unexpected)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_resnet_has_the_names_of_every_cpn(prefix: str) -> None:
    for model in ("cpn50", "cpn101", "cpn50-tf", "cpn101-tf", "cpn50-384", "cpn101-384"):
        with torch.device("meta"):
            names = [name for name in create(model).state_dict() if name.startswith("resnet.")]
        theirs = [prefix + name.removeprefix("resnet.") for name in names]
        layout = recognise(dict.fromkeys(theirs), Path("f.pth"), model)
        assert layout.name == ("OpenMMLab ResNet" if prefix else "torchvision ResNet")
        assert [layout.place(name).name for name in theirs] == names


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("backbone.multi_stage_mspn.0.downsample.layer1.0.conv1.weight", "mmpose MSPN"),
        ("backbone.multi_stage_rsn.0.downsample.layer1.0.conv_bn_relu1.conv.weight", "mmpose RSN"),
        ("backbone.hourglass_modules.0.up1.0.conv1.weight", "mmpose hourglass"),
        ("stage4.0.branches.0.0.conv1.weight", "HRNet"),
        ("backbone.stage4.0.branches.0.0.conv1.weight", "HRNet"),
        ("backbone.patch_embed.proj.weight", "ViTPose"),
        ("backbone.patch_embed.projection.weight", "ViTPose"),
        ("head.cls_x.weight", "RTMPose"),
        ("conv5_1_CPM_L1.weight", "OpenPose"),
        ("Mconv1_stage0_L2_0.weight", "OpenPose"),
        ("model1_1.conv5_5_CPM_L1.weight", "OpenPose"),
        ("features.1.running_mean", "torchvision VGG with batch norm"),
    ],
)
def test_networks_that_are_not_ours_are_named(name: str, layout: str) -> None:
    names = ["backbone.conv1.weight", "conv4_4_CPM.weight", name]
    with pytest.raises(WeightsError) as error:
        recognise(dict.fromkeys(names), Path("f.pth"), "cpn50")
    assert str(error.value) == (
        f"f.pth: a checkpoint of {layout}, a network that is not ours; "
        "export it to ONNX for `fastpose wrap`"
    )


def test_an_unknown_layout_names_what_was_seen_and_what_is_known() -> None:
    with pytest.raises(WeightsError) as error:
        recognise(dict.fromkeys("abcd"), Path("f.pth"), "cpn50")
    known = ", ".join(layout.name for layout in LAYOUTS if layout.models)
    assert str(error.value) == (
        "f.pth: a checkpoint of a layout that is not known (its names begin with a, b, c); "
        f"known: {known}"
    )
    assert known.startswith("pytorch-cpn, torchvision ResNet, OpenMMLab ResNet, CPM release, ")


def test_a_layout_of_another_model() -> None:
    with pytest.raises(WeightsError, match=r"pytorch-cpn fits cpn50, .*, not cpn-light$"):
        recognise({"global_net.predict.0.5.weight": 0}, Path("f.pth"), "cpn-light")


def test_the_models_that_a_checkpoint_fits_wholly() -> None:
    with torch.device("meta"):
        state = {k: t for k, t in create("cpn101").state_dict().items() if "num_batches" not in k}
    layout = recognise(state, Path("f.pth"), "cpn50")
    assert models_that_fit(state, layout) == ["cpn101", "cpn101-384"]
    del state["resnet.conv1.weight"]
    assert models_that_fit(state, layout) == []


# The published modules' own weights and outputs


def test_an_hourglass_of_pytorch_pose_gives_its_own_maps(tmp_path: Path) -> None:
    """As its training saves it, seeded by its own names; its maps are in the golden arrays."""
    state = {f"module.{name}": tensor for name, tensor in seeded_state(pytorch_pose(2)).items()}
    content = {"epoch": 9, "arch": "hg", "best_acc": 0.8, "state_dict": state}
    path = saved(content, tmp_path / "model_best.pth.tar")
    checkpoint = read_checkpoint(path)
    layout = recognise(checkpoint, path, "hourglass2")
    ours = create("hourglass2")
    assert fill(ours, checkpoint, layout, path).complete
    with torch.no_grad():
        maps = ours(2 * uniform("image", (1, 3, 64, 128)) - 1)
    with np.load(Path(__file__).parent.parent / "golden" / "pytorch_pose.npz") as golden:
        for stack, result in enumerate(maps):
            expected = golden[f"pytorch_pose.{stack}"]
            error = np.abs(result.flatten()[::13].numpy() - expected).max()
            assert error <= 1e-5 * np.abs(expected).max(), f"stack {stack}"


@pytest.mark.parametrize("kind", ["caffemodel", "old caffemodel", "npz"])
def test_the_released_structured_net_lands_in_our_joined_layers(tmp_path: Path, kind: str) -> None:
    """Names and blobs that `test_structured` holds to the released graph's own outputs."""
    widths = {"fcn6_channels": 8, "part_channels": 3, "transform_mid_channels": 2}
    source, ours = Structured(14, **widths), Structured(14, **widths)
    seed_weights(source)
    blobs = {name: [t.numpy() for t in ts] for name, ts in released_blobs(source).items()}
    if kind == "npz":
        path = tmp_path / "lspmodel.npz"
        arrays = {f"{name}/{i}": a for name, each in blobs.items() for i, a in enumerate(each)}
        np.savez(path, **arrays)
    else:
        path = tmp_path / "lspmodel.caffemodel"
        path.write_bytes(caffemodel(blobs, old="old" in kind))
    state = read_checkpoint(path)
    report = fill(ours, state, recognise(state, path, "structured-lsp"), path)
    assert report.complete, report
    for name, tensor in source.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(ours.state_dict()[name], tensor), name


def test_a_block_that_is_missing_or_wrong_is_told_by_its_place() -> None:
    widths = {"fcn6_channels": 8, "part_channels": 3, "transform_mid_channels": 2}
    ours = Structured(14, **widths)
    kinds = ("weight", "bias", "running_mean", "running_var")
    seed_weights(ours)
    state: dict[str, Any] = {
        f"{layer}.{kind}": tensor.clone()
        for layer, tensors in released_blobs(ours).items()
        for kind, tensor in zip(kinds, tensors, strict=False)
    }
    state["fconvb27_3.bias"] = torch.ones(4)
    del state["fconv7_7to6_step1.weight"]
    before = ours.state_dict()["transforms.0.weight"].clone()
    layout = recognise(state, Path("f"), "structured-lsp")
    report = fill(ours, state, layout, Path("f"))
    assert report.missing == ("transforms.0.weight[6/50]",)
    assert report.wrong_shape == {"fcn7.bias[29/52]": {"expected": [3], "found": [4]}}
    assert torch.equal(ours.state_dict()["transforms.0.weight"], before)


@pytest.mark.parametrize("model", ["structured-lsp", "cpm-vgg", "cpm-person"])
def test_a_trunk_of_torchvision_finds_the_same_in_our_pixels(model: str) -> None:
    """RGB over its standard deviation there; here BGR, less 128, and for CPMs over 256."""
    sixteen = model.startswith("structured")
    shapes = torchvision_vgg(VGG16 if sixteen else VGG19)
    state = seeded_state({n: s for n, s in shapes.items() if n.startswith("features")})
    layout = recognise(state, Path("f.pth"), model)
    spec = model_spec(model)
    refitted = refit(state, layout, spec)
    assert refitted.keys() == state.keys()
    changed = {name for name in state if refitted[name] is not state[name]}
    assert changed == {"features.0.weight", "features.0.bias"}

    picture = 255 * uniform("picture", (1, 3, 12, 10))  # red first
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    theirs = (picture - mean[:, None, None]) / std[:, None, None]
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    ours = (picture.flip(1) - mean[:, None, None]) / std[:, None, None]
    expected = F.conv2d(theirs, state["features.0.weight"], state["features.0.bias"])
    weight, bias = (refitted[f"features.0.{kind}"].float() for kind in ("weight", "bias"))
    torch.testing.assert_close(F.conv2d(ours, weight, bias), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "bias",
    [
        None,
        [1.0],
        torch.ones(3),
        torch.ones(64, 1),
        torch.ones(64, dtype=torch.int64),
        torch.ones(64).to_sparse(),
        torch.ones(64, device="meta"),
    ],
)
def test_a_first_layer_that_fits_nothing_is_left_to_the_report(bias: object) -> None:
    state = {"features.0.weight": torch.ones(64, 3, 3, 3), "features.24.weight": torch.ones(1)}
    if bias is not None:
        state["features.0.bias"] = bias  # type: ignore[assignment]
    layout = recognise(state, Path("f.pth"), "structured-lsp")
    refitted = refit(state, layout, model_spec("structured-lsp"))
    assert all(refitted[name] is state[name] for name in state)


def test_other_layouts_keep_their_pixels() -> None:
    state = {name: torch.ones(1) for name in caffe_vgg(VGG16)}
    layout = recognise(state, Path("f.caffemodel"), "structured-lsp")
    assert refit(state, layout, model_spec("structured-lsp")) == state


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
        assert torch.equal(filled[MINE.place(name).name], tensor), name


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


def test_a_second_tensor_for_one_place_is_left_over() -> None:
    state = {**foreign_state(), "0.bias": torch.zeros(2)}
    ours = network()
    report = fill(ours, state, MINE, Path("f.pth"))
    assert (report.taken, report.unexpected) == (6, ("0.bias",))
    assert torch.equal(ours.state_dict()["0.bias"], state["a.bias"])


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
