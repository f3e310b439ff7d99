"""LoRAs laid over the nets for the length of a pass. The nets themselves are never changed: hooks add what each layer
gives beside them, and leave with the pass, so Samples with other LoRAs, or none, may take the next step."""

from __future__ import annotations

import io
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.nn import functional

from darkroom.engine.family import Family
from darkroom.engine.lora_header import Unfit, file_of, read_head, version_of
from darkroom.engine.lora_names import Layer, Layers, diffusers_layers, kohya_layers
from darkroom.engine.sample import LoraKey
from darkroom.errors import Invalid, Unavailable
from darkroom.types import Lora

log = logging.getLogger(__name__)

Patch = tuple[torch.nn.Module, list[tuple[Layer, float]]]  # a module, and the layers to add to it with their scales


@dataclass(frozen=True, eq=False)
class LoadedLora:
    """The layers of one file by `net.module`, in the nets' dtype, on their device."""

    layers: Layers
    nbytes: int


@dataclass(frozen=True, eq=False)
class LoraSet:
    """What a Sample's LoRAs add to the denoiser and to the text encoders. `heard` are those that change a text encoder; texts
    are alike where it is. `loaded` keeps them in memory while the Sample lives."""

    denoiser: Sequence[Patch] = ()
    encoders: Sequence[Patch] = ()
    heard: tuple[LoraKey, ...] = ()
    loaded: tuple[LoadedLora, ...] = ()


