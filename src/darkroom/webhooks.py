"""Use cases of webhooks: news of Jobs is delivered, signed, at least once; and the secrets that sign it.

Signatures are those of Standard Webhooks (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import structlog
from standardwebhooks import Webhook

from darkroom.errors import NotFound
from darkroom.outgoing import Answer, NoAnswer, Outgoing
from darkroom.types import Message, WebhookSecret

log = structlog.get_logger("webhooks")
T = TypeVar("T")

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
BACKOFF = (5.0, 30.0, 2 * MINUTE, 10 * MINUTE, HOUR, 3 * HOUR, 8 * HOUR, DAY)  # after the first attempt, the second, ...
JITTER = 0.2  # of each, so that what failed together does not come again together
LONGEST_WAIT = DAY  # that a Retry-After may ask for
OVERLAP = DAY  # seconds for which a retired secret still signs
KEEP = 7 * DAY  # seconds for which delivered messages and those given up are kept


class Rows(Protocol):
    """Where messages and secrets are kept."""

    async def claim(self, now: float, lease_until: float, limit: int) -> list[Message]: ...
    async def settle(
        self, message: Message, now: float, status: int | None, error: str | None, next_at: float | None = None, delivered: bool = False
    ) -> None: ...
    async def messages(self, service_id: str | None = None, limit: int = 100) -> list[Message]: ...
    async def retry(self, message_id: str | None, now: float) -> int: ...
    async def remove_ended(self, before: float) -> int: ...
    async def secrets(self, service_id: str) -> list[WebhookSecret]: ...
    async def add_first_secret(self, secret: WebhookSecret) -> None: ...
    async def replace_secret(self, secret: WebhookSecret, delete_before: float) -> None: ...
    async def remove_retired(self, before: float) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How an attempt went: without an error it was delivered."""

    status: int | None = None
    error: str | None = None
    retry_after: float | None = None

    @property
    def is_final(self) -> bool:
        return self.error is None or self.status == 410


