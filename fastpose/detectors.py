"""Build a detector into a bundle, and verify it in boxes before anybody may use it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.detect.fpn import TwoStageDetector
from fastpose.engines import (
    DetectorManifest,
    choose_runtime,
    joint_precision,
    open_detector_bundle,
    open_pair,
    runtime_module,
    source,
    warn_of_random_weights,
)
from fastpose.engines.bundle import (
    building,
    built_file,
    check_bundle_name,
    remove_stale,
    write_bundle,
)
from fastpose.engines.engine import PRECISIONS, BuiltGraph
from fastpose.engines.options import Options
from fastpose.engines.source import HALVES
from fastpose.engines.verify import reference_halves
from fastpose.engines.verify_detector import BoxVerification, verify_detector
from fastpose.errors import BackendError, DataError, EngineError, UnverifiedError
from fastpose.evaluate import FLOOR
from fastpose.fixtures import Scenes, scenes
from fastpose.models import detector_spec
from fastpose.models.spec import DetectorSpec

KINDS = ("openvino", "onnxruntime")  # that a detector is built for
CALIBRATION_PICTURES = 64  # a detector's input is large, and each picture gives many boxes
VERIFIED_PICTURES = 64
FLOAT_HEAD = 1  # layers before the results that int8 leaves in float; two were most of them
BLANK = 64  # side of the frame that shows that it runs

Image = npt.NDArray[np.uint8]
Feeds = dict[str, npt.NDArray[Any]]
Tell = Callable[[str], None]


def build_detector(
    model: str = "default",
    *,
    engine: str = "openvino",
    precision: str = "f32",
    device: str = "auto",
    weights: str | Path | None = None,
    calibration: str | Path | None = None,
    images: str | Path | None = None,
    allow: bool = False,
    out: str | Path | None = None,
    rebuild: bool = False,
    threads: int | None = None,
    progress: Tell | None = None,
) -> Path:
    """Write a bundle of a detector: its two graphs, and the manifest that `open_detector` takes.

    It is verified first: over the bounds of its precision there is no bundle.

    Args:
        model: a registered name.
        engine: "openvino" or "onnxruntime".
        precision: as in `fastpose.build_engine`, like the rest and the errors.
        device: as there.
        weights: as there.
        calibration: as there; the head is calibrated with the boxes that are proposed in these.
        images: as there; an annotated set is boxes:DIR.
        allow: as there.
        out: the manifest, ending in .json; the graphs beside it are NAME.rpn and NAME.head.
        rebuild: as there.
        threads: as there.
        progress: as there.

    Returns:
        The path of the manifest.
    """
    spec, kind = detector_spec(model), _runtime(engine, precision)
    file = Path(weights) if weights else None
    if file is None and not source.is_trained(spec):
        warn_of_random_weights(spec)
    work = _Work(
        spec=spec,
        kind=kind,
        precision=precision,
        device=device,
        weights=file,
        pictures=_calibration(precision, calibration),
        images=images,
        allow=allow,
        threads=threads,
        tell=progress or (lambda stage: None),
    )
    if out is not None:
        return work.write(_checked_name(Path(out)))
    target = work.place
    with building(target):
        if not rebuild and _is_built(target, work.calibration):
            return target
        remove_stale(target)
        return work.write(target)


def verify_detector_bundle(
    path: str | Path,
    *,
    images: str | Path | None = None,
    weights: str | Path | None = None,
    limit: int | None = None,
    threads: int | None = None,
) -> BoxVerification:
    """How far a detector's bundle is from its network in f32, on this machine, in its boxes.

    Args:
        path: its manifest.
        images: as in `fastpose.verify_engine`, like the rest and the errors; an annotated set is
            boxes:DIR.
        weights: as there.
        limit: most pictures that are looked at.
        threads: as there.
    """
    manifest, *graphs = open_detector_bundle(path, threads=threads)
    with closing(BuiltDetector(manifest, *graphs)) as built:
        file = Path(weights) if weights else None
        return _verify(built, file, images, limit or VERIFIED_PICTURES, threads)


class BuiltDetector:
    """A detector's two graphs with their description.

    Attributes:
        manifest: what it is.
        detector: what finds the people.
        layers: arithmetic layers of both graphs by precision, as the runtime reports them here.
    """

    def __init__(self, manifest: DetectorManifest, proposer: BuiltGraph, head: BuiltGraph) -> None:
        self.manifest, self.layers = manifest, _layers(proposer, head)
        self.detector = TwoStageDetector(manifest.spec, proposer, head, score=FLOOR)

    def run(self, count: int) -> None:
        """Look at so many blank frames."""
        self.detector([np.zeros((BLANK, BLANK, 3), np.uint8)] * count)

    def close(self) -> None:
        """Free both graphs."""
        self.detector.close()


@dataclass(frozen=True)
class _Work:
    """What a detector is built from; the fields are those of `build_detector`."""

    spec: DetectorSpec
    kind: str
    precision: str
    device: str
    weights: Path | None
    pictures: Scenes | None
    images: str | Path | None
    allow: bool
    threads: int | None
    tell: Tell

    @property
    def place(self) -> Path:
        """The manifest's in the user's cache."""
        return built_file(
            self.spec,
            self.kind,
            self.precision,
            self._weights_hash,
            Options(),
            self._ties,
            self.device,
            ".json",
        )

    @property
    def calibration(self) -> str:
        """See `Manifest`."""
        return self.pictures.hash if self.pictures is not None else ""

    def write(self, path: Path) -> Path:
        """See `write_bundle`."""
        return write_bundle(
            path,
            self._make,
            self._open,
            self._ties,
            verify=self._verified,
            calibration=self.calibration,
        )

    @cached_property
    def _weights_hash(self) -> str:
        return source.hash_of_weights(self.spec, self.weights)

    @cached_property
    def _ties(self) -> dict[str, str]:
        ties: dict[str, str] = runtime_module(self.kind).ties(Options(), self.device)
        return ties

    def _make(self, target: Path) -> list[Path]:
        """The two graphs, then what belongs to them."""
        self.tell("export")
        halves = source.find_halves(self.spec, self.weights)
        if self.pictures is None:
            return [
                _copied(graph, _half(target, half))
                for graph, half in zip(halves, HALVES, strict=True)
            ]
        self.tell("calibrate")
        return self._quantized(halves, target)

    def _open(self, first: Path) -> BuiltDetector:
        self.tell("load")
        files = (first, first.with_name(first.name.replace(f".{HALVES[0]}.", f".{HALVES[1]}.")))
        graphs = open_pair(files, self.kind, self.device, self.precision, self.threads)
        manifest = DetectorManifest(
            spec=self.spec,
            kind=self.kind,
            precision=joint_precision(*graphs),
            precision_asked=self.precision,
            device=graphs[0].place,
            versions=graphs[0].versions,
            weights_hash=self._weights_hash,
            layers=_layers(*graphs),
        )
        return BuiltDetector(manifest, *graphs)

    def _verified(self, built: BuiltDetector) -> dict[str, Any]:
        """The report of a detector that may be used.

        Raises:
            UnverifiedError: it is over the bounds, and nobody allows that.
        """
        self.tell("verify")
        found = _verify(built, self.weights, self.images, VERIFIED_PICTURES, self.threads)
        if not found.passed and not self.allow:
            raise UnverifiedError(
                f"{self.spec.name} in {self.kind} is not what the module is: "
                f"{'; '.join(found.reasons)}",
                found.to_dict(),
            )
        return found.to_dict()

    def _quantized(self, halves: tuple[Path, Path], target: Path) -> list[Path]:
        """Both graphs in int8, each calibrated with what reaches it in f32 from the pictures."""
        assert self.pictures is not None, "int8 alone comes here"
        graphs = open_pair(halves, self.kind, self.device, "f32", self.threads)
        recorders = [_Recorder(graph) for graph in graphs]
        with closing(TwoStageDetector(self.spec, *recorders, score=self.spec.score)) as detector:
            for frame in self.pictures:
                detector([frame])
        if not recorders[1].samples:
            raise DataError(
                f"{self.pictures.name}: nobody is proposed in its pictures: "
                "the head cannot be calibrated"
            )
        self.tell("quantise")
        quantize = runtime_module(self.kind).quantize_graph
        mains, others = [], []
        for graph, half, recorder in zip(halves, HALVES, recorders, strict=True):
            out = _half(target, half).with_suffix(".xml")
            main, *rest = quantize(graph, recorder.samples, out, head=FLOAT_HEAD)
            mains.append(main)
            others += rest
        return [*mains, *others]


class _Recorder:
    """A graph of one input that keeps what it is fed."""

    def __init__(self, graph: BuiltGraph) -> None:
        self.samples: list[npt.NDArray[Any]] = []
        self.kind, self.precision = graph.kind, graph.precision
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._graph = graph

    def __call__(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Feeds:
        self.samples += [array.copy() for array in feeds.values()]
        return self._graph(feeds)

    def close(self) -> None:
        self._graph.close()


def _calibration(precision: str, given: str | Path | None) -> Scenes | None:
    """The pictures for int8, None for the others.

    Raises:
        EngineError: int8 has none.
        ValueError: another precision has some.
    """
    if precision != "int8":
        if given is not None:
            raise ValueError(f"calibration is for int8, got precision {precision!r}")
        return None
    if given is None:
        raise EngineError(
            "int8 is calibrated with pictures such as the detector will see: give their folder as "
            "calibration"
        )
    return scenes(given, limit=CALIBRATION_PICTURES)


def _runtime(engine: str, precision: str) -> str:
    """The runtime, where a detector can be built for it in this precision.

    Raises:
        BackendError: it cannot, or the runtime is not there.
        ValueError: it is no precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if engine not in KINDS:
        raise BackendError(
            f"detectors are not built for engine {engine!r} yet; choose from: {', '.join(KINDS)}"
        )
    kind = choose_runtime(engine, KINDS)
    if precision == "int8" and kind != "openvino":
        raise BackendError(f"a detector's int8 is built for openvino, not for {kind}")
    return kind


