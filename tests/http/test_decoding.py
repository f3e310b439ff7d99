"""Places to decode uploads in: shared fairly, given up by whoever leaves, taken as long as a thread works."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import threading
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from PIL import Image

from darkroom.http.body import MAX_JSON
from darkroom.http.decoding import Decoders
from darkroom.jobs.runs import in_thread
from tests.conftest import Server
from tests.http.test_bounds import multipart, post_form
from tests.http.test_generate import errors, pixels


async def test_callers_are_served_in_turn_however_many_uploads_one_sends() -> None:
    decoders, order = Decoders(1), []

    async def upload(caller: str) -> None:
        async with decoders.place(caller):
            order.append(caller)
            await asyncio.sleep(0)

    await asyncio.gather(*(upload("a") for _ in range(6)), upload("b"), upload("c"), upload("b"))
    assert order == ["a", "a", "b", "c", "a", "b", "a", "a", "a"]


async def test_whoever_leaves_gives_up_the_place_and_the_turn() -> None:
    decoders, begun, may = Decoders(1), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def decode() -> None:
        loop.call_soon_threadsafe(begun.set)
        assert may.wait(10)

    async def upload(caller: str) -> None:
        async with decoders.place(caller):
            await in_thread(decode)

    first = asyncio.create_task(upload("a"))
    await begun.wait()
    waiting = [asyncio.create_task(upload("b")) for _ in range(3)]
    last = asyncio.create_task(upload("c"))
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    first.cancel()
    await asyncio.sleep(0.05)
    assert not first.done(), "its thread goes on, so its place is still taken"
    begun.clear()
    may.set()
    await asyncio.wait_for(last, 10)
    assert begun.is_set()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with asyncio.timeout(1), decoders.place("d"):
        pass


def test_two_prompts_with_every_letter_escaped_fit_and_a_larger_body_is_refused_unread(server: Server) -> None:
    headers = server.headers() | {"Content-Type": "application/json"}
    url = f"{server.service_id}/v1/images/generate"
    prompt = "\\ud83c\\udf4e" * 10_000
    body = f'{{"prompt": "{prompt}", "negative_prompt": "{prompt}", "steps": 10, "width": 128, "height": 128}}'
    assert requests.post(url, data=body, headers=headers, timeout=60).status_code == 200
    body = '{"prompt": "a", "x": [' + "{}," * (MAX_JSON // 3) + "{}]}"
    answer = errors(requests.post(url, data=body, headers=headers, timeout=60), 413)
    assert f"at most {MAX_JSON} bytes" in answer["errors"][0]
    errors(requests.post(url, data=iter([body.encode()]), headers=headers, timeout=60), 413)  # in chunks, of no declared length


def test_the_text_of_a_form_is_bounded_in_one_field_and_in_all(server: Server) -> None:
    for parts in ([("prompt", b"a" * (MAX_JSON + 1))], [(f"field{i}", b"a" * 30_000) for i in range(20)]):
        answer = errors(post_form(server, *multipart(parts)), 413)
        assert answer["name"] == "too_large"
        assert "the text of a form must have at most" in answer["errors"][0]


def test_a_form_that_does_not_end_holds_neither_its_text_nor_open_files(server: Server) -> None:
    process, address = psutil.Process(server.process.pid), urlsplit(server.host)
    part = b'--edge\r\nContent-Disposition: form-data; name="f"%s\r\n\r\n%s\r\n'
    for content, line in ((part % (b"", b"a" * 200_000) * 90, b"the text of a form"), (part % (b'; filename="a"', b"a" * 70_000) * 250, b"Too many files")):
        memory, files = process.memory_info().rss, process.num_fds()
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                one = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=20))
                head = f"POST /v1/images/control HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\nConnection: close\r\n"
                head += f"Content-Type: multipart/form-data; boundary=edge\r\nContent-Length: {len(content) + 5000}\r\n\r\n"
                with contextlib.suppress(OSError):  # the server may have heard enough
                    one.sendall(head.encode() + content)
                assert line in one.recv(65536) + one.recv(65536)
            assert process.num_fds() - files < 100
            assert process.memory_info().rss - memory < 40e6


def test_a_large_file_in_a_wrong_field_is_told_as_that(server: Server) -> None:
    out = io.BytesIO()
    Image.effect_noise((1024, 1024), 100).save(out, "PNG")
    files = {"file": ("a.png", out.getvalue()), "prompt": (None, "a cat")}
    reply = requests.post(f"{server.service_id}/v1/images/control", files=files, headers=server.headers(), timeout=60)
    answer = errors(reply, 422)
    assert any('"file" is not a field' in line and "the nearest is image" in line for line in answer["errors"])
    assert any("image must be given" in line for line in answer["errors"])


def test_the_same_image_twice_is_one_and_two_images_are_a_fault(server: Server) -> None:
    def picture(colour: str) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (128, 128), colour).save(out, "PNG")
        return out.getvalue()

    def post(*images: bytes) -> requests.Response:
        files = [("image", ("a.png", image)) for image in images] + [("prompt", (None, "a cat")), ("steps", (None, "10"))]
        return requests.post(f"{server.service_id}/v1/images/control", files=files, headers=server.headers(), timeout=60)

    assert pixels(post(picture("red"), picture("red"))).shape == (128, 128, 3)
    assert '"image" must be given once' in errors(post(picture("red"), picture("blue")), 422)["errors"][0]
