"""What a network costs and how far it sees, found by walking it without arithmetic.

`python -m fastpose.models.count` prints the table of `fastpose.models.costs`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from fastpose.models import DETECTORS, MODELS, create, create_detector
from fastpose.models.costs import Cost

aten = torch.ops.aten
Indices = npt.NDArray[np.int64]
NOWHERE = np.iinfo(np.int64).max  # `first` of what sees nothing; its `last` is -NOWHERE
ENLARGED = 64  # times the input's size, where fields are measured: one cut there has no end


@dataclass(frozen=True)
class Reach:
    """What the cells along one axis see: cell i the pixels from `first[i]` to `last[i]`."""

    first: Indices
    last: Indices

    def __len__(self) -> int:
        return len(self.first)

    def gather(self, taps: Indices) -> Reach:
        """The hull of what each row of `taps` [n, t] sees; a tap outside the axis sees nothing."""
        inside = (taps >= 0) & (taps < len(self))
        taps = taps.clip(0, len(self) - 1)
        return Reach(
            np.where(inside, self.first[taps], NOWHERE).min(axis=1),
            np.where(inside, self.last[taps], -NOWHERE).max(axis=1),
        )

    def join(self, other: Reach) -> Reach:
        """What both see, cell by cell; one cell alone is seen by all of the other."""
        return Reach(np.minimum(self.first, other.first), np.maximum(self.last, other.last))

    def extent(self, cell: int) -> int:
        """Pixels that a cell sees along the axis."""
        return int(self.last[cell] - self.first[cell] + 1)


Field = tuple[Reach, Reach] | None
"""Rows and columns; None where nothing is known but that it may be all of the image."""


class Walk(TorchDispatchMode):
    """Follows every operator that runs inside it: its multiply-adds, and what its cells see.

    Only the places where a value is read count, not its weight: the field is the hull of all
    pixels that the network's connections lead to.

    Attributes:
        macs: multiply-adds of convolutions and matrix products, the rest being small.
        seen: the last field of each height and width.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.seen: dict[tuple[int, int], Field] = {}
        self._fields: Any = WeakIdKeyDictionary()

    def start(self, image: Tensor) -> None:
        """The image, every pixel of which sees itself."""
        h, w = (np.arange(side) for side in image.shape[-2:])
        self._fields[image] = (Reach(h, h), Reach(w, w))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        operator = func.overloadpacket
        results = _results(func, operator, args, kwargs or {})
        outputs = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        self.macs += _macs(operator, args, outputs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        sources = [tensor for tensor in inputs if tensor in self._fields]
        if sources:
            for output in outputs:
                field = self._follow(func, operator, args, sources, output)
                self._fields[output] = field
                if output.ndim >= 4:
                    self.seen[(output.shape[-2], output.shape[-1])] = field
        return results

    def _follow(
        self, func: Any, operator: Any, args: tuple[Any, ...], sources: list[Tensor], output: Tensor
    ) -> Field:
        fields = [self._fields[source] for source in sources]
        if output.ndim < 3 or any(field is None for field in fields):
            return None
        size = (output.shape[-2], output.shape[-1])
        if operator in TAPS:
            field = self._fields[args[0]]
            taps = [TAPS[operator](args, axis, len(field[axis]), size[axis]) for axis in (0, 1)]
            return field[0].gather(taps[0]), field[1].gather(taps[1])
        if torch.Tag.pointwise in func.tags or _keeps_cells(operator, args, output):
            return _join(fields, size)
        return None


def _results(func: Any, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operator gives on the meta device; of two, whose shapes are plain, without asking.

    PyTorch finds the shapes of those in Python, which would be half of the time of a walk.
    """
    if operator is aten.relu:
        return torch.empty_like(args[0])
    if operator is aten.native_batch_norm and not args[5]:  # nothing is learned from the batch
        return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
    return func(*args, **kwargs)


def _join(fields: list[Any], size: tuple[int, int]) -> Field:
    """Of tensors that are joined cell by cell; a field of another size is unknown."""
    joined = []
    for axis in (0, 1):
        reaches = [field[axis] for field in fields]
        if any(len(reach) not in (1, size[axis]) for reach in reaches):
            return None
        everywhere = Reach(np.full(size[axis], NOWHERE), np.full(size[axis], -NOWHERE))
        for reach in reaches:
            everywhere = everywhere.join(reach)
        joined.append(everywhere)
    return joined[0], joined[1]


def _keeps_cells(operator: Any, args: tuple[Any, ...], output: Tensor) -> bool:
    """The operator works within cells: the last two axes stay as they are."""
    first = args[0] if isinstance(args[0], Tensor) else args[0][0]
    planes = range(first.ndim - 2)
    if operator in (aten.view, aten._unsafe_view, aten.reshape, aten.expand):
        return bool(output.shape[-2:] == first.shape[-2:])
    if operator is aten.permute:
        return [axis % first.ndim for axis in args[1][-2:]] == [first.ndim - 2, first.ndim - 1]
    if operator is aten.transpose:
        return all(axis % first.ndim in planes for axis in args[1:3])
    if operator in (aten.cat, aten.stack, aten._softmax, aten._log_softmax, aten.select):
        axis = args[1] if len(args) > 1 else 0
        return axis % (first.ndim + (operator is aten.stack)) < output.ndim - 2
    if operator in (aten.slice, aten.split, aten.split_with_sizes, aten.unbind, aten.unsqueeze):
        place = {aten.slice: 1, aten.unbind: 1, aten.unsqueeze: 1}.get(operator, 2)
        axis = args[place] if len(args) > place else 0
        return axis % first.ndim in planes
    if operator in (aten.sum, aten.mean, aten.amax, aten.max, aten.min):
        axes = args[1] if len(args) > 1 else range(first.ndim)
        axes = axes if isinstance(axes, Sequence) else [axes]
        return all(axis % first.ndim in planes for axis in axes)
    return operator in WITHIN


WITHIN = (
    aten.alias,
    aten.clone,
    aten.contiguous,
    aten.detach,
    aten._to_copy,
    aten.copy_,
    aten._native_batch_norm_legit_no_training,
    aten.native_batch_norm,
    aten.cudnn_batch_norm,
    aten.native_dropout,
)


# Where an operator reads: (its arguments, axis 0 for rows or 1 for columns, length of the axis it
# reads, length of the axis it writes) -> [cells written, taps] cells read, -1 for none.


def _window(cells: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> Indices:
    return (np.arange(cells) * stride - padding)[:, None] + np.arange(kernel) * dilation


def _of_convolution(args: Any, axis: int, read: int, written: int) -> Indices:
    kernel = args[1].shape[2 + axis]
    stride, padding, dilation = (_per_axis(args[i], axis) for i in (3, 4, 5))
    if not args[6]:
        return _window(written, kernel, stride, padding, dilation)
    taps = (np.arange(written) + padding)[:, None] - np.arange(kernel) * dilation
    return np.where(taps % stride == 0, taps // stride, -1)


def _of_pool(args: Any, axis: int, read: int, written: int) -> Indices:
    kernel = _per_axis(args[1], axis)
    stride = _per_axis(args[2], axis) if len(args) > 2 and args[2] else kernel
    padding = _per_axis(args[3], axis) if len(args) > 3 else 0
    return _window(written, kernel, stride, padding)


def _of_bilinear(args: Any, axis: int, read: int, written: int) -> Indices:
    cells = np.arange(written)
    if args[2]:  # align_corners
        place = cells * ((read - 1) / max(written - 1, 1))
    else:
        place = ((cells + 0.5) * (read / written) - 0.5).clip(0)
    whole = np.floor(place + 1e-9).astype(np.int64)
    further = np.where(place - whole > 1e-9, (whole + 1).clip(max=read - 1), whole)
    return np.stack((whole, further), axis=1)


def _of_nearest(args: Any, axis: int, read: int, written: int) -> Indices:
    return (np.arange(written) * read // written)[:, None]


def _of_padding(args: Any, axis: int, read: int, written: int) -> Indices:
    before = _before(args, axis)
    return (np.arange(written) - before)[:, None]


def _of_repeated_padding(args: Any, axis: int, read: int, written: int) -> Indices:
    return _of_padding(args, axis, read, written).clip(0, read - 1)


def _of_mirrored_padding(args: Any, axis: int, read: int, written: int) -> Indices:
    taps = np.abs(_of_padding(args, axis, read, written))
    return read - 1 - np.abs(read - 1 - taps)


def _before(args: Any, axis: int) -> int:
    """Cells put before an axis; the columns' come first in the list."""
    place = 2 * (1 - axis)
    return int(args[1][place]) if len(args[1]) > place else 0


def _of_slice(args: Any, axis: int, read: int, written: int) -> Indices:
    along = args[1] % args[0].ndim - (args[0].ndim - 2) if len(args) > 1 else -1
    start = (args[2] or 0) if len(args) > 2 and along == axis else 0
    step = args[4] if len(args) > 4 and along == axis else 1
    first = start + read if start < 0 else start
    return (first + np.arange(written) * step)[:, None]


def _of_flip(args: Any, axis: int, read: int, written: int) -> Indices:
    flipped = args[0].ndim - 2 + axis in [a % args[0].ndim for a in args[1]]
    cells = np.arange(read)
    return (cells[::-1] if flipped else cells)[:, None]


def _per_axis(value: Any, axis: int) -> int:
    return int(value[axis % len(value)] if isinstance(value, Sequence) else value)


TAPS: dict[Any, Callable[[Any, int, int, int], Indices]] = {
    aten.convolution: _of_convolution,
    aten.max_pool2d_with_indices: _of_pool,
    aten.avg_pool2d: _of_pool,
    aten.upsample_bilinear2d: _of_bilinear,
    aten.upsample_nearest2d: _of_nearest,
    aten.constant_pad_nd: _of_padding,
    aten.replication_pad2d: _of_repeated_padding,
    aten.reflection_pad2d: _of_mirrored_padding,
    aten.slice: _of_slice,
    aten.flip: _of_flip,
}


def _macs(operator: Any, args: tuple[Any, ...], outputs: list[Tensor]) -> int:
    """Multiply-adds of an operator: a convolution's kernel once for every value that it makes."""
    if operator is aten.convolution:
        image, weight, transposed = args[0], args[1], args[6]
        return (image if transposed else outputs[0]).numel() * weight[0].numel()
    if operator in (aten.mm, aten.bmm):
        return outputs[0].numel() * args[0].shape[-1]
    if operator is aten.addmm:
        return outputs[0].numel() * args[1].shape[-1]
    return 0


def walk(run: Callable[[Tensor], Any], size: tuple[int, int]) -> Walk:
    """Run a network of the meta device on one image [1, 3, h, w] of `size` and follow it."""
    image = torch.empty(1, 3, *size, device="meta")
    walked = Walk()
    walked.start(image)
    with torch.no_grad(), torch.device("meta"), walked:
        run(image)
    return walked


def receptive_field(
    run: Callable[[Tensor], Any], size: tuple[int, int], cells: tuple[int, int]
) -> int | None:
    """Side in pixels of what the central cell of the last map of `cells` sees.

    It is measured on a much larger image, whose edges do not cut it, so it may exceed `size`.

    Args:
        run: the network, on the meta device.
        size: (h, w) of the image.
        cells: (h, w) of the map.

    Returns:
        The longer side; None where the field has no end, or an operator is not followed.
    """
    large = (size[0] * ENLARGED, size[1] * ENLARGED)
    h, w = cells[0] * ENLARGED, cells[1] * ENLARGED
    field = walk(run, large).seen.get((h, w))
    if field is None:
        return None
    for reach, n, side in zip(field, (h, w), large, strict=True):
        if reach.first[n // 2] <= 0 or reach.last[n // 2] >= side - 1:
            return None
    return max(field[0].extent(h // 2), field[1].extent(w // 2))


def measure(name: str) -> Cost:
    """The cost of a pose network of the registry for one window, or of a detector for a frame.

    A detector's frame is its first half and the second for as many boxes as it looks at most; its
    field is that of a cell of the coarsest level from which windows are cut.

    Raises:
        ModelError: unknown name.
    """
    with torch.device("meta"):
        if name in DETECTORS:
            detector, frame = create_detector(name), DETECTORS[name]
            windows = torch.empty(frame.proposals, frame.width, frame.pool, frame.pool)
            head = Walk()
            with torch.no_grad(), head:
                detector.classify(windows)
            macs = walk(detector.propose, frame.size).macs + head.macs
            coarsest = frame.strides[frame.pooled - 1]
            cells = frame.size[0] // coarsest, frame.size[1] // coarsest
            return Cost(_giga(macs), receptive_field(detector.propose, frame.size, cells))
        network, spec = create(name), MODELS[name]
    macs = walk(network.predict, spec.size).macs
    return Cost(_giga(macs), receptive_field(network.predict, spec.size, spec.cells))


def _giga(macs: int) -> float:
    return round(macs / 1e9, 2)


def main() -> None:
    """Write the table, to be pasted into costs.py."""
    for name in itertools.chain(MODELS, DETECTORS):
        cost = measure(name)
        sys.stdout.write(f'    "{name}": Cost({cost.gmacs}, {cost.receptive_field}),\n')
        sys.stdout.flush()


if __name__ == "__main__":
    main()
