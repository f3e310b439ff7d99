"""Several models behind one server: who serves what, and when it is in memory."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from darkroom.models.catalogue import resolve
from tests.conftest import EAGER, Server, start
from tests.http.test_generate import errors, pixels


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint in the box under another name."""
    folder = tmp_path_factory.mktemp("models") / "second"
    shutil.copytree(str(resolve("demo-xl", folder).path), folder)
    own = json.loads((folder / "darkroom.json").read_text())
    (folder / "darkroom.json").write_text(json.dumps(own | {"name": "second"}))
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, second: Path) -> Iterator[Server]:
    server = start(tmp_path_factory.mktemp("data"), "--model", f"demo-xl,{second}", **EAGER)
    yield server
    server.stop()


def models(server: Server) -> dict[str, dict[str, Any]]:
    listed = requests.get(f"{server.service_id}/v1/models", headers=server.headers(), timeout=30).json()["data"]
    return {model["id"]: model for model in listed}


def wait_until(said: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_models_are_loaded_and_each_answers_by_its_name(both: Server) -> None:
    assert both.block[2] == "MODEL=demo-xl"
    assert both.generate(model="second", seed=4).headers["X-Model"] == "second"
    assert both.generate(seed=4).headers["X-Model"] == "demo-xl"
    wait_until(lambda: all(model["loaded"] for model in models(both).values()))
    assert list(models(both)) == ["demo-xl", "second"]
    here = requests.get(f"{both.host}/v1/models", headers=both.headers(), timeout=30).json()
    assert [model["id"] for model in here["data"]] == ["demo-xl", "second"]
    assert here["object"] == "list"
    assert all(model["memory_bytes"] > 10e6 for model in models(both).values())
    body = errors(both.generate(model="third"), 404)
    assert "demo-xl, second" in body["errors"][0]


def test_a_model_loads_at_its_first_use_and_leaves_for_another(serve: Callable[..., Server], second: Path) -> None:
    """The budget holds one of the two."""
    server = serve("--model", f"demo-xl,{second}", "--no-preload", "--memory-budget", "0.07")
    assert not any(model["loaded"] for model in models(server).values())
    for name in ("second", "demo-xl", "second"):
        pixels(server.generate(model=name))
        assert {model for model, facts in models(server).items() if facts["loaded"]} == {name}
    replies: list[requests.Response] = []
    both = [threading.Thread(target=lambda name=name: replies.append(server.generate(model=name))) for name in ("demo-xl", "second") * 3]  # type: ignore[misc]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [reply.status_code for reply in replies] == [200] * 6


def test_a_service_serves_what_it_was_told_to(both: Server) -> None:
    made = json.loads(both.cli("service", "create", "narrow", "--models", "second", "--json").stdout)
    assert made["models"] == ["second"]
    key = json.loads(both.cli("key", "create", "--service", made["id"], "--json").stdout)["key"]
    other = Server(f"{both.host}/{made['id']}", key, "second", [], both.data_dir, both.log, both.process)
    assert list(models(other)) == ["second"]
    assert other.generate().headers["X-Model"] == "second"
    errors(other.generate(model="demo-xl"), 404)
    assert json.loads(both.cli("service", "models", made["id"], "--models", "demo-xl,second", "--json").stdout)["models"] == ["demo-xl", "second"]
    assert list(models(other)) == ["demo-xl", "second"]
    wrong = both.cli("service", "create", "wrong", "--models", "third")
    assert wrong.returncode == 1
    assert "demo-xl, second" in wrong.stderr


def test_a_broken_model_takes_no_other_along(serve: Callable[..., Server], second: Path, tmp_path: Path) -> None:
    second = shutil.copytree(second, tmp_path / "second")
    (second / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    server = serve("--model", f"demo-xl,{second}")
    reply = server.generate(model="second")
    assert errors(reply, 503)["name"] == "model_unavailable"
    assert str(second) not in reply.text
    assert reply.headers["Retry-After"]
    assert server.logged("a model could not be loaded")
    pixels(server.generate())
    wait_until(lambda: requests.get(f"{server.host}/readyz", timeout=10).status_code == 200)


def test_the_same_model_twice_is_an_error(tmp_path: Path, server: Server) -> None:
    done = server.cli("doctor", "--model", "demo-xl,demo-xl")
    assert done.returncode == 1
    assert "once each" in done.stderr


def test_metrics_count_requests_by_their_route(server: Server) -> None:
    server.generate()
    text = requests.get(f"{server.host}/metrics", timeout=30).text
    assert re.search(r'darkroom_requests_total\{method="POST",route="/v1/images/generate",status="200"\} \d', text)
    assert re.search(r"darkroom_queue_depth \d", text)
    assert server.service_id.rpartition("/")[2] not in text
