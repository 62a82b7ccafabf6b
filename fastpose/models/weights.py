"""Weight files: safetensors, fp16, with norm statistics in fp32. Nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fastpose.errors import WeightsError


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as the project keeps it: fp16, norm statistics fp32, counters dropped."""
    from safetensors.torch import save

    # `save_file` would make a file that only its owner may read.
    path.write_bytes(save({name: _stored(name, t) for name, t in state.items() if _kept(name)}))


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill `network` from a file of `save_weights`, as float32.

    Raises:
        WeightsError: the file is missing or damaged, or its names or shapes are another network's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file: {error}") from None
    expected = {name: t for name, t in network.state_dict().items() if _kept(name)}
    missing, extra = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or extra:
        raise WeightsError(
            f"{path}: weights of another network: {len(missing)} missing "
            f"({min(missing, default='-')}), {len(extra)} unknown ({min(extra, default='-')})"
        )
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise WeightsError(
                f"{path}: {name} must be {list(tensor.shape)}, got {list(state[name].shape)}"
            )
    network.load_state_dict({name: t.float() for name, t in state.items()}, strict=False)


def _kept(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _stored(name: str, tensor: Tensor) -> Tensor:
    statistic = name.endswith(("running_mean", "running_var"))
    return tensor.detach().cpu().to(torch.float32 if statistic else torch.float16).contiguous()
