"""The build's decisions, and what a source distribution carries."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import setuptools

pytest.importorskip("pybind11")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def build(monkeypatch):
    """The names of setup.py, run without building."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    return runpy.run_path(str(ROOT / "setup.py"))


def fake_nvcc(root: Path, status: int) -> Path:
    nvcc = root / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\nexit {status}\n")
    nvcc.chmod(0o755)
    return nvcc


def test_an_nvcc_that_does_not_run_is_passed_over(build, monkeypatch, tmp_path):
    broken, working = fake_nvcc(tmp_path / "a", 1), fake_nvcc(tmp_path / "b", 0)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("PATH", f"{working.parent}:{os.environ['PATH']}")
    assert broken.exists()
    assert build["find_nvcc"]() == str(working)


def test_cuda_can_be_switched_off(build, monkeypatch, capsys, tmp_path):
    fake_nvcc(tmp_path, 0)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("FASTPOSE_CUDA", "0")
    assert build["choose_nvcc"]() is None
    assert "CUDA part skipped: FASTPOSE_CUDA=0" in capsys.readouterr().err


def test_without_nvcc_it_is_announced_or_refused(build, monkeypatch, capsys):
    monkeypatch.setitem(build["choose_nvcc"].__globals__, "find_nvcc", lambda: None)
    monkeypatch.setenv("FASTPOSE_CUDA", "auto")
    assert build["choose_nvcc"]() is None
    assert "CUDA part skipped: no nvcc found" in capsys.readouterr().err
    monkeypatch.setenv("FASTPOSE_CUDA", "1")
    with pytest.raises(SystemExit, match="FASTPOSE_CUDA=1, but no nvcc runs"):
        build["choose_nvcc"]()
    monkeypatch.setenv("FASTPOSE_CUDA", "yes")
    with pytest.raises(SystemExit, match="FASTPOSE_CUDA must be 0, 1 or auto, got 'yes'"):
        build["choose_nvcc"]()


def test_only_files_named_for_an_instruction_set_get_its_flags(build):
    assert build["source_flags"]("csrc/cpu/warp.cpp") == []
    assert "-mavx2" in build["source_flags"]("csrc/cpu/warp_avx2.cpp")
    assert "-mavx512f" not in build["source_flags"]("csrc/cpu/warp_avx2.cpp")
    assert "-mavx512f" in build["source_flags"]("csrc/cpu/warp_avx512.cpp")


def test_other_processors_build_the_scalar_files_alone(build, monkeypatch):
    monkeypatch.setitem(build["cpu_sources"].__globals__, "is_x86", lambda: False)
    sources = build["cpu_sources"]()
    assert "csrc/cpu/warp.cpp" in sources
    assert not [name for name in sources if "avx" in name]


def test_source_distribution(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "sdist"]
    subprocess.run([*command, "-d", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    tracked = [*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.cu"), *ROOT.glob("csrc/**/*.h")]
    needed = {str(path.relative_to(ROOT)) for path in tracked}
    needed |= {f"fastpose/models/{name}.json" for name in ("lsp26", "flic18", "part_groups")}
    needed |= {"fastpose/py.typed", "fastpose/_C.pyi", "setup.py", "pyproject.toml", "LICENSE"}
    assert needed <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
