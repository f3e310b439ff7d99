"""The operator's calls: services, keys, licences and webhooks, from the command line, whether the server runs or not.

One process owns the data folder (a lock file says which). A running server answers on a Unix socket of mode 600 in the
folder, one JSON line each way; without one, the command opens the rows itself.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from darkroom.access import Access
from darkroom.errors import DarkroomError, Unavailable
from darkroom.licences import Licences
from darkroom.sessions import Sessions
from darkroom.types import Limits, ModelCard
from darkroom.webhooks import Webhooks

log = structlog.get_logger("admin")

MAX_LINE = 2**16
LONGEST_PATH = 100  # bytes that the name of a Unix socket may safely have


class Busy(DarkroomError):
    """Another process owns the data folder."""

    name = "data_folder_busy"


def make_data_dir(data_dir: Path) -> None:
    """Raises DarkroomError where the folder cannot be made or written to."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = "" if os.access(data_dir, os.W_OK | os.X_OK) else "it cannot be written to"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    if reason:
        raise DarkroomError(f"the data folder {data_dir} cannot be used: {reason}; choose another with --data-dir")


@contextmanager
def owning(data_dir: Path) -> Iterator[None]:
    """Own the data folder for a while. Raises Busy."""
    make_data_dir(data_dir)
    descriptor = os.open(data_dir / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"another darkroom runs on the data folder {data_dir}") from error
        yield
    finally:
        os.close(descriptor)


class Calls:
    """The calls by name; arguments and answers are JSON."""

    def __init__(self, access: Access, licences: Licences, webhooks: Webhooks, sessions: Sessions, cards: Callable[[str], ModelCard]):
        """cards: from the name of a model to its card."""
        self._access, self._licences, self._webhooks, self._sessions, self._cards = access, licences, webhooks, sessions, cards

    async def answer(self, call: str, arguments: dict[str, Any]) -> Any:
        """Raises DarkroomError."""
        match call:
            case "service create":
                return asdict(await self._access.create_service(arguments["name"], tuple(arguments.get("models") or ())))
            case "service models":
                return asdict(await self._access.set_models(arguments["service_id"], tuple(arguments["models"])))
            case "service list":
                return [asdict(service) for service in await self._access.services()]
            case "key create":
                key, text = await self._access.create_key(arguments.get("service_id"), arguments.get("name") or "default", arguments.get("expires_at"))
                return {**asdict(key), "key": text}
            case "key list":
                return [asdict(key) for key in await self._access.keys(arguments.get("service_id"))]
            case "key revoke":
                await self._access.revoke(arguments["public_id"])
                return {"public_id": arguments["public_id"], "revoked": True}
            case "key limits":
                limits = arguments["limits"] and Limits(**arguments["limits"])
                await self._access.set_limits(arguments["public_id"], limits)
                return {"public_id": arguments["public_id"], "limits": limits and asdict(limits)}
            case "link":
                return {"link": await self._sessions.new_link()}
            case "password":
                await self._sessions.set_password(arguments["password"])
                return {"set": True}
            case "licence accept":
                return asdict(await self._licences.accept(self._cards(arguments["model"])))
            case "licence show":
                card = self._cards(arguments["model"])
                return {"model": card.name, "accepted": await self._licences.is_accepted(card), **asdict(card.licence)}
            case "webhook list":
                messages = await self._webhooks.messages(arguments.get("service_id"), arguments.get("limit") or 100)
                return [{**asdict(message), "state": message.state} for message in messages]
            case "webhook retry":
                return {"retried": await self._webhooks.retry(arguments.get("message_id"))}
            case "webhook rotate":
                return asdict(await self._webhooks.rotate((await self._access.choose(arguments.get("service_id"))).id))
            case "webhook secret":
                return asdict(await self._webhooks.secret((await self._access.choose(arguments.get("service_id"))).id))
        raise Unavailable(f"the server knows no call {call!r}; is it of another version?")


@asynccontextmanager
async def listening(data_dir: Path, calls: Calls) -> AsyncIterator[None]:
    """Answer calls on the socket while the context lasts."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, ValueError, asyncio.IncompleteReadError):
            writer.write(json.dumps(await _reply(calls, await reader.readline())).encode() + b"\n")
            await writer.drain()
        writer.close()

    path = _new_socket_path(data_dir)
    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(serve, path=str(path), limit=MAX_LINE)
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def ask(data_dir: Path, call: str, arguments: dict[str, Any]) -> Any:
    """A call to the running server. Raises Unavailable where none answers, and the server's own error."""
    pointer = data_dir / "admin.path"
    try:
        path = pointer.read_text()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(path)
            connection.sendall(json.dumps({"call": call, "arguments": arguments}).encode() + b"\n")
            reply = json.loads(connection.makefile("rb").readline())
    except (OSError, ValueError) as error:
        raise Unavailable(f"the server that owns {data_dir} does not answer; it may be starting or ending: try again") from error
    if "error" in reply:
        raise DarkroomError(*reply["error"])
    return reply["answer"]


async def _reply(calls: Calls, line: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(line)
        return {"answer": await calls.answer(asked["call"], asked["arguments"])}
    except DarkroomError as error:
        return {"error": error.lines}
    except (KeyError, TypeError):
        return {"error": ["the call lacks an argument"]}
    except Exception:
        log.exception("a fault of ours")  # without the line, which may hold a password
        return {"error": ["the server failed at this call; its log says more"]}


def _new_socket_path(data_dir: Path) -> Path:
    """In the data folder, or where its path is too long for a socket in a private folder of its own; `admin.path` tells."""
    path = data_dir.resolve() / "admin.sock"
    if len(os.fsencode(path)) > LONGEST_PATH:
        path = Path(tempfile.mkdtemp(prefix="darkroom-")) / "admin.sock"
    path.unlink(missing_ok=True)
    (data_dir / "admin.path").write_text(str(path))
    return path
