"""A long video through the whole path, and the memory of the process as it goes.

    cd benchmarks; python -m memory.soak '{"frames": 10000, "model": null, "threads": 1}'

Everything that holds something from frame to frame takes part: reader, detector or boxes, tracks,
filters, a file of joints and a drawn video. Prints one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from clips import noise, people, write_video
from onnx import TensorProto, helper, numpy_helper

from fastpose import Pose
from fastpose.bench.people import place_boxes
from fastpose.detect import BoxesFile
from fastpose.engines import Statement, wrap_network
from fastpose.frames import open_source
from fastpose.machine import resident_bytes
from fastpose.sinks import open_sinks
from fastpose.types import Boxes, Frame, People

SETTLED, WINDOW, STEP = 500, 1000, 20  # frames
SIZE = (96, 128)  # (h, w) of a frame in pixels
STREET = (360, 640)  # of one that a detector looks at
PEOPLE, JOINTS = 4, 14

Keep = Callable[[Frame, People], object]


def growth_percent(
    samples: Sequence[int], step: int = STEP, settled: int = SETTLED, window: int = WINDOW
) -> float:
    """How much more memory a process has in its last frames than after it has settled.

    Medians of windows: the system takes memory back and gives it when it likes.

    Args:
        samples: bytes in RAM after every `step` frames.
        step: frames.
        settled: frames after which the first window begins.
        window: frames.

    Raises:
        ValueError: the windows overlap.
    """
    first, count = settled // step, window // step
    if len(samples) < first + 2 * count or not count:
        raise ValueError(f"{len(samples)} samples are too few for two windows of {count}")
    before = statistics.median(samples[first : first + count])
    return 100 * (statistics.median(samples[-count:]) / before - 1)


def soak(
    pose: Pose, video: Path, folder: Path, boxes: BoxesFile | None, keep: Keep | None = None
) -> tuple[list[int], int, int]:
    """Run a video through.

    Args:
        pose: that finds the joints.
        video: any.
        folder: for the files.
        boxes: in place of the pose's detector, which otherwise looks at every fifth frame.
        keep: called with all that comes out.

    Returns:
        Bytes in RAM after every `STEP` frames, and how many frames and people there were.
    """
    samples: list[int] = []
    seen = found = 0
    spec = pose.engine.manifest.spec
    header = {"model": spec.name, "joints": list(spec.joints.joints)}
    with open_source(video) as source:
        sinks = open_sinks(("jsonl",), folder, source, header, video=True)
        stream = pose.stream(source, boxes=boxes, detect_every=5, smooth="one-euro")
        for frame, there in stream:
            for sink in sinks:
                sink.write(frame, there)
            if keep:
                keep(frame, there)
            seen, found = seen + 1, found + len(there)
            if seen % STEP == 0:
                samples.append(resident_bytes() or 0)
        for sink in sinks:
            sink.close()
    return samples, seen, found


def everybody(video: Path, frames: int, size: tuple[int, int] = SIZE) -> BoxesFile:
    """The same people in each frame."""
    boxes = place_boxes(size[1], size[0], PEOPLE)
    found = Boxes(boxes, np.ones(len(boxes), np.float32))
    return BoxesFile(video, dict.fromkeys(range(frames), found))


def write_network(folder: Path) -> Path:
    """A bundle of one convolution, whose maps have a peak somewhere; its manifest."""
    weights = np.random.default_rng(0).standard_normal((JOINTS, 3, 4, 4)).astype(np.float32)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 24])
    maps = helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["n", JOINTS, 8, 6])
    node = helper.make_node("Conv", ["image", "weights"], ["maps"], strides=[4, 4])
    tensors = [numpy_helper.from_array(weights, "weights")]
    graph = helper.make_graph([node], "small", [image], [maps], tensors)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "small.onnx")
    stated = Statement(skeleton="lsp14", rgb=True, peak_value=1.0)
    return wrap_network(folder / "small.onnx", stated, like="hrnet", out=folder / "wrapped.onnx")


def main(words: Sequence[str]) -> dict[str, Any]:
    """What the command line asks for: frames, and a model, or null for one convolution."""
    asked = json.loads(words[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames, model, video = int(asked["frames"]), asked["model"], folder / "pan.mp4"
        write_video(video, frames, *((people(STREET), STREET) if model else (noise(SIZE), SIZE)))
        boxes = None if model else everybody(video, frames)
        network, detector = (model, "default") if model else (write_network(folder), "none")
        with Pose(network, detector=detector, threads=asked["threads"]) as pose:
            samples, seen, found = soak(pose, video, folder, boxes)
    return {"frames": seen, "people": found, "samples": samples}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
