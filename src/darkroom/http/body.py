"""Bodies of the two routes, bounded and read: fields as they came, and what is wrong with the way they came."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import Request
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from darkroom import checks
from darkroom.errors import BadRequest, TooLarge, UnsupportedMedia
from darkroom.http.desk import desk_of
from darkroom.jobs.ended import StorageFull

log = structlog.get_logger("http")

MAX_JSON = 2**18  # bytes: both prompts of 10,000 characters, each escaped in 12 bytes, fit; to read more takes the event loop long
MAX_TEXT = MAX_JSON  # bytes of all text in a form
IN_MEMORY = 2**16  # bytes of a file in a form; of a larger one all is on the disk until it is decoded
MAX_PARTS = 1000  # text fields of a form
MAX_FILES = 32  # files of a form, each of which may be an open one here; fields may come as files, and there are fewer
MAX_DIGITS = 100  # of a whole number in JSON; one with more is as far beyond every rule as infinity
PYTHON = re.compile(rb"\s*\{\s*'")
PYTHON_WORD = re.compile(rb"[:\[,]\s*(?:True|False|None)\b")
MAX_SEARCHED = 10_000  # bytes of a wrong body that are looked through for what is wrong
END = 1024  # bytes at the end of a form in which its closing boundary must stand


@dataclass
class Body:
    """fields: str, or in JSON any value. faults: a line for each field that came in a way in which none may. image: the file of that
    name, on the disk unless it is small; closed with the form that it came in."""

    fields: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    image: UploadFile | None = None

    def put(self, name: str, value: Any) -> None:
        """Note a field. The same value twice is fine; Python's own way, to keep the last of two in silence, is not ours."""
        if name in self.fields and (type(self.fields[name]), self.fields[name]) != (type(value), value):
            self.faults[name] = f"{checks.shown(name)} must be given once, got {_short(self.fields[name])} and {_short(value)}"
        self.fields.setdefault(name, value)


async def read_json(request: Request) -> Body:
    """Raises UnsupportedMedia, BadRequest, TooLarge or TooSlow."""
    kind = _media_type(request)
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMedia(f"Content-Type must be application/json, got {checks.shown(kind)}")
    desk, body = desk_of(request), Body()
    content = await desk.body(request, min(MAX_JSON, desk.settings.max_body_bytes))
    try:
        pairs = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_Pairs, parse_int=_whole)
        if not isinstance(pairs, _Pairs):
            raise BadRequest("the body must be a JSON object")
        for name, value in pairs:
            body.put(name, _plain(value))
            if _repeats(value):
                body.faults[name] = f"{checks.shown(name)} must give each name of an object once, got one twice"
    except (ValueError, RecursionError) as error:  # nested deeper than Python goes, which differs from version to version
        raise BadRequest(f"the body must be JSON ({error})"[:200] + _json_hint(content)) from error
    return body


def _json_hint(content: bytes) -> str:
    """What is probably wrong with a body that is no JSON."""
    if not content.strip():
        return "; it is empty"
    if PYTHON.match(content):
        send = "in Python send json=payload, or json.dumps(payload)"
        return f"; it looks like a dict that Python printed: JSON wants double quotes ({send})"
    return "; JSON writes true, false and null" if PYTHON_WORD.search(content[:MAX_SEARCHED]) else ""


class _Pairs(list):
    """A JSON object, with every pair that it holds."""


def _plain(value: Any) -> Any:
    """A JSON value with its objects as dicts."""
    if isinstance(value, _Pairs):
        return {name: _plain(one) for name, one in value}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _repeats(value: Any) -> bool:
    """Whether an object in it has a name twice."""
    if isinstance(value, _Pairs):
        return len({name for name, _ in value}) < len(value) or any(_repeats(one) for _, one in value)
    return isinstance(value, list) and any(_repeats(one) for one in value)


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


@asynccontextmanager
async def form_of(request: Request) -> AsyncIterator[Body]:
    """The body of a form, and its files as long as the context lasts.

    A field may come twice with the same value, and as a file part: that is what `requests` makes of a string in `files=`, as the
    manual's own example does with `model`. Raises UnsupportedMedia, BadRequest, TooLarge, TooSlow, or StorageFull if the folder
    for temporary files has no room.
    """
    kind = _media_type(request)
    if kind != "multipart/form-data":
        raise UnsupportedMedia(f"Content-Type must be multipart/form-data, got {checks.shown(kind)}")
    desk = desk_of(request)
    desk.bound(request, desk.settings.max_body_bytes)
    try:
        form = await _parse(request)
    except MultiPartException as error:
        raise BadRequest(f"the body must be multipart/form-data ({error.message})"[:200]) from error
    except OSError as error:
        log.error("an upload could not be kept", error=str(error))
        raise StorageFull(f"the upload could not be kept: {error.strerror}", retry_after=60) from error
    try:
        yield await _fields(form)
    finally:
        await form.close()


