"""Use cases of Service and ApiKey: create, verify, revoke.

A key reads `dk_<public id>_<secret>_<checksum>`. The secret has 256 random bits, so a keyed SHA-256 is hash enough: a
slow one protects guessable secrets, and would cost every request 200 ms.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from darkroom.commands import command
from darkroom.errors import Forbidden, Invalid, NotFound, Unauthorized
from darkroom.types import ApiKey, Limits, Service

ALPHABET = "23456789abcdefghijkmnpqrstuvwxyz"  # without 0, 1, l and o, which people misread
KEY = re.compile(r"dk_([a-z0-9]{12})_([A-Za-z0-9_-]{43})_([0-9a-f]{8})")
KEY_LENGTH = 68
# $API_KEY, ${API_KEY}, <API_KEY>: what an example says in a key's place
VARIABLE = re.compile(r"[$<{%]{0,2}[A-Z_]{3,30}[>}%]{0,2}")
LONGEST_SCHEME = 20  # characters of a scheme that an error repeats
CONSOLE = "console"  # role of the keys that the dashboard uses itself
MOST = 10**15  # that a limit may be; more is as good as none, and no longer exact where JSON is read
LIGHTEST, HEAVIEST = 1e-6, 1e6  # weight of a key
LATEST = 253_402_300_800.0  # the year 10000, in seconds since the epoch
SAVE_USES = 20.0  # seconds between two writes of "last used": a write a request would be the dearest part of a small one


class Rows(Protocol):
    """Where services and keys are kept."""

    async def add_service(self, service: Service) -> None: ...
    async def services(self) -> list[Service]: ...
    async def set_models(self, service_id: str, models: tuple[str, ...]) -> None: ...
    async def set_name(self, service_id: str, name: str) -> None: ...
    async def add_key(self, key: ApiKey, hashed: bytes) -> None: ...
    async def keys(self, service_id: str | None = None) -> list[ApiKey]: ...
    async def find_key(self, public_id: str) -> tuple[ApiKey, bytes] | None: ...
    async def revoke(self, public_id: str) -> bool: ...
    async def set_limits(self, public_id: str, limits: Limits | None) -> bool: ...
    async def touch(self, used: dict[str, float]) -> None: ...


class Access:
    """Who may do what. Nothing is cached, so what is revoked stops working at once."""

    def __init__(self, rows: Rows, pepper: bytes):
        self._rows = rows
        self._pepper = pepper
        self._used: dict[str, float] = {}
        self._saved_at = time.monotonic()
        self._served: tuple[str, ...] = ()

    def serve(self, models: tuple[str, ...]) -> None:
        """What this server runs, the default first: services show that of it which is theirs."""
        self._served = models

    async def create_service(self, name: str, models: tuple[str, ...] = (), owner: str = "operator") -> Service:
        """A service of these models, or with none named of all that the server runs. Raises Invalid."""
        _check_name(name)
        self._check_models(models)
        service = Service("svc-" + "".join(secrets.choice(ALPHABET) for _ in range(8)), name, models, owner, time.time())
        await self._rows.add_service(service)
        return self._showing(service)

    async def services(self) -> list[Service]:
        return [self._showing(service) for service in await self._rows.services()]

    async def service(self, service_id: str) -> Service:
        """Raises NotFound."""
        for service in await self.services():
            if service.id == service_id:
                return service
        like = "" if service_id.startswith("svc-") else "; the id of a service looks like svc-7f3k2m9q"
        raise NotFound(f"there is no service {service_id}{like}")

    async def choose(self, service_id: str | None) -> Service:
        """The service of this id, the oldest where none is named. Raises NotFound."""
        if service_id is not None:
            return await self.service(service_id)
        services = await self.services()
        if not services:
            create = command("service create NAME", public=True)
            raise NotFound(f"there is no service yet; make one with: {create}")
        return services[0]

    async def set_models(self, service_id: str, models: tuple[str, ...]) -> Service:
        """Other models for a service; with none named all that the server runs. Raises NotFound or Invalid."""
        await self.service(service_id)
        self._check_models(models)
        await self._rows.set_models(service_id, models)
        return await self.service(service_id)

    async def create_key(self, service_id: str | None = None, name: str = "default", expires_at: float | None = None) -> tuple[ApiKey, str]:
        """A new key, of the oldest service where none is named, and its text, which is not kept and cannot be shown again.
        Raises NotFound or Invalid."""
        _check_name(name)
        if expires_at is not None and not time.time() < expires_at < LATEST:
            raise Invalid("expires_at must be an instant that is still to come, before the year 10000", name="invalid_expires_at")
        service = await self.choose(service_id)
        public_id = "".join(secrets.choice(ALPHABET) for _ in range(12))
        body = f"dk_{public_id}_{secrets.token_urlsafe(32)}"
        text = f"{body}_{_checksum(body)}"
        key = ApiKey(public_id, service.id, name, text[-4:], "operator", "client", ("images",), time.time(), expires_at)
        await self._rows.add_key(key, self._hash(text))
        return key, text

    async def console_key(self, service_id: str) -> ApiKey:
        """The key in whose name the dashboard makes pictures of a service; nobody knows its text. Raises NotFound."""
        service = await self.service(service_id)
        for key in await self._rows.keys(service.id):
            if key.role == CONSOLE and key.revoked_at is None:
                return key
        public_id = "".join(secrets.choice(ALPHABET) for _ in range(12))
        key = ApiKey(public_id, service.id, "dashboard", "", "operator", CONSOLE, ("images",), time.time())
        await self._rows.add_key(key, secrets.token_bytes(32))
        return key

    async def rename(self, service_id: str, name: str) -> Service:
        """Raises NotFound or Invalid."""
        _check_name(name)
        await self.service(service_id)
        await self._rows.set_name(service_id, name)
        return await self.service(service_id)

    async def keys(self, service_id: str | None = None) -> list[ApiKey]:
        """Those that people have, oldest first."""
        await self._save_uses()  # so that what is shown as their last use is
        return [key for key in await self._rows.keys(service_id) if key.role != CONSOLE]

    async def key(self, public_id: str) -> ApiKey:
        """One that a person has. Raises NotFound."""
        for key in await self.keys():
            if key.public_id == public_id:
                return key
        raise NotFound(f"there is no key {public_id}")

    async def revoke(self, public_id: str) -> None:
        """Raises NotFound for an unknown key or one that was revoked before."""
        if not await self._rows.revoke(public_id):
            raise NotFound(f"there is no key {public_id} that could be revoked")

    async def set_limits(self, public_id: str, limits: Limits | None) -> None:
        """What one key may do; None gives it the server's limits again. Raises NotFound or Invalid."""
        if limits is not None:
            _check_limits(limits)
        await self.key(public_id)
        if not await self._rows.set_limits(public_id, limits):
            raise NotFound(f"there is no key {public_id}")

    async def verify(self, header: str | None) -> ApiKey:
        """The key of an Authorization header. Raises Unauthorized, which says what is wrong with it, for a
        missing, malformed, unknown, expired or revoked one."""
        match = KEY.fullmatch(_token(header))
        if match is None or _checksum(match[0].rpartition("_")[0]) != match[3]:
            raise Unauthorized(_fault_of(_token(header)))
        found = await self._rows.find_key(match[1])
        if found is None or not hmac.compare_digest(found[1], self._hash(match[0])):
            elsewhere = "it was made by another server, or for another data folder"
            raise Unauthorized(f"the key is whole, but it is not known here: {elsewhere}")
        key = found[0]
        if key.revoked_at is not None:
            raise Unauthorized("this key was revoked")
        if key.expires_at is not None and key.expires_at <= time.time():
            raise Unauthorized("this key has expired")
        await self._note_use(key)
        return key

    async def enter(self, header: str | None, service_id: str | None) -> tuple[ApiKey, Service]:
        """The key of an Authorization header and the service it may use; service_id is that of the address,
        if any.

        Raises Unauthorized, then NotFound, then Forbidden, in this order.
        """
        key = await self.verify(header)
        service = await self.service(service_id or key.service_id)
        if service.id != key.service_id:
            raise Forbidden(f"this key belongs to another service than {service.id}")
        return key, service

    async def close(self) -> None:
        await self._save_uses()

    def _showing(self, service: Service) -> Service:
        """The service with those of its models that the server runs."""
        return replace(service, models=tuple(model for model in service.models or self._served if model in self._served))

    def _check_models(self, models: tuple[str, ...]) -> None:
        unknown = [model for model in models if model not in self._served]
        if unknown:
            raise Invalid(f"models must be some of {', '.join(self._served)}, got {', '.join(unknown)[:200]!r}", name="invalid_models")

    async def _note_use(self, key: ApiKey) -> None:
        self._used[key.public_id] = time.time()
        if time.monotonic() - self._saved_at > SAVE_USES:
            await self._save_uses()

    async def _save_uses(self) -> None:
        used, self._used, self._saved_at = self._used, {}, time.monotonic()
        if used:
            await self._rows.touch(used)

    def _hash(self, text: str) -> bytes:
        return hmac.new(self._pepper, text.encode(), hashlib.sha256).digest()


