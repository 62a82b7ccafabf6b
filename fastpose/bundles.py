"""Build an engine into a bundle and verify it in pixels before anybody may use it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any

from fastpose import fixtures
from fastpose.engines import (
    AUTO_PRECISIONS,
    BUCKETS,
    KINDS,
    Engine,
    Manifest,
    Options,
    asked_precision,
    changed_spec,
    choose_runtime,
    likely_kind,
    load_engine,
    names_file,
    open_engine,
    open_request,
    read_bundle,
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
from fastpose.engines.verify import Verification, reference_spec, verify_pictures
from fastpose.errors import BackendError, EngineError, ModelError, UnbuiltError, UnverifiedError
from fastpose.models import model_spec
from fastpose.models.spec import ModelSpec

CALIBRATION_WINDOWS = 300  # more change the ranges of the layers little and take their time
VERIFIED_WINDOWS = 200  # by each build, of pictures that somebody gives

Tell = Callable[[str], None]
LOG = logging.getLogger(__name__)


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
        calibration: for int8: a folder of pictures such as the engine will see, or KIND:PATH of an
            annotated set, of which the training part is used.
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
    # the code that a version-compatible plan carries is of this machine's own TensorRT, while it is
    # checked here; to run it later is for whoever opens the bundle to allow
    options = replace(options, host_code=options.host_code or options.version_compatible)
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
    given = _calibration(spec, precision, calibration, threads, tell)
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
            verify=lambda opened: _verified(opened, file, images, allow, threads, tell),
            calibration=_hash(given),
        )

    if out is not None:
        check_bundle_name(Path(out), suffix)
        return write(Path(out))
    target = built_file(plain, kind, precision, weights_hash, options, ties, device, suffix)
    with building(target):
        path = target.with_suffix(".json")
        if not rebuild and _is_built(path, job, _hash(given)):
            return path
        remove_stale(target)
        return write(target)


def refit_engine(
    path: str | Path,
    weights: str | Path,
    *,
    out: str | Path,
    images: str | Path | None = None,
    allow: bool = False,
    threads: int | None = None,
    progress: Tell | None = None,
) -> Path:
    """Write a bundle with other weights of the same network, in seconds instead of minutes.

    Args:
        path: a bundle of TensorRT that was built with `Options.refit`, or its plan.
        weights: a weight file of its model.
        out: the new plan.
        images: as in `build_engine`, like the rest.
        allow: as there.
        threads: as there.
        progress: as there.

    Returns:
        The path of the new manifest.

    Raises:
        BackendError: the bundle was not built for that, or its runtime is not there.
        WeightsError: the weights are damaged or of another network.
        EngineError: the bundle is damaged or does not fit this machine, the verification fails, or
            `out` cannot be written.
        DataError: the pictures cannot be used.
    """
    manifest, path = read_bundle(Path(path))
    file, out = Path(weights), Path(out)
    options = manifest.options
    if not isinstance(manifest, Manifest) or not options.refit:
        raise BackendError(f"{path}: refit: the engine was built without this option")
    kind = choose_runtime(manifest.kind, KINDS)
    runtime = runtime_module(kind)
    manifest.check_ties(path, runtime.ties(options, manifest.device, manifest.ties))
    manifest.check_files(path)
    check_bundle_name(out, runtime.suffix(manifest.precision_asked, options))
    tell = progress or (lambda stage: None)
    job = Job(
        spec=manifest.spec,
        weights=file,
        precision=manifest.precision_asked,
        device=manifest.device,
        buckets=manifest.buckets,
        options=options,
        threads=threads,
        calibration=None,
        timing_cache=None,
        tell=tell,
    )

    def make(target: Path) -> list[Path]:
        tell("refit")
        plan = path.with_name(manifest.file)
        target.write_bytes(runtime.refit(plan, file, device=manifest.device))
        others = [name for name in manifest.files if name != manifest.file]
        return [target, *(_beside(path.with_name(name), plan, target) for name in others)]

    weights_hash = source.hash_of_weights(model_spec(manifest.name), file)
    return write_bundle(
        out,
        make,
        lambda target: _open(kind, job, target, weights_hash, tell),
        manifest.ties,
        verify=lambda opened: _verified(opened, file, images, allow, threads, tell),
    )


def _beside(companion: Path, plan: Path, target: Path) -> Path:
    """Copy a companion of a plan, such as a.decode.cubin of a.plan, to one of its successor."""
    copy = target.with_name(target.stem + companion.name.removeprefix(plan.stem))
    copyfile(companion, copy)
    return copy


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
        EngineError: it is damaged, does not fit this machine, is not fed and read as its network
            is, or the weights are not its own.
        DataError: the pictures cannot be used.
    """
    engine = load_engine(path, threads=threads)
    try:
        file = Path(weights) if weights else None
        # cut as the network is registered, not as the bundle says that it is fed
        spec = reference_spec(engine.manifest)
        pictures = fixtures.windows(spec, images, limit=limit, threads=threads)
        folder = Path(path).parent
        return verify_pictures(engine, pictures, folder=folder, weights=file, threads=threads)
    finally:
        engine.close()


