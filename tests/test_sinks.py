"""Every output read back; what a fault in the middle leaves behind."""

from __future__ import annotations

import contextlib
import csv
import json
import resource
import sys
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastpose.errors import BackendError, OutputError
from fastpose.sinks import FORMATS, open_sinks
from fastpose.sinks.files import RecordFile, Sink
from fastpose.sinks.openpose import BODY_25
from fastpose.sinks.parquet import ROW_GROUP, ParquetSink
from fastpose.sinks.video import H264VideoSink, OpenCVVideoSink, PictureSink, VideoSink, open_drawn
from fastpose.skeleton import COCO17, FLIC9, LSP14, MPII16, Skeleton
from fastpose.types import Frame, People

FILES = {
    "jsonl": "walk.people.jsonl",
    "csv": "walk.people.csv",
    "coco": "walk.coco.json",
    "openpose": "walk.openpose",
    "parquet": "walk.parquet",
}


@dataclass
class Walk:
    """A source, as far as sinks know one."""

    name: str = "walk"
    kind: str = "video"
    fps: float | None = 25.0


def header(skeleton: Skeleton = COCO17) -> dict:
    return {
        "model": "net",
        "skeleton": skeleton.name,
        "joints": list(skeleton.joints),
        "versions": {"fastpose": "1"},
    }


def someone(count: int, skeleton: Skeleton = COCO17, *, ids: bool = True, seed: int = 0) -> People:
    """Random people; the first one's joint 3 was not found."""
    rng = np.random.default_rng(seed)
    k = len(skeleton)
    corner = rng.uniform(0, 30, (count, 2))
    keypoints = rng.uniform(0, 64, (count, k, 2)).astype(np.float32)
    scores = rng.uniform(0.3, 1, (count, k)).astype(np.float32)
    if count:
        keypoints[0, 3], scores[0, 3] = np.nan, 0
    return People(
        np.concatenate((corner, corner + 20), axis=1).astype(np.float32),
        rng.uniform(0, 1, count).astype(np.float32),
        keypoints,
        scores,
        skeleton,
        np.arange(7, 7 + count) if ids else None,
    )


def frame(index: int, name: str = "walk", size: tuple[int, int] = (48, 64)) -> Frame:
    noise = np.random.default_rng(index).integers(0, 255, (*size, 3), np.uint8)
    return Frame(noise, index, index / 25, name)


RUN = [(frame(0), someone(2)), (frame(1), someone(0)), (frame(2), someone(3, ids=False, seed=1))]


def save(kind: str, folder: Path, run: list = RUN, source: Walk | None = None) -> Path:
    (sink,) = open_sinks([kind], folder, source or Walk(), header(run[0][1].skeleton))
    with sink:
        for one, people in run:
            sink.write(one, people)
    assert sink.frames == len(run)
    (path,) = sink.files
    assert [p.name for p in folder.iterdir()] == [path.name]  # nothing temporary is left
    return path


def lines(path: Path) -> list[dict]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_json_lines_hold_header_frames_and_people(tmp_path):
    path = save("jsonl", tmp_path)
    assert path == tmp_path / "walk.people.jsonl"
    first, *rest = lines(path)
    assert first == {"schema": 1, "source": "walk", **header()}
    assert [(line["frame"], line["time"]) for line in rest] == [(0, 0.0), (1, 0.04), (2, 0.08)]
    assert all("name" not in line for line in rest)
    for line, (_, people) in zip(rest, RUN, strict=True):
        assert len(line["people"]) == len(people)
        for i, person in enumerate(line["people"]):
            assert list(person) == ["box", "box_score", "keypoints", "scores", "id"]
            assert person["box"] == pytest.approx(people.boxes[i], abs=6e-4)
            assert person["box_score"] == pytest.approx(people.box_scores[i], abs=6e-5)
            assert person["scores"] == pytest.approx(people.scores[i], abs=6e-5)
            points = np.array(person["keypoints"], float)
            np.testing.assert_allclose(points, people.keypoints[i], atol=6e-4)
    assert rest[0]["people"][0]["keypoints"][3] == [None, None]
    assert [person["id"] for person in rest[0]["people"]] == [7, 8]
    assert [person["id"] for person in rest[2]["people"]] == [None] * 3


