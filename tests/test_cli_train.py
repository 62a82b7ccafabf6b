"""What `fastpose train` refuses before it begins, and the whole life of a detector."""

import json
import warnings
from dataclasses import replace

import cv2
import numpy as np
import pytest

from fastpose.cli import main
from fastpose.datasets import PoseData
from fastpose.models import DETECTORS, MODELS, create_detector, trained
from fastpose.skeleton import LSP14

pytest.importorskip("torch")


def refused(tmp_path, capsys, *words, model="cpn-light", data="lsp"):
    """The one line that says why training does not begin."""
    assert main(["train", model, "--data", f"{data}:{tmp_path}", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there(device, tmp_path, capsys):
    out = tmp_path / "out"
    line = refused(tmp_path, capsys, "--device", device, "--out", str(out))
    assert f"device '{device}' cannot be used by torch" in line
    assert not out.exists()


def test_a_folder_that_cannot_be_made(tmp_path, capsys, monkeypatch):
    nobody = PoseData("lsp", LSP14, ())
    monkeypatch.setattr("fastpose.datasets.open_poses", lambda *_, **__: nobody)
    (tmp_path / "file").write_text("")
    line = refused(tmp_path, capsys, "--device", "cpu", "--out", str(tmp_path / "file" / "out"))
    assert f"{tmp_path / 'file' / 'out'}: expected a folder to write to" in line


def test_a_size_that_the_network_does_not_take(tmp_path, capsys, monkeypatch):
    nobody = PoseData("lsp", LSP14, ())
    monkeypatch.setattr("fastpose.datasets.open_poses", lambda *_, **__: nobody)
    options = ["--out", str(tmp_path / "out"), "--schedule", "64x64:1,64x72:1"]
    line = refused(tmp_path, capsys, *options)
    assert "--schedule: cpn-light: image must be [N, 3, h, w] with h and w multiples of 32" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "other"),
    [("pbn-mpii", "pbn-mpii"), ("pbn6-mpii", "pbn-mpii"), ("pbn-lsp", "pbn-lsp")],
)
def test_training_a_model_that_grows_names_the_one_to_train(model, other, tmp_path, capsys):
    words = ["--data", f"lsp:{tmp_path}", "--out", str(tmp_path / "out")]  # no set is there
    assert main(["train", model, *words]) == 2
    line, _ = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fastpose train: warning: {model}: in this published form features")
    assert line.endswith(f"did not learn in our trials; train {other}-norm")
    assert "warning" not in refused(tmp_path, capsys, *words[2:], model=f"{other}-norm")


# Options of detectors, on either side


@pytest.mark.parametrize(
    ("option", "value"), [("--samples", "100"), ("--teacher", "x.onnx"), ("--terms", "none")]
)
def test_a_pose_network_takes_no_option_of_detectors(option, value, tmp_path, capsys):
    line = refused(tmp_path, capsys, "--out", str(tmp_path / "out"), option, value)
    assert f"{option} is for detectors, cpn-light is a pose network" in line
    assert not (tmp_path / "out").exists()


def test_a_pose_network_is_measured_on_one_set(tmp_path, capsys):
    sets = ["--val", f"lsp:{tmp_path}"] * 2
    line = refused(tmp_path, capsys, "--out", str(tmp_path / "out"), *sets)
    assert "cpn-light is measured on one set, got 2 of --val" in line


@pytest.mark.parametrize("model", ["cpn-light", "fpn-light"])
def test_a_start_that_is_not_there_is_told_before_data_are_read(model, tmp_path, capsys):
    words = ("--out", str(tmp_path / "out"), "--start", "cpn52")
    line = refused(tmp_path, capsys, *words, model=model)  # the folder holds no set at all
    assert "--start cpn52: no such file; it is a file or one of cpn-light, cpn50" in line
    assert not (tmp_path / "out").exists()


def test_a_start_without_weights_here(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trained, "folder", lambda: tmp_path)
    words = ("--out", str(tmp_path / "out"), "--start", "cpn50")
    line = refused(tmp_path, capsys, *words, model="fpn-light")
    assert "cpn50 has no trained weights here" in line


def lspet(folder):
    """A picture with the joints of one person."""
    (folder / "images").mkdir(parents=True)
    cv2.imwrite(str(folder / "images" / "a.png"), np.full((80, 60, 3), 90, np.uint8))
    joints = [[10 + 3 * k, 10 + 4 * k, 1] for k in range(14)]
    row = {"file": "a.png", "split": "train", "width": 60, "height": 80, "joints": joints}
    row["crop"] = [0, 0, 120, 160]
    (folder / "annotations.json").write_text(json.dumps({"images": [row]}))
    return folder


