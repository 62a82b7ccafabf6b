"""Where a network's ONNX graph comes from: `trained/`, or an export kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastpose.engines.manifest import file_hash, replaced
from fastpose.engines.options import Options
from fastpose.errors import BackendError, EngineError, WeightsError
from fastpose.models import model_spec, trained
from fastpose.models.spec import DetectorSpec, ModelSpec

GRAPH_PRECISIONS = ("f32", "bf16", "f16")
HALVES = ("rpn", "head")  # of a detector
NO_OPTIONS = Options()
LOG = logging.getLogger(__name__)


def is_trained(spec: ModelSpec | DetectorSpec) -> bool:
    """The model has a graph or weights in `trained/`."""
    graphs = (spec.name, f"{spec.name}.{HALVES[0]}")
    return any(map(trained.graph_path, graphs)) or trained.weights_path(spec.name) is not None


def read_spec(weights: Path) -> ModelSpec:
    """The model that a weight file belongs to, as the card beside it says.

    Warns where the card says that the file has not all weights of the model.

    Raises:
        WeightsError: the file or the card is missing or damaged, or they do not belong together.
        ModelError: the card is of a model that is not known.
    """
    if not weights.is_file():
        raise WeightsError(f"{weights}: no such file")
    path = weights.with_suffix(".json")
    card = trained.read_card(path)
    if card.get("weights_sha256") != file_hash(weights):
        raise WeightsError(f"{path}: not the card of {weights.name}: weights_sha256 differs")
    if card.get("random"):
        text = f"{weights}: {card['random']} tensors are random: its source did not have them"
        warnings.warn(text, UserWarning, stacklevel=3)
    return model_spec(str(card.get("name")))


def find_weights(spec: ModelSpec | DetectorSpec) -> Path | None:
    """The weight file of a registered model; None where it has random weights.

    Raises:
        WeightsError: the model is trained, but this install carries its graph alone.
    """
    weights = trained.weights_path(spec.name)
    if weights is None and is_trained(spec):
        raise WeightsError(
            f"{spec.name}: this install has its graph but not {spec.name}.safetensors, "
            "which torch needs"
        )
    return weights


def hash_of_weights(spec: ModelSpec | DetectorSpec, weights: Path | None = None) -> str:
    """SHA-256 of the weights that the model has without more said; "" for random ones.

    Args:
        spec: of the model.
        weights: a weight file instead.

    Raises:
        WeightsError: the weights or their card are damaged.
    """
    if weights is None and is_trained(spec):
        return str(trained.card(spec.name).get("weights_sha256", ""))
    return file_hash(weights) if weights else ""


def need_torch(name: str) -> None:
    """Refuse what can only be made from the module.

    Raises:
        BackendError: torch is not installed.
    """
    if find_spec("torch") is None:
        raise BackendError(
            f"{name} has no ONNX graph here and making one needs torch; "
            "install the extra: fastpose-inference[torch]"
        )


def find_graph(
    spec: ModelSpec,
    weights: Path | None = None,
    options: Options = NO_OPTIONS,
    precision: str = "f32",
) -> tuple[Path, str]:
    """The ONNX graph of a registered model and the hash of the weights in it.

    Args:
        spec: of the model, whether or not the graph options have changed it.
        weights: a weight file; None takes the trained graph, else the trained weights, else random
            ones. What has no graph yet is exported once into the user's cache, which the log says
            at its level INFO.
        options: those of the graph count.
        precision: "f32", or "f16" or "bf16" for a graph that carries these types itself: see
            `fastpose.engines.build.export_onnx`.

    Raises:
        ModelError: the network cannot be changed as the options say.
        BackendError: an export is needed and torch is not installed.
        WeightsError: the weights or the card are damaged or of another network.
        EngineError: the cache cannot be written.
        ValueError: a graph cannot have that precision.
    """
    if precision not in GRAPH_PRECISIONS:
        raise ValueError(
            f"precision must be one of {', '.join(GRAPH_PRECISIONS)}, got {precision!r}"
        )
    plain = precision == "f32" and not options.changes_graph
    graph = trained.graph_path(spec.name)
    if weights is None and plain and graph is not None:
        card = trained.card(spec.name)
        if card.get("graph_sha256") != file_hash(graph):
            raise WeightsError(f"{graph}: not the graph that {spec.name}.json describes")
        return graph, str(card.get("weights_sha256", ""))
    if weights is None:
        weights = find_weights(spec)
    weights_hash = file_hash(weights) if weights else ""
    output = "joints" if options.joints else spec.output
    key = _key(
        replace(spec, flip_inside=options.flip, output=output),
        weights_hash,
        options.stages,
        precision,
    )
    path = cache_folder() / f"{spec.name}-{key}.onnx"
    if not path.exists():
        _export(spec, weights, path, options, precision)
    return path, weights_hash


def float_graph(graph: Path, out: Path) -> Path:
    """A graph whose weights are float32 ones, without a Cast behind them.

    They have then the names that they have in an export, whatever way the graph was stored.

    Args:
        graph: the network in float32.
        out: the file to be written, where the graph stores weights as float16.

    Returns:
        `out`, or the graph itself where there is nothing to be changed.

    Raises:
        BackendError: onnx is not installed.
        EngineError: `out` cannot be written.
    """
    try:
        import onnx
    except ImportError:
        raise BackendError(
            f"{graph}: to store its weights as float32 needs onnx; install the extra: "
            "fastpose-inference[torch]"
        ) from None
    model = onnx.load(graph)
    if not store_float(model.graph):
        return graph
    with replaced(out) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    return out


def store_float(graph: Any) -> int:
    """Turn weights that are stored as float16 with a Cast behind them into float32 ones.

    Args:
        graph: an `onnx.GraphProto`, changed in place.

    Returns:
        How many they were.
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    stored = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT16}
    casts = [
        node
        for node in graph.node
        if node.op_type == "Cast"
        and node.input[0] in stored
        and any(one.name == "to" and one.i == TensorProto.FLOAT for one in node.attribute)
    ]
    for cast in casts:
        tensor = stored[cast.input[0]]
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, cast.output[0]))
        graph.node.remove(cast)
    return len(casts)


