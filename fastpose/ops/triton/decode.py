"""`decode` in Triton: one launch for every map of every person.

A program owns one map, or a few channels of a channels-last tensor, from its bytes to the point in
the frame: a running maximum in every lane, one reduction, and then the method on a window round
the peak, which is still in the cache. Nothing but points and scores is written.

The merged values are float32 in the order of the reference, so peaks and scores are equal bit for
bit. What follows the peak is float64: on noise the Newton steps of "taylor", "dark" and "udp"
divide by nearly singular Hessians, and float32 would be wrong by whole cells. It is a few hundred
multiplications a map, and the blurs are products of small matrices for the float64 tensor cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl

from fastpose.ops.constants import device_constant
from fastpose.ops.cubin import Argument, DecodeBinary
from fastpose.ops.decode import (
    CPN_RADIUS,
    FLAT,
    LOG_FLOOR,
    METHODS,
    PEAK_DISTANCE,
    SOFT_SHARPNESS,
    UDP_EPSILON,
    UDP_RANGE,
    DecodeOptions,
    blur_radius,
    blur_taps,
)
from fastpose.ops.triton.aot import OPTIONS, Instance, compile_instance, hidden_pointers

if TYPE_CHECKING:
    from fastpose.ops.choose import Array

_INFINITY = tl.constexpr(float("inf"))
_FLAT = tl.constexpr(FLAT)
_LOG_FLOOR = tl.constexpr(LOG_FLOOR)
_PEAK_DISTANCE = tl.constexpr(PEAK_DISTANCE)
_SOFT_SHARPNESS = tl.constexpr(SOFT_SHARPNESS)
_UDP_EPSILON = tl.constexpr(UDP_EPSILON)
_UDP_LOW = tl.constexpr(UDP_RANGE[0])
_UDP_HIGH = tl.constexpr(UDP_RANGE[1])
# Stands for -infinity in a blur: far below every float32, and 0 times it is 0 and not NaN.
_LOWEST = tl.constexpr(-1e300)
_REACH = tl.constexpr(2)  # cells from the peak to the farthest that a step reads
_DEPTH = tl.constexpr(16)  # rows of a patch that are held at a time


# Reading. A "source" is (map, mirrored, w, step, back_step, stage, back_stage): pointers to the
# first cells, the width, and the elements from one cell and from one stage to the next.


@triton.jit
def _partner_maps(mirrored, partners, channel, there, joint, FLIP: tl.constexpr):
    if FLIP:
        mirrored += tl.load(partners + channel, mask=there, other=0).to(tl.int64) * joint
    return mirrored


@triton.jit
def _joined(maps, offset, inside, other, stage, STAGES: tl.constexpr, MEAN: tl.constexpr):
    value = tl.load(maps + offset, mask=inside, other=other).to(tl.float32)
    for _ in tl.static_range(1, STAGES):
        maps += stage
        value += tl.load(maps + offset, mask=inside, other=other).to(tl.float32)
    if MEAN:
        value = tl.div_rn(value, tl.full(value.shape, STAGES, tl.float32))
    return value


@triton.jit
def _merged(source, cell, inside, other, MERGE: tl.constexpr):
    """The merged values of cells, counted in row order; NaN is still NaN."""
    STAGES: tl.constexpr = MERGE[0]
    MEAN: tl.constexpr = MERGE[1]
    FLIP: tl.constexpr = MERGE[2]
    SHIFT: tl.constexpr = MERGE[3]
    maps, mirrored, w, step, back_step, stage, back_stage = source
    value = _joined(maps, cell * step, inside, other, stage, STAGES, MEAN)
    if FLIP:
        x = cell % w
        # A shift leaves the first column in place.
        partner = cell - x + (w - 1) - tl.maximum(x - SHIFT, 0)
        back = _joined(mirrored, partner * back_step, inside, other, back_stage, STAGES, MEAN)
        value = (value + back) * 0.5
    return value


@triton.jit
def _heights(source, cell, inside, MERGE: tl.constexpr):
    """The merged values of cells, NaN and what is not `inside` as 0, float64."""
    value = _merged(source, cell, inside, 0.0, MERGE)
    return tl.where(value == value, value, 0.0).to(tl.float64)


# Blurring


@triton.jit
def _mirror(i, size):
    """`i` mirrored into [0, size) without repeating the edge, as often as it takes."""
    period = tl.maximum(2 * (size - 1), 1)
    i = tl.abs(i) % period
    return tl.minimum(i, period - i)


@triton.jit
def _blurred(
    source,
    h,
    top,
    left,
    taps,
    RADIUS: tl.constexpr,
    SIDE: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    MIRROR: tl.constexpr,
    MERGE: tl.constexpr,
):
    """[8, 8] blurred cells from (top, left) on, of which the first DOWN x ACROSS are right.

    D V A, with V the cells of the map round them, SIDE columns, and D and A the matrices of the
    taps. Beyond the map are the blurred cells of its edge.
    """
    w = source[2]
    within = tl.arange(0, SIDE)
    column = (left - RADIUS + within)[None, :]
    used = (within < ACROSS + 2 * RADIUS)[None, :]
    if MIRROR:
        column = _mirror(column, w)
    used &= (column >= 0) & (column < w)
    out_row = tl.minimum(tl.maximum(top + tl.arange(0, 8), 0), h - 1)[:, None]
    down = tl.zeros([8, SIDE], tl.float64)
    for start in range(0, DOWN + 2 * RADIUS, _DEPTH):
        deep = start + tl.arange(0, _DEPTH)
        row = (top - RADIUS + deep)[:, None]
        kept = (deep < DOWN + 2 * RADIUS)[:, None]
        if MIRROR:
            row = _mirror(row, h)
        kept &= (row >= 0) & (row < h)
        heights = tl.maximum(_heights(source, row * w + column, used & kept, MERGE), _LOWEST)
        # A sum of one: seen through to a load of 2 bytes, the layout that is chosen for the product
        # is one that the compiler has no float64 code for.
        heights = tl.sum(heights[:, :, None], axis=2)
        tap = top + deep[None, :] - out_row
        weights = tl.load(taps + tap, mask=(tap >= 0) & (tap <= 2 * RADIUS), other=0.0)
        down = tl.dot(weights, heights, down, out_dtype=tl.float64)
    out_column = tl.minimum(tl.maximum(left + tl.arange(0, 8), 0), w - 1)[None, :]
    tap = left + within[:, None] - out_column
    weights = tl.load(taps + tap, mask=(tap >= 0) & (tap <= 2 * RADIUS), other=0.0)
    return tl.dot(down, weights, out_dtype=tl.float64)


@triton.jit
def _highest_blurred(
    source,
    h,
    hidden,
    taps,
    RADIUS: tl.constexpr,
    SIDE: tl.constexpr,
    ROUND: tl.constexpr,
    MERGE: tl.constexpr,
):
    """The maximum of the map blurred with zeros outside, and its first cell in row order.

    The cell `hidden` counts as 0. With ROUND the values are float32 first, so that what is level
    stays level whatever the order of the sums.
    """
    w = source[2]
    best = tl.full([], -_INFINITY, tl.float64)
    place = tl.full([], 0, tl.int32)
    # As many columns as SIDE allows, and few registers.
    ACROSS: tl.constexpr = min(8, SIDE - 2 * RADIUS)
    across = tl.cdiv(w, ACROSS)
    tile = tl.full([], 0, tl.int32)
    while tile < tl.cdiv(h, 8) * across:
        top = tile // across * 8
        left = tile % across * ACROSS
        value = _blurred(source, h, top, left, taps, RADIUS, SIDE, 8, ACROSS, False, MERGE)
        if ROUND:
            value = value.to(tl.float32).to(tl.float64)
        row = top + tl.arange(0, 8)[:, None]
        column = left + tl.arange(0, 8)[None, :]
        cell = row * w + column
        value = tl.where(cell == hidden, 0.0, value)
        inside = (row < h) & (column < w) & (column < left + ACROSS)
        value = tl.where(inside, value, -_INFINITY)
        highest = tl.max(value)
        first = tl.min(tl.where(value == highest, cell, h * w))
        better = (highest > best) | ((highest == best) & (first < place))
        place = tl.where(better, first, place)
        best = tl.maximum(best, highest)
        tile += 1
    return best, place


# Stepping from the peak


@triton.jit
def _weigh(heights, weights):
    """The weighted sum; a cell of weight 0 does not count even where it is infinite."""
    return tl.sum(tl.where(weights != 0.0, heights, 0.0) * weights)


@triton.jit
def _derivatives(heights, SPACING: tl.constexpr):
    """gx, gy, xx, xy, yy at the cell (2, 2) of 8 x 8, by second differences of that spacing."""
    dy = tl.arange(0, 8)[:, None] - _REACH
    dx = tl.arange(0, 8)[None, :] - _REACH
    one = tl.full([8, 8], 1.0, tl.float64)
    across = tl.abs(dx) + (dy != 0) * 8  # the distance along an axis; far off it
    down = tl.abs(dy) + (dx != 0) * 8
    gx = _weigh(heights, tl.where(across == 1, 0.5 * dx.to(tl.float64), 0.0))
    gy = _weigh(heights, tl.where(down == 1, 0.5 * dy.to(tl.float64), 0.0))
    near: tl.constexpr = 1.0 / (SPACING * SPACING)
    here = tl.where(across == 0, -2.0 * near, 0.0)
    xx = _weigh(heights, one * tl.where(across == SPACING, near, here))
    yy = _weigh(heights, one * tl.where(down == SPACING, near, here))
    if SPACING == 2:
        diagonal = (tl.abs(dx) == 1) & (tl.abs(dy) == 1)
        mixed = tl.where(diagonal, 0.25 * (dx * dy).to(tl.float64), 0.0)
    else:
        beside = (across == 1) | (down == 1)
        diagonal = (tl.abs(dx + dy) == 2) & (dx == dy)
        mixed = tl.where(diagonal, 0.5, tl.where(beside, -0.5, tl.where(across == 0, 1.0, 0.0)))
    xy = _weigh(heights, one * mixed)
    return gx, gy, xx, xy, yy


@triton.jit
def _between(heights, LOW: tl.constexpr, HIGH: tl.constexpr):
    # As float64, which a bare number is not.
    low, high = tl.full([], LOW, tl.float64), tl.full([], HIGH, tl.float64)
    return tl.minimum(tl.maximum(heights, low), high)


@triton.jit
def _newton(gx, gy, xx, xy, yy):
    """-Hessian^-1 gradient; no step where that is not finite or the Hessian is only rounding."""
    determinant = xx * yy - xy * xy
    level = tl.abs(determinant) < _FLAT
    # One division: each is a subroutine in float64. By 1 where no step is made.
    inverse = 1.0 / tl.where(level, 1.0, determinant)
    dx = (xy * gy - yy * gx) * inverse
    dy = (xy * gx - xx * gy) * inverse
    moved = (tl.abs(dx) < _INFINITY) & (tl.abs(dy) < _INFINITY) & (level == 0)
    return tl.where(moved, dx, 0.0), tl.where(moved, dy, 0.0)


@triton.jit
def _along_axis(slope, curvature, inside, METHOD: tl.constexpr):
    if METHOD == "quarter":
        rises = (slope > 0.0).to(tl.int32) - (slope < 0.0).to(tl.int32)
        step = 0.25 * rises.to(tl.float64)
    else:
        inside &= curvature != 0.0
        step = -slope / tl.where(inside, curvature, 1.0)
    return tl.where(inside & (tl.abs(step) < _INFINITY), step, 0.0)


@triton.jit
def _soft_step(source, h, y, x, peak, REACH: tl.constexpr, SIDE: tl.constexpr, MERGE: tl.constexpr):
    w = source[2]
    total = tl.zeros([8, SIDE], tl.float64)
    sum_x = tl.zeros([8, SIDE], tl.float64)
    sum_y = tl.zeros([8, SIDE], tl.float64)
    dx = (tl.arange(0, SIDE) - REACH)[None, :]
    for start in range(-REACH, REACH + 1, 8):
        dy = (start + tl.arange(0, 8))[:, None]
        row, column = y + dy, x + dx
        inside = (dx <= REACH) & (dy <= REACH)
        inside &= (row >= 0) & (row < h) & (column >= 0) & (column < w)
        height = _heights(source, row * w + column, inside, MERGE) / peak
        weight = tl.where(inside, tl.exp((height - 1.0) * _SOFT_SHARPNESS), 0.0)
        total += weight
        sum_x += weight * dx
        sum_y += weight * dy
    whole = tl.sum(total)
    return tl.sum(sum_x) / whole, tl.sum(sum_y) / whole


@triton.jit
def _cpn_step(
    source,
    h,
    y,
    x,
    taps,
    RADIUS: tl.constexpr,
    SIDE: tl.constexpr,
    MERGE: tl.constexpr,
):
    w = source[2]
    _, second = _highest_blurred(source, h, y * w + x, taps, RADIUS, SIDE, True, MERGE)
    dx = (second % w - x).to(tl.float64)
    dy = (second // w - y).to(tl.float64)
    # No direction where the first peak is the highest even as 0.
    length = tl.sqrt(tl.maximum(dx * dx + dy * dy, 1.0))
    # The point lies between two cells, so it is in the map.
    return 0.25 * dx / length, 0.25 * dy / length


@triton.jit
def _step(
    source,
    h,
    y,
    x,
    value,
    highest,
    taps,
    METHOD: tl.constexpr,
    RADIUS: tl.constexpr,
    SIDE: tl.constexpr,
    PEAK_VALUE: tl.constexpr,
    MERGE: tl.constexpr,
):
    """The step (x, y) from a peak of that value to the point, in cells.

    `highest` is the maximum of the map.
    """
    w = source[2]
    unit = tl.full([], PEAK_VALUE, tl.float64)
    dx, dy = tl.full([], 0.0, tl.float64), tl.full([], 0.0, tl.float64)
    if METHOD == "argmax":
        pass
    elif METHOD == "soft":
        dx, dy = _soft_step(source, h, y, x, value, RADIUS + 1, SIDE, MERGE)
    elif METHOD == "cpn":
        dx, dy = _cpn_step(source, h, y, x, taps, RADIUS, SIDE, MERGE)
    elif METHOD == "dark":
        heights = _blurred(
            source, h, y - _REACH, x - _REACH, taps, RADIUS, SIDE, 5, 5, False, MERGE
        )
        # The map is scaled back to the maximum it had before the blur. That cancels in every
        # difference of logarithms unless a cell is at the floor, so it is worked out only then.
        read = (tl.arange(0, 8) < 5)[:, None] & (tl.arange(0, 8) < 5)[None, :]
        lowest = tl.min(tl.where(read, heights, _INFINITY))
        if lowest <= unit * _LOG_FLOOR:
            blurred, _ = _highest_blurred(source, h, -1, taps, RADIUS, SIDE, False, MERGE)
            heights *= tl.where(blurred > 0.0, highest / tl.where(blurred > 0.0, blurred, 1.0), 1.0)
        logs = tl.log(_between(heights / unit, _LOG_FLOOR, _INFINITY))
        gx, gy, xx, xy, yy = _derivatives(logs, 2)
        dx, dy = _newton(gx, gy, xx, xy, yy)
    elif METHOD == "udp":
        heights = _blurred(source, h, y - _REACH, x - _REACH, taps, RADIUS, SIDE, 5, 5, True, MERGE)
        logs = tl.log(_between(heights / unit, _UDP_LOW, _UDP_HIGH))
        gx, gy, xx, xy, yy = _derivatives(logs, 1)
        dx, dy = _newton(gx, gy, xx + _UDP_EPSILON, xy, yy + _UDP_EPSILON)
    else:
        row = y + (tl.arange(0, 8) - _REACH)[:, None]
        column = x + (tl.arange(0, 8) - _REACH)[None, :]
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        inside &= (row <= y + _REACH) & (column <= x + _REACH)
        heights = _heights(source, row * w + column, inside, MERGE)
        if METHOD == "taylor":
            logs = tl.log(_between(heights / unit, _LOG_FLOOR, _INFINITY))
            gx, gy, xx, xy, yy = _derivatives(logs, 2)
            dx, dy = _newton(gx, gy, xx, xy, yy)
        else:
            gx, gy, xx, _, yy = _derivatives(heights, 1)
            dx = _along_axis(gx, xx, (x > 0) & (x < w - 1), METHOD)
            dy = _along_axis(gy, yy, (y > 0) & (y < h - 1), METHOD)
    return dx, dy


# Several peaks: a map of the local maxima is written to memory and loses a peak and what is too
# near to it each time.


@triton.jit
def _mark_candidates(source, h, candidates, cells, BLOCK: tl.constexpr, MERGE: tl.constexpr):
    """The local maxima above 0 where they are, 0 elsewhere."""
    w = source[2]
    start = tl.full([], 0, tl.int32)
    while start < cells:
        cell = start + tl.arange(0, BLOCK)
        x = cell % w
        here = _heights(source, cell, cell < cells, MERGE)
        highest = (cell < cells) & (here > 0.0)
        for dy in tl.static_range(-1, 2):
            for dx in tl.static_range(-1, 2):
                beside = cell + dy * w + dx
                inside = (x + dx >= 0) & (x + dx < w) & (beside >= 0) & (beside < cells)
                # Outside counts as 0, which no candidate lies below.
                highest &= _heights(source, beside, inside, MERGE) <= here
        tl.store(candidates + cell, tl.where(highest, here, 0.0).to(tl.float32), cell < cells)
        start += BLOCK
    tl.debug_barrier()


@triton.jit
def _take_candidate(candidates, h, w, cells, BLOCK: tl.constexpr):
    """The highest candidate, the first in row order; it and all too near are struck out."""
    lane = tl.arange(0, BLOCK)
    best = tl.zeros([BLOCK], tl.float32)
    found = tl.zeros([BLOCK], tl.int32)
    start = tl.full([], 0, tl.int32)
    while start < cells:
        value = tl.load(candidates + start + lane, mask=start + lane < cells, other=0.0)
        found = tl.where(value > best, start, found)
        best = tl.maximum(value, best)
        start += BLOCK
    value = tl.max(best)
    cell = tl.min(tl.where(best == value, found + lane, cells))
    dy = (tl.arange(0, 8) - (_PEAK_DISTANCE - 1))[:, None]
    dx = (tl.arange(0, 8) - (_PEAK_DISTANCE - 1))[None, :]
    y, x = cell // w + dy, cell % w + dx
    near = (dy * dy + dx * dx < _PEAK_DISTANCE * _PEAK_DISTANCE) & (y >= 0) & (y < h)
    # Every lane has read: the reduction that gave `cell` waited for them.
    tl.store(candidates + y * w + x, tl.zeros([8, 8], tl.float32), near & (x >= 0) & (x < w))
    tl.debug_barrier()
    return value, cell


@triton.jit
def _scan(
    source,
    there,
    cells,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    LOADS: tl.constexpr,
    TURNS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """The highest value that each lane has seen, and its first cell, both [BLOCK, CHANNELS]."""
    lane = tl.arange(0, BLOCK)[:, None]
    best = tl.full([BLOCK, CHANNELS], -_INFINITY, tl.float32)
    found = tl.zeros([BLOCK, CHANNELS], tl.int32)
    for turn in range(TURNS):
        for load in tl.static_range(LOADS):
            start = (turn * LOADS + load) * BLOCK
            cell = start + lane
            inside = cell < cells
            if CHANNELS > 1:
                inside &= there
            # NaN is never above the best. It would count as 0, and a map whose maximum is 0 has no
            # peak either.
            value = _merged(source, cell, inside, -_INFINITY, MERGE)
            better = value > best
            found = tl.where(better, start, found)
            best = tl.where(better, value, best)
    return best, found + lane


@triton.jit
def _highest(
    source,
    h,
    cells,
    best,
    found,
    taps,
    METHOD: tl.constexpr,
    RADIUS: tl.constexpr,
    SIDE: tl.constexpr,
    MERGE: tl.constexpr,
):
    """Value and cell of the peak, and the maximum of the map, from what the lanes have seen."""
    highest = tl.max(best)
    place = tl.min(tl.where(best == highest, found, cells))
    value = highest
    if METHOD == "cpn":  # noqa: SIM102 -- only the outer one is known when it is compiled
        # A blur of an infinite value is none.
        if (highest > 0.0) & (highest < _INFINITY):
            _, place = _highest_blurred(source, h, -1, taps, RADIUS, SIDE, True, MERGE)
            value = _heights(source, place, place >= 0, MERGE).to(tl.float32)
    return value, place, highest


@triton.jit
def _store(
    points,
    scores,
    affine,
    px,
    py,
    value,
    seen,
    PEAK_VALUE: tl.constexpr,
    AFFINE: tl.constexpr,
):
    if AFFINE:
        x, y = px, py
        px = tl.load(affine) * x + tl.load(affine + 1) * y + tl.load(affine + 2)
        py = tl.load(affine + 3) * x + tl.load(affine + 4) * y + tl.load(affine + 5)
    score = value.to(tl.float64) / tl.full([], PEAK_VALUE, tl.float64)
    tl.store(points, tl.where(seen, px, float("nan")).to(tl.float32))
    tl.store(points + 1, tl.where(seen, py, float("nan")).to(tl.float32))
    tl.store(scores, tl.where(seen, score, 0.0).to(tl.float32))


# One binary serves every number of joints and size that the layout of memory does not tell apart.
_UNSPECIALISED = ("k", "h", "w")


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _decode(
    maps,
    mirrored,
    partners,
    affines,
    taps,
    candidates,
    points,
    scores,
    k,
    h,
    w,
    cells,
    step,
    stage,
    person,
    joint,
    back_step,
    back_stage,
    back_person,
    back_joint,
    METHOD: tl.constexpr,
    MERGE: tl.constexpr,
    PEAKS: tl.constexpr,
    PEAK_VALUE: tl.constexpr,
    AFFINE: tl.constexpr,
    RADIUS: tl.constexpr,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    LOADS: tl.constexpr,
    TURNS: tl.constexpr,
):
    """One program for CHANNELS maps of a person.

    `maps` and `mirrored` are [stages, n, k, cells]: from a cell to the next it is `step` elements,
    or `back_step`, and so on for `stage`, `person` and `joint`. `partners` [k] int32 as in
    DecodeOptions, `affines` [n, 2, 3], `taps` [2 RADIUS + 1] float64, `candidates` [n, k, cells]
    float32 scratch for PEAKS > 1, `points` [n, k, PEAKS, 2], `scores` [n, k, PEAKS].

    MERGE is the number of stages, whether they are averaged, whether `mirrored` is merged in, and
    its shift; SIDE the columns that a blur or "soft" reads at a time; BLOCK the cells of a map that
    are loaded at a time, LOADS times before the first is used, in TURNS turns.
    """
    groups = tl.cdiv(k, CHANNELS)
    n = (tl.program_id(0) // groups).to(tl.int64)
    first = tl.program_id(0) % groups * CHANNELS
    maps += n * person
    FLIP: tl.constexpr = MERGE[2]
    mirrored += n * back_person
    channel = first + tl.arange(0, CHANNELS)[None, :]
    if PEAKS == 1:
        back = _partner_maps(mirrored, partners, channel, channel < k, back_joint, FLIP)
        sources = (maps + channel.to(tl.int64) * joint, back, w, step, back_step, stage, back_stage)
        best, found = _scan(sources, channel < k, cells, BLOCK, CHANNELS, LOADS, TURNS, MERGE)

    c = tl.full([], 0, tl.int32)
    while (c < CHANNELS) & (first + c < k):
        one = n * k + first + c
        back_of = _partner_maps(mirrored, partners, first + c, True, back_joint, FLIP)
        map_of = maps + (first + c).to(tl.int64) * joint
        source = (map_of, back_of, w, step, back_step, stage, back_stage)
        if PEAKS > 1:
            _mark_candidates(source, h, candidates + one * cells, cells, BLOCK, MERGE)
        highest = tl.full([], -_INFINITY, tl.float32)
        for rank in range(PEAKS):
            if PEAKS > 1:
                value, place = _take_candidate(candidates + one * cells, h, w, cells, BLOCK)
                highest = tl.maximum(value, highest)
            else:
                own = tl.where(channel == first + c, best, -_INFINITY)
                value, place, highest = _highest(
                    source, h, cells, own, found, taps, METHOD, RADIUS, SIDE, MERGE
                )
            seen = (value > 0.0) & (highest < _INFINITY)
            y, x = place // w, place % w
            moves = seen
            if METHOD == "taylor" or METHOD == "dark":
                moves &= (x > 1) & (x < w - 2) & (y > 1) & (y < h - 2)
            dx, dy = tl.full([], 0.0, tl.float64), tl.full([], 0.0, tl.float64)
            if moves:
                dx, dy = _step(
                    source, h, y, x, value.to(tl.float64), highest.to(tl.float64), taps, METHOD,
                    RADIUS, SIDE, PEAK_VALUE, MERGE,
                )  # fmt: skip
            out = one * PEAKS + rank
            _store(
                points + 2 * out, scores + out, affines + n * 6 if AFFINE else affines, x + dx,
                y + dy, value, seen, PEAK_VALUE, AFFINE,
            )  # fmt: skip
        c += 1


# Launching

_LOADS = 12  # of 16 bytes that a thread starts before it uses the first: 48 registers
_PROGRAMS = 128  # enough to give every multiprocessor of a large GPU one
_STRIDES = ("step", "stage", "person", "joint")
_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def decode(
    heatmaps: Array, flipped: Array | None, affines: Array | None, options: DecodeOptions
) -> tuple[Array, Array]:
    """As `fastpose.ops.decode.decode_reference`."""
    maps = _Maps.of(heatmaps, options.stages)
    mirrored = maps if flipped is None else _Maps.of(flipped, options.stages)
    device = maps.cells.device
    stages, n, k, h, w = maps.cells.shape
    points = torch.empty((n, k, options.peaks, 2), device=device)
    scores = torch.empty((n, k, options.peaks), device=device)
    constants, warps = plan(
        options,
        (stages, n, k, h * w),
        flip=flipped is not None,
        size=maps.cells.element_size(),
        dense=maps.strides[0] == 1,
        interleaved=maps.strides[3] == 1,
    )
    if n * k > 0:
        with torch.cuda.device_of(points):
            _decode[(n * triton.cdiv(k, constants["CHANNELS"]),)](
                maps.cells,
                mirrored.cells,
                None if flipped is None else _partners(tuple(options.partner.tolist()), device),
                None if affines is None else _tensor(affines).contiguous(),
                _taps(len(options.taps) // 2, device),
                torch.empty((n, k, h, w), device=device) if options.peaks > 1 else None,
                points,
                scores,
                k,
                h,
                w,
                h * w,
                *maps.strides,
                *mirrored.strides,
                AFFINE=affines is not None,
                **constants,
                num_warps=warps,
                num_stages=1,
                maxnreg=_most_registers(flip=flipped is not None),
                **OPTIONS,
            )
    if isinstance(heatmaps, np.ndarray):
        return points.numpy(), scores.numpy()
    return points, scores


@dataclass(frozen=True)
class _Maps:
    """Maps whose cells are equally far apart in row order.

    Attributes:
        cells: [stages, n, k, h, w].
        strides: elements from one cell, stage, person and joint to the next.
    """

    cells: torch.Tensor
    strides: tuple[int, int, int, int]

    @classmethod
    def of(cls, array: Array, stages: str) -> _Maps:
        """The stages that count, in the memory they are in if that is possible."""
        maps = _tensor(array)
        maps = maps[None] if maps.ndim == 4 else maps[-1:] if stages == "last" else maps
        h, w = maps.shape[-2:]
        # In memory one axis continues the other, as when contiguous or channels-last.
        joined = h == 1 or w == 1 or maps.stride(3) == w * maps.stride(4)
        if not joined or maps.stride(-1) * h * w >= 2**31:
            maps = maps.contiguous()
        step = maps.stride(4) if w > 1 else maps.stride(3)
        return cls(maps, (step if h * w > 1 else 1, *maps.stride()[:3]))


def _tensor(array: Array) -> torch.Tensor:
    if isinstance(array, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(array))
    return array.detach()


def plan(
    options: DecodeOptions,
    shape: tuple[int, int, int, int],
    *,
    flip: bool,
    size: int,
    dense: bool,
    interleaved: bool,
) -> tuple[dict[str, Any], int]:
    """The constants of a launch but AFFINE, and its warps.

    Of maps of `shape` (stages, n, k, cells) and `size` bytes an element. They are `dense` where the
    cells of a map are neighbours in memory, `interleaved` where the channels of a cell are.
    """
    stages, n, k, cells = shape
    one_scan = options.peaks == 1 and options.method != "cpn"
    # Where the channels of a cell are neighbours, a program takes several of them so that a sector
    # is not read anew for each, as soon as there are maps enough to leave no multiprocessor idle.
    channels = 1
    while interleaved and not dense and one_scan and channels < min(8, k):
        if n * k < 2 * channels * _PROGRAMS:
            break
        channels *= 2
    radius = len(options.taps) // 2
    side = max(16, triton.next_power_of_2(2 * radius + 5))
    vector = 16 // size if dense else 2
    # A map gets few warps: a single one needs no barrier in the dozen reductions and products that
    # follow the maximum, and what it repeats in every lane is not repeated by every warp. Two turns
    # of the loop over its cells are the price of half the registers.
    warps = triton.next_power_of_2(triton.cdiv(cells, 2 * 32 * _LOADS * vector))
    if not dense or options.peaks > 1:
        warps = 4
    if options.method in ("dark", "udp"):
        warps = max(warps, (side // 16) ** 2)  # the registers of a patch
    warps = 8 if options.method == "cpn" else min(warps, 8)
    block = 32 * warps * vector // channels
    reads = stages * (3 if flip else 1)  # mirrored ones are single elements with an address each
    loads = max(1, min(_LOADS // reads, triton.cdiv(cells, block)))
    constants: dict[str, Any] = {
        "METHOD": options.method,
        "MERGE": (stages, options.stages == "mean" and stages > 1, flip, flip * options.flip_shift),
        "PEAKS": options.peaks,
        "PEAK_VALUE": float(options.peak_value),
        "RADIUS": radius,
        "SIDE": side,
        "CHANNELS": channels,
        "BLOCK": block,
        "LOADS": loads,
        "TURNS": triton.cdiv(cells, block * loads),
    }
    return constants, warps


def _most_registers(*, flip: bool) -> int | None:
    """The limit for a thread: without one the compiler spills some to fit more programs."""
    return 168 if flip else None


@device_constant
def _taps(radius: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(blur_taps(radius), device=device)


@device_constant
def _partners(partners: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(partners, dtype=torch.int32, device=device)


# What is compiled without a GPU: for binaries that are kept, for the tests, for the tables


def compile_ahead(
    options: DecodeOptions,
    maps: tuple[int, int, int],
    channels: int,
    dtype: str,
    capability: tuple[int, int],
) -> DecodeBinary:
    """`decode` of dense maps [N, channels, h, w], the first K of maps (K, h, w); any N.

    Args:
        options: without stages.
        maps: (K, h, w).
        channels: at least K.
        dtype: of the maps.
        capability: (major, minor).

    Raises:
        BackendError: this Triton compiles it to something that the driver alone cannot launch.
    """
    k, h, w = maps
    cells = h * w
    # Only one stage is read, so that its distance is none, and with it N has no meaning.
    strides = {"step": 1, "stage": 0, "person": channels * cells, "joint": cells}
    sizes = {"k": k, "h": h, "w": w, "cells": cells, **strides, **_backwards(strides)}
    constants, warps = plan(
        options,
        (1, 1, k, cells),
        flip=False,
        size=4 if dtype == "float32" else 2,
        dense=True,
        interleaved=cells == 1,
    )
    programs = triton.cdiv(k, constants["CHANNELS"])
    instance = _specialised(
        f"decode {options.method}", constants, warps, _TYPES[dtype], sizes, flip=False,
        affines="*fp64",
    )  # fmt: skip
    compiled = compile_instance(instance, 10 * capability[0] + capability[1])
    metadata = compiled.metadata
    hidden = hidden_pointers(compiled, len(instance.types))
    arguments = tuple(
        Argument(name, instance.types[name], sizes.get(name, 0))
        for name in instance.kernel.arg_names
        if name in instance.types
    )
    return DecodeBinary(
        name=metadata.name,
        capability=10 * capability[0] + capability[1],
        threads=32 * warps,
        shared=int(metadata.shared),
        programs=programs,
        arguments=arguments,
        hidden=hidden,
        maps=maps,
        dtype=dtype,
        peaks=options.peaks,
        radius=len(options.taps) // 2,
        triton=triton.__version__,
        cubin=compiled.asm["cubin"],
    )


def instances() -> list[Instance]:
    """What is launched for 17 maps of 64 x 48: every method, type and layout of memory."""
    return [
        *(_instance(f"decode {method}", method) for method in METHODS),
        _instance("decode dark fp16", "dark", "fp16"),
        _instance("decode dark bf16", "dark", "bf16"),
        _instance("decode dark channels-last", "dark", dense=False),
        _instance("decode dark channels-last fp16", "dark", "fp16", dense=False),
        _instance("decode dark channels-last bf16", "dark", "bf16", dense=False),
        _instance("decode dark channels-last one", "dark", people=1, dense=False),
        _instance("decode dark sigma3", "dark", sigma=3.0),
        _instance("decode udp sigma3", "udp", sigma=3.0),
        _instance("decode dark flip", "dark", flip=True),
        _instance("decode dark flip stages", "dark", flip=True, stages=3),
        _instance("decode dark peaks", "dark", peaks=3),
        _instance("decode dark affine64", "dark", affines="*fp64"),
    ]


def _instance(
    name: str,
    method: str,
    dtype: str = "fp32",
    *,
    people: int = 128,
    dense: bool = True,
    sigma: float = 2.0,
    flip: bool = False,
    stages: int = 1,
    peaks: int = 1,
    affines: str = "*fp32",
) -> Instance:
    radius = CPN_RADIUS if method == "cpn" else blur_radius(sigma)
    options = DecodeOptions(
        method, "sum", int(flip), peaks, 1.0, np.arange(17, dtype=np.int32), blur_taps(radius)
    )
    shape = (stages, people, 17, 64 * 48)
    size = 4 if dtype == "fp32" else 2
    constants, warps = plan(
        options, shape, flip=flip, size=size, dense=dense, interleaved=not dense
    )
    strides = dict(zip(_STRIDES, _strides(people, dense), strict=True))
    sizes = {"k": 17, "h": 64, "w": 48, "cells": 64 * 48, **strides, **_backwards(strides)}
    return _specialised(name, constants, warps, dtype, sizes, flip=flip, affines=affines)


def _specialised(
    name: str,
    constants: dict[str, Any],
    warps: int,
    dtype: str,
    sizes: dict[str, int],
    *,
    flip: bool,
    affines: str,
) -> Instance:
    """The kernel for the constants of a `plan`, maps of type `dtype` and integer arguments."""
    constants = {**constants, "AFFINE": True}
    types = {"maps": f"*{dtype}", "mirrored": f"*{dtype}", "affines": affines}
    types.update(taps="*fp64", points="*fp32", scores="*fp32")
    for name_given, given, kind in (
        ("partners", flip, "*i32"),
        ("candidates", constants["PEAKS"] > 1, "*fp32"),
    ):
        if given:
            types[name_given] = kind
        else:
            constants[name_given] = None
    # As the launcher does: an integer of 1 is a constant, one that is a multiple of 16 known to be.
    free = {key: value for key, value in sizes.items() if key not in _UNSPECIALISED}
    constants.update({key: 1 for key, value in free.items() if value == 1})
    types.update({key: "i32" for key in sizes if key not in constants})
    aligned = tuple(key for key, value in free.items() if value % 16 == 0)
    return Instance(
        name, _decode, types, constants, warps, 1, aligned, registers=_most_registers(flip=flip)
    )


def _backwards(strides: dict[str, int]) -> dict[str, int]:
    """Those of the mirrored maps, which lie as the others do."""
    return {f"back_{key}": value for key, value in strides.items()}


def _strides(people: int, dense: bool) -> tuple[int, int, int, int]:
    cells, joints = 64 * 48, 17
    person = joints * cells
    return (1 if dense else joints, people * person, person, cells if dense else 1)
