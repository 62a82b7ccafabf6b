"""Half precision that a module itself carries: weights and casts by type, islands in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastpose.models.predictor import Predictor
from fastpose.models.spec import ModelSpec
from fastpose.models.weights import LARGEST_HALF

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
ROOM = 16.0  # how far below the largest half a layer must stay: some of them are summed


def give_types(module: Predictor, precision: str, pictures: Tensor) -> None:
    """Make a float32 module compute in half precision, in place, so that its trace says so.

    Every layer's weights have their type, and its input is cast to it. In float32 stay

    - norms, whose result goes back to half;
    - for "bf16" the layer whose result is the maps: with 8 bits they tell less well where between
      two cells a peak lies (of the default model's joints half then move by more than 0.044 pixels
      instead of 0.019);
    - for "f16" each layer whose weights, input or result come near the end of that type's range;
      its result stays float32 until a layer in half takes it.

    What has no weights keeps the types it is given, the wider of two. Layers whose weights somebody
    else multiplies with are not looked at; what they make of the results, a verification shows.

    Args:
        module: in eval mode; batch norm should be folded first.
        precision: "f16" or "bf16".
        pictures: [N, 3, h, w] that the ranges are looked up on.
    """
    half = TYPES[precision]
    wide = _wide_layers(module, precision, pictures)
    for part in _layers(module):
        norm = isinstance(part, NORMS)
        kept = torch.float32 if norm or part in wide else half
        for parameter in part.parameters(recurse=False):
            parameter.data = parameter.data.to(kept)
        part.register_forward_pre_hook(_casting_given(kept))
        if norm and part not in wide:
            part.register_forward_hook(_casting_result(half))


def pictures_of_noise(spec: ModelSpec) -> Tensor:
    """Two windows [2, 3, h, w] as the network is fed: noise of pixels, and of patches."""
    generator = torch.Generator().manual_seed(0)
    h, w = spec.size
    pixels = torch.rand(1, 3, h, w, generator=generator)
    patches = torch.rand(1, 3, h // 16 + 1, w // 16 + 1, generator=generator)
    both = torch.cat((pixels, F.interpolate(patches, size=(h, w), mode="bilinear")))
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (spec.mean, spec.std))
    return (255.0 * both - mean) / std


def _layers(module: nn.Module) -> list[nn.Module]:
    """The modules that have weights of their own."""
    return [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]


def _wide_layers(module: Predictor, precision: str, pictures: Tensor) -> set[nn.Module]:
    """Those besides norms that `give_types` leaves in float32."""
    layers, leaving = _layers(module), set()
    results: dict[nn.Module, Any] = {}

    def look(part: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        if precision == "bf16":
            results[part] = result
        if any(_leaves_half(value) for value in (*given, result) if isinstance(value, Tensor)):
            leaving.add(part)

    hooks = [part.register_forward_hook(look) for part in layers]
    try:
        with torch.inference_mode():
            maps = module.maps(pictures)
    finally:
        for hook in hooks:
            hook.remove()
    if precision == "bf16":
        return {part for part, result in results.items() if any(result is m for m in maps)}
    weights = {
        part
        for part in layers
        if any(p.abs().amax() > LARGEST_HALF for p in part.parameters(recurse=False))
    }
    return leaving | weights


def _leaves_half(values: Tensor) -> bool:
    return not bool(values.abs().amax() <= LARGEST_HALF / ROOM)  # NaN does, too


def _casting_given(kind: torch.dtype) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def cast(part: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.to(kind) if isinstance(value, Tensor) else value for value in given)

    return cast


def _casting_result(kind: torch.dtype) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def cast(part: nn.Module, given: tuple[Any, ...], result: Any) -> Any:
        return result.to(kind)

    return cast
