"""From a trained network to what is published: weights, graph, and a card that tells all."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from fastpose import __version__
from fastpose.datasets import TERMS, BoxData, PoseData
from fastpose.detect.fpn import TwoStageDetector
from fastpose.engines import Engine, open_graph, open_network
from fastpose.engines.build import export_detector, export_onnx
from fastpose.engines.manifest import file_hash
from fastpose.engines.source import HALVES
from fastpose.engines.verify import BATCH, BOUNDS, verify
from fastpose.errors import BackendError
from fastpose.evaluate import FLOOR, evaluate_detector, evaluate_model
from fastpose.fixtures import annotated
from fastpose.models import create, create_detector
from fastpose.models.fpn import FPNDetector
from fastpose.models.spec import DetectorSpec, ModelSpec
from fastpose.models.weights import save_weights
from fastpose.train.loop import Recipe

KINDS = ("openvino", "onnxruntime")
LOW = "bf16"


def release(
    network: nn.Module,
    spec: ModelSpec,
    folder: Path,
    *,
    sets: Sequence[PoseData],
    recipe: Recipe,
    command: str,
    start: Path | None = None,
    validation: PoseData | None = None,
) -> dict[str, Any]:
    """Write `<name>.safetensors`, `<name>.onnx` and the card `<name>.json` into `folder`.

    What is measured is what was written: the weights are read back, rounded as they are kept.

    Args:
        network: the trained network, on the CPU.
        spec: of it.
        folder: exists.
        sets: what it was trained on.
        recipe: how.
        command: that repeats it.
        start: the weight file that training started from; None for random weights.
        validation: what it is measured on, with every runtime that is installed; None leaves the
            card without accuracy, and low precisions without a pass.

    Returns:
        The card.
    """
    weights, graph = folder / f"{spec.name}.safetensors", folder / f"{spec.name}.onnx"
    save_weights(network.state_dict(), weights)
    export_onnx(create(spec.name, weights), spec, graph)
    card = _card("pose", spec, sets, recipe, command, start, weights)
    card["graph_sha256"] = file_hash(graph)
    if validation is not None:
        card |= _measure(graph, weights, spec, validation)
    _write(card, folder)
    return card


def release_detector(
    network: FPNDetector,
    spec: DetectorSpec,
    folder: Path,
    *,
    sets: Sequence[BoxData],
    recipe: Recipe,
    command: str,
    start: Path | None = None,
    notes: str = "",
    terms: str = "",
    validation: Sequence[tuple[str, BoxData]] = (),
) -> dict[str, Any]:
    """Write a detector's weights, its two graphs `<name>.rpn.onnx` and `<name>.head.onnx`, a card.

    Args:
        network: as in `release`.
        spec: as there.
        folder: as there.
        sets: as there.
        recipe: as there.
        command: as there.
        start: as there.
        notes: what else a user must know of the labels.
        terms: of the sets of boxes, which the project does not know by name.
        validation: name and pictures of each set that it is measured on.

    Returns:
        The card.
    """
    weights = folder / f"{spec.name}.safetensors"
    graphs = {half: folder / f"{spec.name}.{half}.onnx" for half in HALVES}
    save_weights(network.state_dict(), weights)
    export_detector(create_detector(spec.name, weights), spec, graphs["rpn"], graphs["head"])
    card = _card("detector", spec, sets, recipe, command, start, weights, terms)
    card["graph_sha256"] = {half: file_hash(path) for half, path in graphs.items()}
    if notes:
        card["notes"] = [notes]
    if validation:
        card |= _measure_detector(graphs, spec, validation)
    _write(card, folder)
    return card


def _card(
    kind: str,
    spec: ModelSpec | DetectorSpec,
    sets: Sequence[PoseData | BoxData],
    recipe: Recipe,
    command: str,
    start: Path | None,
    weights: Path,
    terms: str = "",
) -> dict[str, Any]:
    known = [TERMS[s.name] for s in sets if not (terms and s.name == "boxes")]
    return {
        "name": spec.name,
        "kind": kind,
        "spec": spec.to_dict(),
        "data": [{"kind": s.name, "samples": len(s), "terms": TERMS[s.name]} for s in sets],
        "terms": "trained on research data: "
        + " ".join(dict.fromkeys([*known, terms] if terms else known)),
        "recipe": asdict(recipe),
        "command": command,
        "start": None if start is None else {"file": start.name, "sha256": file_hash(start)},
        "version": __version__,
        "commit": _commit(),
        "weights_sha256": file_hash(weights),
    }


def _write(card: dict[str, Any], folder: Path) -> None:
    (folder / f"{card['name']}.json").write_text(json.dumps(card, indent=1) + "\n")


def _measure_detector(
    graphs: dict[str, Path], spec: DetectorSpec, validation: Sequence[tuple[str, BoxData]]
) -> dict[str, Any]:
    """Accuracy of every engine that runs here; a low precision passes by its loss of det_ap50."""
    figures: dict[str, dict[str, Any]] = {}
    low: dict[str, Any] = {}
    for kind, precision in ((k, p) for k in KINDS for p in ("f32", LOW)):
        try:
            halves = [open_graph(g, kind=kind, precision=precision) for g in graphs.values()]
        except BackendError:
            continue  # this machine or this runtime does not compute in it
        detector = TwoStageDetector(spec, *halves, score=FLOOR)
        name = f"{kind} {precision}"
        figures[name] = {
            label: evaluate_detector(detector, data).to_dict() for label, data in validation
        }
        detector.close()
        if precision == LOW:
            exact = figures[f"{kind} f32"]
            loss = max(exact[k]["det_ap50"] - v["det_ap50"] for k, v in figures[name].items())
            low[precision] = {
                "engine": kind,
                "loss": round(100 * loss, 3),
                "passed": 100 * loss <= BOUNDS[LOW].loss,
            }
    return {
        "accuracy": {
            f"{metric} {label}": value
            for label, found in figures["openvino f32"].items()
            for metric, value in found.items()
            if metric in ("det_ap50", "recall")
        },
        "measured_on": [{"set": label, "images": len(data)} for label, data in validation],
        "engines": figures,
        "low_precision": low,
    }


def _measure(graph: Path, weights: Path, spec: ModelSpec, data: PoseData) -> dict[str, Any]:
    """Accuracy of every engine that runs here, and how far bf16 moves the module's joints."""
    figures: dict[str, Any] = {}
    low: dict[str, Any] = {}
    reference = open_network(weights, spec, kind="torch", precision="f32")
    for kind, precision in ((k, p) for k in KINDS for p in ("f32", LOW)):
        try:
            engine = open_network(graph, spec, kind=kind, precision=precision)
        except BackendError:
            continue  # this machine or this runtime does not compute in it
        report = evaluate_model(engine, data)
        figures[f"{kind} {precision}"] = report.to_dict()
        if precision == LOW:
            low[precision] = {"engine": kind, **_compare(reference, engine, data)}
    first = figures["openvino f32"]
    return {
        "accuracy": {k: v for k, v in first.items() if k != "per_joint"},
        "measured_on": {"kind": data.name, "images": len(data), "flip": False},
        "engines": figures,
        "low_precision": low,
    }


def _compare(reference: Engine, engine: Engine, data: PoseData) -> dict[str, Any]:
    """Whether an engine may take the module's place, and by which figures."""
    pictures = annotated(engine.manifest.spec, data)
    batches = pictures.batches(BATCH)
    try:
        found = verify(reference, engine, batches, source=data.name, truth=pictures.truth)
    except ValueError as error:  # barely trained: no joint scores enough to be compared
        return {"passed": False, "why": str(error)}
    loss = {} if found.metric is None else {"loss": round(found.metric.loss, 3)}
    why = {} if found.passed else {"why": "; ".join(found.reasons)}
    return loss | {"passed": found.passed} | why | {"shift": found.to_dict()["shift"]}


def _commit() -> str | None:
    """Of the checkout this code runs from; None outside one."""
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