class Webhooks:
    """The outbox and its secrets. `most` messages are on their way at once; the outbox is looked through every `pause` seconds,
    and when it is poked."""

    def __init__(self, rows: Rows, outgoing: Outgoing, most: int = 8, pause: float = 5.0, clock: Callable[[], float] = time.time):
        self._rows, self._outgoing, self._most, self._pause, self._clock = rows, outgoing, most, pause, clock
        self._lease = 2 * outgoing.timeout + 10  # seconds; a delivery that lives is settled well before
        self._poked = asyncio.Event()
        self._flying: set[asyncio.Task[None]] = set()
        self._swept_at = 0.0

    def poke(self) -> None:
        """There is a new message: look now. To be called on the loop's thread."""
        self._poked.set()

    async def run(self) -> None:
        """Deliver what is due until this is cancelled. What was on its way then is sent again once its lease is over."""
        try:
            while True:
                self._poked.clear()
                try:
                    claimed = await _to_its_end(self._claim())
                except Exception:
                    log.exception("the outbox could not be read")
                    claimed = []
                if not claimed:
                    await self._rest()
        finally:
            for task in self._flying:
                task.cancel()
            await asyncio.gather(*self._flying, return_exceptions=True)

    async def _claim(self) -> list[Message]:
        """Take what is due and set it on its way; no more than can leave at once, since a lease runs from here."""
        await self._sweep()
        free, now = self._most - len(self._flying), self._clock()
        claimed = await self._rows.claim(now, now + self._lease, free) if free else []
        for message in claimed:
            task = asyncio.ensure_future(self._deliver(message))
            self._flying.add(task)
            task.add_done_callback(self._landed)
        return claimed

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        self.poke()
        if not task.cancelled() and task.exception() is not None:  # the rows failed: its lease ends, and it is sent again
            log.error("a delivery could not be noted", error=str(task.exception()))

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(self._pause):
                await self._poked.wait()
        except TimeoutError:
            pass

    async def _sweep(self) -> None:
        now = self._clock()
        if now - self._swept_at > HOUR:
            self._swept_at = now
            await self._rows.remove_ended(now - KEEP)
            await self._rows.remove_retired(now - OVERLAP)

    async def _deliver(self, message: Message) -> None:
        outcome, now = await self._send(message), self._clock()
        wait = None if outcome.is_final else wait_after(message.attempts, outcome)
        next_at = None if wait is None else now + wait
        await _to_its_end(self._rows.settle(message, now, outcome.status, outcome.error, next_at, delivered=outcome.error is None))
        log.info("webhook", id=message.id, job=message.job_id, attempt=message.attempts, status=outcome.status, error=outcome.error, wait=wait)

    async def _send(self, message: Message) -> Outcome:
        try:
            held = await self._signing(message.service_id)
            headers = signed(message, [secret.secret for secret in held], self._clock())
            return outcome_of(await self._outgoing.post(message.url, message.body.encode(), headers))
        except NoAnswer as error:
            return Outcome(error=str(error))
        except Exception as error:
            log.exception("a fault of ours", id=message.id)
            return Outcome(error=f"a fault of this server ({type(error).__name__}); its log says more")

    async def messages(self, service_id: str | None = None, limit: int = 100) -> list[Message]:
        """What is waiting, and what was delivered or given up in the last days, newest first."""
        return await self._rows.messages(service_id, limit)

    async def retry(self, message_id: str | None = None) -> int:
        """Send a message again, now and with its whole schedule before it; without an id all that were given up. Returns how
        many. Raises NotFound for an unknown id."""
        count = await self._rows.retry(message_id, self._clock())
        if message_id is not None and not count:
            raise NotFound(f"there is no message {message_id[:100]}")
        self.poke()
        return count

    async def secret(self, service_id: str) -> WebhookSecret:
        """The present secret of a service, made at the first need. Raises NotFound for an unknown service."""
        return (await self._signing(service_id))[0]

    async def rotate(self, service_id: str) -> WebhookSecret:
        """A new secret, beside which the old one signs for another 24 h. Raises NotFound for an unknown service."""
        await self.secret(service_id)
        now = self._clock()
        fresh = _new_secret(service_id, now)
        await self._rows.replace_secret(fresh, now - OVERLAP)
        return fresh

    async def _signing(self, service_id: str) -> list[WebhookSecret]:
        """The secrets that sign now, the present one first."""
        held, now = await self._rows.secrets(service_id), self._clock()
        if not held:
            await self._rows.add_first_secret(_new_secret(service_id, now))
            held = await self._rows.secrets(service_id)
        if not held:
            raise NotFound(f"there is no service {service_id[:100]}")
        return [secret for secret in held if secret.retired_at is None or now - secret.retired_at < OVERLAP]


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What writes rows is not broken off within: whoever is cancelled meanwhile waits for it first."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def event_body(event: str, data: dict[str, Any], now: float) -> str:
    """The JSON text of a message: `{"type": event, "timestamp": ISO 8601, "data": data}`."""
    timestamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"type": event, "timestamp": timestamp, "data": data}, ensure_ascii=False, separators=(",", ":"))


def signed(message: Message, held: list[str], now: float) -> dict[str, str]:
    """The headers of an attempt at this instant, with one signature a secret."""
    when = datetime.fromtimestamp(int(now), UTC)
    signatures = [Webhook(secret).sign(message.id, when, message.body) for secret in held]
    return {
        "Content-Type": "application/json", "webhook-id": message.id, "webhook-timestamp": str(int(now)), "webhook-signature": " ".join(signatures),
    }  # fmt: skip


def outcome_of(answer: Answer) -> Outcome:
    """What a receiver meant by its answer: 2xx is success, 410 asks for no more."""
    if 200 <= answer.status < 300:
        return Outcome(answer.status)
    meaning = {410: "it wants no more of these (410)"}.get(answer.status, f"it answered {answer.status}")
    if 300 <= answer.status < 400:
        meaning += "; redirects are not followed"
    asked = answer.retry_after if answer.status in (429, 503) else None
    return Outcome(answer.status, f"{meaning}: {answer.text}" if answer.text else meaning, asked)


def wait_after(attempts: int, outcome: Outcome) -> float | None:
    """Seconds until the next attempt after so many that failed; None gives up."""
    if attempts > len(BACKOFF):
        return None
    wait = BACKOFF[max(attempts, 1) - 1] * random.uniform(1 - JITTER, 1 + JITTER)
    return max(wait, min(outcome.retry_after or 0.0, LONGEST_WAIT))


def _new_secret(service_id: str, now: float) -> WebhookSecret:
    return WebhookSecret(f"whs_{secrets.token_hex(8)}", service_id, "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(), now)
