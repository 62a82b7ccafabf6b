"""ONNX Runtime: the fallback on CPUs, float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

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

PROVIDERS = ["CPUExecutionProvider"]
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


class ONNXRuntimeGraph:
    """Any ONNX graph, with the shapes it has; see `engine.Graph`."""

    kind = "onnxruntime"

    def __init__(self, path: Path, device: str, precision: str, threads: int | None) -> None:
        _check_device(device)
        if precision != "f32":
            raise BackendError(f"precision {precision!r} cannot run in onnxruntime on cpu")
        self._path, self.precision = path, precision
        self._session: ort.InferenceSession | None = _open(path, threads)
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

    The runtime reads windows from the engine's buffer and writes results into it: no copies.
    """

    def __init__(self, request: Request) -> None:
        assert request.file is not None, "a graph is needed"
        _check_device(request.device)
        precision = choose_precision(request, "onnxruntime", "cpu", ("f32",))
        self._path = request.file
        self._session: ort.InferenceSession | None = _open(request.file, request.threads)
        inputs = _ports(request.file, self._session.get_inputs())
        outputs = _ports(request.file, self._session.get_outputs())
        self._ports = find_ports(request.file, inputs, outputs, request.spec)
        super().__init__(
            Manifest(
                spec=request.spec,
                kind="onnxruntime",
                precision=precision,
                precision_asked=request.precision,
                buckets=request.buckets,
                device="cpu",
                versions=versions_of(onnxruntime=ort.__version__),
                files=hash_files([request.file]),
                options=request.options,
                weights_hash=request.weights_hash,
            ),
            self._ports.batch,
        )

    def _infer(self, count: int) -> None:
        start = 0
        for size in split(count, self._sizes) if self._ports.batch else (count,):
            self._run(slice(start, start + size))
            start += size

    def _run(self, rows: slice) -> None:
        assert self._session is not None, "closed engines do not come here"
        binding = self._session.io_binding()
        bind_input, bind_output = binding.bind_input, binding.bind_output
        images = self._images[rows]
        bind_input(self._ports.input, "cpu", 0, np.float32, images.shape, images.ctypes.data)
        for name, output in zip(self._ports.outputs, self._outputs, strict=True):
            part = output[rows]
            bind_output(name, "cpu", 0, np.float32, part.shape, part.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # the runtime's errors have no class of their own above them
            raise EngineError(f"{self._path}: onnxruntime: {cause(error)}") from None

    def _free(self) -> None:
        self._session = None


def _open(path: Path, threads: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(path), options, providers=PROVIDERS)
    except Exception as error:  # the runtime's errors have no class of their own above them
        raise EngineError(f"{path}: not a readable ONNX graph: {cause(error)}") from None
    if session.get_providers() != PROVIDERS:
        raise BackendError(f"onnxruntime must run on {PROVIDERS}, got {session.get_providers()}")
    return session


def _check_device(name: str) -> None:
    if name.lower() not in ("auto", "cpu"):
        raise BackendError(f"onnxruntime runs on the device 'cpu' here, not on {name!r}")


def _ports(path: Path, ports: list[Any]) -> dict[str, Port]:
    found: dict[str, Port] = {}
    for port in ports:
        if port.type not in TYPES:
            raise EngineError(f"{path}: {port.name}: type {port.type} is not supported")
        shape = tuple(axis if isinstance(axis, int) else None for axis in port.shape)
        found[port.name] = (shape, np.dtype(TYPES[port.type]))
    return found


def suffix(precision: str, options: Options) -> str:
    """Of the runtime's file."""
    return ".onnx"


def build(job: Job, out: Path) -> list[Path]:
    """The network's graph."""
    job.tell("export")
    copyfile(find_graph(job.spec, job.weights)[0], out)
    return [out]


def ties(options: Options, device: str, built: Mapping[str, str] | None = None) -> dict[str, str]:
    """The version whose successors may read the file otherwise."""
    return {"onnxruntime": ort.__version__.partition(".")[0]}
