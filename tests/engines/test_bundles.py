"""Bundles: made whole or not at all, kept in the cache once, refused where they do not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_network import TINY, make_tiny, write_card

import fastpose
from fastpose import bundles, models
from fastpose.bundles import build_engine, verify_engine
from fastpose.engines import Manifest, Options, asked_precision, load_engine, open_engine
from fastpose.errors import BackendError, EngineError, FrameError, UnbuiltError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

GRAPHS = ("openvino", "onnxruntime")


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, *TINY.size)).astype(np.float32)


def expected(batch: np.ndarray, network=None) -> np.ndarray:
    with torch.inference_mode():
        maps = (network or make_tiny()).predict(torch.from_numpy(np.ascontiguousarray(batch)))
    return maps.numpy()


def assert_close(actual: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * abs(wanted).max(initial=0))


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "bundles.here"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """A folder for the bundle of each runtime, which the first test that asks for it builds."""
    return tmp_path_factory.mktemp("built")


@pytest.fixture(params=GRAPHS)
def bundle(request, tiny, folder, built) -> Path:
    """A copy, which may be damaged."""
    whole = built / request.param
    if not whole.is_dir():
        whole.mkdir()
        out = whole / "mine.onnx"
        build_engine("tiny", engine=request.param, buckets=(1, 3), threads=1, out=out)
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    return folder / "mine.json"


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """The stages of every build since."""
    from fastpose.engines import openvino

    names: list[str] = []
    build = openvino.build

    def counted(job, out):
        names.append(out.name)
        return build(job, out)

    monkeypatch.setattr(openvino, "build", counted)
    return names


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# What a bundle is


def test_a_bundle_is_a_graph_and_its_manifest(bundle):
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["mine.json", "mine.onnx"]
    manifest = Manifest.load(bundle)
    assert manifest.spec == TINY
    assert (manifest.name, manifest.buckets, manifest.file) == ("tiny", (1, 3), "mine.onnx")
    assert (manifest.precision, manifest.weights_hash) == ("f32", "ab" * 32)
    assert manifest.report is not None
    assert manifest.report["passed"] is True
    for path in (bundle, bundle.with_suffix(".onnx")):
        engine = load_engine(path, threads=1)
        assert engine.manifest.spec == manifest.spec
        assert engine.manifest.files == manifest.files
        assert_close(engine(images(4)), expected(images(4)))
        assert open_engine(str(path), kind=manifest.kind).manifest == engine.manifest


@pytest.mark.parametrize("single", [False, True])
def test_a_single_view_of_a_bundle_is_the_nearest_one(tiny, monkeypatch, folder, single):
    several = replace(TINY, views=(0.5, 1.1, 2.0))
    monkeypatch.setitem(models.MODELS, "tiny", several)
    views = (1.1,) if single else several.views
    opened = open_engine("tiny", kind="torch", threads=1, single_view=single)
    assert opened.manifest.spec == replace(TINY, views=views)
    built = build_engine("tiny", engine="openvino", out=folder / "tiny.onnx")
    assert open_engine(built, single_view=single).manifest.spec.views == views


def test_build_from_given_weights(tiny, tmp_path, folder):
    from fastpose.engines.build import random_network
    from fastpose.models.weights import save_weights

    save_weights(random_network("tiny").state_dict(), tmp_path / "mine.safetensors")
    network = models.create("tiny", tmp_path / "mine.safetensors")
    write_card(tiny, low_precision={"bf16": {"passed": True}})
    path = build_engine("tiny", weights=tmp_path / "mine.safetensors", out=folder / "own.onnx")
    engine = load_engine(path)
    assert engine.manifest.precision == "f32"
    assert_close(engine(images(2)), expected(images(2), network))


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 1}, "schema is 1, this version reads 2"),
        ({"kind": 5}, "kind must be a JSON string, got 5"),
        ({"kind": "tensorrt"}, "tensorrt"),
        ({"kind": "abacus"}, "abacus"),
        ({"buckets": []}, "buckets must be positive"),
        ({"buckets": "many"}, "buckets must be a JSON array"),
        ({"spec": {"name": "x"}}, "not a model spec"),
        ({"surprise": 1}, "surprise"),
        ({"options": {"surprise": 1}}, "unknown option 'surprise'"),
        ({"options": {"mode": "fast"}}, "mode must be one of latency, throughput, got 'fast'"),
        ({"ties": {"moon": "full"}}, "moon: the engine was built for full, this machine has"),
        ({"device": "TPU"}, "TPU"),
        ({"files": {"mine.onnx": "0" * 64}}, "files: mine.onnx: the manifest has 000000000000"),
        (
            {"files": {"gone.onnx": "0" * 64}},
            "it describes gone.onnx, which is not beside it",
        ),
        ({"files": {"../mine.onnx": "0" * 64}}, "is no name of a file beside it"),
        ({"files": {}}, "files: the manifest names none"),
        ({"ties": {}}, "the engine was built for nothing that is told, this machine has"),
        ({"report": 3}, "report must be a JSON object, got 3"),
        ({"precision": "f64"}, "f64"),
    ],
    ids=lambda value: "-".join(map(str, next(iter(value.items())))) if type(value) is dict else "",
)
def test_a_manifest_that_does_not_fit_names_the_field(bundle, changes, words):
    edit(bundle, **changes)
    with pytest.raises((EngineError, BackendError)) as error:
        load_engine(bundle)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bundle_of_another_version_names_both(bundle):
    kind = Manifest.load(bundle).kind
    edit(bundle, ties={kind: "0"})
    wanted = rf"{kind}: the engine was built for 0, this machine has \d+; build it again"
    with pytest.raises(EngineError, match=wanted):
        load_engine(bundle)


def test_a_bundle_is_not_turned_into_something_else(bundle):
    other = {"openvino": "onnxruntime", "onnxruntime": "openvino"}[Manifest.load(bundle).kind]
    with pytest.raises(EngineError, match=f"kind: the engine has .*, asked was {other}"):
        open_engine(bundle, kind=other)
    with pytest.raises(EngineError, match="precision: the engine has f32, asked was bf16"):
        open_engine(bundle, precision="bf16")


@pytest.mark.parametrize("content", ["", "[1, 2]", "{}", "{", "\x00\xff"])
def test_json_that_is_no_manifest(tmp_path, content):
    path = tmp_path / "some.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(EngineError, match=r"some\.json: not a manifest of an engine") as error:
        load_engine(path)
    assert "\n" not in str(error.value)
    with pytest.raises(EngineError, match=r"gone\.onnx: no such file"):
        load_engine(tmp_path / "gone.onnx")


@pytest.mark.parametrize("suffix", [".onnx", ".json"])
def test_a_graph_beside_weights_and_their_card_names_the_weights(tmp_path, suffix):
    """As `fastpose train` leaves them."""
    for name in ("mine.onnx", "mine.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "mine.json").write_text('{"name": "cpn-light"}')
    weights = tmp_path / "mine.safetensors"
    with pytest.raises(EngineError, match=rf"schema 2; is it the card of {weights}\? Then give"):
        open_engine(tmp_path / f"mine{suffix}")


def test_what_cannot_be_built_leaves_nothing(tiny, folder):
    with pytest.raises(EngineError, match="compiles when it is opened has no file"):
        build_engine(
            "tiny", engine="torch", options=Options(compile="compile"), out=folder / "a.pt2"
        )
    with pytest.raises(BackendError, match="refit True has no meaning for engine 'openvino'"):
        build_engine("tiny", options=Options(refit=True), out=folder / "a.onnx")
    with pytest.raises(EngineError, match=r"must end in \.onnx"):
        build_engine("tiny", out=folder / "a.engine")
    with pytest.raises(EngineError, match="cannot be written"):
        build_engine("tiny", out=folder / "no" / "a.onnx")
    with pytest.raises(BackendError, match="'bf16' cannot run in onnxruntime"):
        build_engine("tiny", engine="onnxruntime", precision="bf16", out=folder / "a.onnx")
    with pytest.raises(ValueError, match="precision must be one of f32, bf16, f16, int8, got 'x'"):
        build_engine("tiny", precision="x", out=folder / "a.onnx")
    with pytest.raises(EngineError, match="int8 is calibrated with pictures"):
        build_engine("tiny", precision="int8", out=folder / "a.xml")
    with pytest.raises(ValueError, match="calibration is for int8, got precision 'f32'"):
        build_engine("tiny", calibration=folder, out=folder / "a.onnx")
    (tiny / "tiny.onnx").write_bytes(b"damaged")
    write_card(tiny)
    with pytest.raises(EngineError, match="not a readable ONNX graph"):
        build_engine("tiny", out=folder / "a.onnx")
    assert list(folder.iterdir()) == []


def test_another_file_of_that_name_is_not_replaced(tiny, folder):
    (folder / "a.json").write_text('{"joints": ["head"]}')
    with pytest.raises(EngineError, match=r"a\.json: is there already and is no manifest"):
        build_engine("tiny", out=folder / "a.onnx")
    assert [path.name for path in folder.iterdir()] == ["a.json"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, MemoryError, OSError(28, "No space left")])
def test_a_build_that_is_broken_off_leaves_what_was_there(tiny, folder, monkeypatch, fault):
    path = build_engine("tiny", out=folder / "a.onnx")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(*args, **options):
        raise fault

    monkeypatch.setattr(Manifest, "save", fail)
    wanted = EngineError if isinstance(fault, OSError) else fault
    with pytest.raises(wanted):
        build_engine("tiny", out=path.with_suffix(".onnx"))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_picture_that_cannot_be_read_is_no_fault_of_the_folder(tiny, folder, monkeypatch):
    def unreadable(*args, **options):
        raise FrameError("street.jpg: cannot be read")

    monkeypatch.setattr(bundles.fixtures, "windows", unreadable)
    with pytest.raises(FrameError, match=r"^street\.jpg: cannot be read$"):
        build_engine("tiny", out=folder / "a.onnx")
    assert list(folder.iterdir()) == []


# Verification decides


class Moved:
    """An engine whose maps are a cell too far to the right."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def __call__(self, batch):
        return np.roll(self._engine(batch), 1, axis=-1)


