"""Videos that are made where there is no data set."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fastpose.fixtures import PICTURES
from fastpose.frames import picture_files, read_picture

FPS = 25
Size = tuple[int, int]  # (h, w) of a frame in pixels


def write_video(path: Path, frames: int, picture: np.ndarray, size: Size) -> None:
    """A camera that pans over a picture of its own height, there and back, (h, w) pixels."""
    h, w = size
    room = picture.shape[1] - w
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (w, h))
    for i in range(frames):
        left = abs((i + room) % (2 * room) - room)
        writer.write(np.ascontiguousarray(picture[:h, left : left + w]))
    writer.release()


def noise(size: Size) -> np.ndarray:
    """Twice as wide as (h, w)."""
    h, w = size
    grains = np.random.default_rng(0).integers(0, 256, (h, 2 * w, 3), np.uint8)
    return cv2.GaussianBlur(grains, (0, 0), 4)


def people(size: Size) -> np.ndarray:
    """The built-in pictures side by side, as high as (h, w)."""
    pictures = [read_picture(path) for path in picture_files(PICTURES.iterdir())]
    widths = [round(p.shape[1] * size[0] / p.shape[0]) for p in pictures]
    sized = [cv2.resize(p, (w, size[0])) for p, w in zip(pictures, widths, strict=True)]
    return np.concatenate(sized, axis=1)
