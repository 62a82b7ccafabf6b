"""`ops.render` on CUDA: checked against the reference, timed against its bytes and that in torch.

    python benchmarks/gpu/render.py --out FILE.json

The floor is the maps, written once. The peer is the reference itself on the same device: products
of a row and a column of exponentials, which is what plain torch can do best.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timing import Bench, Peer, Work, agree, node_limits, of_floor

from fastpose.ops import render

JOINTS, CELLS, SIGMA = 17, (64, 48), 2.0
PEOPLE = (1, 8, 32, 128)
CASES = [("exact", False), ("exact", True), ("msra", False), ("msra", True)]


def measure(bench: Bench, style: str, background: bool, people: int) -> None:
    """One row: a style, with or without the map of the background, for a number of people."""
    joints, cells = (3, (12, 10)) if bench.dry else (JOINTS, CELLS)
    maps = joints + background
    written = 4 * people * maps * cells[0] * cells[1]
    sets = bench.sets(written)
    reach = torch.tensor([cells[1] + 8.0, cells[0] + 8.0], device=bench.device)
    points = bench.random(sets, people, joints, 2) * reach - 4  # some of them outside
    visible = (bench.random(sets, people, joints) < 0.9).float()
    out = torch.empty(sets, people, maps, *cells, device=bench.device)
    options = {"sigma": SIGMA, "style": style, "background": background}

    def ours(i: int) -> torch.Tensor:
        return render(points[i], visible[i], cells, out=out[i], backend="triton", **options)

    def separable(i: int) -> torch.Tensor:
        return render(points[i], visible[i], cells, backend="reference", **options)

    def check() -> float:
        out[0].fill_(torch.nan)
        return agree(ours(0), separable(0), absolute=4e-6)

    bench.measure(
        "render",
        {"people": people, "style": style, "background": background},
        ours,
        sets=sets,
        work=Work(bytes=written + 12 * people * joints),
        check=check,
        peers=[Peer("torch separable", separable, at_least=2.0 if people >= 128 else None)],
        limits=node_limits(people, **(of_floor(1.2) if people >= 128 else {})),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case for every number of people."""
    bench = Bench(__file__, arguments)
    for style, background in CASES:
        for people in (1, 2) if bench.dry else PEOPLE:
            measure(bench, style, background, people)
    bench.close()


if __name__ == "__main__":
    main()
