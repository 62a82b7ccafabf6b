"""OpenPose's JSON: a folder with one file a frame."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.sinks.files import RecordFile, Sink, make_folder, not_writable, partial_path, rounded
from fastpose.skeleton import Skeleton
from fastpose.types import Floats, Frame, People

VERSION = 1.3
# The order of BODY_25 (Cao et al., OpenPose: Realtime Multi-Person 2D Pose Estimation Using Part
# Affinity Fields, TPAMI 2021); its neck and mid hip are the middles of shoulders and hips.
BODY_25 = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "mid_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
    "left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel",
)  # fmt: skip
_MIDDLES = {
    "neck": ("right_shoulder", "left_shoulder"),
    "mid_hip": ("right_hip", "left_hip"),
}
_NOTHING: dict[str, list[float]] = {
    f"{part}_keypoints_{d}d": []
    for d in (2, 3)
    for part in ("pose", "face", "hand_left", "hand_right")
}
_NEEDED = frozenset(BODY_25[2:8] + BODY_25[9:15])


class OpenPoseSink(Sink):
    """`<name>_<frame, 12 digits>_keypoints.json` for each frame, format version 1.3.

    `pose_keypoints_2d` is x, y, score of each joint, 0, 0, 0 where it was not found. A skeleton
    with shoulders, elbows, wrists, hips, knees and ankles is written in BODY_25 order; another one
    in its own order. The key `keypoint_names` beside `people` names the order either way.

    Args:
        path: the folder. One that is there from an earlier run is replaced.
        source: the source's name, the first part of the files' names.
    """

    def __init__(self, path: Path, source: str) -> None:
        super().__init__()
        self._path, self._source, self._partial = path, source, partial_path(path)
        shutil.rmtree(self._partial, ignore_errors=True)
        make_folder(self._partial)

    def _write(self, frame: Frame, people: People) -> None:
        name = f"{self._source}_{frame.index:012d}_keypoints.json"
        file = RecordFile(self._partial / name)
        try:
            file.append(json.dumps(_document(people), allow_nan=False).encode())
            file.finish()
        except BaseException:
            file.discard()
            raise

    def _finish(self) -> None:
        old = self._path.with_name(f".old-{self._path.name}")
        try:
            if self._path.is_dir():
                self._path.replace(old)
            self._partial.replace(self._path)
        except OSError as error:
            raise not_writable(self._path, error) from None
        shutil.rmtree(old, ignore_errors=True)
        self.files.append(self._path)

    def _discard(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)


def _document(people: People) -> dict[str, Any]:
    names, triples = _in_order(people)
    rows = rounded(triples.reshape(len(people), 3 * len(names)), 4)
    ids = [-1] * len(people) if people.ids is None else people.ids.tolist()
    return {
        "version": VERSION,
        "keypoint_names": list(names),
        "people": [
            {"person_id": [number], **_NOTHING, "pose_keypoints_2d": row}
            for number, row in zip(ids, rows, strict=True)
        ],
    }


def _in_order(people: People) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """The names of the order that is written, and [N, len(names), 3] x, y, score in it."""
    own = _triples(people.keypoints, people.scores)
    if not allows_body_25(people.skeleton):
        return people.skeleton.joints, own
    place = {name: k for k, name in enumerate(people.skeleton.joints)}
    out = np.zeros((len(people), len(BODY_25), 3), np.float32)
    for k, name in enumerate(BODY_25):
        if name in _MIDDLES:
            a, b = (place[side] for side in _MIDDLES[name])
            middle = (people.keypoints[:, a] + people.keypoints[:, b]) / 2
            score = np.minimum(people.scores[:, a], people.scores[:, b])
            out[:, k] = _triples(middle, score)
        elif name in place:
            out[:, k] = own[:, place[name]]
    return BODY_25, out


def allows_body_25(skeleton: Skeleton) -> bool:
    """Whether the skeleton has every joint of BODY_25 below the head, feet left out."""
    return set(skeleton.joints) >= _NEEDED


def _triples(points: npt.NDArray[np.floating], scores: Floats) -> npt.NDArray[np.float32]:
    found = np.isfinite(points).all(axis=-1) & np.isfinite(scores)
    out = np.concatenate((points, scores[..., None]), axis=-1)
    return np.where(found[..., None], out, 0).astype(np.float32)
