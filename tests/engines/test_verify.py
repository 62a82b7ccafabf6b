"""An engine beside its reference: what passes, what fails, and what the report says."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fastpose.engines.verify import BOUNDS, Verification, verify
from fastpose.errors import EngineError
from fastpose.models import model_spec

SPEC = replace(model_spec("cpn-light"), method="argmax")
WINDOWS = np.zeros((4, 3, *SPEC.size), np.float32)
JOINTS, (HEIGHT, WIDTH) = len(SPEC.joints), SPEC.cells


class Known:
    """An engine whose joints are where it is told: cells [N, 14, 2] and heights [N, 14]."""

    def __init__(self, cells, heights, *, spec=SPEC, precision="f32", layers=None):
        self.manifest = SimpleNamespace(
            spec=spec,
            kind="known",
            precision=precision,
            precision_asked=precision,
            layers=layers or {},
        )
        self.maps = np.zeros((len(cells), JOINTS, HEIGHT, WIDTH), np.float32)
        for n, k in np.ndindex(heights.shape):
            x, y = cells[n, k]
            self.maps[n, k, y, x] = heights[n, k]

    def __call__(self, batch):
        return self.maps[: len(batch)].copy()


def people(seed=0):
    """Cells and heights of four people's joints, all of them sure."""
    rng = np.random.default_rng(seed)
    cells = rng.integers((2, 2), (WIDTH - 2, HEIGHT - 2), (4, JOINTS, 2))
    return cells, rng.uniform(0.5, 1.0, (4, JOINTS)).astype(np.float32)


def compare(reference, engine, **options):
    return verify(reference, engine, [WINDOWS], source="made", **options)


def test_an_engine_is_as_its_own_reference():
    reference = Known(*people())
    found = compare(reference, reference)
    assert found.passed
    assert found.reasons == ()
    assert (found.reference, found.source, found.windows) == ("known f32", "made", 4)
    assert (found.shift.joints, found.shift.largest, found.shift.moved) == (4 * JOINTS, 0, 0)
    assert (found.score_change.median, found.score_change.largest) == (0, 0)


def test_shift_is_in_input_pixels():
    cells, heights = people()
    moved = cells.copy()
    moved[2, 5, 0] += 1
    shift = compare(Known(cells, heights), Known(moved, heights)).shift
    assert shift.largest == pytest.approx(SPEC.stride)
    assert shift.moved == pytest.approx(1 / (4 * JOINTS))
    assert shift.median == shift.p95 == 0


def test_joints_that_the_reference_is_not_sure_of_do_not_count():
    cells, heights = people()
    heights[:, 3:] = 0.3  # not above it
    other = cells.copy()
    other[:, 3:] += 1
    found = compare(Known(cells, heights), Known(other, heights))
    assert found.passed
    assert found.shift.joints == 4 * 3
    everywhere = compare(Known(cells, heights), Known(other, heights), random=True)
    assert everywhere.random
    assert everywhere.shift.joints == 4 * JOINTS
    assert not everywhere.passed


def test_half_a_cell_off_fails():
    """As by an engine of another grid convention."""
    cells, heights = people()
    engine = Known(cells, heights, spec=replace(SPEC, convention="msra"))
    found = compare(Known(cells, heights), engine)
    bound = BOUNDS["f32"].median
    assert found.shift.median == pytest.approx(np.hypot(1.5, 1.5), rel=0.01)
    assert f"median shift 2.121 px, at most {bound}" in found.reasons
    assert "100 % of 56 joints moved by more than 2 px, at most 0.5 %" in found.reasons


def test_swapped_joints_fail():
    cells, heights = people()
    swapped = cells.copy()
    swapped[:, [1, 4]] = cells[:, [4, 1]]  # the knees
    found = compare(Known(cells, heights), Known(swapped, heights))
    assert found.shift.median == 0
    assert found.reasons == ("14.29 % of 56 joints moved by more than 2 px, at most 0.5 %",)


def test_scaled_scores_are_reported():
    cells, heights = people()
    found = compare(Known(cells, heights), Known(cells, 0.9 * heights))
    assert found.passed
    assert found.score_change.largest == pytest.approx(0.1 * heights.max(), abs=1e-3)
    assert 0.05 < found.score_change.median < 0.1


def test_a_lost_joint_moved_as_far_as_can_be():
    cells, heights = people()
    lost = heights.copy()
    lost[0, 0] = 0
    found = compare(Known(cells, heights), Known(cells, lost))
    assert found.shift.largest == np.inf
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["shift"]["largest"] is None
    assert Verification.from_dict(document).shift.largest == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_fail(value):
    reference, engine = Known(*people()), Known(*people())
    engine.maps[1, 0, 0, 0] = value
    text = "values that are not finite in the results for 1 of 4 windows, at most 0"
    assert text in compare(reference, engine).reasons
    with pytest.raises(EngineError, match="the reference, known f32, gives values that are not"):
        compare(engine, reference)


@pytest.mark.parametrize(
    ("precision", "distance", "moved", "passes"),
    [
        ("f32", 0.099, 1, True),
        ("bf16", 0.099, 1, True),
        ("bf16", 0.11, 1, False),
        ("f16", 0.11, 1, False),
        ("int8", 0.499, 1, True),
        ("int8", 0.51, 1, False),
        ("int8", 0.1, 2, False),
    ],
)
def test_bounds_of_each_precision(precision, distance, moved, passes):
    """Of 200 joints, `moved` go far, all others a little."""
    scores = np.ones((20, 10), np.float32)
    points = np.zeros((20, 10, 2), np.float32)
    points[..., 0] = distance
    points.reshape(-1, 2)[:moved] += 3
    spec = replace(SPEC, output="joints")
    reference, engine = (
        Answer(np.dstack((cells, scores)), spec=spec, precision=name)
        for cells, name in ((np.zeros_like(points), "f32"), (points / SPEC.stride, precision))
    )
    found = verify(reference, engine, [np.zeros((20, 3, *SPEC.size), np.float32)], source="made")
    assert found.passed is passes, found.reasons
    assert found.shift.median == pytest.approx(distance, abs=1e-5)


class Answer(Known):
    """An engine with decoding in its graph, of ten joints."""

    def __init__(self, rows, *, spec, precision):
        super().__init__(np.empty((0, 0, 2), int), np.empty((0, 0)), spec=spec, precision=precision)
        ten = replace(SPEC.joints, name="ten", joints=SPEC.joints.joints[:10])
        self.manifest.spec = replace(spec, skeleton="ten", custom=ten)
        self.maps = rows.astype(np.float32)
