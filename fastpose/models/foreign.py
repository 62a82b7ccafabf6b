"""Checkpoints of other projects: read without running their code, recognised, fitted to ours."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastpose.errors import WeightsError
from fastpose.models import create
from fastpose.models.weights import is_weight, read_weights

# what a training script puts its state dict under, and what wrappers of modules put before names
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")
SHOWN = 3  # names of each fault that an error tells
WRAP = "export it to ONNX for `fastpose wrap`"


@dataclass(frozen=True)
class Layout:
    """How another project names the tensors of a network.

    Attributes:
        name: of the project or of its network.
        mark: pattern; names that begin with it occur in this layout alone.
        models: names of ours that have the network, or the part of it that the layout has; none
            for a network that we have not.
        renames: (pattern, replacement) pairs that turn a name into ours, applied in turn.
    """

    name: str
    mark: str
    models: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()

    def rename(self, name: str) -> str:
        """Our name of a tensor."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


CPN_TORCH = ("cpn50", "cpn101", "cpn50-384", "cpn101-384")
CPN = (*CPN_TORCH, "cpn50-tf", "cpn101-tf")

LAYOUTS = (
    Layout("pytorch-cpn", r"global_net\.predict\.\d\.5\.", CPN_TORCH),
    Layout("torchvision ResNet", r"layer4\.2\.conv3\.", CPN, ((r"^", "resnet."),)),
    Layout(
        "OpenMMLab ResNet", r"backbone\.layer4\.2\.conv3\.", CPN, ((r"^backbone\.", "resnet."),)
    ),
    # CPN's successors in mmpose, which has no CPN: a ReLU behind each sum of the pyramid, other
    # heads, no RefineNet
    Layout("mmpose MSPN", r"backbone\.multi_stage_mspn\."),
    Layout("mmpose RSN", r"backbone\.multi_stage_rsn\."),
    Layout("HRNet", r"(backbone\.)?stage4\.0\.branches\."),
    Layout("ViTPose", r"(backbone\.)?patch_embed\.proj"),
    Layout("RTMPose", r"head\.cls_x\."),
)

OTHER_FILES = {
    r"\.onnx": "an ONNX graph, which `fastpose wrap` takes as it is",
    r"\.(index|meta|pb|data-\d+-of-\d+)": f"a part of a TensorFlow checkpoint; {WRAP}",
    r"\.(caffemodel|prototxt)": f"a part of a Caffe model; {WRAP}",
    r"\.(h5|hdf5|keras|tflite)": f"a Keras or TensorFlow Lite model; {WRAP}",
}


@dataclass(frozen=True)
class Report:
    """What of a checkpoint went into a network.

    Attributes:
        layout: name of the checkpoint's.
        taken: how many tensors.
        missing: tensors of the network that the checkpoint has not, by our names.
        unexpected: what the checkpoint has beside, by its own names.
        wrong_shape: by our names, the shapes "expected" and "found".
    """

    layout: str
    taken: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: dict[str, dict[str, list[int]]]

    @property
    def complete(self) -> bool:
        """Everything matched."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a card keeps them."""
        return asdict(self)

    def __str__(self) -> str:
        shapes = [
            f"{name}: expected {shape['expected']}, found {shape['found']}"
            for name, shape in self.wrong_shape.items()
        ]
        parts = [f"{self.taken} tensors taken"]
        for names, what in (
            (self.missing, "missing"),
            (self.unexpected, "unexpected"),
            (shapes, "of another shape"),
        ):
            if names:
                more = ", ..." if len(names) > SHOWN else ""
                parts.append(f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})")
        return ", ".join(parts)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state dict in a file of `torch.save` or safetensors, without wrappers and counters.

    Nothing in the file is run: torch reads it with `weights_only`.

    Returns:
        By name; in a checkpoint that is as it should be, all of them tensors.

    Raises:
        WeightsError: the file is missing, damaged or of another kind, or reading it would need
            code to be run, or there is no tensor in it.
    """
    _check_kind(path)
    content = read_weights(path) if _is_safetensors(path) else _read_torch(path)
    found = _unwrapped(content)
    state = {_printable(name): value for name, value in found.items() if is_weight(str(name))}
    tensors = [name for name, value in state.items() if isinstance(value, Tensor)]
    if not tensors:
        raise WeightsError(f"{path}: no tensors in it: expected a state dict, got {_text(content)}")
    prefix = _common_prefix(tensors)
    return {name.removeprefix(prefix): value for name, value in state.items()}


def recognise(state: Mapping[str, Any], path: Path, model: str) -> Layout:
    """The layout of a checkpoint.

    Args:
        state: of `read_checkpoint`.
        path: for the text of errors.
        model: the name of ours that it is to become.

    Raises:
        WeightsError: the layout is not known, or it is not one of that model.
    """
    found = (layout for layout in LAYOUTS if any(re.match(layout.mark, name) for name in state))
    layout = next(found, None)
    if layout is None:
        known = ", ".join(layout.name for layout in LAYOUTS if layout.models)
        names = ", ".join(list(state)[:SHOWN])
        raise WeightsError(
            f"{path}: a checkpoint of a layout that is not known (its names begin with {names}); "
            f"known: {known}"
        )
    if not layout.models:
        raise WeightsError(
            f"{path}: a checkpoint of {layout.name}, a network that is not ours; {WRAP}"
        )
    if model not in layout.models:
        raise WeightsError(
            f"{path}: a checkpoint of {layout.name} fits {', '.join(layout.models)}, not {model}"
        )
    return layout


def fill(network: nn.Module, state: Mapping[str, Any], layout: Layout, path: Path) -> Report:
    """Put the tensors that fit, as float32, into `network`; what finds none stays as it is.

    Args:
        network: of ours.
        state: of `read_checkpoint`.
        layout: of `recognise`.
        path: for the text of errors.

    Raises:
        WeightsError: a tensor that fits is not of floating point, not finite, or a variance below
            0, whose root the norm takes.
    """
    fitting, report = _match(network, state, layout)
    for name, tensor in fitting.items():
        dense = tensor.layout == torch.strided and not tensor.is_meta
        if not dense or not tensor.is_floating_point():
            raise WeightsError(
                f"{path}: {name} must be a dense tensor of floating point, got {tensor.dtype}"
            )
        fitting[name] = tensor.float()
        if not torch.isfinite(fitting[name]).all():
            raise WeightsError(f"{path}: {name} has values that are not finite")
        if name.endswith("running_var") and (fitting[name] < 0).any():
            raise WeightsError(f"{path}: {name} has values below 0, which no variance has")
    network.load_state_dict(fitting, strict=False)
    return report


def models_that_fit(state: Mapping[str, Any], layout: Layout) -> list[str]:
    """The models that a checkpoint fits wholly."""
    names = []
    for name in layout.models:
        with torch.device("meta"):  # shapes alone
            network = create(name)
        if _match(network, state, layout)[1].complete:
            names.append(name)
    return names


def _match(
    network: nn.Module, state: Mapping[str, Any], layout: Layout
) -> tuple[dict[str, Tensor], Report]:
    """The tensors whose name and shape are those of the network's, and the report."""
    expected = {name: t for name, t in network.state_dict().items() if is_weight(name)}
    fitting: dict[str, Tensor] = {}
    unexpected = []
    wrong_shape = {}
    for theirs, tensor in state.items():
        name = layout.rename(theirs)
        if name not in expected or not isinstance(tensor, Tensor):
            unexpected.append(theirs)
        elif tensor.shape != expected[name].shape:
            shapes = {"expected": list(expected[name].shape), "found": list(tensor.shape)}
            wrong_shape[name] = shapes
        else:
            fitting[name] = tensor
    missing = tuple(n for n in expected if n not in fitting and n not in wrong_shape)
    return fitting, Report(layout.name, len(fitting), missing, tuple(unexpected), wrong_shape)


