"""What may be sent where: every disguise of a private address is refused, and the connection goes to what was checked."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpcore2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.outgoing import MAX_URL, NoAnswer, Outgoing, check_url, is_global, one_line
from tests.receiver import Receiver

PRIVATE = [
    "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.0.1", "100.64.0.1", "100.100.100.200", "169.254.169.254", "192.0.0.192",
    "168.63.129.16", "224.0.0.1", "255.255.255.255", "240.0.0.1", "198.18.0.1", "203.0.113.1", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "fe80::1", "fe80::1%1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "2002:7f00:1::", "2001:0:1::1", "2001:db8::1", "3fff::1", "100::1", "5f00::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
DISGUISED = ["2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.1", "127.0.0.1.", "localhost", "LOCALHOST.", "a.localhost", "0"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_of_the_internet_is_refused(address: str) -> None:
    assert not is_global(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_not(address: str) -> None:
    assert is_global(address)


@given(st.ip_addresses(v=4))
def test_ipv4_inside_ipv6_is_judged_as_ipv4(ip: ipaddress.IPv4Address) -> None:
    assert is_global(f"::ffff:{ip}") == is_global(f"64:ff9b::{ip}") == is_global(str(ip))
    assert not is_global(f"::{ip}")
    assert not is_global(str(ipaddress.IPv6Address((0x2002 << 112) | (int(ip) << 80))))


@given(st.ip_addresses(v=4))
def test_nothing_that_python_knows_as_private_passes(ip: ipaddress.IPv4Address) -> None:
    assert not (is_global(str(ip)) and (ip.is_private or ip.is_multicast or ip.is_loopback or ip.is_link_local or ip.is_reserved))


@given(st.ip_addresses(v=6))
def test_of_ipv6_only_what_is_given_out_passes_and_what_stands_for_ipv4(ip: ipaddress.IPv6Address) -> None:
    stands_for_ipv4 = ip.ipv4_mapped is not None or ip in ipaddress.IPv6Network("64:ff9b::/96")
    assert not is_global(str(ip)) or ip in ipaddress.IPv6Network("2000::/3") or stands_for_ipv4


@pytest.mark.parametrize("host", [*DISGUISED, *(f"[{address}]" if ":" in address else address for address in PRIVATE)])
def test_a_private_host_is_refused_when_the_url_comes(host: str) -> None:
    with pytest.raises(ValueError, match="must"):
        check_url(f"https://{host}/hook", allow_private=False)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://example.com/", "https"), ("ftp://example.com/", "https"), ("example.com", "https"), ("", "https"), ("https://", "https"),
        ("https://me:secret@example.com/", "password"), ("https://me@example.com/", "password"), ("https://example.com:0/", "port"),
        ("https://example.com:99999/", "port"), ("https://example.com:x/", "port"), ("https://example.com/#x", "fragment"), ("https://a b/", "spaces"),
        ("https://a\\b/", "backslashes"), ("https://example.com/\r\nX: 1", "control"), ("https://a%2e/", "host"), ("https://[::1/", "must"),
        ("https://ⓛocalhost/", "IDNA"), ("https://example.com/" + "a" * MAX_URL, "characters"), ("https://example.com/" + "ü" * 1000, "characters"),
    ],
)  # fmt: skip
def test_a_url_against_the_rules_is_refused_with_the_rule(url: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        check_url(url, allow_private=False)


def test_a_url_within_the_rules_comes_back_in_its_normal_form() -> None:
    assert check_url("https://Example.com:443/a?b=c d".replace(" ", "%20"), False) == "https://example.com/a?b=c%20d"
    assert check_url("https://münchen.de:8443/x", False) == "https://xn--mnchen-3ya.de:8443/x"
    assert check_url("http://localhost:9000/", True) == "http://localhost:9000/"
    assert check_url("http://[::1]:9000/", True) == "http://[::1]:9000/"


@given(st.text(max_size=60), st.booleans())
def test_any_text_is_a_url_or_refused(text: str, allow_private: bool) -> None:
    for candidate in (text, f"https://{text}", f"https://example.com/{text}"):
        try:
            normal = check_url(candidate, allow_private)
        except ValueError:
            continue
        assert check_url(normal, allow_private) == normal


@given(st.text(max_size=500))
def test_what_is_shown_to_the_operator_is_one_printable_line(text: str) -> None:
    assert one_line(text).isprintable()
    assert len(one_line(text)) <= 200


async def test_a_host_is_refused_if_any_of_its_addresses_is_private(receiver: Receiver) -> None:
    for addresses in (["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["93.184.216.34", "::ffff:10.0.0.1"], ["nonsense"]):
        outgoing = Outgoing(look_up=lambda host, port, found=addresses: found)
        with pytest.raises(NoAnswer, match="not of the public internet"):
            await outgoing.post(f"https://hooks.example:{receiver.port}/", b"{}", {})
    with pytest.raises(NoAnswer, match="must name a host"):
        await Outgoing().post(f"https://127.0.0.1:{receiver.port}/", b"{}", {})
    with pytest.raises(NoAnswer, match="has no address"):
        await Outgoing(look_up=lambda host, port: []).post("https://hooks.example/", b"{}", {})
    assert receiver.got == []


class Internet(httpcore2.AnyIOBackend):
    """A network on which every address leads to this machine; it notes which were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        self.asked.append(host)
        if host == "203.0.114.1":
            raise httpcore2.ConnectError("nobody is there")
        return await super().connect_tcp("127.0.0.1", port, timeout, local_address, socket_options)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate for hooks.example and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=hooks.example -addext subjectAltName=DNS:hooks.example -keyout key.pem -out cert.pem"
    subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
    (folder / "both.pem").write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return folder / "both.pem"


