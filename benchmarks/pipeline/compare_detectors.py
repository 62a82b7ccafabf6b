"""Time of a frame in two detectors, by turns in one process.

    python benchmarks/pipeline/compare_detectors.py VIDEO --peer yolox_nano.onnx

Both find the people of the same frames through `fastpose.detect`, from the frame's bytes to boxes
in its pixels; their accuracy is what `fastpose eval` says. Wall time, since the runtimes bring
threads of their own: keep the machine quiet. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import cv2
import numpy as np

from fastpose.detect import Detector, open_detector

FRAMES, ROUNDS = 20, 5


def read_frames(path: Path) -> list[np.ndarray]:
    """The first frames of a video."""
    capture = cv2.VideoCapture(str(path))
    frames = [capture.read()[1] for _ in range(FRAMES)]
    if any(frame is None for frame in frames):
        raise SystemExit(f"{path}: expected a video of at least {FRAMES} frames")
    return frames


def by_turns(detectors: dict[str, Detector], frames: list[np.ndarray]) -> dict[str, list[float]]:
    """Milliseconds of every frame in each detector."""
    times: dict[str, list[float]] = {name: [] for name in detectors}
    for _, frame in itertools.product(range(ROUNDS), frames):
        for name, detector in detectors.items():
            start = time.perf_counter()
            detector([frame])
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--ours", default="default")
    parser.add_argument("--peer", required=True, metavar="FILE.onnx")
    parser.add_argument("--precision", nargs="+", default=["f32", "bf16"])
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    frames = read_frames(args.video)
    detectors = {
        f"{who} {precision}": open_detector(what, precision=precision, threads=args.threads)
        for precision in args.precision
        for who, what in (("ours", args.ours), ("peer", args.peer))
    }
    for detector in detectors.values():
        detector(frames[:2])
    times = by_turns(detectors, frames)
    rows = {}
    for name, own in times.items():
        low, middle, high = statistics.quantiles(own, n=4)
        rows[name] = {
            "median_ms": round(middle, 2),
            "quartiles_ms": [round(low, 2), round(high, 2)],
        }
    for precision in args.precision:
        ratio = rows[f"peer {precision}"]["median_ms"] / rows[f"ours {precision}"]["median_ms"]
        rows[f"peer / ours {precision}"] = round(ratio, 3)
    height, width = frames[0].shape[:2]
    print(json.dumps({"frame": [height, width], "threads": args.threads, **rows}, indent=1))


if __name__ == "__main__":
    main()
