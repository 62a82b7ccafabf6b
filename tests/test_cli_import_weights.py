from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from caffe_files import caffemodel
from foreign_nets import pytorch_cpn, pytorch_pose, resnet, seeded_state
from test_datasets import row, write

from fastpose.cli import main
from fastpose.models import MODELS, create, foreign, model_spec

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from safetensors.torch import load_file  # noqa: E402
from seeded import seed_weights, seeded_values, uniform  # noqa: E402

from fastpose.engines.manifest import file_hash  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "pytorch_cpn.npz"
TERMS = "none stated of the weights; the code that trains them is under GPL-3.0"


def run(capsys, *args):
    code = main(["import-weights", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *args):
    """The one line on standard error."""
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    return line.removeprefix("fastpose import-weights: ")


# A checkpoint as GengDavid/pytorch-cpn's training saves it.


def training_checkpoint(shapes, path, values=None):
    """Weights of those names and shapes, zeros that take no room if no others are given."""
    values = values or (lambda _, shape: torch.zeros(()).expand(shape))
    state = {
        f"module.{name}": values(name, shape) if shape else torch.tensor(1000)
        for name, shape in shapes.items()
    }
    optimizer = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 5e-4, "params": [0]}]}
    torch.save({"epoch": 32, "state_dict": state, "optimizer": optimizer}, path)
    return path


@pytest.mark.parametrize(
    ("depth", "half", "tolerance"), [(50, False, 1e-5), (101, False, 1e-5), (50, True, 5e-3)]
)
def test_a_pytorch_cpn_checkpoint_gives_its_own_outputs(tmp_path, capsys, depth, half, tolerance):
    file = training_checkpoint(pytorch_cpn(depth), tmp_path / "epoch32.pth.tar", seeded_values)
    options = ["--half"] if half else []
    code, out, err = run(capsys, file, "--to", f"cpn{depth}", "--out", tmp_path / "o", *options)
    weights = tmp_path / "o" / f"cpn{depth}.safetensors"
    count = {50: 485, 101: 740}[depth]
    expected = [f"{weights}: cpn{depth} from pytorch-cpn: {count} tensors taken", f"terms: {TERMS}"]
    assert (code, out.splitlines(), err) == (0, expected, "")
    network = create(f"cpn{depth}", weights)
    with torch.inference_mode():
        coarse, refined = network(2 * uniform("image", (2, 3, 128, 96)) - 1)
    with np.load(GOLDEN) as golden:
        for level, maps in enumerate((*coarse, refined)):
            expected = golden[f"cpn{depth}.eval.{level}"]
            error = np.abs(maps.flatten()[::13].numpy() - expected).max()
            assert error <= tolerance * np.abs(expected).max(), f"output {level}"
    size = weights.stat().st_size / model_spec(f"cpn{depth}").parameters
    assert size == pytest.approx(2 if half else 4, abs=0.05)


def test_a_trunk_of_torchvision(tmp_path, capsys):
    shapes = resnet(50) | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}
    state = {n: seeded_values(n, s) if s else torch.tensor(0) for n, s in shapes.items()}
    file = tmp_path / "resnet50.pth"
    torch.save(state, file)
    words = (file, "--to", "cpn50", "--out", tmp_path / "cpn50.safetensors")
    line = refused(capsys, *words)
    assert line.startswith(f"{file}: torchvision ResNet against cpn50: 265 tensors taken, 220 miss")
    assert line.endswith("2 unexpected (fc.weight, fc.bias); --partial takes what fits")
    assert list(tmp_path.iterdir()) == [file]

    code, out, _ = run(capsys, *words, "--partial")
    assert code == 0
    assert "265 tensors taken, 220 missing (global_net.laterals.0.0.weight, " in out
    card = json.loads((tmp_path / "cpn50.json").read_text())
    assert card["random"] == 220
    assert len(card["source"]["missing"]) == 220
    assert card["source"]["unexpected"] == ["fc.weight", "fc.bias"]
    stored = load_file(tmp_path / "cpn50.safetensors")
    assert torch.equal(stored["resnet.layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])


def changed(shapes, fault):
    match fault:
        case "missing":
            del shapes["resnet.bn1.weight"]
        case "extra":
            shapes["aux.weight"] = (3,)
        case "shape":
            shapes["refine_net.final_predict.1.weight"] = (16, 256, 3, 3)
    return shapes


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("missing", "484 tensors taken, 1 missing (resnet.bn1.weight); --partial takes what fits"),
        ("extra", "485 tensors taken, 1 unexpected (aux.weight); --partial takes what fits"),
        (
            "shape",
            "484 tensors taken, 1 of another shape (refine_net.final_predict.1.weight: expected "
            "[17, 256, 3, 3], found [16, 256, 3, 3]); --partial takes what fits",
        ),
    ],
)
def test_what_does_not_match_is_an_error(tmp_path, capsys, fault, text):
    file = training_checkpoint(changed(pytorch_cpn(50), fault), tmp_path / "c.pth")
    line = refused(capsys, file, "--to", "cpn50", "--out", tmp_path / "out")
    assert line == f"{file}: pytorch-cpn against cpn50: {text}"
    assert not (tmp_path / "out").exists()


