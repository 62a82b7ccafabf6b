"""Draw the people of fastpose/pictures, on which an engine is compared with its reference.

    python scripts/draw_people.py fastpose/pictures

Networks that were trained on photographs are sure of their joints, and nobody's rights are touched.
The same version of OpenCV writes the same bytes. The two photographs beside them come inside the
package scikit-image, `skimage.data.camera` (by Lav Varshney, CC0) and `skimage.data.astronaut` (by
NASA, public domain), and were saved as JPEG of the same quality.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

SCENES, PEOPLE = 5, 3
HEIGHT, WIDTH = 480, 640
QUALITY = 85
LIGHT = np.array([-0.5, -0.6, 0.62])  # where it comes from: left, above, in front
PHOTOGRAPHS = {"camera.jpg": [[0, 68, 306, 508]], "astronaut.jpg": [[22, 14, 362, 512]]}
TERMS = {
    "scene-*.jpg": "drawn by scripts/draw_people.py, under the licence of fastpose",
    "camera.jpg": "photograph by Lav Varshney, CC0; skimage.data.camera",
    "astronaut.jpg": "photograph by NASA, public domain; skimage.data.astronaut",
}

Array = npt.NDArray[Any]
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)


class Canvas:
    """A picture of shaded capsules, and the box round those that were drawn last."""

    def __init__(self, rng: np.random.Generator) -> None:
        horizon = rng.uniform(0.55, 0.8) * HEIGHT
        wall, floor = rng.uniform(110, 180, 3), rng.uniform(70, 140, 3)
        cloth = cv2.GaussianBlur(rng.normal(0, 1, (HEIGHT, WIDTH)).astype(np.float32), (0, 0), 6)
        self.image = np.where((horizon > ROWS)[..., None], wall, floor)
        self.image += 8 * (cloth / cloth.std())[..., None]
        self.begin()

    def begin(self) -> None:
        """Forget the box."""
        self.box = [np.inf, np.inf, -np.inf, -np.inf]

    def capsule(self, a: Array, b: Array, wide: float, narrow: float, colour: Array) -> None:
        """From `a` to `b`, of radius `wide` there and `narrow` here, lit as if it were round."""
        a, b = np.asarray(a, float), np.asarray(b, float)
        along = b - a
        x, y = COLUMNS - a[0], ROWS - a[1]
        place = np.clip((x * along[0] + y * along[1]) / max(along @ along, 1e-6), 0, 1)
        x, y = x - place * along[0], y - place * along[1]
        radius = wide + (narrow - wide) * place
        cover = np.clip(radius - np.hypot(x, y) + 0.5, 0, 1)[..., None]
        x, y = x / radius, y / radius
        towards = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
        bright = 0.45 + 0.6 * np.clip(x * LIGHT[0] + y * LIGHT[1] + towards * LIGHT[2], 0, 1)
        self.image = self.image * (1 - cover) + np.asarray(colour) * bright[..., None] * cover
        low = np.minimum(a - wide, b - narrow)
        high = np.maximum(a + wide, b + narrow)
        self.box = [*np.minimum(self.box[:2], low), *np.maximum(self.box[2:], high)]


def heading(angle: float) -> Array:
    """The unit vector that points so far from straight down, in radians, to the right."""
    return np.array([np.sin(angle), np.cos(angle)])


def draw_person(canvas: Canvas, hip: Array, size: float, rng: np.random.Generator) -> None:
    """Somebody who faces the viewer; `size` is in units of about 300 pixels from top to toe."""
    lean = rng.normal(0, 0.12)
    up, right = -heading(-lean), np.array([np.cos(lean), np.sin(lean)])
    skin = np.array([120, 155, 205]) * rng.uniform(0.55, 1.1)
    shirt, trousers = rng.uniform(30, 220, 3), rng.uniform(15, 140, 3)
    neck = hip + 88 * size * up
    draw_legs(canvas, hip, right, size, (trousers, skin), rng)
    for t in np.linspace(-1, 1, 7):
        low, high = hip + 13 * t * size * right, neck + (23 * t * right - 10 * up) * size
        canvas.capsule(low, high, 13 * size, 14 * size, shirt)
    belt = 17 * size * right
    canvas.capsule(hip - belt - 2 * up, hip + belt - 2 * up, 15 * size, 15 * size, trousers)
    draw_head(canvas, neck, up * size, right * size, size, skin, rng)
    for side in (-1, 1):
        shoulder = neck + (29 * side * right - 8 * up) * size
        upper = side * rng.uniform(0.1, 1.3)
        elbow = shoulder + 50 * size * heading(upper)
        wrist = elbow + 46 * size * heading(upper + side * rng.uniform(-0.9, 1.2))
        canvas.capsule(elbow, wrist, 8.5 * size, 6.5 * size, skin)
        canvas.capsule(wrist, wrist + 0.25 * (wrist - elbow), 7 * size, 5 * size, skin)
        canvas.capsule(shoulder, elbow, 13 * size, 9.5 * size, shirt)


def draw_legs(
    canvas: Canvas,
    hip: Array,
    right: Array,
    size: float,
    colours: tuple[Array, Array],
    rng: np.random.Generator,
) -> None:
    """Both; each shin is in one of the two colours, trousers and skin."""
    shoe = rng.uniform(10, 80, 3)
    for side in (-1, 1):
        top = hip + 17 * side * size * right
        thigh = side * rng.uniform(0.02, 0.4)
        knee = top + 68 * size * heading(thigh)
        ankle = knee + 66 * size * heading(thigh - side * rng.uniform(0, 0.4))
        canvas.capsule(ankle, ankle + np.array([9 * side, 7]) * size, 8 * size, 6 * size, shoe)
        canvas.capsule(knee, ankle, 12 * size, 8 * size, colours[int(rng.random() > 0.6)])
        canvas.capsule(top, knee, 17 * size, 12 * size, colours[0])


def draw_head(
    canvas: Canvas,
    neck: Array,
    up: Array,
    right: Array,
    size: float,
    skin: Array,
    rng: np.random.Generator,
) -> None:
    """Neck, hair, face, eyes and mouth; `up` and `right` are as long as a unit of the figure."""
    dark, hair = np.array([30, 30, 30]), np.array([25, 35, 45]) * rng.uniform(0.3, 2)
    canvas.capsule(neck - 6 * up, neck + 10 * up, 9 * size, 8.5 * size, skin)
    canvas.capsule(neck + 28 * up, neck + 46 * up, 14.5 * size, 13 * size, hair)
    canvas.capsule(neck + 22 * up, neck + 39 * up, 13 * size, 13.5 * size, skin)
    for side in (-5, 5):
        eye = neck + side * right + 36 * up
        canvas.capsule(eye, eye, 2 * size, 2 * size, dark)
    mouth = neck + 24 * up
    canvas.capsule(mouth - 4 * right, mouth + 4 * right, 1.4 * size, 1.4 * size, 2 * dark)


def draw_scene(seed: int) -> tuple[Array, list[list[int]]]:
    """A picture [h, w, 3] uint8 BGR and the boxes of the people in it."""
    rng = np.random.default_rng(seed)
    canvas = Canvas(rng)
    boxes = []
    for place in range(PEOPLE):
        across = (place + 0.5 + rng.uniform(-0.1, 0.1)) / PEOPLE
        canvas.begin()
        hip = np.array([across * WIDTH, rng.uniform(0.5, 0.58) * HEIGHT])
        draw_person(canvas, hip, rng.uniform(0.85, 1.2), rng)
        box = np.clip(canvas.box, 0, [WIDTH, HEIGHT] * 2)
        boxes.append(np.rint(box).astype(int).tolist())
    image = cv2.GaussianBlur(canvas.image, (0, 0), 0.9) + rng.normal(0, 2, canvas.image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), boxes


def main() -> None:
    """Write the scenes and the list of all pictures into the folder that the command line names."""
    folder = Path(sys.argv[1])
    pictures = dict(PHOTOGRAPHS)
    for seed in range(SCENES):
        name = f"scene-{seed}.jpg"
        image, pictures[name] = draw_scene(seed)
        cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    rows = [{"file": name, "boxes": boxes} for name, boxes in pictures.items()]
    text = json.dumps({"terms": TERMS, "pictures": rows}, indent=1)
    (folder / "people.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