@pytest.mark.parametrize("allow", [False, True])
def test_an_engine_that_moves_joints_is_no_bundle(tiny, folder, monkeypatch, allow):
    opened = bundles.open_request
    monkeypatch.setattr(bundles, "open_request", lambda *args: Moved(opened(*args)))
    if allow:
        path = build_engine("tiny", allow=True, out=folder / "a.onnx")
        report = Manifest.load(path).report
        assert report is not None
        assert report["passed"] is False
        assert any("median" in reason for reason in report["reasons"])
        return
    with pytest.raises(EngineError, match=r"tiny in openvino is not what the module is: .*median"):
        build_engine("tiny", out=folder / "a.onnx")
    assert list(folder.iterdir()) == []


def test_a_bundle_is_verified_again_at_any_time(bundle):
    found = verify_engine(bundle, threads=1)
    assert found.passed
    assert found.to_dict()["shift"] == Manifest.load(bundle).report["shift"]


# The cache


def test_the_cache_builds_once(tiny, builds):
    first = build_engine("tiny", buckets=(1, 2))
    assert builds == ["tiny.onnx"]
    assert build_engine("tiny", buckets=(1, 2)) == first
    assert builds == ["tiny.onnx"], "what was built is taken"
    assert build_engine("tiny", buckets=(1, 4)) == first
    assert len(builds) == 2, "other batch sizes are another engine"
    assert build_engine("tiny", buckets=(1, 4), rebuild=True) == first
    assert len(builds) == 3
    assert load_engine(first).manifest.buckets == (1, 4)


