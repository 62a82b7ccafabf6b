"""The kernels that must run on this machine: one that is missing fails its tests, it never skips.

Only a kernel for a device that is not there is skipped, with that reason (`gpu` mark).
"""

from __future__ import annotations

import pytest

from fastpose import _C

DEVICES = {"cpp": "cpu", "triton": "cpu", "cuda": "cuda"}


def kernels(*names: str) -> list:
    """Parameters (backend, device) for "backend, device"; triton runs on the CPU by interpreter.

    Triton and CUDA kernels are also listed on the device itself, marked `gpu`.
    """
    params = [pytest.param(name, "cpu", id=name) for name in names if DEVICES[name] == "cpu"]
    on_gpu = [name for name in names if name != "cpp"]
    return params + [
        pytest.param(name, "cuda", id=f"{name}-gpu", marks=pytest.mark.gpu) for name in on_gpu
    ]


def instruction_sets() -> list[str]:
    """The values of `isa=` that this processor can run, "scalar" first."""
    names = ["scalar", "avx2", "avx512"]
    return names[: names.index(_C.best_isa()) + 1]
