"""Make a short clip to try things on: a camera that pans over scikit-image's astronaut.

The photograph (NASA, public domain) comes inside the package scikit-image.

    python docs/panning_clip.py out/clip.mp4
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from skimage.data import astronaut

FRAMES, FPS = 60, 25
SIZE = (480, 400)  # (h, w) of the clip; the picture is 512 x 512


def main() -> None:
    """Write the clip that the command line names."""
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.ascontiguousarray(astronaut()[..., ::-1])
    height, width = SIZE
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (width, height))
    for i in range(FRAMES):
        swing = np.sin(2 * np.pi * i / FRAMES)  # there and back
        zoom = 1.0 + 0.1 * swing
        shift = np.array([256 + 30 * swing, 250.0]) - np.array([width, height]) / 2 / zoom
        affine = np.array([[1 / zoom, 0, shift[0]], [0, 1 / zoom, shift[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frame = cv2.warpAffine(
            picture, affine, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        writer.write(frame)
    writer.release()


if __name__ == "__main__":
    main()
