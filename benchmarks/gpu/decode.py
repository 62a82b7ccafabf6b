"""`ops.decode` on CUDA: checked against the reference, timed against its bytes and its peers.

    python benchmarks/gpu/decode.py --out FILE.json

The floor is the maps, read once. The peers do less, the highest cell and a quarter of a cell: in
torch on the device, and in numpy on the host, which pays for the copy of the maps as well. "cpn"
blurs every map by 21 x 21 cells and is bound by that, so it has no target for the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timing import FEW, Bench, Peer, Work, WrongResultError, agree, node_limits, of_floor

from fastpose.ops import decode, render

JOINTS, CELLS, SIGMA = 17, (64, 48), 2.0
ALL_PEOPLE, SOME_PEOPLE = (1, 8, 32, 128), (8, 128)
PAIRS = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)]
CHECKED = 16  # people whose joints are compared: the reference computes on the host
CELL_TOLERANCE = 0.01
STRIDE = 4.0  # pixels of a cell, in the affines


@dataclass(frozen=True)
class Case:
    """What is decoded how."""

    method: str
    dtype: str
    layout: str = "contiguous"
    flip: bool = False
    people: tuple[int, ...] = SOME_PEOPLE


CASES = [
    Case("dark", "float16", people=ALL_PEOPLE),
    Case("dark", "float32", people=ALL_PEOPLE),
    Case("dark", "bfloat16"),
    Case("dark", "float16", "channels-last"),
    Case("dark", "float32", "channels-last"),
    Case("argmax", "float16"),
    Case("quarter", "float16"),
    Case("udp", "float16"),
    Case("cpn", "float16"),
    Case("dark", "float16", flip=True),
]


def make_maps(bench: Bench, case: Case, count: int, cells: tuple[int, int]) -> torch.Tensor:
    """[count, K, h, w] Gaussians at known places in a little noise, in the case's type."""
    joints = 3 if bench.dry else JOINTS
    limits = torch.tensor([cells[1] - 1.0, cells[0] - 1.0], device=bench.device)
    points = bench.random(count, joints, 2) * limits
    visible = torch.ones(count, joints, device=bench.device)
    maps = render(points, visible, cells, sigma=SIGMA, backend="reference")
    return (maps + 0.01 * bench.random(*maps.shape)).to(getattr(torch, case.dtype))


def quarter_in_torch(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest cell, moved by a quarter, and its value: [N, K, h, w] -> [N, K, 2], [N, K]."""
    h, w = maps.shape[2:]
    flat = maps.flatten(2)
    scores, peak = flat.max(dim=-1)
    x, y = peak % w, peak // w

    def shift(position: torch.Tensor, size: int, step: int) -> torch.Tensor:
        inside = (position > 0) & (position < size - 1)
        centre = peak.where(inside, w + 1)[..., None]  # w + 1: some inner cell, masked below
        after, before = flat.gather(-1, centre + step), flat.gather(-1, centre - step)
        return 0.25 * torch.sign(after - before)[..., 0].float() * inside

    return torch.stack((x + shift(x, w, 1), y + shift(y, h, w)), dim=-1), scores


def quarter_in_numpy(maps: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The same on the host, the copy there included."""
    host = (maps.float() if maps.dtype == torch.bfloat16 else maps).cpu().numpy()
    n, k, h, w = host.shape
    flat = host.reshape(n * k, h * w)
    peak = flat.argmax(axis=1)
    x, y, every = peak % w, peak // w, np.arange(n * k)

    def shift(position: np.ndarray, size: int, step: int) -> np.ndarray:
        inside = (position > 0) & (position < size - 1)
        centre = np.where(inside, peak, w + 1)
        return 0.25 * np.sign(flat[every, centre + step] - flat[every, centre - step]) * inside

    points = np.stack((x + shift(x, w, 1), y + shift(y, h, w)), axis=-1)
    return points.reshape(n, k, 2), flat[every, peak].reshape(n, k)


def measure(bench: Bench, case: Case, people: int) -> None:
    """One row: a case for a number of people."""
    cells = (12, 10) if bench.dry else CELLS
    halves = 2 if case.flip else 1
    size = torch.finfo(getattr(torch, case.dtype)).bits // 8
    joints = 3 if bench.dry else JOINTS
    read = halves * people * joints * cells[0] * cells[1] * size
    sets = bench.sets(read)
    maps = make_maps(bench, case, sets * people, cells)
    mirrored = make_maps(bench, case, sets * people, cells) if case.flip else None
    maps, mirrored = (m if m is None else m.unflatten(0, (sets, people)) for m in (maps, mirrored))
    if case.layout == "channels-last":
        maps = maps.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    affines = torch.zeros(people, 2, 3, device=bench.device)
    affines[:, 0, 0] = affines[:, 1, 1] = STRIDE
    affines[:, :, 2] = 100.0 * bench.random(people, 2)
    pairs = [pair for pair in PAIRS if max(pair) < joints]

    def call(i: int, backend: str, some: torch.Tensor | slice = slice(None)) -> tuple:
        return decode(
            maps[i][some],
            method=case.method,
            sigma=SIGMA,
            flipped=None if mirrored is None else mirrored[i][some],
            flip_pairs=None if mirrored is None else pairs,
            flip_shift=int(case.flip),
            affines=affines[some],
            backend=backend,
        )

    def ours(i: int) -> tuple:
        return call(i, "triton")

    def check() -> float:
        points, scores = ours(0)
        some = torch.linspace(0, people - 1, min(people, CHECKED)).long().to(bench.device)
        wanted = call(0, "reference", some)
        agree(scores[some], wanted[1], absolute=1e-5)
        if not bool(points.isfinite().all() and (scores > 0).all()):
            raise WrongResultError("a joint of a map with a clear peak was not found")
        return agree(points[some], wanted[0], absolute=STRIDE * CELL_TOLERANCE)

    def check_torch() -> None:
        points, scores = quarter_in_torch(maps[0])
        wanted = decode(maps[0], method="quarter", backend="reference")
        agree(points, wanted[0])
        agree(scores, wanted[1])

    peers = []
    if not case.flip:
        peers.append(
            Peer(
                "torch max+gather",
                lambda i: quarter_in_torch(maps[i]),
                check_torch if people <= FEW else None,
                at_least=5.0 if people >= 128 else None,
            )
        )
    if case.method == "dark" and not case.flip and case.layout == "contiguous":
        peers.append(Peer("numpy+copy", lambda i: quarter_in_numpy(maps[i]), on_host=True))
    bytes_bound = case.method != "cpn" and people >= 128
    bench.measure(
        "decode",
        {
            "people": people,
            "method": case.method,
            "dtype": case.dtype,
            "layout": case.layout,
            "flip": case.flip,
        },
        ours,
        sets=sets,
        work=Work(bytes=read + people * (24 + joints * 12)),
        check=check,
        peers=peers,
        limits=node_limits(people, **(of_floor(1.3) if bytes_bound else {})),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case for every number of people."""
    bench = Bench(__file__, arguments)
    for case in CASES:
        if bench.dry and case.dtype == "bfloat16":
            continue  # numpy, and so the interpreter, computes in no such type
        for people in (1,) if bench.dry else case.people:
            measure(bench, case, people)
    bench.close()


if __name__ == "__main__":
    main()
