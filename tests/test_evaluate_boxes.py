"""Average precision of boxes: by hand, on figures that were published, and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_box_data import annotation, picture, write_boxes

from fastpose import detect
from fastpose.cli import main
from fastpose.datasets import BoxData, BoxSample, open_boxes
from fastpose.errors import DataError
from fastpose.evaluate import average_precision, evaluate_boxes, evaluate_detector
from fastpose.types import Boxes

BOX = (10, 10, 110, 110)
OTHER = (200, 10, 300, 110)


def truth(*boxes, ignored=()):
    count = len(boxes) + len(ignored)
    return BoxSample(
        Path("a.jpg"),
        None,
        np.array([*boxes, *ignored], np.float32).reshape(-1, 4),
        np.zeros(count, np.int64),
        np.arange(count) >= len(boxes),
    )


def found(*rows):
    """Rows of x0, y0, x1, y1, score."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Boxes(table[:, :4], table[:, 4])


def score(*pairs):
    data = BoxData("boxes", ("person",), tuple(sample for sample, _ in pairs), "val")
    return evaluate_boxes(data, [boxes for _, boxes in pairs])


def moved(share, box=BOX):
    """A box that overlaps `box`, 100 px wide, by `share`: moved by d, (100 - d) / (100 + d)."""
    shift = 100 * (1 - share) / (1 + share)
    return (box[0] + shift, box[1], box[2] + shift, box[3])


def test_what_is_found_exactly_is_all_right():
    report = score((truth(BOX, OTHER), found((*BOX, 0.9), (*OTHER, 0.2))))
    assert report.metrics == {"det_ap50": 1, "det_ap": 1, "recall": 1}
    assert (report.images, report.people, report.unit) == (1, 2, "share")
    assert "ignored" in report.rule


def test_nothing_found_is_nothing():
    assert score((truth(BOX), found())).metrics == {"det_ap50": 0, "det_ap": 0, "recall": 0}


def test_a_set_with_nobody_has_no_figure():
    report = score((truth(ignored=[BOX]), found((*OTHER, 0.5))))
    assert np.isnan(list(report.metrics.values())).all()
    assert report.to_dict() == {"det_ap50": None, "det_ap": None, "recall": None}


@pytest.mark.parametrize(("share", "right"), [(0.501, 1), (0.499, 0), (0.701, 5), (0.951, 10)])
def test_the_mean_is_over_ten_overlaps(share, right):
    report = score((truth(BOX), found((*moved(share), 0.9))))
    assert report.metrics["det_ap"] == pytest.approx(right / 10)
    assert report.metrics["det_ap50"] == (right > 0)


def test_half_an_overlap_is_enough():
    half = (*BOX[:2], BOX[2] + 100, BOX[3])  # twice the width: an overlap of exactly a half
    assert score((truth(BOX), found((*half, 0.9)))).metrics["det_ap50"] == 1


def test_precision_is_that_of_the_same_recall_or_a_higher_one():
    # surest first: wrong, right, right of 4: precision 1/2 at recall 1/4, 2/3 at 1/2
    far = (500, 500, 600, 600)
    boxes = found((*far, 0.9), (*BOX, 0.8), (*OTHER, 0.7))
    report = score((truth(BOX, OTHER, (0, 900, 9, 909), (20, 900, 29, 909)), boxes))
    # 51 of the 101 recalls, 0 to 0.50, have the precision 2/3, the others none
    assert report.metrics["det_ap50"] == pytest.approx(51 / 101 * 2 / 3)
    assert report.metrics["recall"] == 0.5


def test_the_order_is_that_of_all_pictures_together():
    wrong = (truth(), found((*BOX, 0.9)))
    right = (truth(BOX), found((*BOX, 0.5)))
    assert score(wrong, right).metrics["det_ap50"] == pytest.approx(0.5)
    sure = (truth(BOX), found((*BOX, 0.95)))
    assert score(wrong, sure).metrics["det_ap50"] == 1


