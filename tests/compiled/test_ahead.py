"""A decode that is kept as a binary: what its launch packs is what the binary takes."""

from __future__ import annotations

import ctypes
import inspect
import re
from types import SimpleNamespace

import pytest
import torch
from test_launches import H200
from triton.runtime import driver

from fastpose.ops import compile_decode
from fastpose.ops.cubin import DecodeBinary, pack
from fastpose.ops.decode import _options
from fastpose.ops.triton import aot, decode

CASES = {
    "plain": ((17, 64, 48), {"dtype": "float32"}),
    "a background": ((8, 46, 46), {"dtype": "float16", "channels": 9}),
    "several joints a map": ((5, 33, 21), {"dtype": "bfloat16", "peaks": 2}),
}
CAPABILITY = (9, 0)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(maps, choices, the binary)"""
    maps, choices = CASES[request.param]
    return maps, choices, compile_decode(maps, choices["dtype"], CAPABILITY, **without(choices))


def without(choices):
    return {name: value for name, value in choices.items() if name != "dtype"}


def parameters(cubin):
    """Sizes and offsets of the parameters that the binary itself names."""
    text = aot._cuobjdump(cubin, "-elf")
    found = re.findall(r"Ordinal\s*:\s*0x(\w+)\s+Offset\s*:\s*0x(\w+)\s+Size\s*:\s*0x(\w+)", text)
    return [
        (int(offset, 16), int(size, 16))
        for _, offset, size in sorted(found, key=lambda one: int(one[0], 16))
    ]


def test_packed_values_are_of_the_sizes_that_the_binary_takes(case):
    maps, choices, binary = case
    names = ("maps", "affines", "taps", "candidates", "points", "scores")
    values = pack(binary, {name: 16 * (1 + i) for i, name in enumerate(names)})
    expected = parameters(binary.cubin)
    assert [ctypes.sizeof(value) for value in values] == [size for _, size in expected]
    end = 0
    for value, (offset, size) in zip(values, expected, strict=True):  # each on its own multiple
        assert offset == -(-end // size) * size
        end = offset + ctypes.sizeof(value)
    order = list(inspect.signature(decode._decode.fn).parameters)
    given = {one.name: value.value for one, value in zip(binary.arguments, values, strict=False)}
    assert list(given) == [name for name in order if name in given]
    pointers = {name: 16 * (1 + i) for i, name in enumerate(names)} | {"mirrored": 16}
    assert {name: given[name] for name in given if name in pointers} == {
        name: address for name, address in pointers.items() if name in given
    }
    assert binary.hidden == 2
    assert [value.value for value in values[-2:]] == [0, 0]
    k, h, w = maps
    channels = choices.get("channels", k)
    numbers = {one.name: one.value for one in binary.arguments if one.type == "i32"}
    assert (numbers["k"], numbers["h"], numbers["w"]) == maps
    assert numbers["person"] == channels * h * w
    assert numbers["joint"] == numbers["cells"] == h * w


def test_the_launcher_compiles_the_same_binary(case, monkeypatch):
    """Of as many people that the distance of a stage, which nobody reads, is as divisible."""
    maps, choices, binary = case
    compiled = []
    kernel = decode._decode

    class Compile:
        def __getitem__(self, grid):
            return lambda *given, **named: compiled.append(
                (grid, kernel.run(*given, grid=grid, warmup=True, **named))
            )

    monkeypatch.setattr(decode, "_decode", Compile())
    monkeypatch.setattr(driver, "_active", H200(), raising=True)
    k, h, w = maps
    peaks, dtype = choices.get("peaks", 1), choices["dtype"]
    given = torch.zeros((16, choices.get("channels", k), h, w), dtype=getattr(torch, dtype))
    options = _options((16, *maps), dtype, "dark", 2.0, "last", (), 0, peaks, 1.0)
    decode.decode(given[:, :k], None, torch.zeros((16, 2, 3), dtype=torch.float64), options)
    (((programs,), launched),) = compiled
    assert programs == 16 * binary.programs
    assert launched.asm["cubin"] == binary.cubin
    assert launched.metadata.name == binary.name
    assert (32 * launched.metadata.num_warps, launched.metadata.shared) == (
        binary.threads,
        binary.shared,
    )


def test_a_binary_is_kept_in_two_files(case, tmp_path):
    binary = case[2]
    paths = binary.save(tmp_path / "net.v2")
    assert [path.name for path in paths] == ["net.v2.decode.json", "net.v2.decode.cubin"]
    assert DecodeBinary.load(tmp_path / "net.v2") == binary
    assert paths[1].read_bytes().startswith(b"\x7fELF")


def test_a_kernel_that_needs_its_launcher_is_refused(case):
    ptx = ".visible .entry _decode(\n.param .u64 a,\n.param .u64 b\n)"
    plain = {"name": "_decode", "global_scratch_size": 0, "profile_scratch_size": 0}
    plain |= {"num_ctas": 1, "launch_cooperative_grid": False}
    kernel = SimpleNamespace(metadata=SimpleNamespace(**plain), asm={"ptx": ptx})
    assert aot.hidden_pointers(kernel, 0) == 2
    for change in ({"global_scratch_size": 8}, {"num_ctas": 2}, {"launch_cooperative_grid": True}):
        kernel.metadata = SimpleNamespace(**{**plain, **change})
        with pytest.raises(aot.BackendError, match="that only its own launcher can start"):
            aot.hidden_pointers(kernel, 0)
