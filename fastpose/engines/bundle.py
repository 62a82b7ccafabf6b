"""How a bundle comes to be: whole or not at all, once for all who want it, in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fastpose.engines import source
from fastpose.engines.manifest import DetectorManifest, Manifest, file_hash, hash_files
from fastpose.engines.options import Options
from fastpose.errors import EngineError, FastposeError
from fastpose.models.spec import DetectorSpec, ModelSpec


class Opened(Protocol):
    """What an engine and a detector have in common."""

    @property
    def manifest(self) -> Manifest | DetectorManifest:
        """What it is; its files, ties and report need not be there yet."""

    def run(self, count: int) -> Any:
        """Run it once, with whatever lies in its input."""

    def close(self) -> None:
        """Free it."""


OpenedT = TypeVar("OpenedT", bound=Opened)


def write_bundle(
    out: Path,
    make: Callable[[Path], list[Path]],
    open_file: Callable[[Path], OpenedT],
    ties: Mapping[str, str],
    *,
    verify: Callable[[OpenedT], dict[str, Any] | None] | None = None,
    calibration: str = "",
) -> Path:
    """Make a runtime's files, run them once, and put them in place with their manifest.

    All is made in a folder of its own beside `out`, which is gone afterwards whatever happens; the
    manifest comes last, so that there is a bundle or none.

    Args:
        out: the runtime's own file; the manifest beside it ends in .json.
        make: writes files into the folder of the path it is given, the runtime's own first.
        open_file: the engine of that file.
        ties: as in `Manifest`, like the last.
        verify: says how far the engine is off, or raises EngineError.
        calibration: see there.

    Returns:
        The path of the manifest.

    Raises:
        EngineError: the folder cannot be written, or what `make`, `open_file`, `verify` raise.
    """
    path = out.with_suffix(".json")
    with _workshop(out) as folder:
        files = make(folder / out.name)
        engine = open_file(files[0])
        try:
            engine.run(1)
            report = verify(engine) if verify else None
        finally:
            engine.close()
        description = folder / path.name
        manifest = replace(
            engine.manifest,
            files=hash_files(files),
            ties=dict(ties),
            report=report,
            calibration=calibration,
        )
        manifest.save(description)
        with folder_lock(out.parent, fcntl.LOCK_EX):
            for file in (*files, description):
                file.replace(out.with_name(file.name))
    return path


@contextmanager
def folder_lock(folder: Path, operation: int) -> Iterator[None]:
    """Keep a bundle whole while its files change, and others from reading it meanwhile.

    Args:
        folder: where it lies.
        operation: `fcntl.LOCK_EX` to change it, `fcntl.LOCK_SH` to read it.
    """
    place = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system has locks; hashes then tell
            fcntl.flock(place, operation)
        yield
    finally:
        os.close(place)


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """A folder beside `out`, on the same disk, so that files are renamed into place."""
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{out.stem}.", suffix=".part", dir=out.parent, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)
    except FastposeError:
        raise
    except OSError as error:
        raise EngineError(f"{out}: cannot be written: {error.strerror or error}") from None


def check_bundle_name(out: Path, suffix: str) -> None:
    """Refuse a name that a bundle cannot have, or whose manifest would replace another file.

    Args:
        out: the runtime's own file.
        suffix: that it must have.

    Raises:
        EngineError: it has another; or the manifest's place is taken by another sort of file, which
            may be all that somebody has of a skeleton or of annotations, or by the manifest of
            another sort of engine, whose file would be without one.
    """
    if out.suffix != suffix:
        raise EngineError(f"{out}: the file of this engine must end in {suffix}")
    path = out.with_suffix(".json")
    if not path.exists():
        return
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict) or not {"schema", "spec", "kind"} <= values.keys():
        raise EngineError(
            f"{path}: is there already and is no manifest of an engine; "
            "give the bundle another name"
        )
    files = values.get("files")
    main = next(iter(files), out.name) if isinstance(files, dict) else out.name
    whole = suffix == path.suffix  # a detector's, whose graphs have names of their own
    if (values.get("what") != DetectorManifest.WHAT) if whole else (Path(main).suffix != suffix):
        raise EngineError(
            f"{path}: is there already and describes {main}; give the bundle another name"
        )


def built_file(
    spec: ModelSpec | DetectorSpec,
    kind: str,
    precision: str,
    weights_hash: str,
    options: Options,
    ties: Mapping[str, str],
    device: str,
    suffix: str,
) -> Path:
    """Where in the user's cache the engine lies, or would, that is built from these.

    Args:
        spec: the network, before the graph options change it.
        kind: as in `Manifest`.
        precision: one of `PRECISIONS`.
        weights_hash: as in `Manifest`.
        options: those that the file depends on count.
        ties: as in `Manifest`: another version or GPU has another file.
        device: "auto" or the runtime's name of a device: what was verified on one is not on
            another.
        suffix: of the runtime's own file.
    """
    parts = [
        json.dumps(spec.to_dict(), sort_keys=True),
        kind,
        precision,
        weights_hash,
        json.dumps(options.build_flags(), sort_keys=True),
        json.dumps(dict(ties), sort_keys=True),
        _device_name(kind, device),
        *map(file_hash, _sources()),
    ]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    folder = source.cache_folder() / "engines" / f"{spec.name}-{kind}-{precision}-{key}"
    return folder / f"{spec.name}{suffix}"


def find_built(
    spec: ModelSpec | DetectorSpec,
    kind: str,
    precision: str,
    weights_hash: str,
    options: Options,
    ties: Mapping[str, str],
    device: str,
) -> Path | None:
    """The manifest of `built_file`, if it has been built; arguments as there."""
    path = built_file(spec, kind, precision, weights_hash, options, ties, device, ".json")
    return path if path.is_file() else None


def _device_name(kind: str, device: str) -> str:
    """The device as one name, whichever of its names was used."""
    default = "cuda" if kind == "tensorrt" else "cpu"
    name = default if device == "auto" else device.lower()
    return name.removesuffix(":0")


@contextmanager
def building(out: Path) -> Iterator[None]:
    """Make the folder of a cached engine, and wait for whoever is building there.

    Raises:
        EngineError: the folder cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = (out.parent / ".lock").open("w")
    except OSError as error:
        raise EngineError(f"{out.parent}: cannot be written: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the file, and so with a process that dies
        yield


def remove_stale(out: Path) -> None:
    """Remove what builders that were killed have left beside `out`; nobody builds there now."""
    for folder in out.parent.glob(f".{out.stem}.*.part"):
        shutil.rmtree(folder, ignore_errors=True)


def _sources() -> list[Path]:
    """The code that a file follows from: of the networks, the kernels and the runtimes."""
    packages = ("fastpose.models", "fastpose.ops", "fastpose.engines")
    folders = [Path(str(import_module(name).__file__)).parent for name in packages]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]
