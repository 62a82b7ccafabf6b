"""Frames with the people drawn on them: a video, or pictures where the source is pictures."""

from __future__ import annotations

import errno
import shutil
from abc import abstractmethod
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fastpose.errors import OutputError
from fastpose.sinks import Described
from fastpose.sinks.drawn import DrawnSink
from fastpose.sinks.files import RecordFile, Sink, make_folder, not_writable, partial_path
from fastpose.types import Frame, People

Image = npt.NDArray[np.uint8]
DEFAULT_FPS = 30.0
# Enough for what an encoder still holds and for the index; a video that meets a full disk cannot be
# finished any more, so writing ends before.
_ROOM = 16 << 20
_TICKS = 90_000  # per second: the usual clock of MPEG, in which every common frame rate is whole


def open_drawn(folder: Path, source: Described, *, min_score: float = 0.3) -> Sink:
    """Open the drawn output that fits the source.

    A video, camera or stream becomes `<name>.pose.mp4`; a picture becomes `<name>.pose.png`; a
    folder of pictures, whose sizes may differ, becomes a folder `<name>.pose` of such pictures.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    if source.kind == "image":
        return PictureSink(folder, min_score=min_score)
    if source.kind == "folder":
        return PictureSink(folder / f"{source.name}.pose", min_score=min_score)
    path = folder / f"{source.name}.pose.mp4"
    try:
        import av  # noqa: F401
    except ImportError:
        return OpenCVVideoSink(path, source.fps, min_score=min_score)
    return H264VideoSink(path, source.fps, min_score=min_score)


class PictureSink(DrawnSink):
    """`<frame name>.pose.png` for each frame; a name that comes twice gets the frame's index.

    Args:
        folder: made if need be.
        min_score: joints below are not drawn.
    """

    def __init__(self, folder: Path, *, min_score: float = 0.3) -> None:
        super().__init__(min_score)
        self._folder = folder
        make_folder(folder)

    def _write(self, frame: Frame, people: People) -> None:
        path = self._folder / f"{frame.name}.pose.png"
        if path in self.files:
            path = self._folder / f"{frame.name}_{frame.index}.pose.png"
        file = RecordFile(path)
        try:
            file.append(cv2.imencode(".png", frame.image)[1].tobytes())
        except BaseException:
            file.discard()
            raise
        file.finish()
        self.files.append(path)

    def _finish(self) -> None:
        """Each picture was finished when it was written."""

    def _discard(self) -> None:
        """A picture that failed was removed there and then."""


class VideoSink(DrawnSink):
    """A video of the frames with the people drawn. Odd sizes are padded by one pixel.

    A video without its index cannot be played: writing ends while there still is room for it, and
    a file that cannot be finished all the same is removed.

    Attributes:
        codec: what it is encoded with.

    Args:
        path: the file, ending in .mp4.
        fps: frames per second; None becomes 30.
        min_score: joints below are not drawn.
    """

    codec: str

    def __init__(self, path: Path, fps: float | None, *, min_score: float = 0.3) -> None:
        super().__init__(min_score)
        self._path, self._partial = path, partial_path(path)
        self._fps = fps or DEFAULT_FPS
        self._size: tuple[int, int] | None = None
        make_folder(path.parent)
        try:
            self._partial.touch()
        except OSError as error:
            raise not_writable(path, error) from None

    def _write(self, frame: Frame, people: People) -> None:
        self._require_room()
        drawn = _even(frame.image)
        h, w = drawn.shape[:2]
        if self._size is None:
            self._size = h, w
            self._begin(h, w)
        elif (h, w) != self._size:
            was = f"{self._size[1]} x {self._size[0]}"
            raise OutputError(f"{self._path}: expected frames of {was}, came {w} x {h}")
        self._encode(drawn, frame.time)

    def _finish(self) -> None:
        if self._size is None:
            self._discard()
            return
        try:
            self._end()
            self._partial.replace(self._path)
        except OSError as error:
            self._partial.unlink(missing_ok=True)
            raise not_writable(self._path, error) from None
        self.files.append(self._path)

    def _discard(self) -> None:
        self._partial.unlink(missing_ok=True)

    def _require_room(self) -> None:
        free = shutil.disk_usage(self._path.parent).free
        if free < _ROOM:
            raise OutputError(
                f"{self._path}: expected {_ROOM >> 20} MB of free disk to go on, came "
                f"{free / 2**20:.1f} MB; the {self.frames} frames before are kept"
            )

    @abstractmethod
    def _begin(self, height: int, width: int) -> None: ...

    @abstractmethod
    def _encode(self, image: Image, seconds: float) -> None: ...

    @abstractmethod
    def _end(self) -> None:
        """Finish the file; raise OSError where it is not whole."""


class H264VideoSink(VideoSink):
    """H.264 through PyAV (extra `video`): 4:2:0, BT.709, index first, the frames' own times."""

    codec = "h264"

    def _begin(self, height: int, width: int) -> None:
        import av
        from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

        try:
            self._container = av.open(
                str(self._partial), "w", format="mp4", options={"movflags": "+faststart"}
            )
        except OSError as error:
            raise not_writable(self._path, error) from None
        rate = Fraction(self._fps).limit_denominator(1001)
        # 0.6 of the processor time of x264's "veryfast", a file 1.5 times as large.
        options = {"preset": "superfast", "crf": "20"}
        stream: Any = self._container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, _TICKS)
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries = context.color_trc = 1  # BT.709
        self._stream, self._last = stream, -1
        self._reformatter = VideoReformatter()  # kept: making one costs more than using it

    def _encode(self, image: Image, seconds: float) -> None:
        import av
        from av.video.reformatter import ColorRange, Colorspace

        frame = self._reformatter.reformat(
            av.VideoFrame.from_numpy_buffer(image, format="bgr24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts = self._last = max(round(seconds * _TICKS), self._last + 1)
        frame.time_base = Fraction(1, _TICKS)
        try:
            self._container.mux(self._stream.encode(frame))
        except OSError as error:
            raise not_writable(self._path, error) from None

    def _end(self) -> None:
        try:
            self._container.mux(self._stream.encode())
        finally:
            self._container.close()


class OpenCVVideoSink(VideoSink):
    """MPEG-4 part 2 through OpenCV, for where PyAV is not installed."""

    codec = "mp4v"

    def _begin(self, height: int, width: int) -> None:
        code = cv2.VideoWriter.fourcc(*self.codec)
        self._writer = cv2.VideoWriter(str(self._partial), code, self._fps, (width, height))
        if not self._writer.isOpened():
            raise OutputError(f"{self._path}: expected a video file, OpenCV cannot make it there")

    def _encode(self, image: Image, seconds: float) -> None:
        self._writer.write(image)

    def _end(self) -> None:
        self._writer.release()
        # OpenCV tells nobody when a write failed, so what is there is read back.
        capture = cv2.VideoCapture(str(self._partial))
        found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if found < self.frames:
            raise OSError(errno.EIO, f"only {found} of {self.frames} frames can be read back")


def _even(image: Image) -> Image:
    h, w = image.shape[:2]
    if h % 2 == 0 and w % 2 == 0:
        return image
    return cv2.copyMakeBorder(image, 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE)
