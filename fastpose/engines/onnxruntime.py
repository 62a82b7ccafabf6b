"""ONNX Runtime: the fallback on CPUs, and on CUDA its providers "cuda" and "tensorrt".

What cannot be given the provider that was asked for is an error, where the library goes on without
it and only its log says so. The "tensorrt" provider compiles for the batch sizes 1 to the largest
when it is opened, keeps that in the user's cache, and gives "cuda" what it cannot run itself. It
offers "f32" alone, in which it may round to TF32, which it has no switch for: for half precision it
has a switch that leaves the types to TensorRT, which then rounds what the graph keeps in float32
and tells of no layer. `fastpose.engines.tensorrt` keeps to the graph's types.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fastpose.engines.engine import (
    BufferedEngine,
    Job,
    Port,
    Request,
    axes_text,
    cause,
    check_feeds,
    choose_precision,
    find_ports,
    split,
)
from fastpose.engines.manifest import Manifest, file_hash, hash_files, versions_of
from fastpose.engines.options import Options
from fastpose.engines.source import cache_folder, find_graph
from fastpose.errors import BackendError, EngineError
from fastpose.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
OFFERED = {"cpu": ("f32",), "cuda": ("f32", "f16"), "tensorrt": ("f32",)}
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
ERRORS_ONLY = 3  # severity of its log


@dataclass(frozen=True)
class Place:
    """Where a session runs.

    Attributes:
        provider: of `PROVIDERS`.
        index: of the GPU.
    """

    provider: str
    index: int = 0

    @classmethod
    def parse(cls, name: str) -> Place:
        """Read "auto", "cpu", "cuda", "cuda:1", "tensorrt" or "tensorrt:1".

        Raises:
            BackendError: it is none of them.
        """
        found = re.fullmatch(r"(auto|cpu)|(cuda|tensorrt)(?::(\d+))?", name.lower())
        if not found:
            raise BackendError(
                f"onnxruntime has no device {name!r}; it has: cpu, cuda, cuda:1, ..., tensorrt, ..."
            )
        return cls(found[2] or "cpu", int(found[3] or 0))

    @property
    def memory(self) -> str:
        """The runtime's name of the memory there."""
        return "cpu" if self.provider == "cpu" else "cuda"

    def __str__(self) -> str:
        return "cpu" if self.provider == "cpu" else f"{self.provider}:{self.index}"


