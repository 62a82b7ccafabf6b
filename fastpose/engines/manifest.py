"""What an engine was built from, as a JSON file beside it; compared with the machine on load."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastpose.errors import EngineError, ModelError
from fastpose.models.spec import ModelSpec

SCHEMA = 1
BLOCK = 1 << 20  # bytes of a file that are in memory at once


@dataclass(frozen=True)
class Manifest:
    """An engine's description.

    Attributes:
        spec: input, heat maps, joints and conventions of the network.
        kind: the runtime: "openvino", "onnxruntime" or "torch".
        precision: in which it computes, as the runtime reports it: "f32", "bf16" or "f16".
        precision_asked: what was asked for, "auto" included.
        buckets: batch sizes it is compiled for, rising; the last is the largest batch of a run.
        device: in the runtime's own words, such as "CPU".
        versions: of the runtime, by package.
        file: name of the runtime's file in the manifest's folder; "" where there is none.
        file_hash: SHA-256 of that file.
        weights_hash: SHA-256 of the weight file that the network was built from; "" for random
            weights and where it is not known.
    """

    spec: ModelSpec
    kind: str
    precision: str
    precision_asked: str
    buckets: tuple[int, ...]
    device: str
    versions: dict[str, str]
    file: str
    file_hash: str
    weights_hash: str

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name

    def save(self, path: Path) -> None:
        """Write the manifest; at no moment is half of it there."""
        values = {"schema": SCHEMA, "name": self.name, **asdict(self)}
        with replaced(path) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read what `save` wrote.

        Raises:
            EngineError: the file is missing or no manifest; the text names the field.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise EngineError(f"{path}: no manifest of an engine: {error.strerror}") from None
        except ValueError as error:
            raise EngineError(f"{path}: not a manifest of an engine: {error}") from None
        return cls._from_values(values, path)

    @classmethod
    def _from_values(cls, values: Any, path: Path) -> Manifest:
        if not isinstance(values, dict) or values.pop("schema", None) != SCHEMA:
            raise EngineError(f"{path}: not a manifest of an engine: expected schema {SCHEMA}")
        values.pop("name", None)  # for people; the spec has it
        for field in fields(cls):
            wanted = _JSON_TYPES.get(field.name, str)
            found = values.get(field.name)
            if not isinstance(found, wanted):
                raise EngineError(
                    f"{path}: {field.name} must be a JSON {_JSON_NAMES[wanted]}, got {found!r}"
                )
        try:
            spec = ModelSpec.from_dict(values["spec"])
            buckets = check_buckets(values["buckets"])
            return cls(**{**values, "spec": spec, "buckets": buckets})
        except (ModelError, ValueError, TypeError) as error:
            raise EngineError(f"{path}: not a manifest of an engine: {error}") from None

    def check(self, path: Path, *, version: str) -> None:
        """Compare with what is here: the runtime's file and version.

        Args:
            path: of the manifest; the runtime's file lies beside it.
            version: of the runtime that is installed.

        Raises:
            EngineError: the text names the field, what the manifest has and what was found.
        """
        built = str(self.versions.get(self.kind, "none"))
        if built.partition(".")[0] != version.partition(".")[0]:
            raise EngineError(
                f"{path}: version of {self.kind}: the engine was built with {built}, "
                f"this machine has {version}; build it again"
            )
        found = file_hash(path.parent / self.file)
        if found != self.file_hash:
            raise EngineError(
                f"{path}: file_hash: the manifest has {self.file_hash[:12]}, "
                f"{self.file} has {found[:12]}; build it again"
            )


_JSON_TYPES: dict[str, type] = {"spec": dict, "versions": dict, "buckets": list}
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
    except OSError as error:
        raise EngineError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
