"""People found by the peaks of a map of their centres."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from fastpose.detect import open_detector, runtime_of
from fastpose.detect.centres import CentreDetector, find_centres
from fastpose.errors import DetectorError
from fastpose.geometry import boxes_to_affines
from fastpose.models import model_spec

SPEC = model_spec("cpm-person")


class HandMade:
    """An engine whose map is given, and which remembers what it was shown."""

    def __init__(self, heights: np.ndarray) -> None:
        self.manifest = SimpleNamespace(spec=SPEC, kind="by hand", precision="f32", buckets=(1,))
        self.heights, self.closed = heights.astype(np.float32), False
        self.image = np.zeros((1, 3, *SPEC.size), np.float32)

    def buffer(self, count: int) -> np.ndarray:
        assert count == 1
        return self.image

    def run(self, count: int) -> np.ndarray:
        return self.heights[None, None]

    def close(self) -> None:
        self.closed = True


def people(*centres: tuple[float, float, float]) -> np.ndarray:
    """A map with a Gaussian of each (x, y, height), in pixels of the network's input."""
    rows, columns = np.indices(SPEC.cells)
    heights = np.zeros(SPEC.cells)
    for x, y, height in centres:
        square = (8 * columns + 3.5 - x) ** 2 + (8 * rows + 3.5 - y) ** 2
        heights = np.maximum(heights, height * np.exp(-square / 2 / 21**2))
    return heights


def test_boxes_stand_round_the_centres_surest_first() -> None:
    engine = HandMade(people((203.5, 99.5, 0.7), (451.5, 187.5, 0.9), (83.5, 291.5, 0.4)))
    detector = CentreDetector(engine)
    frame = np.full((752, 1312, 3), 77, np.uint8)  # twice the input
    (found,) = detector([frame])
    assert found.boxes.shape == (2, 4)
    np.testing.assert_allclose(found.scores, (0.9, 0.7), atol=0.02)
    middles = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    # a pixel of the input is two of the frame, whose pixels are half a pixel off its centre
    expected = 2 * np.array([[451.5, 187.5], [203.5, 99.5]]) + 0.5
    np.testing.assert_allclose(middles, expected, atol=2.01)
    np.testing.assert_allclose(engine.image, (77 - 128) / 256, atol=1e-6)


@pytest.mark.parametrize("shape", [(376, 656), (720, 1280), (640, 480)])
def test_a_cpm_sees_368_pixels_of_the_networks_input(shape: tuple[int, int]) -> None:
    (found,) = CentreDetector(HandMade(people((331.5, 187.5, 0.8))))(
        [np.zeros((*shape, 3), np.uint8)]
    )
    pose = model_spec("cpm-vgg")
    affines = boxes_to_affines(
        found.boxes, pose.size, padding=pose.padding, convention=pose.convention
    )
    scale = min(376 / shape[0], 656 / shape[1])  # of the frame in the network's input
    np.testing.assert_allclose(affines[0, :, :2], np.eye(2) / scale, atol=1e-5)


def test_a_frame_without_a_peak_has_no_people() -> None:
    detector = CentreDetector(HandMade(people((200.0, 100.0, 0.45))))
    frame = np.zeros((100, 100, 3), np.uint8)
    for found in detector([frame, frame]):
        assert found.boxes.shape == (0, 4)
        assert found.scores.shape == (0,)
    assert detector([]) == []
    lower = CentreDetector(HandMade(people((200.0, 100.0, 0.45))), score=0.4)
    assert len(lower([frame])[0].boxes) == 1


def test_enlarging_and_peaks_are_those_of_a_plain_loop() -> None:
    """OpenCV's cubic kernel, a = -0.75, its borders repeated; then every pixel and its eight."""

    def kernel(d: float) -> float:
        a, d = -0.75, abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    heights = np.random.default_rng(3).random((6, 7)).astype(np.float32)
    weights = []
    for count in heights.shape:
        matrix = np.zeros((8 * count, count))
        for pixel in range(8 * count):
            place = (pixel + 0.5) / 8 - 0.5
            for cell in range(math.floor(place) - 1, math.floor(place) + 3):
                matrix[pixel, min(max(cell, 0), count - 1)] += kernel(place - cell)
        weights.append(matrix)
    enlarged = weights[0] @ heights @ weights[1].T
    expected = [
        (x, y)
        for y, x in np.ndindex(enlarged.shape)
        if enlarged[y, x] > 0.5
        and enlarged[y, x] >= enlarged[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max() - 1e-6
    ]
    places, scores = find_centres(heights, 8, 0.5)
    assert len(expected) > 3
    # a level stretch is one peak, in its middle
    distance = np.abs(np.array(expected)[:, None] - places).max(axis=2)
    assert (distance.min(axis=1) <= 4).all()
    assert (distance.min(axis=0) <= 4).all()
    for (x, y), score in zip(places, scores, strict=True):
        assert score == pytest.approx(enlarged[round(y), round(x)], abs=1e-4)


def test_neighbours_of_equal_height_are_one_person() -> None:
    heights = np.zeros((5, 8), np.float32)
    heights[2, 3:5] = 0.8  # the highest pixels are the two between these cells
    places, scores = find_centres(heights, 8, 0.5)
    np.testing.assert_allclose(places, [[31.5, 19.5]], atol=0.51)
    assert scores.shape == (1,)


def test_it_tells_its_runtime_and_closes_it() -> None:
    engine = HandMade(people())
    detector = CentreDetector(engine)
    assert runtime_of(detector) == {"engine": "by hand", "precision": "f32"}
    detector.close()
    assert engine.closed


def test_it_is_opened_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def engine(name: str, **options: object) -> HandMade:
        asked.update(options, name=name)
        return HandMade(people((331.5, 187.5, 0.35)))

    monkeypatch.setattr("fastpose.detect.open_engine", engine)
    frame = np.zeros((94, 164, 3), np.uint8)
    assert len(open_detector("cpm-person", threads=1)([frame])[0].boxes) == 0
    assert len(open_detector("cpm-person", score=0.3)([frame])[0].boxes) == 1
    assert asked["name"] == "cpm-person"
    assert asked["buckets"] == (1,)
    with pytest.raises(DetectorError, match="person_class is for a detector"):
        open_detector("cpm-person", person_class=1)
    with pytest.raises(DetectorError, match=r"one of default, .*cpm-person"):
        open_detector("cpm-persons")