class Loras:
    """The LoRAs of one model, from a folder; read when they are first asked for, kept up to `most` bytes after their last
    Sample, the least recently used leave first. One that is in use is never read twice."""

    def __init__(self, family: Family, folder: Path, most: int):
        self._family, self._folder, self._most = family, folder, most
        self._kept: OrderedDict[tuple[str, str], LoadedLora] = OrderedDict()
        self._alive: WeakValueDictionary[tuple[str, str], LoadedLora] = WeakValueDictionary()

    @property
    def nbytes(self) -> int:
        """Bytes of those in memory."""
        return sum(lora.nbytes for lora in list(self._alive.values()))

    def keys(self, loras: Sequence[Lora]) -> tuple[LoraKey, ...]:
        """Which files are meant, as they lie there now. Raises Invalid for one that is gone."""
        try:
            return tuple(LoraKey(lora.name, lora.scale, version_of(file_of(self._folder, lora.name))) for lora in loras)
        except OSError as error:
            raise Invalid("loras must be files that are here, and one is gone", name="invalid_loras") from error

    def fetch(self, keys: Sequence[LoraKey]) -> LoraSet:
        """Ready to be laid over the nets. Raises Invalid for a file that does not fit the model, Unavailable for one that was
        replaced since it was asked for."""
        loaded = tuple(self._load(key) for key in keys)
        patches: dict[str, list[tuple[Layer, float]]] = {}
        for key, lora in zip(keys, loaded, strict=True):
            for name, layer in lora.layers.items():
                patches.setdefault(name, []).append((layer, key.scale))
        encoders = {name for name in patches if name.startswith("text_encoder")}
        heard = tuple(key for key, lora in zip(keys, loaded, strict=True) if encoders & lora.layers.keys())
        return LoraSet(self._patches(patches, patches.keys() - encoders), self._patches(patches, encoders), heard, loaded)

    def _patches(self, patches: dict[str, list[tuple[Layer, float]]], names: set[str]) -> list[Patch]:
        return [(self._module(name), patches[name]) for name in patches if name in names]

    def _module(self, name: str) -> Any:
        net, _, module = name.partition(".")
        return self._family.nets()[net].get_submodule(module)

    def _load(self, key: LoraKey) -> LoadedLora:
        at = (key.name, key.version)
        lora = self._alive.get(at)
        if lora is None:
            lora = self._alive[at] = self._read(key)
        self._kept[at] = lora
        self._kept.move_to_end(at)
        while sum(kept.nbytes for kept in self._kept.values()) > self._most:
            self._kept.popitem(last=False)
        return lora

    def _read(self, key: LoraKey) -> LoadedLora:
        try:
            layers = dict(self._placed(name, layer) for name, layer in self._layers(self._content(key)).items())
        except Unfit as unfit:
            raise Invalid(f"loras must fit the model, but {key.name} cannot be used: {unfit}", name="invalid_loras") from unfit
        return LoadedLora(layers, sum(layer.down.nbytes + layer.up.nbytes for layer in layers.values()))

    def _content(self, key: LoraKey) -> bytes:
        """The whole file at once: a memory map of one that is cut off meanwhile would end the process."""
        file = file_of(self._folder, key.name)
        try:
            content = file.read_bytes()
            same = version_of(file) == key.version
        except OSError as error:
            raise Unfit("it cannot be read, or is gone") from error
        if not same:
            raise Unavailable(f"the LoRA {key.name} was replaced while this request waited; send it again", retry_after=1)
        return content

    def _layers(self, content: bytes) -> Layers:
        from safetensors import SafetensorError
        from safetensors.torch import load

        head = read_head(io.BytesIO(content), len(content))
        if self._family.name not in head.families:
            raise Unfit(f"it is for {' or '.join(head.families)}, and the model is of {self._family.name}")
        try:
            weights = load(content)
            return self._family.from_kohya(kohya_layers(weights)) if head.format == "kohya" else diffusers_layers(weights, head)
        except (SafetensorError, ValueError, KeyError, IndexError, TypeError) as error:  # a name that diffusers' converter cannot make out
            log.error("a LoRA could not be converted: %r", error)
            raise Unfit(f"its names could not be made out ({type(error).__name__})") from error

    def _placed(self, name: str, layer: Layer) -> tuple[str, Layer]:
        """A layer by the module's own name, in its dtype and place. Raises Unfit where the model has no such module, or one of
        another shape."""
        name = self._named(name)
        weight, rank = self._module(name).weight, layer.down.shape[0]
        down, up = (rank, *weight.shape[1:]), (weight.shape[0], rank, *[1] * (weight.dim() - 2))
        if layer.down.shape != down or layer.up.shape != up:
            raise Unfit(f"its layer {name[:100]!a} is {list(layer.down.shape)} and {list(layer.up.shape)}, this model needs {list(down)} and {list(up)}")
        return name, Layer(layer.down.to(weight.device, weight.dtype), layer.up.to(weight.device, weight.dtype))

    def _named(self, name: str) -> str:
        """The name as this model has it: versions of transformers differ in whether CLIP's layers lie in `text_model`."""
        net, _, module = name.partition(".")
        for spelling in (module, module.removeprefix("text_model."), f"text_model.{module}"):
            with suppress(AttributeError, KeyError):
                if isinstance(self._module(f"{net}.{spelling}"), (torch.nn.Linear, torch.nn.Conv2d)):
                    return f"{net}.{spelling}"
        raise Unfit(f"this model has no layer {name[:100]!a}")


def laid(patches: Sequence[Patch]) -> AbstractContextManager[None]:
    """While the context lasts the modules give what their LoRAs make of them."""
    return _laid(patches) if patches else nullcontext()  # a step of a small net feels what a generator costs


@contextmanager
def _laid(patches: Sequence[Patch]) -> Iterator[None]:
    handles = [module.register_forward_hook(_Added(layers)) for module, layers in patches]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Added:
    """A hook: W x + sum of scale * up(down(x)) (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, layers: list[tuple[Layer, float]]):
        self._layers = layers

    def __call__(self, module: Any, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        for layer, scale in self._layers:
            if isinstance(module, torch.nn.Conv2d):
                inner = functional.conv2d(args[0], layer.down, None, module.stride, module.padding, module.dilation, module.groups)
                out = out + functional.conv2d(inner, layer.up) * scale
            else:
                out = out + functional.linear(functional.linear(args[0], layer.down), layer.up) * scale
        return out
