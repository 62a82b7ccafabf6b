"""`fastpose inspect`: what a bundle says of itself, beside what this machine has."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fastpose.cli import UNUSABLE
from fastpose.cli.bundles import precision_text, report_lines, row, size_text
from fastpose.engines import (
    DetectorManifest,
    Manifest,
    Options,
    choose_runtime,
    read_bundle,
    runtime_module,
)
from fastpose.engines.manifest import file_hash
from fastpose.errors import BackendError, EngineError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a file of `fastpose build`, or the .json beside it"
    )


def run(args: argparse.Namespace) -> int:
    """Print it; 2 where a file or a tie differs, which standard error names."""
    manifest, path = read_bundle(args.file)
    files = {name: _file_state(path, name, wanted) for name, wanted in manifest.files.items()}
    ties = _ties(manifest)
    if args.json:
        document = {"manifest": str(path), **manifest.to_dict(), "files": files, "ties": ties}
        print(json.dumps(document))
    else:
        print("\n".join(_lines(path, manifest, files, ties)))
    faults = [
        *(f"{name}: {state['state']}" for name, state in files.items() if state["state"] != "ok"),
        *(f"{name}: {_differs(tie)}" for name, tie in ties.items() if tie["state"] == "differs"),
    ]
    for fault in faults:
        print(f"fastpose inspect: {path}: {fault}", file=sys.stderr)
    return UNUSABLE if faults else 0


def _file_state(path: Path, name: str, wanted: str) -> dict[str, Any]:
    """Size and state of a file of the bundle: ok, differs, or why it cannot be read."""
    file = path.parent / name
    try:
        found, size = file_hash(file), file.stat().st_size
    except EngineError as error:
        return {"sha256": wanted, "size": None, "state": str(error).rpartition(": ")[2]}
    state = "ok" if found == wanted else f"differs: {found[:12]}, the manifest has {wanted[:12]}"
    return {"sha256": wanted, "size": size, "state": state}


def _ties(manifest: Manifest | DetectorManifest) -> dict[str, dict[str, str]]:
    """What the bundle is tied to, beside what this machine has of it."""
    try:
        kind = choose_runtime(manifest.kind, (manifest.kind,))
        here = runtime_module(kind).ties(manifest.options, manifest.device, manifest.ties)
    except (BackendError, ImportError) as error:
        unknown = {"here": f"not known: {error}", "state": "not known"}
        return {name: {"built": value, **unknown} for name, value in manifest.ties.items()}
    found = {name: here.get(name, "nothing of the kind") for name in manifest.ties}
    return {
        name: {
            "built": value,
            "here": found[name],
            "state": "ok" if found[name] == value else "differs",
        }
        for name, value in manifest.ties.items()
    }


def _differs(tie: dict[str, str]) -> str:
    return f"the engine was built for {tie['built']}, this machine has {tie['here']}"


def _lines(
    path: Path,
    manifest: Manifest | DetectorManifest,
    files: dict[str, dict[str, Any]],
    ties: dict[str, dict[str, str]],
) -> list[str]:
    lines = [
        row("manifest", str(path)),
        *(_network(manifest) if isinstance(manifest, Manifest) else _detector(manifest)),
        row("engine", f"{manifest.kind} on {manifest.device}"),
        row("precision", precision_text(manifest)),
        row("versions", _pairs(manifest.versions)),
        row("weights", manifest.weights_hash or "random, or not known"),
    ]
    if isinstance(manifest, Manifest):
        lines += [
            row("batch", ", ".join(map(str, manifest.buckets))),
            row("options", _pairs(_asked(manifest.options)) or "none"),
        ]
    if manifest.calibration:
        lines.append(row("calibrated", manifest.calibration))
    for name, tie in ties.items():
        lines.append(row("tied to", f"{name} {tie['built']} (here: {tie['here']})"))
    for name, state in files.items():
        size = "" if state["size"] is None else f" ({size_text(state['size'])})"
        lines.append(row("file", f"{name}{size} {state['sha256'][:12]} {state['state']}"))
    return lines + report_lines(manifest.report)


def _network(manifest: Manifest) -> list[str]:
    """How a pose network is fed and read."""
    spec = manifest.spec
    return [
        row("model", spec.name),
        row("input", _input(manifest)),
        row("convention", f"{spec.convention}, boxes x {spec.padding}"),
        row("output", f"{spec.output} {' and '.join(map(_sides, spec.results))}, {spec.method}"),
        row("joints", f"{spec.skeleton}: {', '.join(spec.joints.joints)}"),
    ]


def _detector(manifest: DetectorManifest) -> list[str]:
    """How a detector is fed and read."""
    spec = manifest.spec
    return [
        row("detector", spec.name),
        row("input", _input(manifest)),
        row("classes", ", ".join(spec.classes)),
    ]


def _input(manifest: Manifest | DetectorManifest) -> str:
    spec = manifest.spec
    order = "RGB" if spec.rgb else "BGR"
    mean, std = (",".join(f"{value:g}" for value in values) for values in (spec.mean, spec.std))
    return f"{spec.size[0]}x{spec.size[1]} {order}, mean {mean}, std {std}"


def _asked(options: Options) -> dict[str, Any]:
    """Those that are not as they are by default."""
    plain = Options().to_dict()
    return {name: value for name, value in options.to_dict().items() if value != plain[name]}


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
