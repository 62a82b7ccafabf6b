"""What an op makes once for a device stays: a captured graph goes on reading it, by its address."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch

CPU = torch.device("cpu")
MANY = range(1, 200)
MAKERS: dict[str, tuple[str, Callable[[int], tuple]]] = {
    "taps of decode": ("triton.decode._taps", lambda i: (i,)),
    "partners of decode": ("triton.decode._partners", lambda i: ((i,),)),
    "sigmas of render": ("triton.render._sigmas", lambda i: ((float(i), 1.0),)),
    "tables of render": ("triton.render._table", lambda i: ((0.01 * i,), 9)),
    "scale of render": ("render._scale_of_number", lambda i: (float(i), 4, 4, "exact")),
    "plan of propagate": ("triton.propagate._plan", lambda i: ((-1, *[0] * i), "up")),
    "matrix of nv12": ("warp._nv12_weights", lambda i: ("bt601" if i % 2 else "bt709",)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_constant_outlives_all_others(name: str) -> None:
    path, arguments = MAKERS[name]
    if path.startswith("triton"):
        pytest.importorskip("triton")
    module, _, function = path.rpartition(".")
    make = getattr(importlib.import_module(f"fastpose.ops.{module}"), function)
    before = [make(*arguments(i), CPU) for i in MANY]
    assert all(make(*arguments(i), CPU) is first for i, first in zip(MANY, before, strict=True))
