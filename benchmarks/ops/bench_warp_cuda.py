"""`ops.warp` on CUDA: checked against the reference, then timed against its floor and a peer.

    python benchmarks/ops/bench_warp_cuda.py --out FILE.json

The floor is the bytes that must move (windows written, the source under them read once) at the copy
rate measured in the same run. The peer is torch's grid_sample with normalisation, in half. Times
are medians of CUDA-event intervals over inputs that rotate past the L2 cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from fastpose.geometry import boxes_to_affines
from fastpose.ops import warp

PEOPLE, FRAME, SIZE = (1, 8, 32, 128), (1080, 1920), (256, 192)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
ROTATED = 16  # frames of 6 MB: 100 MB, more than any L2
ROUNDS = 200


def boxes(count: int) -> np.ndarray:
    """[count, 4] upright boxes, 200 to 900 pixels tall, inside the frame."""
    random = np.random.default_rng(count)
    height = random.uniform(200, 900, count)
    width = 0.75 * height
    x = random.uniform(0, FRAME[1] - width)
    y = random.uniform(0, FRAME[0] - height)
    return np.stack((x, y, x + width, y + height), axis=1)


def median_us(call: Callable[[int], object]) -> float:
    """Median microseconds of one call, by events on the current stream."""
    for i in range(20):
        call(i)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(ROUNDS + 1)]
    marks[0].record()
    for i in range(ROUNDS):
        call(i)
        marks[i + 1].record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))


def copy_rate() -> float:
    """Bytes a microsecond of a large copy, read and write counted."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * len(source) / median_us(lambda i: target.copy_(source))


def peer(frame: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """The same windows by torch: [T, H, W, 3] bytes -> [N, 3, h, w] half, normalised."""
    planes = frame.permute(2, 0, 1)[None].half().expand(len(grid), -1, -1, -1)
    windows = F.grid_sample(planes, grid, align_corners=True)
    mean, std = (torch.tensor(v, device="cuda").half()[:, None, None] for v in (MEAN, STD))
    return (windows - mean) / std


def sampling_grid(affines: torch.Tensor) -> torch.Tensor:
    """[N, h, w, 2] half: where grid_sample reads, from -1 to 1 between the outer pixel centres."""
    v, u = torch.meshgrid(*(torch.arange(s, device="cuda") for s in SIZE), indexing="ij")
    points = torch.stack((u, v, torch.ones_like(u)), -1).float() @ affines.transpose(1, 2)[:, None]
    limit = torch.tensor([FRAME[1] - 1, FRAME[0] - 1], device="cuda")
    return (2 * points / limit - 1).half()


def row(frames: torch.Tensor, count: int, rate: float) -> dict[str, float]:
    """Check, then time, one number of people."""
    around = boxes(count)
    affines = torch.from_numpy(boxes_to_affines(around, SIZE)).float().cuda()
    out = torch.empty(count, 3, *SIZE, dtype=torch.float16, device="cuda")
    options = {"mean": MEAN, "std": STD}
    warp(frames[0], affines, SIZE, out=out, backend="cuda", **options)
    truth = warp(frames[0], affines, SIZE, backend="reference", **options)
    difference = (out.float() - truth.float()).abs().max().item()
    if not difference < 0.01:
        raise SystemExit(f"{count} people: differs from the reference by {difference}")
    ours = median_us(
        lambda i: warp(frames[i % ROTATED], affines, SIZE, out=out, backend="cuda", **options)
    )
    grid = sampling_grid(affines)
    theirs = median_us(lambda i: peer(frames[i % ROTATED], grid))
    area = float(((around[:, 2] - around[:, 0]) * (around[:, 3] - around[:, 1])).sum())
    read = min(3 * area, 3.0 * FRAME[0] * FRAME[1])
    floor = (out.numel() * out.element_size() + read) / rate
    return {
        "people": count,
        "us": round(ours, 2),
        "floor_us": round(floor, 2),
        "ratio_to_floor": round(ours / floor, 2),
        "grid_sample_us": round(theirs, 2),
        "ratio_to_grid_sample": round(theirs / ours, 2),
        "largest_difference": difference,
    }


def main() -> None:
    """Run all numbers of people and write one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="import and stop")
    args = parser.parse_args()
    if args.dry_run:
        print(f"CUDA devices: {torch.cuda.device_count()}; nothing is timed")
        return
    random = torch.Generator("cuda").manual_seed(0)
    shape = (ROTATED, *FRAME, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda", generator=random)
    rate = copy_rate()
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_gb_s": round(rate / 1e3, 1),
        "warp": [row(frames, count, rate) for count in PEOPLE],
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
