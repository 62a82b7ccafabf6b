"""Human pose estimation for pictures and video.

>>> import fastpose
>>> with fastpose.Pose() as pose:
...     people = pose(frame)  # [H, W, 3] uint8 BGR -> People, joints in frame pixels
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpose import errors, ops
    from fastpose.bundles import build_engine, refit_engine, verify_engine
    from fastpose.detectors import build_detector
    from fastpose.engines import Options, load_engine
    from fastpose.models import create, list_detectors, list_models
    from fastpose.pose import Pose
    from fastpose.skeleton import Skeleton
    from fastpose.types import Frame, People

__all__ = [
    "Frame",
    "Options",
    "People",
    "Pose",
    "Skeleton",
    "build_detector",
    "build_engine",
    "create",
    "errors",
    "list_detectors",
    "list_models",
    "load_engine",
    "ops",
    "refit_engine",
    "verify_engine",
]
__version__ = "0.1.0"

_HOMES = {
    "Frame": "fastpose.types",
    "Options": "fastpose.engines",
    "People": "fastpose.types",
    "Pose": "fastpose.pose",
    "Skeleton": "fastpose.skeleton",
    "build_detector": "fastpose.detectors",
    "build_engine": "fastpose.bundles",
    "create": "fastpose.models",
    "list_detectors": "fastpose.models",
    "list_models": "fastpose.models",
    "load_engine": "fastpose.engines",
    "refit_engine": "fastpose.bundles",
    "verify_engine": "fastpose.bundles",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that importing the package costs nothing."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in ("errors", "ops"):
        return import_module(f"fastpose.{name}")
    raise AttributeError(f"module 'fastpose' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
