"""A narrow CPN learns 32 drawn people by heart: boxes to crops to maps to joints in the frame."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("faster_coco_eval")

from torch import Tensor, nn  # noqa: E402

from fastpose.crop import crop_people  # noqa: E402
from fastpose.datasets import CocoData  # noqa: E402
from fastpose.engines.engine import BufferedEngine  # noqa: E402
from fastpose.engines.manifest import Manifest  # noqa: E402
from fastpose.evaluate import evaluate_results, people_results  # noqa: E402
from fastpose.geometry import apply, invert  # noqa: E402
from fastpose.models import model_spec  # noqa: E402
from fastpose.models.cpn_light import LightCPN, Residual  # noqa: E402
from fastpose.models.layers import conv  # noqa: E402
from fastpose.pipeline import estimate  # noqa: E402
from fastpose.skeleton import COCO17  # noqa: E402
from fastpose.train.objective import objective  # noqa: E402
from fastpose.types import Boxes, People  # noqa: E402

COUNT, FACE = 32, 5
SPEC = replace(model_spec("cpn-light"), size=(96, 64), skeleton="coco17", sigma=1.5)
STEPS, BATCH, RATE = 210, 12, 1.5e-2

# where a person's joints lie in the box, in its width and height; seen from behind
STANDING = np.array(
    [
        (0.5, 0.08), (0.54, 0.05), (0.46, 0.05), (0.58, 0.08), (0.42, 0.08),
        (0.65, 0.22), (0.35, 0.22), (0.72, 0.38), (0.28, 0.38), (0.75, 0.52), (0.25, 0.52),
        (0.6, 0.52), (0.4, 0.52), (0.62, 0.72), (0.38, 0.72), (0.63, 0.93), (0.37, 0.93),
    ]
)  # fmt: skip


def test_a_narrow_network_learns_32_people_by_heart() -> None:
    frames, boxes, joints = people()
    network = trained(frames, boxes, joints)
    found = [Boxes(box[None], np.ones(1, np.float32)) for box in boxes]
    poses = estimate(frames, found, ModuleEngine(network))
    assert precision(poses, boxes, joints) > 0.99
    # nobody is right who has learnt how people stand on the whole
    extent = (boxes[:, 2:] - boxes[:, :2])[:, None]
    standing = (boxes[:, None, :2] + STANDING * extent).astype(np.float32)
    same = [replace(p, keypoints=s[None]) for p, s in zip(poses, standing, strict=True)]
    assert precision(same, boxes, joints) < 0.85


def people() -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.float32], npt.NDArray]:
    """Frames [200, 160, 3] with noise and a person, whose every joint has a colour of its own."""
    rng = np.random.default_rng(0)
    frames, boxes, joints = [], [], []
    for _ in range(COUNT):
        frame = rng.integers(40, 90, (200, 160, 3), np.uint8)
        height = rng.uniform(110, 170)
        extent = np.array([0.6 * height, height])
        corner = rng.uniform(5, (155, 195) - extent)
        points = corner + (STANDING + rng.normal(0, 0.06, STANDING.shape)) * extent
        for k, (x, y) in enumerate(points[FACE:]):
            hue = np.array([[[15 * k, 255, 255]]], np.uint8)
            colour = cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0].tolist()
            centre = round(x * 16), round(y * 16)  # in sixteenths of a pixel
            cv2.circle(frame, centre, round(0.055 * height * 16), colour, -1, cv2.LINE_AA, 4)
        frames.append(frame)
        boxes.append((*corner, *(corner + extent)))
        joints.append(points)
    return frames, np.array(boxes, np.float32), np.array(joints, np.float32)


def trained(
    frames: list[npt.NDArray[np.uint8]], boxes: npt.NDArray[np.float32], joints: npt.NDArray
) -> LightCPN:
    cut = [crop_people(f, b[None], SPEC.window) for f, b in zip(frames, boxes, strict=True)]
    images = torch.from_numpy(np.concatenate([image for image, _ in cut]))
    images = images.contiguous(memory_format=torch.channels_last)  # a quarter faster
    affines = np.concatenate([affine for _, affine in cut])
    places = torch.from_numpy(apply(invert(affines), joints).astype(np.float32))
    visibility = torch.full((COUNT, len(COCO17)), 2.0)
    visibility[:, :FACE] = 0
    torch.manual_seed(0)
    network = narrow().train().to(memory_format=torch.channels_last)
    loss = objective(SPEC, 8)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for _ in range(STEPS):
        some = torch.randperm(COUNT)[:BATCH]
        optimizer.zero_grad()
        loss(network(images[some]), places[some], visibility[some], SPEC.size).backward()
        optimizer.step()
        rate.step()
    return network.eval()


def narrow() -> LightCPN:
    """The light CPN's pyramid, refinement and heads on a trunk of a few channels."""
    network, widths = LightCPN(len(COCO17), width=32), (32, 32, 48, 64)
    network.stem = nn.Sequential(conv(3, 16, 4, 2), conv(16, 32, 4, 2))
    network.c2 = nn.Sequential(Residual(32))
    network.c3, network.c4, network.c5 = (
        nn.Sequential(conv(cin, cout, 2, 2), Residual(cout))
        for cin, cout in itertools.pairwise(widths)
    )
    network.laterals = nn.ModuleList(conv(width, 32, 1) for width in reversed(widths))
    return network


class ModuleEngine(BufferedEngine):
    """A module that nobody registered, in the place of a runtime."""

    def __init__(self, network: LightCPN) -> None:
        super().__init__(
            Manifest(
                spec=SPEC,
                kind="torch",
                precision="f32",
                precision_asked="f32",
                buckets=(COUNT,),
                device="cpu",
                versions={},
            )
        )
        self._network = network

    def _infer(self, count: int) -> None:
        with torch.inference_mode():
            maps: Tensor = self._network.predict(torch.from_numpy(self._images[:count]))
        self._result[:count] = maps.numpy()

    def _free(self) -> None:
        pass


def precision(
    poses: list[People], boxes: npt.NDArray[np.float32], joints: npt.NDArray[np.float32]
) -> float:
    """COCO's AP, each person in a picture of their own."""
    labels = np.full((COUNT, len(COCO17), 1), 2.0)
    labels[:, :FACE] = 0
    extent = boxes[:, 2:] - boxes[:, :2]
    rows = tuple(
        {
            "image_id": i,
            "category_id": 1,
            "iscrowd": 0,
            "num_keypoints": len(COCO17) - FACE,
            "area": float(extent[i].prod()),
            "bbox": [*boxes[i, :2].tolist(), *extent[i].tolist()],
            "keypoints": np.concatenate((joints[i], labels[i]), axis=1).ravel().tolist(),
        }
        for i in range(COUNT)
    )
    pictures = {i: Path(f"{i}.png") for i in range(COUNT)}
    data = CocoData("drawn", COCO17, (), pictures=pictures, people=rows)
    return evaluate_results(data, people_results(data, poses)).metrics["ap"]
