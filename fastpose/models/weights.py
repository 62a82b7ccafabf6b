"""Weight files: safetensors, fp16, with norm statistics in fp32. Nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fastpose.errors import WeightsError

LARGEST_HALF = 65504.0


def save_weights(state: dict[str, Tensor], path: Path, *, half: bool = True) -> None:
    """Write a state dict without its counters, as the project keeps weights.

    Args:
        state: of a network.
        path: the file; its folder exists.
        half: in fp16, but for norm statistics and tensors that leave its range; else all in fp32.
    """
    from safetensors.torch import save

    stored = {name: _stored(name, t, half) for name, t in state.items() if is_weight(name)}
    # `save_file` would make a file that only its owner may read.
    path.write_bytes(save(stored))


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill `network` from a file of `save_weights`, as float32.

    Raises:
        WeightsError: the file is missing or damaged, or its names or shapes are another network's.
    """
    state = read_weights(path)
    expected = {name: t for name, t in network.state_dict().items() if is_weight(name)}
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


def start_detector(network: nn.Module, path: Path) -> int:
    """Fill a detector with the weights of another one, or its trunk with what fits in them.

    Args:
        network: to be filled in place; its trunk is the child of that name.
        path: a file of `save_weights`: of such a detector, or of a network on such a trunk.

    Returns:
        How many tensors were filled; the others are left as they are.

    Raises:
        WeightsError: the file is missing or damaged, or nothing in it fits.
    """
    state = read_weights(path)
    own = {name: t.shape for name, t in network.state_dict().items() if is_weight(name)}
    if own == {name: tensor.shape for name, tensor in state.items()}:
        load_weights(network, path)
        return len(own)
    state = {_in_trunk(name): tensor for name, tensor in state.items()}
    trunk = network.get_submodule("trunk").state_dict()
    fits = [n for n, t in trunk.items() if n in state and state[n].shape == t.shape]
    if not fits:
        raise WeightsError(f"{path}: nothing in it fits the trunk")
    for name in fits:
        trunk[name].copy_(state[name])
    return len(fits)


def _in_trunk(name: str) -> str:
    """The trunk's own name of a tensor: networks that have it under a name put that before."""
    return name.removeprefix("trunk.").removeprefix("resnet.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name, as they are kept.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file: {error}") from None


def is_weight(name: str) -> bool:
    """A tensor of that name does something; a norm's counter of batches does not."""
    return not name.endswith("num_batches_tracked")


def _stored(name: str, tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu()
    statistic = name.endswith(("running_mean", "running_var"))
    fits = half and not statistic and not bool((tensor.abs() > LARGEST_HALF).any())
    return tensor.to(torch.float16 if fits else torch.float32).contiguous()
