"""The kernels: each a function with its reference beside it and a `backend=` argument."""

from fastpose.ops.decode import decode
from fastpose.ops.render import render
from fastpose.ops.suppress import suppress_boxes, suppress_poses
from fastpose.ops.warp import warp

__all__ = ["decode", "render", "suppress_boxes", "suppress_poses", "warp"]
