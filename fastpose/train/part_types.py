"""The types of a tree's parts: offsets from the parents that occur among annotated people.

    python -m fastpose.train.part_types --tree lsp26 --data lsp:DIR --turns 40 --out FILE.json

Writes the centres of the types that `fastpose.models.parts` reads, and how they came about.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.datasets import PoseData, observer_centric, open_poses, with_joints
from fastpose.errors import BackendError, FastposeError, ModelError
from fastpose.models.parts import PART_TREES, PartTree, part_tree
from fastpose.skeleton import skeleton

STRIDE = 8  # pixels of the window for each cell

Doubles = npt.NDArray[np.float64]


def find_types(
    tree: PartTree,
    data: PoseData,
    *,
    types: int = 13,
    restarts: int = 50,
    turns: int = 1,
    size: int = 336,
    seed: int = 0,
) -> Doubles:
    """Cluster the offsets of each part from its parent by k-means, best of some restarts.

    People and their mirror images are taken, in windows whose longer side is the longer side of
    the person's box, or of the picture where the set has no boxes, and turned, as Chu et al.,
    Structured Feature Learning for Pose Estimation, CVPR 2016, train on them.

    Args:
        tree: whose parts are meant; its own centres do not count.
        data: people who have the tree's joints.
        types: clusters of each part; 1 gives the mean.
        restarts: of k-means, from random people.
        turns: each person is taken so often, turned by multiples of a full turn's share.
        size: side of the windows in pixels.
        seed: of the restarts.

    Returns:
        [P, types, 2] centres (x, y) in cells of 8 pixels, by rising x, then y.

    Raises:
        ModelError: fewer people than types have some part.
        DataError: the data has none of the tree's joints.
        BackendError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise BackendError(
            "clustering needs scikit-learn; install the extra: fastpose-inference[train]"
        ) from None
    offsets = np.concatenate([_offsets(tree, data, size, mirrored) for mirrored in (False, True)])
    angles = 2 * np.pi * np.arange(turns) / turns
    turn = np.array([[np.cos(angles), np.sin(angles)], [-np.sin(angles), np.cos(angles)]])
    offsets = np.einsum("npi,ijt->tnpj", offsets, turn).reshape(-1, len(tree.parts), 2)
    centres = np.empty((len(tree.parts), types, 2))
    for part, name in enumerate(tree.parts):
        known = offsets[np.isfinite(offsets[:, part]).all(axis=1), part]
        if len(known) < types:
            raise ModelError(
                f"{tree.name}: {len(known)} people have {name}, too few for {types} types"
            )
        found = KMeans(
            types, init="random", n_init=restarts, max_iter=10_000, tol=0.0, random_state=seed
        ).fit(known)
        places = found.cluster_centers_
        centres[part] = places[np.lexsort((places[:, 1], places[:, 0]))]
    return centres


def _offsets(tree: PartTree, data: PoseData, size: int, mirrored: bool) -> Doubles:
    """[N, P, 2] in cells, of all people or of their mirror images; NaN where not known."""
    data = with_joints(data, skeleton(tree.skeleton))
    joints = np.stack([s.joints for s in data.samples]).astype(np.float64)
    labelled = np.stack([s.labelled for s in data.samples])
    if mirrored:
        order = data.skeleton.flip_order()
        joints, labelled = joints[:, order] * (-1, 1), labelled[:, order]
    parts, _ = tree.joints_to_parts(joints, labelled)
    cells = np.array([_longer_side(data, i) for i in range(len(data))]) * STRIDE / size
    return np.asarray(tree.offsets(parts / cells[:, None, None]), np.float64)


def _longer_side(data: PoseData, index: int) -> float:
    """Of a person's box, or of the picture, in pixels."""
    sample = data.samples[index]
    if sample.box is not None:
        return float(max(sample.box[2] - sample.box[0], sample.box[3] - sample.box[1]))
    if sample.size is None:
        raise ModelError(f"{data.name}: the size of {sample.image.name} is not in the annotations")
    return float(max(sample.size))


def main(argv: Sequence[str] | None = None) -> None:
    """The command above; its options are those of `find_types`."""
    parser = argparse.ArgumentParser(prog="python -m fastpose.train.part_types")
    parser.add_argument("--tree", required=True, choices=PART_TREES)
    parser.add_argument("--data", required=True, metavar="KIND:PATH")
    parser.add_argument("--observer-centric", action="store_true", help="sides as a viewer's")
    numbers = {"types": 13, "restarts": 50, "turns": 1, "size": 336, "seed": 0}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    try:
        data = open_poses(args.data, "train")
        if args.observer_centric:
            data = observer_centric(data)
        options: dict[str, Any] = {name: getattr(args, name) for name in numbers}
        centres = find_types(part_tree(args.tree), data, **options)
    except FastposeError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    head = {
        "tree": args.tree,
        "data": data.name,
        "split": data.split,
        "people": len(data),
        "sides": "observer" if args.observer_centric else "person",
        **options,
    }
    rows = ",\n    ".join(json.dumps(row) for row in (centres.round(3) + 0.0).tolist())
    text = json.dumps(head, indent=2)[:-2] + f',\n  "centres": [\n    {rows}\n  ]\n}}\n'
    args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
