"""Compile the Triton kernels without a GPU, and read what the binaries need.

`python -m fastpose.ops.triton.aot docs/kernels.md` makes the tables of that page anew.
"""

from __future__ import annotations

import functools
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from fastpose.errors import BackendError

OPTIONS = {"enable_fp_fusion": True}
"""Launch options of every kernel: from Triton 3.10 products and sums are not fused unasked."""

CAPABILITIES = (80, 90, 120)
"""Compute capabilities that every kernel must compile for: A100, H100 and H200, RTX 50."""

OPS = ("decode", "render", "propagate")
"""The modules of this package with kernels; each has `instances()`."""

_INSTRUCTIONS = ("HGMMA", "HMMA", "DMMA", "LDGSTS", "LDG.E.128", "STG.E.128", "STG.E.64")


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
        registers: most of a thread, as a launch option; None leaves it to the compiler.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, object]
    warps: int
    stages: int
    aligned: tuple[str, ...] = ()
    capabilities: tuple[int, ...] = CAPABILITIES
    registers: int | None = None


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    Attributes:
        registers: of a thread.
        stack, local: bytes of a thread in local memory.
        shared: bytes of shared memory of a program.
        cubin: the binary.
    """

    registers: int
    stack: int
    local: int
    shared: int
    cubin: bytes = field(repr=False)

    @functools.cached_property
    def assembly(self) -> str:
        """The instructions; to write them out takes longer than a small kernel's compilation."""
        return _cuobjdump(self.cubin, "-sass")

    @property
    def spills(self) -> int:
        """Instructions that read or write local memory."""
        return len(re.findall(r"\b(?:LDL|STL)\b", self.assembly))

    @property
    def instructions(self) -> tuple[str, ...]:
        """Which of the instructions worth knowing occur.

        Matrix products (HGMMA of four warps together, HMMA and in double DMMA of one), copies into
        shared memory that no thread waits for (LDGSTS), loads and stores of 16 and 8 bytes.
        """
        return tuple(name for name in _INSTRUCTIONS if name in self.assembly)

    @property
    def hgmma(self) -> bool:
        """Whether whole warp groups feed the tensor cores, as only sm_90 can."""
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
        options={
            "num_warps": instance.warps,
            "num_stages": instance.stages,
            "maxnreg": instance.registers,
            **OPTIONS,
        },
    )


def hidden_pointers(compiled: CompiledKernel, declared: int) -> int:
    """How many null pointers the binary takes behind the arguments that are declared.

    Args:
        compiled: with Triton's own arguments: pointers to scratch memory, of 0 bytes.
        declared: arguments with a place in the binary.

    Raises:
        BackendError: it needs more than that of its launcher: memory, clusters of programs.
    """
    metadata = compiled.metadata
    (entry,) = re.findall(r"\.entry \w+\((.*?)\)", compiled.asm["ptx"], re.DOTALL)
    hidden = re.findall(r"\.param \.(\w+)", entry)[declared:]
    plain = (
        set(hidden) <= {"u64", "b64"}
        and (metadata.global_scratch_size, metadata.profile_scratch_size) == (0, 0)
        and metadata.num_ctas == 1
        and not metadata.launch_cooperative_grid
    )
    if not plain:
        raise BackendError(
            f"Triton {triton.__version__} compiles {metadata.name} to a kernel that only its own "
            "launcher can start"
        )
    return len(hidden)


def resources(compiled: CompiledKernel) -> Resources:
    """Read the binary with the tools that come with Triton."""
    cubin = compiled.asm["cubin"]
    usage = _cuobjdump(cubin, "-res-usage")
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Resources(
        used["REG"], used["STACK"], used["LOCAL"], int(compiled.metadata.shared), cubin
    )


def _cuobjdump(cubin: bytes, option: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def instances(op: str) -> list[Instance]:
    """The specialisations of one of `OPS`."""
    found: list[Instance] = importlib.import_module(f"fastpose.ops.triton.{op}").instances()
    return found


@functools.cache
def measure(name: str, capability: int) -> Resources:
    """Compile the instance of that name, once, and read what it takes."""
    everything = (instance for op in OPS for instance in instances(op))
    instance = next(one for one in everything if one.name == name)
    return resources(compile_instance(instance, capability))


def table(op: str) -> str:
    """Markdown: a row for each instance, with what it takes on each architecture."""
    heads = ["kernel", "warps", *(f"sm_{one}" for one in CAPABILITIES), "instructions on sm_90"]
    rows = [heads, ["---"] * len(heads), *(_figures(instance) for instance in instances(op))]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows)


def _figures(instance: Instance) -> list[str]:
    used = {one: measure(instance.name, one) for one in instance.capabilities}
    return [
        instance.name,
        str(instance.warps),
        *(figure(used[one]) if one in used else "" for one in CAPABILITIES),
        ", ".join(used[90].instructions) if 90 in used else "",
    ]


def figure(used: Resources) -> str:
    """A cell of the table: registers, and shared memory if there is any."""
    return f"{used.registers} + {used.shared} B" if used.shared else str(used.registers)


def renew(text: str) -> str:
    """Markdown with the table under the heading of each op, such as "## Render", made anew."""
    for op in OPS:
        start = text.index("| kernel |", text.index(f"\n## {op.capitalize()}\n"))
        text = text[:start] + table(op) + text[text.index("\n\n", start) :]
    return text


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(renew(page.read_text()))
    sys.stdout.write(f"{page} has the figures of Triton {triton.__version__}\n")