def test_the_report_of_a_refused_file_as_json(tmp_path, capsys):
    file = training_checkpoint(changed(pytorch_cpn(50), "shape"), tmp_path / "c.pth")
    code, out, err = run(capsys, file, "--to", "cpn50-384", "--out", tmp_path / "out", "--json")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert json.loads(out) == {
        "model": "cpn50-384",
        "weights": None,
        "source": {
            "file": "c.pth",
            "sha256": file_hash(file),
            "layout": "pytorch-cpn",
            "taken": 484,
            "missing": [],
            "unexpected": [],
            "wrong_shape": {
                "refine_net.final_predict.1.weight": {
                    "expected": [17, 256, 3, 3],
                    "found": [16, 256, 3, 3],
                }
            },
        },
    }


def test_a_checkpoint_of_another_depth_names_the_models_it_fits(tmp_path, capsys):
    file = training_checkpoint(pytorch_cpn(101), tmp_path / "c.pth")
    line = refused(capsys, file, "--to", "cpn50", "--out", tmp_path / "out")
    assert line.endswith("255 unexpected (resnet.layer3.6.conv1.weight, "
                         "resnet.layer3.6.bn1.weight, resnet.layer3.6.bn1.bias, ...); "
                         "it fits cpn101, cpn101-384")  # fmt: skip


