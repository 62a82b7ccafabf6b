"""Types of the compiled CPU kernels. Arguments are checked in `fastpose.ops`, not here.

`isa` is "auto", "scalar", "avx2" or "avx512"; one that the processor lacks raises ValueError. Only
"auto" goes beyond "avx512": to VBMI and VNNI, in `warp_bytes` and `warp_table`.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

def best_isa() -> str:
    """Widest instruction set of this processor: "scalar", "avx2" or "avx512"."""

def get_num_threads() -> int:
    """Threads that one kernel call may use, the caller among them."""

def set_num_threads(threads: int) -> None:
    """Limit the threads of one kernel call; ValueError below 1."""

def warp_bytes(
    frames: npt.NDArray[np.uint8],
    affines: Floats,
    source: npt.NDArray[np.int32] | None,
    areas: npt.NDArray[np.int32] | None,
    out: np.ndarray,
    scale: Floats,
    shift: Floats,
    border: float,
    area: int,
    swap_rb: bool,
    channels_last: bool,
    isa: str = "auto",
) -> None:
    """Windows of frames [T, H, W, 3], the last two axes dense, into `out` (uint16: bfloat16).

    `area` counts where `areas` is None; a source out of range gives a window of border.
    """

def warp_table(
    table: npt.NDArray[np.int64],
    affines: Floats,
    source: npt.NDArray[np.int32] | None,
    areas: npt.NDArray[np.int32] | None,
    out: np.ndarray,
    scale: Floats,
    shift: Floats,
    border: float,
    area: int,
    swap_rb: bool,
    channels_last: bool,
    isa: str = "auto",
) -> None:
    """As `warp_bytes`, for frames of different sizes: the rows of a `fastpose.ops.FrameTable`."""

def warp_maps(
    maps: Floats,
    affines: Floats,
    source: npt.NDArray[np.int32] | None,
    areas: npt.NDArray[np.int32] | None,
    out: np.ndarray,
    scale: Floats,
    shift: Floats,
    border: float,
    area: int,
    swap_rb: bool,
    channels_last: bool,
    isa: str = "auto",
) -> None:
    """Windows of maps [T, C, H, W], the last axis dense, into `out` (uint16: bfloat16)."""

def decode(
    maps: np.ndarray,
    flipped: np.ndarray | None,
    partner: npt.NDArray[np.int32],
    mean: bool,
    flip_shift: int,
    method: str,
    taps: npt.NDArray[np.float64],
    peak_value: float,
    affines: npt.NDArray[np.float64] | None,
    points: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    isa: str = "auto",
) -> None:
    """Peaks of [S, N, K, h, w] into points [N, K, peaks, 2] and scores [N, K, peaks].

    `maps` is float32, float16, or the bits of bfloat16 in 16-bit integers. All arrays are
    C-contiguous.
    """

def decode_simcc(
    x: Floats,
    y: Floats,
    flipped_x: Floats | None,
    flipped_y: Floats | None,
    partner: npt.NDArray[np.int32],
    split: float,
    flip_shift: int,
    peak_value: float,
    affines: npt.NDArray[np.float64] | None,
    points: Floats,
    scores: Floats,
    isa: str = "auto",
) -> None:
    """Peaks of [N, K, bins], the last axis dense, into points [N, K, 2] and scores [N, K]."""

def suppress_boxes(
    boxes: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    classes: npt.NDArray[np.int64],
    method: str,
    iou: float,
    sigma: float,
    floor: float,
) -> tuple[npt.NDArray[np.int64], Floats]:
    """[N, 4], [N], [N] -> indices and scores of the boxes that are kept."""

def suppress_poses(
    keypoints: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    areas: npt.NDArray[np.float64],
    sigmas: npt.NDArray[np.float64],
    method: str,
    oks: float,
) -> tuple[npt.NDArray[np.int64], Floats]:
    """[N, K, 2], [N], [N], [K] -> indices and scores of the poses that are kept."""

def fit_tree(
    scores: Floats,
    parents: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    anchors: npt.NDArray[np.int64],
    weight: float,
) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """[N, P, T, h, w] -> points [N, P, 2], types [N, P] and totals [N]; `order` is root first."""
