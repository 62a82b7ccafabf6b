"""Pictures of real and drawn people: to verify engines on, and to calibrate int8 with."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastpose.crop import Place, cut_places, place_affines
from fastpose.datasets import (
    KINDS,
    BoxData,
    CocoData,
    PoseData,
    open_data,
    open_poses,
    read_image,
)
from fastpose.detect import open_detector
from fastpose.engines.manifest import file_hash
from fastpose.errors import DataError, FrameError, ModelError
from fastpose.evaluate import (
    annotated_boxes,
    evaluate_boxes,
    evaluate_predictions,
    evaluate_results,
    people_results,
)
from fastpose.evaluate.joints import UNSCORED, head_sizes
from fastpose.evaluate.model import box_places, group_people, joint_order, sample_places
from fastpose.frames import picture_files, read_picture
from fastpose.geometry import Doubles, apply
from fastpose.models.spec import ModelSpec
from fastpose.types import Boxes, Floats

PICTURES = Path(__file__).with_name("pictures")
BUILT_IN = "built-in"
MOST = 256  # windows of a folder, unless somebody asks for another number
BATCH = 32  # windows that are cut at once
# Each built-in person is seen so often: turned by degrees, mirrored, brightened, the box enlarged.
LOOKS = ((0.0, False, 1.0, 1.0), (20.0, True, 0.7, 1.15), (-35.0, False, 1.3, 0.95))


@dataclass(frozen=True)
class Truth:
    """What is known of annotated windows; see `fastpose.engines.verify.Truth`.

    Attributes:
        data: the set.
        spec: of the network that sees the windows, each person once.
    """

    data: PoseData
    spec: ModelSpec

    def check(self) -> None:
        """Tell before the networks run.

        Raises:
            ModelError: the network lacks a joint that the figures count.
            DataError: an MPII set has not the sizes of heads.
        """
        self._order()
        if self.data.name == "mpii":
            head_sizes(self.data)

    def __call__(self, points: Floats, scores: Floats) -> tuple[str, float]:
        """The first metric of the data set and its value, in percent.

        Args:
            points: [N, K, 2] joints in all windows, in window pixels.
            scores: [N, K].

        Raises:
            BackendError: COCO's evaluation is not installed.
        """
        order = self._order()
        frame = apply(self._affines, points.astype(np.float64)).astype(np.float32)
        frame = np.where((order >= 0)[:, None], frame[:, order], np.float32(np.nan))
        if isinstance(self.data, CocoData):
            people = group_people(self.data, self._boxes, frame, scores[:, order])
            report = evaluate_results(self.data, people_results(self.data, people))
        else:
            report = evaluate_predictions(self.data, frame)
        name, value = next(iter(report.metrics.items()))
        return name, 100 * value if report.unit == "share" else value

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Where the windows are cut, in the order of the joints."""
        if isinstance(self.data, CocoData):
            return tuple(box_places(self.data, self._boxes))
        return tuple(sample_places(self.data))

    @property
    def _boxes(self) -> list[Boxes]:
        assert isinstance(self.data, CocoData)
        return annotated_boxes(self.data)

    def _order(self) -> npt.NDArray[np.int64]:
        """For each joint of the data, its place among the network's; -1 for one not counted."""
        dispensable = () if isinstance(self.data, CocoData) else UNSCORED
        return joint_order(self.spec.joints, self.data.skeleton, dispensable)

    @cached_property
    def _affines(self) -> Doubles:
        """[N, 2, 3] window -> picture pixel."""
        sizes = {sample.image: sample.size for sample in self.data.samples}
        return np.concatenate(
            [
                place_affines(
                    place,
                    (sizes[place.file] or read_image(place.file).shape[:2]),
                    self.spec.window,
                )
                for place in self.places
            ]
        )


