"""torch: the module itself, batch norm folded, channels last; for CUDA without TensorRT."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastpose.engines.build import (
    detector_halves,
    predictor,
    random_detector,
    random_network,
)
from fastpose.engines.engine import (
    BufferedEngine,
    Port,
    Request,
    cause,
    check_feeds,
    choose_precision,
)
from fastpose.engines.manifest import Manifest, hash_files, versions_of
from fastpose.errors import BackendError, EngineError
from fastpose.models import create, create_detector
from fastpose.models.spec import DetectorSpec

_SETTINGS = threading.RLock()  # of cuDNN, which are the process's

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class TorchEngine(BufferedEngine):
    """A pose network as an eager module. `threads` sets the one count that torch has a process.

    It is also a `fastpose.graph.StreamEngine`.

    Attributes:
        device, type, layout: where its windows must lie, and how.
    """

    layout = "nhwc"  # as tensor cores want it

    def __init__(self, request: Request) -> None:
        spec = request.spec
        self.device = _device(request.device)
        precision = choose_precision(request, "torch", str(self.device), _offered(self.device))
        network = (
            random_network(spec.name)
            if request.file is None
            else create(spec.name, weights=request.file)
        )
        image = torch.zeros(2, 3, *spec.size)
        self.type = TYPES[precision]
        self._network: torch.nn.Module | None = predictor(network, image).to(
            self.device, self.type, memory_format=torch.channels_last
        )
        if request.threads is not None:
            torch.set_num_threads(request.threads)
        super().__init__(
            Manifest(
                spec=spec,
                kind="torch",
                precision=_precision_found(self._network),
                precision_asked=request.precision,
                buckets=request.buckets,
                device=str(self.device),
                versions=versions_of(torch=torch.__version__),
                files=hash_files([request.file] if request.file else []),
                options=request.options,
                weights_hash=request.weights_hash,
            )
        )

    def enqueue(self, windows: torch.Tensor) -> torch.Tensor:
        """See `fastpose.graph.StreamEngine`."""
        if self._network is None:
            raise EngineError(f"{self.manifest.name}: the engine is closed")
        return run_module(self.manifest.name, self._network, windows)

    def _infer(self, count: int) -> None:
        images = torch.from_numpy(self._images[:count]).to(
            self.device, self.type, memory_format=torch.channels_last
        )
        torch.from_numpy(self._result[:count]).copy_(self.enqueue(images))

    def _free(self) -> None:
        self._network = None


class TorchGraph:
    """A module in place of an ONNX graph; see `engine.Graph`.

    Attributes:
        device, type: where it computes, and in which type.
    """

    kind = "torch"

    def __init__(
        self,
        name: str,
        module: torch.nn.Module,
        inputs: dict[str, Port],
        outputs: tuple[str, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._name, self.device, self.type = name, device, dtype
        self._module: torch.nn.Module | None = module.to(
            device, dtype, memory_format=torch.channels_last
        )
        self.precision = _precision_found(self._module)
        ((self._input, (shape, _)),) = inputs.items()
        self.inputs = inputs
        example = np.zeros([side or 1 for side in shape], np.float32)
        results = self._run(example)
        self.outputs = {
            key: (tuple(value.shape), np.dtype(np.float32))
            for key, value in zip(outputs, results, strict=True)
        }

    def __call__(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """See `engine.Graph`."""
        if self._module is None:
            raise EngineError(f"{self._name}: the graph is closed")
        check_feeds(self.inputs, feeds)
        return dict(zip(self.outputs, self._run(feeds[self._input]), strict=True))

    def enqueue(self, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs for an input of `type` on `device`, without waiting for them.

        Raises:
            EngineError: the graph is closed, or torch failed.
        """
        if self._module is None:
            raise EngineError(f"{self._name}: the graph is closed")
        return tuple(run_module(self._name, self._module, given))

    def close(self) -> None:
        """See `engine.Graph`."""
        self._module = None

    def _run(self, array: npt.NDArray[Any]) -> list[npt.NDArray[np.float32]]:
        given = torch.from_numpy(np.ascontiguousarray(array)).to(
            self.device, self.type, memory_format=torch.channels_last
        )
        return [result.float().cpu().contiguous().numpy() for result in self.enqueue(given)]


