"""Requests of ours to addresses that clients name. A client must not reach, through us, what only this machine can reach.

A name is looked up once, every address that it has is checked, and the connection goes to a checked one. No redirect is
followed and no proxy of the environment is asked, since either would go where nothing was checked.

httpx2 and httpcore2 are imported where an address is looked at: most servers never do, and every start would wait for them.
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from darkroom import __version__

if TYPE_CHECKING:
    import httpcore2
    import httpx2

MAX_URL = 2000  # characters
MAX_BODY = 4096  # bytes that are read of an answer's body
BODY_SECONDS = 2.0  # that an answer's body may take; its status has come by then, and says all that matters
HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup = Callable[[str, int], Sequence[str]]

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # an IPv4 address in the lowest 32 bits (RFC 6052)
UNICAST = ipaddress.IPv6Network("2000::/3")  # all of IPv6 that is given out (RFC 4291); what lies outside is not of the internet
# what Python 3.11 takes for global though it is not, or leads back to IPv4: protocol assignments, anycast of 6to4, a cloud's
# inner server, Teredo and its neighbours, 6to4, documentation
NOT_GLOBAL = [ipaddress.ip_network(net) for net in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23", "2002::/16", "3fff::/20")]


class NoAnswer(Exception):
    """Nothing was answered, or nothing may be sent there; the text is a line fit for the operator's list."""


@dataclass(frozen=True)
class Answer:
    """What came back. text: the beginning of the body, on one line. retry_after: seconds, where the answer names some."""

    status: int
    text: str
    retry_after: float | None


def look_up(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system knows them. Blocks. Raises OSError."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def is_global(address: str) -> bool:
    """Whether an IP address belongs to a host of the public internet, also where IPv6 wraps one of IPv4."""
    try:
        ip = _unwrapped(ipaddress.ip_address(address))
    except ValueError:
        return False
    if any(ip in net for net in NOT_GLOBAL if net.version == ip.version) or (ip.version == 6 and ip not in UNICAST):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local)


def _unwrapped(ip: IPAddress) -> IPAddress:
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
        if ip in NAT64:
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


def check_url(text: str, allow_private: bool) -> str:
    """The URL in its normal form, if it keeps the rules that can be told without a lookup. Raises ValueError with the rule.

    That a host's addresses are public is checked again, and for names first, when something is sent.
    """
    if len(text) > MAX_URL:
        raise ValueError(f"must have at most {MAX_URL} characters, got {len(text)}")
    url = _parsed(text)
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must be an address that begins with https://")
    if url.scheme == "http" and not allow_private:
        raise ValueError("must begin with https://")
    if url.userinfo:
        raise ValueError("must not hold a user or a password")
    if url.fragment:
        raise ValueError("must not have a fragment (#...)")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise ValueError(f"must have a port from 1 to 65535, got {url.port}")
    _check_host(url.raw_host.decode("ascii"), allow_private)
    if len(str(url)) > MAX_URL:
        raise ValueError(f"must have at most {MAX_URL} characters once it is encoded, got {len(str(url))}")
    return str(url)


def _parsed(text: str) -> httpx2.URL:
    import httpx2

    if not text.isprintable() or re.search(r"[\s\\]", text):
        raise ValueError("must not hold spaces, control characters or backslashes")
    try:
        return httpx2.URL(text)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise ValueError(f"must be an address: {str(error)[:200]}") from error


def _check_host(host: str, allow_private: bool) -> None:
    literal = _literal(host)
    if literal is None and not HOST.fullmatch(host):
        raise ValueError("must name a host by its name or by its IP address")
    if allow_private:
        return
    if f".{host.rstrip('.')}".endswith(".localhost") or (literal is not None and not is_global(literal)):
        raise ValueError("must name a host of the public internet")


