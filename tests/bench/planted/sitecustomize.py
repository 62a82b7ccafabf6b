"""Faults in every Python that is started with this folder on its path.

`decode` does all its work twice, and `warp` cuts its windows half a pixel beside their place.
"""

from fastpose.ops import cpp

_decode, _warp = cpp.decode, cpp.warp


def decode(*arguments, **named):
    _decode(*arguments, **named)
    return _decode(*arguments, **named)


def warp(frames, affines, *arguments, **named):
    shifted = affines.copy()
    shifted[..., 2] += 0.5
    _warp(frames, shifted, *arguments, **named)


cpp.decode, cpp.warp = decode, warp
