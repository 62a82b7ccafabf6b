"""What only OpenVINO does: int8, requests side by side, the cache of compiled models."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tiny_network import TINY, make_tiny

from fastpose.engines import Options, source
from fastpose.engines.engine import Engine, Job, Request
from fastpose.errors import BackendError, EngineError

torch = pytest.importorskip("torch")
openvino = pytest.importorskip("fastpose.engines.openvino")
quantize = pytest.importorskip("fastpose.engines.quantize")


def images(count: int, seed: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3, *TINY.size)).astype(np.float32)


def expected(batch: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return make_tiny().predict(torch.from_numpy(batch)).numpy()


def int8_job(calibration: np.ndarray | None, **values: object) -> Job:
    job = Job(
        spec=TINY,
        weights=None,
        precision="int8",
        device="auto",
        buckets=(1, 2, 4),
        options=Options(),
        threads=1,
        calibration=calibration,
        timing_cache=None,
        tell=lambda stage: None,
    )
    return replace(job, **values)


def opened(file: Path, **values: object) -> Engine:
    request = Request(
        spec=TINY,
        file=file,
        weights_hash="",
        device="auto",
        precision="f32",
        passed=frozenset(),
        buckets=(1, 2, 4),
        threads=1,
    )
    return openvino.OpenVINOEngine(replace(request, **values))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# int8


@pytest.fixture(scope="module")
def quantised(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """The files of the tiny network in int8, calibrated with 40 windows."""
    pytest.importorskip("nncf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "find_graph", lambda *_, **__: (graph, ""))
        yield openvino.build(int8_job(images(40)), tmp_path_factory.mktemp("int8") / "tiny.xml")


def test_int8_is_close_and_counted(quantised):
    assert [file.name for file in quantised] == ["tiny.xml", "tiny.bin"]
    engine = opened(quantised[0], precision="int8")
    manifest = engine.manifest
    rest = "bf16" if "bf16" in openvino.capabilities()["CPU"] else "f32"
    assert manifest.layers == {rest: 2, "int8": 2}  # the first and the last stay float
    assert manifest.precision == manifest.precision_asked == "int8"
    assert list(manifest.files) == ["tiny.xml", "tiny.bin"]
    batch = images(11, seed=6)
    error = abs(engine(batch) - expected(batch)).max() / abs(expected(batch)).max()
    assert 1e-3 < error < 0.1


def test_the_same_windows_give_the_same_file(quantised, graph, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(source, "find_graph", lambda *_, **__: (graph, ""))
    again = openvino.build(int8_job(images(40)), tmp_path / "other.xml")
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in quantised]
    assert str(tmp_path).encode() not in again[0].read_bytes()
    assert capsys.readouterr() == ("", "")
    other = openvino.build(int8_job(3 * images(40)), tmp_path / "third.xml")
    assert other[1].read_bytes() != again[1].read_bytes()  # the ranges


def test_the_order_of_the_windows_is_nothing(quantised, graph, monkeypatch, tmp_path):
    monkeypatch.setattr(source, "find_graph", lambda *_, **__: (graph, ""))
    turned = openvino.build(int8_job(images(40)[::-1].copy()), tmp_path / "turned.xml")
    batch = images(4, seed=6)
    first, second = (opened(files[0], precision="int8")(batch) for files in (quantised, turned))
    np.testing.assert_allclose(second, first, atol=1e-5)


@pytest.mark.parametrize("calibration", [None, images(0)])
def test_int8_never_does_without_pictures(calibration, tmp_path):
    for build in (
        lambda: openvino.build(int8_job(calibration), tmp_path / "tiny.xml"),
        lambda: quantize.modelopt_onnx(int8_job(calibration), tmp_path / "a", tmp_path / "b"),
    ):
        with pytest.raises(EngineError, match="int8 needs pictures: --calibration FOLDER"):
            build()
    assert not list(tmp_path.glob("tiny*"))


def test_int8_needs_nncf_and_says_so(graph, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "find_graph", lambda *_, **__: (graph, ""))
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(BackendError, match=r"nncf.*fastpose-inference\[quantize\]"):
        openvino.build(int8_job(images(2)), tmp_path / "tiny.xml")


def test_a_graph_without_ranges_is_not_int8(graph):
    with pytest.raises(BackendError, match="'int8' cannot run in openvino on CPU"):
        opened(graph, precision="int8")


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("tiny.bin", None, "bin file cannot be found"),
        ("tiny.bin", 0, "Incorrect weights in bin file"),
        ("tiny.bin", 0.6, "Incorrect weights in bin file"),
        ("tiny.xml", 0, "No document element"),
        ("tiny.xml", 0.6, "at offset"),
    ],
)
def test_damaged_files_are_refused_in_one_line(quantised, tmp_path, name, size, reason):
    for file in quantised:
        data = file.read_bytes()
        if file.name != name:
            (tmp_path / file.name).write_bytes(data)
        elif size is not None:
            (tmp_path / name).write_bytes(data[: int(size * len(data))])
    with pytest.raises(
        EngineError, match=rf"tiny\.xml: not a readable OpenVINO.*{reason}"
    ) as error:
        opened(tmp_path / "tiny.xml", precision="int8")
    assert "\n" not in str(error.value)


def chain(*kinds: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """A graph whose nodes follow each other, named by their place."""
    names = ["in", *map(str, range(len(kinds))), "out"]
    nodes = dict(zip(names, ["Parameter", *kinds, "Result"], strict=True))
    return nodes, list(pairwise(names))


@pytest.mark.parametrize(
    ("layers", "floats"),
    [(3, set()), (4, {0, 3}), (8, {0, 1, 6, 7}), (12, {0, 1, 2, 10, 11}), (40, {0, 1, 2, 38, 39})],
)
def test_the_ends_of_a_network_stay_float(layers, floats):
    nodes, edges = chain(*["Convolution"] * layers)
    assert quantize.float_nodes(nodes, edges) - {"in", "out"} == set(map(str, floats))


@pytest.mark.parametrize("order", [1, -1])
def test_a_way_around_is_as_near_as_its_shortest(order):
    """A skip from behind the first convolution makes what it leads to the second."""
    nodes, edges = chain(*["Conv", "Relu"] * 12)
    skip = [*edges, ("1", "skip"), ("skip", "4"), ("skip", "14")][::order]
    found = quantize.float_nodes({**nodes, "skip": "Add"}, skip)
    assert {"0", "2", "4", "6", "14", "16"} <= found
    assert not {"8", "10", "12", "18"} & found
    assert {"20", "22"} <= found
    assert not {"6", "14"} & quantize.float_nodes({**nodes, "skip": "Shape"}, skip)


def fake_modelopt(monkeypatch: pytest.MonkeyPatch, quantise: object) -> None:
    for name in ("modelopt", "modelopt.onnx", "modelopt.onnx.quantization"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["modelopt.onnx.quantization"].quantize = quantise


def test_modelopt_gets_the_windows_and_a_graph_in_f32(monkeypatch, tmp_path):
    import onnx

    from fastpose.engines.build import export_onnx

    export_onnx(make_tiny(), TINY, tmp_path / "tiny.onnx")  # weights in half
    seen = {}

    def quantise(path: str, *, output_path: str, **options: object) -> None:
        seen.update(options, model=onnx.load(path))
        Path(output_path).write_bytes(b"quantised")

    fake_modelopt(monkeypatch, quantise)
    out = tmp_path / "tiny.qdq.onnx"
    assert quantize.modelopt_onnx(int8_job(images(3)), tmp_path / "tiny.onnx", out) == out
    assert out.read_bytes() == b"quantised"
    np.testing.assert_array_equal(seen["calibration_data"]["image"], images(3))
    assert "Cast" not in {node.op_type for node in seen["model"].graph.node}
    onnx.checker.check_model(seen["model"])
    weighted = [node.name for node in seen["model"].graph.node if "Conv" in node.op_type]
    kept = [name for name in weighted if f"^{name}$" in seen["nodes_to_exclude"]]
    assert kept == [weighted[0], weighted[-1]]
    assert sorted(p.name for p in tmp_path.glob("*")) == ["tiny.onnx", "tiny.qdq.onnx"]


def test_modelopt_fails_in_one_line(monkeypatch, graph, tmp_path):
    def quantise(path: str, **options: object) -> None:
        raise KeyError("first\nsecond")

    fake_modelopt(monkeypatch, quantise)
    with pytest.raises(EngineError, match="modelopt cannot quantise it") as error:
        quantize.modelopt_onnx(int8_job(images(2)), graph, tmp_path / "tiny.onnx")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*.onnx"))
    monkeypatch.setitem(sys.modules, "modelopt", None)
    monkeypatch.delitem(sys.modules, "modelopt.onnx.quantization")
    with pytest.raises(BackendError, match=r"fastpose-inference\[modelopt\]"):
        quantize.modelopt_onnx(int8_job(images(2)), graph, tmp_path / "tiny.onnx")


def test_modelopt_itself(graph, tmp_path):
    pytest.importorskip("modelopt.onnx.quantization")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = quantize.modelopt_onnx(int8_job(images(40)), graph, tmp_path / "tiny.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (maps,) = session.run(None, {"image": images(4, seed=6)})
    wanted = expected(images(4, seed=6))
    assert abs(maps - wanted).max() < 0.1 * abs(wanted).max()


# Requests side by side


def throughput(requests: int | None) -> Options:
    return Options(mode="throughput", requests=requests)


@pytest.mark.parametrize("buckets", [(1, 2, 4), (4,), (3, 7)])
@pytest.mark.parametrize("requests", [1, 2, 3])
def test_throughput_gives_what_latency_gives(graph, requests, buckets):
    wide = opened(graph, options=throughput(requests), buckets=buckets)
    assert wide.manifest.options.requests == requests
    for count in (1, 2, 3, 5, 11):
        np.testing.assert_allclose(wide(images(count)), expected(images(count)), atol=1e-4)
    for count in range(1, buckets[-1] + 1):
        wide.buffer(count)[...] = images(count)
        np.testing.assert_allclose(wide.run(count), expected(images(count)), atol=1e-4)
        np.testing.assert_array_equal(wide.buffer(count), images(count))


def test_the_runtime_chooses_how_many_requests(graph):
    engine = opened(graph, options=throughput(None), threads=None)
    assert engine.manifest.options.requests >= 1
    assert opened(graph).manifest.options.requests is None
    two = opened(graph, options=throughput(2), threads=4)  # the runtime would have 4
    assert two._compiled[1].get_property("NUM_STREAMS") == 2


@pytest.mark.parametrize(
    ("count", "buckets", "parallel", "rows", "sizes"),
    [
        (8, (1, 2, 4, 8), 4, 8, (2, 2, 2, 2)),
        (8, (1, 2, 4, 8), 1, 8, (8,)),
        (5, (1, 2, 4, 8), 4, 8, (2, 2, 2)),  # sooner than four and then one
        (5, (1, 2, 4, 8), 4, 5, (1, 1, 1, 1, 1)),  # a sixth row is not there
        (3, (1, 2, 4, 8), 4, 8, (1, 1, 1)),
        (3, (4, 8), 4, 8, (4,)),
    ],
)
def test_share_is_done_soonest(count, buckets, parallel, rows, sizes):
    assert openvino.share(count, buckets, parallel, rows) == sizes


def test_share_covers_all_and_stays_in_its_rows():
    for buckets in ((1, 2, 4, 8), (3, 7), (5,), (2, 3, 11)):
        for count in range(1, buckets[-1] + 1):
            for parallel in (1, 2, 3, 16):
                sizes = openvino.share(count, buckets, parallel, buckets[-1])
                assert count <= sum(sizes) <= buckets[-1]
                assert len(set(sizes)) == 1


def test_a_request_that_fails_is_told_when_all_have_ended(graph):
    engine = opened(graph, options=throughput(2))
    engine(images(4))
    good, ended = engine._requests[2], []

    class Failing:
        def __init__(self, reason: str) -> None:
            self.reason = reason

        def __getattr__(self, name: str):
            return lambda *_: None

        def wait(self) -> None:
            ended.append(self.reason)
            raise RuntimeError(f"above\n{self.reason}")

    engine._requests[2] = [Failing("first"), Failing("second")]
    with pytest.raises(EngineError, match=r"tiny\.onnx: openvino: first$"):
        engine(images(4))
    assert ended == ["first", "second"]
    engine._requests[2] = good
    np.testing.assert_allclose(engine(images(4)), expected(images(4)), atol=1e-4)


@pytest.mark.parametrize("options", [Options(), throughput(2)])
def test_two_engines_at_once(quantised, options):
    engines = [opened(quantised[0], precision="int8", options=options) for _ in range(2)]
    batches = [images(3, seed=7), images(5, seed=8)]
    wanted = [engines[0](batch) for batch in batches]
    differ: list[float] = []

    def work(which: int) -> None:
        for _ in range(20):
            differ.append(abs(engines[which](batches[which]) - wanted[which]).max())

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(differ) == 40
    assert max(differ) == 0


# The cache of compiled models


def blobs(tmp_path: Path) -> dict[str, int]:
    folder = tmp_path / "cache" / "fastpose" / "openvino"
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.blob")}


def test_compiled_models_are_kept(graph, quantised, tmp_path):
    for file, precision in ((graph, "f32"), (quantised[0], "int8")):
        before = blobs(tmp_path)
        first = opened(file, precision=precision, buckets=(2,))
        kept = blobs(tmp_path)
        assert len(kept) == len(before) + 1
        again = opened(file, precision=precision, buckets=(2,))
        assert blobs(tmp_path) == kept
        assert again.manifest == first.manifest  # the layers are counted in what was kept, too
        np.testing.assert_array_equal(again(images(4)), first(images(4)))


def test_a_damaged_entry_is_made_anew(graph, tmp_path):
    opened(graph, buckets=(2,))
    (kept,) = (tmp_path / "cache" / "fastpose" / "openvino").glob("*.blob")
    size = kept.stat().st_size
    for left in (0, size // 2):
        kept.write_bytes(kept.read_bytes()[:left])
        engine = opened(graph, buckets=(2,))
        np.testing.assert_allclose(engine(images(3)), expected(images(3)), atol=1e-4)


def test_engines_run_where_nothing_can_be_kept(graph, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    np.testing.assert_allclose(opened(graph)(images(3)), expected(images(3)), atol=1e-4)


def test_an_entry_that_another_process_took_is_done_without(graph, monkeypatch):
    core, asked = openvino._core(), []

    class Raced:
        """Fails where it would keep what it compiles."""

        def compile_model(self, model, device, config):
            asked.append("CACHE_DIR" in config)
            if asked[-1]:
                raise RuntimeError("filesystem error: cannot set permissions: No such file")
            return core.compile_model(model, device, config)

        def __getattr__(self, name):
            return getattr(core, name)

    monkeypatch.setattr(openvino, "_core", Raced)
    engine = opened(graph, buckets=(2,))
    assert asked == [True, False]
    np.testing.assert_allclose(engine(images(2)), expected(images(2)), atol=1e-4)


def test_large_graphs_are_not_kept(graph, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "CACHED_GRAPH", 100)
    opened(graph)
    assert blobs(tmp_path) == {}
