"""What every test shares: the Triton interpreter without a GPU, the data folder, marked skips."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
import quick

# Shapes are small: on a busy machine a barrier costs more than a test, also in a test's children.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any library reads it

try:
    import torch
except ImportError:
    HAS_CUDA = False
else:
    HAS_CUDA = torch.cuda.is_available()
    torch.set_num_threads(1)

try:
    import tensorrt  # noqa: F401 -- the bindings may be there without the libraries
except Exception:  # in whatever way they say so
    HAS_TENSORRT = False
else:
    HAS_TENSORRT = HAS_CUDA

if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: kernels run on CPU tensors

collect_ignore_glob = ["compiled/*"]  # tests/ops/test_compiled.py runs it: Triton compiles there

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs deaf to Ctrl-C, and their children inherit it; the tests of
    # Ctrl-C send it to themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-dir",
        default=os.environ.get("FASTPOSE_DATA"),
        help="folder of data sets; without it (or FASTPOSE_DATA) the tests that read them skip",
    )
    parser.addoption(
        "--full-size",
        action="store_true",
        help="test every registered model at its full width and depth, a matter of ten minutes",
    )


def pytest_collection_finish() -> None:
    # What is imported stays: looking through it again and again is a tenth of what exports take.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    if os.environ.get("TRITON_INTERPRET") == "1":
        quick.quicken_interpreter()
    if "fastpose.engines.build" in sys.modules:  # some test exports
        quick.quicken_export()


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    """The folder of data sets."""
    folder = request.config.getoption("--data-dir")
    if not folder:
        pytest.skip("needs data sets: give --data-dir=DIR or set FASTPOSE_DATA")
    if not Path(folder).is_dir():
        pytest.fail(f"--data-dir {folder} is no folder")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {}
    if not HAS_CUDA:
        missing["gpu"] = "needs a CUDA device"
    if not HAS_TENSORRT:
        missing["tensorrt"] = "needs the TensorRT libraries and a CUDA device"
    for item in items:
        for mark, reason in missing.items():
            if mark in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))
