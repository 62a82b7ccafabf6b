"""int8 after training: 8-bit convolutions whose ranges are taken from pictures of the user's.

Ranges and rounding follow Krishnamoorthi, "Quantizing deep convolutional networks for efficient
inference: A whitepaper", arXiv 2018: weights by output channel, activations by tensor.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fastpose.engines.engine import Floats, Job, cause
from fastpose.engines.manifest import replaced
from fastpose.engines.source import store_float
from fastpose.errors import BackendError, EngineError

# Of a path from the picture to the results, so many convolutions stay float at its ends, at most a
# quarter of it each: pixels have no bits to spare, and peaks are read to a tenth of a cell.
STEM_DEPTH = 3
HEAD_DEPTH = 2
# What only adds or moves values stays float: rounding the sums that a trunk hands from block to
# block moved 1.7 times as many joints of the default network as leaving them.
OPENVINO_CARRIED = ("Add", "Subtract", "Multiply", "Divide", "Interpolate", "Concat")
ONNX_CARRIED = ("Add", "Sub", "Mul", "Div", "Resize", "Concat")
WEIGHTED = {
    *("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"),  # OpenVINO
    *("Conv", "ConvTranspose", "Gemm"),  # ONNX
}
SHAPES = ("ShapeOf", "Shape")  # behind these run numbers of axes, not what the network sees


def calibration_windows(job: Job) -> Floats:
    """The windows of real pictures that a job is calibrated with, [N, 3, h, w].

    Raises:
        EngineError: there are none. Ranges from noise would fit no picture.
    """
    if job.calibration is None or not len(job.calibration):
        raise EngineError("int8 needs pictures: --calibration FOLDER")
    return job.calibration


def quantize_openvino(
    model: Any, samples: Sequence[Floats], *, stem: int = STEM_DEPTH, head: int = HEAD_DEPTH
) -> Any:
    """An OpenVINO model with the ranges of its layers in it, by NNCF.

    The same samples give the same model.

    Args:
        model: an `openvino.Model` with float32 weights and one input.
        samples: what that input is given, one entry a run, of real pictures.
        stem: how many layers with weights stay float from the input on.
        head: how many do up to the results.

    Raises:
        BackendError: NNCF is not installed.
        EngineError: NNCF cannot quantise the model.
    """
    nncf = _import_nncf()
    nodes = {node.get_friendly_name(): node.get_type_name() for node in model.get_ops()}
    edges = [
        (source.get_source_output().get_node().get_friendly_name(), node.get_friendly_name())
        for node in model.get_ops()
        for source in node.inputs()
    ]
    scope = nncf.IgnoredScope(
        names=sorted(float_nodes(nodes, edges, stem, head)),
        types=list(OPENVINO_CARRIED),
        validate=False,
    )
    with _quiet("nncf"):
        try:
            return nncf.quantize(
                model,
                nncf.Dataset(list(samples)),
                subset_size=len(samples),
                preset=nncf.QuantizationPreset.MIXED,
                ignored_scope=scope,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    disable_bias_correction=True  # it fits the means of the first samples alone
                ),
            )
        except Exception as error:  # of many classes, whose only base is this
            raise EngineError(f"nncf cannot quantise the network: {cause(error)}") from None


def modelopt_onnx(job: Job, graph: Path, out: Path) -> Path:
    """Write an ONNX graph with a Quantize and a Dequantize at each 8-bit layer, by ModelOpt.

    TensorRT takes the types from the graph: int8 there, float16 elsewhere; inputs and outputs stay
    float32.

    Args:
        job: its windows are meant.
        graph: the network in float32, one input.
        out: the file to be written.

    Returns:
        `out`.

    Raises:
        BackendError: ModelOpt is not installed.
        EngineError: there are no windows, or ModelOpt cannot quantise the graph.
    """
    windows = calibration_windows(job)
    quantize = _import_modelopt()
    import onnx

    model = onnx.load(graph)
    store_float(model.graph)
    nodes, edges = _onnx_edges(model.graph)
    with replaced(out) as temporary, _quiet("modelopt"):
        plain = temporary.with_suffix(".onnx")
        onnx.save(model, plain)
        try:
            quantize(
                str(plain),
                quantize_mode="int8",
                calibration_data={model.graph.input[0].name: windows},
                calibration_method="entropy",
                calibration_eps=["cpu"],
                op_types_to_exclude=list(ONNX_CARRIED),
                nodes_to_exclude=[f"^{re.escape(name)}$" for name in float_nodes(nodes, edges)],
                high_precision_dtype="fp16",
                output_path=str(temporary),
                log_level="ERROR",
            )
        except Exception as error:  # of ModelOpt, ONNX and ONNX Runtime, which share no other
            raise EngineError(f"{graph}: modelopt cannot quantise it: {cause(error)}") from None
        finally:
            plain.unlink(missing_ok=True)
    return out


def float_nodes(
    nodes: Mapping[str, str],
    edges: Iterable[tuple[str, str]],
    stem: int = STEM_DEPTH,
    head: int = HEAD_DEPTH,
) -> set[str]:
    """The nodes that stay float because they are near the graph's input or its results.

    Args:
        nodes: type by name, as OpenVINO or ONNX call it.
        edges: (from, to) by name; what no edge leads to is an input or a constant.
        stem: how many nodes with weights are near the input, at most a quarter of its depth.
        head: how many are near the results, at most as many.
    """
    after: dict[str, list[str]] = {name: [] for name in nodes}
    before: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        if nodes[source] not in SHAPES:
            after[source].append(target)
            before[target].append(source)
    weighted = {name for name, kind in nodes.items() if kind in WEIGHTED}
    inputs = [name for name, kind in nodes.items() if kind == "Parameter"]
    results = [name for name, kind in nodes.items() if kind == "Result"]
    most = _depth(results, before, weighted) // 4
    return _near(inputs, after, weighted, min(stem, most)) | _near(
        results, before, weighted, min(head, most)
    )


def _depth(starts: Iterable[str], edges: Mapping[str, Collection[str]], weighted: set[str]) -> int:
    """Weighted nodes on the longest way from the starts."""
    depth: dict[str, int] = {}
    waiting = list(starts)
    while waiting:  # a node is done once all behind it are: no recursion, for graphs are deep
        name = waiting[-1]
        missing = [other for other in edges[name] if other not in depth]
        if not missing:
            waiting.pop()
            behind = max((depth[other] for other in edges[name]), default=0)
            depth[name] = behind + (name in weighted)
        waiting += missing
    return max(depth[name] for name in starts)


def _near(
    starts: Iterable[str], edges: Mapping[str, Collection[str]], weighted: set[str], depth: int
) -> set[str]:
    """What is reached from the starts through less than `depth` weighted nodes, with the last."""
    left = dict.fromkeys(starts, depth)
    waiting = list(left)
    while waiting:
        name = waiting.pop()
        for other in edges[name]:
            now = left[name] - (other in weighted)
            if left[name] > 0 and now > left.get(other, -1):
                left[other] = now
                waiting.append(other)
    return set(left)


def _onnx_edges(graph: Any) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Types and edges of an ONNX graph, its inputs and outputs as nodes of OpenVINO's names."""
    nodes = {node.name: node.op_type for node in graph.node}
    makers = {output: node.name for node in graph.node for output in node.output}
    edges = []
    for port in graph.input:
        nodes[port.name] = "Parameter"
        makers[port.name] = port.name
    for node in graph.node:
        edges += [(makers[name], node.name) for name in node.input if name in makers]
    for port in graph.output:
        result = f"result of {port.name}"
        nodes[result] = "Result"
        edges.append((makers[port.name], result))
    return nodes, edges


def _import_nncf() -> ModuleType:
    from fastpose.engines import without_telemetry

    try:
        with without_telemetry():
            import nncf
    except ImportError:
        raise BackendError(
            "int8 for openvino needs nncf; install the extra: fastpose-inference[quantize]"
        ) from None
    return nncf


def _import_modelopt() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from modelopt.onnx.quantization import quantize
    except ImportError:
        raise BackendError(
            "int8 for tensorrt needs nvidia-modelopt; install the extra: "
            "fastpose-inference[modelopt]"
        ) from None
    return quantize


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Keep back a package's bars, and what it says below errors."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            log.setLevel(level)
