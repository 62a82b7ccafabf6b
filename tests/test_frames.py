"""Sources: what is read, in which order, with which times, and what bad input says."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastpose.errors import FrameError
from fastpose.frames import as_bgr, open_source, read_ahead
from fastpose.types import Frame

SIZE = 48, 64  # (h, w)


def picture(value: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Noise round a grey level that survives lossy video, brighter with each index."""
    noise = np.random.default_rng(value).integers(-4, 5, (*size, 1))
    return np.broadcast_to(24 + 8 * value % 224 + noise, (*size, 3)).astype(np.uint8)


def write_video(
    path: Path, frames: int = 20, fps: float = 10, size: tuple[int, int] = SIZE
) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size[::-1])
    for i in range(frames):
        writer.write(picture(i, size))
    writer.release()
    return path


def encode(path: Path, codec: str, times: list[float], size: tuple[int, int] = SIZE) -> Path:
    """A video with the given time stamps, through PyAV."""
    av = pytest.importorskip("av")
    from fractions import Fraction

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(i, size), format="bgr24")
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def level(frame: Frame) -> int:
    return round((float(frame.image.mean()) - 24) / 8)


def test_video_gives_frames_in_order_with_times(tmp_path):
    with open_source(write_video(tmp_path / "walk.mp4", frames=12, fps=10)) as source:
        assert (source.name, source.kind, source.fps, source.count) == ("walk", "video", 10, 12)
        assert source.size == SIZE
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(12))
    assert [level(frame) for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == pytest.approx([i / 10 for i in range(12)])
    assert {frame.name for frame in frames} == {"walk"}
    assert source.warning is None


def test_video_with_a_colon_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(Path("12.mp4"), frames=3).rename("12:30.mp4")
    with open_source("12:30.mp4") as source:
        assert (source.name, len(list(source))) == ("12:30", 3)


def test_url_is_read(tmp_path):
    import functools
    import http.server

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    write_video(tmp_path / "cam 1.mp4", frames=5)
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with open_source(f"http://127.0.0.1:{server.server_port}/cam%201.mp4") as source:
            assert (source.kind, source.count, source.fps) == ("url", None, 10)
            assert source.name == "cam_201"
            assert [level(frame) for frame in source] == list(range(5))
        server.shutdown()


def test_camera_gives_frames_until_it_stops(monkeypatch):
    class Camera:
        def __init__(self, number: int) -> None:
            self.number, self.left, self.released = number, 3, False

        def isOpened(self) -> bool:  # noqa: N802
            return self.number == 2

        def get(self, _: int) -> float:
            return 0.0

        def read(self) -> tuple[bool, np.ndarray | None]:
            self.left -= 1
            return (True, picture(0)[..., 0]) if self.left >= 0 else (False, None)

        def release(self) -> None:
            self.released = True

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    for what in (2, "2"):
        with open_source(what) as source:
            assert (source.name, source.kind, source.count, source.fps) == (
                "camera2", "camera", None, None,
            )  # fmt: skip
            frames = list(source)
        assert [frame.index for frame in frames] == [0, 1, 2]
        assert frames[0].time == 0
        assert frames[0].time < frames[1].time < frames[2].time < 1
        assert frames[0].image.shape == (*SIZE, 3)


def test_variable_frame_rate_keeps_the_time_stamps_that_pyav_reads(tmp_path):
    av = pytest.importorskip("av")
    times = [0.0, 0.04, 0.5, 0.52, 0.9, 2.0]
    path = encode(tmp_path / "uneven.mp4", "libx264", times)
    with open_source(path) as source, av.open(str(path)) as container:
        for frame, expected in zip(source, container.decode(video=0), strict=True):
            assert frame.time == pytest.approx(expected.time, abs=1e-3)
            difference = frame.image.astype(int) - expected.to_ndarray(format="bgr24")
            assert abs(difference).max() <= 2
    assert frame.time == pytest.approx(2.0)


def test_rotation_in_the_metadata_is_applied(tmp_path):
    flat = encode(tmp_path / "flat.mp4", "libx264", [i / 10 for i in range(3)])
    data = bytearray(flat.read_bytes())
    # The display matrix of the track header: a quarter turn instead of the identity.
    one, zero = (1 << 16).to_bytes(4, "big"), bytes(4)
    identity = one + zero * 3 + one + zero * 3 + (1 << 30).to_bytes(4, "big")
    place = data.index(identity, data.index(b"tkhd"))
    minus = (2**32 - (1 << 16)).to_bytes(4, "big")
    turned = zero + one + zero + minus + zero * 4 + (1 << 30).to_bytes(4, "big")
    data[place : place + 36] = turned
    path = tmp_path / "phone.mp4"
    path.write_bytes(data)
    with open_source(path) as source:
        assert source.size == SIZE[::-1]
        assert all(frame.image.shape[:2] == SIZE[::-1] for frame in source)


@pytest.mark.parametrize("kind", ["cut", "whole"])
@pytest.mark.parametrize("ending", ["avi", "mkv", "ts"])
def test_truncated_video_delivers_what_it_has_and_says_so(tmp_path, ending, kind):
    path = tmp_path / f"street.{ending}"
    if ending == "avi":
        write_video(path, 100, 25, (144, 192))
    else:
        encode(path, "libx264", [i / 25 for i in range(100)], (144, 192))
    if kind == "whole":
        with open_source(path) as source:
            assert len(list(source)) == 100
        assert source.warning is None
        return
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with open_source(path) as source:
        frames = list(source)
    assert 5 < len(frames) < 100
    assert [frame.index for frame in frames] == list(range(len(frames)))
    if ending != "ts":  # a transport stream has no header that tells the length
        assert f"came {len(frames)}" in source.warning
        assert str(path) in source.warning


def test_frames_of_another_size_come_in_the_size_of_the_first(tmp_path):
    first = encode(tmp_path / "a.ts", "libx264", [i / 25 for i in range(5)])
    second = encode(tmp_path / "b.ts", "libx264", [i / 25 for i in range(5)], (96, 128))
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with open_source(path) as source:
        frames = list(source)
    assert [level(frame) for frame in frames[:5]] == list(range(5))
    assert len(frames) > 5
    assert {frame.image.shape for frame in frames} == {(*SIZE, 3)}
    assert all(a.time < b.time for a, b in itertools.pairwise(frames))


def test_folder_is_read_in_natural_order_and_pictures_keep_their_names(tmp_path):
    for i in (10, 9, 1, 2):
        cv2.imwrite(str(tmp_path / f"shot{i}.png"), picture(i, (i, 2 * i)))
    (tmp_path / "notes.txt").write_text("no picture")
    with open_source(tmp_path) as source:
        assert (source.kind, source.count, source.fps) == ("folder", 4, None)
        assert source.name == tmp_path.name
        frames = list(source)
    assert [frame.name for frame in frames] == ["shot1", "shot2", "shot9", "shot10"]
    assert [frame.image.shape[0] for frame in frames] == [1, 2, 9, 10]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]