@pytest.mark.parametrize(
    ("to", "out", "text"),
    [
        ("cpn52", "out", "unknown model 'cpn52'; known: "),
        ("cpn-light", "out", "a checkpoint of pytorch-cpn fits cpn50, "),
        ("cpn50-tf", "out", "a checkpoint of pytorch-cpn fits cpn50, "),
        ("cpn50", "c.pth/out", "c.pth/out: expected a folder to write to, came: "),
        ("cpn50", "c.pth", "c.pth: expected a folder to write to, came: a file"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, capsys, to, out, text):
    file = training_checkpoint(pytorch_cpn(50), tmp_path / "c.pth")
    assert text in refused(capsys, file, "--to", to, "--out", tmp_path / out)
    assert list(tmp_path.iterdir()) == [file]


def test_without_torch_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    line = refused(capsys, tmp_path / "c.pth", "--to", "cpn50", "--out", tmp_path)
    assert line == "import-weights needs torch; install the extra: fastpose-inference[torch]"


def test_help_lists_the_layouts_and_their_models(capsys):
    with pytest.raises(SystemExit):
        main(["import-weights", "--help"])
    text = capsys.readouterr().out
    for layout in foreign.LAYOUTS:
        if layout.models:
            words = layout.name.replace(",", "").split()
            assert all(word in text for word in words), layout.name
            assert all(n.removesuffix("-384").removesuffix("-tf") in text for n in layout.models)


# The other networks as narrow as they can be, under their own names.


@pytest.fixture
def narrow(tmp_path, monkeypatch):
    """Models that cost little; a function that gives one's seeded weights."""
    widths = {"fcn6_channels": 8, "part_channels": 3, "transform_mid_channels": 2}
    changes = {
        "cpm-flic": {"size": (64, 64), "kwargs": {"stages": 3, "width": 4}},
        "cpm-lsp": {"size": (64, 64), "kwargs": {"stages": 2, "width": 4}},
        "structured-lsp": {"size": (64, 64), "kwargs": {"tree": "lsp26", **widths}},
        "hourglass2": {"size": (64, 64)},
    }
    for name, fields in changes.items():
        spec = replace(MODELS[name], views=(1.0,), parameters=None, **fields)
        monkeypatch.setitem(MODELS, name, spec)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def seeded(name):
        network = create(name)
        seed_weights(network)
        return {k: t for k, t in network.state_dict().items() if "num_batches" not in k}

    return seeded


def layers_of(state):
    """Blobs by layer, as Caffe has them."""
    layers = {}
    for name, tensor in state.items():
        layers.setdefault(name.rpartition(".")[0], []).append(tensor.numpy())
    return layers


def caffe_file(state, path):
    path.write_bytes(caffemodel(layers_of(state)))
    return path


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_predict_runs_what_came_from_caffe(tmp_path, capsys, narrow, engine):
    state = narrow("cpm-lsp")
    file = caffe_file(state, tmp_path / "pose_iter_395000.caffemodel")
    code, out, err = run(capsys, file, "--to", "cpm-lsp", "--out", tmp_path / "out")
    weights = tmp_path / "out" / "cpm-lsp.safetensors"
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{weights}: cpm-lsp from CPM release: {len(state)} tensors taken",
        "terms: those of the CPM release, by Carnegie Mellon University: non-commercial research "
        "of academic and non-profit organisations alone",
    ]
    stored = load_file(weights)
    assert all(torch.equal(stored[name], tensor) for name, tensor in state.items())
    card = json.loads(weights.with_suffix(".json").read_text())
    assert (card["source"]["file"], card["source"]["layout"]) == (file.name, "CPM release")
    assert card["source"]["sha256"] == file_hash(file)
    assert predicted(tmp_path, capsys, weights, engine)["model"] == "cpm-lsp"


def predicted(tmp_path, capsys, weights, engine="torch"):
    """What `predict` tells of one picture of one person."""
    picture = tmp_path / "im.png"
    cv2.imwrite(str(picture), np.full((80, 60, 3), 90, np.uint8))
    words = ["predict", str(picture), "--model", str(weights), "--detector", "none", "--json"]
    options = ["--engine", engine, "--threads", "1", "--out", str(tmp_path / "poses")]
    assert main([*words, *options]) == 0
    out, err = capsys.readouterr()
    return {**json.loads(out), "err": err}


def test_predict_runs_a_hourglass_of_pytorch_pose(tmp_path, capsys, narrow):
    state = {f"module.{name}": tensor for name, tensor in seeded_state(pytorch_pose(2)).items()}
    file = tmp_path / "model_best.pth.tar"
    torch.save({"epoch": 9, "arch": "hg", "state_dict": state}, file)
    code, out, _ = run(capsys, file, "--to", "hourglass2", "--out", tmp_path)
    assert code == 0
    assert "hourglass2 from pytorch-pose: 588 tensors taken" in out
    weights = tmp_path / "hourglass2.safetensors"
    assert predicted(tmp_path, capsys, weights)["model"] == "hourglass2"


def test_predict_runs_a_structured_net_on_the_trunk_of_caffe(tmp_path, capsys, narrow):
    trunk = {k: t for k, t in narrow("structured-lsp").items() if k.startswith("trunk.")}
    names = [f"conv{i}_{j}" for i, n in enumerate((2, 2, 3, 3, 3), 1) for j in range(1, n + 1)]
    kinds = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    vgg = dict(zip(kinds, trunk.values(), strict=True))
    file = caffe_file({**vgg, "fc8.weight": torch.ones(2)}, tmp_path / "VGG_16.caffemodel")
    words = (file, "--to", "structured-lsp", "--out", tmp_path)
    assert "1 unexpected (fc8.weight); --partial takes what fits" in refused(capsys, *words)
    code, out, _ = run(capsys, *words, "--partial")
    assert code == 0
    assert "structured-lsp from Caffe VGG-16: 26 tensors taken, " in out
    weights = tmp_path / "structured-lsp.safetensors"
    stored = load_file(weights)
    assert all(torch.equal(stored[name], tensor) for name, tensor in trunk.items())
    random = json.loads(weights.with_suffix(".json").read_text())["random"]
    told = predicted(tmp_path, capsys, weights)
    assert told["model"] == "structured-lsp"
    assert f"{weights}: {random} tensors are random" in told["err"]


def test_weights_of_a_port_come_with_a_word_of_warning(tmp_path, capsys, narrow):
    state = {f"module.{name}": tensor for name, tensor in narrow("cpm-lsp").items()}
    torch.save({"iter": 3, "state_dict": state}, tmp_path / "cpm_latest.pth.tar")
    words = (tmp_path / "cpm_latest.pth.tar", "--to", "cpm-lsp", "--out", tmp_path)
    code, out, _ = run(capsys, *words)
    assert code == 0
    terms, note = out.splitlines()[1:]
    assert terms == "terms: unknown: see where the file came from"
    assert note.startswith("note: right if converted from the Caffe release; networks trained by")
    card = json.loads((tmp_path / "cpm-lsp.json").read_text())
    assert f"note: {card['note']}" == note


def spoilt(state, fault):
    match fault:
        case "missing":
            del state["conv5_stage1.weight"], state["conv5_stage1.bias"]
        case "extra":
            state["conv9.weight"] = torch.ones(1)
        case "shape":
            state["conv1_stage1.weight"] = torch.ones(4, 1, 9, 9)
        case "nan":
            state["conv7_stage1.bias"][3] = float("nan")
    return state


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("missing", "2 missing (conv5_stage1.weight, conv5_stage1.bias); --partial takes what fit"),
        ("extra", "1 unexpected (conv9.weight); --partial takes what fits"),
        (
            "shape",
            "of another shape (conv1_stage1.weight: expected [4, 3, 9, 9], found [4, 1, 9, 9",
        ),
        ("nan", "pose.caffemodel: conv7_stage1.bias has values that are not finite"),
    ],
)
def test_blobs_that_do_not_fit_are_an_error(tmp_path, capsys, narrow, fault, text):
    file = caffe_file(spoilt(narrow("cpm-lsp"), fault), tmp_path / "pose.caffemodel")
    assert text in refused(capsys, file, "--to", "cpm-lsp", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_blobs_of_another_network_name_the_models_they_fit(tmp_path, capsys, narrow):
    file = caffe_file(narrow("cpm-flic"), tmp_path / "pose.caffemodel")
    line = refused(capsys, file, "--to", "cpm-lsp", "--out", tmp_path / "out")
    assert line.startswith(f"{file}: CPM release against cpm-lsp: ")
    assert line.endswith("; it fits cpm-flic")
    line = refused(capsys, file, "--to", "cpm-vgg", "--out", tmp_path / "out")
    assert line == f"{file}: a checkpoint of CPM release fits cpm-flic, cpm-lsp, not cpm-vgg"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pose.caffemodel", "damaged, cut off, or no .caffemodel"),
        ("pose.npz", "damaged, cut off, or no .npz of numpy.savez"),
        ("pose.prototxt", "the text of a Caffe net, which has no weights; those are in a .caffemo"),
        ("pose.caffemodel.h5", "weights of Caffe in HDF5; save the net without HDF5, or its blobs"),
    ],
)
def test_files_that_are_bad_are_told_in_one_line(tmp_path, capsys, narrow, name, text):
    whole = caffe_file(narrow("cpm-lsp"), tmp_path / "whole.caffemodel").read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    line = refused(capsys, tmp_path / name, "--to", "cpm-lsp", "--out", tmp_path / "out")
    assert line.startswith(f"{tmp_path / name}: {text}")