def find_halves(spec: DetectorSpec, weights: Path | None = None) -> tuple[Path, Path]:
    """The two ONNX graphs of a registered detector: proposals, and the head.

    Args:
        spec: of the detector.
        weights: as in `find_graph`, like the errors.
    """
    kept = [trained.graph_path(f"{spec.name}.{half}") for half in HALVES]
    if weights is None and all(kept):
        first, second = (path for path in kept if path)
        _check_halves(spec, first, second)
        return first, second
    weights = weights or find_weights(spec)
    key = _key(spec, file_hash(weights) if weights else "")
    first, second = (cache_folder() / f"{spec.name}-{key}.{half}.onnx" for half in HALVES)
    if not (first.exists() and second.exists()):
        _export_halves(spec, weights, first, second)
    return first, second


def _check_halves(spec: DetectorSpec, *paths: Path) -> None:
    hashes = trained.card(spec.name).get("graph_sha256")
    for half, path in zip(HALVES, paths, strict=True):
        if not isinstance(hashes, dict) or hashes.get(half) != file_hash(path):
            raise WeightsError(f"{path}: not the graph that {spec.name}.json describes")


def passed(spec: ModelSpec | DetectorSpec) -> frozenset[str]:
    """Low precisions that the card of the trained weights records as accurate enough."""
    if not is_trained(spec):
        return frozenset()
    records = trained.card(spec.name).get("low_precision", {})
    return frozenset(name for name, record in records.items() if record.get("passed") is True)


def _export(
    spec: ModelSpec, weights: Path | None, path: Path, options: Options, precision: str
) -> None:
    _prepare_export(spec.name, path.parent)
    from fastpose.engines.build import export_onnx, random_network
    from fastpose.models import create

    network = random_network(spec.name) if weights is None else create(spec.name, weights=weights)
    export_onnx(network, spec, path, half=False, options=options, precision=precision)


def _export_halves(spec: DetectorSpec, weights: Path | None, proposer: Path, head: Path) -> None:
    _prepare_export(spec.name, proposer.parent)
    from fastpose.engines.build import export_detector, random_detector
    from fastpose.models import create_detector

    network = random_detector(spec.name) if weights is None else create_detector(spec.name, weights)
    export_detector(network, spec, proposer, head, half=False)


def _prepare_export(name: str, folder: Path) -> None:
    need_torch(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(f"{folder}: cannot be made: {error.strerror}") from None
    LOG.info("%s: writing its ONNX graph into %s, once; this may take a minute", name, folder)


def cache_folder() -> Path:
    """Where what was made from the models is kept for this user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastpose"


def _key(spec: ModelSpec | DetectorSpec, *asked: str) -> str:
    """Hash of all that the graph follows from: spec, weights, the networks' and exporter's code."""
    folder = Path(str(import_module("fastpose.models").__file__)).parent
    here = Path(__file__)
    sources = [*sorted(folder.glob("*.py")), here.with_name("build.py"), here.with_name("typed.py")]
    parts = [json.dumps(spec.to_dict(), sort_keys=True), *asked, *map(file_hash, sources)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
