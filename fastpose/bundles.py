"""Build an engine into a bundle and verify it in pixels before anybody may use it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastpose import fixtures
from fastpose.engines import (
    BUCKETS,
    KINDS,
    Engine,
    Manifest,
    Options,
    changed_spec,
    choose_runtime,
    load_engine,
    open_request,
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
from fastpose.engines.engine import PRECISIONS, Floats, Job, Request
from fastpose.engines.manifest import check_buckets
from fastpose.engines.verify import Verification, verify_pictures
from fastpose.errors import EngineError
from fastpose.models import model_spec
from fastpose.models.spec import ModelSpec

CALIBRATION_WINDOWS = 300  # more change the ranges of the layers little and take their time
VERIFIED_WINDOWS = 200  # by each build, of pictures that somebody gives

Tell = Callable[[str], None]


def build_engine(
    model: str = "default",
    *,
    engine: str = "openvino",
    precision: str = "f32",
    device: str = "auto",
    buckets: Sequence[int] = BUCKETS,
    weights: str | Path | None = None,
    options: Options | None = None,
    calibration: str | Path | None = None,
    images: str | Path | None = None,
    allow: bool = False,
    out: str | Path | None = None,
    rebuild: bool = False,
    threads: int | None = None,
    progress: Tell | None = None,
) -> Path:
    """Write a bundle: the runtime's files, and the manifest that says how to feed and to read them.

    The engine is verified first: over the bounds of its precision there is no bundle.

    Args:
        model: a registered name.
        engine: "openvino", "onnxruntime", "torch" or "tensorrt".
        precision: "f32", "bf16", "f16" or "int8".
        device: "auto" or the runtime's name of a device, where the engine will run.
        buckets: batch sizes to compile for.
        weights: a weight file; None takes the trained weights, else random ones with a warning.
        options: what the graph does and what the runtime is asked; torch is compiled ("aot").
        calibration: for int8: a folder of pictures, or KIND:PATH of an annotated set, such as
            those that the engine will see.
        images: pictures to verify the engine with, in the same form; None takes the built-in ones.
        allow: write the bundle even where the verification fails; it says so in the manifest.
        out: the runtime's own file; None puts it into the user's cache, from where `open_engine`
            takes it.
        rebuild: build again what the cache has.
        threads: of the runtime while it builds; None leaves the number to it.
        progress: called with the name of each stage that begins.

    Returns:
        The path of the manifest.

    Raises:
        ModelError: no model has that name, or it cannot be changed as `options` says.
        BackendError: the runtime, the device or the precision is not there.
        WeightsError: the weights are damaged or of another network.
        DataError: the pictures cannot be used.
        EngineError: the build or the verification fails, or `out` cannot be written.
        ValueError: an argument is out of range.
    """
    kind = choose_runtime(engine, KINDS)
    runtime = runtime_module(kind)
    options = _for_a_file(kind, options or Options())
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    plain = model_spec(model)
    file = Path(weights) if weights else None
    if file is None and not source.is_trained(plain):
        warn_of_random_weights(plain)
    spec = changed_spec(plain, options)
    weights_hash = source.hash_of_weights(plain, file)
    ties = runtime.ties(options, device)
    suffix = runtime.suffix(precision, options)
    tell = progress or (lambda stage: None)
    given = _calibration(spec, precision, calibration, tell)
    job = Job(
        spec=spec,
        weights=file,
        precision=precision,
        device=device,
        buckets=check_buckets(buckets),
        options=options,
        threads=threads,
        calibration=given,
        timing_cache=source.cache_folder() / "timing",
        tell=tell,
    )

    def write(target: Path) -> Path:
        return write_bundle(
            target,
            lambda path: runtime.build(job, path),
            lambda path: _open(kind, job, path, weights_hash, tell),
            ties,
            verify=lambda opened: _verified(opened, file, images, allow, tell),
            calibration=_hash(given),
        )

    if out is not None:
        check_bundle_name(Path(out), suffix)
        return write(Path(out))
    target = built_file(plain, kind, precision, weights_hash, options, ties, suffix)
    with building(target):
        path = target.with_suffix(".json")
        if not rebuild and _is_built(path, job, _hash(given)):
            return path
        remove_stale(target)
        return write(target)


def verify_engine(
    path: str | Path,
    *,
    images: str | Path | None = None,
    weights: str | Path | None = None,
    limit: int | None = None,
    threads: int | None = None,
) -> Verification:
    """How far a bundle is from its network in f32, on this machine, in pixels of its input.

    Args:
        path: its manifest, or the runtime's file beside it.
        images: a folder of pictures, or KIND:PATH of an annotated set, which also gives what the
            accuracy changes; None takes the built-in pictures.
        weights: the file that it was built from, if it was not from the trained weights.
        limit: most windows that are looked at, as in `fixtures.windows`.
        threads: of both engines; None leaves the number to them.

    Raises:
        BackendError: its runtime, device or precision is not there.
        EngineError: it is damaged, does not fit this machine, or the weights are not its own.
        DataError: the pictures cannot be used.
    """
    engine = load_engine(path, threads=threads)
    try:
        file = Path(weights) if weights else None
        pictures = fixtures.windows(engine.manifest.spec, images, limit=limit, threads=threads)
        folder = Path(path).parent
        return verify_pictures(engine, pictures, folder=folder, weights=file, threads=threads)
    finally:
        engine.close()


def _for_a_file(kind: str, options: Options) -> Options:
    """The options of a file: torch's is compiled, since the module needs none."""
    options.check(kind)
    if options.compile == "compile":
        raise EngineError("what torch compiles when it is opened has no file; build aot instead")
    return replace(options, compile="aot") if kind == "torch" else options


