"""Make a short clip to try things on: a camera that pans over a picture of drawn people.

python docs/panning_clip.py out/clip.mp4
"""

import sys
from pathlib import Path

import cv2
import numpy as np

FRAMES, FPS = 60, 25
SIZE = (400, 560)  # (h, w) of the clip in pixels
CORNER = (30.0, 50.0)  # of the part that is seen, in the picture's pixels
PICTURE = Path(__file__).parents[1] / "fastpose" / "pictures" / "scene-1.jpg"


def main() -> None:
    """Write the clip that the command line names."""
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = cv2.imread(str(PICTURE))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, SIZE[::-1])
    for i in range(FRAMES):
        swing = np.sin(2 * np.pi * i / FRAMES)  # there and back
        zoom = 1 + 0.03 * swing  # the picture's pixels per pixel of the clip
        affine = np.array([[zoom, 0, CORNER[0] + 10 * swing], [0, zoom, CORNER[1] - 10 * swing]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frame = cv2.warpAffine(
            picture, affine, SIZE[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        writer.write(frame)
    writer.release()


if __name__ == "__main__":
    main()
