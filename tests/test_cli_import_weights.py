from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_datasets import row, write

from fastpose.cli import main
from fastpose.models import create, foreign, model_spec

torch = pytest.importorskip("torch")
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


# A checkpoint as GengDavid/pytorch-cpn's training saves it: its names and shapes, written down
# here from its networks, without our own.

STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def conv(name, cin, cout, kernel=1):
    return {f"{name}.weight": (cout, cin, kernel, kernel)}


def norm(name, channels):
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def bottleneck(name, cin, mid, cout, projected):
    shapes = conv(f"{name}.conv1", cin, mid) | norm(f"{name}.bn1", mid)
    shapes |= conv(f"{name}.conv2", mid, mid, 3) | norm(f"{name}.bn2", mid)
    shapes |= conv(f"{name}.conv3", mid, cout) | norm(f"{name}.bn3", cout)
    if projected:
        shapes |= conv(f"{name}.downsample.0", cin, cout) | norm(f"{name}.downsample.1", cout)
    return shapes


def resnet(depth, prefix=""):
    shapes = conv(f"{prefix}conv1", 3, 64, 7) | norm(f"{prefix}bn1", 64)
    cin = 64
    for stage, (count, mid) in enumerate(zip(STAGES[depth], (64, 128, 256, 512), strict=True), 1):
        for block in range(count):
            name = f"{prefix}layer{stage}.{block}"
            shapes |= bottleneck(name, cin, mid, 4 * mid, block == 0)
            cin = 4 * mid
    return shapes


def pytorch_cpn(depth, joints=17):
    shapes = resnet(depth, "resnet.")
    for level, channels in enumerate((2048, 1024, 512, 256)):
        lateral, predict = f"global_net.laterals.{level}", f"global_net.predict.{level}"
        shapes |= conv(f"{lateral}.0", channels, 256) | norm(f"{lateral}.1", 256)
        if level < 3:
            up = f"global_net.upsamples.{level}"
            shapes |= conv(f"{up}.1", 256, 256) | norm(f"{up}.2", 256)
        shapes |= conv(f"{predict}.0", 256, 256) | norm(f"{predict}.1", 256)
        shapes |= conv(f"{predict}.3", 256, joints, 3) | norm(f"{predict}.5", joints)
        for block in range(3 - level):
            shapes |= bottleneck(f"refine_net.cascade.{level}.{block}", 256, 128, 256, True)
    shapes |= bottleneck("refine_net.final_predict.0", 1024, 128, 256, True)
    last = "refine_net.final_predict"
    return shapes | conv(f"{last}.1", 256, joints, 3) | norm(f"{last}.2", joints)


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
    assert "light against cpn-light: 0 tensors taken, " in refused(capsys, *words)
    assert not (light / "out").exists()
