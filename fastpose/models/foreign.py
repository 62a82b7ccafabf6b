"""Checkpoints of other projects: read without running their code, recognised, fitted to ours."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from fastpose.errors import WeightsError
from fastpose.models import create
from fastpose.models.caffe import read_caffemodel, read_npz
from fastpose.models.layouts import LAYOUTS, Layout, Rows
from fastpose.models.spec import ModelSpec
from fastpose.models.weights import is_weight, read_weights

# what a training script puts its state dict under, and what wrappers of modules put before names
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")
SHOWN = 3  # names of each fault that an error tells
WRAP = "export it to ONNX for `fastpose wrap`"

OTHER_FILES = {
    r"\.caffemodel\.h5": "weights of Caffe in HDF5; save the net without HDF5, or its blobs by "
    "numpy.savez",
    r"\.solverstate(\.h5)?": "the state of a Caffe solver; the .caffemodel saved with it has the "
    "weights",
    r"\.prototxt": "the text of a Caffe net, which has no weights; those are in a .caffemodel",
    r"\.npy": "one array, or a pickled dict of them; save the blobs by numpy.savez",
    r"\.onnx": "an ONNX graph, which `fastpose wrap` takes as it is",
    r"\.(index|meta|pb|data-\d+-of-\d+)": f"a part of a TensorFlow checkpoint; {WRAP}",
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
    """The state dict in a file of torch, safetensors or Caffe, without wrappers and counters.

    Nothing in the file is run: torch reads it with `weights_only`, and the blobs of a .caffemodel
    or an .npz are numbers; see `fastpose.models.caffe` for their names.

    Returns:
        By name; in a checkpoint that is as it should be, all of them tensors.

    Raises:
        WeightsError: the file is missing, damaged or of another kind, or reading it would need
            code to be run, or there is no tensor in it.
        BackendError: protobuf, which a .caffemodel needs, is not installed.
    """
    _check_kind(path)
    content = _read(path)
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
    suffix = path.suffix.lower()
    found = (layout for layout in LAYOUTS if any(re.match(layout.mark, name) for name in state))
    layout = next((each for each in found if not each.files or suffix in each.files), None)
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


def refit(state: Mapping[str, Any], layout: Layout, spec: ModelSpec) -> dict[str, Any]:
    """The state dict of a trunk that sees our model's pixels and finds what it found in its own.

    Its first convolution is linear, and so is the change from one normalisation to another: the
    kernels take up the scales and the order of the channels, the biases the means. At the border
    the padding, 0, then stands for our mean.

    Args:
        state: of `read_checkpoint`.
        layout: of `recognise`; one without `pixels` leaves the state as it is.
        spec: of the model that it is to become.
    """
    refitted = dict(state)
    if layout.pixels is None:
        return refitted
    names = [f"{layout.pixels.layer}.{kind}" for kind in ("weight", "bias")]
    weight, bias = (state.get(name) for name in names)
    if not _has_values(weight) or not _has_values(bias):
        return refitted  # which `fill` then tells
    if bias.ndim != 1 or weight.shape != (*bias.shape, 3, 3, 3):
        return refitted
    swapped = layout.pixels.rgb != spec.rgb
    kernel = weight.double().flip(1) if swapped else weight.double()
    theirs = [torch.tensor(v, dtype=torch.float64) for v in (layout.pixels.mean, layout.pixels.std)]
    mean, std = (values.flip(0) if swapped else values for values in theirs)
    kernel = kernel / std[:, None, None]
    ours = torch.tensor(spec.mean, dtype=torch.float64) - mean
    refitted[names[0]] = kernel * torch.tensor(spec.std, dtype=torch.float64)[:, None, None]
    refitted[names[1]] = bias.double() + kernel.sum(dim=(2, 3)) @ ours
    return refitted


def fill(network: nn.Module, state: Mapping[str, Any], layout: Layout, path: Path) -> Report:
    """Put the tensors that fit, as float32, into `network`; what finds none stays as it is.

    Args:
        network: of ours.
        state: of `read_checkpoint`.
        layout: of `recognise`.
        path: for the text of errors.

    Raises:
        WeightsError: a tensor that fits is not of floating point, not finite, or a variance below
            0, whose root the norm takes. Nothing is changed then.
    """
    own = _own_tensors(network, layout)
    fitting, report = _match(own, state, layout)
    for name, tensor in fitting.items():
        if not _has_values(tensor):
            raise WeightsError(
                f"{path}: {name} must be a dense tensor of floating point, got {tensor.dtype}"
            )
        single = tensor.float()
        if not torch.isfinite(single).all():
            raise WeightsError(f"{path}: {name} has values that are not finite")
        if name.endswith("running_var") and (single < 0).any():
            raise WeightsError(f"{path}: {name} has values below 0, which no variance has")
    for name, tensor in fitting.items():
        own[name].copy_(tensor)
    return report


def _has_values(tensor: Any) -> TypeGuard[Tensor]:
    """A dense tensor of floating point, with memory behind it."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and not tensor.is_meta
        and tensor.is_floating_point()
    )