# What is written, and what may be done with it: with the light network, and a layout for it.


@pytest.fixture
def light(tmp_path, monkeypatch):
    """A checkpoint of the light network with names of its own; the folder of all files."""
    layout = foreign.Layout(
        "light", r"net/", ("cpn-light",), ((r"^net/", ""),), terms="as the light", note="a word"
    )
    monkeypatch.setattr(foreign, "LAYOUTS", (layout,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network = create("cpn-light")
    seed_weights(network)
    torch.save({f"net/{k}": t for k, t in network.state_dict().items()}, tmp_path / "light.pth")
    return tmp_path


def imported(light, capsys, *options):
    out = light / "out"
    words = (light / "light.pth", "--to", "cpn-light", "--out", out, "--json", *options)
    code, text, err = run(capsys, *words)
    assert (code, err) == (0, "")
    return out / "cpn-light.safetensors", json.loads(text)


def test_the_card_tells_where_the_weights_came_from(light, capsys):
    weights, document = imported(light, capsys)
    card = json.loads(weights.with_suffix(".json").read_text())
    assert document == {"model": "cpn-light", "weights": str(weights), **card}
    assert card["name"] == "cpn-light"
    assert card["spec"] == json.loads(json.dumps(model_spec("cpn-light").to_dict()))
    assert (card["terms"], card["note"]) == ("as the light", "a word")
    assert card["random"] == 0
    assert card["weights_sha256"] == file_hash(weights)
    source = card["source"]
    assert (source["file"], source["layout"]) == ("light.pth", "light")
    assert source["sha256"] == file_hash(light / "light.pth")
    assert [source[key] for key in ("missing", "unexpected", "wrong_shape")] == [[], [], {}]
    assert str(light) not in json.dumps(card)  # no folder of this machine
    assert sorted(p.name for p in weights.parent.iterdir()) == [
        "cpn-light.json",
        "cpn-light.safetensors",
    ]


def test_predict_and_eval_run_what_was_imported(light, capsys):
    weights, _ = imported(light, capsys)
    (light / "lsp" / "images").mkdir(parents=True)
    write(light / "lsp", row("im1.png"))
    picture = light / "lsp" / "images" / "im1.png"
    cv2.imwrite(str(picture), np.full((80, 60, 3), 90, np.uint8))
    options = ["--engine", "torch", "--threads", "1", "--json"]
    words = ["predict", str(picture), "--model", str(weights), "--detector", "none"]
    assert main([*words, "--out", str(light / "poses"), *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "cpn-light"
    assert main(["eval", str(weights), "--data", f"lsp:{light / 'lsp'}", *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["model"], document["precision"]) == ("cpn-light", "f32")


def test_predict_warns_of_weights_that_are_partly_random(light, capsys):
    content = torch.load(light / "light.pth", weights_only=True)
    torch.save({k: t for k, t in content.items() if "final" not in k}, light / "light.pth")
    weights, document = imported(light, capsys, "--partial")
    picture = light / "im.png"
    cv2.imwrite(str(picture), np.zeros((80, 60, 3), np.uint8))
    words = ["predict", str(picture), "--model", str(weights), "--detector", "none"]
    assert main([*words, "--out", str(light / "poses"), "--engine", "torch"]) == 0
    text = f"{weights}: {document['random']} tensors are random"
    assert text in capsys.readouterr().err


def test_nothing_is_replaced_unless_asked_for(light, capsys):
    weights, _ = imported(light, capsys)
    before = weights.read_bytes()
    words = (light / "light.pth", "--to", "cpn-light", "--out", weights)
    assert refused(capsys, *words) == f"{weights}: is there already; --overwrite replaces it"
    weights.unlink()
    card = weights.with_suffix(".json")
    assert refused(capsys, *words) == f"{card}: is there already; --overwrite replaces it"
    card.write_text("old")
    assert run(capsys, *words, "--overwrite")[0] == 0
    assert weights.read_bytes() == before
    assert json.loads(card.read_text())["name"] == "cpn-light"


def test_a_place_that_cannot_be_written(light, capsys):
    out = light / "out.safetensors"
    out.mkdir()
    words = (light / "light.pth", "--to", "cpn-light", "--out", out, "--overwrite")
    assert f"{out}: cannot be written" in refused(capsys, *words)
    assert sorted(p.name for p in light.iterdir()) == ["light.pth", "out.safetensors"]


def test_ctrl_c_leaves_nothing_half_written(light, capsys, monkeypatch):
    weights, _ = imported(light, capsys)
    before = weights.read_bytes()

    def interrupted(state, path, *, half):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("fastpose.models.weights.save_weights", interrupted)
    code, out, err = run(
        capsys, light / "light.pth", "--to", "cpn-light", "--out", weights.parent, "--overwrite"
    )
    assert (code, out, err) == (130, "", "fastpose import-weights: interrupted\n")
    assert weights.read_bytes() == before
    assert len(list(weights.parent.iterdir())) == 2


def test_nothing_in_common_is_refused_even_in_part(light, capsys):
    torch.save({"net/other": torch.ones(2)}, light / "light.pth")
    words = (light / "light.pth", "--to", "cpn-light", "--out", light / "out", "--partial")
    line = refused(capsys, *words)
    assert "light against cpn-light: 0 tensors taken, " in line
    assert line.endswith("; nothing in it fits")
    assert not (light / "out").exists()
