"""Weights brought from the hub while the server runs, as the dashboard asks for it. The hub is one on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.engine.conftest import make_checkpoint
from tests.http.test_console import Person, link_of
from tests.models.hub import Hub, Repository


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def person(serve: Callable[..., Server], hub: Hub, tmp_path: Path) -> Person:
    """Signed in to a server that knows `painter`, of the hub."""
    repository = hub.repositories["maker/painter"] = Repository.of(make_checkpoint(tmp_path / "tiny", widths=(32, 64)))
    repository.files["unet/diffusion_pytorch_model.safetensors"] += bytes(30_000_000)
    known = {"DARKROOM_MODELS": json.dumps({"painter": "maker/painter"})}
    home = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "", "HF_HUB_DISABLE_TELEMETRY": "1"}
    server = serve("--model", "demo-xl", **known, **home)
    one = Person(server)
    assert one.sign_in(link=link_of(server)).status_code == 200
    return one


def painter(person: Person) -> dict[str, Any]:
    return next(one for one in person.get("/console/models")["data"] if one["name"] == "painter")


def until(person: Person, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    for _ in range(400):
        model = painter(person)
        if done(model):
            return model
        time.sleep(0.1)
    raise AssertionError(painter(person))


def test_a_pull_is_stopped_and_goes_on_to_its_end(person: Person) -> None:
    assert not painter(person)["installed"]
    assert person.call("POST", "/console/models/painter/pull").status_code == 200
    assert person.call("POST", "/console/models/painter/pull").status_code == 422  # it goes on already
    person.call("POST", "/console/models/painter/cancel-pull")
    stopped = until(person, lambda model: model["pull"] is None or model["pull"]["error"] is not None)
    assert stopped["pull"]["error"] == "stopped"
    assert not stopped["installed"]
    person.call("POST", "/console/models/painter/pull")
    assert until(person, lambda model: model["installed"])["pull"] is None


def test_a_pull_that_fails_says_why(person: Person, hub: Hub) -> None:
    hub.repositories["maker/painter"].spoil.add("unet/diffusion_pytorch_model.safetensors")
    person.call("POST", "/console/models/painter/pull")
    failed = until(person, lambda model: bool(model["pull"] and model["pull"]["error"]))
    assert "unet/diffusion_pytorch_model.safetensors" in failed["pull"]["error"]
    assert not failed["installed"]
