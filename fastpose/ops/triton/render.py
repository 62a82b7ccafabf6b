"""`ops.render` in Triton: every map is written once, in one launch, and only joints are read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from fastpose.ops.constants import device_constant
from fastpose.ops.render import CAFFE_CUT, STYLES, megvii_tables
from fastpose.ops.triton.aot import OPTIONS, Instance

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WARPS = 4

_INFINITY = tl.constexpr(math.inf)
_CUT = tl.constexpr(2.0 * CAFFE_CUT)
# exp(-d^2 / 2 s^2) = exp2(-(d * _ROOT / s)^2): the GPU's exponential is the one of base 2.
_ROOT = tl.constexpr(math.sqrt(0.5 / math.log(2.0)))


@triton.jit
def _profile(centre, grid, cells, sigma, table, STYLE: tl.constexpr):
    """Values of one axis at the cells of `grid`, peak 1: a vector, so h + w exponentials a map."""
    nearest = tl.floor(centre + 0.5)
    if STYLE == "megvii":
        inside = (nearest >= 0.0) & (nearest < cells)
        table += tl.where(inside, nearest, 0.0).to(tl.int32) * cells
        return tl.load(table + grid, mask=grid < tl.where(inside, cells, 0), other=0.0)
    window = tl.floor(3.0 * sigma)
    middle, width = centre, sigma
    if STYLE == "msra" or STYLE == "hourglass":
        middle = nearest
    if STYLE == "hourglass":
        width = 0.25 * (2.0 * window + 1.0)
    distance = (grid - middle) * (1.0 / width * _ROOT)
    profile = tl.exp2(-(distance * distance))
    if STYLE == "exact" or STYLE == "caffe":  # `_draw` knows where they end
        return profile
    return tl.where(tl.abs(grid - nearest) <= window, profile, 0.0)


@triton.jit
def _is_near(centre, cells, reach):
    return (centre >= -reach - 1.0) & (centre < cells + reach)


@triton.jit
def _draw(
    points, visible, sigmas, sigma, across, down, peak, image, joint, people, height, width, ys, xs,
    empty, STYLE: tl.constexpr, SUM: tl.constexpr, JOINTS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The people of one joint in one image, in the cells of `ys` and `xs`."""
    spread = sigma
    if sigmas is not None:
        spread = tl.load(sigmas + joint).to(tl.float32)
        if STYLE == "megvii":  # a table for each joint
            across += joint * width * width
            down += joint * height * height
    sound = (spread > 0.0) & (spread < _INFINITY)
    spread = tl.where(sound, spread, 1.0)
    tile = empty
    for person in range(SLOTS):
        known = person < people
        index = (image.to(tl.int64) * people + person) * JOINTS + joint
        x = tl.load(points + 2 * index, mask=known, other=0.0).to(tl.float32)
        y = tl.load(points + 2 * index + 1, mask=known, other=0.0).to(tl.float32)
        weight = tl.load(visible + index, mask=known, other=0).to(tl.float32)
        drawn = sound & (tl.abs(x) < _INFINITY) & (tl.abs(y) < _INFINITY)
        x, y = tl.where(drawn, x, 0.0), tl.where(drawn, y, 0.0)
        drawn &= weight > 0.0  # which NaN is not
        if STYLE == "exact":
            drawn &= _is_near(x, width, 3.0 * spread) & _is_near(y, height, 3.0 * spread)
        column = _profile(x, xs, width, spread, across, STYLE)
        row = _profile(y, ys, height, spread, down, STYLE)
        row *= tl.where(drawn, tl.minimum(weight, 1.0) * peak, 0.0)
        one = row[:, None] * column[None, :]
        if STYLE == "caffe":
            dx, dy = xs - x, ys - y
            near = (dy * dy)[:, None] + (dx * dx)[None, :] <= spread * spread * _CUT
            one = tl.where(near, one, 0.0)
        if SLOTS == 1:
            tile = one
        elif SUM:
            tile = tl.minimum(tile + one, peak)  # what is cut once stays cut: none is below 0
        else:
            tile = tl.maximum(tile, one)
    return tile


