"""`fastpose doctor`: what this machine can run, and why not the rest; or one engine, examined."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpose.cli import INTERRUPTED, UNUSABLE
from fastpose.cli.options import positive
from fastpose.cli.progress import Stages
from fastpose.errors import BackendError, OutputError

if TYPE_CHECKING:
    from fastpose.conformance import Report

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
DISTRIBUTIONS = (
    # as above, looked up and not imported: that takes seconds, or a GPU
    ("pycuda", "pycuda", "device memory without torch"),
    ("cuda-bindings", "cuda", "the same"),
    ("nncf", "quantize", "int8 for OpenVINO"),
    ("nvidia-modelopt", "modelopt", "int8 for TensorRT"),
)
ENGINES = ("openvino", "onnxruntime", "torch", "tensorrt")
PRECISIONS = ("f32", "bf16", "f16", "int8")
SCHEMA = 1  # of the written report
TENSORRT = (
    "never run on a real TensorRT by the project: send the report of "
    "`fastpose doctor --engine tensorrt --full`"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="build this engine and examine it; the report is written to a file",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of that engine (default: f32; with --full also f16 and bf16)",
    )
    parser.add_argument(
        "--device", default="auto", help="of that engine: cpu, cuda, ... (default: auto)"
    )
    parser.add_argument(
        "--model", default="default", metavar="NAME", help="what it runs (default: default)"
    )
    parser.add_argument(
        "--full", action="store_true", help="10,000 runs in place of 300, and batches up to 32"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="examine int8, too, calibrated with these pictures of people",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads of that engine")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the report goes (default: fastpose-doctor-ENGINE.json)",
    )


def run(args: argparse.Namespace) -> int:
    """Look at everything, or examine one engine; 0 where all is well, else 2."""
    if args.engine:
        return _examine(args)
    if args.full or args.precision or args.calibration or args.out:
        raise BackendError("which engine is to be examined? Give --engine KIND")
    from fastpose.machine import machine

    report: dict[str, Any] = {
        "machine": machine(),
        "kernels": _kernels(),
        "packages": [*(_package(*row) for row in PACKAGES), *(_lookup(*r) for r in DISTRIBUTIONS)],
        "openvino": _guarded(_openvino),
        "tensorrt": _guarded(_tensorrt),
        "cuda": _guarded(_cuda),
        "cuda_kernels": _guarded(_cuda_kernels),
        "default_model": _guarded(_default_model),
    }
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)
    return 0 if report["default_model"].get("works") else UNUSABLE


def _examine(args: argparse.Namespace) -> int:
    """Every check of one engine in each precision; the report is written whatever happens."""
    from fastpose.engines import KINDS, choose_runtime

    choose_runtime(args.engine, KINDS)
    out = args.out or Path(f"fastpose-doctor-{args.engine}.json")
    reports: list[Report] = []
    for precision in _precisions(args):
        reports.append(_report(args, precision, lambda report: _write(out, [*reports, report])))
        if reports[-1].interrupted:
            break
    if args.json:
        print(json.dumps(_document(reports)))
    else:
        for report in reports:
            print("\n".join(_table(report)))
        print(f"written to {out}, without names of users, hosts or their folders")
    if reports[-1].interrupted:
        return INTERRUPTED
    failed = any(report.count("failed") for report in reports)
    return 0 if any(report.count("passed") for report in reports) and not failed else UNUSABLE


def _precisions(args: argparse.Namespace) -> tuple[str, ...]:
    if args.precision:
        return (args.precision,)
    low = ("f16", "bf16") if args.full else ()
    return ("f32", *low, *(("int8",) if args.calibration else ()))


def _report(args: argparse.Namespace, precision: str, keep: Callable[[Report], None]) -> Report:
    from fastpose.conformance import run_conformance

    stages = Stages()
    with tempfile.TemporaryDirectory(prefix="fastpose-doctor-") as folder:
        try:
            return run_conformance(
                args.engine,
                model=args.model,
                precision=precision,
                device=args.device,
                full=args.full,
                threads=args.threads,
                calibration=args.calibration if precision == "int8" else None,
                folder=folder,
                tell=lambda stage: stages.begin(f"{precision}: {stage}"),
                keep=keep,
            )
        finally:
            stages.finish()


def _document(reports: list[Report]) -> dict[str, Any]:
    return {"schema": SCHEMA, "reports": [report.to_dict() for report in reports]}


def _write(out: Path, reports: list[Report]) -> None:
    try:
        out.write_text(json.dumps(_document(reports), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from None


def _table(report: Report) -> list[str]:
    counts = ", ".join(f"{report.count(name)} {name}" for name in ("passed", "failed", "skipped"))
    return [
        f"{report.kind} {report.precision}, {report.model}, device {report.device}",
        *(
            f"{row.name:<22} {row.outcome:<8} {row.seconds:>7.1f} s  {row.detail}"
            for row in report.rows
        ),
        counts + (", interrupted" if report.interrupted else ""),
        "",
    ]


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
        missing = isinstance(error, ModuleNotFoundError)
        why = _missing(extra) if missing else _line(error)
        return {"name": module, "version": None, "purpose": purpose, "why": why}


def _lookup(distribution: str, extra: str, purpose: str) -> dict[str, Any]:
    from fastpose.machine import package_version

    version = package_version(distribution)
    why = {} if version else {"why": _missing(extra)}
    return {"name": distribution, "version": version, "purpose": purpose, **why}


def _missing(extra: str) -> str:
    install = f"fastpose-inference[{extra}]" if extra else "fastpose-inference"
    return f"not installed; the extra {install} brings it"


def _guarded(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return look()
    except Exception as error:  # a report is wanted above all from machines where things fail
        return {"works": False, "why": _line(error)}


def _openvino() -> dict[str, Any]:
    from fastpose.engines.openvino import capabilities

    return {"works": True, "devices": capabilities()}


def _tensorrt() -> dict[str, Any]:
    """Bindings and libraries are two packages: the former without the latter do not load."""
    from fastpose.machine import versions

    bindings = [v for name, v in versions().items() if name.startswith("tensorrt")]
    known: dict[str, Any] = {"works": True, "bindings": bindings[-1] if bindings else "none"}
    try:
        import_module("fastpose.engines.tensorrt")
    except ModuleNotFoundError as error:
        known |= {"works": False, "why": f"not installed: {error}"}
    except Exception as error:  # as above
        known |= {"works": False, "why": _line(error)}
    return {**known, "state": TENSORRT}


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
    return str(value) if key in ("why", "state") else f"{key} {value}"


def _print(report: dict[str, Any]) -> None:
    machine = report["machine"]
    print(f"Python {machine['python']} on {machine['system']}")
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB")
    for gpu in machine["gpus"]:
        print(", ".join(f"{name} {value}" for name, value in gpu.items()))
    for title in ("kernels", "openvino", "tensorrt", "cuda", "cuda_kernels", "default_model"):
        values = dict(report[title])
        state = "ok" if values.pop("works") else "no"
        rest = ", ".join(_value(key, value) for key, value in values.items())
        print(f"{title.replace('_', ' '):<14}{state:<4}{rest}")
    for row in report["packages"]:
        print(f"{row['name']:<16}{row['version'] or 'no':<14}{row.get('why', row['purpose'])}")
