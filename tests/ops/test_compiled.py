"""tests/compiled in a process of its own.

The decorator of a kernel decides, when it is imported, whether it is compiled or interpreted, and
tests/conftest.py chooses the interpreter where there is no GPU.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="Triton is made for Linux on x86-64",
)
def test_kernels_compile_without_a_gpu():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    folder = "tests/compiled"
    command = [sys.executable, "-m", "pytest", f"--confcutdir={folder}", folder]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
