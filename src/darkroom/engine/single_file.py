"""What of a single file in its authors' layout reaches the nets: told by running diffusers' own converters over its header.

diffusers drops in silence what its converters do not know. A file that holds more than they know is another kind of model, and
its pictures would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.loaders import single_file_utils as converters

from darkroom.engine.weights import refuse_unknown, shapes_in

Tensors = dict[str, Any]

CLIP_L = ("conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer.")
OPEN_CLIP, CLIP_G = "conditioner.embedders.1.model.", "text_encoders.clip_g.transformer."


class _Named(torch.Tensor):
    """A tensor without values that remembers which tensors of a file it was made of."""

    names: frozenset[str] = frozenset()

    @staticmethod
    def of(name: str, shape: Iterable[int]) -> _Named:
        tensor = torch.empty(tuple(shape), device="meta").as_subclass(_Named)
        tensor.names = frozenset((name,))
        return tensor

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(function, types, args, kwargs or {})
        names = frozenset[str]().union(*(tensor.names for tensor in _named_in(args)))
        for tensor in _named_in((out,)):
            tensor.names = tensor.names | names
        return out


def _named_in(values: Any) -> Iterable[_Named]:
    for value in values:
        if isinstance(value, _Named):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _named_in(value)


def check_all_used(file: Path, kinds: Mapping[str, Any], config: Path) -> None:
    """By the file's header and the configs of its nets: raises Unsupported if the file holds a tensor that reaches none of them and is
    not known to be harmless."""
    shapes = shapes_in(file)
    used: set[str] = set()
    for name, kind in kinds.items():
        net = _empty(kind, config / name)
        tensors = {key: _Named.of(key, shape) for key, shape in shapes.items()}
        own = {_bare(key) for key in net.state_dict()}
        for key, tensor in CONVERTERS[name](tensors, net).items():
            if _bare(key) in own and isinstance(tensor, _Named):
                used |= tensor.names
    refuse_unknown(file.name, set(shapes) - used)


def _empty(kind: Any, folder: Path) -> Any:
    """A net without values."""
    with init_empty_weights():
        if hasattr(kind, "from_config"):  # of diffusers
            return kind.from_config(kind.load_config(folder, local_files_only=True))
        return kind(kind.config_class.from_pretrained(folder, local_files_only=True))


def _bare(name: str) -> str:
    """Without the prefix that some versions of transformers give a text model."""
    return name.removeprefix("text_model.")


def _unet(tensors: Tensors, net: Any) -> Tensors:
    return converters.convert_ldm_unet_checkpoint(tensors, config=dict(net.config))


def _vae(tensors: Tensors, net: Any) -> Tensors:
    return converters.convert_ldm_vae_checkpoint(tensors, config=dict(net.config))


def _transformer(tensors: Tensors, net: Any) -> Tensors:
    return converters.convert_sd3_transformer_checkpoint_to_diffusers(tensors)


def _clip(tensors: Tensors, net: Any) -> Tensors:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() for prefix in CLIP_L if key.startswith(prefix)}


def _second_clip(tensors: Tensors, net: Any) -> Tensors:
    if any(key.startswith(CLIP_G) for key in tensors):
        return {key.removeprefix(CLIP_G): tensor for key, tensor in tensors.items() if key.startswith(CLIP_G)}
    return converters.convert_open_clip_checkpoint(net, tensors, prefix=OPEN_CLIP)


def _t5(tensors: Tensors, net: Any) -> Tensors:
    return converters.convert_sd3_t5_checkpoint_to_diffusers(tensors)


CONVERTERS: dict[str, Callable[[Tensors, Any], Tensors]] = {
    "unet": _unet,
    "vae": _vae,
    "transformer": _transformer,
    "text_encoder": _clip,
    "text_encoder_2": _second_clip,
    "text_encoder_3": _t5,
}
