"""What an engine was built from, as a JSON file beside it; compared with the machine on load."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from fastpose import __version__
from fastpose.engines.options import Options
from fastpose.errors import EngineError, FastposeError, ModelError, UnbuiltError
from fastpose.models.spec import DetectorSpec, ModelSpec

SCHEMA = 2
BLOCK = 1 << 20  # bytes of a file that are in memory at once

Bundle = TypeVar("Bundle", bound="Description")


@dataclass(frozen=True, kw_only=True)
class Description:
    """What every bundle says of itself.

    Attributes:
        spec: how the network is fed and read.
        kind: the runtime: "openvino", "onnxruntime", "torch" or "tensorrt".
        precision: in which it computes, as the runtime reports it: "f32", "bf16", "f16" or "int8".
        precision_asked: what was asked for, "auto" included.
        device: in the runtime's own words, such as "CPU".
        versions: of the runtime and of fastpose, by package.
        weights_hash: SHA-256 of the weight file that the network was built from; "" for random
            weights and where it is not known.
        layers: how many layers compute in each precision, as the runtime reports; {} where it
            does not.
        ties: what the files are tied to, such as a version or a GPU, as it was when they were
            built.
        options: how it was built, and is run.
        files: SHA-256 by name, in the manifest's folder, the runtime's own first; {} where there
            is none.
        calibration: SHA-256 of the pictures that int8 was calibrated with; "" where there are none.
        report: how far it was from the module in f32, as `Verification.to_dict` gives it; None
            where nobody has looked.
    """

    WHAT: ClassVar[str]

    spec: ModelSpec | DetectorSpec
    kind: str
    precision: str
    precision_asked: str
    device: str
    versions: dict[str, str]
    weights_hash: str = ""
    layers: dict[str, int] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    files: dict[str, str] = field(default_factory=dict)
    calibration: str = ""
    report: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name

    @property
    def file(self) -> str:
        """Name of the runtime's own file; "" where there is none."""
        return next(iter(self.files), "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `save` writes them."""
        return {"schema": SCHEMA, "what": self.WHAT, "name": self.name, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write the manifest; at no moment is half of it there."""
        with replaced(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls: type[Bundle], path: Path) -> Bundle:
        """Read what `save` wrote.

        Raises:
            EngineError: the file is missing or no manifest of this sort; the text names the field.
        """
        values = _read_values(path)
        if values["what"] != cls.WHAT:
            raise EngineError(f"{path}: the bundle of a {values['what']}, not of a {cls.WHAT}")
        return cls._from_values(values, path)

    @classmethod
    def _from_values(cls: type[Bundle], values: dict[str, Any], path: Path) -> Bundle:
        values = {key: value for key, value in values.items() if key not in _FOR_PEOPLE}
        for one in fields(cls):
            wanted = _JSON_TYPES.get(one.name, str)
            found = values.get(one.name)
            if not isinstance(found, wanted) and not (one.name == "report" and found is None):
                raise EngineError(
                    f"{path}: {one.name} must be a JSON {_JSON_NAMES[wanted]}, got {found!r}"
                )
        try:
            return cls(**{**values, **cls._parsed(values)})
        except (ModelError, ValueError, TypeError) as error:
            raise EngineError(f"{path}: not a manifest of an engine: {error}") from None

    @classmethod
    def _parsed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The fields that are more than plain values."""
        return {"options": Options.from_dict(values["options"])}

    def check_files(self, path: Path) -> None:
        """Compare the files with their hashes.

        Args:
            path: of the manifest; the files lie beside it.

        Raises:
            EngineError: the manifest names no file beside it.
            UnbuiltError: a file is missing or another one; the text names it.
        """
        if not self.files:
            raise EngineError(f"{path}: files: the manifest names none")
        for name, wanted in self.files.items():
            if Path(name).name != name:
                raise EngineError(f"{path}: files: {name!r} is no name of a file beside it")
            if not (path.parent / name).exists():
                raise UnbuiltError(
                    f"{path}: files: it describes {name}, which is not beside it; the files of a "
                    "bundle keep their names"
                )
            found = file_hash(path.parent / name)
            if found != wanted:
                raise UnbuiltError(
                    f"{path}: files: {name}: the manifest has {str(wanted)[:12]}, the file has "
                    f"{found[:12]}; build it again"
                )

    def check_ties(self, path: Path, here: Mapping[str, str]) -> None:
        """Compare what the files are tied to with this machine.

        Args:
            path: of the manifest.
            here: the same fields as this machine has them.

        Raises:
            UnbuiltError: the text names the field, what the manifest has and what was found.
        """
        for name in {**self.ties, **here}:  # a file that tells of none is not free to run
            wanted = self.ties.get(name, "nothing that is told")
            found = here.get(name, "nothing of the kind")
            if found != wanted:
                raise UnbuiltError(
                    f"{path}: {name}: the engine was built for {wanted}, this machine has "
                    f"{found}; build it again"
                )


@dataclass(frozen=True, kw_only=True)
class Manifest(Description):
    """A pose network's; see `Description`.

    Attributes:
        spec: input, heat maps, joints and conventions of the network.
        buckets: batch sizes it is compiled for, rising; the last is the largest batch of a run.
    """

    WHAT = "pose network"

    spec: ModelSpec
    buckets: tuple[int, ...]

    @classmethod
    def _parsed(cls, values: dict[str, Any]) -> dict[str, Any]:
        spec, buckets = ModelSpec.from_dict(values["spec"]), check_buckets(values["buckets"])
        return {**super()._parsed(values), "spec": spec, "buckets": buckets}


@dataclass(frozen=True, kw_only=True)
class DetectorManifest(Description):
    """A detector's; see `Description`.

    Attributes:
        spec: of the detector.
        files: the graph of the proposals, that of the head, then what belongs to them.
    """

    WHAT = "detector"

    spec: DetectorSpec

    @property
    def graphs(self) -> tuple[str, str]:
        """Names of the two graphs, proposals and the head: the first of the files."""
        first, second = list(self.files)[:2]
        return first, second

    @classmethod
    def _parsed(cls, values: dict[str, Any]) -> dict[str, Any]:
        if len(values["files"]) < 2:
            raise ValueError(f"files must name two graphs, got {len(values['files'])}")
        return {**super()._parsed(values), "spec": DetectorSpec.from_dict(values["spec"])}


def read_manifest(path: Path) -> Manifest | DetectorManifest:
    """What `save` of either wrote; errors as in `load`."""
    values = _read_values(path)
    if values["what"] == DetectorManifest.WHAT:
        return DetectorManifest._from_values(values, path)
    return Manifest._from_values(values, path)


def _read_values(path: Path) -> dict[str, Any]:
    """A manifest's values, not looked at but for what they are of."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EngineError(f"{path}: no manifest of an engine: {error.strerror}") from None
    except ValueError as error:
        raise EngineError(f"{path}: not a manifest of an engine: {error}") from None
    found = values.get("schema") if isinstance(values, dict) else None
    if found != SCHEMA:
        built = f"schema is {found}, this version reads {SCHEMA}; build it again"
        reason = built if found else f"expected schema {SCHEMA}"
        raise EngineError(f"{path}: not a manifest of an engine: {reason}")
    sorts = (Manifest.WHAT, DetectorManifest.WHAT)
    if values.get("what") not in sorts:
        raise EngineError(f"{path}: what must be {' or '.join(sorts)}, got {values.get('what')!r}")
    return values


def hash_files(paths: Sequence[Path]) -> dict[str, str]:
    """What `Manifest.files` holds of these.

    Raises:
        EngineError: one cannot be read.
    """
    return {path.name: file_hash(path) for path in paths}


def versions_of(**runtime: str) -> dict[str, str]:
    """What `Manifest.versions` holds: the runtime's, and ours."""
    return {**runtime, "fastpose": __version__}


_FOR_PEOPLE = ("schema", "what", "name")  # of the JSON, and no fields
_JSON_TYPES: dict[str, type] = {
    "spec": dict,
    "versions": dict,
    "buckets": list,
    "layers": dict,
    "ties": dict,
    "options": dict,
    "files": dict,
    "report": dict,
}
_JSON_NAMES: dict[type, str] = {dict: "object", list: "array", str: "string"}


def check_buckets(buckets: Any) -> tuple[int, ...]:
    """The batch sizes, rising and without repetition.

    Raises:
        ValueError: there is none, or one is not a positive whole number.
    """
    sizes = tuple(buckets) if isinstance(buckets, Iterable) else ()
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"buckets must be positive whole numbers, got {buckets!r}")
    return tuple(sorted(set(sizes)))


def file_hash(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        EngineError: it cannot be read.
    """
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from None


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` at the end, or nothing after an error.

    Raises:
        EngineError: the folder cannot be written.
    """
    # a name of its own: two processes may export the same network at the same time
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        temporary.replace(path)
    except FastposeError:
        raise
    except OSError as error:
        raise EngineError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
