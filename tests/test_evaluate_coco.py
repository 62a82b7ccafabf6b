"""COCO's average precision of poses: the library against the formula, and the way to it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from test_box_data import picture
from test_evaluate import SPEC, DotEngine
from test_pose_data import person, write_coco

from fastpose import detect, engines
from fastpose.cli import main
from fastpose.datasets import open_data
from fastpose.errors import BackendError, ModelError
from fastpose.evaluate import (
    annotated_boxes,
    detected_boxes,
    evaluate_people,
    evaluate_results,
    listed_boxes,
    people_results,
)
from fastpose.evaluate.coco import run_evaluation
from fastpose.skeleton import COCO17
from fastpose.types import Boxes, People

pytest.importorskip("faster_coco_eval")

# Lin et al.'s constants, written down again: those of the package are what is tested
SIGMAS = np.array(
    [26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]
) / 1000  # fmt: skip


def oks(found, truth, area):
    """Object keypoint similarity of joints [17, 3] by its definition."""
    labelled = truth[:, 2] > 0
    square = ((found[:, :2] - truth[:, :2]) ** 2).sum(axis=1)
    return np.exp(-square / (2 * area * (2 * SIGMAS) ** 2))[labelled].mean()


def poses(rng, count):
    joints = np.concatenate((rng.uniform(50, 250, (count, 17, 2)), np.ones((count, 17, 1))), -1)
    return joints.round(3)


def as_people(image, joints, areas):
    return [
        person(image, (40, 40, 220, 220), keypoints=j.reshape(-1).tolist(), area=float(a))
        for j, a in zip(joints, areas, strict=True)
    ]


def as_results(image, joints, scores):
    return [
        {"image_id": image, "category_id": 3, "keypoints": j.reshape(-1).tolist(), "score": s}
        for j, s in zip(joints, scores, strict=True)
    ]


def test_similarities_are_those_of_the_formula(tmp_path):
    rng = np.random.default_rng(1)
    truth, areas = poses(rng, 6), rng.uniform(500, 40_000, 6)
    truth[..., 2] = rng.integers(0, 3, (6, 17))
    truth[:, 0, 2] = 2
    found = np.concatenate((truth + rng.normal(0, 8, truth.shape), poses(rng, 2)))
    scores = np.linspace(0.9, 0.1, len(found))  # the library sorts by them
    data = open_data(
        write_coco(tmp_path / "a.json", [picture(5, size=(300, 300))], as_people(5, truth, areas))
    )
    table = run_evaluation(data, as_results(5, found, scores)).ious[5, 3]
    expected = [[oks(f, t, a) for t, a in zip(truth, areas, strict=True)] for f in found]
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-9)
    assert max(map(max, expected)) > 0.3  # some are near


def test_the_sigmas_of_the_skeleton_are_cocos():
    np.testing.assert_array_equal(COCO17.sigmas, SIGMAS)


@pytest.fixture
def two(tmp_path):
    """Two people of a large area in one picture, another picture with nobody."""
    truth = poses(np.random.default_rng(2), 2)
    truth[..., 2] = 2
    images = [picture(5, "5.png", (300, 300)), picture(8, "8.png", (300, 300))]
    for image in images:
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / image["file_name"]), np.zeros((300, 300, 3)))
    text = write_coco(tmp_path / "a.json", images, as_people(5, truth, [40_000.0] * 2))
    return SimpleNamespace(text=text, truth=truth, data=open_data(text), folder=tmp_path)


def test_the_truth_is_all_right(two):
    report = evaluate_results(two.data, as_results(5, two.truth, [0.9, 0.8]))
    right = {name: value for name, value in report.metrics.items() if name not in ("apm", "arm")}
    assert set(right.values()) == {1.0}
    assert np.isnan([report.metrics["apm"], report.metrics["arm"]]).all()  # nobody of medium area
    assert report.to_dict()["apm"] is None
    assert list(report.metrics)[:5] == ["ap", "ap50", "ap75", "apm", "apl"]
    assert (report.images, report.people, report.unit) == (2, 2, "share")


def test_precision_by_hand(two):
    # surest is a pose in the empty picture, then one of the two: 51 recalls at precision 1/2
    rows = as_results(8, two.truth[:1], [0.9]) + as_results(5, two.truth[:1], [0.8])
    report = evaluate_results(two.data, rows)
    assert report.metrics["ap"] == pytest.approx(51 / 101 / 2)
    assert report.metrics["ar"] == pytest.approx(0.5)


def test_no_results_are_no_error(two):
    assert evaluate_results(two.data, []).metrics["ap"] == 0


def test_the_first_pictures_alone(two):
    rows = as_results(8, two.truth[:1], [0.9]) + as_results(5, two.truth, [0.8, 0.7])
    assert evaluate_results(two.data.head(1), rows).metrics["ap"] == 1
    assert evaluate_results(two.data, rows).metrics["ap"] < 1


def test_the_callers_rows_stay_as_they_are(two):
    rows = as_results(5, two.truth, [0.8, 0.7])
    rows[0]["bbox"] = [0, 0, 5, 5]  # the other has none
    copy = json.loads(json.dumps(rows))
    assert evaluate_results(two.data, rows).metrics["ap"] == 1
    assert rows == copy


def test_a_pose_is_ranked_by_its_box_times_its_joints(two):
    scores = np.full((2, 17), 0.5, np.float32)
    scores[1, :] = 1
    people = People(
        np.tile(np.float32([[0, 0, 9, 9]]), (2, 1)),
        np.float32([0.9, 0.6]),
        two.truth[..., :2].astype(np.float32),
        scores,
        COCO17,
    )
    rows = people_results(two.data, [people, People.empty(COCO17)])
    assert [row["image_id"] for row in rows] == [5, 5]
    assert {row["category_id"] for row in rows} == {3}
    np.testing.assert_allclose([row["score"] for row in rows], [0.45, 0.6], atol=1e-6)


# ---- boxes, model, command line ------------------------------------------------------------------


def test_boxes_of_the_annotations_of_a_file_and_of_a_detector(two):
    first, none = annotated_boxes(two.data)
    np.testing.assert_array_equal(first.boxes, np.tile([40, 40, 260, 260], (2, 1)))
    np.testing.assert_array_equal(first.scores, [1, 1])
    assert len(none) == 0

    file = two.folder / "boxes.json"
    row = {"image_id": 8, "bbox": [1, 2, 3, 4], "score": 0.5, "category_id": 1}
    file.write_text(json.dumps([row]))
    none, second = listed_boxes(two.data, detect.read_boxes(file))
    np.testing.assert_array_equal(second.boxes, [[1, 2, 4, 6]])
    assert len(none) == 0
    file = two.folder / "boxes.csv"
    file.write_text("image,x0,y0,x1,y1\n8.png,1,2,4,6\n")
    none, second = listed_boxes(two.data, detect.read_boxes(file))
    np.testing.assert_array_equal(second.boxes, [[1, 2, 4, 6]])

    seen = []
    everything = detected_boxes(two.data, detect.open_detector("none"), progress=seen.append)
    np.testing.assert_array_equal(everything[1].boxes, [[-0.5, -0.5, 299.5, 299.5]])
    assert seen == [1, 1]


class CocoDots(DotEngine):
    """`DotEngine` whose joints are COCO's: those of one side lie on that side's dot."""

    def __post_init__(self):
        super().__post_init__()
        self.manifest.spec = replace(SPEC, skeleton="coco17", padding=1.0)
        self.maps = np.empty((self.bucket, 17, *SPEC.cells), np.float32)

    def run(self, n):
        h, w = SPEC.cells
        self.batches.append(n)
        cells = self.window[:n].mean(1).reshape(n, h, SPEC.stride, w, SPEC.stride).mean((2, 4))
        left = np.arange(w) < w // 2
        for k, name in enumerate(COCO17.joints):
            self.maps[:n, k] = cells * (left if name.startswith("right") else ~left)
        return self.maps[:n]


@pytest.fixture
def dotted(tmp_path):
    """A picture with two people, each a dot on either side of the box, and one with one person."""
    y, x = np.mgrid[:200, :300]
    people, images = [], [picture(1, "1.png", (200, 300)), picture(2, "2.png", (200, 300))]
    (tmp_path / "images").mkdir()
    for image, lefts in ((1, (20, 160)), (2, (90,))):
        frame = np.zeros((200, 300))
        for left in lefts:
            right_dot, left_dot = (left + 25, 60), (left + 75, 110)
            for dot in (right_dot, left_dot):
                frame += 255 * np.exp(-((x - dot[0]) ** 2 + (y - dot[1]) ** 2) / (2 * 12.5**2))
            joints = [
                (*(right_dot if name.startswith("right") else left_dot), 2)
                for name in COCO17.joints
            ]
            box = (left, 20, 100, 150)
            people.append(person(image, box, keypoints=np.ravel(joints).tolist(), area=9000.0))
        grey = np.repeat(frame.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
        cv2.imwrite(str(tmp_path / "images" / f"{image}.png"), grey)
    return write_coco(tmp_path / "a.json", images, people)


def test_a_model_that_is_right_has_ap_1(dotted):
    data, engine, seen = open_data(dotted), CocoDots(bucket=2), []
    report = evaluate_people(engine, data, annotated_boxes(data), progress=seen.append)
    assert report.metrics["ap"] == 1
    assert seen == engine.batches == [2, 1]
    # the nose, which has no twin, lies on either side: an OKS of 16 / 17, enough up to 0.90
    flipped = evaluate_people(CocoDots(), data, annotated_boxes(data), flip=True)
    assert flipped.metrics["ap"] == pytest.approx(0.9)


def test_poses_on_one_another_are_dropped_unless_the_boxes_are_the_truth(dotted):
    data = open_data(dotted)
    twice = [
        Boxes(np.concatenate((b.boxes, b.boxes)), np.repeat([1, 0.9], len(b)).astype(np.float32))
        for b in annotated_boxes(data)
    ]
    # the doubles are less sure than the truth, and yet above it in the other picture's order
    assert evaluate_people(CocoDots(), data, twice).metrics["ap"] == 1
    worse = [replace(b, scores=b.scores[::-1].copy()) for b in twice[:1]] + [
        replace(twice[1], scores=np.float32([0.5, 0.4]))
    ]
    assert evaluate_people(CocoDots(), data, worse, suppress=False).metrics["ap"] < 1
    assert evaluate_people(CocoDots(), data, worse).metrics["ap"] == 1


def test_a_model_without_cocos_joints_is_refused(dotted):
    data = open_data(dotted)
    with pytest.raises(ModelError, match=r"\(lsp14\) lack nose, which coco17 has"):
        evaluate_people(DotEngine(), data, annotated_boxes(data))


def test_without_the_library_the_error_says_what_to_install(dotted, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    data, engine = open_data(dotted), CocoDots()
    with pytest.raises(BackendError, match=r"fastpose-inference\[eval\]"):
        evaluate_people(engine, data, annotated_boxes(data))
    assert engine.batches == []  # before the model runs


def run(capsys, *args):
    code = main(["eval", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def test_results_on_the_command_line(two, capsys):
    file = two.folder / "r.json"
    file.write_text(json.dumps(as_results(5, two.truth, [0.9, 0.8])))
    code, out, err = run(capsys, "--predictions", file, "--data", two.text, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert (document["data"], document["split"], document["images"]) == ("coco", "a", 2)
    assert document["metrics"]["ap"] == 1
    assert document["metrics"]["apm"] is None


def test_who_is_left_out_is_counted_in_the_first_pictures_alone(tmp_path, capsys):
    people = [person(5), person(5, iscrowd=1), person(8), person(8, iscrowd=1)]
    text = write_coco(tmp_path / "a.json", [picture(5), picture(8)], people)
    (tmp_path / "r.json").write_text("[]")
    for limit, left_out in ((["--limit", 1], 1), ([], 2)):
        words = ["--predictions", tmp_path / "r.json", "--data", text, "--json", *limit]
        _, out, _ = run(capsys, *words)
        assert json.loads(out)["left_out"] == left_out


def test_boxes_of_another_set_are_told(dotted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: CocoDots())
    (tmp_path / "b.json").write_text(json.dumps([{"image_id": 99, "bbox": [1, 2, 3, 4]}]))
    args = ["eval", "dots", "--data", dotted, "--boxes", str(tmp_path / "b.json")]
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.endswith("b.json: has no box in any of the 2 pictures\n")


def test_a_layout_without_a_detector_is_refused(dotted, capsys):
    code, out, err = run(capsys, "dots", "--data", dotted, "--detector-layout", "yolox")
    assert (code, out) == (2, "")
    assert err.endswith("--detector-layout is for --detector FILE.onnx, got no --detector\n")


@pytest.mark.parametrize(
    ("options", "boxes"),
    [([], "gt"), (["--detector", "x.onnx"], "x.onnx"), (["--boxes", "{}/b.json"], "{}/b.json")],
)
def test_a_model_on_the_command_line(dotted, tmp_path, capsys, monkeypatch, options, boxes):
    rows = [
        {"image_id": image, "bbox": [left, 20, 100, 150], "score": 0.9}
        for image, left in ((1, 20), (1, 160), (2, 90))
    ]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    found = listed_boxes(open_data(dotted), detect.read_boxes(tmp_path / "b.json"))

    class Detector:
        closed = False

        def __call__(self, frames):
            return [found.pop(0)]

        def close(self):
            self.closed = True

    detector = Detector()
    monkeypatch.setattr(detect, "open_detector", lambda what, **options: detector)
    monkeypatch.setattr(engines, "open_engine", lambda model, **options: CocoDots())
    words = ["dots", "--data", dotted, "--json", *(o.replace("{}", str(tmp_path)) for o in options)]
    code, out, err = run(capsys, *words)
    assert code == 0
    document = json.loads(out)
    assert document["boxes"] == boxes.replace("{}", str(tmp_path))
    assert document["metrics"]["ap"] == 1
    assert "3/3 boxes" in err
    assert detector.closed == ("--detector" in options)


def test_the_shared_truth_scores_one(data_dir):
    data = open_data(f"coco:{data_dir / 'coco_small' / 'person_keypoints_val_tiny.json'}")
    rows = [p | {"score": 0.9} for p in data.people if p["num_keypoints"] and not p["iscrowd"]]
    assert evaluate_results(data, rows).metrics["ap"] == 1
