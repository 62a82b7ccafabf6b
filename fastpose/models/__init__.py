"""The networks by name. Looking one up needs no torch; `create` does."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastpose.errors import BackendError, ModelError
from fastpose.models.registry import DEFAULT_DETECTOR, DEFAULT_MODEL, DETECTORS, MODELS
from fastpose.models.spec import DetectorSpec, ModelSpec

if TYPE_CHECKING:
    from torch import nn

    from fastpose.models.fpn import FPNDetector

__all__ = [
    "DEFAULT_DETECTOR",
    "DEFAULT_MODEL",
    "DETECTORS",
    "MODELS",
    "create",
    "create_detector",
    "detector_spec",
    "list_detectors",
    "list_models",
    "model_spec",
]

Spec = TypeVar("Spec", ModelSpec, DetectorSpec)


def list_models() -> list[str]:
    """The names `create` knows."""
    return list(MODELS)


def model_spec(name: str) -> ModelSpec:
    """The spec of the model called `name`; "default" is the one `Pose` uses.

    Raises:
        ModelError: there is none; the text lists those there are.
    """
    return _look_up(MODELS, DEFAULT_MODEL, name, "model")


def list_detectors() -> list[str]:
    """The names of the detectors that `create_detector` knows."""
    return list(DETECTORS)


def detector_spec(name: str) -> DetectorSpec:
    """The spec of the detector called `name`; "default" is the one `Pose` uses.

    Raises:
        ModelError: there is none; the text lists those there are.
    """
    return _look_up(DETECTORS, DEFAULT_DETECTOR, name, "detector")


def _look_up(table: Mapping[str, Spec], default: str, name: str, what: str) -> Spec:
    """The row of `name`, or of `default` for "default"."""
    try:
        return table[default if name == "default" else name]
    except KeyError:
        known = ", ".join(("default", *table))
        raise ModelError(f"unknown {what} {name!r}; known: {known}") from None


def create(name: str, weights: str | Path | None = None) -> nn.Module:
    """Build a network, in eval mode, with random weights or those of a file.

    Args:
        name: one of `list_models()` or `list_detectors()`, or "default".
        weights: a .safetensors file; None leaves the initial random weights.

    Returns:
        The module; its input is [N, 3, h, w] float32, normalised as its `model_spec` says. Calling
        it gives all that its losses need, `predict` what is decoded: see `ModelSpec.output`.

    Raises:
        ModelError: unknown name.
        WeightsError: the file is missing, damaged, or of another network.
        BackendError: torch is not installed.
    """
    if name in DETECTORS:
        return create_detector(name, weights)
    spec = model_spec(name)
    maps = len(spec.joints) // spec.peaks
    return _build(spec.network, weights, num_keypoints=maps, **spec.kwargs)


def create_detector(name: str, weights: str | Path | None = None) -> FPNDetector:
    """Build a detector's network, in eval mode; arguments and errors as in `create`."""
    spec = detector_spec(name)
    network: FPNDetector = _build(
        spec.network,
        weights,
        classes=len(spec.classes),
        anchors=len(spec.anchors[0]) * len(spec.ratios),
        levels=len(spec.strides),
        **dict(spec.kwargs),
    )
    return network


def _build(network: str, weights: str | Path | None, **arguments: Any) -> Any:
    """Call "module:callable" and fill what it returns."""
    try:
        import_module("torch")
    except ImportError:
        raise BackendError(
            "networks need torch; install the extra: fastpose-inference[torch]"
        ) from None
    module, _, builder = network.partition(":")
    built: nn.Module = getattr(import_module(f"fastpose.models.{module}"), builder)(**arguments)
    if weights is not None:
        from fastpose.models.weights import load_weights

        load_weights(built, Path(weights))
    return built.eval()