async def test_the_connection_goes_to_the_address_that_was_checked(certificate: Path) -> None:
    answers = [["203.0.114.1", "93.184.216.34"], ["127.0.0.1"], ["127.0.0.1"]]  # as a host whose owner changes it between check and use
    looked: list[str] = []

    def look_up(host: str, port: int) -> list[str]:
        looked.append(host)
        return answers[len(looked) - 1]

    internet, trust = Internet(), ssl.create_default_context(cafile=str(certificate))
    outgoing = Outgoing(look_up=look_up, network=internet, ssl_context=trust)
    with Receiver(certificate=certificate) as receiver:
        assert (await outgoing.post(f"https://hooks.example:{receiver.port}/x?y=1", b"{}", {"A": "b"})).status == 200
        with pytest.raises(NoAnswer, match="not of the public internet"):
            await outgoing.post(f"https://hooks.example:{receiver.port}/", b"{}", {})
    assert looked == ["hooks.example"] * 2
    assert internet.asked == ["203.0.114.1", "93.184.216.34"]
    ((path, headers, body),) = receiver.got
    assert (path, body, headers["host"], headers["a"]) == ("/x?y=1", b"{}", f"hooks.example:{receiver.port}", "b")


async def test_the_certificate_must_be_of_the_name(certificate: Path) -> None:
    outgoing = Outgoing(look_up=lambda host, port: ["93.184.216.34"], network=Internet(), ssl_context=ssl.create_default_context(cafile=str(certificate)))
    with Receiver(certificate=certificate) as receiver:
        with pytest.raises(NoAnswer, match="connection failed"):
            await outgoing.post(f"https://other.example:{receiver.port}/", b"{}", {})
        with pytest.raises(NoAnswer, match="connection failed"):  # by the authorities of the system it is nobody's
            await Outgoing(look_up=lambda host, port: ["93.184.216.34"], network=Internet()).post(f"https://hooks.example:{receiver.port}/", b"{}", {})
    assert receiver.got == []


async def test_no_proxy_of_the_environment_is_asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await Outgoing(allow_private=True).post(f"http://localhost:{receiver.port}/", b"{}", {})).status == 200


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.answers = [(307, {"Location": f"http://127.0.0.1:{receiver.port}/elsewhere"}, b"there")]
    answer = await Outgoing(allow_private=True).post(receiver.url, b"{}", {})
    assert (answer.status, answer.text) == (307, "there")
    assert [path for path, _, _ in receiver.got] == ["/hook"]


async def test_of_a_body_only_the_beginning_is_read(receiver: Receiver) -> None:
    receiver.answers = [(500, {}, b"no\x1b[31m\n" + b"x" * 10_000), (200, {"Endless": "yes"}, b"on and on "), (200, {"Endless": "slow"}, b"drop ")]
    outgoing = Outgoing(allow_private=True)
    answer = await outgoing.post(receiver.url, b"{}", {})
    assert answer.text.startswith("no [31m xxx")
    assert len(answer.text) == 200
    began = time.monotonic()
    assert [(await outgoing.post(receiver.url, b"{}", {})).status for _ in range(2)] == [200, 200]
    assert time.monotonic() - began < outgoing.timeout


async def test_who_says_nothing_in_time_has_not_answered(receiver: Receiver) -> None:
    receiver.delay = 30
    began = time.monotonic()
    with pytest.raises(NoAnswer, match="no answer within"):
        await Outgoing(allow_private=True, timeout=0.3).post(receiver.url, b"{}", {})
    with pytest.raises(NoAnswer, match="no answer within"):
        await Outgoing(timeout=0.3, look_up=lambda host, port: time.sleep(5) or []).post("https://hooks.example/", b"{}", {})
    assert time.monotonic() - began < 5


async def test_what_goes_wrong_is_one_line() -> None:
    with pytest.raises(NoAnswer, match="connection failed"):
        await Outgoing(allow_private=True).post("http://127.0.0.1:9/", b"{}", {})
    with pytest.raises(NoAnswer, match="is not found"):
        await Outgoing(look_up=lambda host, port: socket.getaddrinfo("nowhere", "no such port")).post("https://nowhere.invalid/", b"{}", {})
    with Receiver(speaks=b"SSH-2.0-OpenSSH_9\r\n\r\n") as receiver, pytest.raises(NoAnswer, match="not HTTP"):
        await Outgoing(allow_private=True).post(receiver.url, b"{}", {})
    with Receiver(speaks=b"HTTP/1.1 200 OK\r\nA: " + b"a" * 500_000) as receiver, pytest.raises(NoAnswer, match="not HTTP"):
        await Outgoing(allow_private=True).post(receiver.url, b"{}", {})


async def test_a_retry_after_is_seconds_or_a_date(receiver: Receiver) -> None:
    texts = ["7", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "-1", "1e99"]
    receiver.answers = [(503, {"Retry-After": text}, b"") for text in texts]
    outgoing = Outgoing(allow_private=True)
    assert [(await outgoing.post(receiver.url, b"{}", {})).retry_after for _ in texts] == [7.0, 0.0, None, None, None]