def test_json_lines_name_the_pictures_of_a_folder(tmp_path):
    path = save("jsonl", tmp_path, [(frame(0, "shot9"), someone(1))], Walk(kind="folder"))
    assert lines(path)[1]["name"] == "shot9"


def test_csv_has_a_row_for_each_person(tmp_path):
    with save("csv", tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frame"], row["person"]) for row in rows] == [
        ("0", "0"), ("0", "1"), ("2", "0"), ("2", "1"), ("2", "2"),
    ]  # fmt: skip
    people = RUN[0][1]
    row = rows[1]
    assert (row["time"], row["name"], row["id"]) == ("0.0", "walk", "8")
    assert rows[2]["id"] == ""
    box = [float(row[f"box_{part}"]) for part in ("x0", "y0", "x1", "y1", "score")]
    assert box == pytest.approx([*people.boxes[1], people.box_scores[1]], abs=6e-4)
    for k, joint in enumerate(COCO17.joints):
        x, y, score = (float(row[f"{joint}_{part}"]) for part in ("x", "y", "score"))
        assert (x, y) == pytest.approx(tuple(people.keypoints[1, k]), abs=6e-4)
        assert score == pytest.approx(people.scores[1, k], abs=6e-5)
    missing = COCO17.joints[3]
    assert (rows[0][f"{missing}_x"], rows[0][f"{missing}_score"]) == ("", "0.0")


