"""Frames -> boxes of people: a detector's ONNX graph, the whole frame, or a file of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fastpose import ops
from fastpose.detect.boxes import BoxesFile, read_boxes
from fastpose.detect.centres import CENTRES, CentreDetector
from fastpose.detect.centres import SCORE as CENTRE_SCORE
from fastpose.detect.fpn import PERSON, TwoStageDetector
from fastpose.detect.layouts import (
    FITS,
    LAYOUTS,
    Layout,
    Outputs,
    Region,
    Size,
    recognise,
    samples_per_axis,
)
from fastpose.engines import Graph, open_detector_bundle, open_engine, open_graph, open_halves
from fastpose.errors import DetectorError
from fastpose.geometry import boxes_to_affines, frame_box
from fastpose.models import DETECTORS, detector_spec
from fastpose.models.spec import DetectorSpec
from fastpose.types import Boxes, Floats

__all__ = [
    "LAYOUTS",
    "BoxesFile",
    "Detector",
    "beside",
    "open_detector",
    "read_boxes",
    "reads_device",
    "runtime_of",
]

Image = npt.NDArray[np.uint8]
SCORE = 0.3  # least score of a person, where nothing else is known of a detector


class Detector(Protocol):
    """Finds people in frames. One with a network may also tell what runs it; see `runtime_of`."""

    def __call__(self, frames: Sequence[Image]) -> list[Boxes]:
        """The people of each frame [H, W, 3] uint8 BGR, surest first; none is a result."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def runtime_of(detector: Detector) -> dict[str, str]:
    """What a detector runs in: its `kind` and `precision`, which mean what an engine's do.

    Returns:
        "engine" and "precision"; nothing for one that does not tell, such as the whole frame.
    """
    kind, precision = (getattr(detector, name, None) for name in ("kind", "precision"))
    return {"engine": str(kind), "precision": str(precision)} if kind and precision else {}


def reads_device(detector: Detector) -> bool:
    """Whether it also takes frames that are tensors on CUDA, and reads them there."""
    return bool(getattr(detector, "reads_device", False))


def beside(kind: str, precision: str, detector: str) -> tuple[str, str]:
    """The runtime and the precision of a detector beside a network in `kind` and `precision`.

    A bundle has its own; TensorRT and int8 are nothing that another detector can be opened in.
    """
    if _is_bundle(detector):
        return "auto", "auto"
    return "auto" if kind == "tensorrt" else kind, "auto" if precision == "int8" else precision


def _is_bundle(what: str) -> bool:
    return what.endswith(".json")


def open_detector(
    what: str,
    *,
    layout: str | None = None,
    kind: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    score: float | None = None,
    iou: float = 0.6,
    person_class: int | None = None,
) -> Detector:
    """Open what finds the people.

    Args:
        what: "default" or another name of `models.DETECTORS`, "cpm-person" (see
            `CentreDetector`), "none" (the whole frame is one person), or the path of an ONNX graph
            or of the manifest (.json) that `fastpose.build_detector` wrote.
        layout: what the file's graph takes and gives, a name of `LAYOUTS`; None recognises it by
            the shapes of its outputs.
        kind: runtime, as `engines.open_halves` names them for our own detectors and
            `engines.open_graph` for others, which "torch" cannot run: for them it is "auto".
        device: as there; with "cuda", which the runtimes of other people's graphs do not have here,
            such a detector runs on the CPU beside a network on the GPU.
        precision: as there; "auto" is "f32" for a detector whose low precision nobody measured,
            and a bundle's own.
        threads: as there.
        score: least score of a box that is kept, 0-1; None is 0.3, or what the spec of our own
            detector says, or 0.5 for "cpm-person".
        iou: boxes that overlap a better one by more than this are dropped, 0-1; for graphs that do
            not do so themselves. Ours fade instead (Soft-NMS).
        person_class: number of the class "person" in the file's; None takes the layout's.

    Raises:
        DetectorError: there is no such detector or layout, or the graph is no detector; `layout`
            or `person_class` is given for what is no file.
        EngineError, BackendError: the runtime cannot read or run it.
        ValueError: `score` or `iou` is not from 0 to 1, or `person_class` is negative.
    """
    _check_options(layout, score, iou, person_class)
    own = what in ("default", CENTRES) or what in DETECTORS
    for option, given in (("--detector-layout", layout), ("person_class", person_class)):
        if given is not None and (own or what == "none"):
            raise DetectorError(
                f"{option} is for a detector from FILE.onnx, got {given!r} for {what}"
            )
    if what == "none":
        return WholeFrame()
    if what == CENTRES:
        engine = open_engine(
            what, kind=kind, device=device, precision=precision, buckets=(1,), threads=threads
        )
        return CentreDetector(engine, score=CENTRE_SCORE if score is None else score)
    if own:
        return _open_own(detector_spec(what), kind, device, precision, threads, score)
    path = Path(what)
    place = "auto" if device.startswith("cuda") else device
    if _is_bundle(what) and path.is_file():
        return _open_bundle(path, layout, kind, place, precision, threads, score)
    if not path.is_file():
        known = ", ".join(("default", *DETECTORS, CENTRES))
        raise DetectorError(
            f"{what}: no such file; a detector is FILE.onnx, the FILE.json of `fastpose build`, "
            f"none (the whole frame), or one of {known}"
        )
    kind = "auto" if kind == "torch" else kind
    chosen = "f32" if precision == "auto" else precision
    graph = open_graph(path, kind=kind, device=place, precision=chosen, threads=threads)
    floor = SCORE if score is None else score
    return GraphDetector(path, graph, layout, score=floor, iou=iou, person_class=person_class)


