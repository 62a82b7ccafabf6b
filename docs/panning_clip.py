"""Make a short clip to try things on: a camera that pans over a photograph on a grey board.

The photograph (Lav Varshney, CC0) comes inside the package scikit-image: `skimage.data.camera`.

    python docs/panning_clip.py out/clip.mp4
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from skimage.data import camera

FRAMES, FPS = 60, 25
SIZE = (600, 400)  # (h, w) of the clip in pixels
CORNER = (-70.0, -20.0)  # of the board's part that is seen, in the photograph's pixels
BOARD = (118, 118, 118)


def main() -> None:
    """Write the clip that the command line names."""
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = cv2.cvtColor(camera(), cv2.COLOR_GRAY2BGR)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, SIZE[::-1])
    for i in range(FRAMES):
        swing = np.sin(2 * np.pi * i / FRAMES)  # there and back
        zoom = 1 + 0.03 * swing  # photograph's pixels per pixel of the clip
        affine = np.array([[zoom, 0, CORNER[0] + 10 * swing], [0, zoom, CORNER[1] - 10 * swing]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frame = cv2.warpAffine(picture, affine, SIZE[::-1], flags=flags, borderValue=BOARD)
        writer.write(frame)
    writer.release()


if __name__ == "__main__":
    main()
