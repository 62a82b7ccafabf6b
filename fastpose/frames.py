"""Frames in: a picture, a folder or pattern of pictures, a video, a camera, a URL.

Everything is decoded by OpenCV. PyAV gives the same pixels and time stamps (a test compares them)
at the same speed, so there is one reader, and it needs no extra.
"""

from __future__ import annotations

import contextlib
import glob
import math
import os
import queue
import re
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import cv2
import numpy as np
import numpy.typing as npt

from fastpose.errors import FrameError
from fastpose.types import Frame

PICTURE_ENDINGS = frozenset(
    (".bmp", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
_NETWORK_TIMEOUT_MS = 10_000
_FFMPEG_LEVEL = "OPENCV_FFMPEG_LOGLEVEL"

Picture = npt.NDArray[np.uint8]


class _Reader(Protocol):
    """What a source reads from: frames until None, then perhaps a warning."""

    name: str
    kind: str
    fps: float | None
    count: int | None

    @property
    def warning(self) -> str | None: ...

    def read(self) -> Frame | None: ...

    def close(self) -> None: ...


class Source(Iterator[Frame]):
    """An opened source: iterate over its frames once, close it (or use `with`).

    Attributes:
        name: what output files are called after: file, folder or camera, without ending.
        kind: "image", "folder", "video", "camera" or "url"; a pattern is a "folder".
        fps: frames per second, or None where there is no such thing or it is not known.
        count: how many frames will come, or None; of a video it is what its header says.
        size: (h, w) of the first frame in pixels.
        warning: None, or, after the last frame, one line that says what is missing.
    """

    def __init__(self, reader: _Reader, max_frames: int | None) -> None:
        self._reader = reader
        self._limit = math.inf if max_frames is None else max_frames
        self._given = 0
        self._busy = threading.Lock()  # OpenCV must not release what another thread reads from
        first = reader.read()
        if first is None:
            raise FrameError(f"{reader.name}: expected at least one frame, none can be decoded")
        self._first: Frame | None = first
        self.size: tuple[int, int] = first.image.shape[:2]
        self.name, self.kind, self.fps = reader.name, reader.kind, reader.fps
        known = reader.count is not None
        self.count = int(min(reader.count or 0, self._limit)) if known else None

    @property
    def warning(self) -> str | None:
        return self._reader.warning

    def __next__(self) -> Frame:
        with self._busy:
            if self._given >= self._limit:
                raise StopIteration
            frame, self._first = self._first or self._reader.read(), None
            if frame is None:
                raise StopIteration
            self._given += 1
            return frame

    def close(self) -> None:
        """Give back the file or camera; no more frames come. Any thread may call it."""
        with self._busy:
            self._limit = 0
            self._reader.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(what: str | int | Path, *, max_frames: int | None = None) -> Source:
    """Open frames for reading.

    Args:
        what: a picture, a folder of pictures or a pattern (both in natural order: 2 before 10), a
            video, the number of a camera, or a URL (rtsp, http, ...).
        max_frames: stop after that many.

    Returns:
        A source of `Frame`, BGR uint8 with the orientation in the file's metadata applied; alpha is
        dropped, 16 bits become 8. Time is the frame's own time stamp; of a camera, seconds since
        the first frame; of a picture, 0. A picture's frame carries the picture's name. The frames
        of a video that is cut off are delivered, and then `warning` says so, as it does of pictures
        of a folder that cannot be decoded and are left out; where a video changes size, all frames
        come in the size of the first.

    Raises:
        FrameError: there is nothing there, or nothing of it can be decoded.
        ValueError: `max_frames` is less than 1.
    """
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}")
    if what == "":  # an unset variable of a shell; as a path it is the current folder
        raise FrameError("the source is empty: expected a picture, folder, video, camera or URL")
    reader = _open_reader(what)
    try:
        return Source(reader, max_frames)
    except BaseException:
        reader.close()
        raise


def _open_reader(what: str | int | Path) -> _Reader:
    text = str(what)
    if text.isdecimal():
        return _Camera(int(text))
    if "://" in text:
        return _Video(text, _url_name(text), "url")
    path = Path(text)
    if path.is_dir():
        pictures = picture_files(path.iterdir())
        if not pictures:
            raise FrameError(f"{path}: expected a folder with pictures, came one without any")
        return _Pictures(pictures, path.resolve().name, "folder")
    if path.is_file():
        if path.stat().st_size == 0:
            raise FrameError(f"{path}: expected a picture or a video, came an empty file")
        if path.suffix.lower() in PICTURE_ENDINGS:
            return _Pictures([path], path.stem, "image")
        # Absolute, or FFmpeg would take "a:b.mp4" for the protocol "a".
        return _Video(str(path.absolute()), path.stem, "video")
    if glob.has_magic(text):
        # Path.glob takes no absolute pattern
        matches = glob.glob(text, recursive=True)  # noqa: PTH207
        pictures = picture_files(map(Path, matches))
        if not pictures:
            raise FrameError(f"{text}: expected a pattern that matches pictures, it matches none")
        return _Pictures(pictures, path.parent.resolve().name, "folder")
    raise FrameError(f"{path}: expected a picture, folder, video, camera or URL, no such file")


class _Pictures:
    """Picture files, one after the other; one of several that cannot be read is left out."""

    fps: float | None = None

    def __init__(self, paths: list[Path], name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.count: int | None = len(paths)
        self._paths = enumerate(paths)
        self._given = 0
        self._faults: list[FrameError] = []

    @property
    def warning(self) -> str | None:
        if not self._faults:
            return None
        left_out = f"left out {len(self._faults)} of {self.count} pictures"
        return f"{left_out}; the first: {self._faults[0]}"

    def read(self) -> Frame | None:
        for index, path in self._paths:
            try:
                frame = Frame(read_picture(path), index, 0.0, path.stem)
            except FrameError as error:
                self._faults.append(error)
                continue
            self._given += 1
            return frame
        if self._faults and not self._given:
            raise self._faults[0]
        return None

    def close(self) -> None:
        self._paths = enumerate(())


class _Video:
    """A video file or network stream."""

    warning: str | None = None

    def __init__(self, address: str, name: str, kind: str) -> None:
        self._shown = _without_password(address)
        self.name, self.kind = name, kind
        network = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC]
        settings = [v for p in network for v in (p, _NETWORK_TIMEOUT_MS)] if kind == "url" else []
        with _silence:
            self._capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, settings)
        if not self._capture.isOpened():
            came = "no answer" if kind == "url" else "a file that is none or is damaged"
            raise FrameError(f"{self._shown}: expected a video, came {came}")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps: float | None = fps if 0 < fps <= 1000 else None
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.count: int | None = count if count > 0 and kind == "video" else None
        self._index, self._time = 0, 0.0

    def read(self) -> Frame | None:
        image = _grab(self._capture)
        if image is None:
            self._report_missing()
            return None
        seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self._index and not seconds > self._time:  # a stream without time stamps
            seconds = self._time + 1 / (self.fps or 30)
        self._time = max(seconds, 0.0)
        self._index += 1
        return Frame(image, self._index - 1, self._time, self.name)

    def _report_missing(self) -> None:
        # The header's count is a guess in some containers (length x rate), so the last time stamp
        # has to fall short as well, and by more than a rounded length can explain.
        if self.count is None or self.fps is None:
            return
        reached = max(self._index, round(self._time * self.fps) + 1)
        if self.count - reached > max(1, self.count // 50):
            self.warning = (
                f"{self._shown}: expected {self.count} frames by its header, came "
                f"{self._index}; the file is cut off or damaged after {self._time:.2f} s"
            )

    def close(self) -> None:
        self._capture.release()


class _Camera:
    """A camera of this machine."""

    kind = "camera"
    count: int | None = None
    warning: str | None = None

    def __init__(self, number: int) -> None:
        self.name = f"camera{number}"
        with _silence:
            self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise FrameError(f"camera {number}: expected a camera, none can be opened there")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps: float | None = fps if 0 < fps <= 1000 else None
        self._index, self._start = 0, 0.0

    def read(self) -> Frame | None:
        image = _grab(self._capture)
        if image is None:
            return None
        now = time.monotonic()
        self._start = self._start or now
        self._index += 1
        return Frame(image, self._index - 1, now - self._start, self.name)

    def close(self) -> None:
        self._capture.release()


def as_bgr(image: npt.NDArray[Any]) -> Picture:
    """Return a picture as [H, W, 3] uint8 BGR, copying only what is something else.

    Args:
        image: [H, W], [H, W, 1], [H, W, 3] BGR or [H, W, 4] BGRA, whose alpha is dropped; uint8,
            or uint16 of the full range.

    Raises:
        ValueError: the shape or the type is not the one above, or there is no pixel.
    """
    if not isinstance(image, np.ndarray):  # None is what cv2.imread gives for a file it cannot read
        raise ValueError(f"image must be a numpy array, got {type(image).__name__}")
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3, 4) or image.size == 0:
        raise ValueError(f"image must be [H, W], [H, W, 3] or [H, W, 4], got {list(image.shape)}")
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"image must be uint8 or uint16, got {image.dtype}")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if channels == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image if channels == 3 else np.ascontiguousarray(image[..., :3])


