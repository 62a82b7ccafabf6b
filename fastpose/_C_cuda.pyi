"""Types of the compiled CUDA kernels; addresses and the stream are integers, sizes in pixels.

Arguments are checked in `fastpose.ops`. A launch that fails raises RuntimeError.
"""

def device_count() -> int:
    """CUDA devices of this machine; 0 without a driver."""

def warp_frames(
    *,
    data: int,
    strides: tuple[int, int],
    shape: tuple[int, int],
    affines: int,
    source: int,
    sources: int,
    count: int,
    size: tuple[int, int],
    area: int,
    border: float,
    out: int,
    out_type: str,
    scale: list[float],
    shift: list[float],
    swap_rb: bool,
    channels_last: bool,
    nv12_matrix: list[float] | None,
    stream: int,
) -> None:
    """Windows of uint8 frames; strides (frame, row) in bytes, shape (H, W), source 0: none."""

def warp_maps(
    *,
    data: int,
    strides: tuple[int, int, int],
    shape: tuple[int, int, int],
    affines: int,
    source: int,
    sources: int,
    count: int,
    size: tuple[int, int],
    area: int,
    border: float,
    out: int,
    out_type: str,
    scale: int,
    shift: int,
    swap_rb: bool,
    channels_last: bool,
    stream: int,
) -> None:
    """Windows of float32 maps; strides (map, channel, row) in elements, shape (C, H, W)."""