def _check_options(
    layout: str | None, score: float | None, iou: float, person_class: int | None
) -> None:
    """Raise the errors of `open_detector` that concern one argument alone."""
    for name, value in (("score", score), ("iou", iou)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value}")
    if person_class is not None and person_class < 0:
        raise ValueError(f"person_class must not be negative, got {person_class}")
    if layout is not None and layout not in LAYOUTS:
        raise DetectorError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")


def _open_own(
    spec: DetectorSpec,
    kind: str,
    device: str,
    precision: str,
    threads: int | None,
    score: float | None,
) -> Detector:
    _check_persons(spec)
    proposer, head = open_halves(
        spec, kind=kind, device=device, precision=precision, threads=threads
    )
    return TwoStageDetector(spec, proposer, head, score=spec.score if score is None else score)


def _open_bundle(
    path: Path,
    layout: str | None,
    kind: str,
    device: str,
    precision: str,
    threads: int | None,
    score: float | None,
) -> Detector:
    if layout is not None:
        raise DetectorError(f"--detector-layout is for a graph, got {layout!r} for {path}")
    manifest, proposer, head = open_detector_bundle(
        path, kind=kind, device=device, precision=precision, threads=threads
    )
    spec = manifest.spec
    _check_persons(spec)
    return TwoStageDetector(spec, proposer, head, score=spec.score if score is None else score)


def _check_persons(spec: DetectorSpec) -> None:
    """Raise DetectorError unless persons are among what it finds."""
    if PERSON not in spec.classes:
        raise DetectorError(f"{spec.name} finds no persons; it finds: {', '.join(spec.classes)}")


class WholeFrame:
    """One person in each frame, whose box is the whole frame, score 1."""

    def __call__(self, frames: Sequence[Image]) -> list[Boxes]:
        return [Boxes(frame_box(*frame.shape[:2]), np.ones(1, np.float32)) for frame in frames]

    def close(self) -> None:
        """Nothing is held."""