def read_ahead(source: Iterable[Frame], depth: int = 4) -> Generator[Frame, None, None]:
    """Yield the frames of `source`, read by a thread so that reading overlaps the caller's work.

    At most `depth` + 2 frames are alive: the queue, one being read, one with the caller. Closing
    the generator stops the thread and waits for it, so that the source may be closed afterwards.

    Raises:
        ValueError: `depth` is less than 1.
        Exception: whatever reading raised, after the frames before it.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return _read_ahead(source, depth)


def _read_ahead(source: Iterable[Frame], depth: int) -> Generator[Frame, None, None]:
    ready: queue.Queue[Frame | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Frame | BaseException | None) -> bool:
        if stop.is_set():
            return False
        ready.put(item)
        return True

    def read() -> None:
        end: BaseException | None = None
        try:
            for frame in source:
                if not put(frame):
                    return
        except BaseException as error:
            end = error
        put(end)

    thread = threading.Thread(target=read, name="fastpose-reader", daemon=True)
    thread.start()
    try:
        while isinstance(item := ready.get(), Frame):
            yield item
        if item is not None:
            raise item
    finally:
        # Once `stop` is set at most one `put` is still under way, and emptying makes room for it.
        stop.set()
        with contextlib.suppress(queue.Empty):
            while True:
                ready.get_nowait()
        thread.join()


def _grab(capture: Any) -> Picture | None:
    with _silence:
        found, image = capture.read()
    return as_bgr(image) if found else None


def read_picture(path: Path) -> Picture:
    """The picture of a file, [H, W, 3] uint8, BGR.

    Raises:
        FrameError: it cannot be read, is no picture, or is cut off.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FrameError(f"{path}: expected a readable picture, came: {error.strerror}") from None
    if not data:
        raise FrameError(f"{path}: expected a picture, came an empty file")
    if _is_cut_off(data):
        raise FrameError(f"{path}: expected a whole picture, came one that is cut off")
    image = None
    with _silence, contextlib.suppress(cv2.error):  # raised for absurd sizes in the header
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise FrameError(f"{path}: expected a picture, came a file that cannot be decoded")
    return as_bgr(image)


