"""Drawn people with occluders, on which Adversarial PoseNet's game can be played in minutes.

`python tests/train/stick_figures.py 1000` plays 1000 batches and writes what came of it.
"""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import torch
from torch import Tensor

from fastpose import ops
from fastpose.models.adversarial import (
    AdversarialPoseNet,
    ConfidenceDiscriminator,
    PoseDiscriminator,
    StackMaps,
)
from fastpose.train.adversarial import AdversarialStep, Rules, Truth, pose_labels

SIDE, STRIDE = 64, 4
CELLS = (SIDE // STRIDE, SIDE // STRIDE)
NECK, HIP = 0, 1
LIMBS = (  # from, to, colour
    (0, 1, (230, 230, 230)),
    (0, 2, (240, 60, 60)),
    (0, 3, (60, 60, 240)),
    (1, 4, (240, 160, 60)),
    (1, 5, (60, 200, 240)),
)
COLOURS = (
    (230, 230, 230), (90, 200, 90), (240, 60, 60), (60, 60, 240), (240, 160, 60), (60, 200, 240),
)  # fmt: skip
JOINTS = len(COLOURS)
DELTA = 0.5  # torsos
RATE = 1e-3


def figures(count: int, rng: np.random.Generator) -> tuple[Tensor, Truth]:
    """[N, 3, 64, 64] pictures, -1 to 1, and what is true of them."""
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    joints = np.empty((count, JOINTS, 2), np.float32)
    hidden = np.empty((count, JOINTS), bool)
    for image, places, covered in zip(images, joints, hidden, strict=True):
        image[:] = rng.integers(30, 110, 3)
        places[:] = _pose(rng)
        for a, b, colour in LIMBS:
            ends = [tuple(int(v) for v in places[i]) for i in (a, b)]
            cv2.line(image, *ends, colour, 2)
        for place, colour in zip(places, COLOURS, strict=True):
            cv2.circle(image, [int(v) for v in place], 3, colour, -1)
        corner, extent = rng.integers(0, 44, 2), rng.integers(8, 24, 2)
        cv2.rectangle(image, corner.tolist(), (corner + extent).tolist(), (128, 128, 128), -1)
        covered[:] = ((places >= corner) & (places <= corner + extent)).all(axis=1)
    pictures = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    return pictures, truth_of(torch.from_numpy((joints - STRIDE / 2) / STRIDE), hidden)


def _pose(rng: np.random.Generator) -> np.ndarray:
    """[6, 2] joints of an upright figure, all inside the picture."""
    neck = rng.uniform((24, 16), (40, 26))
    lean, spread = rng.normal(0, 0.2), rng.uniform(0.3, 1.2, 4)
    hip = neck + 16 * np.array([np.sin(lean), np.cos(lean)])
    sides = np.array([-1, 1, -1, 1])
    angles = lean + sides * spread * (1.4, 1.4, 0.6, 0.6)
    starts = np.stack((neck, neck, hip, hip))
    ends = starts + 17 * np.stack((np.sin(angles), np.cos(angles)), axis=1)
    return np.clip(np.vstack((neck, hip, ends)), 2, SIDE - 3)


def truth_of(points: Tensor, hidden: np.ndarray) -> Truth:
    """Everything labelled and inside."""
    known = torch.ones(points.shape[:2], dtype=torch.bool)
    pose = ops.render(points, known, CELLS, sigma=1.0)
    occlusion = ops.render(points, torch.from_numpy(hidden), CELLS, sigma=1.0)
    unit = (points[:, NECK] - points[:, HIP]).norm(dim=-1)
    return Truth(StackMaps(pose, occlusion), points, known, known, unit)


def game(rules: Rules, *, stacks: int = 1, occlusion: bool = True) -> AdversarialStep:
    """Small networks that begin at random, always alike."""
    torch.manual_seed(0)
    return AdversarialStep(
        AdversarialPoseNet(JOINTS, stacks, 8, stem=(8, 16), depth=2, occlusion=occlusion),
        PoseDiscriminator(JOINTS, occlusion, channels=16, depth=2),
        ConfidenceDiscriminator(JOINTS, occlusion, channels=8, depth=2),
        rules,
    )


def play(step: AdversarialStep, batches: int, seed: int = 0) -> list[dict[str, float]]:
    """The losses of each batch of 8."""
    rng = np.random.default_rng((2, seed))
    return [step.step(*figures(8, rng), RATE) for _ in range(batches)]


def moved(truth: Truth, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Poses with one joint of each put elsewhere, at least a torso away.

    Returns:
        the points [N, K, 2], in cells, and which joint was moved, [N].
    """
    points, which = truth.points.clone(), rng.integers(0, JOINTS, len(truth.points))
    for person, joint in enumerate(which):
        while (points[person, joint] - truth.points[person, joint]).norm() < truth.unit[person]:
            points[person, joint] = torch.from_numpy(rng.uniform(1, CELLS[0] - 2, 2))
    return points, torch.from_numpy(which)


def separation(right: Tensor, wrong: Tensor) -> float:
    """AUC: how often a right one has the higher verdict, over all pairs; ties count half."""
    pairs = right.flatten()[:, None] - wrong.flatten()
    return float((pairs > 0).float().mean() + (pairs == 0).float().mean() / 2)


def judged(step: AdversarialStep, count: int = 400) -> dict[str, float]:
    """How well P, in evaluation mode, tells right from wrong on figures not seen.

    Returns:
        "found": the share of joints that G finds; and how well P separates joints of true maps
        from joints of G's that are wrong ("generated") and from true Gaussians put elsewhere
        ("moved"), and G's right joints from its wrong ones ("within").
    """
    rng = np.random.default_rng(1)
    images, truth = figures(count, rng)
    for network in (step.generator, step.pose):
        network.eval()
    with torch.no_grad():
        output = step.generator(images)[-1]
        real = step.pose(images, truth.maps.joined)
        generated = step.pose(images, output.joined)
        points, which = moved(truth, rng)
        elsewhere = truth.maps._replace(pose=ops.render(points, truth.inside, CELLS, sigma=1.0))
        verdict = step.pose(images, elsewhere.joined)[torch.arange(count), which]
    for network in (step.generator, step.pose):
        network.train()
    right = pose_labels(output.pose, truth, DELTA).target > 0
    return {
        "found": float(right.float().mean()),
        "generated": separation(real, generated[~right]),
        "within": separation(generated[right], generated[~right]),
        "moved": separation(real, verdict),
    }


def main(batches: int) -> None:
    """Play, and write a line of means and verdicts for every hundred batches."""
    torch.set_num_threads(1)
    step = game(Rules(delta=DELTA))
    for block in range(batches // 100):
        losses = play(step, 100, seed=block)
        means = {name: float(np.mean([row[name] for row in losses])) for name in losses[0]}
        row = {"batches": 100 * (block + 1)} | means | judged(step)
        json.dump({name: round(value, 3) for name, value in row.items()}, sys.stdout)
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