class ONNXRuntimeGraph:
    """Any ONNX graph, with the shapes it has; see `engine.BuiltGraph`."""

    kind = "onnxruntime"
    versions = versions_of(onnxruntime=ort.__version__)

    def __init__(self, path: Path, device: str, precision: str, threads: int | None) -> None:
        place = Place.parse(device)
        if precision != "f32":
            raise BackendError(f"precision {precision!r} cannot run in onnxruntime on {place}")
        self._path, self.precision, self.place = path, precision, str(place)
        self.layers: dict[str, int] = {}  # the runtime does not tell
        self._session: ort.InferenceSession | None = _open(path, place, threads, {})
        self.inputs = _ports(path, self._session.get_inputs())
        self.outputs = _ports(path, self._session.get_outputs())

    def __call__(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """See `engine.Graph`."""
        if self._session is None:
            raise EngineError(f"{self._path}: the graph is closed")
        check_feeds(self.inputs, feeds)
        try:
            results = self._session.run(list(self.outputs), dict(feeds))
        except Exception as error:  # the runtime's errors have no class of their own above them
            raise EngineError(f"{self._path}: onnxruntime: {cause(error)}") from None
        return dict(zip(self.outputs, results, strict=True))

    def close(self) -> None:
        """See `engine.Graph`."""
        self._session = None


class ONNXRuntimeEngine(BufferedEngine):
    """A pose network in one session that takes every batch size as it is, or only its own.

    The runtime reads windows from the engine's buffer and writes results into it: no copies but
    those to a GPU and back. Windows that a GPU has already go through `enqueue`.

    Raises:
        BackendError: the provider, or the precision there, is not to be had; the text says why.
        EngineError: the file is no graph of this network in this precision.
    """

    def __init__(self, request: Request) -> None:
        assert request.file is not None, "a graph is needed"
        place = Place.parse(request.device)
        offered = OFFERED[place.provider] if request.precision != "auto" else ("f32",)
        precision = choose_precision(request, "onnxruntime", str(place), offered)
        self._path, self._place = request.file, place
        self._stream = _own_stream(place)
        settings = _settings(request.file, place, request.buckets[-1], request.spec)
        if self._stream is not None:
            settings |= {
                "has_user_compute_stream": "1",
                "user_compute_stream": str(self._stream.cuda_stream),
            }
        self._session: ort.InferenceSession | None = _open(
            request.file, place, request.threads, settings
        )
        inputs = _ports(request.file, self._session.get_inputs())
        outputs = _ports(request.file, self._session.get_outputs())
        self._type = _input_type(request.file, inputs, precision)
        self._ports = find_ports(request.file, _widened(inputs), outputs, request.spec)
        super().__init__(
            Manifest(
                spec=request.spec,
                kind="onnxruntime",
                precision=precision,
                precision_asked=request.precision,
                buckets=request.buckets,
                device=str(place),
                versions=versions_of(onnxruntime=ort.__version__),
                files=hash_files([request.file]),
                options=request.options,
                weights_hash=request.weights_hash,
            ),
            self._ports.batch,
        )

    def enqueue(self, windows: Tensor) -> Tensor:
        """The results of windows that lie where the network runs; they are read there by address.

        On CUDA nothing waits on the host: the work goes to a stream of the engine's own, which
        waits for what the current one holds, and the current one waits for it. The runtime takes
        memory while it runs, so that no CUDA graph can hold this: it is no
        `fastpose.graph.StreamEngine`. torch must have been imported before the engine was opened.

        Args:
            windows: [N, 3, h, w]; in "f16" float16 where the graph takes that, else float32.

        Returns:
            [N, K, ...] float32, on the same device.

        Raises:
            EngineError: the engine is closed, the windows are others, or the runtime failed.
        """
        import torch

        if self._session is None:
            raise EngineError(f"{self.manifest.name}: the engine is closed")
        given = windows.contiguous()
        self._check_windows(given)
        results = [
            torch.empty((len(given), *shape), device=given.device)
            for shape in self.manifest.spec.results
        ]
        binding = self._session.io_binding()
        self._bind(binding.bind_input, self._ports.input, given.shape, self._type, given.data_ptr())
        for name, result in zip(self._ports.outputs, results, strict=True):
            self._bind(
                binding.bind_output, name, result.shape, np.dtype(np.float32), result.data_ptr()
            )
        if self._stream is None:
            self._start(binding)
        else:
            current = torch.cuda.current_stream(given.device)
            self._stream.wait_stream(current)
            self._start(binding, waits=False)
            current.wait_stream(self._stream)
        return results[0] if len(results) == 1 else torch.cat(results, -1)

    def _check_windows(self, given: Tensor) -> None:
        kind = str(given.dtype).removeprefix("torch.")
        wanted = (self._ports.batch, 3, *self.manifest.spec.size)
        fits = given.ndim == 4 and all(
            side in (None, found) for side, found in zip(wanted, given.shape, strict=True)
        )
        where = (given.device.type, given.device.index or 0)
        if not fits or kind != self._type.name or where != (self._place.memory, self._place.index):
            raise EngineError(
                f"{self.manifest.name}: windows must be {self._type} {axes_text(wanted)} on "
                f"{self._place}, got {kind} {list(given.shape)} on {given.device}"
            )
        if given.device.type == "cuda" and self._stream is None:
            raise EngineError(
                f"{self.manifest.name}: torch had no CUDA when the engine was opened: import it "
                "before"
            )

    def _infer(self, count: int) -> None:
        start = 0
        for size in split(count, self._sizes) if self._ports.batch else (count,):
            self._run(slice(start, start + size))
            start += size

    def _run(self, rows: slice) -> None:
        assert self._session is not None, "closed engines do not come here"
        binding = self._session.io_binding()
        images = self._images[rows].astype(self._type, copy=False)
        _bind_host(binding.bind_input, self._ports.input, images)
        for name, output in zip(self._ports.outputs, self._outputs, strict=True):
            _bind_host(binding.bind_output, name, output[rows])
        self._start(binding)

    def _bind(
        self, bind: Any, name: str, shape: tuple[int, ...], kind: np.dtype[Any], address: int
    ) -> None:
        """Connect a port with memory where the network runs."""
        bind(name, self._place.memory, self._place.index, kind.type, tuple(shape), address)

    def _start(self, binding: Any, waits: bool = True) -> None:
        assert self._session is not None, "closed engines do not come here"
        options = ort.RunOptions()
        if not waits:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # the runtime's errors have no class of their own above them
            raise EngineError(f"{self._path}: onnxruntime: {cause(error)}") from None

    def _free(self) -> None:
        self._session = self._stream = None


def suffix(precision: str, options: Options) -> str:
    """Of the file that `build` writes."""
    return ".onnx"


def build(job: Job, out: Path) -> list[Path]:
    """Write the network's graph; for "f16" one that carries the types itself.

    Raises:
        BackendError: the device is none, or does not compute in that precision.
        WeightsError: the weights are damaged or of another network.
        EngineError: the graph cannot be exported.
    """
    place = Place.parse(job.device)
    if job.precision not in OFFERED[place.provider]:
        raise BackendError(
            f"precision {job.precision!r} cannot run in onnxruntime on {place}; "
            f"it offers: {', '.join(OFFERED[place.provider])}"
        )
    job.tell("export")
    copyfile(find_graph(job.spec, job.weights, job.options, job.precision)[0], out)
    return [out]


def ties(options: Options, device: str, built: Mapping[str, str] | None = None) -> dict[str, str]:
    """The version whose successors may read the file otherwise."""
    return {"onnxruntime": ort.__version__.partition(".")[0]}


def _settings(path: Path, place: Place, largest: int, spec: ModelSpec) -> dict[str, str]:
    """A provider's options for a pose network."""
    if place.provider != "tensorrt":
        return {}
    timings = cache_folder() / "onnxruntime-tensorrt"
    # the runtime's own key knows the nodes of a graph, but not the weights in it
    folder = timings / file_hash(path)[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(f"{folder}: cannot be made: {error.strerror}") from None
    # only a session tells what the input is called
    (port,) = _open(path, Place("cpu"), None, {}).get_inputs()
    batch = port.shape[0] if isinstance(port.shape[0], int) else None
    least, most = (
        f"{port.name}:{batch or count}x3x{spec.size[0]}x{spec.size[1]}" for count in (1, largest)
    )
    return {
        "trt_fp16_enable": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(timings),
        "trt_profile_min_shapes": least,
        "trt_profile_opt_shapes": most,
        "trt_profile_max_shapes": most,
    }


def _open(
    path: Path, place: Place, threads: int | None, settings: Mapping[str, str]
) -> ort.InferenceSession:
    """A session on the provider that was asked for, and on no other in its stead.

    Args:
        path: an ONNX graph.
        place: where.
        threads: of the CPU.
        settings: of that provider, in addition to which GPU.
    """
    wanted = PROVIDERS[place.provider]
    if wanted not in ort.get_available_providers():
        raise _refused(place, "can run on", ort.get_available_providers())
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(
            str(path), options, providers=_providers(place, settings), enable_fallback=0
        )
    except Exception as error:  # the runtime's errors have no class of their own above them
        if place.provider != "cpu":
            _open(path, Place("cpu"), threads, {})  # raises if it is the graph that is at fault
            raise BackendError(f"onnxruntime cannot run on {place}: {cause(error)}") from None
        raise EngineError(f"{path}: not a readable ONNX graph: {cause(error)}") from None
    if session.get_providers()[:1] != [wanted]:
        raise _refused(place, "has taken", session.get_providers())
    return session


def _providers(place: Place, settings: Mapping[str, str]) -> list[Any]:
    """The provider that is asked for, and those that take the nodes that it does not know."""
    gpu = {"device_id": str(place.index)}
    streams = {name: value for name, value in settings.items() if "compute_stream" in name}
    cuda = {
        **gpu,
        "use_tf32": "0",  # 10 bits of mantissa are no f32
        "cudnn_conv_algo_search": "EXHAUSTIVE",  # it tries them all once for each batch size
        **streams,
    }
    match place.provider:
        case "cpu":
            return [PROVIDERS["cpu"]]
        case "cuda":
            return [(PROVIDERS["cuda"], {**cuda, **settings}), PROVIDERS["cpu"]]
        case _:
            first = (PROVIDERS["tensorrt"], {**gpu, **settings})
            return [first, (PROVIDERS["cuda"], cuda), PROVIDERS["cpu"]]


def _refused(place: Place, verb: str, found: list[str]) -> BackendError:
    return BackendError(
        f"onnxruntime was to run on {PROVIDERS[place.provider]} and {verb} {', '.join(found)}: "
        f"{_likely_reason(place.provider)}"
    )


def _likely_reason(provider: str) -> str:
    """Why a provider is not to be had, found out by loading its library as the runtime does."""
    if PROVIDERS[provider] not in ort.get_available_providers():
        return "this build has no such provider; the package onnxruntime-gpu has"
    name = f"libonnxruntime_providers_{provider}.so"
    try:
        ctypes.CDLL(str(Path(ort.__file__).with_name("capi") / name))
    except OSError as error:
        return f"its library cannot be loaded: {cause(error)}"
    return "its library can be loaded, so that a GPU or its driver is missing"


def _own_stream(place: Place) -> torch.cuda.Stream | None:
    """A stream of torch's for the session to work on, where torch is there and on CUDA.

    The default stream would not do: its address is 0, which the runtime takes for none.
    """
    torch = sys.modules.get("torch")
    if place.provider == "cpu" or torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.Stream(place.index)


def _input_type(path: Path, inputs: Mapping[str, Port], precision: str) -> np.dtype[Any]:
    """In which the graph takes its windows.

    Raises:
        EngineError: it carries half precision and float32 was asked for.
    """
    half = any(dtype == np.float16 for _, dtype in inputs.values())
    if half and precision == "f32":
        raise EngineError(f"{path}: precision: the graph is in f16, asked was f32")
    return np.dtype(np.float16 if half else np.float32)


def _widened(ports: Mapping[str, Port]) -> dict[str, Port]:
    """The ports with float32 for float16: windows are converted on their way in."""
    wide = np.dtype(np.float32)
    return {
        name: (shape, wide if dtype == np.float16 else dtype)
        for name, (shape, dtype) in ports.items()
    }


def _bind_host(bind: Any, name: str, array: npt.NDArray[Any]) -> None:
    """Connect a port with memory of the host; the runtime copies where it runs elsewhere."""
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _ports(path: Path, ports: list[Any]) -> dict[str, Port]:
    found: dict[str, Port] = {}
    for port in ports:
        if port.type not in TYPES:
            raise EngineError(f"{path}: {port.name}: type {port.type} is not supported")
        shape = tuple(axis if isinstance(axis, int) else None for axis in port.shape)
        found[port.name] = (shape, np.dtype(TYPES[port.type]))
    return found
