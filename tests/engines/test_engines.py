from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_network import TINY, make_tiny, write_card

from fastpose import models
from fastpose.engines import Engine, open_engine, open_graph
from fastpose.engines.engine import split
from fastpose.engines.manifest import file_hash
from fastpose.errors import BackendError, EngineError, ModelError, WeightsError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

KINDS = ("openvino", "onnxruntime", "torch")
GRAPHS = KINDS[:2]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, *TINY.size)).astype(np.float32)


def expected(batch: np.ndarray, network=None) -> np.ndarray:
    with torch.inference_mode():
        maps = (network or make_tiny()).predict(torch.from_numpy(np.ascontiguousarray(batch)))
    return maps.numpy()


def assert_close(actual: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-4) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * abs(wanted).max(initial=0))


def open_tiny(kind: str, **options: object) -> Engine:
    return open_engine("tiny", kind=kind, threads=1, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 11])  # the largest bucket is 4
def test_engine_equals_the_module(tiny, kind, count):
    engine = open_tiny(kind, buckets=(4, 1, 2))
    assert (engine.manifest.kind, engine.manifest.precision) == (kind, "f32")
    assert engine.manifest.buckets == (1, 2, 4)
    assert_close(engine(images(count)), expected(images(count)))


@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_read_from_the_buffer_and_left_there(tiny, kind):
    engine = open_tiny(kind, buckets=(1, 4))
    for count in (4, 3, 1):
        buffer = engine.buffer(count)
        assert buffer.shape == (count, 3, *TINY.size)
        assert buffer.flags.c_contiguous
        assert buffer.ctypes.data % 64 == 0
        buffer[...] = images(count)
        maps = engine.run(count)
        assert maps.shape == (count, 14, *TINY.cells)
        assert_close(maps, expected(images(count)))
        np.testing.assert_array_equal(buffer, images(count))


@pytest.mark.parametrize("kind", KINDS)
def test_strided_input_and_no_input(tiny, kind):
    engine = open_tiny(kind)
    strided = np.ascontiguousarray(images(3)[::-1, :, :, ::-1])[::-1, :, :, ::-1]
    assert not strided.flags.c_contiguous
    np.testing.assert_array_equal(engine(strided), engine(np.ascontiguousarray(strided)))
    assert engine(images(0)).shape == (0, 14, *TINY.cells)


@pytest.mark.parametrize("kind", KINDS)
def test_results_of_call_belong_to_the_caller(tiny, kind):
    engine = open_tiny(kind)
    first = engine(images(2))
    kept = first.copy()
    engine(images(2) + 1)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_named(tiny, kind):
    engine = open_tiny(kind, buckets=(2,))
    with pytest.raises(ValueError, match=r"float32 \[N, 3, 16, 24\], got float64"):
        engine(images(1).astype(np.float64))
    with pytest.raises(ValueError, match=r"got float32 \[1, 3, 24, 16\]"):
        engine(images(1).swapaxes(2, 3))
    for count in (0, 3, -1):
        with pytest.raises(ValueError, match=f"count must be 1 to 2, got {count}"):
            engine.buffer(count)
        with pytest.raises(ValueError, match="count must be 1 to 2"):
            engine.run(count)
    with pytest.raises(ValueError, match="batch must be a numpy array, got list"):
        engine(images(1).tolist())
    for buckets in ((0, 2), (), 4):
        with pytest.raises(ValueError, match="buckets must be positive"):
            open_tiny(kind, buckets=buckets)
    for threads in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"threads must be a whole number from 1, .*{threads}"):
            open_engine("tiny", kind=kind, threads=threads)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_engine_says_so(tiny, kind):
    engine = open_tiny(kind)
    engine.close()
    engine.close()
    for use in (lambda: engine.buffer(1), lambda: engine.run(1), lambda: engine(images(1))):
        with pytest.raises(EngineError, match="closed"):
            use()


@pytest.mark.parametrize("kind", KINDS)
def test_threads_with_an_engine_each(tiny, kind):
    engines = [open_tiny(kind) for _ in range(2)]
    assert not engines[0].shareable
    wanted = [engines[0](images(n)) for n in (3, 5)]
    found: list[list[np.ndarray]] = [[], []]

    def work(which: int) -> None:
        for _ in range(20):
            found[which].append(engines[which](images((3, 5)[which])))

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in range(2):
        assert len(found[which]) == 20
        for maps in found[which]:
            assert_close(maps, wanted[which], 1e-6)


