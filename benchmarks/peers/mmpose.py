"""Functions of mmpose, out of the checkout that the environment variable FASTPOSE_MMPOSE names.

mmpose as a whole needs mmcv and mmengine. The files that are compared here need numpy, OpenCV and
torch alone, so those very files are loaded, below packages that have a path and no code.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

VARIABLE = "FASTPOSE_MMPOSE"


def missing() -> str | None:
    """Why there is no mmpose to compare with, in words; None where there is."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return f"mmpose is compared where {VARIABLE} names a checkout of it"
    if not (Path(folder) / "mmpose" / "codecs" / "utils").is_dir():
        return f"{VARIABLE}={folder} is no checkout of mmpose"
    if importlib.util.find_spec("torch") is None:
        return "mmpose needs torch, which is not installed here"
    return None


def load(name: str) -> ModuleType:
    """The module of that full name, such as "mmpose.codecs.utils.refinement"."""
    folder, parents = Path(os.environ[VARIABLE]), name.split(".")[:-1]
    for depth in range(1, len(parents) + 1):
        package = ModuleType(".".join(parents[:depth]))
        package.__path__ = [str(folder.joinpath(*parents[:depth]))]
        sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(name)