async def _parse(request: Request) -> FormData:
    """The parser decodes text by a charset, and what is no UTF-8 as latin-1 in silence: so it is told to take all of it as
    latin-1, which loses nothing, and `_text` decodes it."""
    kind = request.headers["content-type"]
    boundary = _parameter(kind, "boundary")
    if not boundary or len(boundary) > 70:
        raise MultiPartException("its Content-Type names no boundary of 1 to 70 characters")
    charset = _parameter(kind, "charset").lower()
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise UnsupportedMedia(f"the charset of a form must be utf-8, got {checks.shown(charset)}")
    headers = Headers({"content-type": f'multipart/form-data; boundary="{boundary}"; charset=latin-1'})
    tail = _Tail(request)
    parser = _FormParser(headers, tail.stream(), max_files=MAX_FILES, max_fields=MAX_PARTS, max_part_size=MAX_TEXT)
    form = await parser.parse()
    if f"--{boundary}--".encode("latin-1") not in tail.last:
        await form.close()
        raise MultiPartException("it ends before its closing boundary")
    return form


class _FormParser(MultiPartParser):
    """Counts the text of all fields as it comes: counted at its end, a form would hold as much memory as a body may have."""

    spool_max_size = IN_MEMORY

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._text_left = MAX_TEXT

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._text_left -= end - start
            if self._text_left < 0:
                raise TooLarge(f"the text of a form must have at most {MAX_TEXT} bytes, got more")
        super().on_part_data(data, start, end)


class _Tail:
    """The stream of a request's body; afterwards `last` has its last END bytes."""

    def __init__(self, request: Request):
        self._request, self.last = request, b""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        async for chunk in self._request.stream():
            self.last = (self.last + chunk)[-END:]
            yield chunk


async def _fields(form: FormData) -> Body:
    body, room = Body(), MAX_TEXT
    for raw_name, part in form.multi_items():
        name = raw_name.encode("latin-1").decode("utf-8", "backslashreplace")
        if name == "image" and isinstance(part, UploadFile):
            await _put_image(body, part)
            continue
        content = await part.read(MAX_TEXT) if isinstance(part, UploadFile) else part.encode("latin-1")
        try:
            body.put(name, content.decode())
            room -= len(content)
        except UnicodeDecodeError:
            body.faults[name] = f"{checks.shown(name)} must be text in UTF-8, got other bytes"
            # an unknown field with a file in it is probably meant to be the image, and the checks say so
            body.fields.setdefault(name, "" if name in checks.IMAGE_TO_IMAGE else content)
        if room < 0:
            raise TooLarge(f"the text of a form must have at most {MAX_TEXT} bytes, got more")
    return body


async def _put_image(body: Body, part: UploadFile) -> None:
    """The same file twice is fine, as it is with text."""
    if body.image is None:
        body.image = part
    elif await _digest(body.image) != await _digest(part):
        body.faults["image"] = f'"image" must be given once, got {body.image.size} bytes and {part.size} bytes'


async def _digest(part: UploadFile) -> bytes:
    def read() -> bytes:
        digest = hashlib.file_digest(part.file, "sha256").digest()  # type: ignore[arg-type]  # a spooled file is one
        part.file.seek(0)
        return digest

    return await asyncio.to_thread(read)


def _media_type(request: Request) -> str:
    """Without its parameters. Raises UnsupportedMedia for a body that is packed."""
    packed = request.headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        raise UnsupportedMedia(f"Content-Encoding must be absent, got {checks.shown(packed)}")
    return request.headers.get("content-type", "application/json").split(";")[0].strip().lower()


def _parameter(content_type: str, name: str) -> str:
    """A parameter of a Content-Type, "" where it is not there."""
    from python_multipart.multipart import parse_options_header

    return parse_options_header(content_type)[1].get(name.encode(), b"").decode("latin-1")


def _short(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else checks.shown(value)
