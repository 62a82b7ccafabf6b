"""torch: the module itself, batch norm folded, channels last; for CUDA without TensorRT."""

from __future__ import annotations

import torch

from fastpose.engines.build import fold_batch_norm, random_network
from fastpose.engines.engine import BufferedEngine, Request, cause, choose_precision
from fastpose.engines.manifest import Manifest, file_hash
from fastpose.errors import BackendError, EngineError
from fastpose.models import create, final_maps

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class TorchEngine(BufferedEngine):
    """A pose network as an eager module. `threads` sets the one count that torch has a process."""

    def __init__(self, request: Request) -> None:
        spec = request.spec
        self._device = _device(request.device)
        precision = choose_precision(request, "torch", str(self._device), _offered(self._device))
        network = (
            random_network(spec.name)
            if request.file is None
            else create(spec.name, weights=request.file)
        )
        image = torch.zeros(2, 3, *spec.size)
        self._type = TYPES[precision]
        self._network: torch.nn.Module | None = fold_batch_norm(network, image).to(
            self._device, self._type, memory_format=torch.channels_last
        )
        if request.threads is not None:
            torch.set_num_threads(request.threads)
        found = {parameter.dtype for parameter in self._network.parameters()}
        super().__init__(
            Manifest(
                spec=spec,
                kind="torch",
                precision="/".join(name for name, dtype in TYPES.items() if dtype in found),
                precision_asked=request.precision,
                buckets=request.buckets,
                device=str(self._device),
                versions={"torch": torch.__version__},
                file=request.file.name if request.file else "",
                file_hash=file_hash(request.file) if request.file else "",
                weights_hash=request.weights_hash,
            )
        )

    def _infer(self, count: int) -> None:
        assert self._network is not None, "closed engines do not come here"
        images = torch.from_numpy(self._images[:count]).to(
            self._device, self._type, memory_format=torch.channels_last
        )
        try:
            with torch.inference_mode():
                heatmaps = final_maps(self._network(images))
        except RuntimeError as error:
            raise EngineError(f"{self.manifest.name}: torch: {cause(error)}") from None
        torch.from_numpy(self._result[:count]).copy_(heatmaps)

    def _free(self) -> None:
        self._network = None


def _device(name: str) -> torch.device:
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError:
        raise BackendError(f"torch has no device {name!r}; it has: cpu, cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("torch has no device 'cuda' on this machine; it has: cpu")
    return device


def _offered(device: torch.device) -> tuple[str, ...]:
    return ("f32", "bf16", "f16") if device.type == "cuda" else ("f32", "bf16")