def open_or_build(
    model: str | Path,
    *,
    kind: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    buckets: Sequence[int] = BUCKETS,
    threads: int | None = None,
    single_view: bool = False,
    options: Options | None = None,
    progress: Tell | None = None,
) -> Engine:
    """`open_engine`, building first what is not there yet or does not fit this machine any more.

    A bundle that was built elsewhere, or for another version, is replaced by one of this machine.

    Args:
        model: as in `open_engine`, like the rest and the errors.
        kind: as there.
        device: as there.
        precision: as there; for "auto" a low precision is built that the model's card records as
            accurate enough, else "f32".
        buckets: as there.
        threads: as there.
        single_view: as there.
        options: as there.
        progress: as in `build_engine`, like its errors.
    """

    def opened() -> Engine:
        return open_engine(
            model,
            kind=kind,
            device=device,
            precision=precision,
            buckets=buckets,
            threads=threads,
            single_view=single_view,
            options=options,
        )

    try:
        return opened()
    except UnbuiltError as error:
        if precision == "int8":
            raise  # it takes pictures, and the text says where they are given
        LOG.info("%s: building it", error)
    if names_file(model):
        _build_again(Path(model), threads, progress)
    else:
        weights = Path(model) if str(model).endswith(".safetensors") else None
        spec = source.read_spec(weights) if weights else model_spec(str(model))
        build_engine(
            spec.name,
            engine=likely_kind(kind, device),
            precision=_best_precision(spec, weights) if precision == "auto" else precision,
            device=device,
            buckets=buckets,
            weights=weights,
            options=options,
            threads=threads,
            progress=progress,
        )
    return opened()


def _best_precision(spec: ModelSpec, weights: Path | None) -> str:
    passed = frozenset() if weights else source.passed(spec)
    return next((name for name in AUTO_PRECISIONS if name in passed), "f32")


def _build_again(path: Path, threads: int | None, progress: Tell | None) -> None:
    """Replace a bundle by one that was built here from the same weights, as it was.

    Raises:
        EngineError: it was built from weights or a network that are not here, or needs pictures.
    """
    manifest, path = read_bundle(path)
    assert isinstance(manifest, Manifest), "a detector's bundle is refused before"
    try:
        here = source.hash_of_weights(model_spec(manifest.name))
    except ModelError:
        here = None
    if here != manifest.weights_hash:
        raise EngineError(
            f"{path}: weights_hash: it was built from other weights than those of "
            f"{manifest.name} here, so it cannot be built again"
        )
    if manifest.calibration:
        raise EngineError(
            f"{path}: calibration: it was calibrated with pictures that are not here, so it "
            "cannot be built again"
        )
    build_engine(
        manifest.name,
        engine=manifest.kind,
        precision=asked_precision(manifest),
        device=manifest.device,
        buckets=manifest.buckets,
        options=manifest.options,
        out=path.with_name(manifest.file),
        threads=threads,
        progress=progress,
    )


def _for_a_file(kind: str, options: Options) -> Options:
    """The options of a file: torch's is compiled, since the module needs none."""
    options.check(kind)
    if options.compile == "compile":
        raise EngineError("what torch compiles when it is opened has no file; build aot instead")
    return replace(options, compile="aot") if kind == "torch" else options


def _calibration(
    spec: ModelSpec,
    precision: str,
    pictures: str | Path | None,
    threads: int | None,
    tell: Tell,
) -> Floats | None:
    if precision != "int8":
        if pictures is not None:
            raise ValueError(f"calibration is for int8, got precision {precision!r}")
        return None
    if pictures is None:
        raise EngineError(
            "int8 is calibrated with pictures such as the engine will see: --calibration DIR (from "
            "Python, calibration=DIR)"
        )
    tell("read pictures")
    most = CALIBRATION_WINDOWS
    return fixtures.windows(spec, pictures, limit=most, threads=threads, split="train").windows


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
    engine: Engine,
    weights: Path | None,
    images: str | Path | None,
    allow: bool,
    threads: int | None,
    tell: Tell,
) -> dict[str, Any]:
    """The report of an engine that may be used.

    Raises:
        UnverifiedError: it is over the bounds, and nobody allows that.
    """
    tell("verify")
    spec, most = reference_spec(engine.manifest), VERIFIED_WINDOWS
    pictures = fixtures.windows(spec, images, limit=most, threads=threads)
    found = verify_pictures(engine, pictures, weights=weights, threads=threads)
    if not found.passed and not allow:
        raise UnverifiedError(
            f"{engine.manifest.name} in {engine.manifest.kind} is not what the module is: "
            f"{'; '.join(found.reasons)}",
            found.to_dict(),
        )
    return found.to_dict()
