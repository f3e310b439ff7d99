"""Messages from the outbox to a real receiver, as its own verifier sees them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from darkroom.cli.webhook import webhook_app
from darkroom.errors import NotFound
from darkroom.outgoing import Outgoing
from darkroom.store.access import AccessStore
from darkroom.store.database import Database
from darkroom.store.schema import outbox
from darkroom.store.webhooks import WebhookStore, outbox_row
from darkroom.types import Message, Service
from darkroom.webhooks import BACKOFF, DAY, JITTER, KEEP, OVERLAP, Outcome, Webhooks, event_body, signed, wait_after
from tests.conftest import Server, cli
from tests.receiver import Receiver

DOCUMENT = (Path(__file__).parent.parent / "docs" / "webhooks.md").read_text()
BODY = event_body("job.finished", {"id": "job-1", "prompt": "ein Käfer 🐞"}, 1000.5)


class Clock:
    """The time of day, and how far a test has put it forward."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(tmp_path / "rows.sqlite")
    await opened.open()
    await AccessStore(opened).add_service(Service("svc-a", "first", (), "operator", 1.0))
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def webhooks(database: Database, clock: Clock) -> Webhooks:
    return Webhooks(WebhookStore(database), Outgoing(allow_private=True, timeout=5), pause=0.05, clock=clock)


async def put(database: Database, url: str, job: str = "job-1", body: str = BODY, **columns: Any) -> str:
    """A message that is due; its id."""
    row = outbox_row(job, "svc-a", url, "job.finished", body, time.time()) | columns
    async with database.write() as connection:
        await connection.execute(outbox.insert().values(row))
    return row["id"]


@asynccontextmanager
async def running(webhooks: Webhooks) -> AsyncIterator[None]:
    task = asyncio.create_task(webhooks.run())
    yield
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def until(webhooks: Webhooks, reached: Callable[[list[Message]], bool]) -> list[Message]:
    """The messages once they have come so far. Fails where they do not."""
    for _ in range(400):
        messages = await webhooks.messages()
        if reached(messages):
            return messages
        await asyncio.sleep(0.02)
    raise AssertionError(messages)


def all_ended(messages: list[Message]) -> bool:
    return all(message.state != "waiting" for message in messages)


async def test_a_message_arrives_signed(webhooks: Webhooks, database: Database, receiver: Receiver) -> None:
    name = await put(database, receiver.url)
    async with running(webhooks):
        (message,) = await until(webhooks, all_ended)
    assert (message.state, message.attempts, message.last_status, message.last_error) == ("delivered", 1, 200, None)
    ((path, headers, body),) = receiver.got
    secret = (await webhooks.secret("svc-a")).secret
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/=]{44}", secret)
    event = Webhook(secret).verify(body, headers)
    assert event == {"type": "job.finished", "timestamp": "1970-01-01T00:16:40.500Z", "data": {"id": "job-1", "prompt": "ein Käfer 🐞"}}
    assert (path, headers["webhook-id"], headers["content-type"]) == ("/hook", name, "application/json")
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body + b" ", headers)


async def test_every_attempt_sends_the_same_bytes_and_the_same_id(webhooks: Webhooks, database: Database, receiver: Receiver, clock: Clock) -> None:
    name = await put(database, receiver.url)
    receiver.answers = [(500, {}, b"out of order"), (302, {"Location": "/other"}, b"")]
    async with running(webhooks):
        (message,) = await until(webhooks, lambda messages: messages[0].last_status == 500)
        assert (message.state, message.last_error) == ("waiting", "it answered 500: out of order")
        assert BACKOFF[0] * (1 - JITTER) - 1 < message.next_at - clock() <= BACKOFF[0] * (1 + JITTER)
        clock.ahead += 7
        (message,) = await until(webhooks, lambda messages: messages[0].last_status == 302)
        assert message.last_error == "it answered 302; redirects are not followed"
        clock.ahead += 37
        (message,) = await until(webhooks, all_ended)
    assert (message.state, message.attempts) == ("delivered", 3)
    assert [(path, headers["webhook-id"], body) for path, headers, body in receiver.got] == [("/hook", name, BODY.encode())] * 3
    assert len({headers["webhook-timestamp"] for _, headers, _ in receiver.got}) == 3
    secret = Webhook((await webhooks.secret("svc-a")).secret)
    for _, headers, body in receiver.got:
        secret.verify(body, headers)


