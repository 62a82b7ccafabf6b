"""What lies in `trained/`: cards, graphs and weights of the networks, found without torch."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from fastpose.errors import WeightsError


def folder() -> Path:
    """The folder of the package `fastpose.trained`: installed, editable, or the checkout's own."""
    try:
        return Path(str(resources.files("fastpose.trained")))
    except ModuleNotFoundError:  # run from a checkout that was never installed
        return Path(__file__).parents[2] / "trained"


def card(name: str) -> dict[str, Any]:
    """What is recorded of a model's weights: spec, data and its terms, accuracy, precisions.

    Raises:
        WeightsError: there is no card of that name, or it is not a JSON object.
    """
    return read_card(folder() / f"{name}.json")


def cards() -> list[dict[str, Any]]:
    """Every card, by the model's name.

    Raises:
        WeightsError: one of them is not a JSON object; the text names it.
    """
    return [read_card(path) for path in sorted(folder().glob("*.json"))]


def graph_path(name: str) -> Path | None:
    """The trained network as an ONNX graph, which runs without torch, where there is one."""
    return _existing(folder() / f"{name}.onnx")


def weights_path(name: str) -> Path | None:
    """The trained weights, for `fastpose.create`, where there are some."""
    return _existing(folder() / f"{name}.safetensors")


def read_card(path: Path) -> dict[str, Any]:
    """A card, from wherever it lies.

    Raises:
        WeightsError: the file is missing or no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: no card of a model: {error.strerror}") from None
    except ValueError as error:
        raise WeightsError(f"{path}: not a model's card: {error}") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: not a model's card: expected a JSON object")
    return values


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
