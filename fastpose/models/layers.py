"""What two networks share."""

from __future__ import annotations

from torch import Tensor, nn

from fastpose.errors import ModelError


def check_joints(num_keypoints: int) -> None:
    """Raise ModelError unless it is a number of joints."""
    if type(num_keypoints) is not int or num_keypoints < 1:
        raise ModelError(f"num_keypoints must be a whole number from 1, got {num_keypoints!r}")


def check_image(image: Tensor, channels: tuple[int, ...], multiple: int) -> None:
    """Raise ValueError unless the image fits the network.

    Args:
        image: [N, C, h, w].
        channels: what C may be.
        multiple: of what h and w must be: the network's coarsest stride.
    """
    fits = (
        image.ndim == 4
        and image.shape[1] in channels
        and all(side > 0 and side % multiple == 0 for side in image.shape[2:])
    )
    if not fits:
        names = " or ".join(map(str, channels))
        raise ValueError(
            f"image must be [N, {names}, h, w] with h and w multiples of {multiple}, "
            f"got {list(image.shape)}"
        )


def conv(cin: int, cout: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU.

    At stride 2 the kernel must be even: an odd one samples off the centre of the cells on an even
    width, and the network would no longer answer a mirrored picture with mirrored maps.
    """
    assert stride == 1 or kernel % 2 == 0, "stride 2 needs an even kernel"
    padding = (kernel - stride + 1) // 2
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(cout),
        nn.ReLU(inplace=True),
    )
