"""Pose: frames in, people out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.detect import BoxesFile, Detector, beside, open_detector, reads_device
from fastpose.direct import DeviceFrames
from fastpose.engines import Engine, Options, open_engine
from fastpose.frames import Source, as_bgr, open_source, read_ahead
from fastpose.graph import in_graphs
from fastpose.measure import stage
from fastpose.ops.choose import Array, type_name
from fastpose.people import drop_duplicates
from fastpose.pipeline import estimate
from fastpose.smooth import OneEuro
from fastpose.track import Tracker, predict_boxes
from fastpose.types import Boxes, Frame, People

Image = npt.NDArray[np.uint8]
FRAME_TIME = 1 / 30  # seconds between frames that have no time of their own, such as pictures


class Pose:
    """Finds the joints of all people in a frame. A context manager; use one per thread.

    Args:
        model: a name of `list_models()`, "default", or the path of an engine bundle or of weights
            (.safetensors) with their card.
        detector: where people come from: "default" or another of `list_detectors()`, the path of
            an ONNX detector, "none" (the whole frame is one person), or any `Detector`.
        engine: "openvino", "onnxruntime", "torch", "tensorrt", or "auto", the fastest that is
            installed and needs nothing built.
        device: "cpu", "cuda" or "cuda:1" (torch), or what the engine knows; "auto" is the CPU.
        precision: of model and detector: "f32", "bf16", "f16" (on CUDA), or "auto": bf16 or f16
            where the machine computes in it and the card of the weights records that it passed
            against f32, else f32. "int8" is the model's alone, which `fastpose.build_engine` has
            put into the user's cache; a detector's is a bundle of its own.
        batch: sizes of the batches that the network is compiled for, ascending. More people than
            the largest are split.
        threads: of the CPU for each network; None leaves the number to the runtime. The kernels'
            is `fastpose.ops.set_num_threads`.
        single_view: look at each person once, with networks whose published procedure joins
            several views of a person, such as the seven scales of a CPM.
        options: how the engine is run, and what its graph does; of a bundle only how it is run.
        build: an engine that has to be built for this machine and is not in the user's cache, or a
            bundle that does not fit it any more, is built first, which may take minutes.

    Raises:
        ModelError, WeightsError, EngineError, DetectorError: a name or a file is not usable.
        BackendError: what was asked for by name is not installed or cannot run here.
    """

    def __init__(
        self,
        model: str | Path = "default",
        *,
        detector: str | Path | Detector = "default",
        engine: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        batch: Sequence[int] = (1, 2, 4, 8, 16, 32),
        threads: int | None = None,
        single_view: bool = False,
        options: Options | None = None,
        build: bool = False,
    ) -> None:
        kind, own = beside(engine, precision, str(detector))
        self._detector = (
            open_detector(str(detector), kind=kind, device=device, precision=own, threads=threads)
            if isinstance(detector, (str, Path))
            else detector
        )
        self._engine: Engine | DeviceFrames = in_graphs(
            _opener(build)(
                model,
                kind=engine,
                device=device,
                precision=precision,
                buckets=tuple(batch),
                threads=threads,
                single_view=single_view,
                options=options,
            )
        )

    @property
    def engine(self) -> Engine | DeviceFrames:
        """What runs the network: its manifest tells model, runtime, precision and device.

        On CUDA it is in `fastpose.direct.DeviceFrames`, which take frames, not windows.
        """
        return self._engine

    def __call__(self, frame: Array, *, boxes: npt.NDArray[np.floating] | None = None) -> People:
        """The people of one frame.

        Args:
            frame: [H, W, 3] uint8 BGR; grey [H, W] and BGRA [H, W, 4] are converted. On CUDA also a
                tensor [H, W, 3] there, which is read in place: it must be ready on torch's current
                stream, so a decoder with a stream of its own has to be waited for.
            boxes: [N, 4] (x0, y0, x1, y1) in frame pixels, instead of the detector's. The answer
                then has one row for each box, in this order.

        Raises:
            ValueError: a shape or type is not the one above, or a box is not finite or has no area.
        """
        return self.batch([frame], boxes=None if boxes is None else [boxes])[0]

    def batch(
        self,
        frames: Iterable[Array],
        *,
        boxes: Sequence[npt.NDArray[np.floating]] | None = None,
    ) -> list[People]:
        """The people of several frames, which share the network's batches; see `__call__`.

        Raises:
            ValueError: as `__call__`; `frames` is one frame, or `boxes` are not as many.
        """
        shape = getattr(frames, "shape", ())
        if 0 < len(shape) < 4:
            raise ValueError(f"frames must be several frames, got one array {list(shape)}")
        images = [_as_frame(frame) for frame in frames]
        if boxes is not None and len(boxes) != len(images):
            raise ValueError(f"boxes must have {len(images)} entries, got {len(boxes)}")
        placed = self._place(images)
        if boxes is not None:
            return estimate(placed, [_given(b) for b in boxes], self._engine)
        tensors = isinstance(self._engine, DeviceFrames) and self._engine.tensors
        shared = tensors and reads_device(self._detector)
        seen = placed if shared else [_on_host(image) for image in images]
        with stage("detect"):
            found = self._detector(seen)
        return _once_each(estimate(placed, found, self._engine))

    def _locate(self, images: list[Array], found: Sequence[Boxes]) -> list[People]:
        """The joints of people who were found already."""
        return estimate(self._place(images), found, self._engine)

    def _place(self, images: list[Array]) -> list[Array]:
        """The frames where the network reads them."""
        if isinstance(self._engine, DeviceFrames):
            with stage("network"):  # as all that is done on the device
                return self._engine.upload(images)
        return [_on_host(image) for image in images]

    def stream(
        self,
        source: str | int | Path | Source,
        *,
        detect_every: int = 1,
        track: bool = False,
        smooth: str | None = None,
        boxes: BoxesFile | None = None,
        max_frames: int | None = None,
    ) -> Iterator[tuple[Frame, People]]:
        """The people of each frame of a source, in order, in bounded memory.

        A thread reads ahead while this one computes. An engine in throughput mode takes as many
        frames at once as it runs requests, unless the people of a frame are searched for around
        those of the frame before; the first answer then waits for all of them.

        Args:
            source: picture, folder, glob, video, camera index, or URL; or one of
                `fastpose.frames.open_source`, which stays open.
            detect_every: search for people in every n-th frame; in between, the boxes follow the
                joints found last.
            track: give each person a number that stays (`People.ids`). Pictures, which have no
                time of their own, count as 1/30 s apart.
            smooth: "one-euro" filters the joints over time, which implies `track`.
            boxes: boxes of each frame from a file, instead of the detector's.
            max_frames: stop after as many; of an opened source, it decides.

        Raises:
            FrameError: the source cannot be read.
            ValueError: an argument is out of range.
        """
        follower = Follower(self, detect_every=detect_every, track=track, smooth=smooth)
        opened = (
            nullcontext(source)
            if isinstance(source, Source)
            else open_source(source, max_frames=max_frames)
        )
        with opened as frames:
            coming = read_ahead(frames)
            while group := _wait_for(coming, follower.together(boxes)):
                yield from zip(group, follower.follow(group, boxes), strict=True)

    def close(self) -> None:
        """Free the engine and the detector."""
        self._engine.close()
        self._detector.close()

    def __enter__(self) -> Pose:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _opener(build: bool) -> Callable[..., Engine]:
    if not build:
        return open_engine
    from fastpose.bundles import open_or_build  # and all that verifying an engine takes

    return open_or_build


class Follower:
    """What a stream remembers from frame to frame: last boxes, tracks, filters."""

    def __init__(
        self, pose: Pose, *, detect_every: int = 1, track: bool = False, smooth: str | None = None
    ) -> None:
        if detect_every < 1:
            raise ValueError(f"detect_every must be at least 1, got {detect_every}")
        if smooth not in (None, "one-euro"):
            raise ValueError(f"smooth must be one-euro or None, got {smooth!r}")
        skeleton = pose.engine.manifest.spec.joints
        self._pose, self._every = pose, detect_every
        self._tracker = Tracker(skeleton) if track or smooth else None
        self._filter: Any = OneEuro() if smooth else None
        self._last: People | None = None
        self._age = 0
        self._time = -math.inf

    def __call__(self, frame: Frame, boxes: BoxesFile | None = None) -> People:
        """The people of the next frame of the stream."""
        return self.follow([frame], boxes)[0]

    def together(self, boxes: BoxesFile | None = None) -> int:
        """How many frames are best given to `follow` at once."""
        if boxes is None and self._every > 1:
            return 1  # where people are searched for follows from the frame before
        return self._pose.engine.manifest.options.requests or 1

    def follow(self, frames: Sequence[Frame], boxes: BoxesFile | None = None) -> list[People]:
        """The people of each of the next frames of the stream, at most `together` of them."""
        found = self._find(frames, boxes)
        with stage("follow"):
            return [self._remember(f, people) for f, people in zip(frames, found, strict=True)]

    def _remember(self, frame: Frame, people: People) -> People:
        self._time = frame.time if frame.time > self._time else self._time + FRAME_TIME
        if self._tracker:
            people = self._tracker.update(people, self._time)
        self._last = people
        return self._filter.smooth(people, self._time) if self._filter else people

    def _find(self, frames: Sequence[Frame], boxes: BoxesFile | None) -> list[People]:
        images = [frame.image for frame in frames]
        if boxes is not None:
            found = [boxes.boxes_for(frame.index, frame.name) for frame in frames]
            return self._pose._locate(images, found)
        if self._last is None or self._age >= self._every - 1:
            self._age = 0
            return self._pose.batch(images)
        self._age += 1
        with stage("follow"):
            found = [predict_boxes(self._last)]
        return _once_each(self._pose._locate(images, found))


def _wait_for(coming: Iterator[Frame], count: int) -> list[Frame]:
    """So many of the frames that a thread reads, or those that are left."""
    with stage("read"):
        return list(islice(coming, count))


def _once_each(found: Sequence[People]) -> list[People]:
    """The people of each frame without those who were found twice."""
    with stage("decode"):
        return [drop_duplicates(people) for people in found]


def _as_frame(frame: Array) -> Array:
    """A frame as [H, W, 3] uint8 BGR: an array converted, a tensor as it is.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(frame, np.ndarray) or not hasattr(frame, "is_cuda"):
        return as_bgr(frame)
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape or type_name(frame) != "uint8":
        raise ValueError(
            f"a frame that is a tensor must be uint8 [H, W, 3], got {frame.dtype} "
            f"{list(frame.shape)}"
        )
    return frame


def _on_host(frame: Array) -> Image:
    return frame if isinstance(frame, np.ndarray) else frame.cpu().numpy()


def _given(boxes: npt.NDArray[np.floating]) -> Boxes:
    """A caller's boxes, checked."""
    array = np.asarray(boxes, np.float32)
    if array.size == 0:
        return Boxes.empty()
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes must be [N, 4], got {list(array.shape)}")
    if not (np.isfinite(array).all() and (array[:, 2:] > array[:, :2]).all()):
        raise ValueError("boxes must be finite, with x1 > x0 and y1 > y0")
    return Boxes(array, np.ones(len(array), np.float32))
