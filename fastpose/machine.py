"""Facts of this machine that explain what an engine does on it; none that tells whose it is."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "fastpose-inference",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "openvino",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "triton",
    "tensorrt",
    "tensorrt-cu12-bindings",
    "tensorrt-cu13-bindings",
    "tensorrt-cu12-libs",
    "tensorrt-cu13-libs",
    "pycuda",
    "cuda-bindings",
    "nncf",
    "nvidia-modelopt",
)
# Those that a kernel or a runtime chooses by, as Linux calls them on x86 and Arm.
INSTRUCTION_SETS = (
    "avx2",
    "avx512f",
    "avx512vbmi",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)
GPU_FIELDS = ("name", "driver_version", "compute_cap", "memory.total", "mig.mode.current")
PATIENCE = 20.0  # seconds for a program that only prints


def machine() -> dict[str, Any]:
    """Python, system, processor, memory and GPUs."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "instruction_sets": _instruction_sets(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": _memory(),
        "gpus": gpus(),
    }


def versions() -> dict[str, str]:
    """Of the packages that matter to engines, where they are installed; nothing is imported."""
    found = {}
    for name in PACKAGES:
        version = package_version(name)
        if version is not None:
            found[name] = version
    return found


def package_version(distribution: str) -> str | None:
    """As its metadata says; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def gpus() -> list[dict[str, str]]:
    """What NVIDIA's driver says of each GPU; none where there is no driver."""
    return [dict(zip(GPU_FIELDS, row, strict=False)) for row in _ask_driver(*GPU_FIELDS)]


def gpu_bytes() -> int | None:
    """Memory in use on all GPUs by all processes; None where the driver does not tell."""
    used = [row[0].partition(" ") for row in _ask_driver("memory.used")]
    if not used or any(not number.isdecimal() or unit != "MiB" for number, _, unit in used):
        return None
    return sum(int(number) << 20 for number, _, _ in used)


def _ask_driver(*fields: str) -> list[list[str]]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    return [line.split(", ") for line in done.stdout.splitlines() if line.strip()]


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _processor() -> str:
    lines = _lines("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _instruction_sets() -> list[str]:
    for line in _lines("/proc/cpuinfo"):
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            known = set(flags.split())
            return [name for name in INSTRUCTION_SETS if name in known]
    return []


def _memory() -> float | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            return round(int(line.split()[1]) / 1024**2, 1)
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
