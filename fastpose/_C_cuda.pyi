"""Types of the compiled CUDA kernels; addresses and the stream are integers, sizes in pixels.

Arguments are checked in `fastpose.ops`. An address of 0 stands for an array that is not given. A
launch that fails raises RuntimeError.
"""

def device_count() -> int:
    """CUDA devices of this machine; 0 without a driver."""

def warp_frames(
    *,
    data: int,
    strides: tuple[int, int],
    shape: tuple[int, int],
    table: int,
    affines: int,
    source: int,
    areas: int,
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
    """Windows of uint8 frames.

    strides (frame, row) in bytes, shape (H, W); with `table`, int64 [sources, 4] as of FrameTable,
    neither they nor `data` count. areas: int32 [count]; with it `area` does not count.
    """

def warp_maps(
    *,
    data: int,
    maps_type: str,
    strides: tuple[int, ...],
    shape: tuple[int, ...],
    affines: int,
    source: int,
    areas: int,
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
    """Windows of maps; strides (map, channel, row, column) in elements, shape (C, H, W).

    Raises ValueError where the size times the channels passes 2^31.
    """

def scatter_maps(
    *,
    grad: int,
    grad_type: str,
    grad_strides: tuple[int, ...],
    total: int,
    strides: tuple[int, ...],
    shape: tuple[int, ...],
    affines: int,
    source: int,
    areas: int,
    sources: int,
    count: int,
    size: tuple[int, int],
    area: int,
    scale: int,
    swap_rb: bool,
    stream: int,
) -> None:
    """Add the gradient of maps to `total`, float32, shape (C, H, W).

    grad_strides (window, channel, row, column) and strides (map, channel, row, column) in elements.
    """
