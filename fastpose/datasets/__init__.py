"""Readers of annotated pictures, by kind: people with joints, and pictures with boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastpose.datasets.coco import read_box_data
from fastpose.datasets.files import read_image, read_predictions
from fastpose.datasets.leeds import read_lsp, read_lspet
from fastpose.datasets.samples import BoxData, BoxSample, PoseData, Sample
from fastpose.errors import DataError

__all__ = [
    "KINDS",
    "TERMS",
    "BoxData",
    "BoxSample",
    "PoseData",
    "Sample",
    "open_boxes",
    "open_data",
    "open_poses",
    "read_box_data",
    "read_image",
    "read_lsp",
    "read_lspet",
    "read_predictions",
]

TERMS = {
    "lsp": "Leeds Sports Pose (Johnson and Everingham, BMVC 2010): photographs from Flickr, for "
    "research; asks for citation, names no licence.",
    "lspet": "Leeds Sports Pose Extended (Johnson and Everingham, CVPR 2011): photographs from "
    "Flickr, for research; asks for citation, names no licence.",
    "boxes": "Boxes in COCO's format: terms are those of the set that they were made from.",
}

KINDS: dict[str, Callable[[Path, str], PoseData | BoxData]] = {
    "lsp": read_lsp,
    "lspet": lambda folder, split: read_lspet(folder),
    "boxes": read_box_data,
}


def open_data(text: str, split: str = "test") -> PoseData | BoxData:
    """Read the data set that KIND:PATH names.

    Args:
        text: such as "lsp:DIR"; the kinds are those of `KINDS`.
        split: "train", "val" or "test". A set that has one split alone gives that one, and says so.

    Raises:
        DataError: the text is not KIND:PATH of a known kind, or the set cannot be read.
    """
    kind, colon, path = text.partition(":")
    if not colon or not path or kind not in KINDS:
        known = ", ".join(f"{name}:DIR" for name in KINDS)
        raise DataError(f"data must be one of {known}; got {text!r}")
    return KINDS[kind](Path(path), split)


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
