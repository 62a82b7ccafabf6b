"""The gradient of `warp` with respect to its source: every tap gives back what it took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastpose.ops.choose import Array
from fastpose.ops.warp import WarpOptions, sample_positions, taps, usable_windows


def warp_with_gradient(
    frames: torch.Tensor,
    affines: Array,
    source: Array | None,
    areas: Array | None,
    options: WarpOptions,
    run: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """`run(frames, affines, source, areas)`, a kernel, with a gradient in `frames` [T, C, H, W]."""
    index, counts = (None if of is None else torch.as_tensor(of) for of in (source, areas))
    result: torch.Tensor = _Warp.apply(
        frames, torch.as_tensor(affines), index, counts, options, run
    )
    return result


class _Warp(torch.autograd.Function):
    """The reference's own gradient holds every tap of every sample in memory; this holds none.

    On CUDA a kernel adds the taps up in no fixed order, so that sums differ in rounding from run to
    run, unless torch is told to use deterministic algorithms.
    """

    @staticmethod
    def forward(
        ctx: Any,
        frames: torch.Tensor,
        affines: torch.Tensor,
        source: torch.Tensor | None,
        areas: torch.Tensor | None,
        options: WarpOptions,
        run: Callable[..., torch.Tensor],
    ) -> torch.Tensor:
        ctx.save_for_backward(affines, source, areas)
        ctx.options, ctx.shape, ctx.type = options, frames.shape, frames.dtype
        ctx.channels_last = frames.is_contiguous(memory_format=torch.channels_last)
        return run(frames.detach(), affines, source, areas)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        affines, source, areas = ctx.saved_tensors
        if grad.is_cuda and not torch.are_deterministic_algorithms_enabled():
            from fastpose.ops.cuda import scatter as run

            order = torch.channels_last if ctx.channels_last else torch.contiguous_format
            gradient = torch.empty(
                ctx.shape, dtype=torch.float32, device=grad.device, memory_format=order
            ).zero_()
            run(grad, affines, source, areas, gradient, ctx.options)
        else:
            gradient = scatter_reference(grad, affines, source, areas, ctx.shape, ctx.options)
        return gradient.to(ctx.type), None, None, None, None, None


def scatter_reference(
    grad: torch.Tensor,
    affines: torch.Tensor,
    source: torch.Tensor | None,
    areas: torch.Tensor | None,
    shape: torch.Size,
    options: WarpOptions,
) -> torch.Tensor:
    """The gradient in the source of `warp`, in plain torch.

    Args:
        grad: of the result, in the layout that `options` names.
        affines: as given to `warp`.
        source: as given to `warp`.
        areas: as given to `warp`; None: `options.area`.
        shape: [T, C, H, W] of the source.
        options: as `warp` made them.

    Returns:
        [T, C, H, W] float32.
    """
    count, channels, height, width = shape
    # the kernels reckon in the affines' float32 values, whatever type they come in
    affines = affines.to(grad.device, torch.float32)
    index = torch.zeros(len(affines)) if source is None else source
    index = index.to(grad.device, torch.int64)
    usable = usable_windows(affines, index, count)
    start = index.where(usable, 0)[:, None, None] * height
    grad = grad if options.out_layout == "nhwc" else grad.permute(0, 2, 3, 1)
    std = torch.tensor(options.std or (1.0,), device=grad.device)
    given = (grad.float() / std).reshape(-1, channels)
    total = given.new_zeros(count * height * width, channels)
    area = options.area if areas is None else areas.to(grad.device)
    for x, y, part in sample_positions(affines, usable, area, options.size):
        part = (part * usable)[:, None, None]
        for weight, row, column, inside in taps(x, y, (height, width)):
            share = (weight * part * inside).to(given.dtype)
            place = (start + row) * width + column
            total.index_add_(0, place.flatten(), given * share.reshape(-1, 1))
    total = total.unflatten(0, (count, height, width)).permute(0, 3, 1, 2)
    return total.flip(1) if options.swap_rb else total
