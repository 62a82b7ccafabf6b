"""`pytest benchmarks`: options, one way to time, and the file of results.

Each benchmark checks its answer, then has `timed` take turns with the peers, and thereby makes a
row. All rows of a run go into one file. What is gated are ratios and counts, never times, with half
of the margin that is aimed at.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest
from peers import Peers
from suite import ROOT, Suite, Timed

from fastpose.bench.rows import Row
from fastpose.ops import cpp, set_num_threads

GPU = ROOT / "benchmarks" / "gpu"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastpose")
    group.addoption("--data-dir", default=os.environ.get("FASTPOSE_DATA"), help="of data sets")
    group.addoption("--results", metavar="FILE", help="instead of benchmarks/results/MACHINE/...")
    group.addoption("--machine", metavar="NAME", help="how its folder of results is called")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="that is measured")
    group.addoption("--full", action="store_true", help="all cases, which takes long")
    group.addoption("--update-counts", action="store_true", help="of benchmarks/counts")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "threads: works on several threads, timed by the wall clock")
    if hasattr(config, "workerinput") or config.getoption("numprocesses", None):
        raise pytest.UsageError("benchmarks take turns: not with -n, which runs them side by side")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --device cuda what is in benchmarks/gpu, and else all but that."""
    device = config.getoption("--device")
    others = [item for item in items if (item.path.parent == GPU) != (device == "cuda")]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Iterator[Suite]:
    own = Suite(request.config)
    yield own
    if own.rows:
        sys.stderr.write(f"\n{len(own.rows)} rows in {os.path.relpath(own.path)}\n")


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kernels on one thread, but for benchmarks marked `threads`."""
    if request.node.get_closest_marker("threads"):
        yield
        return
    pools = [(cpp.get_num_threads(), set_num_threads), (cv2.getNumThreads(), cv2.setNumThreads)]
    if torch := sys.modules.get("torch"):
        pools.append((torch.get_num_threads(), torch.set_num_threads))
    for _, limit in pools:
        limit(1)
    yield
    for threads, limit in pools:
        limit(threads)


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    """The folder of data sets; without one the benchmark is skipped."""
    given = request.config.getoption("--data-dir")
    if not given:
        pytest.skip("needs data sets: --data-dir or FASTPOSE_DATA names their folder")
    return Path(given)


@pytest.fixture(scope="session")
def peers() -> Iterator[Peers]:
    """Other projects, each in a process of its own that starts when it is first asked."""
    with Peers() as own:
        yield own


@pytest.fixture
def timed(suite: Suite, request: pytest.FixtureRequest) -> Callable[..., Row]:
    """Check, time by turns, keep the row, hold it against its limits; see `Timed.__call__`."""
    # without pytest-benchmark nothing is lost but its own table
    plugin = request.config.pluginmanager.hasplugin("benchmark")
    benchmark = request.getfixturevalue("benchmark") if plugin else None
    module = Path(request.node.path).relative_to(ROOT)
    return Timed(suite, benchmark, f"pytest {module}")
