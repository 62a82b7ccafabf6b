"""The whole step of a frame: windows, network and joints in one CUDA graph, and the network alone.

    python benchmarks/gpu/step.py --out FILE.json

The step is held against the network alone: between them lie the copy of the block that says which
windows, the windows, the peaks, the joints' way back. Its figures are what a call takes the host
longer than the device, what the same work takes without a graph, and what opening took.
Weights are random, which changes no time. Opening is timed as well: it looks for cuDNN's fastest
algorithms, so a network is opened for one number of people alone, and the most wanted come first.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from timing import Bench, Found, WrongResultError, agree

from fastpose import ops
from fastpose.bench.cuda import Replay
from fastpose.crop import person_affines, sample_counts
from fastpose.engines.engine import Request
from fastpose.engines.torch import TorchEngine
from fastpose.graph import FrameGraphs, capture, wait
from fastpose.measure import Times, take_turns
from fastpose.models import model_spec

CASES = [
    *(("cpn-light", "f16", people) for people in (8, 1, 32)),
    ("cpn50", "f16", 8),
    ("cpn-light", "bf16", 8),
    ("cpn50", "f16", 32),
]
FRAME, TALL = (1080, 1920), (200, 900)
CALLS = 30
IN_A_ROW = 10
TARGET_PEOPLE, TARGET = 8, 0.05  # of the network alone, that the step takes longer
ALONE = "the network alone"
TOLERANCE = {"f32": 2e-3, "f16": 4e-3, "bf16": 3e-2}  # of windows from about -2 to 3


def make_boxes(people: int, frame: tuple[int, int], tall: tuple[int, int]) -> np.ndarray:
    """[people, 4] upright boxes inside the frame."""
    random = np.random.default_rng(people)
    height = random.uniform(*tall, people)
    width = 0.6 * height
    x, y = random.uniform(0, frame[1] - width), random.uniform(0, frame[0] - height)
    return np.stack((x, y, x + width, y + height), axis=1)


def clock(calls: dict[str, Callable[[], object]]) -> dict[str, Times]:
    """Times by the host's clock of calls that wait for their results, by turns."""
    return take_turns(calls, rounds=CALLS, repeats=1)


def repeated(replay: Callable[[], None]) -> Replay:
    """Graphs behind each other, so that their start, once, counts for little."""

    def run() -> None:
        for _ in range(IN_A_ROW):
            replay()

    return Replay(run, IN_A_ROW)


def open_and_measure(
    bench: Bench, name: str, precision: str, image: np.ndarray, people: int
) -> Found:
    """One row: a network with random weights for a number of people in a frame."""
    begin = time.perf_counter()
    engine = TorchEngine(
        Request(
            spec=model_spec(name),
            file=None,
            weights_hash="",
            device=str(bench.device),
            precision=precision,
            passed=(),
            buckets=(people,),
            threads=None,
        )
    )
    graphs = FrameGraphs(engine)
    wait(bench.device)
    opened = time.perf_counter() - begin
    try:
        return measure(bench, engine, graphs, image, people, opened)
    finally:
        graphs.close()


def measure(
    bench: Bench,
    engine: TorchEngine,
    graphs: FrameGraphs,
    image: np.ndarray,
    people: int,
    opened: float,
) -> Found:
    """Check and time the step, and the network alone."""
    spec = engine.manifest.spec
    tall = (20, 40) if bench.dry else TALL
    boxes = make_boxes(people, image.shape[:2], tall)
    affines = person_affines(boxes, spec.window)
    source = np.zeros(people, np.int64)
    frames = [torch.from_numpy(image).to(bench.device)]
    step = graphs._steps[people]  # the replay without the host's part has no public name

    # copies: the host's memory is written anew by each run
    points, scores = (found.copy() for found in graphs.joints(frames, source, affines))
    images = step._windows.permute(0, 3, 1, 2) if engine.layout == "nhwc" else step._windows
    truth = ops.warp(
        frames[0],
        torch.from_numpy(affines).float().to(bench.device),
        spec.size,
        area=torch.from_numpy(sample_counts(affines)).int().to(bench.device),
        mean=spec.window.mean,
        std=spec.window.std,
        swap_rb=spec.window.rgb,
        border=spec.window.border,
        backend="reference",
    )
    scale = max(1.0, float(truth.abs().max()) / 3.0)
    difference = agree(
        images[:people].float(), truth, absolute=scale * TOLERANCE[engine.manifest.precision]
    )
    step._run()
    wait(bench.device)
    eager = [found[:people].numpy() for found in step._found]
    if not float(np.abs(scores - eager[1]).max()) <= 1e-2:
        raise WrongResultError("the replay finds other joints than the same work without a graph")

    bits = np.array_equal(points, eager[0], equal_nan=True) and np.array_equal(scores, eager[1])
    check = (
        f"windows {difference:.3g} from the reference, joints {'' if bits else 'not '}"
        "bit for bit those of the same work without a graph"
    )
    network = repeated(capture(lambda: engine.enqueue(images), bench.device))
    times = bench.take_turns({"ours": repeated(step._replay), ALONE: network})

    def eagerly() -> None:
        step._set_windows(frames, source, affines)
        step._run()
        wait(bench.device)

    def replayed() -> None:
        graphs.joints(frames, source, affines)

    if bench.dry:
        eagerly()
        replayed()
        return Found(check)
    host = clock({"replayed": replayed, "eager": eagerly})
    return Found(
        check,
        times,
        {
            "host_ms": round(1e3 * (host["replayed"].median - times["ours"].median), 4),
            "eager_ms": round(1e3 * host["eager"].median, 4),
            "compile_s": round(opened, 2),
        },
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every network for every number of people."""
    bench = Bench(__file__, arguments)
    frame = (96, 128) if bench.dry else FRAME
    image = np.random.default_rng(0).integers(0, 256, (*frame, 3), np.uint8)
    for name, precision, people in [("cpn-light", "f32", 2)] if bench.dry else CASES:
        bench.record(
            "pipeline",
            "step",
            {"people": people, "model": name, "engine": "torch", "precision": precision},
            functools.partial(open_and_measure, bench, name, precision, image, people),
            limits={ALONE: round(1 / (1 + TARGET), 3)} if people == TARGET_PEOPLE else {},
        )
    bench.close()


if __name__ == "__main__":
    main()
