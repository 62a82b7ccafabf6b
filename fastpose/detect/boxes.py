"""Boxes that somebody else found: JSON lines, COCO JSON, or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fastpose.errors import DataError
from fastpose.types import Boxes, Floats

PERSON = 1  # COCO's number for it

Key: TypeAlias = "int | str"
"""A frame's place in its source, or a picture's name without folder and ending."""

Row: TypeAlias = tuple[str, Key, tuple[float, ...]]
"""Where it stands in the file, whose it is, and (x0, y0, x1, y1, score)."""


@dataclass(frozen=True)
class BoxesFile:
    """The boxes of a file.

    Attributes:
        path: the file.
        by_key: boxes by frame or picture.
        numbered: the keys are COCO's `image_id`.
    """

    path: Path
    by_key: dict[Key, Boxes]
    numbered: bool = False

    def boxes_for(self, index: int, name: str) -> Boxes:
        """The boxes of a frame; one that the file does not list has nobody.

        Args:
            index: its place in its source, from 0.
            name: the picture's or the source's name without folder and ending.
        """
        key: Key = name if name in self.by_key else index
        if self.numbered and name.isdecimal():
            key = int(name)
        return self.by_key.get(key, Boxes.empty())


def read_boxes(path: str | Path) -> BoxesFile:
    """Read boxes from a file; its ending tells the format.

    - `.jsonl`: a line `{"frame": 0, "people": [{"box": [x0, y0, x1, y1], "box_score": 0.9}]}` for
      each frame, as `fastpose predict` writes them. A line with "schema" is a header.
    - `.json`: COCO annotations, or COCO results (a list of `{"image_id", "bbox", "score"}`), boxes
      (x, y, width, height). Annotations go by the name of their picture; results by `image_id`: the
      number that is the picture's name, as with COCO's own pictures, or else the frame's place.
      Classes other than person, and crowds, are left out.
    - `.csv`: rows `frame,x0,y0,x1,y1[,score]`. A header is optional; if its first column is
      `image`, the first column names pictures.

    Coordinates are frame pixels; a score that is absent is 1.

    Raises:
        DataError: the file is missing or of another form, or a box or score is not finite, or a box
            has no area; the text names the line or entry and the value.
    """
    path = Path(path)
    readers = {".jsonl": _json_lines, ".json": _coco, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: boxes are read from {', '.join(readers)}, got {path.suffix!r}")
    try:
        found = _group(reader(path.read_text("utf-8-sig")))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (ValueError, csv.Error) as error:  # a UnicodeDecodeError is a ValueError
        raise DataError(f"{path}: {error}") from None
    numbered = reader is _coco and any(isinstance(key, int) for key in found)
    return BoxesFile(path, found, numbered)


def _group(rows: Iterable[Row]) -> dict[Key, Boxes]:
    """Check the rows and gather them by frame; ValueError says where and what."""
    by_key: dict[Key, list[Floats]] = {}
    for place, key, values in rows:
        with np.errstate(over="ignore"):
            row = np.array(values, np.float32)
        if not np.isfinite(row).all():
            raise ValueError(f"{place}: box and score must be finite, got {_text(values)}")
        if not (row[2] > row[0] and row[3] > row[1]):
            raise ValueError(f"{place}: box must have x1 > x0 and y1 > y0, got {_text(values[:4])}")
        by_key.setdefault(key, []).append(row)
    tables = {key: np.stack(found) for key, found in by_key.items()}
    return {key: Boxes(table[:, :4], table[:, 4]) for key, table in tables.items()}


def _text(values: Iterable[float]) -> str:
    return "[" + ", ".join(f"{v:g}" for v in values) + "]"


def _json_lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {number}"
        entry = _json(line, place)
        if isinstance(entry, dict) and "schema" in entry:
            continue
        frame, people = _fields(entry, place, "frame", "people")
        for person in _list(people, place):
            (box,) = _fields(person, place, "box")
            yield place, _index(frame, place), _floats(box, person.get("box_score", 1.0), place)


def _coco(text: str) -> Iterator[Row]:
    data = _json(text, "file")
    if isinstance(data, list):
        for place, entry in _entries(data, "result", PERSON):
            yield place, _index(entry["image_id"], place), _corners(entry, place)
        return
    images, annotations = _fields(data, "file", "images", "annotations")
    names = {}
    for number, image in enumerate(_list(images, "images")):
        identity, name = _fields(image, f"image {number}", "id", "file_name")
        names[str(identity)] = Path(str(name)).stem
    person: Any = PERSON
    for number, category in enumerate(_list(data.get("categories", []), "categories")):
        identity, name = _fields(category, f"category {number}", "id", "name")
        person = identity if name == "person" else person
    for place, entry in _entries(_list(annotations, "annotations"), "annotation", person):
        if str(entry["image_id"]) not in names:
            raise ValueError(f"{place}: no image has the id {_short(entry['image_id'])}")
        yield place, names[str(entry["image_id"])], _corners(entry, place)


def _entries(entries: list[Any], kind: str, person: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries that are one person, each with its place in the file."""
    for number, entry in enumerate(entries):
        place = f"{kind} {number}"
        _fields(entry, place, "image_id", "bbox")
        if not entry.get("iscrowd") and entry.get("category_id", person) == person:
            yield place, entry


def _corners(entry: dict[str, Any], place: str) -> tuple[float, ...]:
    x, y, width, height, score = _floats(entry["bbox"], entry.get("score", 1.0), place)
    if width <= 0 or height <= 0:
        raise ValueError(f"{place}: bbox must have width and height > 0, got {entry['bbox']}")
    return x, y, x + width, y + height, score


def _csv(text: str) -> Iterator[Row]:
    named = False
    for number, cells in enumerate(csv.reader(text.splitlines()), 1):
        place = f"line {number}"
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if number == 1 and cells[0] in ("frame", "image"):
            named = cells[0] == "image"
            continue
        if len(cells) not in (5, 6):
            raise ValueError(f"{place}: expected frame,x0,y0,x1,y1[,score], got {','.join(cells)}")
        try:
            values = tuple(float(cell) for cell in cells[1:])
            key: Key = Path(cells[0]).stem if named else _index(int(cells[0]), place)
        except ValueError:
            raise ValueError(
                f"{place}: expected a frame from 0 and numbers, got {','.join(cells)}"
            ) from None
        yield place, key, values if len(values) == 5 else (*values, 1.0)


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place}: no JSON: {error}") from None


def _fields(entry: Any, place: str, *names: str) -> list[Any]:
    """The values of a JSON object under `names`."""
    missing = [n for n in names if n not in entry] if isinstance(entry, dict) else list(names)
    if missing:
        raise ValueError(f"{place}: expected an object with {missing[0]!r}, got {_short(entry)}")
    return [entry[name] for name in names]


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{place}: expected a list, got {_short(value)}")
    return value


def _index(value: Any, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{place}: a frame is a whole number from 0, got {_short(value)}")
    return value


def _floats(box: Any, score: Any, place: str) -> tuple[float, ...]:
    numbers = [*box, score] if isinstance(box, list) else []
    if len(numbers) != 5 or not all(type(v) in (int, float) for v in numbers):
        raise ValueError(f"{place}: expected a box of 4 numbers and a score, got {_short(box)}")
    try:
        return tuple(float(v) for v in numbers)
    except OverflowError:
        raise ValueError(f"{place}: box and score must be finite, got {_short(box)}") from None


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
