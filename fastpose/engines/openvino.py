"""OpenVINO: the default on CPUs. Precision is always stated; left to itself it picks bf16."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino.frontend import (
    FrontEndManager,
    GeneralFailure,
    InitializationFailure,
    NotImplementedFailure,
    OpConversionFailure,
    OpValidationFailure,
)

from fastpose.engines.engine import (
    BufferedEngine,
    Job,
    Port,
    Request,
    cause,
    check_feeds,
    choose_precision,
    find_ports,
    split,
)
from fastpose.engines.manifest import Manifest, hash_files, versions_of
from fastpose.engines.options import Options
from fastpose.engines.source import find_graph
from fastpose.errors import BackendError, EngineError

VERSION = ov.__version__.partition("-")[0]
CAPABILITIES = {"FP32": "f32", "BF16": "bf16", "FP16": "f16"}
FRONT_END_FAILURES = (  # none of which is a RuntimeError
    GeneralFailure,
    InitializationFailure,
    NotImplementedFailure,
    OpConversionFailure,
    OpValidationFailure,
)
ARITHMETIC = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


def capabilities() -> dict[str, list[str]]:
    """The precisions that each device of this machine lists for itself."""
    return {device: _offered(device) for device in _core().available_devices}


class OpenVINOGraph:
    """Any ONNX graph, with the shapes it has; see `engine.Graph`."""

    kind = "openvino"

    def __init__(self, path: Path, device: str, precision: str, threads: int | None) -> None:
        model = _read(path)
        device = _device(device)
        if precision not in _offered(device):
            raise BackendError(f"precision {precision!r} cannot run in openvino on {device}")
        self.inputs, self.outputs = _ports(path, model.inputs), _ports(path, model.outputs)
        self._path = path
        self._request = _compile(path, model, device, precision, threads).create_infer_request()
        self.precision = _precision_found(self._request, precision)

    def __call__(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """See `engine.Graph`."""
        if self._request is None:
            raise EngineError(f"{self._path}: the graph is closed")
        check_feeds(self.inputs, feeds)
        try:
            results = self._request.infer(
                [np.ascontiguousarray(feeds[name]) for name in self.inputs], share_inputs=True
            )
        except RuntimeError as error:
            raise EngineError(f"{self._path}: openvino: {cause(error)}") from None
        return dict(zip(self.outputs, results.values(), strict=True))

    def close(self) -> None:
        """See `engine.Graph`."""
        self._request = None


class OpenVINOEngine(BufferedEngine):
    """A pose network compiled for one static batch size after the other, as they are first used.

    The runtime reads windows from the engine's buffer and writes results into it: no copies.
    """

    def __init__(self, request: Request) -> None:
        assert request.file is not None, "a graph is needed"
        self._path, self._threads = request.file, request.threads
        self._model = _read(request.file)
        outputs = _ports(request.file, self._model.outputs)
        ports = find_ports(
            request.file, _ports(request.file, self._model.inputs), outputs, request.spec
        )
        self._indices = [list(outputs).index(name) for name in ports.outputs]
        self._spec = request.spec
        self._device = _device(request.device)
        self._asked = choose_precision(request, "openvino", self._device, _offered(self._device))
        self._lock = threading.Lock()
        self._requests: dict[int, ov.InferRequest] = {}
        found = _precision_found(self._compiled(ports.batch or request.buckets[0]), self._asked)
        super().__init__(
            Manifest(
                spec=request.spec,
                kind="openvino",
                precision=found,
                precision_asked=request.precision,
                buckets=request.buckets,
                device=self._device,
                versions=versions_of(openvino=VERSION),
                files=hash_files([request.file]),
                options=request.options,
                weights_hash=request.weights_hash,
            ),
            ports.batch,
        )

    def _infer(self, count: int) -> None:
        start = 0
        for size in split(count, self._sizes):
            request, rows = self._compiled(size), slice(start, start + size)
            request.set_input_tensor(ov.Tensor(self._images[rows], shared_memory=True))
            for index, output in zip(self._indices, self._outputs, strict=True):
                request.set_output_tensor(index, ov.Tensor(output[rows], shared_memory=True))
            try:
                request.infer()
            except RuntimeError as error:
                raise EngineError(f"{self._path}: openvino: {cause(error)}") from None
            start += size

    def _compiled(self, size: int) -> ov.InferRequest:
        with self._lock:  # another thread may warm the engine up
            if size not in self._requests:
                shape = ov.PartialShape([size, 3, *self._spec.size])
                if self._model.input(0).get_partial_shape() != shape:
                    self._model.reshape(shape)
                compiled = _compile(
                    self._path, self._model, self._device, self._asked, self._threads
                )
                self._check_outputs(compiled, size)
                self._requests[size] = compiled.create_infer_request()
            return self._requests[size]

    def _check_outputs(self, compiled: ov.CompiledModel, size: int) -> None:
        """Axes that the graph left open are known only now."""
        for index, wanted in zip(self._indices, self._spec.results, strict=True):
            port = compiled.output(index)
            found = port.get_partial_shape()
            if found != ov.PartialShape([size, *wanted]):
                raise EngineError(
                    f"{self._path}: {port.any_name} must be {[size, *wanted]} for an input of "
                    f"{self._spec.size}, got {found}"
                )

    def _free(self) -> None:
        self._requests.clear()
        del self._model


@functools.cache
def _core() -> ov.Core:
    return ov.Core()


def _read(path: Path) -> ov.Model:
    # The ONNX front end itself: `Core.read_model` tries all of them and prints what they think.
    frontend = FrontEndManager().load_by_framework("onnx")
    try:
        return frontend.convert(frontend.load(str(path)))
    except (RuntimeError, *FRONT_END_FAILURES) as error:
        raise EngineError(f"{path}: not a readable ONNX graph: {cause(error)}") from None


def _compile(
    path: Path, model: ov.Model, device: str, precision: str, threads: int | None
) -> ov.CompiledModel:
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    if device == "CPU":
        # Pinned threads wait for their core when somebody else is on it, and two engines of one
        # process are pinned to the same cores.
        options["ENABLE_CPU_PINNING"] = False
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
    try:
        return _core().compile_model(model, device, options)
    except RuntimeError as error:
        raise EngineError(f"{path}: openvino on {device}: {cause(error)}") from None


def _device(name: str) -> str:
    devices = _core().available_devices
    device = "CPU" if name == "auto" else name.upper()
    if device not in devices:
        raise BackendError(
            f"openvino has no device {name!r} on this machine; it has: {', '.join(devices)}"
        )
    return device


def _offered(device: str) -> list[str]:
    listed = _core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    return [precision for name, precision in CAPABILITIES.items() if name in listed]


def _precision_found(request: ov.InferRequest, asked: str) -> str:
    """The precision of most of the arithmetic that was compiled; `asked` where there is none."""
    nodes = request.get_compiled_model().get_runtime_model().get_ops()
    found = Counter(
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in nodes
        if node.get_rt_info()["layerType"].astype(str) in ARITHMETIC
    )
    return found.most_common(1)[0][0] if found else asked


def _ports(path: Path, ports: list[Any]) -> dict[str, Port]:
    found: dict[str, Port] = {}
    for port in ports:
        shape = port.get_partial_shape()
        if shape.rank.is_dynamic:
            raise EngineError(f"{path}: {port.any_name}: the number of axes is not fixed")
        axes = tuple(None if axis.is_dynamic else axis.get_length() for axis in shape)
        found[port.any_name] = (axes, np.dtype(port.get_element_type().to_dtype()))
    return found


def suffix(precision: str, options: Options) -> str:
    """Of the runtime's file."""
    return ".xml" if precision == "int8" else ".onnx"


def build(job: Job, out: Path) -> list[Path]:
    """The network's graph, which OpenVINO compiles when it is opened, whatever the precision."""
    job.tell("export")
    copyfile(find_graph(job.spec, job.weights)[0], out)
    return [out]


def ties(options: Options, device: str, built: Mapping[str, str] | None = None) -> dict[str, str]:
    """The version whose successors may read the file otherwise."""
    return {"openvino": VERSION.partition(".")[0]}
