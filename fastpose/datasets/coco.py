"""Annotations in COCO's format (Lin et al., Microsoft COCO, ECCV 2014): boxes and joints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.datasets.files import finite_numbers, read_json
from fastpose.datasets.samples import BoxData, BoxSample, CocoData, Sample
from fastpose.errors import DataError
from fastpose.skeleton import COCO17

PERSON = "person"

Size = tuple[int, int]


def read_box_data(folder: Path, split: str, *, names: Sequence[str] | None = (PERSON,)) -> BoxData:
    """Pictures with boxes: `folder`/{train,val,test}.json, pictures in `folder`/images.

    Or COCO's original layout: annotations/instances_{train,val}2017.json, pictures in
    {train,val}2017. "test" is the file of that name where there is one, else "val". A single
    annotation file in place of the folder has one split; its pictures are looked for as
    `read_coco_people` does.

    A box that reaches over the border is cut off there. Boxes without area, and boxes wholly
    outside of their picture, are left out and counted. Crowds (`iscrowd`) and difficult objects
    (`difficult`, as in PASCAL VOC) are kept as ignored.

    Args:
        folder: of the set, or an annotation file.
        split: "train", "val" or "test".
        names: the categories to read, which become the classes in this order; None reads all, in
            the order of their numbers.

    Raises:
        DataError: a file is missing or is not what it should be, a picture is listed but not
            there, or a category that was asked for is not there, or there twice.
    """
    path, images, split = _box_files(Path(folder), split)
    file = read_coco(path)
    numbers = category_numbers(file, names)
    rows: dict[Any, list[tuple[npt.NDArray[np.float32], int, bool]]] = {i: [] for i in file.images}
    left_out = 0
    for where, entry in file.annotations(numbers):
        image = entry["image_id"]
        box = annotated_box(entry, file.images[image].size, where)
        if box is None:
            left_out += 1
            continue
        ignored = bool(entry.get("iscrowd") or entry.get("difficult"))
        rows[image].append((box, numbers.index(entry["category_id"]), ignored))
    samples = []
    for image, found in rows.items():
        picture = file.images[image]
        samples.append(
            BoxSample(
                existing(images / picture.file, path),
                picture.size,
                np.array([box for box, _, _ in found], np.float32).reshape(-1, 4),
                np.array([kind for _, kind, _ in found], np.int64),
                np.array([ignored for _, _, ignored in found], bool),
            )
        )
    classes = tuple(file.categories[number] for number in numbers)
    return BoxData("boxes", classes, tuple(samples), split, left_out)


def read_coco_people(path: Path, images: Path | None = None) -> CocoData:
    """People with joints in COCO's key-point format: one sample for each who has any.

    Pictures lie in `images`; without it in images/ beside the file, in ../images, or, as COCO
    itself has them, in ../val2017 for annotations/person_keypoints_val2017.json. They need not be
    there to score predictions. Crowds, people without a labelled joint, and people whose box has
    no area within the picture are no samples, and counted in `left_out`.

    Raises:
        DataError: the file is missing or is not what it should be, or its joints are not COCO's.
    """
    path = Path(path)
    file = read_coco(path)
    (category,) = category_numbers(file, [PERSON])
    _check_joints(file, category)
    folder = images or _images_beside(path)
    pictures = {number: folder / picture.file for number, picture in file.images.items()}
    people, samples = [], []
    for where, entry in file.annotations([category]):
        joints = _joints(entry, where)
        box = annotated_box(entry, file.images[entry["image_id"]].size, where)
        people.append(_as_evaluated(entry, joints, where))
        labelled = joints[:, 2] > 0
        if box is not None and labelled.any() and not entry.get("iscrowd"):
            samples.append(
                Sample(
                    pictures[entry["image_id"]],
                    file.images[entry["image_id"]].size,
                    joints[:, :2].astype(np.float32),
                    labelled,
                    joints[:, 2] > 1,
                    box,
                )
            )
    return CocoData(
        "coco",
        COCO17,
        tuple(samples),
        split=path.stem,
        left_out=len(people) - len(samples),
        pictures=pictures,
        people=tuple(people),
        category=category,
    )


def read_coco_results(path: Path, data: CocoData) -> list[dict[str, Any]]:
    """Poses that somebody predicted, in COCO's format of results.

    Args:
        path: a JSON list of `{"image_id", "category_id", "keypoints", "score"}`, with x, y and a
            score for each of the 17 joints; a "bbox" counts where every row has one.
        data: the set; its annotations' numbers of pictures and of the category are meant.

    Returns:
        The rows of people, with these entries alone.

    Raises:
        DataError: the file is missing, or a row is not what it should be or of no picture.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a JSON list of COCO results")
    results = (_result(row, data, f"{path}: result {place}") for place, row in enumerate(rows))
    return [row for row in results if row["category_id"] == data.category]


