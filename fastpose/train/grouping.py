"""Groups of related joints, from where they lie in annotated people.

    python -m fastpose.train.grouping --data mpii:FILE --mirror --clusters 5 6 --out FILE.json

Tang and Wu, Does Learning Specific Features for Related Parts Help Human Pose Estimation?, CVPR
2019: joints whose places tell much of each other, by their mutual information, are put together
by spectral clustering. Prints the clusters, and writes what `fastpose.models.groups` reads.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.datasets import PoseData, open_poses
from fastpose.datasets.files import read_json
from fastpose.errors import BackendError, DataError, FastposeError
from fastpose.sinks.files import not_writable, partial_path
from fastpose.skeleton import LSP14, MPII16, SKELETONS, Skeleton

GRID = 16  # cells on each side of the unit square
MARGIN = 1.25  # the unit square's side in boxes: the window that the hourglass cuts round a person
RENAMED = {"neck": "upper_neck"}  # LSP's joints by MPII's names

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Cells = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """Where the joints of N people lie in the square round each.

    Attributes:
        skeleton: the K joints.
        positions: [N, K, 2] (x, y), the square being from 0 to 1.
        labelled: [N, K].
    """

    skeleton: Skeleton
    positions: Doubles
    labelled: Flags

    def __len__(self) -> int:
        return len(self.positions)

    def mirrored(self) -> Places:
        """These people and their mirror images."""
        order = self.skeleton.flip_order()
        mirror = self.positions[:, order] * (-1, 1) + (1, 0)
        return Places(
            self.skeleton,
            np.concatenate((self.positions, mirror)),
            np.concatenate((self.labelled, self.labelled[:, order])),
        )

    def with_joints(self, joints: Skeleton) -> Places:
        """The same people with other joints, such as LSP's, all of which MPII has.

        Raises:
            DataError: the people have not all of `joints`.
        """
        names = self.skeleton.joints
        wanted = [name if name in names else RENAMED.get(name, name) for name in joints.joints]
        lost = [name for name in wanted if name not in names]
        if lost:
            raise DataError(f"people of {self.skeleton.name} have no {', '.join(lost)}")
        order = [names.index(name) for name in wanted]
        return Places(joints, self.positions[:, order], self.labelled[:, order])


def places(data: PoseData) -> Places:
    """Positions relative to the centre and the size of each person's box, enlarged by a quarter.

    The tight box round the joints would not do: its edges follow the joints that they are to place.

    Raises:
        DataError: people have no boxes.
    """
    boxes = [sample.box for sample in data.samples if sample.box is not None]
    if len(boxes) < len(data):
        raise DataError(f"{data.name}: {len(data) - len(boxes)} of {len(data)} people have no box")
    joints = np.stack([sample.joints for sample in data.samples]).astype(np.float64)
    low, high = np.split(np.stack(boxes).astype(np.float64)[:, None], 2, axis=2)
    return Places(
        data.skeleton,
        (joints - (low + high) / 2) / ((high - low) * MARGIN) + 0.5,
        np.stack([sample.labelled for sample in data.samples]),
    )


def cells(positions: Doubles, labelled: Flags, grid: int = GRID) -> Cells:
    """[N, K] number of the joint's cell, 0 to grid^2 - 1; -1 without label or outside."""
    inside = labelled & ((positions >= 0) & (positions < 1)).all(axis=-1)
    column, row = np.moveaxis(np.floor(np.where(inside[..., None], positions, 0) * grid), -1, 0)
    return np.where(inside, row * grid + column, -1).astype(np.int64)


def mutual_information(found: Cells, count: int = GRID**2) -> Doubles:
    """How much the place of one joint tells of another's, in nats: [K, K], symmetric.

    The distributions are shares of the people in whom both joints have a cell; those of the single
    joints too. I(m, m) is the entropy. With N people, independent joints have about
    (a - 1) (b - 1) / 2N, a and b being the cells that occur.

    Args:
        found: [N, K] of `cells`.
        count: number of cells.

    Raises:
        DataError: no person has both of two joints.
    """
    joints = found.shape[1]
    information = np.empty((joints, joints))
    for m in range(joints):
        for n in range(m, joints):
            both = (found[:, m] >= 0) & (found[:, n] >= 0)
            if not both.any():
                raise DataError(f"nobody has both joints {m} and {n}")
            pairs = found[both, m] * count + found[both, n]
            joint = np.bincount(pairs, minlength=count**2).reshape(count, count) / both.sum()
            apart = np.outer(joint.sum(axis=1), joint.sum(axis=0))
            seen = joint > 0
            information[m, n] = (joint[seen] * np.log(joint[seen] / apart[seen])).sum()
            information[n, m] = information[m, n]
    return information


def affinities(information: Doubles) -> Doubles:
    """The pairs' information brought to [0, 1]; 0 of a joint with itself."""
    pairs = ~np.eye(len(information), dtype=bool)
    low, high = information[pairs].min(), information[pairs].max()
    return np.where(pairs, (information - low) / (high - low), 0.0)


