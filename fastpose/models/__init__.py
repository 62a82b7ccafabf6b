"""The networks by name. Reading the table needs no torch; `create` does."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fastpose.errors import BackendError, ModelError
from fastpose.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

MODELS = {
    "cpn-light": ModelSpec(
        name="cpn-light",
        network="cpn_light:LightCPN",
        size=(192, 160),
        stride=4,
        skeleton="lsp14",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        rgb=True,
        convention="symmetric",
        padding=1.25,
        method="parabola",
        sigma=2.0,
        peak_value=1.0,
        paper="after Chen et al., Cascaded Pyramid Network for Multi-Person Pose Estimation, "
        "CVPR 2018; the trunk is our own",
        parameters=5_452_550,
    ),
}
DEFAULT_MODEL = "cpn-light"


def list_models() -> list[str]:
    """The names `create` knows."""
    return list(MODELS)


def model_spec(name: str) -> ModelSpec:
    """The spec of the model called `name`; "default" is the one `Pose` uses.

    Raises:
        ModelError: there is none; the text lists those there are.
    """
    try:
        return MODELS[DEFAULT_MODEL if name == "default" else name]
    except KeyError:
        known = ", ".join(("default", *MODELS))
        raise ModelError(f"unknown model {name!r}; known: {known}") from None


def create(name: str, weights: str | Path | None = None) -> nn.Module:
    """Build a network, in eval mode, with random weights or those of a file.

    Args:
        name: one of `list_models()`, or "default".
        weights: a .safetensors file; None leaves the initial random weights.

    Returns:
        The module; its input is [N, 3, h, w] float32, normalised as its `model_spec` says.

    Raises:
        ModelError: unknown name.
        WeightsError: the file is missing, damaged, or of another network.
        BackendError: torch is not installed.
    """
    spec = model_spec(name)
    try:
        import_module("torch")
    except ImportError:
        raise BackendError(
            "networks need torch; install the extra: fastpose-inference[torch]"
        ) from None
    module, _, builder = spec.network.partition(":")
    build = getattr(import_module(f"fastpose.models.{module}"), builder)
    network: nn.Module = build(num_keypoints=len(spec.joints), **spec.kwargs)
    if weights is not None:
        from fastpose.models.weights import load_weights

        load_weights(network, Path(weights))
    return network.eval()
