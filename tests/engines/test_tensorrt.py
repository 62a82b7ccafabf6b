"""TensorRT against a double: no machine of the project has the libraries."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import json
import platform
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from types import ModuleType
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt import STREAM, Memory, State, answer
from tiny_network import TINY

from fastpose import engines
from fastpose.crop import cut_windows, sample_counts
from fastpose.engines import source
from fastpose.engines.engine import Job, Request
from fastpose.engines.manifest import Manifest, file_hash, hash_files
from fastpose.engines.options import Options
from fastpose.errors import BackendError, EngineError
from fastpose.geometry import boxes_to_affines
from fastpose.models import model_spec

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

FIND_GRAPH = source.find_graph
ROOT = Path(__file__).parents[2]
MAPS = (14, 4, 6)
BUCKETS = (1, 4, 8)


class Place:
    """The module under test on a machine that is made up.

    Attributes:
        state: of the double of tensorrt.
        module: fastpose.engines.tensorrt.
        memory: what `open_memory` gives.
        stages: what a build has told.
        graphs: what was asked of `source.find_graph`.
    """

    def __init__(self, folder: Path, graph: Path) -> None:
        self.folder = folder
        copyfile(graph, folder / "tiny.onnx")
        self.state, self.memory = State(), Memory()
        self.stages: list[str] = []
        self.graphs: list[tuple[Any, ...]] = []
        self.module: Any = None

    def job(self, **changes: Any) -> Job:
        job = Job(
            spec=TINY,
            weights=None,
            precision="f32",
            device="auto",
            buckets=BUCKETS,
            options=Options(),
            threads=None,
            calibration=None,
            timing_cache=self.folder / "cache" / "timing",
            tell=self.stages.append,
        )
        return replace(job, **changes)

    def built(self, **changes: Any) -> Path:
        files = self.module.build(self.job(**changes), self.folder / "tiny.plan")
        return files[0]

    def opened(self, file: Path | None = None, **changes: Any) -> Any:
        request = Request(
            spec=TINY,
            file=file or self.built(),
            weights_hash="ab",
            device="auto",
            precision="f16",
            passed=frozenset(),
            buckets=BUCKETS,
            threads=None,
        )
        return self.module.TensorRTEngine(replace(request, **changes))


@pytest.fixture
def place(tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place(tmp_path, graph)
    use(place, monkeypatch)
    yield place
    vars(engines).pop("tensorrt", None)


def use(place: Place, monkeypatch: pytest.MonkeyPatch, version: str = "11.4.0.106") -> None:
    """Import the module with the double in the place of tensorrt."""

    def find_graph(
        spec: Any, weights: Any = None, options: Any = None, precision: str = "f32"
    ) -> tuple[Path, str]:
        place.graphs.append((spec.name, weights, options, precision))
        return place.folder / "tiny.onnx", "hash"

    fake = fake_tensorrt.make(place.state, version, place.memory)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.delitem(sys.modules, "fastpose.engines.tensorrt", raising=False)
    place.module = importlib.import_module("fastpose.engines.tensorrt")
    monkeypatch.setattr(place.module, "open_memory", lambda kind, device: place.memory)
    monkeypatch.setattr(place.module, "compile_peaks", no_kernel)  # whatever triton does here
    monkeypatch.setattr(source, "find_graph", find_graph)
    as_tensor = torch.as_tensor

    def of_the_double(given: Any, device: Any = None) -> Any:
        if isinstance(given, fake_tensorrt.Array):
            return torch.from_numpy(np.asarray(given))
        return as_tensor(given, device=device)

    monkeypatch.setattr(torch, "as_tensor", of_the_double)


def no_kernel(*given: Any) -> Any:
    raise BackendError("there is no triton on this machine")


def windows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, 16, 24), np.float32)


# Building


def test_a_plan_has_one_profile_for_each_batch_size_and_nothing_between(place) -> None:
    file = place.built()
    assert file.name == "tiny.plan"
    shapes = [[size, 3, 16, 24] for size in BUCKETS]
    assert json.loads(file.read_bytes()) == [{"image": [shape] * 3} for shape in shapes]
    assert place.stages == ["export", "compile", "compile: Tactics"]
    assert place.memory.closed


@pytest.mark.parametrize("version", ["10.13.3.9", "10.16.1.11", "11.4.0.106"])
def test_networks_are_strongly_typed_and_no_precision_is_asked_of_the_builder(
    place, monkeypatch, version
) -> None:
    use(place, monkeypatch, version)
    place.built(precision="f16")
    assert place.state.called("create_network") == [[2]]  # 1 << STRONGLY_TYPED
    assert place.state.called("flags") == [[frozenset(), "NONE"]]  # nor TF32
    assert place.graphs == [("tiny", None, Options(), "f16")]


def test_options_reach_the_builder(place) -> None:
    options = Options(
        workspace=512,
        hardware_compatible="same-capability",
        refit=True,
    )
    place.built(options=options, threads=3)
    place.built(options=Options(version_compatible=True))
    assert place.state.called("set_memory_pool_limit") == [["WORKSPACE", 512 << 20]]
    assert place.state.called("flags") == [
        [frozenset({"REFIT"}), "SAME_COMPUTE_CAPABILITY"],
        [frozenset({"VERSION_COMPATIBLE"}), "NONE"],
    ]
    assert place.state.called("threads") == [[3], [0]]


def test_a_level_that_this_version_lacks_is_refused(place, monkeypatch) -> None:
    levels = sys.modules["tensorrt"].HardwareCompatibilityLevel
    kept = {level.name: level for level in levels if level.name != "SAME_COMPUTE_CAPABILITY"}
    monkeypatch.setattr(
        sys.modules["tensorrt"], "HardwareCompatibilityLevel", type("Levels", (), kept)
    )
    with pytest.raises(BackendError, match=r"11\.4.* has no level SAME_COMPUTE_CAPABILITY"):
        place.built(options=Options(hardware_compatible="same-capability"))


def test_all_errors_of_the_parser_are_told(place) -> None:
    place.state.wrong.add("parse_from_file")
    with pytest.raises(EngineError) as raised:
        place.built()
    text = str(raised.value)
    assert "unsupported mode (node up, Resize); no weights" in text
    assert "tiny.onnx" in text
    assert "\n" not in text
    assert not (place.folder / "tiny.plan").exists()


def test_a_build_that_gives_nothing_raises_with_the_log(place) -> None:
    place.state.wrong.add("build_serialized_network")
    with pytest.raises(EngineError) as raised:
        place.built()
    assert str(raised.value).endswith("not built: no tactic for conv1; and so on")
    assert place.memory.closed


@pytest.mark.parametrize(
    "call", ["create_network", "create_builder_config", "create_optimization_profile"]
)
def test_null_is_an_error(place, call) -> None:
    place.state.wrong.add(call)
    with pytest.raises(EngineError):
        place.built()


def test_a_profile_that_is_not_taken_is_an_error(place) -> None:
    place.state.wrong.add("add_optimization_profile")
    with pytest.raises(EngineError, match=r"no profile for \[1, 3, 16, 24\]"):
        place.built()


def test_a_graph_of_another_input_is_refused(place) -> None:
    place.state.input = ("image", (8, 3, 16, 24))
    with pytest.raises(EngineError, match=r"must be \[-1, 3, 16, 24\], got \[8, 3, 16, 24\]"):
        place.built()


def test_ctrl_c_stops_the_build(place) -> None:
    def tell(stage: str) -> None:
        if stage == "compile: Tactics":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.built(tell=tell)
    assert "build_serialized_network" not in [name for name, *_ in place.state.calls]
    assert place.memory.closed


@pytest.mark.parametrize(
    ("precision", "capability", "needed"), [("bf16", (7, 5), "8.0"), ("int8", (5, 3), "6.1")]
)
def test_a_precision_that_the_gpu_lacks_is_refused(place, precision, capability, needed) -> None:
    place.memory.capability = capability
    with pytest.raises(BackendError, match=f"{precision}.*Double 1.*{needed} is needed"):
        place.built(precision=precision)
    assert place.graphs == []


def test_what_cannot_be_used_is_not_built(place) -> None:
    with pytest.raises(BackendError, match="refit and version_compatible exclude each other"):
        place.built(options=Options(version_compatible=True, refit=True))
    place.memory.capability = (7, 5)
    with pytest.raises(BackendError, match=r"needs compute capability 8\.0, Double 1 has 7\.5"):
        place.built(options=Options(hardware_compatible="ampere"))
    assert place.graphs == []


def test_int8_takes_a_graph_with_scales(place, monkeypatch) -> None:
    given = []
    quantize = ModuleType("fastpose.engines.quantize")

    def modelopt_onnx(job: Job, graph: Path, out: Path) -> Path:
        given.append((job.precision, graph.name, out.name))
        return out

    quantize.modelopt_onnx = modelopt_onnx
    monkeypatch.setitem(sys.modules, "fastpose.engines.quantize", quantize)
    place.built(precision="int8", calibration=windows(2))
    assert place.stages[:3] == ["export", "calibrate", "compile"]
    assert place.graphs[0][3] == "f32"
    assert given == [("int8", "tiny.onnx", "tiny.qdq.onnx")]
    assert place.state.called("parse_from_file") == [[str(place.folder / "tiny.qdq.onnx")]]


# The timing cache


def timings(place: Place) -> Path:
    (path,) = (place.folder / "cache").glob("*")
    return path


def test_timings_are_kept_for_this_gpu_version_and_driver(place) -> None:
    place.built()
    assert timings(place).name == "timing-Double-1-11.4.0.106-13.0.cache"
    assert timings(place).read_bytes() == b"timed"
    place.state.calls.clear()
    place.built()
    assert place.state.called("create_timing_cache")[0] == [b"timed"]
    assert place.state.called("set_timing_cache") == [[("timed",), False]]


def test_timings_that_another_build_writes_meanwhile_are_joined(place) -> None:
    place.built()

    def tell(stage: str) -> None:
        if stage == "compile: Tactics":
            timings(place).write_bytes(b"other")

    place.built(tell=tell)
    assert place.state.called("combine")[-1] == [("other",), False]
    assert timings(place).read_bytes() == b"timed timed other"


def test_timings_that_do_not_fit_are_replaced(place) -> None:
    place.built()
    timings(place).write_bytes(b"foreign")
    place.state.calls.clear()
    place.state.wrong |= {"set_timing_cache", "combine"}
    place.built()
    assert place.state.called("set_timing_cache") == [[("foreign",), False], [(), False]]
    assert timings(place).read_bytes() == b"timed"


def test_a_folder_that_cannot_be_written_does_not_cost_the_plan(place, caplog) -> None:
    (place.folder / "cache").write_text("a file")
    assert place.built().is_file()
    assert "timings are not kept" in caplog.text


# What a plan is tied to


def test_a_plan_is_tied_to_version_and_gpu(place) -> None:
    assert place.module.ties(Options(), "auto") == {
        "tensorrt": "11.4.0.106",
        "platform": f"{platform.system()} {platform.machine()}",
        "compute capability": "9.0",
        "gpu": "Double 1",
    }
    assert place.memory.closed


def test_hardware_compatible_plans_name_what_they_need(place) -> None:
    same = place.module.ties(Options(hardware_compatible="same-capability"), "auto")
    assert "gpu" not in same
    assert same["compute capability"] == "9.0"
    ampere = Options(hardware_compatible="ampere")
    assert place.module.ties(ampere, "auto")["compute capability"] == "8.0 or later"
    place.memory.capability = (7, 5)
    assert place.module.ties(ampere, "auto")["compute capability"] == "7.5"


@pytest.mark.parametrize(
    ("built", "fits"), [("10.13.3.9", True), ("11.4.0.106", True), ("11.4.1.2", False)]
)
def test_version_compatible_plans_run_later(place, built, fits) -> None:
    options = Options(version_compatible=True, host_code=True)
    found = place.module.ties(options, "auto", {"tensorrt": built})["tensorrt"]
    assert found == (built if fits else "11.4.0.106")
    assert place.module.ties(Options(), "auto", {"tensorrt": built})["tensorrt"] == "11.4.0.106"


@pytest.mark.parametrize("version", ["10.2.0", "8.6.1", "10.12.0.36", "12.0.0"])
def test_versions_that_this_is_not_written_for_are_refused(place, monkeypatch, version) -> None:
    file = refittable(place)
    use(place, monkeypatch, version)
    for ask in (
        lambda: place.module.refit(file, Path("new.safetensors")),
        lambda: place.module.ties(Options(), "auto"),
        place.built,
        lambda: place.opened(file),
    ):
        with pytest.raises(BackendError, match=f"tensorrt {version} cannot be used: 10.13 to 11"):
            ask()


@pytest.mark.parametrize(
    ("field", "value", "here"),
    [("tensorrt", "11.3.0.1", "11.4.0.106"), ("gpu", "Double 2", "Double 1")],
)
def test_another_machine_names_the_field(place, field, value, here) -> None:
    manifest = place.opened().manifest
    other = replace(manifest, ties={**manifest.ties, field: value})
    other.check_ties(Path("x.json"), {**manifest.ties, field: value})
    with pytest.raises(EngineError, match=f"{field}: .* built for {value}, .* has {here}"):
        other.check_ties(Path("x.json"), place.module.ties(Options(), "auto", other.ties))


# Running


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 19])
def test_windows_go_in_and_results_come_out(place, count) -> None:
    engine = place.opened()
    given = windows(count)
    np.testing.assert_allclose(engine(given), answer(given, MAPS), atol=1e-6)


def test_nobody_is_no_run(place) -> None:
    engine = place.opened()
    assert not engine.buffer(8).any()
    assert engine(windows(0)).shape == (0, *MAPS)
    assert place.state.called("execute_async_v3") == []


def test_a_batch_takes_the_next_size_that_holds_it(place) -> None:
    engine = place.opened()
    engine(windows(19))
    assert [size for size, _ in place.state.called("execute_async_v3")] == [8, 8, 4]


def test_the_manifest_says_what_runs(place) -> None:
    file = place.built()
    manifest = place.opened(file, options=Options(workspace=3)).manifest
    assert (manifest.kind, manifest.device) == ("tensorrt", "cpu")
    assert manifest.precision == "f16"
    assert manifest.layers == {"f16": 2, "f32": 1, "bf16": 1}
    assert manifest.versions["tensorrt"] == "11.4.0.106"
    assert manifest.ties == place.module.ties(Options(), "auto")
    assert manifest.options == Options(workspace=3)
    assert list(manifest.files) == ["tiny.plan"]
    manifest.check_files(file.with_suffix(".json"))


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_layers_are_counted_in_both_schemas(place, monkeypatch, version) -> None:
    use(place, monkeypatch, version)
    assert place.opened().manifest.layers == {"f16": 2, "f32": 1, "bf16": 1}


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Channel major FP16 format where channel % 8 == 0", "f16"),
        ("Row major linear BFloat16", "bf16"),
        ("BF16", "bf16"),
        ("Row major linear FP32", "f32"),
        ("FP8", "fp8"),
        ("N/A due to dynamic shapes", ""),
    ],
)
def test_types_are_read_as_the_inspector_writes_them(place, text, precision) -> None:
    assert place.module._precision_named(text) == precision


@pytest.mark.parametrize("told", [[], ["names", "alone"]])
def test_where_no_layer_is_told_the_precision_is_the_asked_one_and_uncounted(place, told) -> None:
    place.state.layers = told
    manifest = place.opened().manifest
    assert manifest.layers == {}  # with which no verification passes
    assert manifest.precision == manifest.precision_asked == "f16"


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        # what a fused kernel is called tells more than what it reads
        (
            {
                "LayerType": "fusion",
                "Name": "conv1 + relu1",
                "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc",
                "Inputs": [{"Format/Datatype": "Float"}],
            },
            "f16",
        ),
        (
            {
                "LayerType": "ForeignNode",
                "Name": "{ForeignNode[conv1...conv9]}",
                "TacticName": "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n",
            },
            "bf16",
        ),
        (
            {
                "LayerType": "Myelin",
                "Name": "conv2",
                "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw",
            },
            "int8",
        ),
        (
            {
                "LayerType": "fusion",
                "Name": "attention",
                "TacticName": "_gemm_mha_v2_0x1234567890abcdef",
                "Inputs": [{"Format/Datatype": "BFloat16"}],
            },
            "bf16",
        ),
        (
            {
                "LayerType": "kgen",
                "Name": "__myl_FcAddMul_myl0_4",
                "TacticName": "__myl_FcAddMul_0xf16f16aabbccddee",
                "Inputs": [{"Format/Datatype": "Half"}],
            },
            "f16",
        ),
        (  # f32 was asked for and multiplied with 10 bits: that is neither
            {
                "LayerType": "fusion",
                "Name": "conv3",
                "TacticName": "sm80_xmma_gemm_tf32f32_tf32f32_f32",
            },
            "tf32",
        ),
        # nothing that multiplies
        (
            {
                "LayerType": "kgen",
                "Name": "__myl_CastConvertMulAdd_myl0_3",
                "TacticName": "__myl_CastConvertMulAdd_0xf2543c36",
                "Inputs": [{"Format/Datatype": "Half"}],
            },
            "",
        ),
        ({"LayerType": "Reformat", "Name": "conv1.weight", "TacticName": "gemm_f16f16"}, ""),
        ({"LayerType": "ForeignNode", "Name": "{ForeignNode[conv1...conv9]}"}, ""),  # not told
    ],
)
def test_fused_layers_are_counted_by_what_their_kernels_multiply(place, layer, precision) -> None:
    assert place.module._precision(layer) == precision


def test_a_context_for_each_size_and_addresses_set_once(place) -> None:
    engine = place.opened()
    assert place.state.called("create_execution_context") == [["USER_MANAGED"]] * 3
    assert place.state.called("set_optimization_profile_async") == [
        [index, STREAM] for index in range(3)
    ]
    place.state.calls.clear()
    for seed in range(5):
        engine(windows(3, seed))
    set_at = place.state.called("set_tensor_address")
    assert [given[:2] for given in set_at] == [[4, "image"]]
    assert place.state.called("set_input_shape") == []
    assert place.state.called("execute_async_v3") == [[4, STREAM]] * 5


def test_results_on_the_device_stay_where_they_are(place) -> None:
    engine = place.opened()
    given = windows(8)
    first = engine.enqueue_at(4, given.ctypes.data, 5)
    again = engine.enqueue_at(4, given.ctypes.data, 6)
    assert [found.address for found in first] == [found.address for found in again]
    assert [(found.shape, found.dtype) for found in first] == [((4, *MAPS), "float32")]
    assert place.state.called("execute_async_v3") == [[4, 5], [4, 6]]
    np.testing.assert_allclose(
        fake_tensorrt.at(first[0].address, (4, *MAPS)), answer(given[:4], MAPS), atol=1e-6
    )
    with pytest.raises(ValueError, match=r"one of the batch sizes 1, 4, 8, got 3"):
        engine.enqueue_at(3, given.ctypes.data, 5)


def test_torch_windows_go_in_where_they_lie(place) -> None:
    engine = place.opened()
    assert (engine.device, engine.type, engine.layout) == (
        torch.device("cpu"), torch.float32, "nchw",
    )  # fmt: skip
    given = torch.from_numpy(windows(4))
    place.state.calls.clear()
    for _ in range(2):
        found = engine.enqueue(given)
        np.testing.assert_allclose(found.numpy(), answer(given.numpy(), MAPS), atol=1e-6)
    assert place.state.called("set_tensor_address") == [[4, "image", given.data_ptr()]]
    # strided: a copy of its own
    strided = torch.from_numpy(windows(4, 1).transpose(0, 2, 3, 1).copy()).permute(0, 3, 1, 2)
    assert not strided.is_contiguous()
    found = engine.enqueue(strided)
    np.testing.assert_allclose(found.numpy(), answer(strided.numpy(), MAPS), atol=1e-6)


def test_two_results_become_one(place) -> None:
    place.state.outputs = {"x": (-1, 14, 48), "y": (-1, 14, 32)}
    spec = replace(TINY, output="simcc", stride=1, method="argmax")
    engine = place.opened(spec=spec)
    given = windows(4)
    wanted = np.concatenate([answer(given, (14, 48)), answer(given, (14, 32))], axis=-1)
    np.testing.assert_allclose(engine.enqueue(torch.from_numpy(given)), wanted, atol=1e-6)
    np.testing.assert_allclose(engine(given), wanted, atol=1e-6)


def test_torch_default_stream_gets_another_beside_it(place, monkeypatch) -> None:
    order: list[tuple[Any, ...]] = []

    class Stream:
        def __init__(self, handle: int) -> None:
            self.cuda_stream = handle

        def wait_stream(self, other: Stream) -> None:
            order.append(("wait", self.cuda_stream, other.cuda_stream))

    class Using:
        def __init__(self, stream: Stream) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            place.memory._stream = self.stream.cuda_stream

        def __exit__(self, *error: object) -> None:
            place.memory._stream = 0

    made, joined_on = [], []
    place.state.outputs = {"x": (-1, 14, 48), "y": (-1, 14, 32)}
    engine = place.opened(spec=replace(TINY, output="simcc", stride=1, method="argmax"))
    place.memory._stream = 0
    cat = torch.cat
    monkeypatch.setattr(
        torch,
        "cat",
        lambda *given, **more: joined_on.append(place.memory.stream) or cat(*given, **more),
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(0))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(1) or Stream(9))
    monkeypatch.setattr(torch.cuda, "stream", Using)
    given = windows(4)
    for _ in range(2):
        engine.enqueue(torch.from_numpy(given))
        engine(given)
    assert place.state.called("execute_async_v3") == [[4, 9]] * 4
    assert order == [("wait", 9, 0), ("wait", 0, 9)] * 4
    assert joined_on == [0, 0]
    assert made == [1]


@pytest.mark.parametrize("kind", ["pycuda", "cuda"])
def test_other_memory_runs_without_torch(place, kind) -> None:
    place.memory.kind = kind
    engine = place.opened()
    assert not hasattr(engine, "device")
    with pytest.raises(BackendError, match=f"need torch's memory, this is {kind}'s"):
        engine.enqueue(torch.from_numpy(windows(4)))
    given = windows(5)
    np.testing.assert_allclose(engine(given), answer(given, MAPS), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (torch.zeros(4, 3, 16, 24, dtype=torch.float16), "must be float32 .*got torch.float16"),
        (torch.zeros(4, 3, 24, 16), r"must be float32 \[N, 3, 16, 24\], got .*\[4, 3, 24, 16\]"),
        (torch.zeros(3, 3, 16, 24), "one of the batch sizes 1, 4, 8, got 3"),
        (torch.zeros(4, 3, 16, 24, device="meta"), "must be on cpu, got meta"),
    ],
)
def test_windows_of_another_type_size_or_place_are_refused(place, given, text) -> None:
    engine = place.opened()
    place.state.calls.clear()
    with pytest.raises(ValueError, match=text):
        engine.enqueue(given)
    assert place.state.calls == []


def test_a_run_that_is_not_enqueued_is_an_error(place) -> None:
    engine = place.opened()
    place.state.wrong.add("execute_async_v3")
    with pytest.raises(EngineError, match=r"tiny\.plan: .*batch of 4: it was not enqueued"):
        engine(windows(4))
    with pytest.raises(EngineError, match="not enqueued"):
        engine.enqueue(torch.from_numpy(windows(4)))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("create_execution_context", "there is no context"),
        ("set_optimization_profile_async", "profile 0 cannot be set"),
        ("set_input_shape", r"image cannot be \[1, 3, 16, 24\]"),
        ("infer_shapes", "the shape of maps is not known"),
        ("set_tensor_address", "maps cannot lie at 0x"),
    ],
)
def test_every_false_is_an_error(place, call, text) -> None:
    file = place.built()
    place.state.wrong.add(call)
    with pytest.raises(EngineError, match=f"batch of 1: {text}"):
        place.opened(file)
    assert place.memory.closed


def test_a_plan_that_cannot_be_read_says_why(place) -> None:
    file = place.built()
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(EngineError) as raised:
        place.opened(file)
    text = str(raised.value)
    assert "tiny.plan" in text
    assert "tensorrt 11.4.0.106" in text
    assert text.endswith("magic tag does not match")
    file.unlink()
    with pytest.raises(EngineError, match="cannot be read: No such file"):
        place.opened(file)


def test_host_code_runs_only_where_it_is_asked_for(place) -> None:
    options = Options(version_compatible=True, host_code=True)
    file = place.built(options=options)
    place.opened(file, options=options)
    assert place.state.called("host_code") == [[True]]
    place.state.calls.clear()
    place.state.wrong.add("deserialize_cuda_engine")
    with pytest.raises(EngineError, match="without host_code, as it carries code of its own"):
        place.opened(file, options=Options(version_compatible=True))
    assert place.state.called("host_code") == [[False]]


@pytest.mark.parametrize("name", ["Runtime", "Builder", "OnnxParser"])
def test_constructors_that_give_null_are_errors(place, monkeypatch, name) -> None:
    def __init__(self: object, *given: object) -> None:  # noqa: N807
        raise TypeError("pybind11::init(): factory function returned nullptr")

    file = place.folder / "tiny.plan"
    file.write_bytes(b"[]")
    monkeypatch.setattr(getattr(sys.modules["tensorrt"], name), "__init__", __init__)
    with pytest.raises(EngineError, match=rf"tensorrt 11\.4\.0\.106: no {name}: .*nullptr"):
        place.opened(file) if name == "Runtime" else place.built()
    assert place.memory.closed


OTHERS = ("INT64", "INT32", "UINT8", "INT8", "FP8", "INT4", "BOOL")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("image", kind) for kind in OTHERS),
        *(("maps", kind) for kind in ("HALF", "BF16", *OTHERS)),
    ],
)
def test_a_plan_of_other_types_is_refused_by_name(place, name, kind) -> None:
    place.state.types[name] = kind
    names = {"HALF": "float16", "BF16": "bfloat16", "FP8": "float8"}
    types = "float32 or float16 or bfloat16" if name == "image" else "float32"
    wanted = f"{name} must be {types}, got {names.get(kind, kind.lower())}"
    with pytest.raises(EngineError, match=wanted):
        place.opened()


@pytest.mark.parametrize(("kind", "dtype"), [("HALF", torch.float16), ("BF16", torch.bfloat16)])
def test_windows_are_rounded_where_the_plan_takes_half(place, kind, dtype) -> None:
    place.state.types["image"] = kind
    engine = place.opened()
    assert (engine.type, engine.window_type) == (dtype, str(dtype).removeprefix("torch."))
    given = windows(8) * 3 - 1
    halves = torch.from_numpy(given).to(dtype)
    wanted = answer(halves.float().numpy(), MAPS)
    np.testing.assert_allclose(engine(given), wanted, atol=1e-6)
    np.testing.assert_allclose(engine(given[:3]), wanted[:3], atol=1e-6)
    np.testing.assert_allclose(engine.enqueue(halves).numpy(), wanted, atol=1e-6)
    with pytest.raises(ValueError, match=rf"must be {engine.window_type} .* got torch\.float32"):
        engine.enqueue(torch.from_numpy(given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_to_the_nearest_and_ties_to_even(place, dtype) -> None:
    given = np.concatenate(
        [windows(1).reshape(-1) * 600 - 300, np.float32([0.0, -0.0, 1.00390625, 1.01171875, 65280])]
    )
    out = np.empty(given.shape, np.float16 if dtype == torch.float16 else np.int16)
    place.module._round(given, out)
    wanted = torch.from_numpy(given).to(dtype).float().numpy()
    np.testing.assert_array_equal(fake_tensorrt.widened(out), wanted)


def test_a_plan_of_other_batch_sizes_is_refused(place) -> None:
    with pytest.raises(
        EngineError, match=r"buckets: asked are \[1, 4\], .* for \[1, 3, 16, 24\], "
    ):
        place.opened(buckets=(1, 4))


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((-1, -1, 4, 6), r"depends on the data"),
        ((-1, 14, 4, 5), r"must be .*14, 4, 6"),
        ((3, 14, 4, 6), r"must be \[1, 14, 4, 6\], got \[3, 14, 4, 6\]"),
    ],
)
def test_results_of_another_shape_are_refused(place, shape, text) -> None:
    place.state.outputs = {"maps": shape}
    with pytest.raises(EngineError, match=text):
        place.opened()


def test_a_closed_engine_says_so(place) -> None:
    engine = place.opened()
    engine.enqueue(torch.from_numpy(windows(4)))
    engine.close()
    engine.close()
    assert place.memory.closed
    # scratch, windows and results; what the host fills, and reads: all in the device's context
    assert (place.memory.freed, place.memory.unpinned) == ([1, 1, 1], [1, 1])
    assert place.memory.waited == [(STREAM, 0)]
    for use_it in (
        lambda: engine(windows(1)),
        lambda: engine.enqueue(torch.from_numpy(windows(1))),
        lambda: engine.enqueue_at(1, 64, STREAM),
        lambda: engine.buffer(1),
    ):
        with pytest.raises(EngineError, match="closed"):
            use_it()


def test_the_log_does_not_grow(place) -> None:
    log, logger = place.module._Log(), place.module.LOGGER
    trt = sys.modules["tensorrt"]
    for severity in (trt.ILogger.WARNING, trt.ILogger.ERROR):
        for number in range(1000):
            logger.log(severity, f"slow {number}")
            logger.log(trt.ILogger.INFO, "nothing")
        assert log.reasons().count("slow") == place.module.KEPT_LINES
        assert log.reasons() == ""


def test_a_process_has_one_logger_that_outlives_its_plans(place) -> None:
    def told() -> int:
        return len(place.module.LOGGER._listeners)

    engines_ = [place.opened(), place.opened()]
    place.module.refit(refittable(place), Path("new.safetensors"))
    loggers = [logger for (logger,) in place.state.called("logger")]
    assert len(loggers) > 8
    assert all(logger is place.module.LOGGER for logger in loggers)
    gc.collect()
    assert told() == 2
    while engines_:
        engines_.pop().close()
    gc.collect()
    assert told() == 0


def test_what_is_said_from_other_threads_is_neither_lost_nor_torn(place) -> None:
    logger, log = place.module.LOGGER, place.module._Log()
    error, found, done = sys.modules["tensorrt"].ILogger.ERROR, [], threading.Event()
    parts = np.array_split(np.arange(place.module.KEPT_LINES), 5)

    def read() -> None:
        while not done.is_set():
            found.append(log.reasons())

    def write(numbers: np.ndarray) -> None:
        for number in numbers:
            logger.log(error, f"line {number}")
            place.module._Log()  # others come and go meanwhile
            time.sleep(1e-4)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(part,)) for part in parts]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    found.append(log.reasons())
    heard = [line for text in found for line in text.removeprefix(": ").split("; ") if line]
    assert sorted(heard) == sorted(f"line {number}" for number in np.concatenate(parts))


def test_the_kernel_that_finds_joints_is_kept_with_the_plan(place, monkeypatch) -> None:
    from fastpose.ops import DecodeBinary

    asked, checked = [], []

    class Binary:
        def save(self, stem: Path) -> list[Path]:
            files = [stem.with_name(f"{stem.name}.decode.{end}") for end in ("json", "cubin")]
            for file in files:
                file.write_text("kernel")
            return files

    def compile_peaks(*given: Any) -> Binary:
        asked.append(given)
        return Binary()

    def check_decoder(binary: Binary, spec: Any, memory: Memory) -> None:
        assert not memory.closed
        checked.append((type(binary), spec, memory))

    monkeypatch.setattr(place.module, "compile_peaks", compile_peaks)
    monkeypatch.setattr(place.module, "check_decoder", check_decoder)
    files = place.module.build(place.job(), place.folder / "tiny.plan")
    assert [file.name for file in files] == [
        "tiny.plan", "tiny.decode.json", "tiny.decode.cubin",
    ]  # fmt: skip
    assert asked == [(TINY, "float32", (9, 0))]
    assert checked == [(Binary, TINY, place.memory)]
    monkeypatch.setattr(DecodeBinary, "load", lambda stem: (stem.name, "kernel"))
    engine = place.opened(files[0])
    assert engine.decoder == ("tiny", "kernel")
    assert set(engine.manifest.files) == {file.name for file in files}
    assert engine.manifest.file == "tiny.plan"
    # a kernel is for one architecture
    ampere = place.job(options=Options(hardware_compatible="ampere"))
    assert len(place.module.build(ampere, place.folder / "other.plan")) == 1
    assert len(asked) == 1


def test_a_kernel_that_finds_other_joints_is_not_kept(place, monkeypatch, caplog) -> None:
    def check_decoder(*given: Any) -> None:
        raise EngineError("points are 3 px apart")

    monkeypatch.setattr(place.module, "compile_peaks", lambda *given: object())
    monkeypatch.setattr(place.module, "check_decoder", check_decoder)
    files = place.module.build(place.job(), place.folder / "tiny.plan")
    assert [file.name for file in files] == ["tiny.plan"]
    assert "tiny: without torch, joints will be found on the host: points are 3 px" in caplog.text


# Refit


def test_other_weights_make_a_new_plan(place) -> None:
    file = refittable(place)
    plan = place.module.refit(file, Path("new.safetensors"))
    assert plan == file.read_bytes()
    assert place.graphs[-1] == ("tiny", Path("new.safetensors"), Options(refit=True), "f16")
    names = [name for name, *_ in place.state.calls]
    assert names[-3:] == ["refit_from_file", "refit_cuda_engine", "serialize"]


def test_a_build_and_a_refit_call_the_weights_alike(place, monkeypatch) -> None:
    onnx = pytest.importorskip("onnx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.folder))
    monkeypatch.setattr(source, "find_graph", FIND_GRAPH)
    spec = model_spec("cpn-light")
    weights = source.find_weights(spec)
    kept, _ = source.find_graph(spec)
    built = place.module._graph(place.job(spec=spec), place.folder / "own.plan")
    assert (kept.name, built.name) == ("cpn-light.onnx", "own.f32.onnx")
    place.module._graph(place.job(spec=spec, weights=weights), place.folder / "other.plan")
    given, _ = source.find_graph(spec, weights)  # as a refit does
    names = []
    for path in (built, given):
        graph = onnx.load(path).graph
        names.append({tensor.name for tensor in graph.initializer})
        assert {tensor.data_type for tensor in graph.initializer} == {onnx.TensorProto.FLOAT}
        kernels = {node.input[1] for node in graph.node if node.op_type == "Conv"}
        assert len(kernels) > 40
        assert kernels <= names[-1]
    assert names[0] == names[1]
    # the same network, to the bit
    run = [ort.InferenceSession(str(path)) for path in (kept, built)]
    image = np.random.default_rng(0).normal(size=(1, 3, *spec.size)).astype(np.float32)
    first, second = (session.run(None, {"image": image})[0] for session in run)
    np.testing.assert_array_equal(first, second)


def test_missing_weights_are_listed(place) -> None:
    file = refittable(place)
    place.state.missing = ["conv1.weight", "conv2.bias"]
    with pytest.raises(EngineError, match=r"lacks the weights conv1\.weight, conv2\.bias"):
        place.module.refit(file, Path("new.safetensors"))
    assert place.state.called("refit_cuda_engine") == []


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("refit_from_file", "does not fit: conv1.weight has another size"),
        ("refit_cuda_engine", "the weights were not taken"),
        ("serialize", "the new plan cannot be written"),
    ],
)
def test_a_refit_that_fails_says_where(place, call, text) -> None:
    file = refittable(place)
    place.state.wrong.add(call)
    with pytest.raises(EngineError, match=text):
        place.module.refit(file, Path("new.safetensors"))


def test_a_plan_that_was_not_built_for_it_is_not_refitted(place) -> None:
    with pytest.raises(BackendError, match="refit: the engine was built without this option"):
        place.module.refit(refittable(place, Options()), Path("new.safetensors"))
    file = refittable(place)
    path = file.with_suffix(".json")
    replace(Manifest.load(path), precision_asked="int8").save(path)
    with pytest.raises(BackendError, match="the scales of int8 belong to its weights"):
        place.module.refit(file, Path("new.safetensors"))


def refittable(place: Place, options: Options | None = None) -> Path:
    options = options or Options(refit=True)
    file = place.built(options=options)
    place.opened(file, options=options).manifest.save(file.with_suffix(".json"))
    return file


# As a bundle and in graphs


@pytest.mark.parametrize("kind", ["FLOAT", "HALF"])
def test_graphs_take_it_as_they_take_torch(place, kind) -> None:
    from fastpose.graph import FrameGraphs
    from fastpose.models.joints import locate_joints

    place.state.types["image"] = kind
    graphs = FrameGraphs(place.opened())
    frame = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    corners = np.array([[3.0, 2.0, 27.0, 18.0], [10.0, 10.0, 40.0, 30.0]])
    affines = boxes_to_affines(corners, TINY.size)
    areas = sample_counts(affines)
    cut = cut_windows(frame, affines.astype(np.float32), areas, TINY.window, source=None, out=None)
    (there,) = graphs.upload([frame])
    points, scores = graphs.joints([there], np.zeros(2, np.int64), affines)
    wanted, levels = locate_joints(answer(cut, MAPS), affines, TINY)
    np.testing.assert_allclose(points, wanted, atol=1e-3)
    np.testing.assert_allclose(scores, levels, atol=0.1 if kind == "HALF" else 1e-3)
    assert {size for size, _ in place.state.called("execute_async_v3")} == set(BUCKETS)
    graphs.close()
    assert place.memory.closed


def test_a_bundle_comes_to_be_and_is_opened_as_it_was_built(place, tiny) -> None:
    from fastpose.bundles import build_engine

    out = place.folder / "bundle" / "tiny.plan"
    out.parent.mkdir()
    options = Options(workspace=64, refit=True)
    path = build_engine(
        "tiny", engine="tensorrt", buckets=(1, 4), options=options, out=out, allow=True
    )
    manifest = Manifest.load(path)
    assert manifest.kind == "tensorrt"
    assert manifest.ties == place.module.ties(options, "auto")
    assert manifest.options == options
    assert manifest.report is not None
    assert not manifest.report["passed"]  # the double is no network
    engine = engines.load_engine(path)
    given = windows(5)
    np.testing.assert_allclose(engine(given), answer(given, MAPS), atol=1e-6)
    engine.close()
    place.memory.gpu = "Double 2"
    with pytest.raises(EngineError, match=r"gpu: .* built for Double 1, this machine has Double 2"):
        engines.load_engine(path)


def test_a_version_compatible_plan_runs_its_code_while_it_is_built_and_not_later(
    place, tiny, capsys
) -> None:
    from fastpose.cli import main

    out = place.folder / "own.plan"
    command = ["build", "tiny", "--engine", "tensorrt", "--version-compatible", "--allow"]
    assert main([*command, "--batch", "1,4", "--out", str(out)]) == 0
    assert "own.plan" in capsys.readouterr().out
    assert place.state.called("host_code") == [[True]]
    path = out.with_suffix(".json")
    assert not Manifest.load(path).options.host_code
    place.state.calls.clear()
    engines.load_engine(path).close()
    allowed = replace(Manifest.load(path).options, host_code=True)
    engines.load_engine(path, options=allowed).close()
    assert place.state.called("host_code") == [[False], [True]]


def test_a_bundle_is_refitted_with_all_that_belongs_to_it(place, tiny) -> None:
    from fastpose.bundles import build_engine, refit_engine
    from fastpose.engines.build import random_network
    from fastpose.models.weights import save_weights

    options, weights = Options(refit=True), place.folder / "own.safetensors"
    old = place.folder / "old.plan"
    save_weights(random_network("tiny").state_dict(), weights)
    path = build_engine("tiny", engine="tensorrt", options=options, out=old, allow=True)
    before = Manifest.load(path)
    companion = place.folder / "old.notes.txt"
    companion.write_text("{}")
    replace(before, files=hash_files([old, companion])).save(path)
    new = refit_engine(path, weights, out=place.folder / "new.plan", allow=True)
    manifest = Manifest.load(new)
    assert list(manifest.files) == ["new.plan", "new.notes.txt"]
    assert manifest.weights_hash == file_hash(weights) != before.weights_hash
    assert (manifest.options, manifest.ties) == (before.options, before.ties)
    assert "refit_from_file" in [name for name, *_ in place.state.calls]
    with pytest.raises(EngineError, match="is not what the module is"):
        refit_engine(path, weights, out=place.folder / "third.plan")
    edited = replace(before, options=Options())
    edited.save(path)
    with pytest.raises(BackendError, match="refit: the engine was built without this option"):
        refit_engine(path, weights, out=place.folder / "third.plan")
    assert not (place.folder / "third.plan").exists()


# The double itself


@pytest.mark.parametrize("version", ["10.13", "10.16", "11"])
def test_the_double_has_no_name_that_the_bindings_lack(version) -> None:
    path = ROOT / "build" / "tensorrt_stubs" / version / "stubs" / "tensorrt" / "__init__.pyi"
    if not path.is_file():
        pytest.skip("needs stubs of TensorRT: run python scripts/tensorrt_stubs.py")
    classes = {node.name: node for node in ast.parse(path.read_text()).body if is_class(node)}
    full = {"10.13": "10.13.3.9", "10.16": "10.16.1.11", "11": "11.4.0.106"}[version]
    checked = 0
    for name, fake in vars(fake_tensorrt.make(State(), full)).items():
        if not isinstance(fake, type):
            continue
        real = members(classes[name])
        for member, value in vars(fake).items():
            if member.startswith("_") and not (member == "__init__" and member in real):
                continue  # its own; and what users cannot make has no __init__
            assert member in real, f"{name}.{member}"
            checked += 1
            if inspect.isfunction(value):
                given = [part for part in inspect.signature(value).parameters if part != "self"]
                assert any(given == args[: len(given)] for args in real[member]), (name, member)
    assert checked > 80


def is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


def members(node: ast.ClassDef) -> dict[str, list[list[str]]]:
    """The names of a class of the stubs, with the arguments of each overload."""
    found: dict[str, list[list[str]]] = {}
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            args = [arg.arg for arg in part.args.args if arg.arg != "self"]
            found.setdefault(part.name, []).append(args)
        elif isinstance(part, ast.AnnAssign):
            found[part.target.id] = []
        elif isinstance(part, ast.ClassDef):
            found[part.name] = []
    return found
