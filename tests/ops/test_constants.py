"""What is made once for a device, and how long it stays."""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from fastpose.ops import constants  # noqa: E402

CPU = torch.device("cpu")
MAKERS: dict[str, tuple[str, Callable[[int], tuple]]] = {
    "taps of decode": ("triton.decode._taps", lambda i: (i,)),
    "partners of decode": ("triton.decode._partners", lambda i: ((i,),)),
    "sigmas of render": ("triton.render._sigmas", lambda i: ((float(i), 1.0),)),
    "tables of render": ("triton.render._table", lambda i: ((0.01 * i,), 9)),
    "scale of render": ("render._scale_of_number", lambda i: (float(i), 4, 4, "exact")),
    "plan of propagate": ("triton.propagate._plan", lambda i: ((-1, *[0] * i), "up")),
    "values of warp": ("cuda._constant", lambda i: (bytes([i, 0, 0, 0]),)),
}


@pytest.fixture(params=MAKERS)
def maker(request):
    """A maker of constants, and arguments for it by number."""
    path, arguments = MAKERS[request.param]
    needed = {"triton": "triton", "cuda": "fastpose._C_cuda"}.get(path.partition(".")[0])
    if needed:
        pytest.importorskip(needed, reason=f"{needed} is not installed here")
    module, _, function = path.rpartition(".")
    return getattr(importlib.import_module(f"fastpose.ops.{module}"), function), arguments


def test_it_is_made_once(maker):
    make, arguments = maker
    assert make(*arguments(1), CPU) is make(*arguments(1), CPU)
    assert make(*arguments(1), CPU) is not make(*arguments(2), CPU)


def test_what_a_graph_has_captured_outlives_all_others(maker, monkeypatch):
    make, arguments = maker
    monkeypatch.setattr(constants, "is_capturing", lambda device: True)
    captured = make(*arguments(3), CPU)
    monkeypatch.undo()
    for i in range(4, 4 + 2 * constants.KEPT):
        make(*arguments(i), CPU)
    assert make(*arguments(3), CPU) is captured


def test_what_no_graph_reads_is_dropped_in_the_end():
    class Constant:
        pass

    @constants.device_constant
    def make(number: int, device: torch.device) -> Constant:
        return Constant()

    first = weakref.ref(make(0, CPU))
    for i in range(1, constants.KEPT):
        make(i, CPU)
    assert first() is make(0, CPU)
    for i in range(1, 1 + constants.KEPT):
        make(i, CPU)
    gc.collect()
    assert first() is None
