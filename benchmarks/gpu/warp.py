"""`ops.warp` on CUDA: checked against the reference, timed against its bytes and its peers.

    python benchmarks/gpu/warp.py --out FILE.json

People in a frame of 1080p. The floor is the windows, written once, and the parts of the frame that
are needed, read once, in the sectors of 32 bytes that the memory delivers. The peers are torch's
grid_sample with the normalisation behind it and, for feature maps, torchvision's roi_align.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from timing import Bench, Case, Peer, Work, agree, node_limits, of_floor

from fastpose.crop import sample_counts
from fastpose.geometry import boxes_to_affines
from fastpose.ops import FrameTable, frame_rows, warp
from fastpose.ops.warp import nv12_to_bgr

PEOPLE = (1, 8, 32, 128)
FRAME, SIZE = (1080, 1920), (256, 192)
TALL = (200, 900)  # pixels
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
TOLERANCE = {"float32": 5e-4, "float16": 1.5e-3}  # 1e-4 of the range over the least std, rounded
SECTOR = 32  # bytes
ONE_PERSON = 4e5  # bytes read and written, about: as many frames as that many must pass the cache

ROI_PEOPLE = (8, 128, 512)
LEVEL, CHANNELS, POOL = (200, 304), 256, 7  # the finest level of a pyramid, of 800 x 1216 pixels


@dataclass(frozen=True)
class Form:
    """Windows of what, as what."""

    layout: str
    dtype: str
    mixed: bool = False
    table: bool = False
    out_layout: str = "nchw"

    def case(self, people: int) -> Case:
        """Of a row."""
        return {
            "people": people,
            "layout": self.layout,
            "dtype": self.dtype,
            "out_layout": self.out_layout,
            "area": "1-4" if self.mixed else "1",
            "table": self.table,
        }


FORMS = [
    Form("hwc", "float16"),
    Form("hwc", "float32"),
    Form("hwc", "float16", out_layout="nhwc"),
    Form("hwc", "float16", mixed=True),
    Form("hwc", "float16", True, True, "nhwc"),  # as the graph of a frame's step calls it
    Form("nv12", "float16"),
]


def make_boxes(people: int, frame: tuple[int, int], tall: tuple[int, int]) -> np.ndarray:
    """[people, 4] upright boxes of a window's shape inside the frame."""
    random = np.random.default_rng(people)
    height = random.uniform(*tall, people)
    width = height * SIZE[1] / SIZE[0]
    x = random.uniform(0, frame[1] - width)
    y = random.uniform(0, frame[0] - height)
    return np.stack((x, y, x + width, y + height), axis=1)


def make_frames(bench: Bench, count: int, *shape: int) -> torch.Tensor:
    """[count, ...] bytes of noise, which no wrong tap agrees with."""
    frames = torch.empty(count, *shape, dtype=torch.uint8, device=bench.device)
    return frames.random_(0, 256, generator=bench.generator)


