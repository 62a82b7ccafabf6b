"""rtmlib's own functions, and its pose classes over a video as its examples use them."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
import onnxruntime
from rtmlib import RTMPose, ViTPose
from rtmlib.tools.pose_estimation.post_processings import get_simcc_maximum, post_dark_udp
from serve import Task, serve

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
THREADS = int(os.environ["OMP_NUM_THREADS"])


def preprocess(
    frame: np.ndarray,
    boxes: np.ndarray,
    size: tuple[int, int] = (256, 192),
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> Task:
    """Windows [N, 3, h, w] float32 of boxes [N, 4] in a frame [H, W, 3] uint8."""
    network = RTMPose.__new__(RTMPose)  # its preprocessing alone: no weights are loaded
    network.model_input_size, network.mean, network.std = tuple(size)[::-1], mean, std
    decoded = frame.copy()

    def call() -> list[np.ndarray]:
        # The two lines after `preprocess` are what its BaseTool.inference does with a window.
        batch = []
        for box in boxes:
            window = network.preprocess(frame, box)[0].transpose(2, 0, 1)
            batch.append(np.ascontiguousarray(window, dtype=np.float32)[None])
        return batch

    return Task(
        call,
        lambda batch: {"windows": np.concatenate(batch)},
        before=lambda: np.copyto(frame, decoded),  # as a video's decoder leaves it
    )


def dark_udp(maps: np.ndarray, kernel: int = 11) -> Task:
    """Points [N, K, 2] in cells and scores [N, K] of maps [N, K, h, w]."""
    scratch = np.empty_like(maps)  # it writes over the maps

    def call() -> tuple[np.ndarray, np.ndarray]:
        # What its ViTPose.postprocess does before it refines.
        count, joints, _, w = scratch.shape
        flat = scratch.reshape(count, joints, -1)
        index = np.argmax(flat, 2).reshape(count, joints, 1)
        scores = np.max(flat, 2).reshape(count, joints, 1)
        points = np.tile(index, (1, 1, 2)).astype(np.float32)
        points[..., 0] = points[..., 0] % w
        points[..., 1] = points[..., 1] // w
        points = np.where(np.tile(scores, (1, 1, 2)) > 0, points, -1)
        return post_dark_udp(points, scratch, kernel=kernel), scores[..., 0]

    return Task(
        call,
        lambda found: {"points": found[0], "scores": found[1]},
        before=lambda: np.copyto(scratch, maps),
    )


def simcc(x: np.ndarray, y: np.ndarray, ratio: float = 2.0) -> Task:
    """Points [N, K, 2] in window pixels and scores [N, K] of x [N, K, w] and y [N, K, h]."""

    def call() -> tuple[np.ndarray, np.ndarray]:
        places, scores = get_simcc_maximum(x, y)
        return places / ratio, scores

    return Task(call, lambda found: {"points": found[0], "scores": found[1]})


def pose(frame: np.ndarray, boxes: np.ndarray, graph: str, **options: Any) -> Task:
    """Keypoints [N, K, 2] and scores [N, K] of boxes [N, 4] in a frame."""
    network, rows = open_graph(graph, **options), boxes.tolist()
    return Task(lambda: network(frame, bboxes=rows), _people)


def loop(boxes: np.ndarray, video: str, graph: str, frames: int, **options: Any) -> Task:
    """Keypoints [T, N, K, 2] and scores [T, N, K] of the same boxes [N, 4] in each frame.

    Reading and pose, the loop of its examples; seconds of every frame are kept.
    """
    network, rows, laps = open_graph(graph, **options), boxes.tolist(), []

    def call() -> list[tuple[np.ndarray, np.ndarray]]:
        capture, found = cv2.VideoCapture(video), []
        laps.clear()
        for _ in range(frames):
            start = time.perf_counter()
            read, frame = capture.read()
            if not read:
                break
            found.append(network(frame, bboxes=rows))
            laps.append(time.perf_counter() - start)
        capture.release()
        return found

    return Task(call, lambda found: _people(list(zip(*found, strict=True))), laps=laps)


def open_graph(
    graph: str,
    size: tuple[int, int] = (256, 192),
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    simcc: bool = False,
) -> ViTPose:
    """Its pose class of graphs that give maps, or of those that give SimCC vectors."""
    kind = RTMPose if simcc else ViTPose
    return kind(graph, tuple(size)[::-1], mean, std, backend="onnxruntime", device="cpu")


def _people(found: Any) -> dict[str, np.ndarray]:
    return {"keypoints": np.asarray(found[0]), "scores": np.asarray(found[1])}


def share_threads() -> None:
    """Have its ONNX Runtime work with as many threads as all others in the comparison.

    rtmlib opens sessions without options, and ONNX Runtime then takes all cores of the machine.
    """
    opened = onnxruntime.InferenceSession

    def open_session(path_or_bytes: Any, **options: Any) -> onnxruntime.InferenceSession:
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = THREADS
        return opened(path_or_bytes, sess_options=session, **options)

    onnxruntime.InferenceSession = open_session


if __name__ == "__main__":
    cv2.setNumThreads(THREADS)
    share_threads()
    parts = (f"onnxruntime {onnxruntime.__version__}", f"numpy {np.__version__}")
    about = f"{version('rtmlib')} ({', '.join(parts)}, OpenCV {cv2.__version__})"
    known = (preprocess, dark_udp, simcc, pose, loop)
    serve(about, {task.__name__: task for task in known})
