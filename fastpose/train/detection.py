"""What a two-stage detector is taught: which anchors and proposals are people, and where."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fastpose.detect.regions import pool_regions, select_proposals
from fastpose.models.anchors import HEAD_WEIGHTS, anchors, clip, encode, overlaps
from fastpose.models.fpn import FPNDetector
from fastpose.models.spec import DetectorSpec
from fastpose.train.scenes import SceneBatch
from fastpose.types import Floats

Integers = npt.NDArray[np.int64]

BACKGROUND, UNUSED = 0, -1
ANCHORS = 256  # that count, of a picture; at most half of them on an object
FOREGROUND = 0.25  # largest share of objects among the boxes that the head is taught
LOW, HIGH = 0.3, 0.5  # an anchor's overlap: below is background, from there on an object
HIT = 0.5  # overlap from which on a proposal is the object
HIDDEN = 0.5  # share of a box inside an ignored one from which on it is not taught
RPN_BETA = 1 / 9  # where the smooth L1 of Ren et al. turns from square to straight


def detection_loss(
    network: FPNDetector,
    output: tuple[list[Tensor], Tensor, Tensor],
    batch: SceneBatch,
    spec: DetectorSpec,
    *,
    regions: int,
    rng: np.random.Generator,
    hardest: int | None = None,
) -> Tensor:
    """The four losses of Ren et al., Faster R-CNN, NIPS 2015, added up.

    An anchor is an object from an overlap of 0.5 on, not 0.7, and the best one for each object in
    any case: the light detector has fewer sizes and shapes of them than people have.

    Args:
        network: its head is run here, on windows of its own proposals and of the true boxes.
        output: of its first half.
        batch: what it saw, N pictures.
        spec: the detector.
        regions: R, boxes of a picture that the head is taught.
        rng: chooses among anchors and among proposals.
        hardest: how many of the R count, those of the highest loss in the batch (Shrivastava et
            al., Training Region-Based Object Detectors with Online Hard Example Mining, CVPR 2016);
            None counts all.
    """
    pyramid, logits, deltas = output
    logits, deltas = logits.float(), deltas.float()
    loss = proposal_loss(logits, deltas, batch, spec, rng)
    boxes, kinds, matched = zip(
        *(
            sample_regions(*_row(logits, deltas, row), batch, row, spec, regions=regions, rng=rng)
            for row in range(len(batch))
        ),
        strict=True,
    )
    source = np.repeat(np.arange(len(batch)), [len(found) for found in boxes])
    windows = pool_regions(
        [level.float() for level in pyramid[: spec.pooled]], np.concatenate(boxes), source, spec
    )
    seen, steps = network.classify(windows)
    return loss + head_loss(
        seen.float(),
        steps.float(),
        np.concatenate(kinds),
        encode(np.concatenate(matched), np.concatenate(boxes), HEAD_WEIGHTS),
        count=None if hardest is None else hardest * len(batch),
    )


def _row(logits: Tensor, deltas: Tensor, row: int) -> tuple[Floats, Floats]:
    return logits[row].detach().cpu().numpy(), deltas[row].detach().cpu().numpy()


def proposal_loss(
    logits: Tensor,
    deltas: Tensor,
    batch: SceneBatch,
    spec: DetectorSpec,
    rng: np.random.Generator,
) -> Tensor:
    """Objectness and boxes of the anchors; logits [N, M] and deltas [N, M, 4], float32."""
    size = (batch.images.shape[2], batch.images.shape[3])
    around, _ = anchors(spec, size)
    where, right, steps, positive = [], [], [], []
    for row in range(len(batch)):
        labels, nearest = assign_anchors(around, batch.boxes[row], batch.ignored[row], size)
        chosen = _balanced(labels, ANCHORS, ANCHORS // 2, rng)
        hit = chosen[labels[chosen] > 0]
        where.append(row * len(around) + chosen)
        right.append(labels[chosen] > 0)
        positive.append(row * len(around) + hit)
        steps.append(encode(batch.boxes[row][nearest[hit]], around[hit]))
    device = logits.device
    index = torch.from_numpy(np.concatenate(where)).to(device)
    truth = torch.from_numpy(np.concatenate(right)).to(device, torch.float32)
    objects = torch.from_numpy(np.concatenate(positive)).to(device)
    target = torch.from_numpy(np.concatenate(steps)).to(device)
    objectness = F.binary_cross_entropy_with_logits(logits.flatten()[index], truth, reduction="sum")
    found = deltas.flatten(0, 1)[objects]
    places = F.smooth_l1_loss(found, target, beta=RPN_BETA, reduction="sum")
    return (objectness + places) / max(len(index), 1)  # none where all lies in ignored boxes


def assign_anchors(
    around: Floats, boxes: Floats, ignored: npt.NDArray[np.bool_], size: tuple[int, int]
) -> tuple[Integers, Integers]:
    """Which anchors [M, 4] are objects.

    Args:
        around: the anchors.
        boxes: [T, 4] of the picture, targets and ignored ones.
        ignored: [T].
        size: (h, w) of the picture.

    Returns:
        [M] 1 for an object, 0 for background, -1 for neither, and [M] the target next to each, an
        index into `boxes` that means something for objects alone.
    """
    targets = np.flatnonzero(~ignored)
    labels = np.full(len(around), BACKGROUND, np.int64)
    nearest = np.zeros(len(around), np.int64)
    labels[_hidden(clip(around, size), boxes[ignored])] = UNUSED
    if len(targets) == 0:
        return labels, nearest
    overlap, _ = overlaps(around, boxes[targets])
    best = overlap.max(1)
    nearest = targets[overlap.argmax(1)]
    labels[best >= LOW] = UNUSED
    labels[best >= HIGH] = 1
    first = overlap.argmax(0)  # an object that no anchor fits has the best there is
    some = overlap[first, np.arange(len(targets))] > 0
    labels[first[some]], nearest[first[some]] = 1, targets[some]
    return labels, nearest


def _hidden(boxes: Floats, ignored: Floats) -> npt.NDArray[np.bool_]:
    """[N] boxes that lie in ignored ones, as in a crowd, or may be them, as of one cut off."""
    if len(ignored) == 0:
        return np.zeros(len(boxes), bool)
    overlap, inside = overlaps(boxes, ignored)
    return (inside.max(1) >= HIDDEN) | (overlap.max(1) >= LOW)


def _balanced(labels: Integers, count: int, most: int, rng: np.random.Generator) -> Integers:
    """Indices of `count` labels at random, at most `most` of them objects, none unused."""
    objects = rng.permutation(np.flatnonzero(labels > 0))[:most]
    rest = rng.permutation(np.flatnonzero(labels == BACKGROUND))[: count - len(objects)]
    return np.concatenate((objects, rest))


def sample_regions(
    logits: Floats,
    deltas: Floats,
    batch: SceneBatch,
    row: int,
    spec: DetectorSpec,
    *,
    regions: int,
    rng: np.random.Generator,
) -> tuple[Floats, Integers, Floats]:
    """The boxes of one picture that the head is taught.

    Returns:
        boxes [R, 4], their classes [R], 0 for the background, and the true box of each, [R, 4],
        itself for the background.
    """
    height, width = batch.images.shape[2:]
    proposals, _ = select_proposals(logits, deltas, spec, (height, width), spec.per_level)
    truth, ignored = batch.boxes[row], batch.ignored[row]
    targets = np.flatnonzero(~ignored)
    proposals = np.concatenate((proposals, truth[targets]))
    labels = np.zeros(len(proposals), np.int64)
    labels[_hidden(proposals, truth[ignored])] = UNUSED
    matched = proposals.copy()
    if len(targets):
        overlap, _ = overlaps(proposals, truth[targets])
        nearest = targets[overlap.argmax(1)]
        hit = overlap.max(1) >= HIT
        labels[hit] = 1 + batch.classes[row][nearest[hit]]
        matched[hit] = truth[nearest[hit]]
    chosen = _balanced(labels, regions, max(1, int(regions * FOREGROUND)), rng)
    return proposals[chosen], labels[chosen], matched[chosen]


def head_loss(
    logits: Tensor, deltas: Tensor, kinds: Integers, steps: Floats, count: int | None = None
) -> Tensor:
    """Classes and boxes of R regions.

    Args:
        logits: [R, classes + 1].
        deltas: [R, classes, 4].
        kinds: [R] the right class, 0 for the background.
        steps: [R, 4] the right deltas of the objects among them.
        count: how many regions count, those of the highest loss; None counts all.
    """
    device = logits.device
    truth = torch.from_numpy(kinds).to(device)
    objects = torch.from_numpy(np.flatnonzero(kinds > 0)).to(device)
    target = torch.from_numpy(steps).to(device)[objects]
    found = deltas[objects, truth[objects] - 1]
    places = F.smooth_l1_loss(found, target, beta=1.0, reduction="none").sum(1)
    losses = F.cross_entropy(logits, truth, reduction="none").index_add(0, objects, places)
    if count is not None and count < len(losses):
        losses = losses.topk(count).values
    return losses.sum() / max(len(losses), 1)
