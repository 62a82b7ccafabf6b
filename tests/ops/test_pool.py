"""The thread pool: same results with any number of threads, after fork, from many callers."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from fastpose import _C
from fastpose.ops import warp

ROOT = Path(__file__).parents[2]

# Large enough for several pieces of parallel work, so that the pool is really used.
FRAME = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
AFFINES = np.array([[[0.5, 0.1, n], [-0.1, 0.5, 2 * n]] for n in range(64)], np.float32)
SIZE = (256, 192)

FORK = """
import os, sys
import numpy as np
from fastpose import _C
from fastpose.ops import warp
frame = np.arange(200 * 300 * 3, dtype=np.uint8).reshape(200, 300, 3)
affines = np.repeat(np.array([[[0.5, 0.1, 3], [-0.1, 0.5, 9]]], np.float32), 64, axis=0)
_C.set_num_threads(4)
before = warp(frame, affines, (256, 192))
child = os.fork()
if child == 0:
    same = np.array_equal(warp(frame, affines, (256, 192)), before)
    own_threads = len(os.listdir("/proc/self/task")) > 1
    os._exit(0 if same and own_threads else 3)
_, status = os.waitpid(child, 0)
assert np.array_equal(warp(frame, affines, (256, 192)), before)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.fixture
def threads():
    """The function that sets the number of threads; put back afterwards."""
    before = _C.get_num_threads()
    yield _C.set_num_threads
    _C.set_num_threads(before)


def test_any_number_of_threads_gives_the_same(threads):
    threads(1)
    serial = warp(FRAME, AFFINES, SIZE)
    for count in (2, 4, 16):
        threads(count)
        np.testing.assert_array_equal(warp(FRAME, AFFINES, SIZE), serial)


def test_number_of_threads(threads):
    assert 1 <= _C.get_num_threads() <= 8
    threads(3)
    assert _C.get_num_threads() == 3
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        threads(0)
    assert _C.get_num_threads() == 3


def test_a_forked_child_makes_its_own_pool():
    done = subprocess.run([sys.executable, "-c", FORK], timeout=300, check=False)
    assert done.returncode == 0


def test_many_python_threads_at_once(threads):
    threads(4)
    expected = warp(FRAME, AFFINES, SIZE)
    same = []

    def call():
        same.append(np.array_equal(warp(FRAME, AFFINES, SIZE), expected))

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=300)
    assert same == [True] * 8


def test_exceptions_nesting_and_coverage(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    program = tmp_path / "pool_check"
    sources = [Path(__file__).with_name("pool_check.cpp"), ROOT / "csrc" / "pool.cpp"]
    flags = ["-std=c++17", "-O1", "-pthread", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_public_number_of_threads():
    from fastpose import ops
    from fastpose.ops import cpp

    before = cpp.get_num_threads()
    try:
        ops.set_num_threads(3)
        assert cpp.get_num_threads() == 3
    finally:
        ops.set_num_threads(before)
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        ops.set_num_threads(0)
