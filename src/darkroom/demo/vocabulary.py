"""The tokenizer: byte-pair merges learnt from the words of the language, in CLIP's own file format.

Every word of the language becomes one token; any other text still tokenizes, by shorter pieces down to letters.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from .language import EXTRA_WORDS, WORDS

LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
LAST = "</w>"  # ends the last piece of a word


def make_tokenizer() -> CLIPTokenizer:
    """The same tokenizer every time: padded with END to LENGTH tokens, as SDXL's."""
    merges = learn_merges(sorted({*WORDS, *EXTRA_WORDS}))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = dict.fromkeys([*letters, *(letter + LAST for letter in letters), *map("".join, merges), START, END])
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        files[0].write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
        files[1].write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
        return CLIPTokenizer(*map(str, files), model_max_length=LENGTH, pad_token=END)  # type: ignore[misc]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016), until every word is one piece; ties go to the first in the alphabet."""
    split = [[*word[:-1], word[-1] + LAST] for word in words]
    merges = []
    while pairs := Counter(pair for pieces in split for pair in itertools.pairwise(pieces)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merge(pieces, best) for pieces in split]
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
