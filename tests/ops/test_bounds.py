"""The address and undefined-behaviour sanitizers over every kernel and instruction set."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import setuptools

pytest.importorskip("pybind11")

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-O1", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture
def compiler(tmp_path):
    """The path of a g++ that has the sanitizers."""
    found = shutil.which("g++")
    if found is None:
        pytest.skip("needs g++")
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}\n")
    command = [found, *FLAGS, str(empty), "-o", str(tmp_path / "empty")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs g++ with libasan and libubsan")
    return found


def test_no_kernel_leaves_its_arrays(compiler, tmp_path, monkeypatch):
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    build = runpy.run_path("setup.py")
    sources = [name for name in build["cpu_sources"]() if not name.endswith("bindings.cpp")]
    sources.append(str(Path(__file__).with_name("bounds_check.cpp")))

    def compile_one(source: str) -> str:
        target = str(tmp_path / f"{Path(source).stem}.o")
        flags = [*FLAGS, *build["source_flags"](source), "-Icsrc", "-c"]
        subprocess.run([compiler, *flags, source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as workers:
        objects = list(workers.map(compile_one, sources))
    program = str(tmp_path / "bounds_check")
    subprocess.run([compiler, *FLAGS, *objects, "-o", program, "-pthread"], check=True)
    settings = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [program], env=settings, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
