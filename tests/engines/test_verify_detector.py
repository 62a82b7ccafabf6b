"""A detector's engine beside its reference, by the overlap of their boxes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastpose import fixtures
from fastpose.detect.fpn import TwoStageDetector
from fastpose.engines import open_halves
from fastpose.engines.verify import reference_halves
from fastpose.engines.verify_detector import BOX_BOUNDS, BoxVerification, verify_detector
from fastpose.errors import BackendError, EngineError
from fastpose.models import detector_spec, trained
from fastpose.types import Boxes

FRAMES = [np.zeros((100, 100, 3), np.uint8)] * 3


class Known:
    """A detector that finds what it is told: rows of (x0, y0, x1, y1, score) for each frame."""

    kind = "known"

    def __init__(self, *rows, precision="f32"):
        self.rows, self.precision, self.frame = rows, precision, 0

    def __call__(self, frames):
        found = np.float32(self.rows[self.frame % len(self.rows)]).reshape(-1, 5)
        self.frame += 1
        return [Boxes(found[:, :4], found[:, 4])]


def people(shift=0.0, score=0.9):
    """Twenty people of 10 x 100 pixels; shifted down by 1 pixel, two boxes overlap by 99 / 101."""
    return [[20 * i, shift, 20 * i + 10, 100 + shift, score] for i in range(20)]


def compare(reference, detector, **options):
    return verify_detector(reference, detector, FRAMES, source="made", **options)


def test_a_detector_is_as_its_own_reference():
    found = compare(Known(people()), Known(people()))
    assert found.passed
    assert (found.reference, found.source, found.frames) == ("known f32", "made", 3)
    assert (found.overlap.boxes, found.overlap.median, found.overlap.p5) == (60, 1, 1)
    assert (found.overlap.found, found.overlap.own) == (1, 1)
    assert found.score_change.largest == 0


@pytest.mark.parametrize(
    ("precision", "shift", "passes"),
    [
        ("f32", 0.4, True),  # 99.6 / 100.4
        ("bf16", 0.6, False),
        ("f16", 0.6, False),
        ("int8", 2.4, True),
        ("int8", 2.7, False),
    ],
)
def test_boxes_that_lie_elsewhere(precision, shift, passes):
    found = compare(Known(people()), Known(people(shift), precision=precision))
    assert found.overlap.median == pytest.approx((100 - shift) / (100 + shift), abs=1e-5)
    assert found.passed is passes
    bound = BOX_BOUNDS[precision].median
    text = f"median overlap {found.overlap.median:.4g}, at least {bound:g}"
    assert found.reasons == (() if passes else (text,))


@pytest.mark.parametrize(("lost", "passes"), [(1, True), (2, False)])
def test_people_who_are_lost_or_invented(lost, passes):
    rest = people()[lost:]
    found = compare(Known(people()), Known(rest))
    assert (found.overlap.found, found.overlap.own) == (pytest.approx(1 - lost / 20), 1)
    assert found.passed is passes
    invented = compare(Known(rest), Known(people()))
    assert (invented.overlap.found, invented.overlap.own) == (1, pytest.approx(1 - lost / 20))
    assert invented.passed is passes
    text = "90 % of 60 boxes are found with an overlap of 0.9, at least 95 %"
    assert passes or found.reasons == (text,)


def test_nobody_found_fails():
    found = compare(Known(people()), Known([]))
    assert (found.overlap.median, found.overlap.found, found.overlap.own) == (0, 0, 0)
    assert len(found.reasons) == 4
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_unsure_boxes_do_not_count_but_may_be_counterparts():
    unsure = [[500, 0, 510, 100, 0.49]]
    found = compare(Known(people() + unsure), Known(people(score=0.4)))
    assert found.overlap.boxes == 60
    assert found.overlap.found == 1
    assert found.score_change.median == pytest.approx(0.5)
    # of two that are as good as the same, the surer one
    double = [[x0, y0 + 0.1, x1, y1 + 0.1, 0.88] for x0, y0, x1, y1, _ in people()]
    found = compare(Known(people()), Known(people(score=0.01) + double))
    assert found.score_change.largest == pytest.approx(0.02, abs=1e-5)


@pytest.mark.parametrize(
    ("score", "precision", "passes"),
    [(0.895, "f32", True), (0.88, "bf16", False), (0.87, "int8", True), (0.84, "int8", False)],
)
def test_scaled_scores_fail(score, precision, passes):
    found = compare(Known(people()), Known(people(score=score), precision=precision))
    assert found.overlap.found == 1
    text = f"scores {0.9 - score:.4g}, at most {BOX_BOUNDS[precision].scores:g}"
    reasons = tuple(f"median change of {what} {text}" for what in WHOSE)
    assert found.reasons == (() if passes else reasons)


WHOSE = ("the boxes'", "the engine's own boxes'")


def test_raised_scores_of_unsure_boxes_fail():
    """As by an engine that is sure of all that it proposes."""
    rows = [[x0, top, x1, top + 100] for top in (200, 400) for x0, _, x1, *_ in people()]
    unsure, raised = ([[*box, score] for box in rows] for score in (0.1, 0.9))
    found = compare(Known(people() + unsure), Known(people() + raised))
    assert (found.overlap.found, found.overlap.own) == (1, 1)
    assert found.score_change.largest == 0
    assert found.reasons == ("median change of the engine's own boxes' scores 0.8, at most 0.01",)


def test_layers_that_can_be_counted_must_be(monkeypatch):
    assert compare(Known(people()), Known(people())).passed
    monkeypatch.setattr(Known, "kind", "openvino")
    reasons = compare(Known(people()), Known(people())).reasons
    assert reasons == ("f32 was asked for, its layers could not be counted",)


def test_one_box_is_the_counterpart_of_one():
    pair = [[0, 0, 10, 100, 0.9], [0, 0, 10, 98, 0.8]]
    found = compare(Known(pair), Known(pair[:1]))
    assert found.overlap.found == 0.5


def test_nothing_to_compare_is_told():
    with pytest.raises(ValueError, match="made: there is no frame to compare the detectors on"):
        verify_detector(Known([]), Known([]), [], source="made")
    with pytest.raises(ValueError, match="made: the reference is sure of nobody in 3 frames"):
        compare(Known(people(score=0.49)), Known(people()))


def test_precision_and_average_precision_are_held_to_their_bounds():
    figures = []
    options = {"truth": lambda found: ("det_ap50", figures.pop(0))}
    figures += [70.0, 69.6]
    found = compare(Known(people()), Known(people()), **options)
    assert found.reasons == ("det_ap50 fell by 0.4 points, at most 0.3",)
    figures += [70.0, 69.6]
    low = Known(people(), precision="int8")
    found = compare(Known(people()), low, precision="int8", layers={"int8": 3, "f32": 1}, **options)
    assert found.passed
    assert found.metric.loss == pytest.approx(0.4)
    document = json.loads(json.dumps(found.to_dict()))
    assert BoxVerification.from_dict(document).to_dict() == document
    found = compare(Known(people()), low, precision="int8", layers={"int8": 1, "f32": 3})
    assert found.reasons[0].startswith("int8 was asked for, 1 of 4 layers compute in it")
    found = compare(Known(people()), Known(people()), precision="int8")
    assert found.reasons == ("int8 was asked for, the engine computes in f32",)
    with pytest.raises(EngineError, match="not the report of a verification"):
        BoxVerification.from_dict({**document, "overlap": {}})


# The detector that every install carries


def opened(graphs):
    return TwoStageDetector(detector_spec("default"), *graphs, score=0.01)


def default_hash():
    return trained.card(detector_spec("default").name)["weights_sha256"]


def test_the_default_detector_passes_on_the_built_in_pictures():
    spec, scenes = detector_spec("default"), fixtures.scenes()
    assert (scenes.name, len(scenes), scenes.truth) == ("built-in", 7, None)
    reference = opened(reference_halves(spec, default_hash(), kind="openvino", threads=1))
    for precision in ("f32", "bf16"):
        try:
            halves = open_halves(spec, kind="openvino", precision=precision, threads=1)
        except BackendError:
            continue  # this machine does not compute in it
        engine = opened(halves)
        layers = {precision: sum(half.layers[precision] for half in halves)}
        options = {"source": scenes.name, "precision": precision}
        found = verify_detector(reference, engine, scenes, layers=layers, **options)
        assert found.passed, found.reasons
        assert found.overlap.boxes >= 15  # as many people are drawn
        engine.close()
    reference.close()


def test_a_set_of_boxes_tells_its_average_precision(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.zeros((50, 60, 3), np.uint8))
    document = {
        "images": [
            {"id": i, "file_name": f"{n}.png", "width": 60, "height": 50}
            for i, n in enumerate("ab")
        ],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 40], "area": 800}
            for i in range(2)
        ],
    }
    path = Path(tmp_path / "val.json")
    path.write_text(json.dumps(document))
    scenes = fixtures.scenes(f"boxes:{path}")
    assert (len(scenes), [frame.shape for frame in scenes]) == (2, [(50, 60, 3)] * 2)
    right = Boxes(np.float32([[5, 5, 25, 45]]), np.float32([0.9]))
    assert scenes.truth([right, right]) == ("det_ap50", 100)
    assert scenes.truth([right, Boxes.empty()])[1] == pytest.approx(50, abs=1)
