"""`fastpose build`, `verify` and `inspect` from end to end, and every fault a user may bring."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastpose import bundles, fixtures
from fastpose.cli import main
from fastpose.detect import open_detector
from fastpose.engines import Manifest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")


def run(capsys, *words):
    """Exit status and what was printed on both streams."""
    status = main([str(word) for word in words])
    out = capsys.readouterr()
    return status, out.out, out.err


def build(capsys, *words):
    return run(capsys, "build", "tiny", "--threads", "1", *words)


def refused(capsys, *words):
    """The one line of a command that cannot be obeyed."""
    status, printed, errors = run(capsys, *words)
    assert (status, printed) == (2, "")
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith(f"fastpose {words[0]}: ")]
    assert len(lines) == 1
    return lines[0]


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rows(printed):
    """The table of two columns; what a row is named by, to its text."""
    return {line[:12].strip(): line[12:] for line in printed.splitlines()}


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "built"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def kept() -> dict[str, bytes]:
    """The files of one bundle, once it has been built."""
    return {}


@pytest.fixture
def bundle(tiny, folder, capsys, kept) -> Path:
    """The manifest of an engine of OpenVINO."""
    if not kept:
        assert build(capsys, "--batch", "1,3", "--out", folder / "a.onnx")[0] == 0
        kept.update({file.name: file.read_bytes() for file in folder.iterdir()})
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    return folder / "a.json"


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "p.png"
    cv2.imwrite(str(path), np.random.default_rng(1).integers(0, 255, (60, 50, 3), np.uint8))
    return path


# What comes out


def test_a_build_tells_its_stages_and_what_it_found(tiny, folder, capsys):
    status, printed, errors = build(
        capsys, "--engine", "openvino", "--batch", "1,8,3", "--out", folder / "a.onnx"
    )
    assert status == 0
    stages = [line.split()[0] for line in errors.splitlines() if line.endswith(" s")]
    assert stages == ["export", "load", "verify"]
    found = rows(printed)
    assert found["model"] == "tiny"
    assert found["engine"] == "openvino on CPU"
    assert "a.onnx (" in found["files"]
    assert found["precision"].startswith("asked f32, found f32 (layers: ")
    assert found["verified"].startswith("passed, beside torch f32 on ")
    assert "median 0.000, p95 0.000, max 0.00" in found["shift"]
    assert Manifest.load(folder / "a.json").buckets == (1, 3, 8)


def test_one_document(tiny, folder, capsys):
    status, printed, _ = build(
        capsys, "--engine", "onnxruntime", "--out", folder / "a.onnx", "--json"
    )
    assert status == 0
    document = json.loads(printed)
    assert document["manifest"] == str(folder / "a.json")
    assert document["files"] == {p.name: p.stat().st_size for p in folder.iterdir()}
    assert set(document["stages"]) == {"export", "load", "verify"}
    assert (document["kind"], document["precision"], document["what"]) == (
        "onnxruntime",
        "f32",
        "pose network",
    )
    assert document["report"]["passed"] is True


def test_the_cache_says_where_it_is_and_builds_once(tiny, tmp_path, capsys):
    status, printed, errors = build(capsys)
    assert status == 0
    assert rows(printed)["folder"].startswith(str(tmp_path / "cache"))
    assert "verify" in errors
    _, again, errors = build(capsys)
    assert rows(again)["folder"] == rows(printed)["folder"]
    assert rows(again)["built"].startswith("before")
    assert "verify" not in errors
    assert "built" not in rows(build(capsys, "--rebuild")[1])


def test_options_reach_the_bundle(tiny, folder, capsys):
    words = ["--flip", "--mode", "throughput", "--requests", "2", "--out", folder / "a.onnx"]
    status, _, errors = build(capsys, *words)
    assert status == 0, errors
    options = Manifest.load(folder / "a.json").options
    assert (options.flip, options.mode, options.requests) == (True, "throughput", 2)
    asked = rows(run(capsys, "inspect", folder / "a.json")[1])["options"]
    assert asked == "flip True, mode throughput, requests 2"


@pytest.mark.parametrize("suffix", [".json", ".onnx"])
def test_a_bundle_predicts(bundle, picture, tmp_path, capsys, suffix):
    """Both files stand for the bundle, and more people than its largest batch are split."""
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("".join(f"0,{i},5,{i + 20},50\n" for i in range(7)))
    engine = bundle.with_suffix(suffix)
    out = tmp_path / "out"
    words = [picture, "--engine", engine, "--boxes", boxes, "--out", out, "--threads", "1"]
    status, printed, errors = run(capsys, "predict", *words, "--json")
    assert status == 0, errors
    assert json.loads(printed)["engine"] == {"kind": "openvino", "precision": "f32"}
    assert json.loads(printed)["sources"][0]["people"] == 7


def test_how_an_engine_runs_reaches_it_or_is_refused(bundle, picture, capsys):
    words = [picture, "--detector", "none", "--mode", "throughput"]
    line = refused(capsys, "predict", *words, "--model", "tiny", "--engine", "onnxruntime")
    assert "mode 'throughput' has no meaning for engine 'onnxruntime'" in line
    line = refused(capsys, "predict", *words, "--engine", bundle, "--memory", "pycuda")
    assert "memory 'pycuda' has no meaning for engine 'openvino'" in line


def test_nobody_is_no_run(bundle, picture, tmp_path, capsys, monkeypatch):
    from fastpose.engines.openvino import OpenVINOEngine

    def fail(*_):
        raise AssertionError("the network ran for nobody")

    monkeypatch.setattr(OpenVINOEngine, "run", fail)
    (tmp_path / "boxes.csv").write_text("7,1,1,20,50\n")  # of another frame
    words = [picture, "--engine", bundle, "--boxes", tmp_path / "boxes.csv"]
    status, printed, errors = run(capsys, "predict", *words, "--out", tmp_path / "out", "--json")
    assert status == 0, errors
    assert json.loads(printed)["sources"][0]["people"] == 0


# verify


def test_verify_says_passed_or_why_not(bundle, capsys, monkeypatch):
    status, printed, _ = run(capsys, "verify", bundle, "--threads", "1")
    assert status == 0
    assert rows(printed)["verified"].startswith("passed, beside torch f32")
    moved = Moved.of(bundles.load_engine)
    monkeypatch.setattr(bundles, "load_engine", moved)
    status, printed, errors = run(capsys, "verify", bundle, "--threads", "1")
    assert (status, errors) == (2, "")
    assert rows(printed)["verified"].startswith("NOT PASSED")
    assert "median" in rows(printed)["not passed"] or "moved" in rows(printed)["not passed"]
    status, printed, _ = run(capsys, "verify", bundle, "--threads", "1", "--json")
    assert status == 2
    assert json.loads(printed)["passed"] is False


def test_verify_tells_what_an_annotated_set_loses(bundle, tmp_path, capsys):
    data = f"lsp:{annotated(tmp_path / 'lsp')}"
    status, printed, errors = run(capsys, "verify", bundle, "--images", data, "--json")
    assert status == 0, errors
    report = json.loads(printed)
    assert (report["source"], report["windows"]) == ("lsp", 1)
    assert report["metric"]["name"] == "pck@0.2"
    assert report["metric"]["loss"] == 0
    assert rows(run(capsys, "verify", bundle, "--data", data)[1])["pck@0.2"].count("->") == 1


class Moved:
    """An engine whose maps are a cell too far to the right."""

    def __init__(self, engine):
        self._engine = engine

    @classmethod
    def of(cls, opened):
        return lambda *args, **options: cls(opened(*args, **options))

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def __call__(self, batch):
        return np.roll(self._engine(batch), 1, axis=-1)


@pytest.mark.parametrize("allow", [False, True])
def test_what_moves_joints_is_not_built_unless_allowed(tiny, folder, capsys, monkeypatch, allow):
    monkeypatch.setattr(bundles, "open_request", Moved.of(bundles.open_request))
    words = ["--out", folder / "a.onnx"]
    if allow:
        status, printed, _ = build(capsys, *words, "--allow")
        assert status == 0
        assert rows(printed)["verified"].startswith("NOT PASSED")
        return
    status, printed, errors = build(capsys, *words)
    assert (status, printed) == (2, "")
    assert "shift       of " in errors, "what was measured is told, too"
    line = errors.splitlines()[-1]
    assert line.startswith("fastpose build: tiny in openvino is not what the module is: median")
    assert line.endswith("; --allow to keep it as it is")
    assert list(folder.iterdir()) == []


def test_an_engine_and_a_model_that_differ_are_refused(bundle, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32, 3), np.uint8))
    words = ("predict", tmp_path / "a.png", "--detector", "none", "--out", tmp_path / "out")
    line = refused(capsys, *words, "--engine", bundle, "--model", "cpn50")
    assert "the engine of tiny, and the model is cpn50" in line
    status, _, _ = run(capsys, *words, "--engine", bundle, "--model", "tiny", "--threads", "1")
    assert status == 0


# inspect


def test_inspect_prints_the_whole_manifest(bundle, capsys):
    status, printed, errors = run(capsys, "inspect", bundle.with_suffix(".onnx"))
    assert (status, errors) == (0, "")
    found = rows(printed)
    assert found["model"] == "tiny"
    assert found["input"] == "16x24 RGB, mean 0,0,0, std 1,1,1"
    assert found["joints"].startswith("lsp14: right_ankle, ")
    assert found["convention"].startswith("symmetric")
    assert found["batch"] == "1, 3"
    assert found["tied to"].startswith("openvino 20")
    assert found["file"].endswith(" ok")
    status, printed, _ = run(capsys, "inspect", bundle, "--json")
    document = json.loads(printed)
    assert status == 0
    assert document["files"]["a.onnx"]["state"] == "ok"
    assert document["ties"]["openvino"]["state"] == "ok"
    assert document["spec"]["name"] == "tiny"


def test_inspect_names_what_differs(bundle, capsys):
    bundle.with_suffix(".onnx").write_bytes(b"cut")
    edit(bundle, ties={"openvino": "2019", "gpu": "NVIDIA H200"})
    status, printed, errors = run(capsys, "inspect", bundle)
    assert status == 2
    assert "differs: " in rows(printed)["file"]
    file, version, gpu = errors.splitlines()
    assert "a.onnx: differs: " in file
    assert "openvino: the engine was built for 2019, this machine has 20" in version
    assert "gpu: the engine was built for NVIDIA H200, this machine has nothing" in gpu
    bundle.with_suffix(".onnx").unlink()
    assert "a.onnx: No such file" in run(capsys, "inspect", bundle)[2]


def test_inspect_needs_no_runtime(bundle):
    code = (
        "import sys\n"
        "for name in ('torch', 'triton', 'onnx', 'onnxruntime', 'openvino', 'tensorrt'):\n"
        "    sys.modules[name] = None\n"
        "from fastpose.cli import main\n"
        f"sys.exit(main(['inspect', {str(bundle)!r}]))\n"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert seen.returncode == 0, seen.stderr
    assert "(here: not known: engine 'openvino' cannot run; install" in seen.stdout


# Bad input


@pytest.mark.parametrize("verb", ["verify", "predict"])
@pytest.mark.parametrize("name", ["a.onnx", "a.xml", "a.plan", "a.pt2"])
def test_a_truncated_file_is_named(bundle, picture, capsys, tmp_path, name, verb):
    """Whatever the runtime: the hash tells before it reads the file."""
    whole = bundle.with_name("a.onnx").read_bytes()
    hashes = json.loads(bundle.read_text())["files"]
    bundle.with_name(name).write_bytes(whole[: len(whole) // 2])
    edit(bundle, files={name: hashes["a.onnx"]})
    engine = [picture, "--detector", "none", "--engine", bundle.with_name(name)]
    words = {"verify": [bundle], "predict": engine}[verb]
    assert f"files: {name}: the manifest has " in refused(capsys, verb, *words)


def test_a_file_that_is_damaged_though_its_hash_is_right(bundle, capsys):
    from fastpose.engines.manifest import file_hash

    file = bundle.with_suffix(".onnx")
    file.write_bytes(file.read_bytes()[:100])
    edit(bundle, files={file.name: file_hash(file)})
    assert "a.onnx: not a readable ONNX graph" in refused(capsys, "verify", bundle)


@pytest.mark.parametrize("verb", ["verify", "inspect"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[1]", "not a manifest of an engine"),
        ('{"joints": []}', "expected schema 2"),
        ("{", "not a manifest of an engine"),
        (None, "no such file; `fastpose build` and"),
    ],
)
def test_a_json_that_is_no_manifest(tmp_path, capsys, verb, content, text):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    line = refused(capsys, verb, tmp_path / "a.json")
    assert f"{tmp_path / 'a.json'}: " in line
    assert text in line


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ties": {"openvino": "2019"}}, "openvino: the engine was built for 2019"),
        ({"ties": {"compute capability": "9.0"}}, "compute capability: the engine was built for"),
        ({"buckets": "many"}, "buckets must be a JSON array, got 'many'"),
        ({"precision": 8}, "precision must be a JSON string, got 8"),
        ({"what": "detector"}, "not a manifest of an engine"),
        ({"what": "car"}, "what must be pose network or detector, got 'car'"),
    ],
)
def test_an_engine_of_another_machine_names_the_field(bundle, picture, capsys, changes, text):
    edit(bundle, **changes)
    assert text in refused(capsys, "verify", bundle)
    assert text in refused(capsys, "predict", picture, "--engine", bundle, "--detector", "none")


@pytest.mark.parametrize("shape", [(2, 3, 16, 20), (2, 16, 24, 3), (3, 16, 24)])
def test_windows_of_another_shape_or_type(bundle, shape):
    from fastpose.engines import load_engine

    engine = load_engine(bundle, threads=1)
    with pytest.raises(ValueError, match=r"batch must be float32 \[N, 3, 16, 24\], got float32"):
        engine(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="got float64"):
        engine(np.zeros((2, 3, 16, 24)))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nobody"], "unknown model 'nobody'; known: "),
        (["tiny", "--precision", "int8", "--out", "{}/a.xml"], "int8 is calibrated with pictures"),
        (["tiny", "--precision", "f16", "--out", "{}/a.onnx"], "'f16' cannot run in openvino"),
        (["tiny", "--out", "{}/a.plan"], "a.plan: the file of this engine must end in .onnx"),
        (["tiny", "--out", "{}/a"], "a: the file of this engine must end in .onnx"),
        (["tiny", "--out", "{}/none/a.onnx"], "none/a.onnx: cannot be written: No such file"),
        (["tiny", "--calibration", "{}"], "--calibration is for --precision int8, got f32"),
        (["tiny", "--images", "{}"], "has no picture"),
        (["tiny", "--images", "{}/none"], "none: no such folder of pictures"),
        (["tiny", "--workspace", "5"], "workspace 5 has no meaning for engine 'openvino'"),
        (["tiny", "--requests", "5"], "requests are for the mode throughput"),
        (["tiny", "--stages", "best"], "stages must be last, sum, mean or a number"),
        (["tiny", "--device", "abacus"], "abacus"),
        (["tiny", "--weights", "{}/none.safetensors"], "none.safetensors"),
        (["tiny", "--engine", "torch", "--compile", "compile"], "has no file; build aot"),
    ],
)
def test_what_cannot_be_built_is_one_line(tiny, folder, capsys, words, text):
    words = [word.replace("{}", str(folder)) for word in words]
    assert text in refused(capsys, "build", *words)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--engine", "abacus"], "--engine: invalid choice: 'abacus'"),
        (["--precision", "int4"], "--precision: invalid choice: 'int4'"),
        (["--batch", "1,none"], "--batch: must be a whole number from 1, got 'none'"),
        (["--batch", "0"], "--batch: must be a whole number from 1, got '0'"),
    ],
)
def test_arguments_are_checked_first(capsys, words, text):
    with pytest.raises(SystemExit) as stop:
        main(["build", "tiny", *words])
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_a_bundle_does_not_take_the_manifest_of_another(bundle, capsys):
    before = {file.name: file.read_bytes() for file in bundle.parent.iterdir()}
    words = ["--engine", "torch", "--out", bundle.with_suffix(".pt2")]
    line = refused(capsys, "build", "tiny", *words)
    assert f"{bundle}: is there already and describes a.onnx; give the bundle another" in line
    assert {file.name: file.read_bytes() for file in bundle.parent.iterdir()} == before


def test_the_file_of_an_engine_has_its_ending(picture, capsys):
    line = refused(capsys, "predict", picture, "--engine", "some.trt")
    assert "some.trt: the file of an engine ends in .json .onnx .xml .plan .pt2" in line


def test_a_precision_that_only_the_cache_has_names_the_build(tiny, picture, capsys):
    words = [picture, "--model", "tiny", "--precision", "int8", "--detector", "none"]
    line = refused(capsys, "predict", *words)
    assert "`fastpose build tiny --engine openvino --precision int8 --calibration DIR`" in line


def test_pictures_to_calibrate_with(tiny, folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("nncf")
    monkeypatch.setattr(fixtures, "open_detector", lambda *_, **__: open_detector("none"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    words = ["--precision", "int8", "--calibration", pictures, "--out", folder / "a.xml"]
    assert f"{pictures}: has no picture" in refused(capsys, "build", "tiny", *words)
    (pictures / "a.jpg").write_bytes(b"no picture")
    line = refused(capsys, "build", "tiny", *words)
    assert "no picture can be read; the first: " in line
    assert "a.jpg" in line
    assert list(folder.iterdir()) == []
    cv2.imwrite(
        str(pictures / "b.png"), np.random.default_rng(1).integers(0, 255, (60, 50, 3), np.uint8)
    )
    status, printed, errors = build(capsys, *words, "--allow")
    assert status == 0, errors
    assert "1 of 2 pictures are left out; the first: " in errors
    assert Manifest.load(folder / "a.json").calibration
    assert "asked int8, found " in rows(printed)["precision"]

    build(capsys, *words[:4], "--allow")
    out = tmp_path / "out"
    words = [pictures / "b.png", "--model", "tiny", "--detector", "none", "--out", out]
    status, printed, errors = run(capsys, "predict", *words, "--precision", "int8", "--json")
    assert status == 0, errors
    assert json.loads(printed)["engine"]["kind"] == "openvino"


def test_int8_needs_neither_torch_nor_what_built_it(tiny, folder, tmp_path, capsys, monkeypatch):
    """Neither to look at a video: what is not in the base install is out of reach."""
    pytest.importorskip("nncf")
    monkeypatch.setattr(fixtures, "open_detector", lambda *_, **__: open_detector("none"))
    pictures = np.random.default_rng(1).integers(0, 255, (5, 60, 50, 3), np.uint8)
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "a.png"), pictures[0])
    video = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (50, 60))
    for picture in pictures:
        writer.write(picture)
    writer.release()
    words = ["--precision", "int8", "--calibration", tmp_path / "pictures", "--allow"]
    status, _, errors = build(capsys, *words, "--out", folder / "a.xml")
    assert status == 0, errors
    assert Manifest.load(folder / "a.json").layers["int8"] > 0

    words = ["predict", video, "--engine", folder / "a.xml", "--detector", "none"]
    words += ["--out", tmp_path / "out", "--json", "--threads", "1"]
    code = (
        "import sys\n"
        "for name in ('torch', 'triton', 'nncf', 'onnx', 'onnxscript', 'onnxruntime', "
        "'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from fastpose.cli import main\n"
        f"sys.exit(main({[str(word) for word in words]!r}))\n"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert seen.returncode == 0, seen.stderr
    assert json.loads(seen.stdout)["engine"]["kind"] == "openvino"
    (told,) = (tmp_path / "out").glob("*.people.jsonl")
    assert len(told.read_text().splitlines()) >= len(pictures)


@pytest.mark.parametrize("verb", ["predict", "eval"])
def test_what_another_machine_built_is_built_again_when_asked(
    bundle, picture, tmp_path, capsys, verb
):
    edit(bundle, ties={"openvino": "2019"})
    words = [picture, "--detector", "none", "--out", tmp_path / "out", "--engine", bundle]
    if verb == "eval":
        words = [bundle, "--data", f"lsp:{annotated(tmp_path / 'lsp')}"]
    words += ["--threads", "1"]
    assert "the engine was built for 2019" in refused(capsys, verb, *words)
    for built in (True, False):
        status, _, errors = run(capsys, verb, *words, "--build")
        assert status == 0, errors
        assert ("building it" in errors) is built
    assert Manifest.load(bundle).buckets == (1, 3)


def annotated(folder):
    """One picture of the Leeds Sports Pose set's kind."""
    (folder / "images").mkdir(parents=True)
    cv2.imwrite(str(folder / "images" / "im0.png"), np.zeros((80, 60, 3), np.uint8))
    joints = np.ones((14, 3)) * (30, 40, 1) + np.arange(14)[:, None]
    row = {"file": "im0.png", "split": "test", "width": 60, "height": 80, "joints": joints.tolist()}
    (folder / "annotations.json").write_text(json.dumps({"images": [row]}))
    return folder