def _literal(host: str) -> str | None:
    """The IP address that a host is written as, in any of the forms that getaddrinfo takes (127.1, 0x7f.1, 2130706433), or None."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(host))
    with suppress(OSError):
        return socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
    return None


class Outgoing:
    """Sends to addresses that clients name.

    allow_private lets plain http and every address through. timeout: seconds for all of one request, its lookup included.
    look_up, network and ssl_context are for whoever brings a resolver, a network or authorities of their own.
    """

    def __init__(
        self, allow_private: bool = False, timeout: float = 15.0, look_up: Lookup = look_up,
        network: httpcore2.AsyncNetworkBackend | None = None, ssl_context: ssl.SSLContext | None = None,
    ):  # fmt: skip
        self.allow_private, self.timeout = allow_private, timeout
        self._look_up, self._network = look_up, network
        self._given_ssl = ssl_context

    @functools.cached_property
    def _ssl(self) -> ssl.SSLContext:
        import httpcore2

        return self._given_ssl or httpcore2.default_ssl_context()  # made once: it reads all authorities of the system

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Send a body, and take the answer, whatever its status. Raises NoAnswer."""
        import httpcore2
        import httpx2

        try:
            target = httpx2.URL(check_url(url, self.allow_private))
        except ValueError as error:
            raise NoAnswer(f"the address {error}") from error
        try:
            async with asyncio.timeout(self.timeout):
                return await self._post(target, body, headers)
        except TimeoutError as error:
            raise NoAnswer(f"there was no answer within {self.timeout:g} s") from error
        except (OSError, httpcore2.NetworkError, httpcore2.TimeoutException) as error:
            raise NoAnswer(one_line(f"the connection failed: {error or type(error).__name__}")) from error
        except httpcore2.ProtocolError as error:
            raise NoAnswer(one_line(f"the answer is not HTTP: {error}")) from error

    async def _post(self, url: httpx2.URL, body: bytes, headers: dict[str, str]) -> Answer:
        import httpcore2

        host, port = url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)
        pinned: Any = _Pinned(await self._addresses(host, port), self._network or httpcore2.AnyIOBackend())
        context = self._ssl if url.scheme == "https" else None
        address = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        sent = {"Host": url.netloc.decode("ascii"), "User-Agent": f"darkroom/{__version__}", "Accept": "*/*", "Connection": "close"} | headers
        async with (
            httpcore2.AsyncConnectionPool(ssl_context=context, network_backend=pinned) as pool,  # a pool a request: no address is kept
            pool.stream("POST", address, headers=list(sent.items()), content=body) as response,
        ):
            fields = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            return Answer(response.status, await _beginning(response), _seconds(fields.get(b"retry-after", "")))

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Raises NoAnswer where the host has none, or one that nothing may be sent to."""
        literal = _literal(host)
        try:
            found = [literal] if literal else list(await _on_a_thread(self._look_up, host, port))
        except (OSError, UnicodeError) as error:
            raise NoAnswer(one_line(f"the host {host} is not found: {error}")) from error
        if not found:
            raise NoAnswer(f"the host {host} has no address")
        if not self.allow_private and not all(map(is_global, found)):
            raise NoAnswer(f"the host {host} has an address that is not of the public internet; webhook_allow_private would allow it")
        return found


class _Pinned:
    """A network on which every name stands for the addresses that were checked (an httpcore2.AsyncNetworkBackend as far as a connection
    over TCP asks). TLS still asks for the name's certificate."""

    def __init__(self, addresses: list[str], network: httpcore2.AsyncNetworkBackend):
        self._addresses, self._network = addresses, network

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        import httpcore2

        for address in self._addresses[:-1]:
            with suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                return await self._network.connect_tcp(address, port, 3.0, local_address, socket_options)  # seconds; the next may be better
        return await self._network.connect_tcp(self._addresses[-1], port, timeout, local_address, socket_options)


async def _on_a_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    """A call that blocks and cannot be interrupted, on a thread of its own: a lookup that hangs holds up neither the threads
    that others share nor the end of the process."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if result.done():  # who asked has given up
            return
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = call(*arguments)
        except Exception as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has closed meanwhile
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, daemon=True).start()
    return await result


async def _beginning(response: httpcore2.Response) -> str:
    """The first bytes of a body, as one line."""
    import httpcore2

    read = b""
    with suppress(TimeoutError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in response.aiter_stream():
                read += chunk
                if len(read) >= MAX_BODY:
                    break
    return one_line(read[:MAX_BODY].decode("utf-8", "replace"))


def one_line(text: str) -> str:
    """At most 200 characters, all of them printable: what others wrote is shown on a terminal."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))[:200]


def _seconds(text: str) -> float | None:
    """A Retry-After, in seconds or as a date, as seconds from now."""
    if re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return float(text)
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None
