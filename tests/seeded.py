"""Weights and inputs that anyone can make again, without a file and without torch's generator."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [0, 1), float32, that depend on `name` and the shape alone.

    They are the upper 24 bits of what PCG64, seeded with the CRC-32 of the name, puts out; numpy
    promises that stream for all versions.
    """
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return torch.from_numpy(((bits >> 40) / 2.0**24).astype(np.float32).reshape(shape))


def seed_weights(network: nn.Module) -> None:
    """Fill a network, its norm statistics included, from the names of its tensors.

    With u of `uniform`: kernels (2 u - 1) * sqrt(6 / fan_in); norm weights 0.6 + 0.8 u, those of a
    bottleneck's last norm 0.2 + 0.2 u so that a deep trunk stays in range; variances 0.5 + u;
    biases and means 0.4 u - 0.2. Kernels with "remap" or "_head" in their name, by which a stack's
    results are found and reach the next one, are a tenth of that, so that many stacks stay in
    range.
    """
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.dtype.is_floating_point:
                tensor.copy_(seeded_values(name, tuple(tensor.shape)))


def seeded_values(name: str, shape: tuple[int, ...]) -> Tensor:
    """What `seed_weights` fills a tensor of that name and shape with."""
    u = uniform(name, shape)
    if u.ndim == 4:
        strength = 0.1 if "remap" in name or "_head" in name else 1.0
        return strength * (2 * u - 1) * (6 / u[0].numel()) ** 0.5
    if name.endswith("running_var"):
        return 0.5 + u
    if name.endswith("bn3.weight"):
        return 0.2 + 0.2 * u
    if name.endswith("weight"):
        return 0.6 + 0.8 * u
    return 0.4 * u - 0.2
