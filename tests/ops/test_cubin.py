"""Kernels of a binary, by a driver that is a library of C: what it is given, as C sees it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from device_fakes import Driver, decode_binary

from fastpose.errors import BackendError, EngineError
from fastpose.ops import DecodeKernel, compile_decode, cubin
from fastpose.ops.cubin import DecodeBinary, Kernel, driver_version, pack

MAPS = (3, 8, 6)
ADDRESSES = {"maps": 1 << 40, "affines": 32, "taps": 48, "points": 64, "scores": 80}

SOURCE = Path(__file__).parents[1] / "fake_cuda.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", SOURCE, "-o", path], check=True)
    return path


@pytest.fixture
def seen(library, monkeypatch):
    """What the library was given last."""
    monkeypatch.setattr(cubin, "_LIBRARY", str(library))
    cubin._driver.cache_clear()
    yield (ctypes.c_uint64 * 64).in_dll(ctypes.CDLL(str(library)), "seen")
    cubin._driver.cache_clear()


def test_a_launch_reaches_the_driver_as_c_declares_it(seen, library):
    kernel = Kernel(b"\x7fELF...", "_decode", 1024)
    values = [ctypes.c_uint64(value) for value in (1 << 40, 2**64 - 16, 3, 4, 5)]
    values += [ctypes.c_int32(value) for value in (-7, 2**31 - 1, 0)]
    kernel.launch(2**31 - 1, 96, values, (1 << 44) + 8)
    assert list(seen[:9]) == [2**31 - 1, 1, 1, 96, 1, 1, 1024, (1 << 44) + 8, 0]
    assert list(seen[10:15]) == [1 << 40, 2**64 - 16, 3, 4, 5]
    assert list(seen[15:18]) == [2**64 - 7, 2**31 - 1, 0]
    assert (ctypes.c_char * 64).in_dll(ctypes.CDLL(str(library)), "kernel").value == b"_decode"
    kernel.close()
    assert seen[62] == 0x123456789ABC
    seen[62] = 0
    kernel.close()
    assert seen[62] == 0


@pytest.mark.parametrize(("shared", "allowed"), [(48 << 10, 0), ((48 << 10) + 16, 8)])
def test_much_shared_memory_is_asked_for_first(seen, shared, allowed):
    seen[60] = seen[61] = 0
    Kernel(b"\x7fELF", "_decode", shared)
    assert list(seen[60:62]) == [allowed, shared if allowed else 0]


def test_a_binary_that_the_driver_refuses(seen):
    with pytest.raises(EngineError, match="cuModuleLoadData: CUDA_ERROR_NO_BINARY_FOR_GPU, 209"):
        Kernel(b"text", "_decode", 0)


def test_the_version_of_the_driver(seen, monkeypatch):
    assert driver_version() == "12.4"
    monkeypatch.setattr(cubin, "_LIBRARY", "libnothing.so.1")
    cubin._driver.cache_clear()
    with pytest.raises(BackendError, match="the CUDA driver is not there: libnothing"):
        driver_version()


def test_addresses_are_packed_by_name_and_checked():
    binary = decode_binary(MAPS)
    values = [value.value for value in pack(binary, dict(reversed(ADDRESSES.items())))]
    assert values == [1 << 40, 1 << 40, 32, 48, 64, 80, 3, 8, 6, 144, 0, 0]
    with pytest.raises(ValueError, match=r"candidates must be an address, .* got None"):
        pack(decode_binary(MAPS, peaks=2), ADDRESSES)
    with pytest.raises(ValueError, match="taps must be an address, a multiple of 16, got 40"):
        pack(binary, {**ADDRESSES, "taps": 40})


def test_nobody_is_no_launch(monkeypatch):
    binary = decode_binary(MAPS)
    driver = Driver(binary)
    monkeypatch.setattr(cubin, "_driver", lambda: driver)
    DecodeKernel(binary, (9, 0)).launch(0, {}, 0)
    assert "cuLaunchKernel" not in driver.calls
    driver.fail = "cuLaunchKernel"
    with pytest.raises(EngineError, match="cuLaunchKernel: CUDA_ERROR_INVALID_VALUE, 1"):
        DecodeKernel(binary, (9, 0)).launch(2, ADDRESSES, 77)


def test_what_is_kept_of_a_binary(tmp_path):
    binary = decode_binary(MAPS, channels=4, peaks=2)
    paths = binary.save(tmp_path / "net")
    assert DecodeBinary.load(tmp_path / "net") == binary
    assert DecodeBinary.load(tmp_path / "other") is None
    np.testing.assert_allclose(binary.taps.sum(), 1)
    whole = paths[0].read_text()
    for text in ("", "[]", "{}", whole.replace('"radius"', '"ratio"'), whole[:-30]):
        paths[0].write_text(text)
        with pytest.raises(EngineError, match=r"net\.decode\.json: not the launch data"):
            DecodeBinary.load(tmp_path / "net")
    paths[0].write_text(whole)
    paths[1].unlink()
    with pytest.raises(EngineError, match="not the launch data of a kernel"):
        DecodeBinary.load(tmp_path / "net")


def test_a_kernel_for_another_device():
    binary = replace(decode_binary(MAPS), capability=120)
    with pytest.raises(EngineError, match=r"compiled for 12\.0, this device has 9\.0"):
        DecodeKernel(binary, (9, 0))


def test_what_cannot_be_compiled_is_said(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match="cannot be compiled: Triton interprets its kernels"):
        compile_decode(MAPS, "float32", (9, 0))
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(cubin, "_without_triton", lambda: "triton is not installed")
    with pytest.raises(BackendError, match="cannot be compiled: triton is not installed"):
        compile_decode(MAPS, "float32", (9, 0))
    with pytest.raises(ValueError, match="method"):
        compile_decode(MAPS, "float32", (9, 0), method="best")