def read_pepper(data_dir: Path) -> bytes:
    """The server's own secret of 32 bytes, made at the first start in a file of mode 600."""
    path = data_dir / "secrets" / "pepper"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
    return path.read_bytes()


def _checksum(body: str) -> str:
    """Lets a typing error, or a secret scanner, be answered without a look into the rows."""
    return f"{zlib.crc32(body.encode()):08x}"


def _token(header: str | None) -> str:
    """What stands after `Bearer`. Raises Unauthorized where nothing can stand there."""
    send = "send the header `Authorization: Bearer API_KEY` with a key of this server"
    if header is None:
        raise Unauthorized(f"the header Authorization is missing; {send}")
    scheme, _, token = header.strip().partition(" ")
    if scheme.startswith("dk_"):
        raise Unauthorized(f"the header Authorization holds a key without the word Bearer before it; {send}")
    if scheme.lower() != "bearer":
        can_be_shown = scheme.isascii() and scheme.isalpha() and len(scheme) <= LONGEST_SCHEME
        named = f", got {scheme}" if can_be_shown else ""
        raise Unauthorized(f"the header Authorization must have the scheme Bearer{named}; {send}")
    return token.strip()


def _fault_of(token: str) -> str:
    """Why a text is no key; the text itself is not repeated, for it may be most of one."""
    if not token:
        return "there is no key after Bearer: is the variable set that should hold it?"
    if VARIABLE.fullmatch(token):
        quotes = "a shell fills in a variable within double quotes, not within single ones"
        return f"the key is the text {token} itself: {quotes}"
    if token.lower().startswith("bearer "):
        return "the word Bearer stands there twice; send it once"
    if not token.startswith("dk_"):
        rule = f"begins with dk_ and has {KEY_LENGTH} characters"
        return f"this is no key of Darkroom, which {rule}, got {len(token)}"
    if len(token) < KEY_LENGTH:
        return f"the key is cut off: a key has {KEY_LENGTH} characters, got {len(token)}"
    if len(token) > KEY_LENGTH:
        return f"the key has something after its end: a key has {KEY_LENGTH} characters, got {len(token)}"
    return "the key was altered on its way: its checksum does not fit; copy it again"


def _check_limits(limits: Limits) -> None:
    wholes = limits.concurrent, limits.queued, limits.pictures_per_minute, limits.pixel_steps_per_day
    if not all(0 <= one <= MOST for one in wholes) or not LIGHTEST <= limits.weight <= HEAVIEST:
        raise Invalid(f"limits must be 0 (none) to {MOST}, and the weight {LIGHTEST:f} to {HEAVIEST:g}", name="invalid_limits")


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise Invalid(f"name must be 1 to 100 printable characters, got {name[:120]!r}", name="invalid_name")
