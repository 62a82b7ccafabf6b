"""Reading and pose of one video, ours beside rtmlib's own loop, round by round in one run.

Both run the same CPN-50 graph (random weights) on the same boxes, eight people a frame. rtmlib has
an environment of its own, since it pins other packages; name its interpreter:

    python benchmarks/pipeline/compare_rtmlib.py VIDEO --peer-python PEER/bin/python --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

MODEL = "cpn50"
INPUT = (192, 256)  # (w, h), as rtmlib counts
ROUNDS = 5


def boxes_of_a_frame(width: int, height: int, people: int) -> np.ndarray:
    """[people, 4] upright boxes side by side, of several sizes, all inside the frame."""
    tall = height * np.linspace(0.4, 0.9, people)
    left = np.linspace(0.02 * width, 0.8 * width, people)
    top = (height - tall) / 2
    return np.stack((left, top, left + 0.4 * tall, top + tall), axis=1).astype(np.float32)


def size_of(video: Path) -> tuple[int, int]:
    """(width, height) in pixels."""
    import cv2

    capture = cv2.VideoCapture(str(video))
    return int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))


def ours(args: argparse.Namespace, kind: str, precision: str) -> Callable[[], int]:
    """One round of our stream."""
    from fastpose import Pose
    from fastpose.detect import BoxesFile
    from fastpose.types import Boxes

    rows = boxes_of_a_frame(*size_of(args.video), args.people)
    found = Boxes(rows, np.ones(len(rows), np.float32))
    file = BoxesFile(args.video, dict.fromkeys(range(args.frames), found))
    pose = Pose(args.graph, detector="none", engine=kind, precision=precision)

    def once() -> int:
        stream = pose.stream(args.video, boxes=file, max_frames=args.frames)
        return sum(len(people) for _, people in stream)

    return once


def theirs(args: argparse.Namespace) -> Callable[[], int]:
    """One round of the loop in rtmlib's examples."""
    import cv2
    from rtmlib import ViTPose

    boxes = boxes_of_a_frame(*size_of(args.video), args.people).tolist()
    pose = ViTPose(str(args.graph), model_input_size=INPUT, backend="onnxruntime", device="cpu")

    def once() -> int:
        capture, seen = cv2.VideoCapture(str(args.video)), 0
        for _ in range(args.frames):
            ok, frame = capture.read()
            if not ok:
                break
            keypoints, _ = pose(frame, bboxes=boxes)
            seen += len(keypoints)
        return seen

    return once


def work(args: argparse.Namespace) -> None:
    """A worker: warm up, then one timed round for each line on standard input."""
    warnings.simplefilter("ignore")
    runtime, _, precision = args.worker.partition(":")
    once = theirs(args) if runtime == "rtmlib" else ours(args, runtime, precision)
    once()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        people = once()
        print(json.dumps([time.perf_counter() - start, people]), flush=True)


class Worker:
    """A worker's process."""

    def __init__(self, python: str, name: str, graph: Path, args: argparse.Namespace) -> None:
        words = [python, __file__, str(args.video), "--worker", name, "--graph", str(graph)]
        words += ["--people", str(args.people), "--frames", str(args.frames)]
        pipe = subprocess.PIPE
        self.name, self.seconds = name, []
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        self._line()

    def _line(self) -> str:
        line = self.process.stdout.readline()
        while line and not line.startswith(("[", "ready")):  # rtmlib prints as it loads
            line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: the worker stopped with {self.process.wait()}")
        return line

    def round(self, expected: int) -> None:
        """Time one round; the number of people must be the expected one."""
        self.process.stdin.write("go\n")
        seconds, people = json.loads(self._line())
        if people != expected:
            raise SystemExit(f"{self.name}: {people} people instead of {expected}")
        self.seconds.append(seconds)


def same_answer(graph: Path, precision: str) -> float:
    """Largest difference of our engine from ONNX Runtime on random windows, of the largest map."""
    from fastpose.engines import open_engine, open_network

    engine = open_engine(graph, precision=precision)
    spec = engine.manifest.spec
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((3, 3, *spec.size), np.float32)
    truth = open_network(graph, spec, kind="onnxruntime")(batch)
    return float(np.abs(engine(batch) - truth).max() / np.abs(truth).max())


def cpu_name() -> str:
    """As Linux calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    """Build the graphs, start the workers, and time them in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--peer-python", help="an interpreter that has rtmlib and onnxruntime")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--graph", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    from fastpose import __version__, build_engine

    warnings.simplefilter("ignore")
    workers, checked = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("f32", "bf16"):
            graph = Path(folder) / precision / f"{MODEL}.onnx"
            graph.parent.mkdir()
            build_engine(MODEL, precision=precision, out=graph)
            checked[f"openvino:{precision}"] = same_answer(graph, precision)
            name = f"openvino:{precision}"
            workers.append(Worker(sys.executable, name, graph, args))
        if args.peer_python:
            workers.append(Worker(args.peer_python, "rtmlib", graph, args))
        for _ in range(ROUNDS):
            for worker in workers:
                worker.round(args.people * args.frames)
    medians = {w.name: statistics.median(w.seconds) for w in workers}
    result = {
        "what": "reading + pose, no drawing, no writing",
        "model": f"{MODEL}, random weights",
        "people": args.people,
        "frames": args.frames,
        "video": args.video.name,
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0))},
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "fastpose": __version__,
        "difference_from_onnxruntime": {k: float(f"{v:.2g}") for k, v in checked.items()},
        "seconds": {w.name: [round(s, 4) for s in w.seconds] for w in workers},
        "fps": {k: round(args.frames / v, 2) for k, v in medians.items()},
        "ratio_to_rtmlib": {
            k: round(medians["rtmlib"] / v, 2) for k, v in medians.items() if "rtmlib" in medians
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