def test_glob_takes_the_pictures_that_match(tmp_path):
    for name in ("a1.png", "a2.png", "b1.png"):
        cv2.imwrite(str(tmp_path / name), picture(0))
    with open_source(str(tmp_path / "a*")) as source:
        assert (source.kind, source.count, source.name) == ("folder", 2, tmp_path.name)
        assert [frame.name for frame in source] == ["a1", "a2"]


def test_one_pixel_picture(tmp_path):
    cv2.imwrite(str(tmp_path / "dot.png"), np.full((1, 1, 3), 77, np.uint8))
    with open_source(tmp_path / "dot.png") as source:
        assert (source.kind, source.name, source.size, source.count) == ("image", "dot", (1, 1), 1)
        (frame,) = source
    assert frame.image.tolist() == [[[77, 77, 77]]]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_alpha_and_16_bit_pictures_become_bgr(tmp_path, channels, dtype):
    scale = 1 if dtype == np.uint8 else 257
    pixel = [200] if channels == 1 else [10, 100, 200, 3][:channels]
    stored = (np.full((4, 5, channels), pixel) * scale).astype(dtype)
    cv2.imwrite(str(tmp_path / "p.png"), stored)
    with open_source(tmp_path / "p.png") as source:
        image = next(source).image
    expected = [200] * 3 if channels == 1 else [10, 100, 200]
    assert image.dtype == np.uint8
    assert image.tolist() == [[expected] * 5] * 4
    assert as_bgr(stored).tolist() == image.tolist()


