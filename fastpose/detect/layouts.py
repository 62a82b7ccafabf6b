"""What detectors of other projects take and give: one row of data and two small functions each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fastpose.types import Floats

Size: TypeAlias = tuple[int, int]
"""(h, w) in pixels."""

Region: TypeAlias = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in the plane of a frame."""

Outputs: TypeAlias = Mapping[str, tuple[tuple[int | None, ...], Any]]
"""A graph's outputs: name -> (shape, None where a size is not fixed; dtype)."""

Found: TypeAlias = tuple[Floats, Floats]
"""Boxes [M, 4] (x0, y0, x1, y1) in pixels of the input, and scores [M] for being a person."""

STRIDES = (8, 16, 32)  # of the anchor-free pyramids: YOLOX, YOLOv8 and later


@dataclass(frozen=True)
class Layout:
    """How one family of detectors is fed and read.

    Attributes:
        outputs: the outputs in words, for messages.
        pick: (outputs, input size or None) -> names of the arrays that `parse` takes, in its
            order; None where these outputs are not of the family.
        parse: (arrays, input size, person class) -> Found. ValueError where they do not fit.
        person: number of the class "person" in the family's published weights.
        size: frame's size -> input size, where the graph leaves it open.
        fit: how the frame lies in the input, a name of `FITS`.
        rgb: the input is RGB, else BGR.
        mean: subtracted per input channel, in grey levels 0-255.
        std: divided by, in grey levels.
        border: grey level of what lies outside the frame.
        antialias: trained on pictures that were scaled down with averaging.
        suppress: the outputs hold duplicates.
        guess: whether outputs that `pick` takes are this family's, where nobody said so.
    """

    outputs: str
    pick: Callable[[Outputs, Size | None], tuple[str, ...] | None]
    parse: Callable[[Sequence[Floats], Size, int], Found]
    person: int
    size: Callable[[Size], Size]
    fit: str
    rgb: bool
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)
    border: float = 114.0
    antialias: bool = False
    suppress: bool = False
    guess: Callable[[Outputs], bool] = lambda outputs: True


# How the frame lies in the input: (frame size, input size) -> the part of the frame's plane that
# the input shows, (x0, y0, x1, y1), lengths from the frame's upper left edge. The scaled frame has
# whole pixels, rounded as the published code does: the networks' accuracy was measured so.


def _region(frame: Size, size: Size, scaled: Size, top: int, left: int) -> Region:
    """The region when the frame, scaled to `scaled`, lies at row `top` and column `left`."""
    y, x = frame[0] / scaled[0], frame[1] / scaled[1]  # frame pixels per input pixel
    return -left * x, -top * y, (size[1] - left) * x, (size[0] - top) * y


def _corner(frame: Size, size: Size) -> Region:
    scale = min(size[0] / frame[0], size[1] / frame[1])
    scaled = max(1, int(frame[0] * scale)), max(1, int(frame[1] * scale))
    return _region(frame, size, scaled, 0, 0)


def _centre(frame: Size, size: Size) -> Region:
    scale = min(size[0] / frame[0], size[1] / frame[1])
    scaled = max(1, round(frame[0] * scale)), max(1, round(frame[1] * scale))
    top, left = (size[0] - scaled[0]) // 2, (size[1] - scaled[1]) // 2
    return _region(frame, size, scaled, top, left)


def _stretch(frame: Size, size: Size) -> Region:
    return _region(frame, size, size, 0, 0)


FITS = {"corner": _corner, "centre": _centre, "stretch": _stretch}


# Input sizes where the graph leaves them open.


def _square(side: int) -> Callable[[Size], Size]:
    return lambda frame: (side, side)


def _own(frame: Size) -> Size:
    return frame


def _short_side(short: int, longest: int) -> Callable[[Size], Size]:
    def size(frame: Size) -> Size:
        scale = min(short / min(frame), longest / max(frame))
        return max(1, round(frame[0] * scale)), max(1, round(frame[1] * scale))

    return size