@dataclass(frozen=True)
class Fixtures:
    """Windows that are cut when they are needed.

    Attributes:
        name: "built-in", or the name of the folder or set.
        spec: of the network that they are cut for, each person once.
        places: where each is cut.
        truth: of annotated people.
        skipped: how many pictures of a folder could not be read.
    """

    name: str
    spec: ModelSpec
    places: tuple[Place, ...]
    truth: Truth | None = None
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.places)

    def batches(self, size: int = BATCH) -> Iterator[Floats]:
        """All windows in order, [N, 3, h, w] float32 with at most `size` of them at once.

        Raises:
            DataError: a picture cannot be read any more.
        """
        for start in range(0, len(self.places), size):
            windows, _ = cut_places(self.places[start : start + size], self.spec.window)
            yield windows

    @property
    def windows(self) -> Floats:
        """All of them at once, [N, 3, h, w] float32; errors as in `batches`."""
        return np.concatenate(list(self.batches()))


@dataclass(frozen=True)
class Scenes:
    """Whole pictures, each read when it is needed.

    Attributes:
        name: "built-in", or the name of the folder or set.
        files: the pictures.
        truth: the boxes in them, of an annotated set.
        skipped: how many pictures of a folder could not be read.
    """

    name: str
    files: tuple[Path, ...]
    truth: BoxTruth | None = None
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.files)

    @property
    def hash(self) -> str:
        """SHA-256 of the files."""
        return hashlib.sha256("".join(map(file_hash, self.files)).encode()).hexdigest()

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        """[H, W, 3] uint8 BGR each."""
        return map(read_image, self.files)


@dataclass(frozen=True)
class BoxTruth:
    """The true boxes of annotated pictures; see `fastpose.engines.verify_detector.BoxTruth`."""

    data: BoxData

    def __call__(self, found: Sequence[Boxes]) -> tuple[str, float]:
        """The average precision of the boxes of all pictures at an overlap of 0.5, in percent."""
        return "det_ap50", 100 * evaluate_boxes(self.data, found).metrics["det_ap50"]


def windows(
    spec: ModelSpec,
    source: str | Path | None = None,
    *,
    limit: int | None = None,
    threads: int | None = None,
    split: str = "test",
) -> Fixtures:
    """Windows as a network takes them, of people in pictures.

    A person is seen once, also by a network whose procedure joins several views.

    Args:
        spec: the network.
        source: None takes the built-in pictures, of which each person is seen three times, also
            turned, mirrored, brighter and darker; a folder of pictures gives the people that the
            default detector finds in them, and a picture where it finds nobody as a whole;
            KIND:PATH gives the people of an annotated set, such as "lsp:DIR", and a ground truth
            where the network knows its joints.
        limit: most windows, of a COCO set most pictures; None takes 256 of a folder, all of the
            others. Of a folder with more pictures, some are taken, evenly spread over their names.
        threads: of the detector; None leaves the number to it.
        split: part of an annotated set; "train" for what int8 is calibrated with, so that it can be
            measured on the other.

    Raises:
        DataError: the folder has no picture that can be read, or the set cannot be read or is
            empty.
        ValueError: `limit` is no positive whole number.
    """
    _check_limit(limit)
    spec = spec.single_view()
    if source is None:
        return Fixtures(BUILT_IN, spec, tuple(_built_in_places()[:limit]))
    if _names_set(source):
        return annotated(spec, open_poses(str(source), split).head(limit))
    return _from_folder(spec, Path(source), limit or MOST, threads)


def built_in_pictures() -> list[tuple[Path, Floats]]:
    """Each picture that the package carries and the boxes [N, 4] of the people in it."""
    rows = json.loads((PICTURES / "people.json").read_text(encoding="utf-8"))["pictures"]
    return [(PICTURES / row["file"], np.array(row["boxes"], np.float32)) for row in rows]


def _built_in_places() -> list[Place]:
    """Every person upright first, so that a limit leaves the plain ones."""
    return [
        Place(file, _enlarged(box, zoom), rotation, flip, gain)
        for rotation, flip, gain, zoom in LOOKS
        for file, boxes in built_in_pictures()
        for box in boxes
    ]


def _enlarged(box: Floats, factor: float) -> Floats:
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return np.concatenate((centre - factor * half, centre + factor * half)).astype(np.float32)


def annotated(spec: ModelSpec, data: PoseData) -> Fixtures:
    """Windows of the people of a set, each seen once; without truth where nothing can be measured.

    Raises:
        DataError: the set is empty.
    """
    if not data.samples:
        raise DataError(f"{data.name}: the {data.split} split has nobody with joints")
    truth = Truth(data, spec.single_view())
    try:
        truth.check()
    except (ModelError, DataError) as error:  # the people can be looked at all the same
        text = f"{data.name}: the accuracy is not compared: {error}"
        warnings.warn(text, UserWarning, stacklevel=3)
        return Fixtures(data.name, truth.spec, truth.places)
    return Fixtures(data.name, truth.spec, truth.places, truth)