def spectral_gaps(affinity: Doubles) -> Doubles:
    """[K - 1] between eigenvalues k and k + 1 of the normalised Laplacian, from k = 1 on.

    A large one says that k clusters hang together more than k + 1 would (von Luxburg, A Tutorial
    on Spectral Clustering, Statistics and Computing 2007).
    """
    root = np.sqrt(affinity.sum(axis=1))
    return np.diff(np.linalg.eigvalsh(np.eye(len(affinity)) - affinity / np.outer(root, root)))


def cluster(affinity: Doubles, count: int) -> tuple[tuple[int, ...], ...]:
    """Spectral clustering: groups of joints, each by rising index, by rising first index.

    Raises:
        DataError: there are not 2 to K clusters.
        BackendError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import SpectralClustering
    except ImportError:
        raise BackendError(
            "clustering needs scikit-learn; install the extra: fastpose-inference[train]"
        ) from None
    if not 2 <= count <= len(affinity):
        raise DataError(f"{len(affinity)} joints make 2 to {len(affinity)} clusters, not {count}")
    spectral = SpectralClustering(count, affinity="precomputed", n_init=50, random_state=0)
    labels = spectral.fit_predict(affinity)
    groups = (tuple(np.flatnonzero(labels == label).tolist()) for label in range(count))
    return tuple(sorted(groups))


def main(argv: Sequence[str] | None = None) -> None:
    """The command above."""
    parser = argparse.ArgumentParser(prog="python -m fastpose.train.grouping")
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help="people with boxes")
    parser.add_argument("--split", default="train", choices=("train", "val"))
    parser.add_argument(
        "--joints", choices=(LSP14.name, MPII16.name), help="of the people's (default: all)"
    )
    parser.add_argument("--mirror", action="store_true", help="add their mirror images")
    parser.add_argument("--clusters", type=int, nargs="+", default=[5], metavar="K")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write it there, beside other joint sets' results"
    )
    args = parser.parse_args(argv)
    try:
        report = _report(args)
        if args.out:
            _write(args.out, report)
    except FastposeError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    sys.stdout.write((json.dumps(report) if args.json else _table(report)) + "\n")


def _report(args: argparse.Namespace) -> dict[str, Any]:
    data = open_poses(args.data, args.split)
    people = places(data)
    if args.joints:
        people = people.with_joints(SKELETONS[args.joints])
    if args.mirror:
        people = people.mirrored()
    information = mutual_information(cells(people.positions, people.labelled))
    affinity = affinities(information)
    return {
        "joints": people.skeleton.name,
        "command": _command(args),
        "people": len(data),
        "mirrored": args.mirror,
        "information": information.round(4).tolist(),
        "gaps": spectral_gaps(affinity).round(4).tolist(),
        "clusters": {str(k): cluster(affinity, k) for k in args.clusters},
    }


def _command(args: argparse.Namespace) -> str:
    """What was asked for, without folders of this machine."""
    kind, _, path = args.data.partition(":")
    words = ["python", "-m", "fastpose.train.grouping", "--data", f"{kind}:{Path(path).name}"]
    words += ["--split", args.split]
    words += ["--joints", args.joints] if args.joints else []
    words += ["--mirror"] if args.mirror else []
    return shlex.join([*words, "--clusters", *map(str, args.clusters)])


def _write(path: Path, report: dict[str, Any]) -> None:
    """Put the report into the file, in place of an earlier one of the same joints.

    Raises:
        DataError: what is there is not such a file.
        OutputError: it cannot be written.
    """
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        raise DataError(f"{path}: no file of part groups: expected an object for each joint set")
    found[report["joints"]] = {key: value for key, value in report.items() if key != "joints"}
    parts = []
    for joints, row in sorted(found.items()):
        fields = [
            f"    {json.dumps(key)}: {_rows(value) if key == 'information' else json.dumps(value)}"
            for key, value in row.items()
        ]
        parts.append(f"  {json.dumps(joints)}: {{\n" + ",\n".join(fields) + "\n  }")
    part = partial_path(path)
    try:
        part.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise not_writable(path, error) from None


def _rows(matrix: list[list[float]]) -> str:
    return "[\n" + ",\n".join(f"      {json.dumps(row)}" for row in matrix) + "\n    ]"


def _table(report: dict[str, Any]) -> str:
    names = SKELETONS[report["joints"]].joints
    pairs = np.array(report["information"])[~np.eye(len(names), dtype=bool)]
    lines = [
        f"{report['joints']}: {report['people']} people"
        + (" and their mirror images" if report["mirrored"] else ""),
        f"information between two joints: {pairs.min():.3f} to {pairs.max():.3f} nats",
    ]
    for count, groups in report["clusters"].items():
        gap = report["gaps"][int(count) - 1]
        lines.append(f"{count} clusters, gap of the spectrum {gap:.3f}:")
        lines += ["  " + ", ".join(f"{i} {names[i]}" for i in group) for group in groups]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