def _check_kind(path: Path) -> None:
    """Raise for what is no checkpoint of PyTorch, with what to do with it."""
    if not path.is_file():
        if path.with_name(f"{path.name}.index").is_file():  # a name that only TensorFlow knows
            raise WeightsError(f"{path}: the name of a TensorFlow checkpoint; {WRAP}")
        raise WeightsError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    for pattern, text in OTHER_FILES.items():
        if re.fullmatch(pattern, path.suffix, re.IGNORECASE):
            raise WeightsError(f"{path}: {text}")


def _is_safetensors(path: Path) -> bool:
    """By its name, or by the length and the brace that begin its header."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    length = int.from_bytes(head[:8], "little")
    return path.suffix == ".safetensors" or (head[8:] == b"{" and length < path.stat().st_size)


def _read_torch(path: Path) -> Any:
    if _is_packed(path):
        raise WeightsError(f"{path}: a packed archive, which torch.save never makes; unpack it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle protocol that it may not know
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch and pickle raise whatever comes up
        reason = str(error)
    if asked := re.search(r"GLOBAL (\S+)", reason):
        raise WeightsError(
            f"{path}: refused: reading it would run code: its pickle asks for {asked[1]}; a file "
            "with the state dict alone is read"
        )
    if "TorchScript" in reason:
        raise WeightsError(f"{path}: a TorchScript archive, which is code; {WRAP}")
    raise WeightsError(f"{path}: damaged, cut off, or no checkpoint of torch.save or safetensors")


def _is_packed(path: Path) -> bool:
    """Its tensors may unpack to any size, and torch would fill the memory with them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(
                entry.compress_type != zipfile.ZIP_STORED
                for entry in archive.infolist()
                if re.search(r"/data(\.pkl$|/)", entry.filename)
            )
    except (zipfile.BadZipFile, RuntimeError, UnicodeDecodeError, OSError):
        # the older format of torch.save, or damage or a zip of other sorts, which torch tells
        return False


def _unwrapped(content: Any) -> Mapping[Any, Any]:
    """The state dict in what a training script saved beside its optimiser and counters."""
    for _ in WRAPPERS:  # each once at most: a dict may hold itself
        inner = next(
            (content[key] for key in WRAPPERS if isinstance(content, Mapping) and key in content),
            None,
        )
        if not isinstance(inner, Mapping):
            break
        content = inner
    return content if isinstance(content, Mapping) else {}


def _common_prefix(names: list[str]) -> str:
    """What wrappers of modules put before every name."""
    prefix = ""
    while more := next((p for p in PREFIXES if all(n.startswith(prefix + p) for n in names)), ""):
        prefix += more
    return prefix


def _text(content: Any) -> str:
    """What a file holds, in short."""
    if not isinstance(content, Mapping):
        return type(content).__name__
    names = ", ".join(map(_printable, list(content)[:SHOWN]))
    return f"a dict of {names}" if content else "an empty dict"


def _printable(name: object) -> str:
    """A key as the name of a tensor, which may come to stand in an error of one line."""
    return "".join(c if c.isprintable() else "?" for c in str(name))