@pytest.mark.parametrize(
    ("count", "buckets", "sizes"),
    [
        (1, (1, 2, 4, 8), (1,)),
        (5, (1, 2, 4, 8), (4, 1)),
        (7, (1, 2, 4, 8), (4, 2, 1)),
        (8, (1, 2, 4, 8), (8,)),
        (7, (1, 8), (8,)),  # seven runs of one cost more than a row of nothing
        (3, (4, 8), (4,)),
        (18, (8, 20), (20,)),
    ],
)
def test_split_wastes_least(count, buckets, sizes):
    assert split(count, buckets) == sizes


def test_split_never_outgrows_the_buffer():
    for buckets in ((1, 2, 4, 8, 16, 32), (3, 7), (5,), (2, 3, 11)):
        for count in range(1, buckets[-1] + 1):
            sizes = split(count, buckets)
            assert count <= sum(sizes) <= buckets[-1]
            assert set(sizes) <= set(buckets)


# Precision


def lists_bf16() -> bool:
    from fastpose.engines.openvino import capabilities

    return "bf16" in capabilities()["CPU"]


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_bf16_is_coarse_and_reported(tiny, kind):
    if kind == "openvino" and not lists_bf16():
        pytest.skip("openvino does not list BF16 on this CPU")
    engine = open_tiny(kind, precision="bf16")
    assert (engine.manifest.precision, engine.manifest.precision_asked) == ("bf16", "bf16")
    maps, wanted = engine(images(5)), expected(images(5))
    assert_close(maps, wanted, 5e-2)
    assert abs(maps - wanted).max() > 1e-4 * abs(wanted).max(), "that was float32"


@pytest.mark.parametrize("passes", [True, False])
def test_auto_takes_bf16_only_where_the_card_allows_it(tiny, passes):
    if not lists_bf16():
        pytest.skip("openvino does not list BF16 on this CPU")
    write_card(tiny, low_precision={"bf16": {"passed": passes}})
    engine = open_tiny("openvino")
    assert engine.manifest.precision == ("bf16" if passes else "f32")
    assert engine.manifest.precision_asked == "auto"


def test_bf16_needs_a_device_that_lists_it(tiny, monkeypatch):
    from fastpose.engines import openvino

    monkeypatch.setattr(openvino, "_offered", lambda device: ["f32"])
    write_card(tiny, low_precision={"bf16": {"passed": True}})
    assert open_tiny("openvino").manifest.precision == "f32"
    with pytest.raises(BackendError, match=r"'bf16' cannot run in openvino on CPU.*f32"):
        open_tiny("openvino", precision="bf16")


@pytest.mark.parametrize(("kind", "precision"), [("onnxruntime", "bf16"), ("torch", "f16")])
def test_a_precision_that_is_not_offered_is_refused(tiny, kind, precision):
    with pytest.raises(BackendError, match=f"'{precision}' cannot run in {kind} on cpu"):
        open_tiny(kind, precision=precision)


# Which runtime


