"""How an engine is built and run, beside its precision and its batch sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from fastpose.errors import BackendError

CHOICES = {
    "mode": ("latency", "throughput"),
    "memory": ("auto", "torch", "pycuda", "cuda"),
    "compile": ("eager", "compile", "aot"),
    "hardware_compatible": ("none", "ampere", "same-capability"),
}
STAGES = ("last", "sum", "mean")

_GRAPH = ("flip", "stages", "joints")
_RUN = ("mode", "requests", "memory", "host_code")
_USED = {
    "openvino": (*_GRAPH, "mode", "requests"),
    "onnxruntime": _GRAPH,
    "torch": (*_GRAPH, "compile"),
    "tensorrt": (
        *_GRAPH,
        "memory",
        "host_code",
        "workspace",
        "version_compatible",
        "hardware_compatible",
        "refit",
    ),
}


@dataclass(frozen=True)
class Options:
    """What may be asked of an engine; the defaults ask for nothing special.

    Attributes:
        flip: the graph itself averages the results of the mirrored window in.
        stages: of a network with several: "last", their "sum" or "mean", or the number of one, from
            1, behind which the graph ends.
        joints: the graph itself decodes its maps: it gives joints in cells.
        mode: "latency", or "throughput", where the parts of a batch run side by side (openvino).
        requests: how many do, in throughput mode; None leaves it to the runtime.
        memory: whose device memory is used, "torch", "pycuda" or "cuda" (cuda-bindings); "auto" is
            torch where it is loaded, else the first that is installed (tensorrt).
        host_code: a version-compatible plan may run the code that it carries (tensorrt): only for
            files from a source that is trusted.
        compile: "eager" runs the module, "compile" compiles it when it is opened, "aot" has been
            compiled into a file (torch).
        workspace: most scratch memory of a layer in MiB; None leaves it to the runtime (tensorrt).
        version_compatible: later versions of TensorRT run the plan too, a little slower.
        hardware_compatible: other GPUs run it too: "ampere" all of compute capability 8.0 and
            later, "same-capability" those of the same; "none" only the same GPU (tensorrt).
        refit: other weights can be put into the plan (tensorrt).
    """

    flip: bool = False
    stages: str = "last"
    joints: bool = False
    mode: str = "latency"
    requests: int | None = None
    memory: str = "auto"
    host_code: bool = False
    compile: str = "eager"
    workspace: int | None = None
    version_compatible: bool = False
    hardware_compatible: str = "none"
    refit: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name in ("flip", "joints", "host_code", "version_compatible", "refit"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in ("requests", "workspace"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
        if self.requests is not None and self.mode != "throughput":
            raise ValueError("requests are for the mode throughput")
        number = isinstance(self.stages, str) and self.stages.isdecimal() and int(self.stages) > 0
        if self.stages not in STAGES and not number:
            raise ValueError(
                f"stages must be {', '.join(STAGES)} or a number from 1, got {self.stages!r}"
            )

    def check(self, kind: str) -> None:
        """Refuse what a runtime has no use for.

        Raises:
            BackendError: something would be without effect.
        """
        plain = Options()
        for field in fields(self):
            asked = getattr(self, field.name) != getattr(plain, field.name)
            if asked and field.name not in _USED[kind]:
                users = [name for name, used in _USED.items() if field.name in used]
                raise BackendError(
                    f"{field.name} {getattr(self, field.name)!r} has no meaning for engine "
                    f"{kind!r}; it is for: {', '.join(users)}"
                )

    @property
    def changes_graph(self) -> bool:
        """Something other than the network as it is decoded by default."""
        return any(getattr(self, name) != getattr(Options(), name) for name in _GRAPH)

    def build_flags(self) -> dict[str, Any]:
        """What the runtime's file depends on."""
        return {name: value for name, value in self.to_dict().items() if name not in _RUN}

    def with_run(self, other: Options | None) -> Options:
        """These, of a file, opened as `other` says; None changes nothing but `host_code`.

        Whether a file's code may run is for whoever opens it to say, and not for the file.
        """
        run = {name: getattr(other, name) for name in _RUN} if other else {"host_code": False}
        return Options(**{**self.to_dict(), **run})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a manifest keeps them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Options:
        """Read what `to_dict` gave.

        Raises:
            ValueError: a name or a value is none of theirs.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}")
        return cls(**values)