@triton.jit(do_not_specialize=["height", "groups"])
def _render(
    points, visible, sigmas, out, across, down, sigma, peak, people, height, groups,
    STYLE: tl.constexpr, SUM: tl.constexpr, BACKGROUND: tl.constexpr, JOINTS: tl.constexpr,
    SLOTS: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program a tile of one map or, with a background, of all maps of one image.

    points [N, people, JOINTS, 2], visible [N, people, JOINTS], sigmas [JOINTS] or None (then the
    number sigma), out [N, JOINTS (+ 1), height, groups * VECTOR]; across and down are the tables of
    megvii or None. SLOTS is at least `people`.
    """
    program = tl.program_id(0)
    width = groups * VECTOR  # the compiler sees what divides it, and so how wide a store may be
    ys = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    xs = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (ys < height)[:, None] & (xs < width)[None, :]
    out += ys[:, None] * width + xs[None, :]
    empty = tl.zeros([ROWS, COLUMNS], tl.float32)
    if BACKGROUND or SLOTS > 1:
        # Zeros again, as no row is negative, in the layout that the stores have: what a loop joins
        # keeps the layout it starts with, and any other would go through shared memory.
        empty = tl.load(out, mask=inside & (ys < 0)[:, None], other=0.0).to(tl.float32)
    if BACKGROUND:
        out += program.to(tl.int64) * (JOINTS + 1) * (height * width)
        highest = empty
        for joint in range(JOINTS):
            tile = _draw(
                points, visible, sigmas, sigma, across, down, peak, program, joint, people,
                height, width, ys, xs, empty, STYLE, SUM, JOINTS, SLOTS,
            )  # fmt: skip
            tl.store(out, tile.to(out.dtype.element_ty), mask=inside)
            highest = tl.maximum(highest, tile)
            out += height * width
        rest = tl.maximum(peak - highest, 0.0)
        tl.store(out, rest.to(out.dtype.element_ty), mask=inside)
    else:
        image = program // JOINTS
        joint = program - image * JOINTS
        tile = _draw(
            points, visible, sigmas, sigma, across, down, peak, image, joint, people, height,
            width, ys, xs, empty, STYLE, SUM, JOINTS, SLOTS,
        )  # fmt: skip
        out += program.to(tl.int64) * (height * width)
        tl.store(out, tile.to(out.dtype.element_ty), mask=inside)


def render(
    points: Tensor,
    visible: Tensor,
    size: tuple[int, int],
    *,
    sigma: float | Tensor,
    style: str,
    people: str,
    background: bool,
    peak_value: float,
    out: Tensor | None,
) -> Tensor:
    """`fastpose.ops.render` on a CUDA device, without a gradient; arguments are checked.

    A `sigma` on the device is not read back, so one that is not positive and finite draws nothing;
    for "megvii", whose tables follow from its values, it must be on the host.
    """
    import torch

    n, k, (h, w) = points.shape[0], points.shape[-2], size
    written = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    maps = out
    if maps is None or not maps.is_contiguous() or maps.dtype not in written:
        shape = (n, k + int(background), h, w)
        maps = torch.empty(shape, dtype=torch.float32, device=points.device)
    count = points.shape[1] if points.ndim == 4 else 1
    number, sigmas, across, down = _constants(sigma, k, size, style, points.device)
    rows, columns = tile(h, w, background)
    vector = math.gcd(w, 8)
    grid = (n if background else n * k, triton.cdiv(h, rows), triton.cdiv(w, columns))
    if n > 0:
        with torch.cuda.device_of(points):
            _render[grid](
                points.contiguous(),
                visible.contiguous(),
                sigmas,
                maps,
                across,
                down,
                number,
                float(peak_value),
                count,
                h,
                w // vector,
                STYLE=style,
                SUM=people == "sum-clamped",
                BACKGROUND=background,
                JOINTS=k,
                SLOTS=slots(count),
                VECTOR=vector,
                ROWS=rows,
                COLUMNS=columns,
                num_warps=WARPS,
                **OPTIONS,
            )
    return maps if out is None or maps is out else out.copy_(maps)


def tile(h: int, w: int, background: bool) -> tuple[int, int]:
    """Rows and columns of one program's part of a map, powers of 2.

    A map of 64 x 48 is one tile, so that what a joint costs is paid once; with a background, where
    a program draws all joints of an image, a quarter of that leaves more programs.
    """
    columns = min(triton.next_power_of_2(w), 128)
    cells = 1024 if background else 4096
    return min(triton.next_power_of_2(h), cells // columns), columns


def slots(people: int) -> int:
    """Turns of the loop over people, so that a few compiled kernels serve every number of them."""
    return triton.next_power_of_2(max(people, 1))


def _constants(
    sigma: float | Tensor, joints: int, size: tuple[int, int], style: str, device: torch.device
) -> tuple[float, Tensor | None, Tensor | None, Tensor | None]:
    """`sigma` as a number or [K] on the device, then the two tables of "megvii"."""
    import torch

    if isinstance(sigma, torch.Tensor) and sigma.device == device and style != "megvii":
        return 0.0, sigma.expand(joints).contiguous(), None, None
    values = torch.as_tensor(sigma, dtype=torch.float32).flatten().tolist()
    sigmas = None if len(values) == 1 else _sigmas(tuple(values), device)
    if style != "megvii":
        return values[0], sigmas, None, None
    down, across = (_table(tuple(values), cells, device) for cells in size)
    return values[0], sigmas, across, down


@device_constant
def _sigmas(values: tuple[float, ...], device: torch.device) -> Tensor:
    import torch

    return torch.tensor(values, device=device)


@device_constant
def _table(sigmas: tuple[float, ...], cells: int, device: torch.device) -> Tensor:
    """Profiles of "megvii" for each sigma and cell of the joint: [sigmas, cells, cells]."""
    import torch

    return torch.tensor(megvii_tables(sigmas, cells), device=device)


def instances() -> list[Instance]:
    """What is launched for maps of 64 x 48 with 17 joints, and for the 46 x 46 of a CPM."""
    cpm: dict[str, Any] = {"size": (46, 46), "joints": 14, "background": True}
    return [
        *(_instance(f"render {style}", style) for style in STYLES),
        _instance("render exact, fp16", "exact", dtype="fp16"),
        _instance("render exact, bf16", "exact", dtype="bf16"),
        _instance("render exact, sigma of each joint", "exact", sigmas="*fp32"),
        _instance("render caffe, 14 joints and background", "caffe", **cpm),
        _instance("render caffe, 8 people and background", "caffe", people=8, **cpm),
    ]


def _instance(
    name: str,
    style: str,
    *,
    size: tuple[int, int] = (64, 48),
    dtype: str = "fp32",
    sigmas: str | None = None,
    joints: int = 17,
    people: int = 1,
    background: bool = False,
) -> Instance:
    rows, columns = tile(*size, background)
    types = {"points": "*fp32", "visible": "*fp32", "out": f"*{dtype}"}
    types.update(sigma="fp32", peak="fp32", height="i32", groups="i32")
    constants: dict[str, object] = {
        "STYLE": style,
        "SUM": people > 1,
        "BACKGROUND": background,
        "JOINTS": joints,
        "SLOTS": slots(people),
        "VECTOR": math.gcd(size[1], 8),
        "ROWS": rows,
        "COLUMNS": columns,
    }
    optional = {
        "sigmas": sigmas,
        "across": "*fp32" if style == "megvii" else None,
        "down": "*fp32" if style == "megvii" else None,
        "people": "i32" if people > 1 else None,
    }
    for argument, kind in optional.items():
        if kind is not None:
            types[argument] = kind
        else:
            constants[argument] = 1 if argument == "people" else None
    return Instance(name, _render, types, constants, WARPS, 3)