def _is_cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end, which decoders fill with grey or report on stderr."""
    if data.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in data
    return data.startswith(b"\x89PNG") and b"IEND" not in data


def picture_files(paths: Iterable[Path]) -> list[Path]:
    """Those that are files with a picture's ending, 2 before 10."""
    chosen = [p for p in paths if p.suffix.lower() in PICTURE_ENDINGS and p.is_file()]
    return sorted(chosen, key=_natural_order)


def _natural_order(path: Path) -> list[tuple[int, int | str]]:
    """Digits compare as numbers, so that 2 comes before 10."""
    parts = re.split(r"(\d+)", str(path).lower())
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _without_password(url: str) -> str:
    return re.sub(r"(://)[^/@]*@", r"\1", url)


def _url_name(url: str) -> str:
    parts = urlsplit(url)
    name = Path(parts.path).stem or parts.hostname or "stream"
    return re.sub(r"[^\w.-]", "_", name)


class _Silence:
    """Keeps OpenCV's and FFmpeg's own messages off standard error: what matters is in our errors.

    Counted, so that readers in several threads restore the level that was there before the first.
    FFmpeg's level is read from the environment when OpenCV first opens a video, and stays.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._level = threading.Lock(), 0, 0
        self._ffmpeg: str | None = None
        # OpenCV 5 moved the two functions to a module of their own.
        self._log: Any = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._level = self._log.getLogLevel()
                self._ffmpeg = os.environ.get(_FFMPEG_LEVEL)
                self._log.setLogLevel(0)  # silent
                os.environ.setdefault(_FFMPEG_LEVEL, "-8")  # AV_LOG_QUIET

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._log.setLogLevel(self._level)
                if self._ffmpeg is None:
                    os.environ.pop(_FFMPEG_LEVEL, None)


_silence = _Silence()
