"""From a module to an ONNX graph: batch norm folded, types given, nothing of this machine."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fastpose.engines.manifest import replaced
from fastpose.engines.options import Options
from fastpose.engines.typed import TYPES, give_types, pictures_of_noise
from fastpose.errors import BackendError, EngineError, ModelError
from fastpose.models import create, create_detector
from fastpose.models.decoding import check_decodable
from fastpose.models.fpn import FPNDetector
from fastpose.models.predictor import Predictor, check_mirrored
from fastpose.models.spec import DetectorSpec, ModelSpec
from fastpose.models.weights import LARGEST_HALF

OPSET = 18  # the newest that the exporter writes without conversion
BF16_OPSET = 22  # the first whose convolutions and poolings may be bfloat16
SEED = 0  # of random weights
NO_OPTIONS = Options()

Module = TypeVar("Module", bound=nn.Module)


def random_network(name: str) -> nn.Module:
    """The registered network with the same random weights every time."""
    with _seeded():
        return create(name)


def random_detector(name: str) -> FPNDetector:
    """The registered detector with the same random weights every time."""
    with _seeded():
        return create_detector(name)


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


def fold_batch_norm(module: Module, image: Tensor) -> Module:
    """A copy, in eval mode, whose convolutions have taken in the batch norms behind them.

    A pair is folded where the convolution's result goes to that norm alone and both are used once,
    in whatever way the module's own code connects them. Other norms stay. Folding must precede
    any compiler: inductor's freezing of torch 2.13 folds a norm behind a transposed convolution of
    equal channel counts along the wrong axis.

    Args:
        module: any that `torch.export` can trace.
        image: an example input, [N, 3, h, w], on the module's device.

    Raises:
        EngineError: the module cannot be traced.
    """
    folded = copy.deepcopy(module).eval()
    pairs = [tuple(map(folded.get_submodule, names)) for names in _foldable(folded, image)]
    for conv, norm in pairs:
        if isinstance(conv, _ConvNd) and isinstance(norm, _BatchNorm):
            _fold(conv, norm)
            _replace(folded, norm, nn.Identity())
    return folded


def graph_spec(spec: ModelSpec, options: Options) -> ModelSpec:
    """The network as the graph options change it; one that is changed already stays as it is.

    Raises:
        ModelError: it cannot be changed so, and why.
    """
    if options.changes_graph and not spec.network:
        raise ModelError(
            f"{spec.name} is a graph from elsewhere: its flip test, stages and joints are outside"
        )
    if options.flip and not spec.flip_inside:
        check_mirrored(spec)
        spec = replace(spec, flip_inside=True)
    if options.joints and spec.output != "joints":
        check_decodable(spec)
        spec = replace(spec, output="joints")
    return spec


def export_onnx(
    module: nn.Module,
    spec: ModelSpec,
    path: Path,
    half: bool = True,
    options: Options = NO_OPTIONS,
    precision: str = "f32",
) -> None:
    """Write a network as one ONNX file: "image" [N, 3, h, w] -> "heatmaps" [N, K, cells].

    The same module gives the same bytes. N is dynamic: exported at 2, since 1 would be taken for
    a constant. Only what leads to the results is written. With `options.joints` they are "joints"
    [N, K, 3].

    In "f16" and "bf16" the graph itself carries the types, and is meant for runtimes that keep to
    them: the input is of that type, so that it can be cut straight into it, unless the network
    says that its picture must be float32; the results are float32.

    Args:
        module: the network, float32, on the CPU.
        spec: of the network; its `size` becomes fixed.
        path: the file; its folder exists.
        half: for "f32", weights are stored as float16 with a Cast to float32 behind each, which
            every runtime folds away when it loads; arithmetic stays float32.
        options: those of the graph count.
        precision: "f32", "f16" or "bf16", as `predictor` gives it.

    Raises:
        BackendError: the exporter is not installed.
        EngineError: the module cannot be traced, or the folder cannot be written.
        ModelError: as in `graph_spec`, or there is no such stage.
    """
    network = predictor(module, spec, options, precision)
    image = torch.zeros(2, 3, *spec.size, dtype=input_type(module, precision))
    result = "joints" if options.joints else "heatmaps"
    store_half = half and precision == "f32"
    opset = BF16_OPSET if precision == "bf16" else OPSET
    write_graph(
        network, image, path, ["image"], [result], half=store_half, any_batch=True, opset=opset
    )


def export_detector(
    module: FPNDetector, spec: DetectorSpec, proposer: Path, head: Path, half: bool = True
) -> None:
    """Write a detector as two ONNX files of fixed shapes.

    The first takes "image" [1, 3, h, w] and gives "p0", "p1", ..., the levels of the pyramid that
    are pooled, "objectness" [1, M] before the sigmoid and "deltas" [1, M, 4]; the second takes
    "windows" [batch, C, pool, pool] and gives "logits" [batch, classes + 1] and "deltas"
    [batch, classes, 4].

    Args:
        module: the network, float32, on the CPU.
        spec: of the detector.
        proposer: the first file; its folder exists.
        head: the second file; its folder exists.
        half: as in `export_onnx`, like the errors.
    """
    first, second = detector_halves(module, spec)
    write_graph(
        first,
        torch.zeros(1, 3, *spec.size),
        proposer,
        ["image"],
        [*(f"p{level}" for level in range(spec.pooled)), "objectness", "deltas"],
        half=half,
    )
    windows = torch.zeros(spec.batch, spec.width, spec.pool, spec.pool)
    write_graph(second, windows, head, ["windows"], ["logits", "deltas"], half=half)


def detector_halves(module: FPNDetector, spec: DetectorSpec) -> tuple[nn.Module, nn.Module]:
    """What `export_detector` writes, batch norm folded, as two modules."""
    image = torch.zeros(1, 3, *spec.size)
    windows = torch.zeros(2, spec.width, spec.pool, spec.pool)
    # a shallow copy each, so that neither half keeps the other's weights
    first, second = copy.copy(module), copy.copy(module)
    first._modules = {n: m for n, m in module._modules.items() if n not in module.HEAD}
    second._modules = {n: m for n, m in module._modules.items() if n in module.HEAD}
    return (
        fold_batch_norm(_Proposer(first, spec.pooled), image),
        fold_batch_norm(_Head(second), windows),
    )


def write_graph(
    network: nn.Module,
    example: Tensor,
    path: Path,
    inputs: list[str],
    outputs: list[str],
    *,
    half: bool = False,
    any_batch: bool = False,
    opset: int = OPSET,
) -> None:
    """Write a module as one ONNX file.

    Args:
        network: in eval mode.
        example: an input.
        path: the file; its folder exists.
        inputs: names.
        outputs: names.
        half: as in `export_onnx`, like the errors.
        any_batch: the first axis takes any length.
        opset: of ONNX's operators.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (the exporter needs it)
    except ImportError as error:
        raise BackendError(
            f"ONNX export needs {error.name}; install the extra: fastpose-inference[torch]"
        ) from None
    with quiet("torch.onnx"), torch.inference_mode():
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},) if any_batch else None,
            input_names=inputs,
            output_names=outputs,
            opset_version=opset,
            verbose=False,
        )
    assert program is not None, "the exporter returns a program when no file is named"
    model = program.model_proto
    _strip(model)
    if half:
        _store_half(model.graph)
    onnx.checker.check_model(model)
    with replaced(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


class _Proposer(nn.Module):
    def __init__(self, detector: FPNDetector, pooled: int) -> None:
        super().__init__()
        self.detector, self.pooled = detector, pooled

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pyramid, logits, deltas = self.detector.propose(image)
        return (*pyramid[: self.pooled], logits, deltas)


class _Head(nn.Module):
    def __init__(self, detector: FPNDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        return self.detector.classify(windows)


def predictor(
    network: nn.Module,
    spec: ModelSpec,
    options: Options = NO_OPTIONS,
    precision: str = "f32",
) -> Predictor:
    """What every runtime runs of a pose network, batch norm folded.

    Args:
        network: of `fastpose.create`, float32, on the CPU.
        spec: of the network.
        options: those of the graph count.
        precision: "f32", or "f16" or "bf16" by `give_types`: it then takes windows of
            `input_type` and gives float32, and must be moved without changing its types.

    Raises:
        EngineError: the module cannot be traced.
        ModelError: as in `graph_spec`, or there is no such stage.
    """
    graph_spec(spec, options)
    wanted = Predictor(
        network, spec, flip=options.flip, stages=options.stages, joints=options.joints
    )
    module = fold_batch_norm(wanted, torch.zeros(2, 3, *spec.size))
    if precision != "f32":
        give_types(module, precision, pictures_of_noise(spec))
    return module


def input_type(network: nn.Module, precision: str) -> torch.dtype:
    """Of the windows that `predictor` takes."""
    return torch.float32 if getattr(network, "exact_picture", False) else TYPES[precision]


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Keep back what torch says below errors: of its deprecations, or of packages it would like."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            log.setLevel(level)


def _foldable(module: nn.Module, image: Tensor) -> Iterator[tuple[str, str]]:
    """Names of each convolution whose result goes to one batch norm and nowhere else."""
    try:
        program = torch.export.export(module, (image,))
    except ModelError:
        raise
    except Exception as error:  # whatever the module's own code raises while it is traced
        reason = str(error).partition("\n")[0]
        raise EngineError(f"{type(module).__name__} cannot be traced: {reason}") from None
    parameters = program.graph_signature.inputs_to_parameters
    for node in program.graph.nodes:
        if not _is(node, "aten::batch_norm"):
            continue
        source, scale = node.args[0], node.args[1]
        if not _is(source, "aten::conv") or len(source.users) != 1 or scale is None:
            continue
        weight = source.args[1]
        if len(weight.users) == 1 and len(scale.users) == 1:
            names = (parameters[weight.name], parameters[scale.name])
            yield names[0].rpartition(".")[0], names[1].rpartition(".")[0]


def _is(node: torch.fx.Node, operator: str) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.startswith(operator)


def _fold(conv: _ConvNd, norm: _BatchNorm) -> None:
    """Scale and shift the convolution's output channels in place, reckoned in float64."""
    assert norm.running_mean is not None, "batch norm without statistics"
    assert norm.running_var is not None, "batch norm without statistics"
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.double()
    bias = (bias - norm.running_mean.double()) * scale + norm.bias.double()
    weight = conv.weight.double()
    if isinstance(conv, _ConvTransposeNd):  # [in, out / groups, ...]; group g makes a run of outs
        groups = weight.unflatten(0, (conv.groups, -1))
        factors = scale.reshape(conv.groups, 1, -1, *[1] * len(conv.kernel_size))
        weight = (groups * factors).flatten(0, 1)
    else:
        weight = weight * scale.reshape(-1, 1, *[1] * len(conv.kernel_size))
    conv.weight = nn.Parameter(weight.detach().to(conv.weight.dtype))
    conv.bias = nn.Parameter(bias.detach().to(conv.weight.dtype))


def _replace(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` stands; one module may be known by several names."""
    for name, found in list(module.named_modules(remove_duplicate=False)):
        if found is old:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, new)


def _strip(model: Any) -> None:
    """Take out the exporter's notes: stack traces, paths of this machine, names of classes."""
    for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for tensor in model.graph.initializer:
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")
    model.graph.ClearField("value_info")  # shapes of intermediate results; runtimes infer them


def _store_half(graph: Any) -> None:
    """Store every weight of two axes or more as float16, with a Cast to float32 behind it."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max(initial=0) > LARGEST_HALF:
            continue
        name, stored = tensor.name, f"{tensor.name}.half"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=1))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
