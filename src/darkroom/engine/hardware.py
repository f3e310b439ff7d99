"""Which device and dtype to run on."""

from __future__ import annotations

import gc
import os

import torch

from darkroom.errors import Unsupported

BUDGET = 0.8  # of the device's memory for weights, where no budget is set: a picture needs room beside them
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The named device and dtype, or for `auto` the best here: CUDA with bf16 (fp16 on older cards), MPS with fp16, CPU with fp32.

    Raises Unsupported where the named one is not here.
    """
    where = torch.device(_best() if device == "auto" else _known(device))
    if dtype != "auto":
        if dtype not in DTYPES:
            raise Unsupported(f"dtype must be auto or one of {', '.join(DTYPES)}, got {dtype!r}")
        return where, DTYPES[dtype]
    if where.type == "cuda":
        return where, dtype_by_capability(torch.cuda.get_device_capability(where))
    return where, torch.float16 if where.type == "mps" else torch.float32


def dtype_by_capability(capability: tuple[int, int]) -> torch.dtype:
    """bf16 where the card computes in it, which begins with Ampere (8.0); torch also counts cards that only emulate it."""
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


def is_fatal(error: Exception) -> bool:
    """Whether the device is lost to this process: after an error of this kind every further call raises it again. A lack of memory
    passes, also where it is the device's own word and not that of torch's allocator."""
    if "out of memory" in str(error):
        return False
    lost = getattr(torch, "AcceleratorError", ())  # torch 2.8 and later
    return isinstance(error, lost) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def room_for_weights(gigabytes: float, device: torch.device) -> int:
    """Bytes that all weights may take: so many, or where that is 0 most of the device's memory."""
    return int(gigabytes * 1e9 or BUDGET * _memory_of(device))


def room_for_decodes(device: torch.device) -> int:
    """Bytes that decoding may take beside the weights: what no budget of weights counts on."""
    return int((1 - BUDGET) * _memory_of(device))


def _memory_of(device: torch.device) -> int:
    """Bytes of memory that the device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def empty_cache(device: torch.device) -> None:
    """Give memory that torch keeps for later back to the device."""
    gc.collect()
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()


def use_threads(count: int) -> int:
    """Set the CPU threads of a forward pass in this thread, and in those that begin later; 0 leaves the choice to torch (a core
    each, or OMP_NUM_THREADS). How many they are."""
    if count and count != torch.get_num_threads():  # to set them takes 0.03 ms, whatever they were
        torch.set_num_threads(count)
    return torch.get_num_threads()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device, on CUDA without waiting for the copy: there torch keeps pinned memory until it is read.
    Elsewhere the copy is waited for, since this memory may be gone by the time that it is read (pytorch#139550, of MPS)."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _known(device: str) -> str:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise Unsupported(f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}") from error
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(kind, False):
        raise Unsupported(f"device {device!r} is not on this machine")
    return device
