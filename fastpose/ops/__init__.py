"""The kernels: each a function with a torch reference beside it and a `backend=` argument."""

from fastpose.ops.render import render
from fastpose.ops.warp import warp

__all__ = ["render", "warp"]
