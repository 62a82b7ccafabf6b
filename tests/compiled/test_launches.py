"""What the launchers make Triton compile are the instances that are compiled ahead of time."""

from __future__ import annotations

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from fastpose.ops.triton import aot, render


class H200:
    """A driver for a GPU that is not there, on which nothing is launched."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def launched(monkeypatch):
    """A list of what is compiled for launches; the tensors may be on the CPU."""
    compiled = []
    kernel = render._render

    class Compile:
        def __getitem__(self, grid):
            return lambda *given, **named: compiled.append(
                kernel.run(*given, grid=grid, warmup=True, **named)
            )

    monkeypatch.setattr(render, "_render", Compile())
    monkeypatch.setattr(driver, "_active", H200(), raising=True)
    return compiled


RENDERED = {
    **{f"render {style}": {"style": style} for style in render.STYLES},
    "render exact, fp16": {"out": torch.float16},
    "render exact, bf16": {"out": torch.bfloat16},
    "render exact, sigma of each joint": {"sigma": torch.full((17,), 2.0)},
    "render caffe, 14 joints and background": {"style": "caffe", "people": 1},
    "render caffe, 8 people and background": {"style": "caffe", "people": 7},
}
INSTANCES = render.instances()


def test_every_render_is_launched_here():
    assert [instance.name for instance in INSTANCES] == list(RENDERED)


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda instance: instance.name)
def test_render_launches_its_instances(instance, launched):
    choice = dict(RENDERED[instance.name])
    people = choice.pop("people", None)
    shape, size = ((2, 17), (64, 48)) if people is None else ((2, people, 14), (46, 46))
    out = torch.zeros((2, 17, 64, 48), dtype=choice.pop("out", torch.float32))
    render.render(
        torch.zeros((*shape, 2)),
        torch.zeros(shape),
        size,
        **{"sigma": 2.0, "style": "exact", **choice},
        people="max" if (people or 1) == 1 else "sum-clamped",
        background=people is not None,
        peak_value=1.0,
        out=None if people else out,
    )
    expected = aot.compile_instance(instance, 90)
    assert [one.asm["ptx"] for one in launched] == [expected.asm["ptx"]]
    assert launched[0].metadata.num_warps == expected.metadata.num_warps