async def test_gone_gives_up_at_once_and_the_last_failure_at_last(webhooks: Webhooks, database: Database, receiver: Receiver) -> None:
    gone = await put(database, receiver.url)
    receiver.answers = [(410, {}, b"")]
    async with running(webhooks):
        await until(webhooks, all_ended)
        last = await put(database, "http://127.0.0.1:9/", attempts=len(BACKOFF))
        refused = await put(database, "https://user:secret@hooks.example/", attempts=len(BACKOFF))
        messages = {message.id: message for message in await until(webhooks, all_ended)}
    assert {message.state for message in messages.values()} == {"given up"}
    assert (messages[gone].last_status, messages[gone].last_error) == (410, "it wants no more of these (410)")
    assert "connection failed" in str(messages[last].last_error)
    assert "password" in str(messages[refused].last_error)


async def test_a_private_address_is_refused_when_it_is_not_allowed(database: Database, receiver: Receiver) -> None:
    await put(database, receiver.url.replace("http:", "https:").replace("127.0.0.1", "localhost.localdomain"))
    webhooks = Webhooks(WebhookStore(database), Outgoing(look_up=lambda host, port: ["127.0.0.1"]))
    async with running(webhooks):
        (message,) = await until(webhooks, lambda messages: messages[0].last_error is not None)
    assert "not of the public internet" in str(message.last_error)
    assert receiver.got == []


async def test_who_asks_for_patience_gets_it(webhooks: Webhooks, database: Database, receiver: Receiver, clock: Clock) -> None:
    receiver.answers = [(429, {"Retry-After": "600"}, b""), (503, {"Retry-After": "99999999"}, b""), (500, {"Retry-After": "600"}, b"")]
    for i in range(3):
        async with running(webhooks):
            await put(database, receiver.url, job=f"job-{i}")
            await until(webhooks, lambda messages, so_far=i: len([m for m in messages if m.last_status]) == so_far + 1)
    waits = {message.last_status: message.next_at - clock() for message in await webhooks.messages()}
    assert 590 < waits[429] <= 600
    assert DAY - 10 < waits[503] <= DAY
    assert waits[500] < 10


@given(st.integers(1, 20), st.one_of(st.none(), st.floats(0, 1e9)))
def test_waits_grow_and_end(attempts: int, asked: float | None) -> None:
    wait = wait_after(attempts, Outcome(503, "busy", asked))
    if attempts > len(BACKOFF):
        assert wait is None
    else:
        assert wait is not None
        assert BACKOFF[attempts - 1] * (1 - JITTER) <= wait <= max(BACKOFF[attempts - 1] * (1 + JITTER), min(asked or 0, DAY))


async def test_one_that_was_killed_between_sending_and_noting_sends_again(database: Database, receiver: Receiver, clock: Clock) -> None:
    name = await put(database, receiver.url)
    receiver.delay = 0.3
    first = Webhooks(WebhookStore(database), Outgoing(allow_private=True, timeout=5), pause=0.05, clock=clock)
    async with running(first):
        await asyncio.to_thread(receiver.wait_for, 1)  # it has come, and is not answered yet
    receiver.delay = 0
    second = Webhooks(WebhookStore(database), Outgoing(allow_private=True, timeout=5), pause=0.05, clock=clock)
    async with running(second):
        await asyncio.sleep(0.2)
        assert len(receiver.got) == 1  # the first one's lease
        clock.ahead += 21
        (message,) = await until(second, all_ended)
    assert (message.state, message.attempts) == ("delivered", 2)
    assert [(headers["webhook-id"], body) for _, headers, body in receiver.got] == [(name, BODY.encode())] * 2


