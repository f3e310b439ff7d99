"""What a person should know of how a model took the prompt."""

from __future__ import annotations

import re

from darkroom.types import Finished, ModelCard, Params


def notes_on(card: ModelCard, params: Params, finished: Finished) -> tuple[str, ...]:
    """The words that a small model does not know, and what the encoders could not hear."""
    unknown = [word for word in re.findall(r"\w+", params.prompt.lower()) if word not in card.words] if card.words else []
    hint = [f"{card.name} does not know {', '.join(dict.fromkeys(unknown))}. {card.hint}"[:600]] if unknown else []
    return (*hint, *([finished.note] if finished.note else []))
