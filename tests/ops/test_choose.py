"""The dispatcher on machines that lack a kernel or a library."""

from __future__ import annotations

import types
import warnings

import numpy as np
import pytest

from fastpose.errors import BackendError
from fastpose.ops import choose as dispatch
from fastpose.ops import decode, suppress_boxes, warp

MAPS = np.eye(5, dtype=np.float32)[None, None]
FRAME, AFFINE = np.zeros((4, 4, 3), np.uint8), np.zeros((1, 2, 3), np.float32)


@pytest.fixture
def lacking(monkeypatch):
    """A function that hides modules from the dispatcher."""

    def hide(*names):
        monkeypatch.setattr(dispatch, "_has", lambda module: module not in names)

    return hide


def test_a_reference_in_numpy_needs_no_torch(lacking):
    lacking("torch")
    for backend in ("cpp", "reference", None):
        assert decode(MAPS, backend=backend)[0].shape == (1, 1, 2)
        suppress_boxes(np.ones((1, 4)), np.ones(1), backend=backend)
    with pytest.raises(BackendError, match="'triton' cannot run on cpu; usable: cpp, reference"):
        decode(MAPS, backend="triton")


def test_a_reference_in_torch_needs_torch(lacking):
    lacking("torch")
    assert warp(FRAME, AFFINE, (2, 2)).shape == (1, 3, 2, 2)
    with pytest.raises(BackendError, match="'reference' cannot run on cpu; usable: cpp"):
        warp(FRAME, AFFINE, (2, 2), backend="reference")
    lacking("torch", "fastpose._C")
    with pytest.raises(
        BackendError, match=r"_C is not built in .*pip install -e.*, and torch is not"
    ):
        warp(FRAME, AFFINE, (2, 2))
    with pytest.raises(BackendError, match="'cpp' cannot run on cpu; usable: none"):
        warp(FRAME, AFFINE, (2, 2), backend="cpp")


def test_kernels_that_were_not_built_are_missed_aloud(lacking):
    lacking("fastpose._C")
    with pytest.warns(UserWarning, match="_C is not built in .*: using the numpy reference"):
        decode(MAPS)
    with pytest.warns(UserWarning, match="_C is not built in .*: using the torch reference"):
        warp(FRAME, AFFINE, (2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(MAPS, backend="reference")
        assert dispatch.choose(None, MAPS, ()) == "reference"  # no kernel was to be expected


@pytest.mark.parametrize("fault", [ImportError("no libtriton"), OSError("GLIBC_2.99 not found")])
def test_triton_that_does_not_load_is_no_kernel(monkeypatch, fault):
    def fail(module):
        raise fault

    monkeypatch.setattr(dispatch.importlib, "import_module", fail)
    monkeypatch.setattr(dispatch, "_triton_loads", dispatch._triton_loads.__wrapped__)
    maps = types.SimpleNamespace(device=types.SimpleNamespace(type="cuda"))  # where there is none
    with pytest.raises(BackendError, match="'triton' cannot run on cuda; usable: reference"):
        dispatch.choose("triton", maps, ("cpp", "triton"))
    with pytest.warns(UserWarning, match="triton is not installed, or does not load: using"):
        assert dispatch.choose(None, maps, ("cpp", "triton")) == "reference"


def test_triton_is_the_kernel_on_cuda_and_by_name_where_it_is_interpreted(monkeypatch):
    maps = types.SimpleNamespace(device=types.SimpleNamespace(type="cuda"))
    assert dispatch.choose(None, maps, ("cpp", "triton")) == "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.choose("triton", MAPS, ("triton",)) == "triton"
    assert dispatch.choose(None, MAPS, ("triton",)) == "reference"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(BackendError, match="'triton' cannot run on cpu"):
        dispatch.choose("triton", MAPS, ("triton",))


def test_an_error_says_why():
    for name, why in (
        ("cuda", "there is no such kernel for this"),
        ("triton", "Triton needs CUDA, or its interpreter: TRITON_INTERPRET=1"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("TRITON_INTERPRET", raising=False)
            with pytest.raises(BackendError, match=f"usable: cpp, reference \\({why}\\)"):
                decode(MAPS, backend=name)
    with pytest.raises(BackendError, match="no backend 'cpu'; there are: cpp, triton, reference"):
        decode(MAPS, backend="cpu")


def test_what_keeps_kernels_for_cuda_from_running_is_told(monkeypatch):
    look = dispatch._without_cuda.__wrapped__
    compiled = types.SimpleNamespace(device_count=lambda: 0)
    monkeypatch.setattr(dispatch.importlib, "import_module", lambda name: compiled)
    assert "sees no GPU, or a driver that is too old" in look()
    compiled.device_count = lambda: 1
    assert look() == ""

    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(dispatch.importlib, "import_module", fail)
    assert "is not built: that takes nvcc" in look()
