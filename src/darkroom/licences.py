"""Use cases of licences: a model whose licence binds whoever hosts it is served only once the operator has accepted it."""

from __future__ import annotations

import time
from typing import Protocol

from darkroom.commands import command
from darkroom.errors import LicenceNotAccepted
from darkroom.types import Acceptance, ModelCard


class Rows(Protocol):
    """Where acceptances are kept."""

    async def accept(self, acceptance: Acceptance) -> None: ...
    async def acceptances(self, model: str) -> list[Acceptance]: ...


class Licences:
    """What the operator accepted. Nothing is cached, so an acceptance works at once."""

    def __init__(self, rows: Rows):
        self._rows = rows

    async def accept(self, card: ModelCard) -> Acceptance:
        """Note that the operator accepts the licence of this model, in the version that its card states; the acceptance that stands
        where there is one."""
        held = await self._held(card)
        if held is None:
            held = Acceptance(card.name, card.licence.name, card.licence.version, time.time())
            if card.licence.asks:
                await self._rows.accept(held)
        return held

    async def is_accepted(self, card: ModelCard) -> bool:
        """Whether the model may be served: nothing is asked of a host, or what is asked was accepted, in this version."""
        return not card.licence.asks or await self._held(card) is not None

    async def _held(self, card: ModelCard) -> Acceptance | None:
        held = await self._rows.acceptances(card.name)
        return next((one for one in held if (one.licence, one.version) == (card.licence.name, card.licence.version)), None)

    async def check(self, card: ModelCard) -> None:
        """Raises LicenceNotAccepted."""
        if not await self.is_accepted(card):
            licence = f"the licence of {card.name} ({card.licence.name})"
            accept = accept_command(card, public=True)
            line = f"the operator of this server has not accepted {licence} yet"
            raise LicenceNotAccepted(f"{line}; to do so: {accept}")


def accept_command(card: ModelCard, public: bool = False) -> str:
    """The line that shows what a licence asks, and accepts it; see `commands.command`."""
    return command(f"models accept {card.name}", public)