def _calibration(
    spec: ModelSpec, precision: str, pictures: str | Path | None, tell: Tell
) -> Floats | None:
    if precision != "int8":
        if pictures is not None:
            raise ValueError(f"calibration is for int8, got precision {precision!r}")
        return None
    if pictures is None:
        raise EngineError(
            "int8 is calibrated with pictures such as the engine will see: give their folder as "
            "calibration"
        )
    tell("read pictures")
    return fixtures.windows(spec, pictures, limit=CALIBRATION_WINDOWS).windows


def _hash(windows: Floats | None) -> str:
    return "" if windows is None else hashlib.sha256(windows.tobytes()).hexdigest()


def _is_built(path: Path, job: Job, calibration: str) -> bool:
    """Whether the cache has a sound bundle with these batch sizes and this calibration."""
    if not path.is_file():
        return False
    try:
        manifest = Manifest.load(path)
        manifest.check_files(path)
    except EngineError:
        return False  # damaged: it is built again
    passed = bool((manifest.report or {}).get("passed"))
    return passed and (manifest.buckets, manifest.calibration) == (job.buckets, calibration)


def _open(kind: str, job: Job, path: Path, weights_hash: str, tell: Tell) -> Engine:
    tell("load")
    return open_request(
        kind,
        Request(
            spec=job.spec,
            file=path,
            weights_hash=weights_hash,
            device=job.device,
            precision=job.precision,
            passed=frozenset(),
            buckets=job.buckets,
            threads=job.threads,
            options=job.options,
        ),
    )


def _verified(
    engine: Engine, weights: Path | None, images: str | Path | None, allow: bool, tell: Tell
) -> dict[str, Any]:
    """The report of an engine that may be used.

    Raises:
        EngineError: it is over the bounds, and nobody allows that.
    """
    tell("verify")
    pictures = fixtures.windows(engine.manifest.spec, images, limit=VERIFIED_WINDOWS)
    found = verify_pictures(engine, pictures, weights=weights)
    if not found.passed and not allow:
        raise EngineError(
            f"{engine.manifest.name} in {engine.manifest.kind} is not what the module is: "
            f"{'; '.join(found.reasons)}"
        )
    return found.to_dict()
