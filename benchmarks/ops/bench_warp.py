"""`ops.warp` on one thread, from boxes to windows, beside its reference and other projects.

The peers that take affines are given them, and those that take their inverses, those: only ours,
rtmlib and mmpose find them from the boxes on the clock. Frames come as bytes from a video, so a
peer that wants floats makes them. The frame is written anew before each call, as a video's decoder
leaves it, so that no call finds it better placed in the caches than another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
from beside import (
    FEW,
    SHORT,
    forced,
    instruction_sets,
    mmpose_version,
    obstacle,
    of_mmpose,
    scalar_twin,
    within,
)
from peers import mmpose
from suite import Beside

from fastpose.bench.rows import Row
from fastpose.geometry import boxes_to_affines
from fastpose.machine import machine
from fastpose.ops import cpp, warp

torch = pytest.importorskip("torch", reason="torch is not installed here")
import torch.nn.functional as F  # noqa: E402 - needs torch

FRAME, SIZE = (720, 1280), (256, 192)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PADDING = 1.25
METHODS = {"straight": 0.0, "turned": 20.0}  # degrees
EXACT = 0.03  # grey levels from the reference: of 255, what `warp` promises
GREY = 1.5  # from a peer that rounds windows, and OpenCV places, too
# Ratios between those of this kernel and of one that takes twice its time, measured on a Zen 4: to
# the scalar kernel at 8 people, by instruction set ("auto" has VBMI and VNNI there), and by people
# to OpenCV.
LEAST_SCALAR = {
    "avx2": {"straight": 2.1, "turned": 2.5},
    "avx512": {"straight": 2.1, "turned": 2.7},
    "auto": {"straight": 4.0, "turned": 2.7},
}
LEAST_OPENCV = {(32, "straight"): 3.6, (8, "turned"): 1.1, (32, "turned"): 1.3}
LEAST = 8.4  # to the reference, of any kernel
# Half of the margins that are aimed at, 10x and 6x.
LEAST_RTMLIB, LEAST_MMPOSE = 5.0, 3.0

Warp = Callable[..., Any]


@functools.cache
def picture() -> np.ndarray:
    """A frame with detail at every scale a video has."""
    noise = np.random.default_rng(0).integers(0, 256, (*FRAME, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def boxes_of(people: int) -> np.ndarray:
    """[people, 4] boxes of people who stand, 200 to 600 pixels tall, some cut by the frame."""
    random = np.random.default_rng(people)
    height = random.uniform(200, 600, people)
    x, y = random.uniform(100, 1180, people), random.uniform(200, 520, people)
    width = 0.5 * height
    return np.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2), axis=1)


@dataclass(frozen=True)
class Work:
    """A frame, the people in it, and how their windows are turned.

    Attributes:
        people: their number.
        method: a name of `METHODS`.
        frame: [*FRAME, 3] bytes.
        boxes: [people, 4].
    """

    people: int
    method: str
    frame: np.ndarray
    boxes: np.ndarray

    def affines(self) -> np.ndarray:
        """[people, 2, 3] window pixel -> frame pixel."""
        return boxes_to_affines(
            self.boxes,
            SIZE,
            padding=PADDING,
            convention="msra",
            rotation=METHODS[self.method],
        )

    def renew(self) -> None:
        """Write the frame over by itself."""
        np.copyto(self.frame, picture())

    def new(self) -> np.ndarray:
        """[people, 3, *SIZE] float32, for the windows."""
        return np.empty((self.people, 3, *SIZE), np.float32)

    def ours(self, function: Warp, **options: Any) -> Callable[[], np.ndarray]:
        """From the boxes to the windows, which are written into the same array each time."""
        out = self.new()

        def run() -> np.ndarray:
            return function(
                self.frame, self.affines(), SIZE, mean=MEAN, std=STD, out=out, **options
            )

        return run


def work(people: int, method: str) -> Work:
    return Work(people, method, picture().copy(), boxes_of(people))


def apart(windows: np.ndarray, others: np.ndarray, bound: float) -> str:
    """How far windows are apart, in words; raises `WrongAnswerError`."""
    levels = np.abs(windows - others) * np.array(STD, np.float32)[:, None, None]
    return within(float(levels.max(initial=0.0)), bound, "grey levels")


def check(function: Warp, job: Work) -> str:
    """Compare the windows of a `warp` with those of the reference."""
    expected = job.ours(warp, backend="reference")()
    return f"reference: {apart(job.ours(function)(), expected, EXACT)}"


def _backends(job: Work, isa: str) -> Mapping[str, Beside]:
    """The reference and, beside a kernel with vectors, that without."""
    found = {"reference": Beside(job.ours(warp, backend="reference"), at_least=LEAST)}
    if isa == "scalar":
        return found
    run = job.ours(warp)

    def check() -> str:
        with forced("warp", "scalar"):
            windows = job.ours(warp)()
        return apart(run(), windows, EXACT)

    known = LEAST_SCALAR.get(isa if isa != "auto" or _has_vbmi() else cpp.best_isa(), {})
    least = known.get(job.method) if job.people == 8 else None
    return {**found, "scalar": scalar_twin("warp", run, check, least)}


@functools.cache
def _has_vbmi() -> bool:
    return {"avx512vbmi", "avx512_vnni"} <= set(machine()["instruction_sets"])


def beside_reference(
    timed: Callable[..., Row],
    method: str,
    *,
    function: Warp = warp,
    isa: str = "auto",
    people: int = 8,
) -> Row:
    """One row: `function`, which stands for `warp`, and its reference and twin by turns.

    Raises:
        WrongAnswerError: its answer is another one.
        AssertionError: it is too slow for a kernel with that instruction set.
    """
    job = work(people, method)
    with forced("warp", isa):
        return timed(
            "ops",
            "warp",
            _case(job) | {"backend": "cpp", "isa": isa},
            job.ours(function),
            check=lambda: check(function, job),
            beside=_backends(job, isa),
            before=job.renew,
            repeats=1,
            rounds=FEW // 2 + 2,
        )


def _case(job: Work) -> dict[str, Any]:
    height, width = FRAME
    return {"people": job.people, "method": job.method, "frame": f"{width}x{height}"}


def with_opencv(job: Work) -> Beside:
    """The fastest form of several: warpAffine, then a table of the 256 levels for each plane.

    Taking planes off and multiplying them in numpy takes a tenth more in all.
    """
    levels = np.arange(256, dtype=np.float32)
    tables = [(levels - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    affines, out = job.affines(), job.new()

    def run() -> np.ndarray:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        for affine, planes in zip(affines, out, strict=True):
            window = cv2.warpAffine(job.frame, affine, SIZE[::-1], flags=flags)
            for channel, table, plane in zip(cv2.split(window), tables, planes, strict=True):
                cv2.LUT(channel, table, dst=plane)
        return out

    least = LEAST_OPENCV.get((job.people, job.method))
    return Beside(
        run,
        lambda: apart(job.ours(warp)(), run(), GREY),
        at_least=least if cpp.best_isa() == "avx512" else least and 1.0,
        version=cv2.__version__,
    )


def _beside_torch(job: Work, run: Callable[[], torch.Tensor], version: str) -> Beside:
    return Beside(run, lambda: apart(job.ours(warp)(), run().numpy(), GREY), version=version)


def _planes(frame: np.ndarray) -> torch.Tensor:
    """[1, 3, H, W] float32 of [H, W, 3] bytes."""
    return torch.from_numpy(frame).permute(2, 0, 1)[None].float()


def _normalised(windows: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return windows.sub_(mean).div_(std)


def with_torch(job: Work) -> Beside:
    """A grid for each window, and one batch of samples."""
    (h, w), (height, width) = SIZE, FRAME
    # affine_grid counts from -1 to 1 on both sides
    window = np.array([[(w - 1) / 2, 0, (w - 1) / 2], [0, (h - 1) / 2, (h - 1) / 2], [0, 0, 1]])
    frame = np.array([[2 / (width - 1), 0, -1], [0, 2 / (height - 1), -1], [0, 0, 1]])
    last = np.broadcast_to([0.0, 0.0, 1.0], (job.people, 1, 3))
    affines = np.concatenate((job.affines(), last), axis=1)
    theta = torch.from_numpy(frame @ affines @ window)[:, :2].float()

    def run() -> torch.Tensor:
        pixels = _planes(job.frame).expand(job.people, -1, -1, -1)
        grid = F.affine_grid(theta, (job.people, 3, h, w), align_corners=True)
        return _normalised(F.grid_sample(pixels, grid, align_corners=True))

    return _beside_torch(job, run, torch.__version__)


def with_kornia(job: Work) -> Beside:
    """Its `warp_affine` of the frame, once for each window."""
    if why := obstacle("kornia"):
        return Beside(absent=why)
    import kornia

    last = np.broadcast_to([0.0, 0.0, 1.0], (job.people, 1, 3))
    inverse = np.linalg.inv(np.concatenate((job.affines(), last), axis=1))[:, :2]
    forward = torch.from_numpy(inverse).float()

    def run() -> torch.Tensor:
        pixels = _planes(job.frame).expand(job.people, -1, -1, -1)
        return _normalised(kornia.geometry.transform.warp_affine(pixels, forward, SIZE))

    return _beside_torch(job, run, kornia.__version__)


def with_torchvision(job: Work) -> Beside:
    """RoIAlign with one sample a pixel, which has no turned windows."""
    if why := obstacle("torchvision"):
        return Beside(absent=why)
    if job.method != "straight":
        return Beside(absent="roi_align takes upright windows alone")
    import torchvision

    # its regions are from edge to edge of the pixels
    affines = job.affines()
    step, first = affines[:, (0, 1), (0, 1)], affines[:, :, 2]
    start = first - 0.5 * step + 0.5
    regions = [torch.from_numpy(np.concatenate((start, start + step * SIZE[::-1]), 1)).float()]

    def run() -> torch.Tensor:
        windows = torchvision.ops.roi_align(
            _planes(job.frame), regions, SIZE, sampling_ratio=1, aligned=True
        )
        return _normalised(windows)

    def check() -> str:
        # It repeats the outermost pixels of the frame for one more.
        u, v = np.arange(SIZE[1]), np.arange(SIZE[0])
        x, y = first[:, :1] + step[:, :1] * u, first[:, 1:] + step[:, 1:] * v
        inside = ((x >= 0) & (x <= FRAME[1] - 1))[:, None] & ((y >= 0) & (y <= FRAME[0] - 1))[
            :, :, None
        ]
        kept = inside[:, None]
        return apart(job.ours(warp)() * kept, run().numpy() * kept, GREY)

    return Beside(run, check, version=torchvision.__version__)


def with_cvcuda() -> Beside:
    """It has nothing for the host."""
    return Beside(absent=obstacle("cvcuda") or "its operators work on CUDA devices alone")


def in_mmpose(job: Work) -> Beside:
    """Its functions from box to affine, warpAffine, then one batch of bytes."""
    boxes_of = mmpose.load("mmpose.structures.bbox.transforms")
    h, w = SIZE

    def cut(box: np.ndarray) -> np.ndarray:
        # GetBBoxCenterScale and TopdownAffine.transform
        centre, scale = boxes_of.bbox_xyxy2cs(box, padding=PADDING)
        width, height = scale
        scale = np.array([max(width, height * w / h), max(height, width * h / w)])
        turned = METHODS[job.method]
        affine = boxes_of.get_warp_matrix(centre, scale, turned, output_size=(w, h))
        return cv2.warpAffine(job.frame, affine, (w, h), flags=cv2.INTER_LINEAR)

    def run() -> torch.Tensor:
        # Its data preprocessor is mmengine's: here in our words, for all people at once.
        batch = torch.from_numpy(np.stack([cut(box) for box in job.boxes]))
        return _normalised(batch.permute(0, 3, 1, 2).float())

    return Beside(
        run,
        lambda: apart(job.ours(warp)(), run().numpy(), GREY),
        at_least=LEAST_MMPOSE if job.method == "straight" else None,
        version=mmpose_version(),
    )


def in_rtmlib(peers: Any, job: Work) -> Beside:
    """Its preprocessing of one box after the other, in its own process."""
    if job.method != "straight":
        return Beside(absent="its preprocessing has no turned windows")
    return peers.beside(
        "rtmlib",
        "preprocess",
        {"frame": job.frame, "boxes": job.boxes},
        compare=lambda answer: apart(job.ours(warp)(), answer["windows"], GREY),
        at_least=LEAST_RTMLIB,
        clock="thread",
        size=SIZE,
        mean=MEAN,
        std=STD,
    )


def others(peers: Any, job: Work) -> Mapping[str, Beside]:
    """The projects that do this, by name."""
    return {
        "rtmlib": in_rtmlib(peers, job),
        "mmpose": of_mmpose(lambda: in_mmpose(job)),
        "opencv": with_opencv(job),
        "torch": with_torch(job),
        "kornia": with_kornia(job),
        "torchvision": with_torchvision(job),
        "cv-cuda": with_cvcuda(),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("isa", [*instruction_sets(), "auto"])
def bench_warp_beside_its_reference(timed, method, isa):
    """A kernel that takes twice its time does not pass."""
    beside_reference(timed, method, isa=isa)


@pytest.mark.parametrize("method", METHODS)
def bench_warp_beside_peers(timed, peers, method, people):
    """Half of the margins that are aimed at; beside OpenCV what takes twice its time fails."""
    job = work(people, method)
    timed(
        "ops",
        "warp",
        _case(job),
        job.ours(warp),
        check=lambda: check(warp, job),
        beside=others(peers, job),
        before=job.renew,
        repeats=SHORT if people == 1 else 1,
        rounds=40 if people == 8 else 2 * FEW,
    )
