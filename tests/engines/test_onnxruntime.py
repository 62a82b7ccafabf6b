"""The providers of ONNX Runtime: the one that was asked for, or an error; and memory by address."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_network import TINY, make_tiny

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

from fastpose.engines import Options, open_engine, open_graph  # noqa: E402
from fastpose.engines import onnxruntime as runtime  # noqa: E402
from fastpose.engines.engine import Job, Request  # noqa: E402
from fastpose.errors import BackendError, EngineError  # noqa: E402

CPU, CUDA, TENSORRT = runtime.PROVIDERS.values()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, *TINY.size)).astype(np.float32)


def expected(batch: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return make_tiny().predict(torch.from_numpy(np.ascontiguousarray(batch))).numpy()


def assert_close(actual: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * abs(wanted).max())


def request(file: Path, **changes: object) -> Request:
    plain = Request(
        spec=TINY,
        file=file,
        weights_hash="",
        device="cpu",
        precision="auto",
        passed=frozenset(),
        buckets=(1, 4),
        threads=1,
        options=Options(),
    )
    return replace(plain, **changes)


class Library:
    """What onnxruntime-gpu would do: it takes the providers that it can have, and says nothing.

    Attributes:
        has: providers of the build.
        works: those among them whose libraries and GPU are there.
        calls: the providers of each session, as they were asked for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, has: list[str], works: list[str]) -> None:
        self.has, self.works = has, works
        self.calls: list[list] = []
        self._real = ort.InferenceSession
        monkeypatch.setattr(ort, "get_available_providers", lambda: self.has)
        monkeypatch.setattr(ort, "InferenceSession", self._session)

    def _session(self, path, options, providers, enable_fallback):
        assert enable_fallback == 0
        self.calls.append(providers)
        names = [one if isinstance(one, str) else one[0] for one in providers]
        taken = [name for name in names if name in self.works]
        session = self._real(path, options, providers=[CPU])
        return Session(session, taken)


class Session:
    """A session on the CPU that says it is elsewhere."""

    def __init__(self, real, providers: list[str]) -> None:
        self._real, self._providers = real, providers

    def get_providers(self) -> list[str]:
        return self._providers

    def __getattr__(self, name: str):
        return getattr(self._real, name)


# Which provider


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("auto", ("cpu", 0, "cpu", "cpu")),
        ("CPU", ("cpu", 0, "cpu", "cpu")),
        ("cuda", ("cuda", 0, "cuda", "cuda:0")),
        ("cuda:1", ("cuda", 1, "cuda", "cuda:1")),
        ("tensorrt", ("tensorrt", 0, "cuda", "tensorrt:0")),
        ("TensorRT:2", ("tensorrt", 2, "cuda", "tensorrt:2")),
    ],
)
def test_devices(name, place):
    found = runtime.Place.parse(name)
    assert (found.provider, found.index, found.memory, str(found)) == place
    assert runtime.Place.parse(str(found)) == found


@pytest.mark.parametrize("name", ["rocm", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "", "cuda 1"])
def test_no_device(graph, name):
    with pytest.raises(BackendError, match="onnxruntime has no device"):
        runtime.ONNXRuntimeEngine(request(graph, device=name))


def open_as(form: str, graph: Path, device: str) -> object:
    if form == "engine":
        return runtime.ONNXRuntimeEngine(request(graph, device=device))
    return open_graph(graph, kind="onnxruntime", device=device, threads=1)


@pytest.mark.parametrize("device", ["cuda", "tensorrt:1"])
@pytest.mark.parametrize("form", ["engine", "graph"])
def test_a_build_without_the_provider(graph, monkeypatch, tmp_path, device, form):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Library(monkeypatch, [CPU], [CPU])
    wanted = runtime.PROVIDERS[device.partition(":")[0]]
    words = f"was to run on {wanted} and can run on {CPU}: this build has no such .*gpu"
    with pytest.raises(BackendError, match=words) as error:
        open_as(form, graph, device)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("device", "works", "taken"),
    [("cuda", [CPU], CPU), ("tensorrt", [CPU], CPU), ("tensorrt", [CUDA, CPU], f"{CUDA}, {CPU}")],
)
@pytest.mark.parametrize("form", ["engine", "graph"])
def test_a_silent_fall_back_is_an_error(graph, monkeypatch, tmp_path, device, works, taken, form):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Library(monkeypatch, [TENSORRT, CUDA, CPU], works)

    def load(path: str) -> None:
        raise OSError(f"libcublas.so.12: cannot open {path}")

    monkeypatch.setattr(runtime.ctypes, "CDLL", load)
    words = (
        f"was to run on {runtime.PROVIDERS[device]} and has taken {taken}: its library cannot be "
        rf"loaded: libcublas\.so\.12: .*capi/libonnxruntime_providers_{device}\.so"
    )
    with pytest.raises(BackendError, match=words) as error:
        open_as(form, graph, device)
    assert "\n" not in str(error.value)


def test_a_library_that_loads_leaves_the_gpu_at_fault(monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda path: None)
    assert "a GPU or its driver is missing" in runtime._likely_reason("cuda")


