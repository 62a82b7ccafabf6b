"""`fastpose doctor`: what this machine can run, and why not the rest."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from importlib import import_module
from typing import Any

PACKAGES = (
    # module, extra of fastpose-inference that brings it ("" for the base), what it is for
    ("numpy", "", "arrays"),
    ("cv2", "", "pictures and video"),
    ("openvino", "", "engine, the default on CPUs"),
    ("onnxruntime", "onnxruntime", "engine"),
    ("torch", "torch", "engine, training, building engines"),
    ("triton", "torch", "kernels on CUDA: decode, render, propagate"),
    ("onnx", "torch", "building engines"),
    ("av", "video", "H.264 video, time stamps"),
    ("pyarrow", "data", "--save parquet"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None beyond those of every verb."""


def run(args: argparse.Namespace) -> int:
    """Look at everything; 0 when the default model can run here, else 2."""
    report: dict[str, Any] = {
        "machine": _machine(),
        "kernels": _kernels(),
        "packages": [_package(*row) for row in PACKAGES],
        "openvino": _guarded(_openvino),
        "cuda": _guarded(_cuda),
        "cuda_kernels": _guarded(_cuda_kernels),
        "default_model": _guarded(_default_model),
    }
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)
    return 0 if report["default_model"].get("works") else 2


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.machine(),
    }


def _kernels() -> dict[str, Any]:
    from fastpose.ops.choose import cpu_kernels

    try:
        isa, threads = cpu_kernels()
    except ImportError as error:
        return {"works": False, "why": f"the C++ kernels do not load: {error}"}
    return {"works": True, "isa": isa, "threads": threads}


def _package(module: str, extra: str, purpose: str) -> dict[str, Any]:
    from fastpose.engines import without_telemetry

    try:
        with without_telemetry():
            found = import_module(module)
        # OpenVINO's goes on with the build and its branch
        version = str(getattr(found, "__version__", "installed")).partition("-")[0]
        return {"name": module, "version": version, "purpose": purpose}
    except Exception as error:  # a package may fail in any way when its libraries are missing
        install = f"fastpose-inference[{extra}]" if extra else "fastpose-inference"
        missing = isinstance(error, ModuleNotFoundError)
        why = f"not installed; the extra {install} brings it" if missing else _line(error)
        return {"name": module, "version": None, "purpose": purpose, "why": why}


def _guarded(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return look()
    except Exception as error:  # a report is wanted above all from machines where things fail
        return {"works": False, "why": _line(error)}


def _openvino() -> dict[str, Any]:
    from fastpose.engines.openvino import capabilities

    return {"works": True, "devices": capabilities()}


def _cuda() -> dict[str, Any]:
    try:
        torch = import_module("torch")
    except ModuleNotFoundError:
        return {"works": False, "why": "not looked for: torch is not installed"}
    if not torch.cuda.is_available():
        return {"works": False, "why": "torch finds no CUDA device"}
    return {"works": True, "device": torch.cuda.get_device_name()}


def _cuda_kernels() -> dict[str, Any]:
    from fastpose.ops.choose import gpu_kernels

    reasons = {ops: reason for ops, reason in gpu_kernels().items() if reason}
    if not reasons:
        return {"works": True}
    why = "; ".join(f"{ops}: {reason}" for ops, reason in reasons.items())
    return {"works": False, "why": f"{why} (without them only a network runs on CUDA)"}


def _default_model() -> dict[str, Any]:
    import time

    import numpy as np

    from fastpose.models import DEFAULT_DETECTOR
    from fastpose.pose import Pose

    start = time.monotonic()
    with Pose() as pose:
        pose(np.zeros((64, 64, 3), np.uint8))
        manifest = pose.engine.manifest
        return {
            "works": True,
            "model": manifest.spec.name,
            "detector": DEFAULT_DETECTOR,
            "engine": manifest.kind,
            "precision": manifest.precision,
            "first_result_seconds": round(time.monotonic() - start, 2),
        }


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _value(key: str, value: Any) -> str:
    """`key value`; what stands by itself needs no key."""
    if isinstance(value, dict):
        return ", ".join(f"{name} ({', '.join(items)})" for name, items in value.items())
    if key == "first_result_seconds":
        return f"first result after {value} s"
    return str(value) if key == "why" else f"{key} {value}"


def _print(report: dict[str, Any]) -> None:
    machine = report["machine"]
    print(f"Python {machine['python']} on {machine['system']}")
    for title in ("kernels", "openvino", "cuda", "cuda_kernels", "default_model"):
        values = dict(report[title])
        state = "ok" if values.pop("works") else "no"
        rest = ", ".join(_value(key, value) for key, value in values.items())
        print(f"{title.replace('_', ' '):<14}{state:<4}{rest}")
    for row in report["packages"]:
        print(f"{row['name']:<14}{row['version'] or 'no':<14}{row.get('why', row['purpose'])}")