async def test_many_are_on_their_way_at_once_but_not_all(database: Database, receiver: Receiver) -> None:
    receiver.delay = 0.2
    webhooks = Webhooks(WebhookStore(database), Outgoing(allow_private=True), most=5, pause=60)
    for i in range(12):
        await put(database, receiver.url, job=f"job-{i}")
    async with running(webhooks):
        await asyncio.to_thread(receiver.wait_for, 5)
        assert len(receiver.got) == 5
        await until(webhooks, all_ended)
        await asyncio.sleep(0.1)
        await put(database, receiver.url, job="job-12")
        webhooks.poke()
        await asyncio.to_thread(receiver.wait_for, 13)
    assert len(receiver.got) == 13


async def test_after_a_rotation_both_secrets_sign_for_a_day(webhooks: Webhooks, database: Database, receiver: Receiver, clock: Clock) -> None:
    before = await webhooks.secret("svc-a")
    after = await webhooks.rotate("svc-a")
    assert after.secret != before.secret
    assert await webhooks.secret("svc-a") == after
    await put(database, receiver.url)
    async with running(webhooks):
        await until(webhooks, all_ended)
        ((_, headers, body),) = receiver.got
        assert len(headers["webhook-signature"].split()) == 2
        for secret in (before, after):
            assert Webhook(secret.secret).verify(body, headers)["type"] == "job.finished"
        clock.ahead += OVERLAP + 1
        await put(database, receiver.url)
        await until(webhooks, all_ended)
    assert len(receiver.got[1][1]["webhook-signature"].split()) == 1
    assert [secret.id for secret in await WebhookStore(database).secrets("svc-a")] == [after.id]


async def test_what_ended_a_week_ago_is_forgotten(webhooks: Webhooks, database: Database, clock: Clock) -> None:
    await put(database, "https://hooks.example/", delivered_at=clock())
    async with running(webhooks):
        assert len(await until(webhooks, lambda messages: len(messages) == 1)) == 1
        clock.ahead += KEEP + 1
        await until(webhooks, lambda messages: not messages)


async def test_what_is_not_there_is_said(webhooks: Webhooks) -> None:
    with pytest.raises(NotFound, match="no message"):
        await webhooks.retry("msg_none")
    with pytest.raises(NotFound, match="no service"):
        await webhooks.secret("svc-none")
    with pytest.raises(NotFound, match="no service"):
        await webhooks.rotate("svc-none")


@given(st.text(max_size=50), st.dictionaries(st.text(max_size=5), st.text(max_size=20)))
def test_any_body_is_signed_as_it_is_sent(job: str, data: dict[str, str]) -> None:
    row = outbox_row(job, "svc-a", "https://hooks.example/", "job.failed", event_body("job.failed", data, time.time()), 1.0)
    secrets = ["whsec_" + "A" * 32, "whsec_" + "B" * 32]
    headers = signed(Message(**row), secrets, time.time())
    for secret in secrets:
        assert Webhook(secret).verify(row["body"].encode(), headers)["data"] == data