def test_joints_that_nobody_has_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastpose.cli.train._fit", lambda *_: pytest.fail("began"))
    words = ("--out", str(tmp_path / "out"), "--device", "cpu")
    data = lspet(tmp_path / "set")
    for model, joints in (("hourglass2", "pelvis, thorax"), ("cpn-light", None)):
        assert main(["train", model, "--data", f"lspet:{data}", *words]) == 2
        *warning, error = capsys.readouterr().err.splitlines()
        assert error.endswith("1 samples do not fill one batch of 32")
        assert [joints in line for line in warning] == ([True] if joints else [])


def test_pictures_of_joints_alone_need_a_teacher(tmp_path, capsys):
    words = ("--out", str(tmp_path / "out"))
    line = refused(lspet(tmp_path / "set"), capsys, *words, model="fpn-light", data="lspet")
    assert "lspet: no boxes of all the people; give --teacher FILE.onnx" in line
    assert not (tmp_path / "out").exists()
    words = (*words, "--teacher", str(tmp_path / "gone.onnx"))
    line = refused(tmp_path / "set", capsys, *words, model="fpn-light", data="lspet")
    assert "gone.onnx: no such file" in line


def test_a_detector_of_several_classes_is_not_taught_persons(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastpose.train.teach.teach_boxes", lambda *_: pytest.fail("was taught"))
    words = ("--out", str(tmp_path / "out"), "--teacher", "none", "--device", "cpu")
    line = refused(lspet(tmp_path / "set"), capsys, *words, model="fpn50", data="lspet")
    assert "lspet: persons alone, but fpn50 learns 80 classes; give boxes:DIR" in line
    assert not (tmp_path / "out").exists()


# Recipes


@pytest.mark.parametrize("model", ["cpn-light", "cpn-pin", "structured-flic"])
def test_a_network_without_a_published_recipe(model, tmp_path, capsys):
    words = ("--out", str(tmp_path / "out"), "--recipe", "published")
    line = refused(tmp_path, capsys, *words, model=model)  # the folder holds no set at all
    assert f"--recipe published: no published recipe of {model} is known" in line
    assert not (tmp_path / "out").exists()


def test_a_detector_has_no_published_recipe(tmp_path, capsys):
    words = ("--out", str(tmp_path / "out"), "--recipe", "published")
    line = refused(tmp_path, capsys, *words, model="fpn50", data="boxes")
    assert "--recipe published: fpn50 is a detector; pose networks have one" in line


def test_a_published_recipe_is_trained_by_and_told(tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxscript")
    spec = MODELS["cpm-lsp"]
    monkeypatch.setitem(MODELS, spec.name, replace(spec, kwargs={"stages": 1, "width": 4}))
    data, out = lspet(tmp_path / "set"), tmp_path / "run"
    tasks = []

    def untrained(args, task, device):
        tasks.append(task)
        return task.network()

    monkeypatch.setattr("fastpose.cli.train._fit", untrained)
    words = ["train", spec.name, "--data", f"lspet:{data}", "--out", str(out), "--batch", "1"]
    words += ["--recipe", "published", "--rate", "0.001", "--precision", "f32", "--json"]
    assert main(words) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert recipe["name"] == "published"
    assert recipe["schedule"] == [[[368, 368], 6_320_000]]  # 395,000 steps of 16, of one person
    assert (recipe["method"], recipe["decay"], recipe["drop"]) == ("sgd", 5e-4, 0.333)
    assert (recipe["batch"], recipe["rate"], recipe["bf16"]) == (1, 0.001, False)  # as asked
    assert (recipe["augmentation"]["turn"], recipe["augmentation"]["enlarge"]) == (40, [0.7, 1.3])
    (task,) = tasks
    assert task.recipe.rate_at(0.5) == pytest.approx(0.001 * 0.333)


# Sets of boxes


def boxes(folder, people=((20, 10, 30, 60), (90, 20, 24, 50)), categories=("person",)):
    """Four pictures, the last without people: train.json and, of half of them, val.json."""
    (folder / "images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    content = {"images": [], "annotations": []}
    content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(categories)]
    for number in range(4):
        image = draw.integers(60, 120, (90, 130, 3)).astype(np.uint8)
        for x, y, w, h in people if number < 3 else ():
            image[max(y, 0) : y + h, max(x, 0) : x + w] = (40, 50, 220)
            row = {"image_id": number, "category_id": 1, "bbox": [x, y, w, h], "iscrowd": 0}
            content["annotations"].append(row)
        name = f"{number}.png"
        cv2.imwrite(str(folder / "images" / name), image)
        content["images"].append({"id": number, "file_name": name, "height": 90, "width": 130})
    (folder / "train.json").write_text(json.dumps(content))
    half = {0, 3}
    rest = {
        "images": [row for row in content["images"] if row["id"] in half],
        "annotations": [row for row in content["annotations"] if row["image_id"] in half],
    }
    (folder / "val.json").write_text(json.dumps(content | rest))
    return folder


def test_bad_boxes_are_told_by_the_reader(tmp_path, capsys):
    words = ("--out", str(tmp_path / "out"), "--device", "cpu")
    twice = boxes(tmp_path / "twice", categories=("person", "person"))
    line = refused(twice, capsys, *words, model="fpn-light", data="boxes")
    assert "2 categories are named person: 1 and 2" in line
    gone = boxes(tmp_path / "gone")
    (gone / "images" / "2.png").unlink()
    line = refused(gone, capsys, *words, model="fpn-light", data="boxes")
    assert "2.png: no such picture" in line
    assert not (tmp_path / "out").exists()


def test_validation_sets_have_names_of_their_own_and_people(tmp_path, capsys):
    first, second = boxes(tmp_path / "a" / "set"), boxes(tmp_path / "b" / "set")
    words = ("--out", str(tmp_path / "out"), "--device", "cpu")
    pair = ("--val", f"boxes:{first}", "--val", f"boxes:{second}")
    line = refused(first, capsys, *words, *pair, model="fpn-light", data="boxes")
    assert "another set is called set too" in line
    nobody = boxes(tmp_path / "nobody", people=())
    alone = ("--val", f"boxes:{nobody}")
    line = refused(first, capsys, *words, *alone, model="fpn-light", data="boxes")
    assert "nobody: nobody is in it to be found" in line
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small(monkeypatch):
    """The default detector, with an input that a test has time for."""
    spec = replace(DETECTORS["fpn-light"], size=(96, 128), batch=4)
    monkeypatch.setitem(DETECTORS, "fpn-light", spec)
    return spec


def test_a_detector_is_trained_measured_and_used(tmp_path, capsys, monkeypatch, small):
    pytest.importorskip("onnxscript")
    from fastpose.detect import open_detector
    from fastpose.engines.manifest import file_hash
    from fastpose.models import create
    from fastpose.models.weights import save_weights

    # one box reaches out of the picture, one has no area, and one is beside it
    rows = ((20, 10, 30, 60), (100, 20, 60, 50), (50, 40, 0, 20), (140, 10, 20, 20))
    data, out = boxes(tmp_path / "people", rows), tmp_path / "run"
    start = tmp_path / "pose.safetensors"
    save_weights(create("cpn-light").state_dict(), start)
    monkeypatch.chdir(tmp_path)
    words = ["train", "fpn-light", "--data", f"boxes:{data}", "--val", "boxes:people"]
    words += [f"--out={out}", "--schedule", "64x64:1", "--samples", "4", "--batch", "2"]
    words += ["--start", str(start), "--precision", "f32", "--device", "cpu", "--json"]
    words += ["--terms", "Drawn by the test."]
    monkeypatch.setattr("sys.argv", ["fastpose", *words])
    assert main(words) == 0
    card = json.loads(capsys.readouterr().out)
    assert card == json.loads((out / "fpn-light.json").read_text())
    assert card["kind"] == "detector"
    assert card["graph_sha256"] == {
        half: file_hash(out / f"fpn-light.{half}.onnx") for half in ("rpn", "head")
    }
    assert card["weights_sha256"] == file_hash(out / "fpn-light.safetensors")
    assert card["start"] == {"file": start.name, "sha256": file_hash(start)}
    assert card["measured_on"] == [{"set": "people", "images": 2}]
    assert set(card["accuracy"]) == {"det_ap50 people", "recall people"}
    assert card["data"][0]["samples"] == 4
    assert card["terms"].endswith("Drawn by the test.")
    assert "notes" not in card
    assert str(tmp_path) not in json.dumps(card)  # no folder of this machine

    monkeypatch.setattr(trained, "folder", lambda: out)  # as if it had been put into trained/
    assert not create_detector("fpn-light", out / "fpn-light.safetensors").training
    image = cv2.imread(str(data / "images" / "0.png"))
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for kind in ("openvino", "torch"):
            detector = open_detector("default", kind=kind, precision="f32", score=0.0)
            found += detector([image])
            detector.close()
    assert min(len(each) for each in found) > 10
    # weights are folded and rounded in another order: of near duplicates, either may fade
    np.testing.assert_allclose(found[0].scores[:10], found[1].scores[:10], atol=0.01)
    assert main(["eval", "fpn-light", "--data", f"boxes:{data}", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["det_ap50"] == pytest.approx(card["accuracy"]["det_ap50 people"], abs=0.05)


def test_a_teacher_is_named_on_the_card(tmp_path, capsys, monkeypatch, small):
    pytest.importorskip("onnxscript")
    data, out = lspet(tmp_path / "set"), tmp_path / "run"
    words = ["train", "fpn-light", "--data", f"lspet:{data}", "--teacher", "none"]
    words += [f"--out={out}", "--schedule", "64x64:1", "--samples", "2", "--batch", "2"]
    words += ["--precision", "f32", "--device", "cpu", "--json"]
    monkeypatch.setattr("sys.argv", ["fastpose", *words])
    assert main(words) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["notes"][0].startswith(
        "People of lspet beside the annotated one were labelled by none"
    )
    assert card["data"][0]["kind"] == "lspet"
    assert "accuracy" not in card
