"""Bundles of detectors: built, verified in boxes, refused where they do not fit."""

from __future__ import annotations

import json
from contextlib import closing

import cv2
import numpy as np
import pytest

from fastpose import detectors
from fastpose.cli import main
from fastpose.detect import open_detector, runtime_of
from fastpose.detectors import verify_detector_bundle
from fastpose.engines import DetectorManifest
from fastpose.errors import BackendError, EngineError
from fastpose.fixtures import built_in_pictures
from fastpose.frames import read_picture

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

KINDS = ("openvino", "onnxruntime")


def run(capsys, *words):
    """Exit status and what was printed on both streams."""
    status = main([str(word) for word in words])
    out = capsys.readouterr()
    return status, out.out, out.err


def build(capsys, *words):
    return run(capsys, "build", "default-detector", "--threads", "1", *words)


def refused(capsys, *words):
    """The one line of a command that cannot be obeyed."""
    status, printed, errors = run(capsys, *words)
    assert (status, printed) == (2, "")
    lines = [line for line in errors.splitlines() if line.startswith(f"fastpose {words[0]}: ")]
    assert len([line for line in lines if "warning" not in line]) == 1
    return lines[-1]


def rows(printed):
    return {line[:12].strip(): line[12:] for line in printed.splitlines()}


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def found(what, **options):
    """The boxes of a picture with several people."""
    frame = read_picture(built_in_pictures()[3][0])
    with closing(open_detector(str(what), threads=1, **options)) as detector:
        return detector([frame])[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The default detector for OpenVINO in f32: its files."""
    folder = tmp_path_factory.mktemp("detector")
    detectors.build_detector(threads=1, out=folder / "det.json")
    return folder


@pytest.fixture
def bundle(whole, tmp_path):
    """A copy of it, to be edited."""
    folder = tmp_path / "here"
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / "det.json"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One for all tests, so that the tiny detector is exported once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny(monkeypatch, cache):
    """A registered detector of random weights, all of whose boxes count."""
    pytest.importorskip("onnxscript")
    from tiny_detector import register

    register(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr("fastpose.engines.verify_detector.SURE", 0.0)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (90, 150, 3), np.uint8))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_is_verified_in_boxes(tmp_path, capsys, kind):
    out = tmp_path / "det.json"
    status, printed, errors = build(capsys, "--engine", kind, "--out", out)
    assert status == 0
    stages = [line.split()[0] for line in errors.splitlines() if line.endswith(" s")]
    assert stages == ["export", "load", "verify"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "det.head.onnx",
        "det.json",
        "det.rpn.onnx",
    ]
    table = rows(printed)
    assert table["model"] == "fpn-light"
    assert table["engine"].startswith(f"{kind} on ")
    assert table["verified"].startswith("passed, beside torch f32 on 7 frames (built-in)")
    assert "100.0 % are found" in table["overlap"]
    manifest = DetectorManifest.load(out)
    assert manifest.report is not None
    assert manifest.report["overlap"]["median"] > 0.999
    assert sum(manifest.layers.values()) == {"openvino": 35, "onnxruntime": 0}[kind]


def test_a_bundle_finds_what_its_detector_finds(bundle):
    truth, actual = found("default", kind="openvino", precision="f32"), found(bundle)
    assert len(truth) > 1
    np.testing.assert_array_equal(actual.boxes, truth.boxes)
    np.testing.assert_array_equal(actual.scores, truth.scores)
    with closing(open_detector(str(bundle))) as detector:
        assert runtime_of(detector) == {"engine": "openvino", "precision": "f32"}
    assert len(found(bundle, score=1.0)) == 0


def test_predict_and_eval_take_it(bundle, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    words = [built_in_pictures()[3][0], "--detector", bundle, "--precision", "bf16", "--out", out]
    status, printed, errors = run(capsys, "predict", *words, "--json")
    assert status == 0, errors
    assert json.loads(printed)["sources"][0]["people"] > 1
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    for i, (file, boxes) in enumerate(built_in_pictures()[2:4]):
        height, width = read_picture(file).shape[:2]
        name = {"file_name": str(file), "height": height, "width": width}
        truth["images"].append({"id": i, **name})
        for x0, y0, x1, y1 in boxes.tolist():
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            number = len(truth["annotations"])
            rest = {"id": number, "image_id": i, "category_id": 1, "iscrowd": 0}
            truth["annotations"].append({**rest, **box})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    data = f"boxes:{tmp_path / 'truth.json'}"
    status, printed, errors = run(capsys, "eval", bundle, "--data", data, "--json")
    assert status == 0, errors
    document = json.loads(printed)
    assert (document["engine"], document["precision"]) == ("openvino", "f32")
    assert document["metrics"]["det_ap50"] > 0.3
    status, printed, _ = run(capsys, "verify", bundle, "--data", data, "--threads", "1", "--json")
    assert status == 0
    metric = json.loads(printed)["metric"]
    assert metric["name"] == "det_ap50"
    assert metric["after"] == pytest.approx(100 * document["metrics"]["det_ap50"], abs=0.1)


def test_inspect_prints_it(bundle, capsys):
    status, printed, errors = run(capsys, "inspect", bundle)
    assert (status, errors) == (0, "")
    table = rows(printed)
    assert table["detector"] == "fpn-light"
    assert table["classes"] == "person"
    assert printed.count("onnx (") == 2
    (bundle.parent / "det.head.onnx").unlink()
    status, _, errors = run(capsys, "inspect", bundle)
    assert status == 2
    assert "det.head.onnx: No such file" in errors


class Shifted:
    """A head that puts every box a quarter of its width too far to the right."""

    def __init__(self, graph):
        self._graph = graph

    def __getattr__(self, name):
        return getattr(self._graph, name)

    def __call__(self, feeds):
        given = self._graph(feeds)
        given["deltas"] = given["deltas"] + np.float32([2.5, 0, 0, 0])
        return given


@pytest.mark.parametrize("allow", [False, True])
def test_what_moves_boxes_is_not_built_unless_allowed(tmp_path, capsys, monkeypatch, allow):
    pair = detectors.open_pair

    def shifted(*args):
        proposer, head = pair(*args)
        return proposer, Shifted(head)

    monkeypatch.setattr(detectors, "open_pair", shifted)
    words = ["--threads", "1", "--out", tmp_path / "det.json"]
    if allow:
        status, printed, _ = build(capsys, *words, "--allow")
        assert status == 0
        assert rows(printed)["verified"].startswith("NOT PASSED")
        return
    line = refused(capsys, "build", "default-detector", *words)
    assert "fpn-light in openvino is not what the module is: median overlap 0." in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ties": {"openvino": "2019"}}, "openvino: the engine was built for 2019"),
        ({"spec": {"name": "x"}}, "not a detector spec"),
        ({"files": {}}, "files must name two graphs, got 0"),
        ({"files": {"det.rpn.onnx": "0", "det.head.onnx": "0"}}, "det.rpn.onnx: the manifest has"),
        ({"what": "pose network"}, "buckets must be a JSON array, got None"),
        ({"precision": "bf16"}, "precision: the engine was built in bf16, this machine runs"),
    ],
)
def test_a_bundle_that_does_not_fit_names_the_field(bundle, capsys, changes, text):
    if "spec" in changes:
        changes = {"spec": {**json.loads(bundle.read_text())["spec"], "strides": "none"}}
    edit(bundle, **changes)
    with pytest.raises(EngineError, match=r"det\.json") as error:
        open_detector(str(bundle))
    assert text in str(error.value)
    assert text in refused(capsys, "verify", bundle)


def test_what_a_bundle_says_of_itself_is_not_believed(bundle):
    """Its layers are counted here, and the reference is fed as it is registered."""
    counted = verify_detector_bundle(bundle, limit=2, threads=1).layers
    assert set(counted) == {"f32"}
    edit(bundle, layers={"int8": 99})
    assert verify_detector_bundle(bundle, limit=2, threads=1).layers == counted
    spec = json.loads(bundle.read_text())["spec"]
    edit(bundle, spec={**spec, "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]})
    assert not verify_detector_bundle(bundle, limit=2, threads=1).passed


def test_a_bundle_is_neither_another_precision_nor_a_pose_network(bundle, capsys, pictures):
    with pytest.raises(EngineError, match="precision: the engine has f32, asked was bf16"):
        open_detector(str(bundle), precision="bf16")
    with pytest.raises(EngineError, match="kind: the engine has openvino, asked was onnxruntime"):
        open_detector(str(bundle), kind="onnxruntime")
    line = refused(capsys, "predict", pictures, "--engine", bundle, "--detector", "none")
    assert f"{bundle}: the bundle of a detector: give it as `--detector {bundle}`" in line
    edit(bundle, what="pose network")
    assert "buckets must be" in refused(capsys, "predict", pictures, "--detector", bundle)
    assert "got 'detr'" in refused(
        capsys, "predict", pictures, "--detector", bundle, "--detector-layout", "detr"
    )


def test_a_detector_does_not_take_the_manifest_of_a_pose_network(bundle, capsys):
    edit(bundle, what="pose network")
    line = refused(capsys, "build", "default-detector", "--out", bundle)
    assert "det.json: is there already and describes det.rpn.onnx; give the bundle" in line


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--out", "{}/det.onnx"], "det.onnx: a detector has two graphs: give the .json beside"),
        (["--out", "{}/none/det.json"], "cannot be written: No such file"),
        (["--engine", "torch"], "detectors are not built for engine 'torch' yet; choose from: "),
        (["--engine", "tensorrt"], "detectors are not built for engine 'tensorrt' yet"),
        (["--engine", "onnxruntime", "--precision", "int8"], "int8 is built for openvino"),
        (["--engine", "onnxruntime", "--precision", "bf16"], "'bf16' cannot run in onnxruntime"),
        (["--precision", "int8"], "int8 is calibrated with pictures"),
        (["--calibration", "{}"], "--calibration is for --precision int8, got f32"),
        (["--precision", "int8", "--calibration", "{}"], "has no picture"),
        (["--images", "{}/none"], "no such folder of pictures"),
        (["--batch", "1,8"], "--batch and what the graph does are for pose networks"),
        (["--flip"], "--batch and what the graph does are for pose networks"),
        (["--mode", "throughput"], "--batch and what the graph does are for pose networks"),
    ],
)
def test_what_cannot_be_built_is_one_line(tmp_path, capsys, words, text):
    words = [word.replace("{}", str(tmp_path)) for word in words]
    if "--out" not in words:
        words += ["--out", tmp_path / "det.json"]
    assert text in refused(capsys, "build", "default-detector", "--threads", "1", *words)
    assert list(tmp_path.iterdir()) == []


def test_int8_is_calibrated_counted_and_taken_from_the_cache(tiny, pictures, capsys):
    pytest.importorskip("nncf")
    wanted = "`fastpose build fpn-tiny --engine openvino --precision int8 --calibration DIR`"
    with pytest.raises(BackendError, match=wanted):
        open_detector("fpn-tiny", kind="openvino", precision="int8")
    words = ["--precision", "int8", "--calibration", pictures, "--images", pictures, "--allow"]
    status, printed, errors = run(capsys, "build", "fpn-tiny", "--threads", "1", *words, "--json")
    assert status == 0, errors
    document = json.loads(printed)
    assert list(document["stages"]) == ["export", "calibrate", "quantise", "load", "verify"]
    assert document["layers"]["int8"] > 0
    assert [name.rpartition(".")[2] for name in document["files"]] == [
        "xml",
        "xml",
        "bin",
        "bin",
        "json",
    ]
    assert len(document["calibration"]) == 64
    frame = read_picture(pictures / "0.png")
    with closing(
        open_detector("fpn-tiny", kind="openvino", precision="int8", score=0.0, threads=1)
    ) as detector:
        assert "int8" in runtime_of(detector)["precision"]
        (boxes,) = detector([frame])
    with closing(open_detector(document["manifest"], score=0.0, threads=1)) as detector:
        np.testing.assert_array_equal(detector([frame])[0].boxes, boxes.boxes)


def test_what_calibrates_is_kept_though_its_buffer_is_used_again(whole):
    from fastpose.detectors import _Recorder
    from fastpose.engines import open_graph

    recorder = _Recorder(open_graph(whole / "det.rpn.onnx", threads=1))
    image = np.zeros((1, 3, 320, 320), np.float32)
    for value in (1, 2):
        image[:] = value
        recorder({"image": image})
    recorder.close()
    assert [sample.max() for sample in recorder.samples] == [1, 2]


def test_the_cache_builds_once_and_mends_itself(tiny, pictures, capsys):
    words = ["build", "fpn-tiny", "--threads", "1", "--images", pictures, "--allow", "--json"]
    first, again = (json.loads(run(capsys, *words)[1]) for _ in range(2))
    assert first["manifest"] == again["manifest"]
    passed = first["report"]["passed"]
    assert ("verify" in again["stages"]) is not passed
    manifest = DetectorManifest.load(detectors.Path(first["manifest"]))
    damaged = detectors.Path(first["manifest"]).with_name(manifest.graphs[1])
    damaged.write_bytes(b"cut")
    assert "verify" in json.loads(run(capsys, *words)[1])["stages"]


def test_pictures_that_cannot_be_read_are_left_out_and_told(tiny, pictures, capsys):
    (pictures / "0.png").write_bytes(b"no picture")
    words = ["build", "fpn-tiny", "--threads", "1", "--images", pictures, "--allow"]
    status, _, errors = run(capsys, *words, "--rebuild")
    assert status == 0, errors
    assert "pictures: 1 of 3 pictures are left out; the first: " in errors
    for name in ("1.png", "2.png"):
        (pictures / name).write_bytes(b"")
    line = refused(capsys, *words, "--rebuild")
    assert "pictures: no picture can be read; the first: " in line
