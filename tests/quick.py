"""What libraries find out anew in every call, found out once in a process.

Nothing of what a call gives is other than without. Where a library's insides are not those that are
known here, it is left as it is.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any


@functools.cache
def quicken_interpreter() -> None:
    """Triton's interpreter looks through its language's modules for every function that is called.

    It also makes its table of types for every number.
    """
    try:
        from triton import language
        from triton.runtime import interpreter

        patch, type_of = interpreter._patch_attr, interpreter._get_np_dtype
    except (ImportError, AttributeError):
        return
    known = ["pkg", "builder", "scope"]
    if list(inspect.signature(interpreter._patch_builtin).parameters) != known:
        return
    is_builtin = language.core.is_builtin

    @functools.cache
    def builtins(package: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if is_builtin(member)]

    def patch_builtin(pkg: Any, builder: Any, scope: Any) -> None:
        for name in builtins(pkg):  # the first call finds them all: nothing is replaced yet
            member = getattr(pkg, name)
            if is_builtin(member):
                patch(pkg, name, member, builder, scope)

    of_scalar = functools.cache(type_of)

    def get_np_dtype(dtype: Any) -> Any:
        scalar = dtype.scalar
        return type_of(dtype) if scalar.is_ptr() else of_scalar(scalar)

    interpreter._patch_builtin, interpreter._get_np_dtype = patch_builtin, get_np_dtype


@functools.cache
def quicken_export() -> None:
    """PyTorch's exporter reads the source of all of onnxscript's operators for every graph."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        make = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError):
        return
    ONNXRegistry.from_torchlib = staticmethod(functools.cache(make))
