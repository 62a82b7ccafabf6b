"""Registers, stack and spills of the GPU's kernels, compiled without a GPU.

Their bounds are held by tests/compiled and tests/ops/test_warp_nvcc.py; here they become rows, so
that they can be followed over time: of each op's instances for sm_80 and sm_90 with --full, else of
the first one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fastpose.bench.rows import Row

CAPABILITIES = (80, 90)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The instances of Triton's kernels, where it is installed and compiles."""
    if "instance" not in metafunc.fixturenames:
        return
    names: list[str] = []
    if os.environ.get("TRITON_INTERPRET") != "1":
        first = None if metafunc.config.getoption("--full") else 1
        with suppress(ImportError):  # of Triton, or of torch, which its instances are made for
            from fastpose.ops.triton import aot

            names = [one.name for op in aot.OPS for one in aot.instances(op)[:first]]
    metafunc.parametrize("instance", names)


@pytest.mark.parametrize("capability", CAPABILITIES)
def bench_triton_kernel(instance: str, capability: int, counted: Callable[..., Row]) -> None:
    from fastpose.ops.triton import aot

    used = aot.measure(instance, capability)
    op, _, variant = instance.partition(" ")
    counted(
        op,
        {"backend": "triton", "variant": variant, "sm": capability},
        {
            "registers": used.registers,
            "stack_bytes": used.stack,
            "spills": used.spills,
            "shared_bytes": used.shared,
        },
        device="cuda",
    )


def usage_tool() -> str | None:
    """`cuobjdump`, of CUDA or of Triton."""
    if found := shutil.which("cuobjdump"):
        return found
    try:
        import triton
    except ImportError:
        return None
    return shutil.which(str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"))


def used_by(listing: str) -> dict[tuple[str, int], dict[str, int]]:
    """What `cuobjdump -res-usage` says: kernel and capability -> the most of its instances."""
    found: dict[tuple[str, int], dict[str, int]] = {}
    capability = 0
    pattern = r"arch = sm_(\d+)|Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    for arch, symbol, *numbers in re.findall(pattern, listing):
        if arch:
            capability = int(arch)
            continue
        kernel = re.search(r"\d+([a-z]+_[a-z]+)I", symbol)
        if kernel is None:
            continue
        names = ("registers", "stack_bytes", "shared_bytes", "spill_bytes")
        now = dict(zip(names, map(int, numbers), strict=True))
        before = found.get((kernel[1], capability), now)
        found[kernel[1], capability] = {name: max(now[name], before[name]) for name in names}
    return found


def bench_cuda_kernels(counted: Callable[..., Row]) -> None:
    """Those of the built extension."""
    _C_cuda = pytest.importorskip("fastpose._C_cuda", reason="needs the CUDA part")
    tool = usage_tool()
    if tool is None:
        pytest.skip("needs cuobjdump, of CUDA or of Triton")
    command = [tool, "-res-usage", _C_cuda.__file__]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    found = used_by(listing.stdout + listing.stderr)
    assert found, "cuobjdump lists no kernel"
    for (kernel, capability), figures in found.items():
        if capability in CAPABILITIES:
            counted(kernel, {"backend": "cuda", "sm": capability}, figures, device="cuda")