def test_a_second_box_of_the_same_person_is_wrong():
    twice = found((*BOX, 0.9), (*moved(0.9), 0.8), (*OTHER, 0.7))
    assert score((truth(BOX, OTHER), twice)).metrics["det_ap50"] == pytest.approx(
        (51 + 50 * 2 / 3) / 101
    )


def test_a_box_takes_the_free_one_that_it_overlaps_most():
    near = moved(0.6)
    # the surer box lies on BOX, so the other is left for the fainter one, which overlaps both
    boxes = found((*BOX, 0.9), (*moved(0.8), 0.8))
    assert score((truth(near, BOX), boxes)).metrics["recall"] == 1


def test_ignored_boxes_are_neither_targets_nor_faults():
    crowd = (200, 0, 400, 200)
    inside = (200, 0, 390, 190)
    report = score((truth(BOX, ignored=[crowd]), found((*inside, 0.9), (*BOX, 0.5))))
    assert report.metrics["det_ap50"] == report.metrics["recall"] == 1
    assert report.people == 1
    # 0.9025 of it: at an overlap of 0.95 it does count, and halves the precision there
    assert report.metrics["det_ap"] == pytest.approx(0.95)


def test_a_small_box_in_a_crowd_counts_since_the_overlap_is_the_plain_one():
    crowd, small = (200, 0, 400, 200), (210, 10, 260, 60)
    report = score((truth(BOX, ignored=[crowd]), found((*small, 0.9), (*BOX, 0.5))))
    assert report.metrics["det_ap50"] == pytest.approx(0.5)


def test_a_person_in_front_of_a_crowd_is_a_target_first():
    report = score((truth(BOX, ignored=[moved(0.95)]), found((*moved(0.97), 0.9))))
    assert report.metrics["recall"] == 1


def test_average_precision_of_no_boxes():
    assert average_precision(np.empty(0), np.empty(0, bool), 3) == (0, 0)


def test_what_does_not_fit_is_said():
    data = BoxData("boxes", ("person",), (truth(BOX),))
    with pytest.raises(ValueError, match="found must have 1 entries, got 0"):
        evaluate_boxes(data, [])
    with pytest.raises(ValueError, match="data must have one class, got 2"):
        evaluate_boxes(BoxData("boxes", ("person", "dog"), ()), [])


# ---- a detector over pictures, and on the command line -------------------------------------------


class Light:
    """Finds the bright rectangle of a picture."""

    closed = False
    kind, precision = "onnxruntime", "f32"

    def __call__(self, frames):
        places = [np.argwhere(frame[..., 0] > 128) for frame in frames]
        return [
            found((*p.min(0)[::-1], *p.max(0)[::-1] + 1, 0.5)) if len(p) else found()
            for p in places
        ]

    def close(self):
        self.closed = True


@pytest.fixture
def lights(tmp_path):
    """Three pictures; in the second the box that is annotated is not the one that is seen."""
    images = [picture(k, f"{k}.png") for k in range(3)]
    rows = [annotation(0, (5, 6, 20, 30)), annotation(1, (0, 0, 9, 9))]
    write_boxes(tmp_path, images, rows, split="val")
    for image in images:
        frame = np.zeros((80, 100, 3), np.uint8)
        if image["id"] < 2:
            frame[6:36, 5:25] = 255
        cv2.imwrite(str(tmp_path / "images" / image["file_name"]), frame)
    return tmp_path


