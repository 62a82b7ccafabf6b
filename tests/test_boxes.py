"""Boxes from files: each format, and each way to be wrong."""

import json

import numpy as np
import pytest

from fastpose.detect import read_boxes
from fastpose.errors import DataError

BOX = [10.0, 20.5, 50.0, 90.0]
XYWH = [10.0, 20.5, 40.0, 69.5]


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def coco(bbox, **more):
    return {
        "images": [{"id": 3, "file_name": "val/street.jpg"}, {"id": 4, "file_name": "b.png"}],
        "categories": [{"id": 7, "name": "person"}, {"id": 1, "name": "dog"}],
        "annotations": [{"image_id": 3, "bbox": bbox, "category_id": 7, **more}],
    }


def assert_box(boxes, score=1.0):
    np.testing.assert_allclose(boxes.boxes, [BOX])
    np.testing.assert_allclose(boxes.scores, [score])
    assert boxes.boxes.dtype == boxes.scores.dtype == np.float32


def test_json_lines_as_predict_writes_them(tmp_path):
    people = [{"box": BOX, "box_score": 0.75, "keypoints": [[None, None]], "scores": [0], "id": 1}]
    lines = [
        {"schema": 1, "model": "m"},
        {"frame": 0, "time": 0.0, "people": []},
        {"frame": 2, "time": 0.08, "people": people},
    ]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n")
    found = read_boxes(path)
    assert_box(found.boxes_for(2, "clip"), 0.75)
    assert len(found.boxes_for(0, "clip")) == 0  # listed with nobody
    assert len(found.boxes_for(1, "clip")) == 0  # not listed


def test_csv(tmp_path):
    row = ",".join(map(str, BOX))
    for text in (f"5,{row},0.5\n5,{row}\n", f"frame,x0,y0,x1,y1,score\n5, {row},0.5\n\n5,{row}\n"):
        boxes = read_boxes(write(tmp_path, "a.csv", text)).boxes_for(5, "clip")
        np.testing.assert_allclose(boxes.boxes, [BOX, BOX])
        np.testing.assert_allclose(boxes.scores, [0.5, 1.0])
    named = read_boxes(write(tmp_path, "b.csv", f"image,x0,y0,x1,y1\nval/street.jpg,{row}\n"))
    assert_box(named.boxes_for(9, "street"))
    assert len(named.boxes_for(0, "other")) == 0


def test_coco_annotations_go_by_the_name_of_the_picture(tmp_path):
    data = coco(XYWH)
    data["annotations"] += [
        {"image_id": 3, "bbox": XYWH, "category_id": 1},
        {"image_id": 3, "bbox": XYWH, "category_id": 7, "iscrowd": 1},
    ]
    found = read_boxes(write(tmp_path, "a.json", data))
    assert_box(found.boxes_for(0, "street"))
    assert len(found.boxes_for(3, "other")) == 0


def test_coco_results_go_by_number(tmp_path):
    data = [
        {"image_id": 9, "bbox": XYWH, "score": 0.5, "category_id": 1},
        {"image_id": 9, "bbox": XYWH, "score": 0.9, "category_id": 2},
    ]
    found = read_boxes(write(tmp_path, "a.json", data))
    assert_box(found.boxes_for(9, "clip"), 0.5)
    assert_box(found.boxes_for(0, "000000000009"), 0.5)
    assert len(found.boxes_for(9, "000000000010")) == 0  # picture 10, which is the tenth


def test_real_detections(data_dir):
    found = read_boxes(data_dir / "coco_small" / "person_detections_mmpose4.json")
    assert sum(len(boxes) for boxes in found.by_key.values()) == 118
    assert len(found.boxes_for(0, "000000000785")) > 0


def line(box, frame="0"):
    return f'{{"frame": {frame}, "people": [{{"box": {box}}}]}}'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.csv",
            "0,1,2,3,4\n1,nan,2,3,4\n",
            r"line 2: .* must be finite, got \[nan, 2, 3, 4, 1\]",
        ),
        ("a.csv", "0,1,2,inf,4\n", "line 1: box and score must be finite"),
        ("a.csv", "0,1,2,1e300,4\n", r"must be finite, got \[1, 2, 1e\+300"),
        ("a.csv", "0,5,2,3,4\n", r"line 1: box must have x1 > x0 and y1 > y0, got \[5, 2, 3, 4\]"),
        ("a.csv", "0,1,2,3,2\n", "x1 > x0"),
        ("a.csv", "0,1,2,3,4,nan\n", "finite"),
        ("a.csv", "0,1,2,3\n", r"line 1: expected frame,x0,y0,x1,y1\[,score\], got 0,1,2,3"),
        ("a.csv", "0,1,2,x,4\n", "line 1: expected a frame from 0 and numbers, got 0,1,2,x,4"),
        ("a.csv", "-1,1,2,3,4\n", "frame from 0"),
        ("a.csv", "half,1,2,3,4\n", "frame from 0"),
        ("a.jsonl", line("[NaN, 20, 50, 90]"), r"line 1: .* finite, got \[nan, 20"),
        ("a.jsonl", line("[0, 0, 1" + "0" * 400 + ", 1]"), "line 1: .* finite"),
        ("a.jsonl", "\n" + line("[1, 2, 3]"), "line 2: expected a box of 4 numbers"),
        ("a.jsonl", line('[1, 2, 3, "4"]'), "line 1: expected a box of 4 numbers"),
        ("a.jsonl", line("[1, 2, 3, 4]", frame="0.5"), "whole number from 0, got 0.5"),
        ("a.jsonl", line("[1, 2, 3, 4]", frame="-1"), "whole number from 0, got -1"),
        ("a.jsonl", '{"frame": 0, "people": [{"score": 1}]}', "expected an object with 'box'"),
        ("a.jsonl", '{"frame": 0, "people": {}}', "line 1: expected a list"),
        ("a.jsonl", '{"people": []}', "line 1: expected an object with 'frame'"),
        ("a.jsonl", "[1]", "line 1: expected an object"),
        ("a.jsonl", "frame 0", "line 1: no JSON"),
        ("a.json", coco([1, 2, -3, 4]), r"annotation 0: .* height > 0, got \[1, 2, -3, 4\]"),
        ("a.json", coco([1, 2, 0, 4]), "width and height > 0"),
        ("a.json", json.dumps(coco(XYWH)).replace("69.5", "NaN"), "annotation 0: .*finite"),
        ("a.json", coco(XYWH, image_id=[5]), r"annotation 0: no image has the id \[5\]"),
        ("a.json", coco("big"), "annotation 0: expected a box of 4 numbers"),
        ("a.json", {"images": []}, "file: expected an object with 'annotations'"),
        ("a.json", {"images": 1, "annotations": []}, "images: expected a list, got 1"),
        ("a.json", [{"image_id": "x", "bbox": XYWH}], "result 0: a frame is a whole number from 0"),
        ("a.json", [{"bbox": XYWH}], "result 0: expected an object with 'image_id'"),
        ("a.json", "{", "no JSON"),
        ("a.txt", "", r"boxes are read from .jsonl, .json, .csv, got '.txt'"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, name, content, expected):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=expected) as caught:
        read_boxes(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"nosuch.csv: No such file"):
        read_boxes(tmp_path / "nosuch.csv")
    binary = tmp_path / "a.csv"
    binary.write_bytes(b"0,1,2,3,\xff\xfe\n")
    with pytest.raises(DataError, match=r"a.csv: .*utf-8"):
        read_boxes(binary)
