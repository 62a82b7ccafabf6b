"""A double of the module `tensorrt`, and of a device's memory: what is called, in which order.

Names and arguments are those of the real bindings, which a test compares. What the real libraries
would do is only as true as their documentation: a plan is JSON, a network is `answer`.
"""

from __future__ import annotations

import ctypes
import enum
import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from fastpose.engines.memory import DeviceArray, DeviceMemory, host_type

STREAM = 4711  # the memory's own
LAYERS = [
    {"LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]},
    {"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Channel major FP16 format"}]},
    {"LayerType": "gemm", "Inputs": [{"Name": "x", "Format/Datatype": "Half"}]},
    {"LayerType": "CaskDeconvolution", "Inputs": [{"Format/Datatype": "Float"}]},
    {"LayerType": "conv", "Inputs": [], "Weights": {"Type": "BFloat16", "Count": 3}},
    {"LayerType": "kgen", "Inputs": [{"Format/Datatype": "Int8"}]},
    "a name alone",
]


@dataclass
class State:
    """What the double is told to be, and what it was asked.

    Attributes:
        calls: a tuple for each call, its name first.
        input, outputs: names and shapes of the network, -1 where they vary.
        wrong: names of calls that fail.
        types: of tensors that are not float32, by name.
        layers: what the inspector tells.
        missing: weights that a refit lacks.
        scratch: bytes that a run needs.
    """

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    input: tuple[str, tuple[int, ...]] = ("image", (-1, 3, 16, 24))
    outputs: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"maps": (-1, 14, 4, 6)})
    wrong: set[str] = field(default_factory=set)
    types: dict[str, str] = field(default_factory=dict)
    layers: list[Any] = field(default_factory=lambda: list(LAYERS))
    missing: list[str] = field(default_factory=list)
    scratch: int = 1 << 20

    def made(self, name: str, *given: Any) -> bool:
        """Write a call down; whether it works."""
        self.calls.append((name, *given))
        return name not in self.wrong

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """What was given to each call of that name."""
        return [given for called, *given in self.calls if called == name]


