"""The kernels that must run on this machine: one that is missing fails its tests, it never skips.

Only a kernel for a device that is not there is skipped, with that reason (`gpu` mark).
"""

from __future__ import annotations

import os

import pytest

from fastpose import _C


def kernels(*names: str) -> list:
    """Parameters ("backend", "device"): triton on the device or, without one, by its interpreter.

    Args:
        names: "cpp", "triton", "cuda": what the op under test has.
    """
    params = []
    for name in names:
        if name == "cpp" or (name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"):
            params.append(pytest.param(name, "cpu", id=name))
        else:
            params.append(pytest.param(name, "cuda", id=name, marks=pytest.mark.gpu))
    return params


def instruction_sets() -> list[str]:
    """The values of `isa=` that this processor can run, "scalar" first."""
    names = ["scalar", "avx2", "avx512"]
    return names[: names.index(_C.best_isa()) + 1]