def _layers(*graphs: BuiltGraph) -> dict[str, int]:
    return dict(sum((Counter(graph.layers) for graph in graphs), Counter()))


def _half(target: Path, half: str) -> Path:
    """The file of a half, given the manifest's: an ONNX graph."""
    return target.with_name(f"{target.stem}.{half}.onnx")


def _copied(graph: Path, target: Path) -> Path:
    copyfile(graph, target)
    return target


def _checked_name(out: Path) -> Path:
    """Where the manifest goes; see `check_bundle_name`."""
    if out.suffix != ".json":
        raise EngineError(f"{out}: a detector has two graphs: give the .json beside them")
    check_bundle_name(out, ".json")
    return out


def _is_built(path: Path, calibration: str) -> bool:
    """Whether the cache has a sound bundle that passed, with this calibration."""
    if not path.is_file():
        return False
    try:
        manifest = DetectorManifest.load(path)
        manifest.check_files(path)
    except EngineError:
        return False  # damaged: it is built again
    return bool((manifest.report or {}).get("passed")) and manifest.calibration == calibration


def _verify(
    built: BuiltDetector,
    weights: Path | None,
    images: str | Path | None,
    limit: int,
    threads: int | None,
) -> BoxVerification:
    manifest, pictures = built.manifest, scenes(images, limit=limit)
    spec = detector_spec(manifest.name)
    graphs = reference_halves(
        spec, manifest.weights_hash, kind=manifest.kind, weights=weights, threads=threads
    )
    with closing(TwoStageDetector(spec, *graphs, score=FLOOR)) as reference:
        return verify_detector(
            reference,
            built.detector,
            pictures,
            source=pictures.name,
            precision=manifest.precision_asked,
            layers=built.layers,
            truth=pictures.truth,
        )
