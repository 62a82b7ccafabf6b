from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import test_pose_data as poses
from test_datasets import JOINTS, row, write
from test_evaluate import DotEngine

from fastpose import datasets, engines
from fastpose.cli import main

PEOPLE = 3


@pytest.fixture
def lsp(tmp_path):
    """Three pictures with the same joints, one of them hidden, and predictions that count pixels
    from 1 as the set does and are right but for one person's head top."""
    folder = tmp_path / "lsp"
    (folder / "images").mkdir(parents=True)
    write(folder, *(row(f"im{i}.png") for i in range(PEOPLE)))
    for i in range(PEOPLE):
        cv2.imwrite(str(folder / "images" / f"im{i}.png"), np.zeros((80, 60, 3), np.uint8))
    predicted = np.tile(JOINTS[:, :2], (PEOPLE, 1, 1))
    predicted[2, 13] += 99
    np.save(tmp_path / "predicted.npy", predicted)
    return tmp_path


def run(capsys, *args):
    code = main(["eval", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def test_predictions_as_json(lsp, capsys):
    file = lsp / "predicted.npy"
    code, out, err = run(capsys, "--predictions", file, "--data", f"lsp:{lsp / 'lsp'}", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    metrics = document.pop("metrics")
    assert document.pop("rule").startswith("PCK by the torso")
    about = {"predictions": str(file), "data": "lsp", "split": "test"}
    assert document == {**about, "images": 3, "people": 3}
    assert metrics["pck@0.2"] == pytest.approx(100 * (13 + 2 / 3) / 14, abs=1e-3)
    assert metrics["pck@0.2_limbs"] == metrics["pck@0.2_occluded"] == 100
    assert metrics["per_joint"]["head_top"] == pytest.approx(66.667)
    assert len(metrics["per_joint"]) == 14


def test_predictions_as_a_table(lsp, capsys):
    data = f"lsp:{lsp / 'lsp'}"
    code, out, _ = run(capsys, "--predictions", lsp / "predicted.npy", "--data", data)
    assert code == 0
    lines = [line.rsplit(maxsplit=1) for line in out.splitlines()]
    assert ["pck@0.2", "97.62"] in [[name.strip(), value] for name, value in lines]
    assert ["pck@0.2 head_top", "66.67"] in [[name.strip(), value] for name, value in lines]


def test_limit_takes_the_first(lsp, capsys):
    data = f"lsp:{lsp / 'lsp'}"
    _, out, _ = run(
        capsys, "--predictions", lsp / "predicted.npy", "--data", data, "--limit", 2, "--json"
    )
    document = json.loads(out)
    assert document["images"] == 2
    assert document["metrics"]["pck@0.2"] == 100


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--predictions", "{}/none.npy", "--data", "lsp:{}/lsp"], "none.npy: No such file"),
        (["--predictions", "{}/predicted.npy", "--data", "lsp:{}/x"], "x: no such folder"),
        (["--predictions", "{}/predicted.npy", "--data", "voc:{}"], "must be one of lsp:DIR"),
        (["--predictions", "{}/short.npy", "--data", "lsp:{}/lsp"], "expected [3, 14, 2]"),
        (["--predictions", "{}/vast.npy", "--data", "lsp:{}/lsp"], "expected a .npy array"),
        (
            ["--predictions", "{}/predicted.npy", "--data", "lsp:{}/lsp", "--flip"],
            "--flip is for a model, got --predictions",
        ),
        (["no-such-model", "--data", "lsp:{}/lsp"], "unknown model 'no-such-model'; known: "),
    ],
)
def test_a_fault_of_the_input_is_one_line(lsp, capsys, args, message):
    np.save(lsp / "short.npy", np.zeros((2, 14, 2)))
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**13, 14, 2)}
    with (lsp / "vast.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    code, out, err = run(capsys, *(a.replace("{}", str(lsp)) for a in args))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_what_no_memory_holds_is_one_line(lsp, capsys, monkeypatch):
    def read(*_):
        raise MemoryError("Unable to allocate 112. GiB")

    monkeypatch.setattr(datasets, "read_predictions", read)
    args = ["--predictions", lsp / "predicted.npy", "--data", f"lsp:{lsp / 'lsp'}"]
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert err == "fastpose eval: not enough memory: Unable to allocate 112. GiB\n"


@pytest.mark.parametrize(
    "args",
    [
        ["--data", "lsp:x"],
        ["default", "--predictions", "p.npy", "--data", "lsp:x"],
        ["default"],
        ["default", "--data", "lsp:x", "--limit", "0"],
    ],
)
def test_exactly_one_of_model_and_predictions_and_a_set(capsys, args):
    with pytest.raises(SystemExit) as caught:
        main(["eval", *args])
    assert caught.value.code == 2


def test_a_model_as_json(lsp, capsys, monkeypatch):
    asked, engine = {}, DotEngine()

    def open_engine(model, **options):
        asked.update(options, model=model)
        return engine

    monkeypatch.setattr(engines, "open_engine", open_engine)
    data = f"lsp:{lsp / 'lsp'}"
    code, out, err = run(
        capsys,
        "dots",
        "--data",
        data,
        "--engine",
        "torch",
        "--precision",
        "f32",
        "--threads",
        "2",
        "--flip",
        "--single-view",
        "--json",
    )
    assert code == 0
    assert engine.closed
    expected = {"kind": "torch", "device": "auto", "precision": "f32", "threads": 2}
    assert asked == {"model": "dots", **expected, "single_view": True, "options": None}
    document = json.loads(out)
    assert document["model"] == "dots"
    assert (document["engine"], document["precision"]) == ("torch", "f32")
    assert (document["data"], document["images"], document["flip"]) == ("lsp", 3, True)
    assert document["seconds"] >= 0
    assert document["metrics"]["pck@0.2"] == 0  # black pictures: no peak, so every joint is wrong
    assert "3/3 people" in err


@pytest.mark.parametrize("precision", ["f32", "auto"])
def test_the_default_model_is_as_right_as_its_card_says(data_dir, capsys, precision):
    words = ["default", "--data", f"lsp:{data_dir / 'lsp'}", "--limit", "200", "--json"]
    code, out, _ = run(capsys, *words, "--precision", precision)
    assert code == 0
    # 83.4 on all 700 pictures; the first 200 give 84.1
    assert json.loads(out)["metrics"]["pck@0.2"] > 82


def test_mpii_predictions_from_an_archive(tmp_path, capsys):
    np.savez(tmp_path / "p.npz", mine=poses.JOINTS[poses.VALIDATION], zero=np.zeros((3, 16, 2)))
    data = f"mpii:{poses.mpii_arrays(tmp_path)}"
    words = ["--predictions", f"{tmp_path / 'p.npz'}:mine", "--data", data, "--json"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    document = json.loads(out)
    assert (document["data"], document["split"], document["people"]) == ("mpii", "val", 3)
    assert document["metrics"]["pckh@0.5"] == document["metrics"]["pckh@0.5_mean"] == 100
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "1.jpg").touch()
    code, _, err = run(capsys, *words, "--images", tmp_path / "few")
    assert code == 2
    assert "expected [1, 16, 2] for the val split of mpii, got [3, 16, 2]" in err


@pytest.mark.parametrize(("option", "rate"), [([], 0), (["--observer-centric"], 100)])
def test_flic_predictions_of_an_observer(tmp_path, capsys, option, rate):
    part = np.zeros((2, 11, 2))
    part[:] = np.arange(11)[:, None] * 40 + 100
    part[:, 0, 0], part[:, 3, 0] = 200, 300  # seen from behind
    seen = part[:, [3, 4, 5, 0, 1, 2, 7, 6, 10]]
    np.save(tmp_path / "p.npy", seen)
    data = f"flic:{poses.write_flic(tmp_path, part, visible=np.ones((2, 11)))}"
    words = ["--predictions", tmp_path / "p.npy", "--data", data, "--json", *option]
    code, out, _ = run(capsys, *words)
    assert code == 0
    document = json.loads(out)
    assert document.get("observer_centric", False) == bool(option)
    assert document["metrics"]["pck@0.2_elbow"] == document["metrics"]["pck@0.2_wrist"] == rate


@pytest.mark.parametrize(("name", "least"), [("person_boxes", 0.4), ("voc_person", 0.65)])
def test_the_default_detector_is_as_right_as_its_card_says(data_dir, capsys, name, least):
    words = ["default-detector", "--data", f"boxes:{data_dir / name}", "--json"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert json.loads(out)["metrics"]["det_ap50"] > least  # 0.432 and 0.679 on its card
