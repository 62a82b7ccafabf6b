"""Messages along a tree of parts: each part's feature map refined by those of its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fastpose.errors import BackendError
from fastpose.ops.choose import choose
from fastpose.ops.fit_tree import root_first

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DIRECTIONS = ("up", "down", "both")
ACTIVATE = ("after", "before")
LARGEST_SIDE = 15  # of the kernels that "triton" takes: two bits for each tap make a word


class Edge(NamedTuple):
    """One message: which kernel it takes, and from which map to which."""

    kernel: int
    source: int
    target: int


def propagate(
    features: Tensor,
    kernels: Sequence[Tensor],
    biases: Sequence[Tensor],
    parents: Sequence[int],
    *,
    direction: str,
    activate: str = "after",
    backend: str | None = None,
) -> Tensor:
    """Pass messages from the leaves of a tree to its root, or from the root to the leaves.

    With A_k the raw map of part k, and f the ReLU, the refined map is

    - "up": A'_k = f(A_k + sum over children c of m_c(A'_c)); a leaf is f(A_k);
    - "down": A'_k = f(A_k + m_k(A'_parent)); the root is f(A_k).

    A message m is as many convolutions as there are kernels, f between them and none behind the
    last: a message may take away as well as add. (Chu, Ouyang, Li, Wang, Structured Feature
    Learning for Pose Estimation, CVPR 2016, whose kernels are 7 x 7 and move a response by up to
    3 cells each.)

    Args:
        features: [N, J, C, H, W], floating, the raw maps.
        kernels: one for each convolution of a message, [E, C_out, C_in, s, s], s odd: E = J - 1
            edges in the order of their child. The first takes C channels, each the channels of
            that before it, the last gives C.
        biases: [E, C_out] for each kernel.
        parents: of each part its parent's index; -1 for the root.
        direction: "up", "down", or "both": two independent passes at once. Features are then
            [N, 2, J, C, H, W], kernels [2, E, C_out, C_in, s, s], biases [2, E, C_out], the
            first for "up".
        activate: "after" as above, as the authors' code does; "before": f is applied to A_k, too,
            as the paper's formula does.
        backend: "triton" or "reference"; None means the fastest for the device. "triton" has
            kernels for float16, bfloat16 and float32 (multiplied as torch's convolutions are, in
            TF32 unless that is switched off) and for sides up to 15. It reads channels-last
            features and kernels where they lie and copies others in every call: a module on CUDA
            should be `.to(memory_format=torch.channels_last)`. Its gradient is the reference's.
            What is traced (`torch.export`, `torch.compile`) takes the reference, too.

    Returns:
        The refined maps, in shape, type and device like `features`; in memory channels-last from
        "triton".

    Raises:
        ValueError: an argument is not as above, or `parents` is no tree; the text names the node.
        BackendError: torch is not installed, or `backend` was named and cannot run here.
    """
    _check_options(direction, activate)
    depths = tree_depths(parents)
    _check(features, kernels, biases, len(depths), direction)
    unfit = _unfit(features, kernels)
    if unfit and backend == "triton":
        raise BackendError(f"backend 'triton' cannot run on {unfit}; usable: reference")
    run = propagate_reference
    if choose(backend, features, kernels=() if unfit else ("triton",)) == "triton":
        from fastpose.ops.triton.propagate import propagate as run
    return run(features, kernels, biases, parents, direction=direction, activate=activate)


def propagate_reference(
    features: Tensor,
    kernels: Sequence[Tensor],
    biases: Sequence[Tensor],
    parents: Sequence[int],
    *,
    direction: str,
    activate: str,
) -> Tensor:
    """`propagate` in plain torch, a grouped convolution for all messages of one depth.

    Parts of one depth do not hear of each other, and the two directions never do, so a tree takes
    as many steps as it is deep, however many edges it has.
    """
    import torch

    if direction == "both":
        shape = features.shape[1:3]
        features = features.flatten(1, 2)
        kernels = [kernel.flatten(0, 1) for kernel in kernels]
        biases = [bias.flatten(0, 1) for bias in biases]
    if activate == "before":
        features = torch.relu(features)
    steps = schedule(parents, direction)
    waiting = {edge.target for edges in steps for edge in edges}
    maps = list(features.unbind(1))
    maps = [m if node in waiting else torch.relu(m) for node, m in enumerate(maps)]
    for edges in steps:
        for edge, message in zip(edges, _messages(maps, kernels, biases, edges), strict=True):
            maps[edge.target] = maps[edge.target] + message
        for target in {edge.target for edge in edges}:
            maps[target] = torch.relu(maps[target])
    refined = torch.stack(maps, dim=1)
    return refined.unflatten(1, shape) if direction == "both" else refined


def _messages(
    maps: list[Tensor], kernels: Sequence[Tensor], biases: Sequence[Tensor], edges: list[Edge]
) -> tuple[Tensor, ...]:
    """The messages [N, C, H, W] of edges that do not wait for each other."""
    import torch
    import torch.nn.functional as F

    x = torch.cat([maps[edge.source] for edge in edges], dim=1)
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        x = F.conv2d(
            torch.relu(x) if i else x,
            torch.cat([kernel[edge.kernel] for edge in edges]),
            torch.cat([bias[edge.kernel] for edge in edges]),
            padding=kernel.shape[-1] // 2,
            groups=len(edges),
        )
    return x.chunk(len(edges), dim=1)


def schedule(parents: Sequence[int], direction: str) -> list[list[Edge]]:
    """The messages by the step in which they are sent.

    In "both" the nodes and kernels of the downward pass are counted on from those of the upward.

    Raises:
        ValueError: `parents` is no tree.
    """
    depths = tree_depths(parents)
    children = [node for node, parent in enumerate(parents) if parent >= 0]

    def level(depth: int, up: bool, first: int) -> list[Edge]:
        node, kernel = first * len(depths), first * len(children)
        return [
            Edge(
                kernel + i,
                node + (child if up else parents[child]),
                node + (parents[child] if up else child),
            )
            for i, child in enumerate(children)
            if depths[child] == depth
        ]

    levels = range(1, max(depths) + 1)
    upward = [level(depth, True, 0) for depth in reversed(levels)]
    downward = [level(depth, False, int(direction == "both")) for depth in levels]
    match direction:
        case "up":
            return upward
        case "down":
            return downward
    return [up + down for up, down in zip(upward, downward, strict=True)]


def tree_depths(parents: Sequence[int]) -> list[int]:
    """How many edges each node lies below the root.

    Raises:
        ValueError: `parents` is no tree.
    """
    depths = [0] * len(parents)
    for node in root_first(parents):
        depths[node] = depths[parents[node]] + 1 if parents[node] >= 0 else 0
    return depths


def _unfit(features: Tensor, kernels: Sequence[Tensor]) -> str:
    """What keeps "triton" from running, in words; nothing where it can."""
    import torch

    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or type(features) not in (torch.Tensor, torch.nn.Parameter):
        return "tensors that are traced"  # the graph shall hold ordinary convolutions
    if features.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return str(features.dtype)
    if features.dtype == torch.bfloat16 and features.device.type == "cpu":
        return "bfloat16 in Triton's interpreter, which multiplies it wrongly"
    side = max(kernel.shape[-1] for kernel in kernels)
    return f"kernels of side {side}" if side > LARGEST_SIDE else ""


def _check_options(direction: str, activate: str) -> None:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    if activate not in ACTIVATE:
        raise ValueError(f"activate must be one of {', '.join(ACTIVATE)}, got {activate!r}")


def _check(
    features: Tensor,
    kernels: Sequence[Tensor],
    biases: Sequence[Tensor],
    nodes: int,
    direction: str,
) -> None:
    try:
        import torch
    except ImportError:
        raise BackendError(
            "propagate needs torch; install the extra: fastpose-inference[torch]"
        ) from None
    if not isinstance(features, torch.Tensor) or not features.is_floating_point():
        came = features.dtype if isinstance(features, torch.Tensor) else type(features).__name__
        raise ValueError(f"features must be a floating torch tensor, got {came}")
    both = [2] if direction == "both" else []
    shape = list(features.shape)
    if len(shape) != 4 + len(both) + 1 or shape[1:-3] != [*both, nodes]:
        wanted = ", ".join(map(str, ["N", *both, nodes, "C", "H", "W"]))
        raise ValueError(f"features must be [{wanted}], got {shape}")
    if not len(kernels) == len(biases) > 0:
        raise ValueError(
            "kernels and biases must be lists of one length, at least 1, "
            f"got {len(kernels)} and {len(biases)}"
        )
    lead = [*both, nodes - 1]
    taken = shape[-3]  # channels, by the next kernel
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        _check_like(f"kernels[{i}]", kernel, features)
        _check_like(f"biases[{i}]", bias, features)
        given = shape[-3] if i == len(kernels) - 1 else "C_out"
        came = list(kernel.shape)
        if len(came) == len(lead) + 4 and given == "C_out":
            given = came[-4]
        side = came[-1] if came else 0
        if came != [*lead, given, taken, side, side] or side % 2 == 0:
            wanted = ", ".join(map(str, [*lead, given, taken, "s", "s"]))
            raise ValueError(f"kernels[{i}] must be [{wanted}] with s odd, got {came}")
        taken = came[-4]
        if list(bias.shape) != [*lead, taken]:
            raise ValueError(
                f"biases[{i}] must be {[*lead, taken]} like its kernel, got {list(bias.shape)}"
            )


def _check_like(name: str, value: torch.Tensor, features: Tensor) -> None:
    import torch

    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a torch tensor, got {type(value).__name__}")
    fits = value.device == features.device
    if value.dtype != features.dtype:  # autocast makes the types agree itself
        fits = fits and torch.is_autocast_enabled(features.device.type)
    if not fits:
        raise ValueError(
            f"{name} must be {features.dtype} on {features.device} like features, "
            f"got {value.dtype} on {value.device}"
        )