def touched_bytes(
    affines: np.ndarray, areas: np.ndarray, size: tuple[int, int], frame: tuple[int, int], cell: int
) -> int:
    """Bytes of the sectors that upright windows need of one plane with `cell` bytes a pixel."""
    sectors = np.zeros((frame[0], frame[1] * cell // SECTOR + 1), bool)
    for matrix, area in zip(affines, areas, strict=True):
        inner = (np.arange(area) + 0.5) / area - 0.5

        def taps(scale: float, offset: float, count: int, limit: int, inner=inner) -> np.ndarray:
            at = scale * (np.arange(count)[:, None] + inner).ravel() + offset
            both = np.unique(np.concatenate((np.floor(at), np.floor(at) + 1))).astype(int)
            return both[(both >= 0) & (both < limit)]

        columns = taps(matrix[0, 0], matrix[0, 2], size[1], frame[1]) * cell
        columns = np.unique(np.concatenate((columns, columns + cell - 1)) // SECTOR)
        rows = taps(matrix[1, 1], matrix[1, 2], size[0], frame[0])
        sectors[np.ix_(rows, columns)] = True
    return SECTOR * int(sectors.sum())


def sampling_grid(
    affines: torch.Tensor, size: tuple[int, int], frame: tuple[int, int]
) -> torch.Tensor:
    """[N, h, w, 2]: where grid_sample reads, from -1 to 1 between the outer pixel centres."""
    device = affines.device
    v, u = torch.meshgrid(*(torch.arange(s, device=device) for s in size), indexing="ij")
    points = torch.stack((u, v, torch.ones_like(u)), -1).float() @ affines.transpose(1, 2)[:, None]
    limit = torch.tensor([frame[1] - 1, frame[0] - 1], device=device)
    return 2 * points / limit - 1


def grid_sampled(
    planes: torch.Tensor, grid: torch.Tensor, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """[1, 3, H, W] -> [N, 3, h, w], normalised, all in one type."""
    windows = F.grid_sample(planes.expand(len(grid), -1, -1, -1), grid, align_corners=True)
    return (windows - mean) / std


def measure_frames(bench: Bench, form: Form, people: int, frames: torch.Tensor) -> None:
    """One row: people cut out of one frame at a time."""
    size, tall = ((16, 12), (20, 36)) if bench.dry else (SIZE, TALL)
    nv12 = form.layout == "nv12"
    frame = (frames.shape[1] * 2 // 3 if nv12 else frames.shape[1], frames.shape[2])
    exact = boxes_to_affines(make_boxes(people, frame, tall), size)
    areas = sample_counts(exact) if form.mixed else np.ones(people, np.int64)
    dtype = getattr(torch, form.dtype)
    written = people * 3 * size[0] * size[1] * dtype.itemsize
    if nv12:
        read = touched_bytes(exact, areas, size, frame, 1)
        read += touched_bytes(exact / 2, areas, size, (frame[0] // 2, frame[1] // 2), 2)
    else:
        read = touched_bytes(exact, areas, size, frame, 3)
    sets = min(len(frames), bench.sets(read + written))
    affines = torch.from_numpy(exact).float().to(bench.device)
    shape = (*size, 3) if form.out_layout == "nhwc" else (3, *size)
    out = torch.empty(sets, people, *shape, dtype=dtype, device=bench.device)
    options = {"mean": MEAN, "std": STD, "layout": form.layout, "out_layout": form.out_layout}
    if form.mixed:
        options["area"] = torch.from_numpy(areas).int().to(bench.device)

    tables = torch.from_numpy(frame_rows(list(frames[:sets]), form.layout)).to(bench.device)
    source = torch.zeros(people, dtype=torch.int32, device=bench.device)

    def ours(i: int) -> torch.Tensor:
        if nv12 and bench.dry:  # which has no kernel on the CPU
            return out[i].copy_(reference(i))
        one = FrameTable(tables[i : i + 1]) if form.table else frames[i : i + 1]
        where = {"source": source, "out": out[i], "backend": bench.kernel("cuda")}
        return warp(one, affines, size, **where, **options)

    def reference(i: int) -> torch.Tensor:
        one = frames[i : i + 1]
        plain = {**options, "dtype": "float32", "backend": "reference"}
        if nv12:
            return warp(nv12_to_bgr(one, "bt709"), affines, size, **{**plain, "layout": "chw"})
        return warp(one, affines, size, **plain)

    def check() -> float:
        out[0].fill_(torch.nan)
        return agree(ours(0), reference(0), absolute=TOLERANCE[form.dtype])

    bench.measure(
        "warp",
        form.case(people),
        ours,
        sets=sets,
        work=Work(bytes=written + read + 24 * people),
        check=check,
        peers=[] if form.mixed else [frame_peer(form, frames, affines, size, frame, out, people)],
        limits=node_limits(
            people, **(of_floor(1.8 if people >= 128 else 2.5) if people >= 32 else {})
        ),
    )


def frame_peer(
    form: Form,
    frames: torch.Tensor,
    affines: torch.Tensor,
    size: tuple[int, int],
    frame: tuple[int, int],
    ours: torch.Tensor,
    people: int,
) -> Peer:
    """Torch's way to the same windows: planes, grid_sample, normalisation."""
    dtype = ours.dtype
    grid = sampling_grid(affines, size, frame).to(dtype)
    mean, std = (torch.tensor(v, device=grid.device).to(dtype)[:, None, None] for v in (MEAN, STD))

    def planes(i: int) -> torch.Tensor:
        one = frames[i : i + 1]
        wide = nv12_to_bgr(one, "bt709") if form.layout == "nv12" else one.permute(0, 3, 1, 2)
        return wide.to(dtype)

    def call(i: int) -> torch.Tensor:
        return grid_sampled(planes(i), grid, mean, std)

    convert = "nv12_to_bgr+" if form.layout == "nv12" else ""
    return Peer(
        f"{convert}grid_sample",
        call,
        # a grid in half is up to half a pixel off, which is the peer's own affair
        (lambda: agree(call(0), ours[0], relative=2e-3)) if dtype == torch.float32 else None,
        at_least=3.0 if people >= 32 else None,
    )


def measure_maps(bench: Bench, dtype: torch.dtype, windows: int) -> None:
    """One row: windows of feature maps as RoIAlign cuts them, 4 samples each value."""
    level, channels, pool = ((20, 24), 8, 3) if bench.dry else (LEVEL, CHANNELS, POOL)
    kind = str(dtype).removeprefix("torch.")
    random = np.random.default_rng(windows)
    side = random.uniform(4, level[0] / 3, (windows, 2))
    start = random.uniform(0, np.array([level[1], level[0]]) - side - 2)
    boxes = np.concatenate((start + 0.5, start + side + 0.5), axis=1)
    exact = np.zeros((windows, 2, 3))
    exact[:, 0, 0], exact[:, 1, 1] = side[:, 0] / pool, side[:, 1] / pool
    exact[:, :, 2] = boxes[:, :2] - 0.5 + 0.5 * side / pool
    read = channels * touched_bytes(exact, np.full(windows, 2), (pool, pool), level, dtype.itemsize)
    written = windows * channels * pool * pool * dtype.itemsize
    sets = bench.sets(read + written)
    maps = bench.normal(sets, channels, *level).to(dtype)
    out = torch.empty(sets, windows, channels, pool, pool, dtype=dtype, device=bench.device)
    affines = torch.from_numpy(exact).float().to(bench.device)
    rois = torch.cat((torch.zeros(windows, 1), torch.from_numpy(boxes).float()), dim=1)
    rois = rois.to(bench.device, dtype)

    def call(i: int, backend: str, **where: torch.Tensor) -> torch.Tensor:
        options = {"layout": "chw", "area": 2, "dtype": kind, "backend": backend}
        return warp(maps[i : i + 1], affines, (pool, pool), **options, **where)

    def ours(i: int) -> torch.Tensor:
        return call(i, bench.kernel("cuda"), out=out[i])

    def check() -> float:
        out[0].fill_(torch.nan)
        return agree(ours(0), call(0, "reference"), absolute=1e-3 if kind == "float32" else 5e-3)

    bench.measure(
        "warp",
        {"windows": windows, "layout": "chw", "dtype": kind, "area": "2"},
        ours,
        sets=sets,
        work=Work(bytes=read + written + 24 * windows),
        check=check,
        peers=maps_peers(maps, rois, pool, out),
        limits=node_limits(windows),
    )


def maps_peers(maps: torch.Tensor, rois: torch.Tensor, pool: int, ours: torch.Tensor) -> list[Peer]:
    """The roi_align of torchvision, where it is installed for this torch."""
    roi_align = find_roi_align()
    if roi_align is None:
        return []

    def call(i: int) -> torch.Tensor:
        return roi_align(maps[i : i + 1], rois, (pool, pool), sampling_ratio=2, aligned=True)

    def check() -> None:
        agree(call(0), ours[0], relative=2e-3)

    # boxes in half are up to an eighth of a cell off
    return [Peer("roi_align", call, check if maps.dtype == torch.float32 else None)]


def find_roi_align() -> Callable[..., torch.Tensor] | None:
    """None, too, where a torchvision was built for another torch."""
    try:
        from torchvision.ops import roi_align
    except (ImportError, RuntimeError):
        return None
    return roi_align


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case for every number of people."""
    bench = Bench(__file__, arguments)
    bench.report.set(torchvision=find_roi_align() is not None)
    frame = (48, 64) if bench.dry else FRAME
    frames = make_frames(bench, bench.sets(ONE_PERSON), *frame, 3)
    video = make_frames(bench, len(frames), frame[0] * 3 // 2, frame[1])
    for form in FORMS:
        for people in (1, 3) if bench.dry else PEOPLE:
            measure_frames(bench, form, people, video if form.layout == "nv12" else frames)
    for dtype in (torch.float32, torch.float16):
        for windows in (1, 3) if bench.dry else ROI_PEOPLE:
            measure_maps(bench, dtype, windows)
    bench.close()


if __name__ == "__main__":
    main()
