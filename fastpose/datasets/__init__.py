"""Readers of annotated pictures, by kind: people with joints, and pictures with boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fastpose.datasets.coco import PERSON, read_box_data, read_coco_people, read_coco_results
from fastpose.datasets.files import read_image, read_predictions
from fastpose.datasets.flic import observer_centric, read_flic
from fastpose.datasets.leeds import read_lsp, read_lspet
from fastpose.datasets.mpii import read_mpii
from fastpose.datasets.samples import (
    BoxData,
    BoxSample,
    CocoData,
    PoseData,
    Sample,
    with_joints,
)
from fastpose.errors import DataError

__all__ = [
    "KINDS",
    "TERMS",
    "BoxData",
    "BoxSample",
    "CocoData",
    "PoseData",
    "Sample",
    "observer_centric",
    "open_boxes",
    "open_data",
    "open_poses",
    "read_box_data",
    "read_coco_people",
    "read_coco_results",
    "read_flic",
    "read_image",
    "read_lsp",
    "read_lspet",
    "read_mpii",
    "read_predictions",
    "with_joints",
]

TERMS = {
    "lsp": "Leeds Sports Pose (Johnson and Everingham, BMVC 2010): photographs from Flickr, for "
    "research; asks for citation, names no licence.",
    "lspet": "Leeds Sports Pose Extended (Johnson and Everingham, CVPR 2011): photographs from "
    "Flickr, for research; asks for citation, names no licence.",
    "mpii": "MPII Human Pose (Andriluka et al., CVPR 2014): photographs from YouTube; annotations "
    "under the Simplified BSD licence, for research.",
    "flic": "Frames Labeled In Cinema (Sapp and Taskar, CVPR 2013): frames of feature films, for "
    "research; states no terms.",
    "coco": "Microsoft COCO (Lin et al., ECCV 2014): annotations under CC BY 4.0; photographs from "
    "Flickr, each under its own licence, many for non-commercial use alone.",
    "boxes": "Boxes in COCO's format: terms are those of the set that they were made from.",
}

Reader = Callable[[Path, str, Path | None, Sequence[str]], PoseData | BoxData]

KINDS: dict[str, Reader] = {
    "lsp": lambda folder, split, *_: read_lsp(folder, "train" if split == "train" else "test"),
    "lspet": lambda folder, *_: read_lspet(folder),
    "mpii": lambda file, split, images, _: read_mpii(file, split, images),
    "flic": lambda file, split, images, _: read_flic(file, split, images),
    "coco": lambda file, _, images, __: read_coco_people(file, images),
    "boxes": lambda folder, split, _, classes: read_box_data(folder, split, names=classes),
}
PATHS = {kind: "FILE" if kind in ("mpii", "flic", "coco") else "DIR" for kind in KINDS}


def open_data(
    text: str,
    split: str = "test",
    images: Path | None = None,
    classes: Sequence[str] = (PERSON,),
) -> PoseData | BoxData:
    """Read the data set that KIND:PATH names.

    Args:
        text: such as "lsp:DIR"; the kinds are those of `KINDS`.
        split: "train", "val" or "test"; a set without a part of that name gives the one that is
            meant for measuring, or its only one, and says so.
        images: folder of the pictures, for the sets whose annotations are a FILE.
        classes: what the boxes hold that are read, for sets of boxes.

    Raises:
        DataError: the text is not KIND:PATH of a known kind, or the set cannot be read.
    """
    kind, colon, path = text.partition(":")
    if not colon or not path or kind not in KINDS:
        known = ", ".join(f"{name}:{form}" for name, form in PATHS.items())
        raise DataError(f"data must be one of {known}; got {text!r}")
    if images is not None and PATHS[kind] == "DIR":
        raise DataError(f"{text}: its pictures lie in the folder itself; got images {images}")
    try:
        return KINDS[kind](Path(path), split, images, classes)
    except OSError as error:  # a name too long to ask for, or a folder that may not be read
        raise DataError(f"{text[:200]}: {error.strerror}") from None


def open_poses(text: str, split: str = "test") -> PoseData:
    """`open_data` for a set of people with joints; boxes alone are a DataError."""
    data = open_data(text, split)
    if not isinstance(data, PoseData):
        raise DataError(f"{text}: has boxes alone; expected people with joints, such as lsp:DIR")
    return data


def open_boxes(text: str, split: str = "test") -> BoxData:
    """`open_data` for a set of pictures with boxes; a set of joints alone is a DataError."""
    data = open_data(text, split)
    if not isinstance(data, BoxData):
        raise DataError(f"{text}: has no boxes of all its people; expected boxes:DIR")
    return data