def test_a_damaged_entry_is_built_again(tiny, builds):
    path = build_engine("tiny")
    path.with_suffix(".onnx").write_bytes(b"half")
    assert build_engine("tiny") == path
    assert len(builds) == 2
    path.with_suffix(".onnx").unlink()
    with pytest.raises(UnbuiltError, match=r"it describes tiny\.onnx, which is not beside it"):
        bundles.load_engine(path)
    bundles.open_or_build(path, threads=1).close()
    assert len(builds) == 3
    assert load_engine(path).manifest.name == "tiny"


def test_an_entry_depends_on_all_that_its_file_does(tiny, tmp_path, monkeypatch):
    from fastpose.engines import openvino

    paths = {build_engine("tiny")}
    paths.add(build_engine("tiny", precision="bf16", allow=True))
    paths.add(build_engine("tiny", engine="onnxruntime"))
    write_card(tiny, weights_sha256="cd" * 32)
    paths.add(build_engine("tiny"))
    monkeypatch.setattr(openvino, "ties", lambda *args: {"openvino": "1"})
    paths.add(build_engine("tiny"))
    assert len(paths) == 5
    assert len({path.parent for path in paths}) == 5


def test_a_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineError, match="cannot be written: Not a directory"):
        build_engine("tiny")


def test_what_a_killed_builder_left_is_removed(tiny):
    path = build_engine("tiny")
    left = path.parent / ".tiny.abc.part"
    left.mkdir()
    (left / "tiny.onnx").touch()
    build_engine("tiny", rebuild=True)
    assert not left.exists()


def test_an_engine_that_has_to_be_built_is_named(tiny):
    wanted = (
        "no int8 engine of openvino has been built .*`fastpose build tiny --engine openvino --prec"
    )
    with pytest.raises(BackendError, match=wanted):
        open_engine("tiny", kind="openvino", precision="int8")