def test_as_bgr_refuses_what_is_no_picture():
    for bad in (np.zeros((2, 2, 2), np.uint8), np.zeros(3, np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(ValueError, match="must be"):
            as_bgr(bad)
    with pytest.raises(ValueError, match="float64"):
        as_bgr(np.zeros((2, 2, 3)))
    image = picture(0)
    assert as_bgr(image) is image


def test_exif_orientation_is_applied(tmp_path):
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = 255  # bright on the left
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    # One EXIF entry: orientation (0x0112) = 6, to be turned a quarter clockwise.
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    body = b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry + b"\x00\x00\x00\x00"
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    (tmp_path / "phone.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    with open_source(tmp_path / "phone.jpg") as source:
        turned = next(source).image
    assert turned.shape == (32, 16, 3)
    assert turned[:14].mean() > 250
    assert turned[18:].mean() < 5


@pytest.mark.parametrize("count", [1, 3, 50])
def test_max_frames_bounds_count_and_frames(tmp_path, count):
    path = write_video(tmp_path / "v.mp4", frames=6)
    with open_source(path, max_frames=count) as source:
        assert source.count == min(count, 6)
        assert len(list(source)) == min(count, 6)
    with pytest.raises(ValueError, match="max_frames"):
        open_source(path, max_frames=0)


def bad_inputs(folder: Path) -> dict[str, tuple[str, str]]:
    """What is opened, and what the error has to say."""
    (folder / "empty").mkdir()
    (folder / "zero.mp4").touch()
    (folder / "text.mp4").write_text("this is not a video\n" * 20)
    (folder / "text.png").write_text("this is not a picture\n" * 20)
    whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[
        1
    ]
    (folder / "half.jpg").write_bytes(whole.tobytes()[: whole.size // 2])
    whole = cv2.imencode(".png", picture(3))[1]
    (folder / "half.png").write_bytes(whole.tobytes()[: whole.size // 2])
    damaged = write_video(folder / "damaged.mp4")
    damaged.write_bytes(damaged.read_bytes()[:2000])  # cut before its index
    names = "text.mp4", "text.png", "half.jpg", "half.png"
    return {
        "damaged": (str(damaged), r"damaged\.mp4: expected a video"),
        "missing": (str(folder / "none.mp4"), r"none\.mp4: .*no such file"),
        "empty folder": (str(folder / "empty"), "empty: expected a folder with pictures"),
        "glob": (str(folder / "*.bmp"), r"\*\.bmp: .*matches none"),
        "zero length": (str(folder / "zero.mp4"), r"zero\.mp4: .*empty file"),
        "camera": ("87", "camera 87: expected a camera"),
        "url": (
            "rtsp://me:secret@127.0.0.1:9/live",
            r"rtsp://127\.0\.0\.1:9/live: expected a video",
        ),
        **{name: (str(folder / name), f"{name}: expected a") for name in names},
    }


def test_bad_input_is_one_line_that_names_it(tmp_path):
    for what, text in bad_inputs(tmp_path).values():
        with pytest.raises(FrameError, match=text) as caught:
            open_source(what)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)


def test_nothing_else_reaches_stderr(tmp_path):
    path = encode(tmp_path / "street.ts", "libx264", [i / 25 for i in range(60)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    code = """
import sys
from fastpose.errors import FrameError
from fastpose.frames import open_source
for what in sys.argv[1:]:
    try:
        print(len(list(open_source(what))))
    except FrameError:
        print("refused")
"""
    # A process of its own: the level of FFmpeg's messages is read once.
    bad = [what for what, _ in bad_inputs(tmp_path).values()]
    command = [sys.executable, "-c", code, str(path), *bad]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    count, *rest = run.stdout.split()
    assert int(count) > 5
    assert rest == ["refused"] * len(bad)
    assert run.stderr == ""


def test_reading_leaves_the_log_level_and_the_environment_as_they_were(tmp_path, monkeypatch):
    log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
    level = log.getLogLevel()
    monkeypatch.delenv("OPENCV_FFMPEG_LOGLEVEL", raising=False)
    path = write_video(tmp_path / "v.mp4")

    def work() -> None:
        with open_source(path) as source:
            list(source)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.getLogLevel() == level
    assert "OPENCV_FFMPEG_LOGLEVEL" not in os.environ


def test_unreadable_pictures_of_a_folder_are_left_out_and_named(tmp_path):
    cv2.imwrite(str(tmp_path / "1.png"), picture(0))
    (tmp_path / "2.png").write_bytes(b"not a picture")
    cv2.imwrite(str(tmp_path / "3.png"), picture(0))
    with open_source(tmp_path) as source:
        assert [(f.index, f.name) for f in source] == [(0, "1"), (2, "3")]
        assert "left out 1 of 3 pictures; the first: " in source.warning
        assert "2.png: expected a picture" in source.warning


def test_a_folder_without_a_readable_picture_is_an_error(tmp_path):
    for name in "12":
        (tmp_path / f"{name}.png").write_bytes(b"not a picture")
    with pytest.raises(FrameError, match=r"1\.png: expected a picture"):
        open_source(tmp_path)


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(FrameError, match="the source is empty"):
        open_source("")


@pytest.mark.parametrize("what", [None, "a.jpg", [[1]]])
def test_only_arrays_are_pictures(what):
    with pytest.raises(ValueError, match="image must be a numpy array, got"):
        as_bgr(what)


def test_closed_source_gives_no_more_frames(tmp_path):
    source = open_source(write_video(tmp_path / "v.mp4"))
    next(source)
    source.close()
    assert list(source) == []


def test_source_may_be_closed_while_another_thread_reads(tmp_path):
    path = write_video(tmp_path / "v.mp4", 100, 25, (144, 192))
    for _ in range(5):
        source = open_source(path)
        reader = read_ahead(source, depth=1)
        next(reader)
        source.close()
        assert len(list(reader)) <= 3
        assert reader_threads() == []


def frames(
    count: int, made: list[int] | None = None, fail_at: int | None = None
) -> Iterator[Frame]:
    for i in range(count):
        if i == fail_at:
            raise FrameError("cable pulled")
        if made is not None:
            made.append(i)
        yield Frame(picture(0), i)


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fastpose-reader"]


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_read_ahead_keeps_order_and_bound(depth):
    made: list[int] = []
    for i, frame in enumerate(read_ahead(frames(40, made), depth)):
        assert frame.index == i
        if i < 3:
            time.sleep(0.02)
        assert len(made) <= i + 1 + depth + 1  # with the caller, in the queue, being put
    assert made == list(range(40))
    assert reader_threads() == []


def test_read_ahead_reads_while_the_caller_works():
    made: list[int] = []
    reader = read_ahead(frames(10, made), depth=4)
    next(reader)
    deadline = time.monotonic() + 60
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(made) >= 5
    reader.close()


def test_read_ahead_raises_the_readers_error_after_the_frames_before_it():
    reader = read_ahead(frames(10, fail_at=6))
    assert [next(reader).index for _ in range(6)] == list(range(6))
    with pytest.raises(FrameError, match="cable pulled"):
        next(reader)
    assert reader_threads() == []


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("taken", [1, 5])
def test_read_ahead_leaves_no_thread_when_the_caller_stops_early(depth, taken):
    reader = read_ahead(frames(1000), depth)
    for _ in range(taken):
        next(reader)
    reader.close()
    assert reader_threads() == []


def test_read_ahead_leaves_no_thread_when_the_caller_fails():
    def work() -> None:
        for frame in read_ahead(frames(1000)):
            assert frame.index < 2

    with pytest.raises(AssertionError):
        work()
    deadline = time.monotonic() + 60
    while reader_threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert reader_threads() == []


def test_read_ahead_refuses_no_depth():
    with pytest.raises(ValueError, match="depth"):
        read_ahead(frames(1), 0)
