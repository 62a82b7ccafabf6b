"""Build the compiled parts: `fastpose._C` with g++, and `fastpose._C_cuda` where nvcc is found.

Environment:
    FASTPOSE_CUDA: 0 (never), 1 (required) or auto (the default: where nvcc runs).
    FASTPOSE_CUDA_ARCHS: compute capabilities to build for, such as 90 or 80,90; by default those of
        CUDA_ARCHS that nvcc knows. GPUs between and above them compile the code of the next older
        one when they load it; older ones than 8.0 are not supported.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
CUDA = "fastpose._C_cuda"
COMPILERS_AT_ONCE = 2

CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    # floor, sqrt and comparisons vectorise only without errno and floating-point traps
    "-fno-math-errno",
    "-fno-trapping-math",
    "-pthread",
    "-Wall",
    "-Wextra",
]
# A source file named *_avx2.cpp or *_avx512.cpp is compiled for that instruction set, and only that
# file is; which one runs is decided at run time (csrc/isa.h).
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c"]
ISA_FLAGS = {
    "_avx2": AVX2_FLAGS,
    "_avx512": [
        *AVX2_FLAGS,
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-Wno-uninitialized",  # gcc 12 says it of its own intrinsics
        "-Wno-maybe-uninitialized",
    ],
}
ISA_FLAGS["_avx512vbmi"] = [*ISA_FLAGS["_avx512"], "-mavx512vbmi", "-mavx512vnni"]
NVCC_FLAGS = [
    "-shared",
    "-std=c++17",
    "-O3",
    "--cudart=static",
    f"--threads={COMPILERS_AT_ONCE}",
    "-Xptxas=-v,-warn-spills,-warn-lmem-usage",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
]

CUDA_ARCHS = ("80", "90", "120")


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def cpu_sources() -> list[str]:
    files = [*CSRC.glob("*.cpp"), *(CSRC / "cpu").glob("*.cpp")]
    return sorted(str(f) for f in files if is_x86() or not f.stem.endswith(tuple(ISA_FLAGS)))


def source_flags(source: str) -> list[str]:
    stem = Path(source).stem
    return next((flags for end, flags in ISA_FLAGS.items() if stem.endswith(end)), [])


def find_nvcc() -> str | None:
    """The first nvcc that runs. An nvcc may be a wrapper script, so its folder proves nothing."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [str(Path(root) / "bin" / "nvcc") for root in roots if root]
    candidates += [shutil.which("nvcc") or "", "/usr/local/cuda/bin/nvcc"]
    for nvcc in filter(None, candidates):
        try:
            subprocess.run([nvcc, "--version"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return nvcc
    return None


def choose_nvcc() -> str | None:
    """The nvcc that FASTPOSE_CUDA asks for, or None with a line that says why."""
    wish = os.environ.get("FASTPOSE_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        sys.exit(f"FASTPOSE_CUDA must be 0, 1 or auto, got {wish!r}")
    if wish == "0":
        announce("CUDA part skipped: FASTPOSE_CUDA=0")
        return None
    nvcc = find_nvcc()
    if nvcc is None and wish == "1":
        sys.exit("FASTPOSE_CUDA=1, but no nvcc runs in CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda")
    if nvcc is None:
        announce("CUDA part skipped: no nvcc found (FASTPOSE_CUDA=1 makes this an error)")
    return nvcc


def cuda_archs(nvcc: str) -> list[str]:
    """Flags that name the GPUs to build for."""
    wish = os.environ.get("FASTPOSE_CUDA_ARCHS")
    if wish:
        names = wish.split(",")
        if not all(name.isdigit() for name in names):
            sys.exit(f"FASTPOSE_CUDA_ARCHS must be such as 90 or 80,90, got {wish!r}")
    else:
        command = [nvcc, "--list-gpu-arch"]
        known = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        names = [name for name in CUDA_ARCHS if f"compute_{name}" in known]
    return [f"-gencode=arch=compute_{name},code=[sm_{name},compute_{name}]" for name in names]


def announce(line: str) -> None:
    sys.stderr.write(f"fastpose: {line}\n")


class BuildExtensions(build_ext):
    """Flags by file, several files at a time, and nvcc for the CUDA part."""

    def run(self) -> None:
        self.nvcc = choose_nvcc()
        if self.nvcc is None:
            self.drop_cuda()
        super().run()

    def drop_cuda(self) -> None:
        # Outputs and in-place copies are listed from `extensions`, so a part that was not built
        # must not stay there.
        self.extensions = [e for e in self.extensions if e.name != CUDA]

    def build_extensions(self) -> None:
        for extension in list(self.extensions):
            if extension.name == CUDA:
                self.build_cuda(extension)
            else:
                self.build_cpu(extension)

    def build_cpu(self, extension: Extension) -> None:
        headers = [str(h) for h in sorted(CSRC.rglob("*.h"))]
        newest_header = max(Path(h).stat().st_mtime for h in [*headers, __file__])

        def compile_one(source: str) -> str:
            (target,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
            newest = max(newest_header, Path(source).stat().st_mtime)
            if self.force or not Path(target).exists() or Path(target).stat().st_mtime < newest:
                self.compiler.compile(
                    [source],
                    output_dir=self.build_temp,
                    include_dirs=extension.include_dirs,
                    extra_postargs=[*CXX_FLAGS, *source_flags(source)],
                )
            return str(target)

        with ThreadPoolExecutor(COMPILERS_AT_ONCE) as workers:
            objects = list(workers.map(compile_one, extension.sources))
        path = self.get_ext_fullpath(extension.name)
        self.compiler.link_shared_object(
            objects, path, extra_postargs=["-pthread"], target_lang="c++"
        )

    def build_cuda(self, extension: Extension) -> None:
        path = Path(self.get_ext_fullpath(extension.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{folder}" for folder in extension.include_dirs]
        includes.append(f"-I{sysconfig.get_paths()['include']}")
        flags = [*NVCC_FLAGS, *cuda_archs(str(self.nvcc)), *includes]
        command = [str(self.nvcc), *flags, *extension.sources, "-o", str(path)]
        announce(" ".join(command))
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            if os.environ.get("FASTPOSE_CUDA") == "1":
                raise
            announce(f"CUDA part skipped: nvcc failed with status {error.returncode} (see above)")
            self.drop_cuda()


INCLUDE = [str(CSRC), pybind11.get_include()]
EXTENSIONS = [Extension("fastpose._C", cpu_sources(), include_dirs=INCLUDE, language="c++")]
CUDA_SOURCES = sorted(str(f) for f in (CSRC / "cuda").glob("*.cu"))
if CUDA_SOURCES:
    EXTENSIONS.append(Extension(CUDA, CUDA_SOURCES, include_dirs=INCLUDE, language="c++"))

setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": BuildExtensions})