def test_importing_engines_loads_no_runtime():
    code = (
        "import sys, fastpose.engines, fastpose.models.trained\n"
        "loaded = {'openvino', 'onnxruntime', 'torch', 'onnx', 'cv2'} & set(sys.modules)\n"
        "assert loaded <= {'cv2'}, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_trained_graph_runs_without_torch(tiny, graph):
    np.save(tiny / "images.npy", images(3))
    code = (
        "import sys, json, numpy as np\n"
        "sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from fastpose import engines, models\n"
        "from fastpose.models import trained, spec\n"
        "folder = Path(sys.argv[1])\n"
        "trained.folder = lambda: folder\n"
        "card = trained.card('tiny')\n"
        "models.MODELS['tiny'] = spec.ModelSpec.from_dict(card['spec'])\n"
        "engine = engines.open_engine('tiny')\n"
        "assert engine.manifest.kind == 'openvino', engine.manifest\n"
        "np.save(folder / 'maps.npy', engine(np.load(folder / 'images.npy')))\n"
        "assert sys.modules['torch'] is None\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny)], check=True)
    assert_close(np.load(tiny / "maps.npy"), expected(images(3)))


@pytest.mark.parametrize(
    ("missing", "kind"), [((), "openvino"), (GRAPHS[:1], "onnxruntime"), (GRAPHS, "torch")]
)
def test_auto_takes_the_first_runtime_that_is_there(tiny, monkeypatch, missing, kind):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    assert open_engine("tiny").manifest.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_named_runtime_that_is_missing_says_what_to_install(tiny, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(BackendError, match=f"engine '{kind}' cannot run; install .*{kind}"):
        open_tiny(kind)


def test_no_runtime_at_all(tiny, monkeypatch):
    for name in KINDS:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match="no runtime is installed; install the package openvino"):
        open_engine("tiny")


@pytest.mark.skipif("tensorrt" in sys.modules, reason="says something else where it is installed")
def test_tensorrt_is_refused_in_one_line(tiny):
    wanted = r"cannot run; install the extra fastpose-inference\[tensorrt\]"
    with pytest.raises(BackendError, match=wanted) as error:
        open_engine("tiny", kind="tensorrt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "device"), [("openvino", "cuda"), ("onnxruntime", "gpu"), ("torch", "toaster")]
)
def test_an_unknown_device_is_refused(tiny, kind, device):
    with pytest.raises(BackendError, match=device):
        open_tiny(kind, device=device)


def test_unknown_names(tiny):
    with pytest.raises(BackendError, match=r"'tvm' .*openvino, onnxruntime, torch"):
        open_engine("tiny", kind="tvm")
    with pytest.raises(ModelError, match=r"unknown model 'hrnet'.*tiny"):
        open_engine("hrnet")


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-3), ("bf16", 5e-2), ("f16", 1e-2)])
def test_torch_on_cuda(tiny, precision, tolerance):
    engine = open_engine("tiny", device="cuda", precision=precision)
    assert (engine.manifest.kind, engine.manifest.precision) == ("torch", precision)
    assert_close(engine(images(5)), expected(images(5)), tolerance)


# Where the network comes from


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_weights_warns_and_has_the_same_random_ones(registered, kind):
    from fastpose.engines.build import random_network

    with pytest.warns(UserWarning, match="tiny has no trained weights here") as caught:
        engine = open_tiny(kind)
    assert caught[0].filename == __file__
    assert engine.manifest.weights_hash == ""
    assert_close(engine(images(3)), expected(images(3), random_network("tiny")))


def test_an_export_is_kept_in_the_cache(registered, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "fastpose")
    with pytest.warns(UserWarning, match="random"):
        open_tiny("openvino")
    folder = tmp_path / "cache" / "fastpose"
    told = f"tiny: writing its ONNX graph into {folder}, once; this may take a minute"
    assert caplog.messages == [told]
    (kept,) = folder.glob("*.onnx")
    assert kept.name.startswith("tiny-")
    written = kept.stat().st_mtime_ns
    with pytest.warns(UserWarning, match="random"):
        open_engine("tiny", kind="onnxruntime")
    assert kept.stat().st_mtime_ns == written
    assert caplog.messages == [told]
    monkeypatch.setitem(models.MODELS, "tiny", replace(TINY, size=(24, 24)))
    with pytest.warns(UserWarning, match="random"):
        assert open_engine("tiny")(np.zeros((1, 3, 24, 24), np.float32)).shape[2:] == (6, 6)


def test_weights_without_a_graph_are_exported(tiny):
    (tiny / "tiny.onnx").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = open_tiny("openvino")
    assert len(engine.manifest.weights_hash) == 64
    assert_close(engine(images(2)), expected(images(2)))


