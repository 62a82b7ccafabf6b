"""What an op makes once for a device, such as the taps of a blur."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

KEPT = 64  # of the constants of one sort; more are made by programs that vary them, and not again


def device_constant(make: Callable[..., T]) -> Callable[..., T]:
    """Remember what `make` returns for its arguments, of which the last is the device.

    The last `KEPT` are remembered, so that a program whose sigma changes from call to call does not
    fill the device. What is asked for while a CUDA graph is captured stays for good: the graph
    reads it at its address. It must have been asked for before, as a warm-up does, since a capture
    may not copy from the host.
    """
    captured: dict[tuple[Any, ...], T] = {}

    @functools.lru_cache(maxsize=KEPT)
    def recent(*key: Any) -> T:
        value = make(*key)
        if key[-1].type == "cuda":
            # Other streams will read it as well, and they do not wait for this one.
            _torch().cuda.current_stream(key[-1]).synchronize()
        return value

    @functools.wraps(make)
    def get(*key: Any) -> T:
        if key in captured:
            return captured[key]
        value = recent(*key)
        if is_capturing(key[-1]):
            captured[key] = value
        return value

    return get


def is_capturing(device: torch.device) -> bool:
    """Whether what is enqueued on the device now goes into a CUDA graph."""
    return device.type == "cuda" and bool(_torch().cuda.is_current_stream_capturing())


def _torch() -> Any:
    return sys.modules["torch"]  # where there is a device, somebody has imported it