class GraphDetector:
    """A detector's ONNX graph, fed and read by its layout.

    One frame a run: graphs with suppression inside rarely take more, and a frame fills a CPU. The
    graph is run once when opened, so that one that does not fit its layout is refused then.

    Args:
        path: where the graph came from, for messages.
        graph: takes one picture [1, 3, h, w] or [3, h, w], beside it only inputs of `_EXTRAS`.
        layout: a name of `LAYOUTS`; None recognises it.
        score, iou, person_class: see `open_detector`.

    Raises:
        DetectorError: the inputs or outputs are no detector's, or not those of `layout`.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        layout: str | None,
        *,
        score: float,
        iou: float,
        person_class: int | None,
    ) -> None:
        self._path, self._graph, self._floor, self._iou = path, graph, score, iou
        self._input, shape = self._picture_input()
        self._batched = len(shape) == 4
        height, width = shape[-2:]
        self._size: Size | None = (height, width) if height and width else None
        self.layout, self._names = self._choose(layout)
        self._person = self._rules.person if person_class is None else person_class
        self._buffer = np.empty((0, 3, 0, 0), np.float32)
        self([np.full((64, 64, 3), 114, np.uint8)])

    def __call__(self, frames: Sequence[Image]) -> list[Boxes]:
        return [self._detect(frame) for frame in frames]

    def close(self) -> None:
        """Free the graph."""
        self._graph.close()

    @property
    def kind(self) -> str:
        """The runtime."""
        return self._graph.kind

    @property
    def precision(self) -> str:
        """In which it computes."""
        return self._graph.precision

    @property
    def _rules(self) -> Layout:
        return LAYOUTS[self.layout]

    def _picture_input(self) -> tuple[str, tuple[int | None, ...]]:
        """Name and shape of the input that takes the picture."""
        pictures = [item for item in self._graph.inputs.items() if item[0] not in _EXTRAS]
        if len(pictures) != 1 or not _is_picture(*pictures[0][1]):
            raise DetectorError(
                f"{self._path}: expected one floating-point input [1, 3, h, w], got "
                f"{_listed(self._graph.inputs)}"
            )
        name, (shape, _) = pictures[0]
        return name, shape

    def _choose(self, layout: str | None) -> tuple[str, tuple[str, ...]]:
        """The layout and, in its order, the outputs it reads."""
        outputs = self._graph.outputs
        name = layout or recognise(outputs, self._size)
        picked = LAYOUTS[name].pick(outputs, self._size) if name else None
        if name is None or picked is None:
            family = f"those of {layout} ({LAYOUTS[layout].outputs})" if layout else "a detector's"
            raise DetectorError(
                f"{self._path}: its outputs {_listed(outputs)} are not {family}; "
                f"known to --detector-layout: {', '.join(LAYOUTS)}"
            )
        return name, picked

    def _detect(self, frame: Image) -> Boxes:
        rules, shape = self._rules, (frame.shape[0], frame.shape[1])
        size = self._size or rules.size(shape)
        region = FITS[rules.fit](shape, size)
        given = self._graph(self._feeds(frame, region, size))
        try:
            arrays = [np.asarray(given[name], np.float32) for name in self._names]
            with np.errstate(over="ignore", invalid="ignore"):  # such boxes are dropped below
                boxes, scores = rules.parse(arrays, size, self._person)
        except ValueError as error:
            raise DetectorError(f"{self._path} as {self.layout}: {error}") from None
        return self._finish(boxes, scores, region, size)

    def _feeds(self, frame: Image, region: Region, size: Size) -> dict[str, npt.NDArray]:
        """The graph's inputs; the frame is cut straight into the picture."""
        rules = self._rules
        if self._buffer.shape[2:] != size:
            self._buffer = np.empty((1, 3, *size), np.float32)
        ops.warp(
            frame,
            # the region counts from the edge of the first pixel, half a pixel before its centre
            boxes_to_affines(np.array([region]) - 0.5, size, aspect="stretch").astype(np.float32),
            size,
            mean=rules.mean,
            std=rules.std,
            swap_rb=rules.rgb,
            border=rules.border,
            area=samples_per_axis(region, size) if rules.antialias else 1,
            out=self._buffer,
        )
        picture = self._buffer if self._batched else self._buffer[0]
        dtype = np.dtype(self._graph.inputs[self._input][1])
        extras = {n: make(size) for n, make in _EXTRAS.items() if n in self._graph.inputs}
        return {self._input: picture.astype(dtype, copy=False), **extras}

    def _finish(self, boxes: Floats, scores: Floats, region: Region, size: Size) -> Boxes:
        """Boxes in the input's pixels -> the ones worth keeping, in the frame's, surest first."""
        sound = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        kept = np.flatnonzero(sound & (scores >= self._floor))
        x0, y0, x1, y1 = region
        scale = np.array([(x1 - x0) / size[1], (y1 - y0) / size[0]] * 2)
        found = (boxes[kept] * scale + (x0, y0, x0, y0)).astype(np.float32)
        sure = scores[kept]
        if self._rules.suppress:
            order, _ = ops.suppress_boxes(found, sure, iou=self._iou, floor=0.0)
        else:
            order = np.argsort(-sure, kind="stable")
        return Boxes(found[order], sure[order])


# What some graphs ask for beside the picture: input size -> array.
_EXTRAS = {
    "pixel_mask": lambda size: np.ones((1, *size), np.int64),  # no padding
    "orig_target_sizes": lambda size: np.array([[size[1], size[0]]], np.int64),  # answer in pixels
}


def _is_picture(shape: tuple[int | None, ...], dtype: np.dtype) -> bool:
    """Whether an input takes [1, 3, h, w] or [3, h, w] of a floating-point type."""
    axes = len(shape) == 3 or (len(shape) == 4 and shape[0] in (1, None))
    return axes and shape[-3] in (3, None) and dtype in (np.float32, np.float16)


def _listed(tensors: Outputs) -> str:
    def sides(shape: tuple[int | None, ...]) -> str:
        return ", ".join("?" if side is None else str(side) for side in shape)

    return ", ".join(f"{name} [{sides(shape)}]" for name, (shape, _) in tensors.items())
