"""What two networks share."""

from __future__ import annotations

from torch import nn


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