def open_torch_halves(
    spec: DetectorSpec, weights: Path | None, device: str, precision: str, threads: int | None
) -> tuple[TorchGraph, TorchGraph]:
    """The two halves of a detector as modules, with random weights for None.

    Raises:
        BackendError: torch has no such device, or does not compute in `precision` there.
        WeightsError: the file is missing, damaged, or of another network.
    """
    place = _device(device)
    if precision not in _offered(place):
        raise BackendError(f"precision {precision!r} cannot run in torch on {place}")
    if threads is not None:
        torch.set_num_threads(threads)
    network = random_detector(spec.name) if weights is None else create_detector(spec.name, weights)
    first, second = detector_halves(network, spec)
    image: Port = ((1, 3, *spec.size), np.dtype(np.float32))
    windows: Port = ((spec.batch, spec.width, spec.pool, spec.pool), np.dtype(np.float32))
    levels = (f"p{level}" for level in range(spec.pooled))
    kind = TYPES[precision]
    return (
        TorchGraph(
            spec.name, first, {"image": image}, (*levels, "objectness", "deltas"), place, kind
        ),
        TorchGraph(spec.name, second, {"windows": windows}, ("logits", "deltas"), place, kind),
    )


def run_module(name: str, module: torch.nn.Module, given: torch.Tensor) -> Any:
    """What a module returns; on CUDA with the fastest algorithms that keep to its precision.

    They are looked for when a shape comes for the first time, so that goes before any capture.

    Raises:
        EngineError: torch failed; the text has its reason.
    """
    try:
        with _computing(given.device):
            return module(given)
    except RuntimeError as error:
        raise EngineError(f"{name}: torch: {cause(error)}") from None


@contextmanager
def _computing(device: torch.device) -> Iterator[None]:
    """As the engine says, whatever modes of torch its caller is in."""
    no_autocast = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(), no_autocast, _algorithms(device):
        yield


@contextmanager
def _algorithms(device: torch.device) -> Iterator[None]:
    """Algorithms of cuDNN that were tried, and none with tf32: 10 bits of mantissa are no f32."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    with _SETTINGS:
        setting: tuple[Any, str, Any] = cudnn, "allow_tf32", False
        try:
            allowed = cudnn.allow_tf32
        except RuntimeError:  # somebody has used what replaces it since torch 2.9
            setting = cudnn.conv, "fp32_precision", "ieee"
            allowed = cudnn.conv.fp32_precision
        owner, name, exact = setting
        benchmark = cudnn.benchmark
        try:
            cudnn.benchmark = True
            setattr(owner, name, exact)
            if hasattr(cudnn, "conv"):  # the old setting leaves it to what the new one says of all
                cudnn.conv.fp32_precision = "ieee"
            yield
        finally:
            cudnn.benchmark = benchmark
            setattr(owner, name, allowed)


def _precision_found(module: torch.nn.Module) -> str:
    """The precision of its weights; several with "/" between."""
    found = {parameter.dtype for parameter in module.parameters()}
    return "/".join(name for name, dtype in TYPES.items() if dtype in found)


def _device(name: str) -> torch.device:
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError:
        raise BackendError(f"torch has no device {name!r}; it has: cpu, cuda") from None
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise BackendError("torch has no device 'cuda' on this machine; it has: cpu")
    # a device without a number is whichever is current each time
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        raise BackendError(f"torch has no device {name!r}; it has: cpu, cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def _offered(device: torch.device) -> tuple[str, ...]:
    return ("f32", "bf16", "f16") if device.type == "cuda" else ("f32", "bf16")
