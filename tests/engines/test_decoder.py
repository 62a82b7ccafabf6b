"""The check of a decoding kernel: a good one passes, and each fault of one is found.

The device is made of the host's memory, and its kernel is the one for the CPU.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from device_fakes import Driver, HostMemory, at, decode_binary
from tiny_network import TINY

pytest.importorskip("fastpose._C", reason="the kernels for the CPU are not built")

from fastpose.engines.decoder import check_decoder
from fastpose.errors import EngineError
from fastpose.ops import cubin


class Device:
    """A driver whose kernel decodes as a network wants it, and memory beside it."""

    def __init__(self, spec, monkeypatch, **choices):
        channels, *cells = spec.results[0]
        shape = (channels - spec.background, *cells)
        self.spec, self.memory = spec, HostMemory()
        self.binary = decode_binary(shape, channels=channels, peaks=spec.peaks)
        plain = {"method": spec.method, "sigma": spec.sigma, "peak_value": spec.peak_value}
        self.driver = Driver(self.binary, **{**plain, **choices})
        monkeypatch.setattr(cubin, "_driver", lambda: self.driver)

    def check(self):
        check_decoder(self.binary, self.spec, self.memory)


SPECS = {
    "plain": TINY,
    "background": replace(TINY, background=True),
    "percent": replace(TINY, peak_value=100.0),
    "quarter": replace(TINY, method="quarter"),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_good_kernel_passes(monkeypatch, name):
    device = Device(SPECS[name], monkeypatch)
    device.check()
    assert device.driver.calls[0] == "cuModuleLoadData"
    assert device.driver.calls[-1] == "cuModuleUnload"
    assert device.driver.calls.count("cuLaunchKernel") == 1


@pytest.mark.parametrize("choice", [{"method": "argmax"}, {"peak_value": 2.0}, {"sigma": 40.0}])
def test_a_kernel_of_another_network_is_found(monkeypatch, choice):
    spec = replace(TINY, method="dark", size=(64, 96))
    device = Device(spec, monkeypatch, **choice)
    with pytest.raises(EngineError, match="decoding kernel does not find what the host finds"):
        device.check()


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        ("scores", lambda scores: np.nextafter(scores, np.float32(9))),
        ("scores", lambda scores: np.full_like(scores, np.nan)),
        ("points", lambda points: points + np.float32(0.01)),
        ("points", lambda points: np.full_like(points, np.nan)),
        ("points", lambda points: np.nan_to_num(points)),  # a joint where there is none
    ],
    ids=["a bit", "no score", "moved", "lost", "invented"],
)
def test_a_kernel_that_is_wrong_is_found(monkeypatch, array, fault):
    device = Device(TINY, monkeypatch)
    decode = device.driver._decode

    def wrong(count, values):
        decode(count, values)
        k = device.binary.maps[0]
        out = at(values[array], (count, k, 2) if array == "points" else (count, k), np.float32)
        out[:] = fault(out)

    device.driver._decode = wrong
    with pytest.raises(EngineError, match=r"scores are up to .* apart, at most 0, points .* px"):
        device.check()


def test_what_cannot_be_launched_is_an_error(monkeypatch):
    device = Device(TINY, monkeypatch)
    device.driver.fail = "cuLaunchKernel"
    with pytest.raises(EngineError, match="cuLaunchKernel"):
        device.check()
