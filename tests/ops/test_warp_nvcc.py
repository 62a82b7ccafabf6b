"""What the CUDA kernels of warp take of a GPU, read from their binaries; needs nvcc, but no GPU."""

from __future__ import annotations

import functools
import importlib.util
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[2]
CAPABILITIES = (80, 90, 120)
DOCUMENTED = "13.0"  # release of nvcc
COUNT = 31  # of INSTANCES
INSTANCES = """
#include "warp.cuh"
namespace fastpose::cuda {
#define FRAMES(T, kPairs) template __global__ void warp_frames<Interleaved, T, kPairs>( \\
    Frames, Windows, FrameOutput, int, int64_t); \\
    template __global__ void warp_frames<Nv12, T, kPairs>( \\
    Frames, Windows, FrameOutput, int, int64_t);
#define MAPS(From, To, kVector) template __global__ void warp_maps<From, To, kVector>( \\
    Maps<const From>, Windows, MapOutput, int64_t);
#define EACH(T) FRAMES(T, false) \\
    MAPS(T, float, true) MAPS(T, __half, true) MAPS(T, __nv_bfloat16, true) \\
    MAPS(T, float, false) MAPS(T, __half, false) MAPS(T, __nv_bfloat16, false) \\
    template __global__ void scatter_maps<T>( \\
        Maps<const T>, Windows, Maps<float>, const float*, bool, int64_t);
EACH(float) EACH(__half) EACH(__nv_bfloat16)
FRAMES(__half, true) FRAMES(__nv_bfloat16, true)
}
"""
KERNELS = {  # rows of docs/kernels.md and the names they stand for in a binary
    "`warp_frames`, BGR": r"warp_framesINS0_11Interleaved",
    "`warp_frames`, NV12": r"warp_framesINS0_4Nv12",
    "`warp_maps`, channels side by side": r"warp_mapsI.*Lb1E",
    "`warp_maps`, any strides": r"warp_mapsI.*Lb0E",
    "`scatter_maps`": r"scatter_mapsI",
}


@pytest.fixture(scope="module")
def nvcc():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **_: None)
        patch.chdir(ROOT)
        found = runpy.run_path("setup.py")["find_nvcc"]()
    if found is None:
        pytest.skip("needs nvcc")
    return found


@pytest.fixture(scope="module")
def compile_for(nvcc, tmp_path_factory):
    """A function: capability -> what ptxas says, and the binary's path."""
    folder = tmp_path_factory.mktemp("nvcc")
    (folder / "warp.cu").write_text(INSTANCES)

    @functools.cache
    def run(capability):
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
        if f"compute_{capability}" not in known.split():
            pytest.skip(f"this nvcc does not know sm_{capability}")
        target = folder / f"{capability}.cubin"
        command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{capability}", "-cubin", "-Xptxas=-v"]
        command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cuda'}", "warp.cu", "-o", target]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        assert done.returncode == 0, done.stderr
        return done.stderr, target

    return run


def registers(log):
    """Registers of each kernel, by its name in the binary."""
    found = re.findall(r"entry function '(\S+)'.*?Used (\d+) registers", log, re.DOTALL)
    assert len(found) == COUNT
    return {name: int(count) for name, count in found}


def most(log, kernel):
    return max(n for name, n in registers(log).items() if re.search(KERNELS[kernel], name))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_kernel_spills_or_has_a_stack(capability, compile_for):
    log, _ = compile_for(capability)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", log)
    assert len(frames) == COUNT
    assert set(frames) == {("0", "0", "0")}
    assert max(registers(log).values()) <= 48
    if capability == 90:
        assert most(log, "`warp_frames`, BGR") <= 40


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_docs_have_the_registers(kernel, capability, nvcc, compile_for):
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    if f"release {DOCUMENTED}," not in version:
        pytest.skip(f"the figures are those of nvcc {DOCUMENTED}")
    docs = (ROOT / "docs" / "kernels.md").read_text()
    cells = re.search(rf"^\| {re.escape(kernel)} \| (.*) \|$", docs, re.MULTILINE)[1].split(" | ")
    log, _ = compile_for(capability)
    assert int(cells[CAPABILITIES.index(capability)]) == most(log, kernel)


@pytest.mark.parametrize(("pairs", "upright", "turned"), [(0, 59, 66), (1, 64, 71)])
def test_instructions_of_a_pixel(compile_for, pairs, upright, turned):
    """The loops over pixels well inside a frame: two of them in a turn, in few instructions."""
    spec = importlib.util.find_spec("triton")
    folder = Path(spec.origin).parent / "backends/nvidia/bin" if spec else Path()
    tool = next(filter(None, map(shutil.which, ("nvdisasm", str(folder / "nvdisasm")))), None)
    if tool is None:
        pytest.skip("needs nvdisasm, of CUDA or of Triton")
    _, binary = compile_for(90)
    code = subprocess.run([tool, "-c", binary], capture_output=True, text=True, check=True).stdout
    name = rf"\.text\.\S*warp_framesINS0_11InterleavedE6__halfLb{pairs}E"
    sections = re.split(r"\n\s*\.section\s*", code)
    loops = loops_of(next(section for section in sections if re.match(name, section)))
    inside = [loop for loop in loops if loop.count("IDP.2A") == loop.count("LDG.E.CONSTANT") == 12]
    first, second = sorted(len(loop.splitlines()) / 2 for loop in inside)[:2]
    assert first <= upright
    assert second <= turned


def loops_of(section):
    """The instructions between a label and a jump back to it."""
    lines, labels = [], {}
    for line in section.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            lines.append(line)
            jump = re.search(r"BRA `\((\.L_x_\d+)\)", line)
            if jump and jump[1] in labels:
                yield "\n".join(lines[labels[jump[1]] :])
