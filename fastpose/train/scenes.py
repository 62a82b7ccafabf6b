"""Pictures with boxes -> augmented batches for a detector: zoomed, placed, and put together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fastpose.crop import Window, crop_affines
from fastpose.datasets import BoxData, BoxSample, read_image
from fastpose.errors import DataError
from fastpose.train.data import recolour
from fastpose.types import Floats

LEAST_SEEN = 0.35  # share of a box that must be left for it to stay a target
LEAST_SIDE = 6.0  # pixels: a smaller box is neither a target nor a fault


@dataclass(frozen=True)
class Scenery:
    """Ranges of a detector's random views.

    Attributes:
        zoom: smallest and largest long side of a picture, in sides of the input; its logarithm is
            uniform.
        mosaic: share of views put together from four pictures, so that people are many and small
            and the pictures of one set appear among those of another.
        mosaic_zoom: `zoom` of these.
        largest_gain: no picture is enlarged by more.
        empty: share of pictures without a target, where a set has some with and some without.
        stretch: standard deviation of the logarithm of the zoom's aspect.
        flip: share of mirrored pictures.
        gain: each channel is multiplied by a number from 1 - gain to 1 + gain.
        grey: share of views without colour.
    """

    zoom: tuple[float, float] = (0.6, 1.7)
    mosaic: float = 0.5
    mosaic_zoom: tuple[float, float] = (0.4, 1.1)
    largest_gain: float = 3.0
    empty: float = 0.3
    stretch: float = 0.08
    flip: float = 0.5
    gain: float = 0.3
    grey: float = 0.1


@dataclass(frozen=True)
class SceneBatch:
    """N pictures and their boxes.

    Attributes:
        images: [N, 3, h, w] float32, normalised.
        boxes: of each picture [M, 4] float32 in its pixels, counted from the outer edge.
        classes: of each picture [M] int64.
        ignored: of each picture [M] bool, neither targets nor faults.
    """

    images: Floats
    boxes: list[Floats]
    classes: list[npt.NDArray[np.int64]]
    ignored: list[npt.NDArray[np.bool_]]

    def __len__(self) -> int:
        return len(self.images)


class SceneSet:
    """Pictures with boxes, kept decoded in memory; each set gets the same share of the views.

    So a small set is seen as often as a large one, and one that is given twice counts twice.
    """

    def __init__(self, sets: list[BoxData]) -> None:
        if not sets or not all(len(s) for s in sets):
            raise DataError("training needs at least one set, and none that is empty")
        self.classes = sets[0].classes
        if any(s.classes != self.classes for s in sets):
            raise DataError("all training sets must have the same classes")
        self.images = {
            path: read_image(path) for path in {s.image for d in sets for s in d.samples}
        }
        sized = [[self._sized(s) for s in d.samples] for d in sets]
        self._sets = [_parted(samples) for samples in sized]

    def __len__(self) -> int:
        return len(self.images)

    def _sized(self, sample: BoxSample) -> BoxSample:
        height, width = self.images[sample.image].shape[:2]
        return replace(sample, size=(height, width))

    def batch(
        self, count: int, window: Window, scenery: Scenery, rng: np.random.Generator
    ) -> SceneBatch:
        """`count` random views."""
        height, width = window.size
        images = np.empty((count, 3, height, width), np.float32)
        whole, side = (0, 0, width, height), max(width, height)
        found = []
        for row in range(count):
            if rng.random() < scenery.mosaic:
                found.append(self._mosaic(images[row], window, scenery, rng))
            else:
                sample = self._draw(scenery.empty, rng)
                view = _view(sample, whole, side, scenery.zoom, None, scenery, rng)
                found.append(self._place(images[row], sample, view, window))
        recolour(images, window, scenery.gain, scenery.grey, rng)
        boxes, classes, ignored = zip(*found, strict=True)
        return SceneBatch(images, list(boxes), list(classes), list(ignored))

    def _draw(self, empty: float, rng: np.random.Generator) -> BoxSample:
        with_target, without = self._sets[rng.integers(len(self._sets))]
        samples = without if rng.random() < empty else with_target
        samples = samples or with_target or without
        return samples[rng.integers(len(samples))]

    def _mosaic(
        self, image: Floats, window: Window, scenery: Scenery, rng: np.random.Generator
    ) -> _Marks:
        """Four pictures round a random point (Bochkovskiy et al., YOLOv4, 2020)."""
        height, width = window.size
        x, y = (int(side * rng.uniform(0.3, 0.7)) for side in (width, height))
        tiles = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        marks = []
        for tile in tiles:
            sample = self._draw(scenery.empty, rng)
            view = _view(sample, tile, max(window.size), scenery.mosaic_zoom, (x, y), scenery, rng)
            marks.append(self._place(image, sample, view, window))
        boxes, classes, ignored = zip(*marks, strict=True)
        return np.concatenate(boxes), np.concatenate(classes), np.concatenate(ignored)

    def _place(self, image: Floats, sample: BoxSample, view: _View, window: Window) -> _Marks:
        """Cut a picture into its tile of `image` [3, h, w]; its boxes there."""
        x0, y0, x1, y1 = view.tile
        size = (y1 - y0, x1 - x0)
        tile = Window(size, window.mean, window.std, window.rgb, window.convention, 1.0)
        cut = crop_affines(self.images[sample.image], view.affine(), tile)
        image[:, y0:y1, x0:x1] = cut[0]
        return view.marks(sample)


def _parted(samples: list[BoxSample]) -> tuple[list[BoxSample], list[BoxSample]]:
    """Those with a target, and those without."""
    peopled = [not sample.ignored.all() for sample in samples]
    return (
        [sample for sample, there in zip(samples, peopled, strict=True) if there],
        [sample for sample, there in zip(samples, peopled, strict=True) if not there],
    )


_Marks = tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class _View:
    """Where a picture lies: input = source * zoom + offset, both counted from outer edges.

    Attributes:
        tile: (x0, y0, x1, y1) the part of the input that shows it.
        zoom, offset: per axis (x, y); a mirrored picture has a negative zoom in x.
    """

    tile: tuple[int, int, int, int]
    zoom: tuple[float, float]
    offset: tuple[float, float]

    def affine(self) -> npt.NDArray[np.float64]:
        """[1, 2, 3]: pixel of the tile -> pixel of the source."""
        affine = np.zeros((1, 2, 3))
        for axis in (0, 1):
            affine[0, axis, axis] = 1 / self.zoom[axis]
            start = self.tile[axis] + 0.5 - self.offset[axis]
            affine[0, axis, 2] = start / self.zoom[axis] - 0.5
        return affine

    def marks(self, sample: BoxSample) -> _Marks:
        """The boxes that can be seen, cut off at the tile; what is left of some is ignored."""
        corners = sample.boxes.reshape(-1, 2, 2) * self.zoom + self.offset
        whole = np.concatenate((corners.min(1), corners.max(1)), 1)
        x0, y0, x1, y1 = self.tile
        boxes = np.clip(whole, (x0, y0, x0, y0), (x1, y1, x1, y1))
        sides = boxes[:, 2:] - boxes[:, :2]
        seen = sides.prod(1) / np.maximum((whole[:, 2:] - whole[:, :2]).prod(1), 1e-6)
        unsure = sample.ignored | (seen < LEAST_SEEN) | (sides.min(1, initial=np.inf) < LEAST_SIDE)
        there = (sides > 0.5).all(1)
        return boxes[there].astype(np.float32), sample.classes[there], unsure[there]


def _view(
    sample: BoxSample,
    tile: tuple[int, int, int, int],
    side: int,
    zooms: tuple[float, float],
    anchor: tuple[int, int] | None,
    scenery: Scenery,
    rng: np.random.Generator,
) -> _View:
    """A random zoom and place of a picture.

    Args:
        sample: the picture.
        tile: (x0, y0, x1, y1) the part of the input that will show it.
        side: the long side of the input.
        zooms: least and largest long side of the picture, in `side`.
        anchor: a corner of the tile where a corner of the picture lies; None: anywhere.
        scenery: the other ranges.
        rng: decides.
    """
    assert sample.size is not None, "filled in when the picture was read"
    height, width = sample.size
    x0, y0, x1, y1 = tile
    zoom = np.exp(rng.uniform(*np.log(zooms))) * side / max(height, width)
    zoom = min(zoom, scenery.largest_gain)
    aspect = np.exp(rng.normal(0, scenery.stretch) / 2)
    zoom_x, zoom_y = zoom * aspect, zoom / aspect
    extent = np.array([width * zoom_x, height * zoom_y])
    if anchor is None:
        room = np.array([x1 - x0, y1 - y0]) - extent
        corner = np.array([x0, y0]) + rng.uniform(0, 1, 2) * room
    else:
        before = np.array([x1 == anchor[0], y1 == anchor[1]])
        corner = np.array(anchor) - extent * before
    if rng.random() < scenery.flip:
        return _View(tile, (-zoom_x, zoom_y), (corner[0] + extent[0], corner[1]))
    return _View(tile, (zoom_x, zoom_y), (corner[0], corner[1]))