def test_torch_is_never_given_random_weights_for_a_trained_model(tiny):
    (tiny / "tiny.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"tiny\.safetensors"):
        open_engine("tiny", kind="torch")


def test_a_graph_of_another_network_is_refused(tiny, monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", replace(TINY, size=(32, 24)))
    for kind in GRAPHS:
        with pytest.raises(EngineError, match=r"input must be one float32 \[any, 3, 32, 24\], got"):
            open_tiny(kind)


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("content", [b"", b"not a graph\n" * 9, None])
def test_a_corrupt_graph_is_named_in_one_line(tiny, kind, content):
    path = tiny / "tiny.onnx"
    path.write_bytes(path.read_bytes()[:999] if content is None else content)
    with pytest.raises(WeightsError, match=r"tiny\.onnx: not the graph that tiny\.json describes"):
        open_tiny(kind)
    write_card(tiny)
    with pytest.raises(EngineError, match=r"tiny\.onnx: ") as error:
        open_tiny(kind)
    assert "\n" not in str(error.value)


# Any graph


@pytest.mark.parametrize("kind", ["auto", *GRAPHS])
def test_open_graph(graph, kind):
    opened = open_graph(graph, kind=kind, threads=1)
    assert (opened.kind, opened.precision) == ("openvino" if kind == "auto" else kind, "f32")
    assert opened.inputs == {"image": ((None, 3, 16, 24), np.dtype(np.float32))}
    assert opened.outputs == {"heatmaps": ((None, 14, 4, 6), np.dtype(np.float32))}
    results = opened({"image": images(3)[:, :, ::1]})
    kept = results["heatmaps"].copy()
    assert_close(kept, expected(images(3)))
    assert opened({"image": images(1)})["heatmaps"].shape[0] == 1
    np.testing.assert_array_equal(results["heatmaps"], kept)  # owned by the caller
    strided = images(4)[::2]
    assert_close(opened({"image": strided})["heatmaps"], expected(strided))
    with pytest.raises(ValueError, match=r"feeds must be \['image'\], got \['picture'\]"):
        opened({"picture": images(1)})
    with pytest.raises(ValueError, match=r"image must be float32 \[any, 3, 16, 24\], got float64"):
        opened({"image": images(1).astype(np.float64)})
    with pytest.raises(ValueError, match=r"got float32 \[1, 3, 16, 23\]"):
        opened({"image": images(1)[..., 1:]})
    opened.close()
    with pytest.raises(EngineError, match="closed"):
        opened({"image": images(1)})


@pytest.fixture
def odd_graph(tmp_path) -> Path:
    """Several inputs and outputs of several types, an output that is an input, a scalar."""
    onnx = pytest.importorskip("onnx")
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    real, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    made = onnx.helper.make_graph(
        [
            node("Add", ["b", "a"], ["sum"]),
            node("Identity", ["sum"], ["same"]),
            node("Shape", ["a"], ["axes"]),
            node("ReduceSum", ["a"], ["total"], keepdims=0),
        ],
        "odd",
        [info("b", real, ["n", 2]), info("a", real, ["n", 2])],
        [
            info("same", real, ["n", 2]),
            info("sum", real, ["n", 2]),
            info("axes", whole, [2]),
            info("total", real, []),
        ],
    )
    path = tmp_path / "odd.onnx"
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("kind", GRAPHS)
def test_every_output_has_its_own_name(odd_graph, kind):
    opened = open_graph(odd_graph, kind=kind, threads=1)
    assert list(opened.inputs) == ["b", "a"]
    assert list(opened.outputs) == ["same", "sum", "axes", "total"]
    a, b = np.float32([[1, 2], [3, 4], [5, 6]]), np.float32([[10, 20], [30, 40], [50, 60]])
    results = opened({"a": a, "b": b})
    np.testing.assert_array_equal(results["same"], a + b)
    np.testing.assert_array_equal(results["sum"], a + b)
    np.testing.assert_array_equal(results["axes"], [3, 2])
    assert results["axes"].dtype == np.int64
    assert results["total"] == 21


def test_open_graph_of_what_is_none(tmp_path, graph):
    with pytest.raises(EngineError, match=r"gone\.onnx: no such file"):
        open_graph(tmp_path / "gone.onnx")
    (tmp_path / "text.onnx").write_text("hello\n" * 20)
    with pytest.raises(ValueError, match="threads must be a whole number from 1"):
        open_graph(graph, threads=0)
    for kind in GRAPHS:
        with pytest.raises(EngineError, match=r"text\.onnx: not a readable ONNX graph: ") as error:
            open_graph(tmp_path / "text.onnx", kind=kind)
        assert "\n" not in str(error.value)
    with pytest.raises(BackendError, match="'torch' cannot be used here"):
        open_graph(graph, kind="torch")
    with pytest.raises(BackendError, match="precision 'int8'"):
        open_graph(graph, precision="int8")


def test_a_file_is_hashed_without_being_in_memory(tmp_path):
    file = tmp_path / "large.bin"
    content = np.random.default_rng(0).bytes(1 << 20) * 16 + b"the end"
    file.write_bytes(content)
    tracemalloc.start()
    try:
        found = file_hash(file)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == hashlib.sha256(content).hexdigest()
    assert most < 4 << 20
    with pytest.raises(EngineError, match=r"none\.bin: cannot be read: No such file"):
        file_hash(tmp_path / "none.bin")