def test_a_folder_that_cannot_be_written(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = refused(capsys, "build", "tiny", "--out", tmp_path / "file" / "a.onnx")
    assert "a.onnx: cannot be written: Not a directory" in line


START = """
import sys
sys.path.insert(0, {here!r})
from tiny_network import TINY, Tiny
from types import ModuleType
from pathlib import Path
from fastpose import models
from fastpose.models import trained
module = ModuleType("fastpose.models.tiny"); module.Tiny = Tiny
sys.modules["fastpose.models.tiny"] = module
models.MODELS["tiny"] = TINY
trained.folder = lambda: Path({trained!r})
from fastpose.cli import main
{before}
sys.exit(main(["build", "tiny", "--threads", "1", *sys.argv[1:]]))
"""


def child(tiny, *words, before="", **options):
    """`fastpose build tiny` as a process of its own."""
    code = START.format(here=str(Path(__file__).parent), trained=str(tiny), before=before)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_full_disk_leaves_nothing(tiny, folder):
    """The size limit of a process stands in for a disk that is full."""
    resource = pytest.importorskip("resource")
    started = child(
        tiny,
        "--out",
        folder / "a.onnx",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    _, errors = started.communicate(timeout=300)
    assert started.returncode == 2, errors
    assert "a.onnx: cannot be written: File too large" in errors
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []


def test_ctrl_c_leaves_nothing(tiny, folder):
    wait = (
        "import time\n"
        "from fastpose.engines import openvino\n"
        "build = openvino.build\n"
        "def slow(job, out):\n"
        "    build(job, out)\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
        "openvino.build = slow\n"
    )
    started = child(tiny, "--out", folder / "a.onnx", before=wait)
    assert started.stdout.readline() == "ready\n"
    assert list(folder.glob(".a.*.part/a.onnx")), "it is in the middle"
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=300)
    assert started.returncode == 130, errors
    assert "fastpose build: interrupted" in errors
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []


def test_a_plan_is_refitted_or_told_why_not(tiny, tmp_path, capsys):
    build = ("build", "tiny", "--threads", "1", "--out", str(tmp_path / "mine.onnx"))
    assert main(list(build)) == 0
    capsys.readouterr()
    refit = ["build", str(tmp_path / "mine.onnx")]
    for words, reason in (
        ([], "--weights FILE says what is put into a plan that has been built"),
        (
            ["--weights", "own.safetensors", "--out", str(tmp_path / "new.onnx")],
            "refit: the engine was built without this option",
        ),
    ):
        assert main([*refit, *words]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert reason in err