def scenes(
    source: str | Path | None = None, *, limit: int | None = None, split: str = "test"
) -> Scenes:
    """Whole pictures with people, for a detector.

    Args:
        source: None takes the built-in pictures; a folder its own; KIND:PATH those of an annotated
            set, and its truth where it has all people's boxes (boxes:DIR).
        limit: most pictures; None takes 256 of a folder, evenly spread over their names, and all
            of the others.
        split: as in `windows`.

    Raises:
        DataError: the folder has no picture that can be read, or the set cannot be read or is
            empty.
        ValueError: `limit` is no positive whole number.
    """
    _check_limit(limit)
    if source is None:
        return Scenes(BUILT_IN, tuple(file for file, _ in built_in_pictures())[:limit])
    if _names_set(source):
        data = open_data(str(source), split).head(limit)
        files = tuple(dict.fromkeys(sample.image for sample in data.samples))
        if not files:
            raise DataError(f"{source}: the {data.split} split has no picture")
        return Scenes(data.name, files, BoxTruth(data) if isinstance(data, BoxData) else None)
    folder = _Folder(Path(source), limit or MOST)
    files = tuple(file for file, _ in folder.read())
    return Scenes(folder.name, files, skipped=folder.finish())


def _check_limit(limit: int | None) -> None:
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"limit must be a whole number from 1, or None, got {limit!r}")


def _names_set(source: str | Path) -> bool:
    """Whether it is KIND:PATH, and not a folder of such a name."""
    return str(source).partition(":")[0] in KINDS and not Path(source).exists()


def _from_folder(spec: ModelSpec, path: Path, limit: int, threads: int | None) -> Fixtures:
    folder, places = _Folder(path, limit), list[Place]()
    with closing(open_detector("default", threads=threads)) as detector:
        for file, image in folder.read():
            (found,) = detector([image])
            places += [Place(file, box) for box in found.boxes] or [Place(file)]
            if len(places) >= limit:
                break
    return Fixtures(folder.name, spec, tuple(places[:limit]), skipped=folder.finish())


class _Folder:
    """Some pictures of a folder, without those that cannot be read.

    Args:
        path: of it.
        limit: most pictures that are tried.

    Raises:
        DataError: there is no such folder, or no picture in it.
    """

    def __init__(self, path: Path, limit: int) -> None:
        if not path.is_dir():
            sets = ", ".join(f"{kind}:" for kind in KINDS)
            raise DataError(f"{path}: no such folder of pictures, nor one of the sets {sets}")
        files = picture_files(path.iterdir())
        if not files:
            raise DataError(f"{path}: has no picture")
        self.name = path.resolve().name
        self._path, self._files = path, spread(files, limit)
        self._given, self._faults = 0, list[FrameError]()

    def read(self) -> Iterator[tuple[Path, npt.NDArray[np.uint8]]]:
        """Each that can be read, and what it shows, [H, W, 3] uint8 BGR."""
        for file in self._files:
            try:
                image = read_picture(file)
            except FrameError as error:
                self._faults.append(error)
                continue
            self._given += 1
            yield file, image

    def finish(self) -> int:
        """Tell of the pictures that could not be read, and how many they are.

        Raises:
            DataError: they are all that were tried.
        """
        if not self._given:
            raise DataError(f"{self._path}: no picture can be read; the first: {self._faults[0]}")
        if self._faults:
            warnings.warn(
                f"{self._path}: {len(self._faults)} of {len(self._files)} pictures are left out; "
                f"the first: {self._faults[0]}",
                UserWarning,
                stacklevel=3,
            )
        return len(self._faults)


def spread(files: Sequence[Path], limit: int) -> list[Path]:
    """At most `limit` of them, evenly spread: neighbours of a video show the same."""
    if len(files) <= limit:
        return list(files)
    return [files[i] for i in np.linspace(0, len(files) - 1, limit).astype(int)]