def test_coco_results(tmp_path):
    results = json.loads(save("coco", tmp_path).read_text())
    assert [result["image_id"] for result in results] == [0, 0, 2, 2, 2]
    people, result = RUN[0][1], results[0]
    assert result["category_id"] == 1
    x0, y0, x1, y1 = people.boxes[0]
    assert result["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-3)
    triples = np.array(result["keypoints"]).reshape(17, 3)
    assert triples[3].tolist() == [0, 0, 0]
    np.testing.assert_allclose(triples[4:, :2], people.keypoints[0, 4:], atol=1e-3)
    np.testing.assert_allclose(triples[4:, 2], people.scores[0, 4:], atol=1e-4)
    found = np.delete(people.scores[0], 3)
    assert result["score"] == pytest.approx(people.box_scores[0] * found.mean(), abs=1e-4)


def test_coco_takes_numbered_pictures_as_image_ids(tmp_path):
    run = [(Frame(frame(0).image, 0, 0.0, "000000000785"), someone(1))]
    for kind, image_id in (("folder", 785), ("image", 785), ("video", 0)):
        results = json.loads(save("coco", tmp_path / kind, run, Walk(kind=kind)).read_text())
        assert [result["image_id"] for result in results] == [image_id]


def test_coco_without_anybody_is_an_empty_list(tmp_path):
    assert json.loads(save("coco", tmp_path, [(frame(0), someone(0))]).read_text()) == []


@pytest.mark.parametrize("skeleton", [COCO17, LSP14, MPII16])
def test_openpose_writes_body_25(tmp_path, skeleton):
    people = someone(2, skeleton)
    folder = save("openpose", tmp_path, [(frame(12), people), (frame(13), someone(0, skeleton))])
    names = ["walk_000000000012_keypoints.json", "walk_000000000013_keypoints.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    document = json.loads((folder / names[0]).read_text())
    assert document["version"] == 1.3
    assert document["keypoint_names"] == list(BODY_25)
    assert [person["person_id"] for person in document["people"]] == [[7], [8]]
    assert document["people"][0]["hand_left_keypoints_2d"] == []
    triples = np.array(document["people"][1]["pose_keypoints_2d"]).reshape(25, 3)
    place = {name: k for k, name in enumerate(skeleton.joints)}
    for k, name in enumerate(BODY_25):
        if name in place and name != "neck":
            np.testing.assert_allclose(triples[k, :2], people.keypoints[1, place[name]], atol=1e-3)
    middle = people.keypoints[1, [place["left_hip"], place["right_hip"]]].mean(axis=0)
    np.testing.assert_allclose(triples[8, :2], middle, atol=1e-3)
    hips = people.scores[1, [place["left_hip"], place["right_hip"]]]
    assert triples[8, 2] == pytest.approx(hips.min(), abs=1e-4)
    assert (triples[19:] == 0).all()  # no feet
    assert json.loads((folder / names[1]).read_text())["people"] == []


def test_openpose_leaves_out_a_middle_whose_side_is_missing(tmp_path):
    people = someone(1)
    people.keypoints[0, COCO17.joints.index("left_shoulder")] = np.nan
    folder = save("openpose", tmp_path, [(frame(0), people)])
    (path,) = folder.iterdir()
    triples = np.reshape(json.loads(path.read_text())["people"][0]["pose_keypoints_2d"], (25, 3))
    assert triples[1].tolist() == [0, 0, 0]


def test_openpose_keeps_the_order_of_a_skeleton_without_legs(tmp_path):
    people = someone(1, FLIC9)
    (path,) = save("openpose", tmp_path, [(frame(0), people)]).iterdir()
    document = json.loads(path.read_text())
    assert document["keypoint_names"] == list(FLIC9.joints)
    assert len(document["people"][0]["pose_keypoints_2d"]) == 27


def test_openpose_folder_of_an_earlier_run_is_replaced(tmp_path):
    save("openpose", tmp_path, [(frame(i), someone(1)) for i in range(3)])
    folder = save("openpose", tmp_path, [(frame(0), someone(1))])
    assert len(list(folder.iterdir())) == 1


def test_parquet_table(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(save("parquet", tmp_path))
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert (metadata["schema"], metadata["skeleton"]) == ("1", "coco17")
    assert json.loads(metadata["joints"]) == list(COCO17.joints)
    assert json.loads(metadata["header"]) == header()
    rows = table.to_pylist()
    assert [(row["frame"], row["person"], row["id"]) for row in rows] == [
        (0, 0, 7), (0, 1, 8), (2, 0, None), (2, 1, None), (2, 2, None),
    ]  # fmt: skip
    assert [row["time"] for row in rows] == pytest.approx([0, 0, 0.08, 0.08, 0.08])
    everybody = [(people, i) for _, people in RUN for i in range(len(people))]
    for row, (people, i) in zip(rows, everybody, strict=True):
        np.testing.assert_array_equal(row["box"], people.boxes[i])
        np.testing.assert_array_equal(row["keypoints"], people.keypoints[i])
        np.testing.assert_array_equal(row["scores"], people.scores[i])
        assert row["box_score"] == people.box_scores[i]


def test_parquet_is_written_in_groups(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    crowd = someone(ROW_GROUP // 2)
    path = save("parquet", tmp_path, [(frame(i), crowd) for i in range(5)])
    file = parquet.ParquetFile(path)
    assert file.num_row_groups == 3
    frames = file.read(columns=["frame"])["frame"].to_numpy()
    np.testing.assert_array_equal(frames, np.repeat(np.arange(5), len(crowd)))


def test_parquet_keeps_no_pictures(tmp_path):
    pytest.importorskip("pyarrow")
    import weakref

    sink = ParquetSink(tmp_path / "p.parquet", header())
    one = frame(0)
    picture = weakref.ref(one.image)
    sink.write(one, someone(1))
    del one
    assert picture() is None
    sink.close()


def test_parquet_keeps_nothing_of_frames_without_people(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = save("parquet", tmp_path, [(frame(i), someone(0)) for i in range(3)])
    assert parquet.read_table(path).num_rows == 0


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BackendError, match=r"fastpose-inference\[data\]"):
        open_sinks(["jsonl", "parquet"], tmp_path, Walk(), header())
    assert list(tmp_path.iterdir()) == []


def test_unknown_format_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="jsonl, csv, coco, openpose, parquet"):
        open_sinks(["xml"], tmp_path, Walk(), header())


# What a fault leaves behind.


@pytest.mark.parametrize("kind", FORMATS)
def test_folder_that_cannot_be_made_is_named(tmp_path, kind):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/out.*: expected a folder"):
        open_sinks([kind], tmp_path / "file" / "out", Walk(), header())


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_fault_in_the_middle_keeps_the_frames_before_it(tmp_path, kind, fault):
    (sink,) = open_sinks([kind], tmp_path, Walk(), header())

    def work() -> None:
        with sink:
            sink.write(frame(0), someone(2))
            assert not (tmp_path / FILES[kind]).exists()
            sink.write(frame(1), someone(1))
            raise fault

    with pytest.raises(fault):
        work()
    assert sink.files == [tmp_path / FILES[kind]]
    assert [p.name for p in tmp_path.iterdir()] == [FILES[kind]]
    assert frames_in(kind, sink.files[0]) == [0, 0, 1]


def frames_in(kind: str, path: Path) -> list[int]:
    """The frame of each person, read back."""
    match kind:
        case "jsonl":
            return [line["frame"] for line in lines(path)[1:] for _ in line["people"]]
        case "csv":
            with path.open(newline="") as file:
                return [int(row["frame"]) for row in csv.DictReader(file)]
        case "coco":
            return [result["image_id"] for result in json.loads(path.read_text())]
        case "openpose":
            numbers = {p: int(p.stem.split("_")[1]) for p in sorted(path.iterdir())}
            return [n for p, n in numbers.items() for _ in json.loads(p.read_text())["people"]]
        case _:
            from pyarrow import parquet

            return parquet.read_table(path)["frame"].to_pylist()


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_is_left_of_a_run_that_fails_before_its_first_frame(tmp_path, kind):
    (sink,) = open_sinks([kind], tmp_path, Walk(), header())
    sink.abort()
    sink.abort()
    sink.close()
    assert list(tmp_path.iterdir()) == []
    assert sink.files == []


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """No file may become larger: the system then refuses a write as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def fill(sink: Sink, people: People) -> None:
    """Write until the disk is full; the limit of size is lifted as soon as it is."""
    with sink, room(40_000):
        for i in range(1000):
            sink.write(frame(i), people)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "coco"])
def test_full_disk_keeps_whole_records(tmp_path, kind):
    (sink,) = open_sinks([kind], tmp_path, Walk(), header())
    with pytest.raises(OutputError, match=FILES[kind]):
        fill(sink, someone(2))
    (path,) = sink.files
    assert sink.frames > 5
    assert frames_in(kind, path) == [i for i in range(sink.frames) for _ in range(2)]
    assert [p.name for p in tmp_path.iterdir()] == [FILES[kind]]


def test_full_disk_keeps_whole_frames_of_openpose(tmp_path):
    (sink,) = open_sinks(["openpose"], tmp_path, Walk(), header())

    def work() -> None:
        with sink:
            sink.write(frame(0), someone(2))
            with room(1000):
                sink.write(frame(1), someone(20))

    with pytest.raises(OutputError, match="000000000001_keypoints"):
        work()
    assert frames_in("openpose", sink.files[0]) == [0, 0]


def test_full_disk_keeps_whole_groups_of_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    (sink,) = open_sinks(["parquet"], tmp_path, Walk(), header())
    crowd = someone(ROW_GROUP)

    def work() -> None:
        with room(2_600_000), sink:
            for i in range(3):
                sink.write(frame(i), crowd)

    with pytest.raises(OutputError, match=r"walk\.parquet"):
        work()
    assert parquet.read_table(sink.files[0])["frame"].to_pylist() == [0] * ROW_GROUP


def test_record_file_cuts_off_what_an_interrupt_left_half_written(tmp_path, monkeypatch):
    file = RecordFile(tmp_path / "r.txt", tail=b"]")
    file.append(b"one,")
    import os

    real = os.pwrite

    def interrupted(descriptor: int, data: bytes, offset: int) -> int:
        real(descriptor, data[:2], offset)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            file.append(b"two,")
    assert file.finish().read_bytes() == b"one,]"


# Drawn output.


def play(path: Path) -> list[np.ndarray]:
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return [picture.to_ndarray(format="bgr24") for picture in container.decode(video=0)]


def h264(path: Path, fps: float | None = 25) -> VideoSink:
    pytest.importorskip("av")
    return H264VideoSink(path, fps)


VIDEO_SINKS = pytest.mark.parametrize("make", [h264, OpenCVVideoSink])


def plain(index: int, size: tuple[int, int] = (48, 64), seconds: float | None = None) -> Frame:
    """One colour, which survives compression."""
    image = np.full((*size, 3), (40 + 5 * index, 128, 200 - 5 * index), np.uint8)
    return Frame(image, index, index / 25 if seconds is None else seconds, "walk")


@VIDEO_SINKS
@pytest.mark.parametrize("size", [(48, 64), (47, 63), (2, 2), (1, 1)])
def test_video_holds_every_frame_in_its_colours(tmp_path, make, size):
    path = tmp_path / "walk.pose.mp4"
    with make(path, 25) as sink:
        for i in range(6):
            sink.write(plain(i, size), someone(0))
    assert sink.files == [path]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    pictures = play(path)
    assert len(pictures) == 6
    h, w = size
    for i, image in enumerate(pictures):
        assert image.shape == (h + h % 2, w + w % 2, 3)
        np.testing.assert_allclose(
            image.mean(axis=(0, 1)), plain(i).image[0, 0], atol=10
        )  # old readers mix up matrices


def test_codecs_are_told(tmp_path):
    assert OpenCVVideoSink(tmp_path / "a.mp4", 25).codec == "mp4v"
    assert h264(tmp_path / "b.mp4").codec == "h264"


def test_h264_keeps_time_stamps_and_can_be_played_while_it_loads(tmp_path):
    av = pytest.importorskip("av")
    times = [0.0, 0.04, 0.5, 0.52, 0.52, 2.0]
    with h264(tmp_path / "v.mp4") as sink:
        for i, seconds in enumerate(times):
            sink.write(plain(i, seconds=seconds), someone(0))
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        found = [frame.time for frame in container.decode(stream)]
    assert found == pytest.approx(times, abs=1e-3)
    data = (tmp_path / "v.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_h264_is_encoded_and_marked_as_bt_709(tmp_path):
    av = pytest.importorskip("av")
    with h264(tmp_path / "v.mp4") as sink:
        sink.write(plain(0), someone(0))
    blue, green, red = plain(0).image[0, 0] / 255
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    expected = [
        16 + 219 * luma,
        128 + 224 * (blue - luma) / 1.8556,
        128 + 224 * (red - luma) / 1.5748,
    ]
    with av.open(str(tmp_path / "v.mp4")) as container:
        picture = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
    found = [np.frombuffer(plane, np.uint8)[0] for plane in picture.planes]
    assert found == pytest.approx(expected, abs=1.5)


@VIDEO_SINKS
def test_video_without_a_known_frame_rate_plays_at_30(tmp_path, make):
    with make(tmp_path / "v.mp4", None) as sink:
        for i in range(30):
            sink.write(plain(i % 8, seconds=i / 30), someone(0))
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(30, abs=0.1)


@VIDEO_SINKS
def test_interrupted_video_keeps_its_frames(tmp_path, make):
    sink = make(tmp_path / "v.mp4", 25)

    def work() -> None:
        with sink:
            for i in range(4):
                sink.write(plain(i), someone(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(play(tmp_path / "v.mp4")) == 4


@VIDEO_SINKS
def test_video_of_no_frames_is_no_file(tmp_path, make):
    make(tmp_path / "v.mp4", 25).close()
    assert list(tmp_path.iterdir()) == []


@VIDEO_SINKS
def test_video_ends_while_there_is_room_for_its_index(tmp_path, make, monkeypatch):
    usage = namedtuple("usage", "free")
    sink = make(tmp_path / "v.mp4", 25)

    def work() -> None:
        with sink:
            for i in range(3):
                sink.write(plain(i), someone(0))
            monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1 << 20))
            sink.write(plain(3), someone(0))

    with pytest.raises(OutputError, match=r"v\.mp4: expected 16 MB.*came 1\.0 MB; the 3 frames"):
        work()
    assert len(play(tmp_path / "v.mp4")) == 3


@VIDEO_SINKS
def test_video_that_cannot_be_finished_is_reported_and_removed(tmp_path, make, capfd):
    sink = make(tmp_path / "v.mp4", 25)

    def work() -> None:
        with sink, room(20_000):
            for i in range(40):
                sink.write(frame(i), someone(0))
            sink.close()

    with pytest.raises(OutputError, match=r"v\.mp4"):
        work()
    assert list(tmp_path.iterdir()) == []
    assert sink.files == []


@VIDEO_SINKS
def test_video_refuses_a_frame_of_another_size(tmp_path, make):
    with make(tmp_path / "v.mp4", 25) as sink:
        sink.write(plain(0), someone(0))
        with pytest.raises(OutputError, match="expected frames of 64 x 48, came 32 x 32"):
            sink.write(plain(1, (32, 32)), someone(0))
    assert len(play(tmp_path / "v.mp4")) == 1


def test_drawn_output_fits_the_source(tmp_path, monkeypatch):
    run = [
        (Frame(frame(i, size=size).image, i, 0.0, name), someone(1))
        for i, (name, size) in enumerate([("a", (20, 30)), ("b", (31, 17)), ("a", (20, 30))])
    ]
    with open_drawn(tmp_path, Walk(kind="folder")) as sink:
        for one, people in run:
            sink.write(one, people)
    assert [p.relative_to(tmp_path).as_posix() for p in sink.files] == [
        "walk.pose/a.pose.png", "walk.pose/b.pose.png", "walk.pose/a_2.pose.png",
    ]  # fmt: skip
    assert cv2.imread(str(sink.files[1])).shape == (31, 17, 3)
    with open_drawn(tmp_path, Walk(kind="image")) as sink:
        sink.write(frame(0), someone(1))
    assert sink.files == [tmp_path / "walk.pose.png"]
    assert isinstance(sink, PictureSink)
    monkeypatch.setitem(sys.modules, "av", None)
    sink = open_drawn(tmp_path, Walk())
    assert isinstance(sink, OpenCVVideoSink)
    sink.abort()


def test_open_sinks_opens_the_drawn_output_too(tmp_path):
    sinks = open_sinks(["jsonl"], tmp_path, Walk(), header(), video=True)
    for sink in sinks:
        sink.write(frame(0), someone(2))
        sink.close()
    names = sorted(path.name for sink in sinks for path in sink.files)
    assert names == ["walk.people.jsonl", "walk.pose.mp4"]


def test_window_without_a_screen_names_the_extra(tmp_path, monkeypatch):
    def headless(*_: object) -> None:
        raise cv2.error("not implemented")

    monkeypatch.setattr(cv2, "namedWindow", headless)
    with pytest.raises(BackendError, match=r"fastpose-inference\[gui\]"):
        open_sinks(["jsonl"], tmp_path, Walk(), header(), show=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("key", "ends"), [(-1, False), (ord("q"), True), (27, True)])
def test_window_shows_the_drawing_until_a_key(tmp_path, monkeypatch, key, ends):
    shown = []
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "destroyWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, image: shown.append(image))
    monkeypatch.setattr(cv2, "waitKey", lambda _: key)
    (sink,) = open_sinks([], tmp_path, Walk(), header(), show=True)
    with pytest.raises(KeyboardInterrupt) if ends else contextlib.nullcontext():
        sink.write(frame(0), someone(1))
    sink.abort()
    assert (shown[0] != frame(0).image).any()
