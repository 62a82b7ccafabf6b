"""The reader of safetensors files where that package is missing, as on a machine with torch alone.

The format is that of safetensors (Hugging Face, 2022): eight bytes with the length of a header in
JSON, the header with type, shape and place of each tensor, and behind it their bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import torch

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


class SafetensorError(Exception):
    """As in the package; this reader raises others, which end the program."""


def load_file(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, on the host."""
    whole = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(bytes(whole[8:start]))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = TYPES[entry["dtype"]]
        flat = torch.empty(0, dtype=dtype)
        if end > begin:
            count = (end - begin) // dtype.itemsize
            flat = torch.frombuffer(whole, dtype=dtype, offset=start + begin, count=count)
        found[name] = flat.clone().reshape(entry["shape"])
    return found


def read_safetensors() -> None:
    """Put this module in the package's place where there is none."""
    try:
        import safetensors  # noqa: F401
    except ImportError:
        package, inner = ModuleType("safetensors"), ModuleType("safetensors.torch")
        package.SafetensorError, inner.load_file = SafetensorError, load_file
        sys.modules.update({"safetensors": package, "safetensors.torch": inner})