def models_that_fit(state: Mapping[str, Any], layout: Layout) -> list[str]:
    """The models that a checkpoint fits wholly."""
    names = []
    for name in layout.models:
        with torch.device("meta"):  # shapes alone
            network = create(name)
        if _match(_own_tensors(network, layout), state, layout)[1].complete:
            names.append(name)
    return names


def _own_tensors(network: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """The network's tensors by name; those that are several of the layout's, block by block."""
    own = {}
    for name, tensor in network.state_dict().items():
        if is_weight(name):
            count = layout.counts.get(name.rpartition(".")[0], 1)
            blocks = tensor.chunk(count) if count > 1 else (tensor,)
            for block, rows in enumerate(blocks):
                own[_block_name(Rows(name, block, count))] = rows
    return own


def _block_name(rows: Rows) -> str:
    return rows.name if rows.count == 1 else f"{rows.name}[{rows.block + 1}/{rows.count}]"


def _match(
    own: Mapping[str, Tensor], state: Mapping[str, Any], layout: Layout
) -> tuple[dict[str, Tensor], Report]:
    """The tensors whose name and shape are those of the network's, and the report."""
    fitting: dict[str, Tensor] = {}
    unexpected = []
    wrong_shape = {}
    for theirs, tensor in state.items():
        name = _block_name(layout.place(theirs))
        if name not in own or name in fitting or not isinstance(tensor, Tensor):
            unexpected.append(theirs)
        elif tensor.shape != own[name].shape:
            shapes = {"expected": list(own[name].shape), "found": list(tensor.shape)}
            wrong_shape[name] = shapes
        else:
            fitting[name] = tensor
    missing = tuple(n for n in own if n not in fitting and n not in wrong_shape)
    return fitting, Report(layout.name, len(fitting), missing, tuple(unexpected), wrong_shape)


def _check_kind(path: Path) -> None:
    """Raise for what is no checkpoint of PyTorch, with what to do with it."""
    if not path.is_file():
        if path.with_name(f"{path.name}.index").is_file():  # a name that only TensorFlow knows
            raise WeightsError(f"{path}: the name of a TensorFlow checkpoint; {WRAP}")
        raise WeightsError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    for pattern, text in OTHER_FILES.items():
        if re.search(f"(?:{pattern})$", path.name, re.IGNORECASE):
            raise WeightsError(f"{path}: {text}")


def _read(path: Path) -> Any:
    """What is in the file, by its kind."""
    match path.suffix.lower():
        case ".caffemodel":
            return _as_tensors(read_caffemodel(path))
        case ".npz":
            return _as_tensors(read_npz(path))
    return read_weights(path) if _is_safetensors(path) else _read_torch(path)


def _as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


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
            f"{path}: refused: its pickle asks for {asked[1]}, and reading that could run code; a "
            "file with the state dict alone is read"
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
