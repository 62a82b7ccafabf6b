"""The decoding kernel that is kept with an engine, compared with the host before it is trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose import ops
from fastpose.engines.memory import DeviceArray, DeviceMemory
from fastpose.errors import EngineError
from fastpose.geometry import Doubles
from fastpose.models.joints import find_peaks
from fastpose.models.spec import ModelSpec
from fastpose.types import Floats

Values = npt.NDArray[Any]

EXAMPLES = 3  # windows
NOISE = 0.005  # of a peak, so that no two cells are alike
POINTS_APART = 1e-3  # frame pixels; scores are values of cells, and the same to the bit
CELLS = ((0.9, 0.2, 5.0), (-0.1, 1.1, -3.0))  # cell -> frame pixel


def check_decoder(binary: ops.DecodeBinary, spec: ModelSpec, memory: DeviceMemory) -> None:
    """Let a kernel decode maps with known peaks, and compare with what the host finds.

    Args:
        binary: the kernel, for float32 maps.
        spec: the network; it must have single maps (`has_single_maps`).
        memory: of the device that the kernel is for.

    Raises:
        EngineError: they differ, or the kernel cannot be loaded or launched.
    """
    maps = _examples(spec)
    cells = np.tile(np.array(CELLS), (len(maps), 1, 1))
    wanted_points, wanted_scores = find_peaks(maps, cells, spec)
    points, scores = _decoded(binary, maps, cells, memory)
    lost = np.isnan(points) & np.isnan(wanted_points)
    moved = np.where(lost, 0, np.abs(points - wanted_points)).max()  # NaN where one alone is
    changed = np.abs(scores - wanted_scores).max()
    if not (changed == 0 and moved <= POINTS_APART):
        raise EngineError(
            "the decoding kernel does not find what the host finds: scores are up to "
            f"{changed:.3g} apart, at most 0, points {moved:.3g} px, at most {POINTS_APART:g}"
        )


def _examples(spec: ModelSpec) -> Floats:
    """Maps [N, C, h, w] with as many peaks each as are looked for, at edges too; one has none."""
    random = np.random.default_rng(0)
    channels, h, w = spec.results[0]
    y, x = np.mgrid[:h, :w]
    maps = NOISE * random.random((EXAMPLES, channels, h, w))
    for one in maps.reshape(-1, h, w):
        for height in random.uniform(0.4, 1.2, spec.peaks):
            place = random.uniform(-0.5, (w - 0.5, h - 0.5))
            squares = (x - place[0]) ** 2 + (y - place[1]) ** 2
            one += height * np.exp(-squares / (2 * spec.sigma**2))
    maps[0, 0] = 0
    return (spec.peak_value * maps).astype(np.float32)


def _decoded(
    binary: ops.DecodeBinary, maps: Floats, cells: Doubles, memory: DeviceMemory
) -> tuple[Floats, Floats]:
    """Points and scores as the kernel finds them."""
    k, h, w = binary.maps
    count = len(maps)
    axes = (count, k, binary.peaks) if binary.peaks > 1 else (count, k)
    with memory.current():  # in which some memories free their arrays, too
        kernel = ops.DecodeKernel(binary, memory.capability)
        given: dict[str, Values] = {"maps": maps, "affines": cells, "taps": binary.taps}
        arrays = {name: _uploaded(array, memory) for name, array in given.items()}
        arrays["points"] = memory.empty((*axes, 2), "float32")
        arrays["scores"] = memory.empty(axes, "float32")
        if binary.peaks > 1:
            arrays["candidates"] = memory.empty((count, k, h, w), "float32")
        kernel.launch(count, {name: one.address for name, one in arrays.items()}, memory.stream)
        found = [np.empty(arrays[name].shape, np.float32) for name in ("points", "scores")]
        for name, host in zip(("points", "scores"), found, strict=True):
            memory.download(arrays[name], host)
        memory.synchronize()
        kernel.close()
        arrays.clear()
    return found[0], found[1]


def _uploaded(values: Values, memory: DeviceMemory) -> DeviceArray:
    array = memory.empty(values.shape, values.dtype.name)
    memory.upload(values, array)
    memory.synchronize()
    return array
