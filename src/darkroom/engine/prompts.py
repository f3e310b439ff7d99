"""From words to token ids, and from which word on an encoder cannot hear."""

from __future__ import annotations

import re
from typing import Any

import torch


def token_ids(tokenizer: Any, limit: int, prompt: str, device: torch.device) -> torch.Tensor:
    """[1, limit] ids, padded or cut: every prompt has one shape, so all can share a batch without masks."""
    return tokenizer(prompt, padding="max_length", max_length=limit, truncation=True, return_tensors="pt").input_ids.to(device)


def cut_word(tokenizer: Any, limit: int, prompt: str) -> str:
    """The first word that does not fit into `limit` tokens; empty where all fit."""
    whole = tokenizer(prompt, return_offsets_mapping=True, truncation=False, verbose=False)
    if len(whole.input_ids) <= limit:
        return ""
    start = whole.offset_mapping[limit - 1][0]  # the last place holds the end token
    words = [word for word in re.finditer(r"\S+", prompt) if word.start() <= start]
    return words[-1][0][:40] if words else prompt[start : start + 1]


def cut_note(tokenizer: Any, limit: int, prompt: str) -> str:
    """From which word on the prompt was cut, as a sentence; empty where it was not."""
    word = cut_word(tokenizer, limit, prompt)
    return f"the prompt is longer than {limit} tokens and was cut from {word!r} on" if word else ""