TWO = """
import sys, warnings
from unittest import mock
sys.path.insert(0, {here!r})
from tiny_network import TINY, Tiny
from types import ModuleType
from pathlib import Path
from fastpose import models
from fastpose.models import trained
from fastpose.engines import openvino
module = ModuleType("fastpose.models.tiny"); module.Tiny = Tiny
sys.modules["fastpose.models.tiny"] = module
models.MODELS["tiny"] = TINY
trained.folder = lambda: Path({trained!r})
build = openvino.build
def counted(job, out):
    print("built")
    return build(job, out)
openvino.build = counted
from fastpose.bundles import build_engine
print(build_engine("tiny", threads=1))
"""


def test_two_processes_build_an_entry_once(tiny):
    code = TWO.format(here=str(Path(__file__).parent), trained=str(tiny))
    start = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outs = [process.communicate(timeout=300)[0].split() for process in start]
    assert [process.returncode for process in start] == [0, 0]
    assert sorted(map(len, outs)) == [1, 2], "one of them builds, the other waits"
    assert outs[0][-1] == outs[1][-1]
    assert load_engine(outs[0][-1]).manifest.name == "tiny"


def test_another_device_is_another_entry(tiny):
    from fastpose.engines.bundle import built_file

    def place(kind, device):
        return built_file(TINY, kind, "f32", "", Options(), {}, device, ".json")

    assert place("onnxruntime", "cpu") == place("onnxruntime", "auto")
    assert place("onnxruntime", "CPU") == place("onnxruntime", "cpu")
    assert place("tensorrt", "auto") == place("tensorrt", "cuda:0")
    assert place("onnxruntime", "cuda") != place("onnxruntime", "cpu")
    assert place("tensorrt", "cuda:1") != place("tensorrt", "cuda")


def test_an_entry_depends_on_the_kernels_code(tiny, monkeypatch):
    from fastpose.engines import bundle

    names = {path.name for path in bundle._sources()}
    assert {"decode.py", "cubin.py", "quantize.py", "cpn_light.py", "openvino.py"} <= names


# What a file may say of itself


def test_a_file_does_not_allow_its_own_code():
    kept = Options(version_compatible=True, host_code=True)
    assert kept.with_run(None) == Options(version_compatible=True)
    assert kept.with_run(Options(memory="pycuda")).host_code is False
    assert kept.with_run(Options(host_code=True)).host_code is True


def test_what_was_asked_is_still_known_when_it_is_opened(tiny, folder):
    path = build_engine("tiny", out=folder / "a.onnx", threads=1)
    for asked, found in (("f32", "f32"), ("auto", "f32"), ("bf16", "bf16")):
        manifest = replace(Manifest.load(path), precision_asked=asked)
        assert asked_precision(manifest) == found
    opened = load_engine(path, threads=1)
    assert opened.manifest.precision_asked == "f32"


def test_a_bundle_that_did_not_pass_is_told(tiny, folder):
    path = build_engine("tiny", out=folder / "a.onnx", threads=1)
    report = {**json.loads(path.read_text())["report"], "passed": False, "reasons": ["far off"]}
    edit(path, report=report)
    with pytest.warns(UserWarning, match=r"a\.json: was kept though it did not pass: far off"):
        load_engine(path, threads=1)


# Building when asked


def test_what_is_not_built_is_built_only_when_asked(tiny, monkeypatch):
    from fastpose.engines import openvino

    path = build_engine("tiny", out=tiny.parent / "mine.onnx", threads=1)
    monkeypatch.setattr(openvino, "ties", lambda *args: {"openvino": "4000"})
    with pytest.raises(UnbuiltError, match=r"openvino: the engine was built for .* has 4000"):
        fastpose.Pose(path, detector="none", threads=1)
    with fastpose.Pose(path, detector="none", threads=1, build=True) as pose:
        assert pose.engine.manifest.name == "tiny"
    assert Manifest.load(path).ties == {"openvino": "4000"}
    load_engine(path, threads=1).close()


def test_what_cannot_be_built_again_is_told(tiny, monkeypatch):
    from fastpose.engines import openvino

    path = build_engine("tiny", out=tiny.parent / "mine.onnx", threads=1)
    monkeypatch.setattr(openvino, "ties", lambda *args: {"openvino": "4000"})
    for changes, words in (
        ({"weights_hash": "12" * 32}, "weights_hash: it was built from other weights"),
        ({"calibration": "12" * 32}, "calibration: it was calibrated with pictures"),
    ):
        before = path.read_text()
        edit(path, **changes)
        with pytest.raises(EngineError, match=words):
            bundles.open_or_build(path, threads=1)
        path.write_text(before)
    with pytest.raises(UnbuiltError, match="--precision int8 --calibration DIR` makes one"):
        bundles.open_or_build("tiny", precision="int8", kind="openvino", threads=1)