def _result(row: Any, data: CocoData, where: str) -> dict[str, Any]:
    """A row of results, in the numbers that COCO's evaluation computes with."""
    keys = ("image_id", "category_id", "keypoints", "score")
    if not isinstance(row, dict) or not row.keys() >= set(keys):
        raise DataError(f"{where}: expected image_id, category_id, keypoints and score")
    if not _known(row["image_id"], data.pictures):
        raise DataError(
            f"{where}: no image of {data.split} has the id {shortened(row['image_id'])}"
        )
    if finite_numbers(row["score"], ()) is None:
        raise DataError(f"{where}: score must be a finite number, got {shortened(row['score'])}")
    result = {key: row[key] for key in keys}
    result["keypoints"] = _joints(row, where).reshape(-1).tolist()
    if row.get("bbox"):
        result["bbox"] = _bbox(row, where).tolist()
    return result


@dataclass(frozen=True)
class Picture:
    """A row of `images`: the file's name, and (h, w) in pixels or None."""

    file: str
    size: Size | None


@dataclass(frozen=True)
class CocoFile:
    """What an annotation file holds.

    Attributes:
        path: of the file.
        images: pictures by `id`.
        categories: names by `id`.
        joints: names of a category's joints by its `id`, where it has some.
        rows: of `annotations`, as they are.
    """

    path: Path
    images: dict[Any, Picture]
    categories: dict[Any, str]
    joints: dict[Any, Any]
    rows: list[Any]

    def annotations(self, numbers: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Where each annotation of these categories stands, for messages, and the annotation.

        Raises:
            DataError: one has no category, or no picture of the file.
        """
        for place, row in enumerate(self.rows):
            where = f"{self.path}: annotations[{place}]"
            if not isinstance(row, dict) or not {"image_id", "category_id"} <= row.keys():
                raise DataError(f"{where}: expected an object with image_id and category_id")
            if not _known(row["image_id"], self.images):
                raise DataError(f"{where}: no image has the id {shortened(row['image_id'])}")
            if not _known(row["category_id"], self.categories):
                raise DataError(f"{where}: no category has the id {shortened(row['category_id'])}")
            if row["category_id"] in numbers:
                yield where, row


def read_coco(path: Path) -> CocoFile:
    """Read an annotation file.

    Raises:
        DataError: it is missing, holds no JSON, or `images`, `annotations` or `categories` are not
            what they should be.
    """
    content = read_json(path)
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in keys):
        raise DataError(
            f"{path}: expected a JSON object with lists 'images', 'annotations' and 'categories'"
        )
    return CocoFile(
        path,
        _by_id(content["images"], f"{path}: images", _picture),
        _by_id(content["categories"], f"{path}: categories", lambda row: str(row["name"])),
        {row["id"]: row["keypoints"] for row in content["categories"] if "keypoints" in row},
        content["annotations"],
    )


def category_numbers(file: CocoFile, names: Sequence[str] | None) -> list[Any]:
    """The `id` of each named category; of all, rising, for None.

    Raises:
        DataError: there is none of a name, or two.
    """
    if names is None:
        return sorted(file.categories)
    numbers = []
    for name in names:
        found = [number for number, known in file.categories.items() if known == name]
        if len(found) > 1:
            listed = " and ".join(map(str, found))
            raise DataError(f"{file.path}: {len(found)} categories are named {name}: {listed}")
        if not found:
            known = ", ".join(file.categories.values()) or "none"
            raise DataError(f"{file.path}: no category is named {name}; there are: {known}")
        numbers += found
    return numbers


def annotated_box(
    entry: dict[str, Any], size: Size | None, where: str
) -> npt.NDArray[np.float32] | None:
    """The [4] (x0, y0, x1, y1) of an annotation within its picture; None if nothing is left of it.

    Raises:
        DataError: `bbox` is not x, y, width and height.
    """
    x, y, width, height = _bbox(entry, where)
    limits = np.array([size[1], size[0]] if size else [np.inf, np.inf])
    low = np.clip([x, y], 0, limits)
    high = np.clip([x + width, y + height], 0, limits)
    box = np.concatenate((low, high)).astype(np.float32)
    return box if (box[2:] > box[:2]).all() else None


def _bbox(entry: dict[str, Any], where: str) -> npt.NDArray[np.float64]:
    """[4] x, y, width and height."""
    bbox = finite_numbers(entry.get("bbox"), (4,))
    if bbox is None or bbox[2:].min() < 0:
        raise DataError(
            f"{where}: bbox must be x, y, width and height, finite and not negative in size, "
            f"got {shortened(entry.get('bbox'))}"
        )
    return bbox


def _check_joints(file: CocoFile, category: Any) -> None:
    """The names of the joints, where the file has them, are COCO's."""
    names = file.joints.get(category)
    if names is not None and names != list(COCO17.joints):
        raise DataError(
            f"{file.path}: expected the {len(COCO17)} joints of COCO in their order, "
            f"got {shortened(names)}"
        )


def _joints(entry: dict[str, Any], where: str) -> npt.NDArray[np.float64]:
    """[17, 3] x, y and flag; zeros where the annotation has none."""
    count = 3 * len(COCO17)
    values = finite_numbers(entry.get("keypoints", [0] * count), (count,))
    if values is None:
        raise DataError(f"{where}: keypoints must be {count} finite numbers")
    return values.reshape(-1, 3)


def _as_evaluated(
    entry: dict[str, Any], joints: npt.NDArray[np.float64], where: str
) -> dict[str, Any]:
    """What COCO's evaluation reads of an annotation."""
    area = finite_numbers(entry.get("area"), ())
    if area is None or area < 0:
        raise DataError(
            f"{where}: area must be a finite number from 0, got {shortened(entry.get('area'))}"
        )
    return {
        "image_id": entry["image_id"],
        "category_id": entry["category_id"],
        "bbox": entry["bbox"],
        "area": float(area),
        "iscrowd": int(bool(entry.get("iscrowd"))),
        "keypoints": joints.reshape(-1).tolist(),
        "num_keypoints": int((joints[:, 2] > 0).sum()),
    }


def _images_beside(path: Path) -> Path:
    """Where the pictures of an annotation file are looked for."""
    original = path.parent.parent / path.stem.rpartition("_")[2]
    for folder in (path.parent / "images", path.parent.parent / "images", original):
        if folder.is_dir():
            return folder
    return path.parent / "images"


def existing(image: Path, annotations: Path) -> Path:
    """`image`, if it is there.

    Raises:
        DataError: it is not.
    """
    if not image.is_file():
        raise DataError(f"{image}: no such picture, which {annotations} lists")
    return image


def _box_files(folder: Path, split: str) -> tuple[Path, Path, str]:
    """The annotation file, the folder of its pictures, and the split they are."""
    if folder.is_file():
        return folder, _images_beside(folder), folder.stem
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    splits = {"train": ["train"], "val": ["val"], "test": ["test", "val"]}.get(split)
    if splits is None:
        raise DataError(f"{folder}: split must be train, val or test, got {split!r}")
    for name in splits:
        for path, images in (
            (folder / f"{name}.json", folder / "images"),
            (folder / "annotations" / f"instances_{name}2017.json", folder / f"{name}2017"),
        ):
            if path.is_file():
                return path, images, name
    raise DataError(
        f"{folder}: expected {splits[-1]}.json or annotations/instances_{splits[-1]}2017.json "
        "in it, found neither"
    )


def _by_id(rows: Any, where: str, read: Any) -> dict[Any, Any]:
    """The rows of a list by their `id`."""
    found: dict[Any, Any] = {}
    for place, row in enumerate(rows):
        try:
            number, value = row["id"], read(row)
            twice = number in found
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DataError(f"{where}[{place}]: expected an object of the COCO format") from None
        if twice:
            raise DataError(f"{where}[{place}]: the id {shortened(number)} is there twice")
        found[number] = value
    return found


def _picture(row: Any) -> Picture:
    size = None
    if "height" in row and "width" in row:
        size = int(row["height"]), int(row["width"])
        if min(size) < 1:
            raise ValueError(size)
    return Picture(str(row["file_name"]), size)


def _known(number: Any, among: dict[Any, Any]) -> bool:
    """Whether an id is there; a list, which is no id, is not."""
    return isinstance(number, (int, str)) and number in among