def test_a_detector_sees_the_pictures_in_order(lights):
    seen = []
    report = evaluate_detector(Light(), open_boxes(f"boxes:{lights}"), progress=seen.append)
    assert seen == [1, 1, 1]
    assert report.metrics["recall"] == 0.5
    (lights / "images" / "2.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"2\.png: not a readable picture"):
        evaluate_detector(Light(), open_boxes(f"boxes:{lights}"))


def run(capsys, *args):
    code = main(["eval", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("model", "asked"), [("default-detector", "default"), ("x.onnx", "x.onnx")]
)
def test_a_detector_as_json(lights, capsys, monkeypatch, model, asked):
    calls, light = [], Light()

    def open_detector(what, **options):
        calls.append((what, options))
        return light

    monkeypatch.setattr(detect, "open_detector", open_detector)
    words = [model, "--data", f"boxes:{lights}", "--split", "val", "--engine", "onnxruntime"]
    words += ["--precision", "bf16", "--threads", "1"]
    code, out, err = run(capsys, *words, "--detector-layout", "yolox", "--json")
    assert code == 0
    assert light.closed
    options = {"kind": "onnxruntime", "device": "auto", "threads": 1, "layout": "yolox"}
    assert calls == [(asked, {**options, "precision": "bf16", "score": 0.01, "iou": 0.6})]
    document = json.loads(out)
    assert (document["detector"], document["data"], document["split"]) == (model, "boxes", "val")
    assert (document["engine"], document["precision"]) == ("onnxruntime", "f32")  # what ran
    assert (document["images"], document["people"]) == (3, 2)
    assert "left_out" not in document
    assert document["metrics"]["recall"] == 0.5
    assert "per_joint" not in document["metrics"]
    assert "3/3 pictures" in err


def test_the_whole_frame_runs_in_nothing(lights, capsys):
    words = ["none", "--data", f"boxes:{lights}", "--split", "val", "--json"]
    _, out, _ = run(capsys, *words)
    assert not {"engine", "precision"} & json.loads(out).keys()


def test_a_table_of_boxes_says_the_rule_and_what_was_left_out(lights, capsys, monkeypatch):
    file = lights / "val.json"
    content = json.loads(file.read_text())
    content["annotations"].append(annotation(2, (0, 0, 0, 5)))
    file.write_text(json.dumps(content))
    monkeypatch.setattr(detect, "open_detector", lambda what, **options: Light())
    code, out, _ = run(capsys, "x.onnx", "--data", f"boxes:{lights}", "--limit", 1)
    assert code == 0
    assert "images 1, people 1, left_out 1, rule 101 recalls" in out
    assert "det_ap50   1.000" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--predictions", "p.json"], "--predictions is for coco, flic, lsp, lspet, mpii data"),
        (["x.onnx", "--flip"], "--flip is for coco, flic, lsp, lspet, mpii data, got boxes:"),
        (["x.onnx", "--boxes", "b.json"], "--boxes is for coco data, got boxes:"),
        (["x.onnx", "--observer-centric"], "--observer-centric is for flic data, got boxes:"),
        (["x.onnx", "--engine", "e.xml"], "a detector is given as MODEL; --engine is its runtime"),
        (["x.onnx", "--images", "i"], "its pictures lie in the folder itself; got images i"),
        (["x.onnx"], "x.onnx: no such file"),
    ],
)
def test_what_boxes_cannot_use_is_refused_in_one_line(lights, capsys, args, message):
    code, out, err = run(capsys, *args, "--data", f"boxes:{lights}")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "ap", "recall"), [("person_boxes", 0.648, 0.78), ("voc_person", 0.832, 0.95)]
)
def test_yolox_nano_is_as_right_as_its_authors_code(data_dir, capsys, name, ap, recall):
    model = data_dir.parent / "models" / "yolox_nano.onnx"
    if not model.is_file():
        pytest.skip(f"needs {model}")
    code, out, _ = run(
        capsys, model, "--data", f"boxes:{data_dir / name}", "--threads", 1, "--json"
    )
    assert code == 0
    metrics = json.loads(out)["metrics"]
    assert metrics["det_ap50"] == pytest.approx(ap, abs=0.01)
    assert metrics["recall"] == pytest.approx(recall, abs=0.01)
