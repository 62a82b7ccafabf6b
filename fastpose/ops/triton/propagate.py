"""`propagate` on CUDA: the messages of one depth of the tree are one grouped implicit GEMM.

The matrices that are multiplied are never written: a product runs over the taps of the kernel and
the channels, and gathers for each tap the cells that lie under it. A program makes one tile of the
result, [channels out, pixels], in registers. That way round, and not with the pixels first, a warp
group of sm_90 reads the fewest bytes of shared memory for a product: kernels of 64 channels give
it the 64 rows that it wants, pixels the up to 256 columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from fastpose.ops.constants import device_constant
from fastpose.ops.propagate import Edge, propagate_reference, schedule
from fastpose.ops.triton.aot import OPTIONS, Instance

if TYPE_CHECKING:
    from torch import Tensor


class Tile(NamedTuple):
    """How one convolution is cut up: a program's part of the result, and its step over the sum.

    Attributes:
        channels, pixels: of the result, powers of 2.
        depth: channels of the source in a step, a power of 2.
        warps, stages: launch options.
    """

    channels: int
    pixels: int
    depth: int
    warps: int
    stages: int


# By compute capability, then by arithmetic: "16-bit" is float16 and bfloat16. A step reads
# (channels + pixels) * depth values for channels * pixels * depth products, and the second-level
# cache, not the tensor cores, sets the pace; so the tiles are as large as the registers allow
# without a spill in every Triton that is supported, with smaller ones for few pixels.
TILES: dict[int, dict[str, tuple[Tile, ...]]] = {
    80: {
        "16-bit": (Tile(64, 64, 64, 4, 4), Tile(64, 256, 64, 8, 3), Tile(128, 128, 64, 8, 4)),
        "tf32": (Tile(64, 64, 32, 4, 4), Tile(128, 128, 32, 8, 4)),
        "ieee": (Tile(64, 64, 32, 8, 2),),
    },
    90: {
        "16-bit": (Tile(64, 128, 64, 4, 4), Tile(64, 256, 64, 8, 4), Tile(128, 256, 64, 8, 3)),
        "tf32": (Tile(64, 128, 32, 4, 4), Tile(128, 128, 32, 8, 4)),
        "ieee": (Tile(64, 64, 32, 8, 2),),
    },
    # sm_86, sm_89 and sm_120 have 99 KiB of shared memory for a program, the least of all
    120: {
        "16-bit": (Tile(64, 64, 64, 4, 4), Tile(64, 256, 64, 8, 3), Tile(128, 128, 64, 8, 3)),
        "tf32": (Tile(64, 64, 32, 4, 4), Tile(128, 128, 32, 8, 3)),
        "ieee": (Tile(64, 64, 32, 8, 2),),
    },
}
OTHERS = 120  # whose tiles a capability takes that is not listed

# Products that take as long as it takes to read one value: a multiprocessor of an H200 makes 2048
# in a clock, and the second-level cache may send it 12 to 16 values of 16 bits in one, if its
# bandwidth is 5.5 to 7 TB/s, as is assumed.
READ = 128

COPY_PIXELS, COPY_CHANNELS = 32, 128  # a program's part of a map that receives nothing


@triton.jit
def _relu(x):
    return tl.where(x < 0, 0.0, x)  # a NaN stays one, as in torch


@triton.jit(do_not_specialize=("pixels", "height", "width"))
def _activate(
    raw, target, nodes, pixels, height, width,
    raw_map, raw_image, raw_row, raw_column, target_map, target_column,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The maps that receive no message: `nodes` holds (map of raw, map of target) for each."""
    row = nodes + 2 * tl.program_id(1)
    source, slot = tl.load(row).to(tl.int64), tl.load(row + 1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    used = (pixel < pixels)[:, None] & (c < CHANNELS)[None, :]
    image = (pixel // (height * width)).to(tl.int64)
    place = image * raw_image + pixel // width % height * raw_row + pixel % width * raw_column
    value = tl.load(raw + source * raw_map + place[:, None] + c[None, :], mask=used)
    place = slot * target_map + pixel.to(tl.int64) * target_column
    tl.store(target + place[:, None] + c[None, :], _relu(value), mask=used)


@triton.jit(do_not_specialize=("pixels", "height", "width"))
def _convolve(
    source, kernels, biases, raw, target, jobs, edges, pixels, height, width,
    source_map, source_image, source_row, source_column,
    raw_map, raw_image, raw_row, raw_column, target_map, target_column,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, SIDE: tl.constexpr, RAW: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """ReLU(raw + the sum over a job's edges of (kernel * source + bias)), one tile of it.

    `jobs` holds (first edge, end of its edges, map of target, map of raw), `edges` (map of source,
    kernel). RAW: "none" adds nothing, "after" the raw map, "before" the ReLU of it.

    Source, raw and target are [maps, images, rows, columns, channels], dense along the channels;
    kernels are [kernels, C_OUT, SIDE, SIDE, C_IN], dense.
    """
    HALF: tl.constexpr = SIDE // 2
    TAPS: tl.constexpr = SIDE * SIDE
    DEPTHS: tl.constexpr = (C_IN + BLOCK_K - 1) // BLOCK_K
    C_TILES: tl.constexpr = (C_OUT + BLOCK_C - 1) // BLOCK_C
    # The tiles of a job are neighbours, those of the same pixels nearest: what is at work at one
    # time reads the kernels of few edges.
    tiles = tl.cdiv(pixels, BLOCK_P) * C_TILES
    job = jobs + tl.program_id(0) // tiles * 4
    tile = tl.program_id(0) % tiles
    edge, end = tl.load(job), tl.load(job + 1)
    slot, node = tl.load(job + 2).to(tl.int64), tl.load(job + 3).to(tl.int64)

    c = tile % C_TILES * BLOCK_C + tl.arange(0, BLOCK_C)
    pixel = tile // C_TILES * BLOCK_P + tl.arange(0, BLOCK_P)
    k = tl.arange(0, BLOCK_K)
    image = (pixel // (height * width)).to(tl.int64)
    y, x = pixel // width % height, pixel % width
    used = (c < C_OUT)[:, None] & (pixel < pixels)[None, :]

    # The raw map comes first: behind the sum its addresses would cost registers all along.
    sums = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    if RAW != "none":
        place = node * raw_map + image * raw_image + y * raw_row + x * raw_column
        own = tl.load(raw + place[None, :] + c[:, None], mask=used, other=0.0).to(tl.float32)
        sums = _relu(own) if RAW == "before" else own

    # Which taps fall out of the map, one bit for each row and, from bit 16, for each column: in
    # the loop one AND for a pixel tells.
    outside = tl.where(pixel < pixels, 0, -1)
    for tap in tl.static_range(SIDE):
        row, column = y + (tap - HALF), x + (tap - HALF)
        outside |= tl.where((row < 0) | (row >= height), 1 << tap, 0)
        outside |= tl.where((column < 0) | (column >= width), 1 << (16 + tap), 0)

    cells = source + (image * source_image + y * source_row + x * source_column)[None, :]
    cells += k[:, None]
    weights = kernels + c[:, None] * (TAPS * C_IN) + k[None, :]
    while edge < end:  # the interpreter of Triton 3.6 takes no loaded number as the end of a range
        origin, kernel = tl.load(edges + 2 * edge), tl.load(edges + 2 * edge + 1).to(tl.int64)
        edge_cells = cells + origin.to(tl.int64) * source_map
        edge_weights = weights + kernel * (C_OUT * TAPS * C_IN)
        # Counters instead of a division of the step. The taps change fastest: what a tile reads
        # next is nearly what it has just read.
        ky, kx, depth = 0, 0, 0
        for _ in range(DEPTHS * TAPS):
            shift = (ky - HALF) * source_row + (kx - HALF) * source_column + depth
            inside = ((outside & ((1 << ky) | (1 << (16 + kx)))) == 0)[None, :]
            factor = (ky * SIDE + kx) * C_IN + depth
            if C_IN % BLOCK_K == 0 and C_OUT % BLOCK_C == 0:
                factors = tl.load(edge_weights + factor)
            else:
                inside = inside & (k < C_IN - depth)[:, None]
                wanted = (c < C_OUT)[:, None] & (k < C_IN - depth)[None, :]
                factors = tl.load(edge_weights + factor, mask=wanted, other=0.0)
            values = tl.load(edge_cells + shift, mask=inside, other=0.0)
            sums = tl.dot(factors, values, sums, input_precision=PRECISION)
            kx += 1
            ky = tl.where(kx == SIDE, ky + 1, ky)
            kx = tl.where(kx == SIDE, 0, kx)
            depth = tl.where(ky == SIDE, depth + BLOCK_K, depth)
            ky = tl.where(ky == SIDE, 0, ky)
        bias = tl.load(biases + kernel * C_OUT + c, mask=c < C_OUT, other=0.0)
        sums += bias.to(tl.float32)[:, None]
        edge += 1

    place = slot * target_map + pixel.to(tl.int64) * target_column
    value = _relu(sums).to(target.dtype.element_ty)
    tl.store(target + place[None, :] + c[:, None], value, mask=used)


def propagate(
    features: Tensor,
    kernels: Sequence[Tensor],
    biases: Sequence[Tensor],
    parents: Sequence[int],
    *,
    direction: str,
    activate: str,
) -> Tensor:
    """`fastpose.ops.propagate` on a CUDA device; arguments are checked.

    A gradient is that of the reference, whose steps are taken again for it.
    """
    kind = features.dtype
    if torch.is_autocast_enabled(features.device.type):
        kind = torch.get_autocast_dtype(features.device.type)
    tensors = [tensor.to(kind) for tensor in (features, *kernels, *biases)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        refined = _Propagate.apply(tuple(parents), direction, activate, *tensors)
    else:
        refined = _forward(tuple(parents), direction, activate, *tensors)
    return refined.to(features.dtype)


class _Propagate(torch.autograd.Function):
    """The kernel forwards, the reference, from the same inputs, backwards."""

    @staticmethod
    def forward(
        ctx: Any, parents: tuple[int, ...], direction: str, activate: str, *tensors: Tensor
    ) -> Tensor:
        ctx.tree = parents, direction, activate
        ctx.save_for_backward(*tensors)
        return _forward(parents, direction, activate, *tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parents, direction, activate = ctx.tree
        needed = ctx.needs_input_grad[3:]
        leaves = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        features, kernels, biases = _split(leaves)
        with torch.enable_grad():
            refined = propagate_reference(
                features, kernels, biases, parents, direction=direction, activate=activate
            )
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(refined, wanted, gradient, allow_unused=True))
        return None, None, None, *(next(found) if need else None for need in needed)


def _split(tensors: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    count = len(tensors) // 2
    return tensors[0], tensors[1 : 1 + count], tensors[1 + count :]


def _forward(parents: tuple[int, ...], direction: str, activate: str, *tensors: Tensor) -> Tensor:
    features, kernels, biases = _split(tensors)
    both = direction == "both"
    raw = _pixels_first(features, both)
    n, h, w, nodes, c = raw.shape
    # Of the two maps of a part one follows the other: who reads a part's maps together, as
    # `Structured` does, finds them side by side.
    refined = features.new_empty(n, h, w, nodes, c)
    if refined.numel():
        plan = _plan(parents, direction, features.device)
        if both:
            kernels, biases = ([x.flatten(0, 1) for x in group] for group in (kernels, biases))
        maps = raw.movedim(3, 0), refined.movedim(3, 0)
        with torch.cuda.device_of(features):
            _launch_activate(*maps, plan.idle)
            _launch_levels(*maps, kernels, biases, activate, plan)
    refined = refined.permute(0, 3, 4, 1, 2)
    return refined.unflatten(1, (-1, 2)).transpose(1, 2) if both else refined


def _pixels_first(features: Tensor, both: bool) -> Tensor:
    """[N, H, W, nodes, C], dense along C: a view of channels-last maps, otherwise one copy."""
    if both:
        maps = features.permute(0, 4, 5, 1, 2, 3).flatten(3, 4)
    else:
        maps = features.permute(0, 3, 4, 1, 2)
    return maps if maps.stride(-1) == 1 else maps.contiguous()


def _launch_activate(raw: Tensor, refined: Tensor, idle: Tensor) -> None:
    _, n, h, w, c = raw.shape
    grid = (triton.cdiv(n * h * w, COPY_PIXELS), len(idle), triton.cdiv(c, COPY_CHANNELS))
    _activate[grid](
        raw, refined, idle, n * h * w, h, w, *raw.stride()[:4], refined.stride(0),
        refined.stride(3), CHANNELS=c, BLOCK_C=min(COPY_CHANNELS, triton.next_power_of_2(c)),
        BLOCK_P=COPY_PIXELS, num_warps=4, **OPTIONS,
    )  # fmt: skip


def _launch_levels(
    raw: Tensor,
    refined: Tensor,
    kernels: Sequence[Tensor],
    biases: Sequence[Tensor],
    activate: str,
    plan: _Plan,
) -> None:
    """One launch for each convolution of each level."""
    kernels = [kernel.movedim(2, -1).contiguous() for kernel in kernels]
    biases = [bias.contiguous() for bias in biases]
    shape = raw.shape[1:4]
    between = [raw.new_empty(plan.widest, *shape, kernel.shape[1]) for kernel in kernels[:-1]]
    last = len(kernels) - 1
    precision = _precision(raw)
    tiles, processors = _hardware(raw.device, precision if raw.dtype == torch.float32 else "16-bit")
    for level in plan.levels:
        for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            jobs = level.targets if i == last else level.messages
            convolve(
                refined if i == 0 else between[i - 1],
                kernel,
                bias,
                raw,
                refined if i == last else between[i],
                jobs,
                level.sources if i == 0 else level.passed_on,
                activate if i == last else "none",
                precision,
                best_tile(tiles, kernel.shape[1], math.prod(shape), len(jobs), processors),
            )


def convolve(
    source: Tensor,
    kernel: Tensor,
    bias: Tensor,
    raw: Tensor,
    target: Tensor,
    jobs: Tensor,
    edges: Tensor,
    own: str,
    precision: str,
    tile: Tile,
) -> None:
    """Launch `_convolve`, whose arguments these are."""
    _, n, h, w, c_in = source.shape
    c_out, side = kernel.shape[1:3]
    grid = (triton.cdiv(n * h * w, tile.pixels) * triton.cdiv(c_out, tile.channels) * len(jobs),)
    _convolve[grid](
        source, kernel, bias, raw, target, jobs, edges, n * h * w, h, w, *source.stride()[:4],
        *raw.stride()[:4], target.stride(0), target.stride(3),
        **_constants(c_in, c_out, side, own, precision, tile),
        num_warps=tile.warps, num_stages=tile.stages, **OPTIONS,
    )  # fmt: skip


def _constants(
    c_in: int, c_out: int, side: int, own: str, precision: str, tile: Tile
) -> dict[str, object]:
    return {
        "C_IN": c_in,
        "C_OUT": c_out,
        "SIDE": side,
        "RAW": own,
        "PRECISION": precision,
        "BLOCK_C": tile.channels,
        "BLOCK_P": tile.pixels,
        "BLOCK_K": min(tile.depth, max(16, triton.next_power_of_2(c_in))),
    }


def _precision(maps: Tensor) -> str:
    """How float32 is multiplied: as torch's own convolutions do on this device."""
    if maps.dtype != torch.float32 or maps.device.type != "cuda":
        return "ieee"
    settings = getattr(torch.backends.cudnn, "conv", None)  # since torch 2.9
    if settings is not None:
        allowed = settings.fp32_precision == "tf32"
    else:
        allowed = torch.backends.cudnn.allow_tf32
    return "tf32" if allowed else "ieee"


@functools.lru_cache(maxsize=1024)
def best_tile(
    tiles: tuple[Tile, ...], channels: int, pixels: int, jobs: int, processors: int
) -> Tile:
    """The tile with which the last program is expected to end first.

    Args:
        tiles: to choose from.
        channels: of the result.
        pixels: of the result of one job.
        jobs: of one launch.
        processors: multiprocessors of the device, each of which works on one tile at a time.
    """

    def end(tile: Tile) -> int:
        programs = triton.cdiv(channels, tile.channels) * triton.cdiv(pixels, tile.pixels) * jobs
        step = tile.channels * tile.pixels + READ * (tile.channels + tile.pixels)
        return triton.cdiv(programs, processors) * step

    return min(tiles, key=end)


@functools.lru_cache(maxsize=64)
def _hardware(device: torch.device, arithmetic: str) -> tuple[tuple[Tile, ...], int]:
    """The device's tiles for that arithmetic, and how many multiprocessors it has."""
    if device.type != "cuda":
        return TILES[OTHERS][arithmetic], 1  # the interpreter
    found = torch.cuda.get_device_properties(device)
    tiles = TILES.get(10 * found.major + found.minor, TILES[OTHERS])
    return tiles[arithmetic], found.multi_processor_count


class _Level(NamedTuple):
    """Tables of the edges and jobs of one level, int32; see `_convolve`.

    Attributes:
        sources: [E, 2] edges from the refined maps.
        passed_on: [E, 2] edges from the maps between two convolutions, each from its own.
        messages: [E, 4] a job for each edge.
        targets: [T, 4] a job for each map that receives, those with the most edges first.
    """

    sources: Tensor
    passed_on: Tensor
    messages: Tensor
    targets: Tensor


class _Plan(NamedTuple):
    """What is launched for a tree.

    Attributes:
        idle: [M, 2] int32, the maps that receive nothing; see `_activate`.
        levels: in their order.
        widest: edges of the level that has the most.
    """

    idle: Tensor
    levels: list[_Level]
    widest: int


@device_constant
def _plan(parents: tuple[int, ...], direction: str, device: torch.device) -> _Plan:
    steps = schedule(parents, direction)
    both = direction == "both"
    nodes = range(len(parents) * (2 if both else 1))

    def slot(node: int) -> int:
        """Of "both" the two maps of a part follow each other in the result."""
        return node % len(parents) * 2 + node // len(parents) if both else node

    def table(rows: list[tuple[int, ...]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int32, device=device)

    def level(edges: list[Edge]) -> _Level:
        count = {target: 0 for _, _, target in edges}
        for edge in edges:
            count[edge.target] += 1
        # the longest jobs first, so that none of them begins when the others are done
        edges = sorted(edges, key=lambda edge: (-count[edge.target], edge.target))
        ends = {edge.target: i + 1 for i, edge in enumerate(edges)}
        return _Level(
            table([(slot(edge.source), edge.kernel) for edge in edges]),
            table([(i, edge.kernel) for i, edge in enumerate(edges)]),
            table([(i, i + 1, i, 0) for i in range(len(edges))]),
            table([(end - count[t], end, slot(t), t) for t, end in ends.items()]),
        )

    waiting = {edge.target for edges in steps for edge in edges}
    return _Plan(
        table([(node, slot(node)) for node in nodes if node not in waiting]),
        [level(edges) for edges in steps],
        max((len(edges) for edges in steps), default=0),
    )


def instances() -> list[Instance]:
    """What is launched for the two published forms of `Structured`, the hardest of each tile."""
    found = [_activate_instance()]
    for capability, tiles in TILES.items():
        few, wide, many = tiles["16-bit"]
        found += [
            _convolve_instance(capability, "fp16", 64, 128, "after", few),
            _convolve_instance(capability, "bf16", 128, 64, "none", wide),
            _convolve_instance(capability, "fp16", 128, 128, "before", many),
            _convolve_instance(capability, "fp32", 64, 128, "after", tiles["tf32"][-1], "tf32"),
            _convolve_instance(capability, "fp32", 64, 128, "after", tiles["ieee"][-1]),
        ]
    return found


STRIDES = (
    "source_map", "source_image", "source_row", "source_column",
    "raw_map", "raw_image", "raw_row", "raw_column", "target_map", "target_column",
)  # fmt: skip
_SIZES = dict.fromkeys(("pixels", "height", "width"), "i32")


def _activate_instance() -> Instance:
    strides = STRIDES[4:]
    types = {"raw": "*fp16", "target": "*fp16", "nodes": "*i32", **_SIZES}
    types |= dict.fromkeys(strides, "i32")
    constants = {"CHANNELS": 128, "BLOCK_C": COPY_CHANNELS, "BLOCK_P": COPY_PIXELS}
    return Instance("propagate ReLU fp16", _activate, types, constants, 4, 3, strides)


def _convolve_instance(
    capability: int,
    kind: str,
    c_in: int,
    c_out: int,
    own: str,
    tile: Tile,
    precision: str = "ieee",
) -> Instance:
    arrays = ("source", "kernels", "biases", "raw", "target")
    types = {**dict.fromkeys(arrays, f"*{kind}"), "jobs": "*i32", "edges": "*i32", **_SIZES}
    types |= dict.fromkeys(STRIDES, "i32")
    shown = f" {precision}" if kind == "fp32" else ""
    return Instance(
        f"propagate sm_{capability} {c_in} to {c_out} {kind}{shown} {tile.channels}x{tile.pixels}",
        _convolve,
        types,
        _constants(c_in, c_out, 7, own, precision, tile),
        tile.warps,
        tile.stages,
        STRIDES,
        (capability,),
    )