async def test_the_documents_receiver_verifies(webhooks: Webhooks, database: Database, tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"WEBHOOK_SECRET": (await webhooks.secret("svc-a")).secret}
    process = subprocess.Popen([sys.executable, "-c", snippet.replace("9000", str(port))], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        await asyncio.to_thread(_wait_for_port, port)
        await put(database, f"http://127.0.0.1:{port}/", body=BODY)
        async with running(webhooks):
            (message,) = await until(webhooks, all_ended)
        assert message.last_status == 204
        assert process.stdout is not None
        assert process.stdout.readline() == "job.finished job-1\n"
        forged = signed(replace(message, body="{}"), ["whsec_" + "A" * 32], time.time())
        assert (await Outgoing(allow_private=True).post(message.url, b"{}", forged)).status == 400
    finally:
        process.kill()
        process.wait()


def _wait_for_port(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.05)


def test_the_document_states_the_schedule_and_the_commands() -> None:
    times = [f"{wait / 3600:g} h" if wait >= 3600 else f"{wait / 60:g} min" if wait >= 60 else f"{wait:g} s" for wait in BACKOFF]
    assert f"| {' | '.join(times)} |" in DOCUMENT
    assert set(re.findall(r"^\| `darkroom webhook (\w+)", DOCUMENT, re.MULTILINE)) == {command.name for command in webhook_app.registered_commands}


async def _fill(data_dir: Path, *rows: dict[str, Any]) -> list[str]:
    """Messages in a data folder that no server has yet; their ids."""
    data_dir.mkdir(exist_ok=True)
    database = Database(data_dir / "darkroom.sqlite")
    await database.open()
    ids = [await put(database, **row) for row in rows]
    await database.close()
    return ids


def test_the_commands_on_the_rows(tmp_path: Path) -> None:
    first, second = asyncio.run(_fill(
        tmp_path, {"url": "https://hooks.example/a", "failed_at": 5.0, "attempts": 9, "last_status": 500, "last_error": "it answered 500"},
        {"url": "https://hooks.example/b", "job": "job-2"},
    ))  # fmt: skip
    data = ("--data-dir", str(tmp_path))
    lines = {line.split()[0]: line for line in cli("webhook", "list", *data).stdout.splitlines()}
    assert set(lines) == {f"id={first}", f"id={second}"}
    assert "state=given up  attempts=9  last_status=500  last_error=it answered 500" in lines[f"id={first}"]
    assert "next_try=" not in lines[f"id={first}"]
    assert re.search(r"job_id=job-2  url=https://hooks.example/b  state=waiting  attempts=0  next_try=2\d{3}-", lines[f"id={second}"])
    assert json.loads(cli("webhook", "list", "--limit", "1", "--json", *data).stdout)[0]["state"] == "waiting"
    assert json.loads(cli("webhook", "retry", "--all", "--json", *data).stdout) == {"retried": 1}
    assert {row["state"] for row in json.loads(cli("webhook", "list", "--json", *data).stdout)} == {"waiting"}
    secret = json.loads(cli("webhook", "secret", "--json", *data).stdout)["secret"]
    rotated = json.loads(cli("webhook", "rotate", "--json", *data).stdout)["secret"]
    assert secret != rotated
    assert cli("webhook", "secret", *data).stdout.startswith(f"secret={rotated}  service_id=svc-")
    for wrong in (("retry",), ("retry", first, "--all"), ("retry", "msg_none"), ("secret", "--service", "svc-none")):
        done = cli("webhook", *wrong, *data)
        assert done.returncode == 1
        assert done.stderr.startswith("darkroom: ")


def test_a_running_server_delivers_and_sends_again_when_told(serve: Callable[..., Server], tmp_path: Path, receiver: Receiver) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    assert cli("service", "create", "second", *data).returncode == 0  # beside the one that every folder has
    service = json.loads(cli("service", "list", "--json", *data).stdout)[0]
    (name,) = asyncio.run(_fill(tmp_path / "data", {"url": receiver.url, "service_id": service["id"]}))
    receiver.answers = [(410, {}, b"")]
    server = serve("--no-preload", DARKROOM_WEBHOOK_ALLOW_PRIVATE="true")
    receiver.wait_for(1)
    assert server.logged("it wants no more of these")
    assert server.cli("webhook", "retry", name).stdout == "sending again: 1\n"
    receiver.wait_for(2)
    secret = server.cli("webhook", "secret").stdout.split()[0].removeprefix("secret=")
    for _, headers, body in receiver.got:
        assert headers["webhook-id"] == name
        Webhook(secret).verify(body, headers)
    assert server.logged("status=200")
    (message,) = json.loads(server.cli("webhook", "list", "--json").stdout)
    assert (message["state"], message["last_status"]) == ("delivered", 200)
    assert server.stop() == 0