def test_a_provider_that_fails_is_told_from_a_graph_that_is_none(graph, monkeypatch, tmp_path):
    library = Library(monkeypatch, [CUDA, CPU], [CUDA, CPU])

    def fails(path, options, providers, enable_fallback):
        if providers != [CPU]:
            raise RuntimeError("somewhere:12 CUDA failure 100\nno CUDA-capable device is detected")
        return library._session(path, options, providers, enable_fallback)

    monkeypatch.setattr(ort, "InferenceSession", fails)
    words = "cannot run on cuda:0: no CUDA-capable device is detected"
    with pytest.raises(BackendError, match=words):
        runtime.ONNXRuntimeEngine(request(graph, device="cuda"))
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(EngineError, match="not a readable ONNX graph"):
        runtime.ONNXRuntimeEngine(request(tmp_path / "text.onnx", device="cuda"))


def test_options_of_the_providers(graph, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = Library(monkeypatch, [TENSORRT, CUDA, CPU], [TENSORRT, CUDA, CPU])
    exact = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
    runtime.ONNXRuntimeEngine(request(graph, device="cuda:1"))
    assert library.calls == [[(CUDA, {"device_id": "1", **exact}), CPU]]

    library.calls.clear()
    engine = runtime.ONNXRuntimeEngine(request(graph, device="tensorrt:1"))
    first, (name, settings) = library.calls[0], library.calls[1][0]
    assert first == [CPU]  # only to be asked what the input is called
    assert library.calls[1][1:] == [(CUDA, {"device_id": "1", **exact}), CPU]
    folder = settings["trt_engine_cache_path"]
    assert Path(folder).is_dir()
    assert Path(folder).is_relative_to(tmp_path)
    assert (name, settings) == (
        TENSORRT,
        {
            "device_id": "1",
            "trt_fp16_enable": "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(Path(folder).parent),
            "trt_profile_min_shapes": "image:1x3x16x24",
            "trt_profile_opt_shapes": "image:4x3x16x24",
            "trt_profile_max_shapes": "image:4x3x16x24",
        },
    )
    assert engine.manifest.device == "tensorrt:1"
    assert_close(engine(images(5)), expected(images(5)))


def test_what_tensorrt_compiled_belongs_to_one_file(graph, monkeypatch, tmp_path):
    onnx = pytest.importorskip("onnx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = Library(monkeypatch, [TENSORRT, CUDA, CPU], [TENSORRT, CUDA, CPU])
    other, model = tmp_path / graph.name, onnx.load(graph)  # the same nodes, other weights
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = (np.frombuffer(weights.raw_data, np.float32) * 2).tobytes()
    onnx.save(model, other)
    folders = []
    for path in (graph, other, graph):
        runtime.ONNXRuntimeEngine(request(path, device="tensorrt"))
        settings = library.calls[-1][0][1]
        folders.append(settings["trt_engine_cache_path"])
    assert folders[0] == folders[2] != folders[1]


def test_work_goes_to_a_stream_that_torch_knows(graph, monkeypatch):
    library = Library(monkeypatch, [TENSORRT, CUDA, CPU], [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda index: SimpleNamespace(cuda_stream=70 + index))
    stream = {"has_user_compute_stream": "1", "user_compute_stream": "71"}
    for device in ("cuda:1", "tensorrt:1"):
        library.calls.clear()
        runtime.ONNXRuntimeEngine(request(graph, device=device))
        for _, settings in library.calls[-1][:-1]:
            assert settings.items() >= stream.items()


# Memory by address


@pytest.mark.parametrize("count", [1, 3, 9])
def test_windows_are_read_and_results_written_where_they_lie(graph, count):
    engine = runtime.ONNXRuntimeEngine(request(graph))
    given = torch.from_numpy(images(count))
    results = engine.enqueue(given)
    assert (results.dtype, results.device.type) == (torch.float32, "cpu")
    assert_close(results.numpy(), expected(images(count)))
    strided = given.contiguous(memory_format=torch.channels_last)
    assert_close(engine.enqueue(strided).numpy(), expected(images(count)))
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.enqueue(given)


@pytest.mark.parametrize(
    "windows",
    [
        torch.zeros(1, 3, 16, 24, dtype=torch.float16),
        torch.zeros(1, 3, 24, 16),
        torch.zeros(3, 16, 24),
        torch.zeros(1, 3, 16, 24, device="meta"),
    ],
    ids=["type", "size", "axes", "device"],
)
def test_other_windows_are_refused(graph, windows):
    engine = runtime.ONNXRuntimeEngine(request(graph))
    words = r"windows must be float32 \[any, 3, 16, 24\] on cpu, got "
    with pytest.raises(EngineError, match=words):
        engine.enqueue(windows)


def test_memory_of_a_gpu_is_bound_as_that(graph, monkeypatch):
    """What goes to the library, and in which order the two streams wait for each other."""
    Library(monkeypatch, [CUDA, CPU], [CUDA, CPU])
    told: list[object] = []

    class Stream(SimpleNamespace):
        def wait_stream(self, other: Stream) -> None:
            told.append((self.name, "waits for", other.name))

    own, current = Stream(name="own", cuda_stream=7), Stream(name="current", cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda index: own)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    engine = runtime.ONNXRuntimeEngine(request(graph, device="cuda"))
    monkeypatch.setattr(engine, "_check_windows", lambda given: None)

    class Binding:
        def bind_input(self, *port) -> None:
            told.append(("input", *port))

        def bind_output(self, *port) -> None:
            told.append(("output", *port))

    def run(binding, options) -> None:
        told.append(options.get_run_config_entry("disable_synchronize_execution_providers"))

    session = SimpleNamespace(io_binding=Binding, run_with_iobinding=run)
    monkeypatch.setattr(engine, "_session", session)
    given = torch.from_numpy(images(2))
    results = engine.enqueue(given)
    assert told == [
        ("input", "image", "cuda", 0, np.float32, (2, 3, 16, 24), given.data_ptr()),
        ("output", "heatmaps", "cuda", 0, np.float32, (2, 14, 4, 6), results.data_ptr()),
        ("own", "waits for", "current"),
        "1",
        ("current", "waits for", "own"),
    ]


# Precision


@pytest.fixture
def half_on_the_cpu(monkeypatch):
    """The library computes float16 in float32 there, which is no precision that we offer."""
    monkeypatch.setitem(runtime.OFFERED, "cpu", ("f32", "f16"))


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        *((device, low) for device in ("cpu", "cuda", "tensorrt") for low in ("bf16", "int8")),
        ("tensorrt", "f16"),  # whose switch for it does not keep to the graph's types
    ],
)
def test_a_precision_that_a_provider_has_not(graph, device, precision):
    with pytest.raises(BackendError, match=f"'{precision}' cannot run in onnxruntime on {device}"):
        runtime.ONNXRuntimeEngine(request(graph, device=device, precision=precision))


def test_f16_runs_a_graph_that_carries_it(tiny, half_on_the_cpu):
    engine = open_engine("tiny", kind="onnxruntime", precision="f16", threads=1)
    assert (engine.manifest.precision, engine.manifest.precision_asked) == ("f16", "f16")
    maps, wanted = engine(images(3)), expected(images(3))
    assert_close(maps, wanted, 1e-2)
    assert abs(maps - wanted).max() > 1e-7 * abs(wanted).max(), "that was float32"
    given = torch.from_numpy(images(3)).half()
    np.testing.assert_array_equal(engine.enqueue(given).numpy(), maps)


def job(**changes: object) -> Job:
    plain = Job(
        spec=TINY,
        weights=None,
        precision="f32",
        device="cpu",
        buckets=(1, 4),
        options=Options(),
        threads=1,
        calibration=None,
        timing_cache=None,
        tell=lambda stage: None,
    )
    return replace(plain, **changes)


def test_build_writes_the_graph_of_the_precision(tiny, half_on_the_cpu, tmp_path):
    found = {}
    for precision in ("f32", "f16"):
        path = tmp_path / f"{precision}{runtime.suffix(precision, Options())}"
        stages: list[str] = []
        assert runtime.build(job(precision=precision, tell=stages.append), path) == [path]
        assert stages == ["export"]
        found[precision] = runtime.ONNXRuntimeEngine(request(path, precision=precision))
        assert_close(found[precision](images(2)), expected(images(2)), 1e-2)
    with pytest.raises(EngineError, match=r"f16\.onnx: precision: the graph is in f16, asked was"):
        runtime.ONNXRuntimeEngine(request(tmp_path / "f16.onnx", precision="f32"))
    major = ort.__version__.partition(".")[0]
    assert runtime.ties(Options(), "cpu") == {"onnxruntime": major}


def test_build_refuses_what_would_not_run(tiny, tmp_path):
    with pytest.raises(BackendError, match="'f16' cannot run in onnxruntime on cpu; it offers: f3"):
        runtime.build(job(precision="f16"), tmp_path / "a.onnx")
    with pytest.raises(BackendError, match="'bf16' cannot run in onnxruntime on cuda:0"):
        runtime.build(job(precision="bf16", device="cuda"), tmp_path / "a.onnx")
    assert list(tmp_path.glob("*.onnx")) == []


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("device", "precision", "tolerance"),
    [("cuda", "f32", 1e-3), ("cuda", "f16", 1e-2), ("tensorrt", "f32", 1e-3)],
)
def test_on_cuda(tiny, device, precision, tolerance):
    if runtime.PROVIDERS[device] not in ort.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    engine = open_engine("tiny", kind="onnxruntime", device=device, precision=precision)
    assert_close(engine(images(5)), expected(images(5)), tolerance)
    given = torch.from_numpy(images(5)).cuda()
    for windows in (given, -given):  # each run reads what the current stream has just written
        results = engine.enqueue(windows.half() if precision == "f16" else windows)
        assert_close(results.cpu().numpy(), expected(windows.cpu().numpy()), tolerance)
