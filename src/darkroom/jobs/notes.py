"""What a person should know of how a model took the prompt."""

from __future__ import annotations

import re

from darkroom.types import Finished, ModelCard, Params

CUT = "the prompt is longer than the model reads and was cut"


def notes_on(card: ModelCard, params: Params, finished: Finished) -> tuple[str, ...]:
    """The words that a small model does not know, and what the encoders could not hear; `without_words` for a row."""
    unknown = [word for word in re.findall(r"\w+", params.prompt.lower()) if word not in card.words] if card.words else []
    hint = [f"{card.name} does not know {', '.join(dict.fromkeys(unknown))}. {card.hint}"[:600]] if unknown else []
    return (*hint, *([finished.note] if finished.note else []))


def without_words(card: ModelCard, params: Params, finished: Finished) -> tuple[str, ...]:
    """The same for a job whose prompt is not to be kept: not one word of it."""
    unknown = card.words and any(word not in card.words for word in re.findall(r"\w+", params.prompt.lower()))
    hint = [f"{card.name} does not know every word of the prompt. {card.hint}"] if unknown else []
    return (*hint, *([CUT] if finished.note else []))
