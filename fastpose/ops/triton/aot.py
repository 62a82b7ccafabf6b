"""Compile the Triton kernels without a GPU, and read what the binaries need."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

OPTIONS = {"enable_fp_fusion": True}
"""Launch options of every kernel: from Triton 3.10 products and sums are not fused unasked."""

CAPABILITIES = (80, 90, 120)
"""Compute capabilities that every kernel must compile for: A100, H100 and H200, RTX 50."""

_INSTRUCTIONS = ("HGMMA", "HMMA", "UTMALDG", "LDGSTS", "LDG.E.128", "STG.E.128", "STG.E.64")
_SPILLS = ("LDL", "STL")


@dataclass(frozen=True)
class Instance:
    """One specialisation of a kernel that a launcher uses.

    Attributes:
        name: what the tables call it, unique among all kernels.
        kernel: the `triton.jit` function.
        types: of the arguments that are not constants: {"maps": "*fp32", "count": "i32"}.
            Pointers count as 16-byte aligned.
        constants: values of the constexpr arguments, and None for pointers that are not given.
        warps, stages: launch options.
        aligned: names of the integer arguments that are divisible by 16.
        capabilities: on which it is launched.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, object]
    warps: int
    stages: int
    aligned: tuple[str, ...] = ()
    capabilities: tuple[int, ...] = CAPABILITIES


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    Attributes:
        registers: of a thread.
        stack, local: bytes of a thread in local memory.
        spills: instructions that read or write local memory.
        shared: bytes of shared memory of a program.
        instructions: which of the instructions worth knowing occur: matrix products (HGMMA of a
            warp group, HMMA of a warp), copies into shared memory (UTMALDG, LDGSTS), 16-byte loads
            and stores (LDG.E.128, STG.E.128), 8-byte stores (STG.E.64).
    """

    registers: int
    stack: int
    local: int
    spills: int
    shared: int
    instructions: tuple[str, ...]

    @property
    def hgmma(self) -> bool:
        """Whether the tensor cores are fed by whole warp groups, as on sm_90."""
        return "HGMMA" in self.instructions


def compile_instance(instance: Instance, capability: int) -> CompiledKernel:
    """Compile for compute capability 80, 90, ...; no driver is needed.

    Raises:
        triton.CompilationError: the kernel is not valid; also for a wrong type of an argument.
    """
    names = list(instance.kernel.arg_names)
    types = {**instance.types, **dict.fromkeys(instance.constants, "constexpr")}
    divisible = [
        name for name, kind in types.items() if kind.startswith("*") or name in instance.aligned
    ]
    source = ASTSource(
        fn=instance.kernel,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in instance.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": instance.warps, "num_stages": instance.stages, **OPTIONS},
    )


def resources(compiled: CompiledKernel) -> Resources:
    """Read the binary with the tools that come with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = _cuobjdump("-res-usage", "-sass", file.name)
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
    return Resources(
        registers=used["REG"],
        stack=used["STACK"],
        local=used["LOCAL"],
        spills=len(re.findall(rf"\b(?:{'|'.join(_SPILLS)})\b", report)),
        shared=compiled.metadata.shared,
        instructions=tuple(name for name in _INSTRUCTIONS if name in report),
    )


def _cuobjdump(*arguments: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