# Which outputs are meant: by shape, and by name only where shapes leave a choice.


def _cells(size: Size) -> int:
    return sum((size[0] // s) * (size[1] // s) for s in STRIDES)


def _only(outputs: Outputs) -> tuple[str, tuple[int | None, ...]] | None:
    """Name and shape of a graph's one output, if it has three axes."""
    if len(outputs) != 1:
        return None
    name, (shape, _) = next(iter(outputs.items()))
    return (name, shape) if len(shape) == 3 else None


def _pick_yolox(outputs: Outputs, size: Size | None) -> tuple[str, ...] | None:
    only = _only(outputs)
    if only is None:
        return None
    _, anchors, columns = only[1]
    if columns is None or columns < 6:
        return None
    if anchors is None or size is None:
        return only[:1] if columns > 6 else None  # six columns may be an end-to-end YOLO
    return only[:1] if anchors == _cells(size) else None


def _pick_yolov8(outputs: Outputs, size: Size | None) -> tuple[str, ...] | None:
    only = _only(outputs)
    if only is None:
        return None
    _, rows, anchors = only[1]
    if rows is None or rows < 5:
        return None
    if anchors is None or size is None:
        return only[:1] if anchors is None or anchors > rows else None
    return only[:1] if anchors == _cells(size) else None


def _pick_rows(outputs: Outputs, size: Size | None) -> tuple[str, ...] | None:
    only = _only(outputs)
    return only[:1] if only is not None and only[1][2] == 6 else None


def _pick_dets_labels(outputs: Outputs, size: Size | None) -> tuple[str, ...] | None:
    dets = [n for n, (shape, _) in outputs.items() if len(shape) == 3 and shape[2] == 5]
    labels = [n for n, (shape, _) in outputs.items() if len(shape) == 2]
    return (dets[0], labels[0]) if len(dets) == len(labels) == 1 else None


def _pick_triple(rank: int) -> Callable[[Outputs, Size | None], tuple[str, ...] | None]:
    """Boxes of `rank` axes with their labels and scores of one axis less."""

    def pick(outputs: Outputs, size: Size | None) -> tuple[str, ...] | None:
        boxes = [n for n, (shape, _) in outputs.items() if len(shape) == rank and shape[-1] == 4]
        flat = {n: np.dtype(d).kind for n, (shape, d) in outputs.items() if len(shape) == rank - 1}
        labels = [n for n, kind in flat.items() if kind in "iu"]
        scores = [n for n, kind in flat.items() if kind == "f"]
        if not len(boxes) == len(labels) == len(scores) == 1:
            return None
        return boxes[0], labels[0], scores[0]

    return pick


def _queries(outputs: Outputs) -> tuple[str, str, int | None] | None:
    """The names of a DETR's logits [1, Q, C] and boxes [1, Q, 4], and C."""
    rows = {n: shape for n, (shape, _) in outputs.items() if len(shape) == 3}
    boxes = [n for n, shape in rows.items() if shape[2] == 4]
    if len(boxes) > 1:  # a network of four classes
        boxes = [n for n in boxes if n in ("pred_boxes", "dets", "boxes")]
    if len(boxes) != 1:
        return None
    rest = [n for n, shape in rows.items() if n != boxes[0] and shape[1] == rows[boxes[0]][1]]
    if len(rest) > 1:  # hidden states of the decoder are often exported too
        rest = [n for n in rest if n in ("logits", "pred_logits", "labels")]
    return (rest[0], boxes[0], rows[rest[0]][2]) if len(rest) == 1 else None


def _pick_queries(outputs: Outputs, size: Size | None) -> tuple[str, ...] | None:
    found = _queries(outputs)
    return found[:2] if found else None


def _has_coco_classes(outputs: Outputs) -> bool:
    found = _queries(outputs)
    return found is not None and found[2] == 80


def _has_coco_numbers(outputs: Outputs) -> bool:
    found = _queries(outputs)
    return found is not None and (found[2] == 91 or found[:2] == ("labels", "dets"))


def _never(outputs: Outputs) -> bool:
    return False


# From arrays to boxes of people.


def _class_column(scores: Floats, person: int) -> Floats:
    """[M] of [M, C]."""
    if person >= scores.shape[1]:
        raise ValueError(f"no class {person} for person among its {scores.shape[1]} classes")
    return scores[:, person]


def _corners(centre: Floats, extent: Floats) -> Floats:
    return np.concatenate((centre - extent / 2, centre + extent / 2), axis=1)


def _parse_yolox(arrays: Sequence[Floats], size: Size, person: int) -> Found:
    rows = arrays[0][0]  # [A, 5 + C]: centre in cells of its stride, log of the extent, objectness
    if len(rows) != _cells(size):
        raise ValueError(
            f"{_cells(size)} cells expected for an input of {size[0]}x{size[1]}, got {len(rows)}"
        )
    places, strides = [], []
    for stride in STRIDES:
        y, x = np.divmod(np.arange((size[0] // stride) * (size[1] // stride)), size[1] // stride)
        places.append(np.stack((x, y), axis=1))
        strides.append(np.full((len(x), 1), stride))
    cells = np.concatenate(places).astype(np.float32)
    pixels = np.concatenate(strides).astype(np.float32)
    boxes = _corners((rows[:, :2] + cells) * pixels, np.exp(rows[:, 2:4]) * pixels)
    return boxes, rows[:, 4] * _class_column(rows[:, 5:], person)


def _parse_yolov8(arrays: Sequence[Floats], size: Size, person: int) -> Found:
    columns = arrays[0][0]  # [4 + C, A]: centre and extent in pixels, then class scores
    rows = columns[:4].T
    return _corners(rows[:, :2], rows[:, 2:]), _class_column(columns[4:].T, person)


def _parse_rows(arrays: Sequence[Floats], size: Size, person: int) -> Found:
    rows = arrays[0][0]  # [N, 6]: corners, score, class
    rows = rows[rows[:, 5] == person]
    return rows[:, :4], rows[:, 4]


def _parse_dets_labels(arrays: Sequence[Floats], size: Size, person: int) -> Found:
    dets = arrays[0][0][arrays[1][0] == person]  # [N, 5]: corners, score
    return dets[:, :4], dets[:, 4]


def _parse_triple(arrays: Sequence[Floats], size: Size, person: int) -> Found:
    boxes, labels, scores = arrays[0].reshape(-1, 4), arrays[1].ravel(), arrays[2].ravel()
    return boxes[labels == person], scores[labels == person]


def _parse_queries(
    activate: Callable[[Floats], Floats],
) -> Callable[[Sequence[Floats], Size, int], Found]:
    def parse(arrays: Sequence[Floats], size: Size, person: int) -> Found:
        boxes = arrays[1][0] * np.array([size[1], size[0]] * 2, np.float32)  # were shares
        return _corners(boxes[:, :2], boxes[:, 2:]), _class_column(activate(arrays[0][0]), person)

    return parse


def _softmax(logits: Floats) -> Floats:
    """Class probabilities of [M, C + 1] logits; the last, no object, is left out."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True))[:, :-1]


def _sigmoid(logits: Floats) -> Floats:
    return 0.5 * np.tanh(0.5 * logits) + 0.5  # exp would overflow


_IMAGENET_MEAN, _IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # RGB

# Recognised in this order; a later row may be a more general case of an earlier one.
LAYOUTS = {
    # Ge et al., YOLOX: Exceeding YOLO Series in 2021, arXiv 2107.08430
    "yolox": Layout(
        "one [1, cells, 5 + C], strides 8, 16, 32",
        _pick_yolox, _parse_yolox, 0, _square(640), "corner",
        rgb=False, std=(1.0, 1.0, 1.0), suppress=True,
    ),
    # Jocher et al., Ultralytics YOLOv8, 2023, and its successors with suppression outside
    "yolov8": Layout(
        "one [1, 4 + C, cells]",
        _pick_yolov8, _parse_yolov8, 0, _square(640), "centre", rgb=True, suppress=True,
    ),
    # Wang et al., YOLOv10: Real-Time End-to-End Object Detection, NeurIPS 2024
    "yolo-end2end": Layout(
        "one [1, N, 6]: corners, score, class",
        _pick_rows, _parse_rows, 0, _square(640), "centre", rgb=True,
    ),
    # YOLOX as MMDeploy exports it, suppression inside
    "dets-labels": Layout(
        "[1, N, 5] and [1, N]",
        _pick_dets_labels, _parse_dets_labels, 0, _square(640), "corner",
        rgb=False, std=(1.0, 1.0, 1.0),
    ),
    # Lyu et al., RTMDet: An Empirical Study of Designing Real-Time Object Detectors, arXiv
    # 2212.07784, as MMDeploy exports it
    "rtmdet": Layout(
        "[1, N, 5] and [1, N]",
        _pick_dets_labels, _parse_dets_labels, 0, _square(640), "corner",
        rgb=False, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395), guess=_never,
    ),
    # torchvision's detectors, which scale and normalise inside; class 0 is the background
    "torchvision": Layout(
        "boxes [N, 4], labels [N], scores [N]",
        _pick_triple(2), _parse_triple, 1, _own, "corner", rgb=True, border=116.0,
    ),
    # RT-DETR, D-FINE and DEIM as their authors export them, which also take `orig_target_sizes`
    "rtdetr-end2end": Layout(
        "boxes [1, N, 4], labels [1, N], scores [1, N]",
        _pick_triple(3), _parse_triple, 0, _square(640), "stretch", rgb=True, antialias=True,
    ),
    # Zhao et al., DETRs Beat YOLOs on Real-time Object Detection, CVPR 2024
    "rtdetr": Layout(
        "logits [1, Q, C] of 80 classes, pred_boxes [1, Q, 4]",
        _pick_queries, _parse_queries(_sigmoid), 0, _square(640), "stretch",
        rgb=True, antialias=True, guess=_has_coco_classes,
    ),
    # Robinson et al., RF-DETR: Neural Architecture Search for Real-Time Detection Transformers,
    # 2025; Zhu et al., Deformable DETR, ICLR 2021. COCO's own class numbers: person is 1
    "rfdetr": Layout(
        "dets [1, Q, 4], labels [1, Q, C]; or logits of 91 classes",
        _pick_queries, _parse_queries(_sigmoid), 1, _square(560), "stretch",
        rgb=True, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, antialias=True,
        guess=_has_coco_numbers,
    ),
    # Carion et al., End-to-End Object Detection with Transformers, ECCV 2020
    "detr": Layout(
        "logits [1, Q, C + 1], pred_boxes [1, Q, 4]",
        _pick_queries, _parse_queries(_softmax), 1, _short_side(800, 1333), "stretch",
        rgb=True, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, antialias=True,
    ),
}  # fmt: skip


def recognise(outputs: Outputs, size: Size | None) -> str | None:
    """The name of the layout whose outputs these are; None where it is none.

    Args:
        outputs: the graph's outputs.
        size: of its input, None where the graph leaves it open.
    """
    for name, layout in LAYOUTS.items():
        if layout.pick(outputs, size) and layout.guess(outputs):
            return name
    return None


def samples_per_axis(region: Region, size: Size) -> int:
    """Samples on each axis of an output pixel that stand for averaging over its area."""
    scale = max((region[2] - region[0]) / size[1], (region[3] - region[1]) / size[0])
    return min(max(1, math.ceil(scale)), 8)