def answer(windows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What the double's network says of windows [N, 3, h, w]: their weighted means, and where."""
    weights = np.linspace(0.5, 1.5, windows[0].size).reshape(windows[0].shape)
    means = (windows * weights).mean(axis=(1, 2, 3))
    cells = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    return (means[:, None] + 0.01 * cells.reshape(1, -1)).reshape(-1, *shape).astype(np.float32)


def at(address: int, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """The array at an address."""
    kind = host_type(dtype)
    buffer = (ctypes.c_uint8 * (int(np.prod(shape)) * kind.itemsize)).from_address(address)
    return np.frombuffer(buffer, kind).reshape(shape)


def widened(array: np.ndarray) -> np.ndarray:
    """Values of a device's type in float32; int16 stands for bfloat16."""
    if array.dtype == np.int16:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


class Array(DeviceArray):
    """An array of the double's device, which is the host."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return super().__cuda_array_interface__

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise AttributeError("this is the host")

    def part(self, start: int, shape: tuple[int, ...], dtype: str) -> Array:
        inner = super().part(start, shape, dtype)
        return Array(inner.address, inner.shape, inner.dtype, inner.owner)


class Memory(DeviceMemory):
    """Memory of the host in place of a device's."""

    device, gpu, capability, driver = "cpu", "Double 1", (9, 0), "13.0"

    def __init__(self, kind: str = "torch", stream: int = STREAM) -> None:
        self.kind, self._stream, self.inside, self.closed = kind, stream, 0, False
        self.freed: list[int] = []  # whether the device was current, for each array
        self.unpinned: list[int] = []  # the same of the host's
        self.waited: list[tuple[int, int]] = []  # stream, and arrays that had been freed before

    @property
    def stream(self) -> int:
        return self._stream

    @contextmanager
    def current(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        owner = np.full(shape, 77, host_type(dtype))  # nothing may rely on zeros
        weakref.finalize(owner, lambda: self.freed.append(self.inside))
        return Array(owner.ctypes.data, shape, dtype, owner)

    def host(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        array = np.full(shape, 77, host_type(dtype))
        weakref.finalize(array, lambda: self.unpinned.append(self.inside))
        return array

    def wait_for(self, stream: int) -> None:
        self.waited.append((stream, len(self.freed)))

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def _upload(self, given: np.ndarray, array: DeviceArray) -> None:
        at(array.address, array.shape, array.dtype)[...] = given

    def _download(self, array: DeviceArray, out: np.ndarray) -> None:
        out[...] = at(array.address, array.shape, array.dtype)


def make(  # noqa: C901 -- it is a list of classes
    state: State, version: str = "11.4.0.106", memory: Memory | None = None
) -> ModuleType:
    """The module. With a memory, what touches the device must be called with it current."""
    major = int(version.partition(".")[0])

    def on_device(what: str) -> None:
        assert memory is None or memory.inside, f"{what}: the device is not current"

    class ILogger:
        class Severity(enum.Enum):
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
        INFO, VERBOSE = Severity.INFO, Severity.VERBOSE

        def __init__(self) -> None:
            self._ready = True

        def log(self, severity: ILogger.Severity, msg: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        def __init__(self) -> None:
            self._ready = True

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        STRONGLY_TYPED = 1

    flags = ["TF32", "REFIT", "VERSION_COMPATIBLE"] + (["FP16", "INT8"] if major == 10 else [])
    BuilderFlag = enum.IntEnum("BuilderFlag", {name: i for i, name in enumerate(flags)})

    class HardwareCompatibilityLevel(enum.Enum):
        NONE, AMPERE_PLUS, SAME_COMPUTE_CAPABILITY = range(3)

    class MemoryPoolType(enum.Enum):
        WORKSPACE = 0

    class ProfilingVerbosity(enum.Enum):
        LAYER_NAMES_ONLY, DETAILED = range(2)

    class TensorIOMode(enum.Enum):
        NONE, INPUT, OUTPUT = range(3)

    class LayerInformationFormat(enum.Enum):
        ONELINE, JSON = range(2)

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)

    class DataType(enum.Enum):
        FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4 = range(10)

    class ITensor:
        def __init__(self, name: str, shape: tuple[int, ...]) -> None:
            self.name, self.shape = name, shape

    class IHostMemory(bytes):
        __slots__ = ()

    class INetworkDefinition:
        num_inputs = 1
        num_outputs = property(lambda self: len(state.outputs))

        def get_input(self, index: int) -> ITensor:
            return ITensor(*state.input)

    class IOptimizationProfile:
        def __init__(self) -> None:
            self._ranges: dict[str, Any] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
            self._ranges[input] = [list(min), list(opt), list(max)]

    class ITimingCache:
        def __init__(self, data: bytes) -> None:
            self._lines = data.decode().split()

        def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
            if not state.made("combine", tuple(input_cache._lines), ignore_mismatch):
                return False
            self._lines += [line for line in input_cache._lines if line not in self._lines]
            return True

        def serialize(self) -> IHostMemory | None:
            data = IHostMemory(" ".join(self._lines).encode())
            return data if state.made("serialize_timings") else None

    class IBuilderConfig:
        def __init__(self) -> None:
            self._profiles: list[dict[str, Any]] = []
            self._cache: ITimingCache | None = None
            self._flags = {"TF32"}
            self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
            self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
            self.progress_monitor: Any = None

        def set_flag(self, flag: Any) -> None:
            self._flags.add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(flag.name)

        def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
            state.made("set_memory_pool_limit", pool.name, pool_size)

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            if not state.made("add_optimization_profile", profile._ranges):
                return -1
            self._profiles.append(profile._ranges)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
            good = state.made("create_timing_cache", bytes(serialized_timing_cache))
            return ITimingCache(serialized_timing_cache) if good else None

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            if not state.made("set_timing_cache", tuple(cache._lines), ignore_mismatch):
                state.wrong.discard("set_timing_cache")  # of the next one it takes
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> ITimingCache | None:
            return self._cache

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            on_device("Builder")
            state.made("logger", logger)
            assert logger._ready, "the logger's own __init__ was not called"
            self._logger = logger
            self.max_threads = 0

        def create_network(self, flags: int = 0) -> INetworkDefinition | None:
            return INetworkDefinition() if state.made("create_network", flags) else None

        def create_builder_config(self) -> IBuilderConfig | None:
            return IBuilderConfig() if state.made("create_builder_config") else None

        def create_optimization_profile(self) -> IOptimizationProfile | None:
            good = state.made("create_optimization_profile")
            return IOptimizationProfile() if good else None

        def build_serialized_network(
            self, network: INetworkDefinition, config: IBuilderConfig
        ) -> IHostMemory | None:
            on_device("build")
            state.made("threads", self.max_threads)
            state.made("flags", frozenset(config._flags), config.hardware_compatibility_level.name)
            assert config.profiling_verbosity is ProfilingVerbosity.DETAILED
            try:
                monitor = config.progress_monitor
                monitor.phase_start("Tactics", None, 2)
                monitor.phase_start("Inner", "Tactics", 2)
                if not monitor.step_complete("Tactics", 1):
                    return None
                monitor.phase_finish("Tactics")
            except BaseException:
                raise SystemError("an exception went into C++: the process is gone") from None
            if not state.made("build_serialized_network"):
                self._logger.log(ILogger.WARNING, "a warning")
                self._logger.log(ILogger.ERROR, "no tactic\n   for conv1")
                self._logger.log(ILogger.INTERNAL_ERROR, "and so on")
                return None
            if config._cache is not None:
                config._cache._lines.append("timed")
            return IHostMemory(json.dumps(config._profiles).encode())

    class ParserError:
        def __init__(self, text: str, node: str) -> None:
            self._text, self._node = text, node

        def desc(self) -> str:
            return self._text

        def node_name(self) -> str:
            return self._node

        def node_operator(self) -> str:
            return "Resize"

    class OnnxParser:
        num_errors = 2

        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
            state.made("logger", logger)
            self._network = network

        def parse_from_file(self, model: str) -> bool:
            return state.made("parse_from_file", model)

        def get_error(self, index: int) -> ParserError:
            texts = [("unsupported\n mode", "up"), ("no weights", "")]
            return ParserError(*texts[index])

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            on_device("Runtime")
            state.made("logger", logger)
            assert logger._ready, "the logger's own __init__ was not called"
            self._logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            on_device("deserialize")
            state.made("host_code", self.engine_host_code_allowed)
            try:
                profiles = json.loads(serialized_engine)
            except ValueError:
                profiles = None
            if profiles is None or not state.made("deserialize_cuda_engine"):
                self._logger.log(ILogger.ERROR, "magic tag does not match")
                return None
            return ICudaEngine(profiles)

    class ICudaEngine:
        device_memory_size_v2 = property(lambda self: state.scratch)
        num_io_tensors = property(lambda self: 1 + len(state.outputs))

        def __init__(self, profiles: list[dict[str, Any]]) -> None:
            self._profiles = profiles
            self._shapes = dict([state.input, *state.outputs.items()])

        @property
        def num_optimization_profiles(self) -> int:
            return len(self._profiles)

        def get_tensor_name(self, index: int) -> str:
            return list(self._shapes)[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name == state.input[0] else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType[state.types.get(name, "FLOAT")]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._shapes[name]

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
            return self._profiles[profile_index][name]

        def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
            on_device("context")
            good = state.made("create_execution_context", strategy.name)
            return IExecutionContext(self) if good else None

        def create_engine_inspector(self) -> EngineInspector | None:
            return EngineInspector() if state.made("create_engine_inspector") else None

        def serialize(self) -> IHostMemory | None:
            data = IHostMemory(json.dumps(self._profiles).encode())
            return data if state.made("serialize") else None

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine
            self._profile: int | None = None
            self._batch = -1
            self._scratch = 0
            self._places: dict[str, int] = {}

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            self._profile = profile_index
            return state.made("set_optimization_profile_async", profile_index, stream_handle)

        def set_device_memory(self, memory: int, size: int) -> None:
            assert size >= state.scratch
            self._scratch = memory

        def set_input_shape(self, name: str, shape: Any) -> bool:
            assert self._profile is not None, "the profile comes first"
            least, _, most = self._engine._profiles[self._profile][name]
            fits = all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
            self._batch = shape[0]
            return state.made("set_input_shape", name, tuple(shape)) and fits

        def infer_shapes(self) -> list[str]:
            return [] if state.made("infer_shapes") else ["maps"]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            first, *rest = self._engine._shapes[name]
            return (self._batch if first < 0 else first, *rest)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if not state.made("set_tensor_address", self._batch, name, memory):
                return False
            self._places[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            on_device("execute")
            if not state.made("execute_async_v3", self._batch, stream_handle):
                return False
            assert self._scratch or not state.scratch, "there is no scratch memory"
            name, shape = state.input
            kind = {"HALF": "float16", "BF16": "bfloat16"}.get(state.types.get(name, ""), "float32")
            windows = widened(at(self._places[name], (self._batch, *shape[1:]), kind))
            for name, shape in state.outputs.items():
                at(self._places[name], (self._batch, *shape[1:]))[...] = answer(windows, shape[1:])
            return True

    class EngineInspector:
        def __init__(self) -> None:
            self.execution_context: Any = None

        def get_engine_information(self, format: LayerInformationFormat) -> str:  # noqa: A002
            assert self.execution_context is not None, "types would not be told"
            assert format is LayerInformationFormat.JSON
            key = "Bindings" if major == 10 else "I/O Tensors"
            return json.dumps({"Layers": state.layers, key: []})

    class Refitter:
        def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
            on_device("Refitter")
            state.made("logger", logger)

        def get_missing_weights(self) -> list[str]:
            return state.missing

        def refit_cuda_engine(self) -> bool:
            on_device("refit")
            return state.made("refit_cuda_engine")

    class OnnxParserRefitter:
        num_errors = 1

        def __init__(self, refitter: Refitter, logger: ILogger) -> None:
            state.made("logger", logger)
            self._refitter = refitter

        def refit_from_file(self, model: str) -> bool:
            return state.made("refit_from_file", model)

        def get_error(self, index: int) -> ParserError:
            return ParserError("conv1.weight has another size", "")

    module = ModuleType("tensorrt")
    for name, value in list(locals().items()):
        if isinstance(value, type):
            setattr(module, name, value)
    module.__version__ = version
    return module
