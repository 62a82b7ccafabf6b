"""Instructions and heap allocations of the C++ kernels, counted by valgrind's callgrind.

A child process calls each case under the simulator, which collects only while one of `KERNELS` is
on the stack: neither Python nor numpy counts, and counts of one binary repeat exactly. The child
is the built extension as it is installed; its instruction sets go up to AVX2, for valgrind knows
no AVX-512.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

KERNELS = (  # as their symbols read; a lambda inside of one must not match, or it would end it
    "fastpose::warp_bytes(*, bool)",
    "fastpose::warp_maps(*, fastpose::Isa)",
    "fastpose::decode(*, fastpose::Isa)",
    "fastpose::decode_simcc(*, fastpose::Isa)",
    "fastpose::suppress_boxes(*Suppression const&)",
    "fastpose::suppress_poses(*Suppression const&)",
    "fastpose::fit_tree(fastpose::TreeJob const&)",
)
ALLOCATORS = ("malloc", "calloc", "realloc", "aligned_alloc", "posix_memalign", "memalign")
REQUESTS = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void stop(void) { CALLGRIND_STOP_INSTRUMENTATION; }
void zero(void) { CALLGRIND_ZERO_STATS; }
void dump(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
"""
HERE = Path(__file__).parent


class CallgrindError(RuntimeError):
    """valgrind did not count."""


@dataclass(frozen=True)
class Counts:
    """Of one call of a kernel.

    Attributes:
        instructions: executed in the kernel and in what it calls.
        allocations: calls of the C library's allocators.
    """

    instructions: int
    allocations: int


def obstacle() -> str:
    """Why nothing can be counted here, or ""."""
    if shutil.which("valgrind") is None:
        return "needs valgrind"
    if shutil.which("cc") is None:
        return "needs a C compiler for valgrind's requests"
    test = ["cc", "-E", "-x", "c", "-", "-o", os.devnull]
    done = subprocess.run(test, input=REQUESTS, text=True, capture_output=True, check=False)
    return "needs the header valgrind/callgrind.h" if done.returncode else ""


def count(keys: list[str], folder: Path, *, calls: int = 1) -> dict[str, Counts]:
    """Counts by case.

    Args:
        keys: of `kernel_cases()`.
        folder: for the simulator's files.
        calls: of each case that are counted together.

    Raises:
        CallgrindError: the child failed, or a kernel was not seen: its symbols may be stripped.
    """
    library = folder / "requests.so"
    _run(["cc", "-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)], REQUESTS)
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
    command += [f"--toggle-collect={kernel}" for kernel in KERNELS]
    command += [f"--callgrind-out-file={folder / 'counts'}"]
    command += [sys.executable, str(HERE / "counted_child.py"), str(library), str(calls), *keys]
    _run(command)
    found = {}
    for file in folder.glob("counts.*"):
        text = file.read_text(errors="replace")
        if request := re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE):
            found[keys[int(request[1])]] = Counts(_total(text), _allocations(text))
    unseen = [key for key in keys if key not in found or not found[key].instructions]
    if unseen:
        raise CallgrindError(f"nothing was counted of {unseen[0]!r}: is fastpose._C stripped?")
    return {key: found[key] for key in keys}


def _run(command: list[str], given: str | None = None) -> None:
    # One thread; and symbols are found at the start, not in the first call that is counted.
    fixed = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LD_BIND_NOW": "1"}
    environment = {**os.environ, **fixed}
    done = subprocess.run(
        command, input=given, text=True, capture_output=True, check=False, env=environment
    )
    if done.returncode:
        own = [line for line in done.stderr.splitlines() if not line.startswith("==")]
        raise CallgrindError(f"{Path(command[0]).name} failed: {own[-1] if own else 'no message'}")


def _total(text: str) -> int:
    return int(re.search(r"^totals: (\d+)", text, re.MULTILINE)[1])


def _allocations(text: str) -> int:
    """Calls of allocators by others than themselves while the simulator collected.

    It lists other calls, too, but at no cost.
    """
    names: dict[str, str] = {}

    def allocates(word: str) -> bool:
        # "(7) malloc" the first time, "(7)" later
        number, _, name = word.partition(" ")
        name = names.setdefault(number, name)
        return name in ALLOCATORS or name.startswith("operator new")

    inside, callee, calls = False, False, 0
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("fn="):
            inside = allocates(line[3:])
        elif line.startswith("cfn="):
            callee = allocates(line[4:])
        elif line.startswith("calls="):
            cost = int(next(lines).split()[1])
            if callee and not inside and cost:
                calls += int(line[6:].split()[0])
    return calls


def requests(path: str) -> ctypes.CDLL:
    """What the child tells the simulator."""
    library = ctypes.CDLL(path)
    library.dump.argtypes = [ctypes.c_char_p]
    return library
