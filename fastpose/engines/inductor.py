"""torch's compiler, inductor: for a module at once, or ahead of time into a package (.pt2).

Both ways take a module whose batch norms are folded already, and leave inductor's own folding
(its freezing) off; see `build.fold_batch_norm`. A package carries weights and machine code, for
any batch size up to its largest. For cpn-light in f32 on one core, code for one batch size alone
was as fast at 1 and 7 % faster at 8, but each size would be compiled, and kept, anew.

A package runs what it carries, as any library does: open only those from a source that is trusted.
"""

from __future__ import annotations

import json
import platform
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from fastpose.engines.build import quiet
from fastpose.engines.engine import cause
from fastpose.errors import BackendError, EngineError, FastposeError

SETTINGS = {
    "freezing": False,  # it folds norms wrongly; also against the environment's TORCHINDUCTOR_
    "cpp.dynamic_threads": True,  # else the number of threads of now is a constant of the code
    "triton.cudagraphs": False,  # capture is `fastpose.graph`'s
}
NOTE = "fastpose"  # our field of a package's metadata
MISSING = ("InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton")  # errors of torch
LEAST_TORCH = (2, 11)  # whose packages are known to be made and read as here

_COMPILING = threading.Lock()  # where inductor keeps its files is the process's


def compile_module(module: nn.Module, image: Tensor, largest: int) -> Callable[[Tensor], Tensor]:
    """A module under `torch.compile`, which compiles when it runs.

    That is so with its first number of windows, and once more, then for any number, with another.

    Args:
        module: any that `torch.export` can trace.
        image: an example, [2, 3, h, w], or [1, 3, h, w] where `largest` is 1.
        largest: windows of a run, at most.

    Raises:
        EngineError: the module cannot be traced.
    """
    # The exported module has code of its own: torch counts compilations by code, and stops.
    program = _export(module, image, largest)
    return torch.compile(program.module(), fullgraph=True, options=dict(SETTINGS))


def write_package(
    module: nn.Module, image: Tensor, largest: int, note: Mapping[str, Any], path: Path
) -> None:
    """Compile a module ahead of time into a package.

    What the compiler needs and leaves lies in a folder beside the package, and is removed.

    Args:
        module: as in `compile_module`, like the next two.
        image: as there; its device, type and layout in memory become the package's.
        largest: as there.
        note: what `read_note` is to return; plain values.
        path: ends in .pt2; its folder exists.

    Raises:
        BackendError: no C++ compiler works here, or on CUDA no Triton, or torch is too old.
        EngineError: the module cannot be traced or compiled.
    """
    _check_version(str(torch.__version__))
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpu_vec_isa import pick_vec_isa
    from torch._inductor.utils import fresh_cache

    program = _export(module, image, largest)
    settings = {
        **SETTINGS,
        "aot_inductor.metadata": {NOTE: json.dumps(dict(note))},
        "aot_inductor.precompile_headers": False,  # they would be used once
    }
    with compiling(path.stem), _COMPILING, quiet("torch._inductor"):
        pick_vec_isa()  # tries compilations, which torch's usual cache keeps; ours is thrown away
        with TemporaryDirectory(dir=path.parent) as room, fresh_cache(dir=room):
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def read_note(path: Path) -> tuple[str, dict[str, Any]]:
    """The type of the device that a package is for, and what `write_package` noted in it.

    None of its code runs for that.

    Raises:
        EngineError: the file cannot be read, or is no package of `write_package`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("_metadata.json")]
            values = json.loads(archive.read(names[0])) if names else {}
        return values["AOTI_DEVICE_KEY"], json.loads(values[NOTE])
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from None
    except zipfile.BadZipFile as error:
        raise EngineError(f"{path}: a damaged package of torch: {error}") from None
    except (KeyError, TypeError, ValueError):
        raise EngineError(f"{path}: not a package that `fastpose build` wrote") from None


def load_package(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The function in a package; it takes windows as its example was, and enqueues on CUDA.

    It is for one thread at a time. It does not look at what it is given: windows of another type,
    size or layout are undefined behaviour.

    Raises:
        EngineError: the package cannot be loaded.
    """
    from torch._inductor import aoti_load_package

    index = {} if device.index is None else {"device_index": device.index}
    try:
        # With several threads in mind it would ask events whether it is idle: no capture allows it.
        return aoti_load_package(str(path), run_single_threaded=True, **index)
    except (RuntimeError, OSError, ValueError) as error:
        raise EngineError(f"{path}: torch: {cause(error)}") from None


@contextmanager
def compiling(name: str) -> Iterator[None]:
    """Errors of the compiler in one line.

    Raises:
        BackendError: no C++ compiler works here, or on CUDA no Triton.
        EngineError: it fails otherwise.
    """
    try:
        yield
    except FastposeError:
        raise
    except Exception as error:  # whatever a compiler and its tools raise
        reason, inner = _reason(error), getattr(error, "inner_exception", error)
        if type(inner).__name__ in MISSING:
            raise BackendError(f"{name}: torch cannot compile here: {reason}") from None
        raise EngineError(f"{name}: torch cannot compile it: {reason}") from None


def processor() -> str:
    """The CPU that code compiled here is for: inductor lets it use all that this one can do."""
    lines = _cpu_lines()
    names = dict.fromkeys(value for key, value in lines if key in ("model name", "CPU part"))
    flags = {flag for key, value in lines if key in ("flags", "Features") for flag in value.split()}
    vectors = sorted(flag for flag in flags if flag.startswith(("avx", "amx", "sve")))
    name = " ".join(names) or platform.processor()
    return " ".join([platform.machine(), name, *vectors])


def _cpu_lines() -> list[tuple[str, str]]:
    """What Linux says of the CPU; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    pairs = (line.partition(":") for line in text.splitlines())
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _check_version(version: str) -> None:
    found = tuple(int(part) for part in version.split(".")[:2])
    if found < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        raise BackendError(f"compiling ahead of time needs torch {least} or later, not {version}")


def _export(module: nn.Module, image: Tensor, largest: int) -> torch.export.ExportedProgram:
    dim = torch.export.Dim
    batch = dim("batch", min=1, max=largest) if largest > 1 else dim.STATIC
    try:
        with torch.no_grad():
            return torch.export.export(module, (image,), dynamic_shapes=({0: batch},))
    except Exception as error:  # whatever the module's own code raises while it is traced
        reason = str(error).partition("\n")[0]
        raise EngineError(f"{type(module).__name__} cannot be traced: {reason}") from None


def _reason(error: BaseException) -> str:
    """The line that says what is wrong: the C++ compiler's own first complaint, or the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    complaints = [line for line in lines if "error: " in line]
    return (complaints or lines or [type(error).__name__])[0]
