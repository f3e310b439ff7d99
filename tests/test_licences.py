"""Licences are gates: a model whose licence binds a host is served only once the operator has accepted it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import requests

from tests.conftest import EAGER, Server, cli
from tests.engine.conftest import make_checkpoint
from tests.http.test_generate import errors, pixels


def bound(folder: Path, licence: str = "stabilityai-ai-community") -> Path:
    """A checkpoint under a licence that binds a host."""
    make_checkpoint(folder)
    (folder / "darkroom.json").write_text(json.dumps({"license": licence, "max_side": 512}))
    return folder


def test_a_model_is_served_only_once_its_licence_was_accepted(serve: Callable[..., Server], tmp_path: Path) -> None:
    folder = bound(tmp_path / "painter")
    server = serve("--model", str(folder), **EAGER)
    assert "darkroom models accept painter" in "\n".join(server.block)
    refused = errors(server.generate(), 503)
    assert refused["name"] == "licence_not_accepted"
    assert "darkroom models accept painter" in refused["errors"][0]
    (card,) = requests.get(f"{server.service_id}/v1/models", headers=server.headers(), timeout=30).json()["data"]
    assert not card["license_accepted"]
    assert card["license"] == "Stability AI Community License"
    assert card["license_url"].startswith("https://")
    assert (card["badge"], card["notice"][:26]) == ("Powered by Stability AI", "This Stability AI Model is")

    declined = server.cli("models", "accept", "painter")  # no answer on standard input is no acceptance
    assert declined.returncode == 1
    assert "register with Stability AI" in declined.stderr
    errors(server.generate(), 503)
    accepted = server.cli("models", "accept", "painter", "--yes", "--json")
    assert accepted.returncode == 0, accepted.stderr
    told = json.loads(accepted.stdout)
    assert (told["model"], told["licence"], told["version"]) == ("painter", "Stability AI Community License", "July 5, 2024")
    pixels(server.generate())
    (card,) = requests.get(f"{server.service_id}/v1/models", headers=server.headers(), timeout=30).json()["data"]
    assert card["license_accepted"]

    server.stop()
    again = serve("--model", str(folder), **EAGER)
    assert "accept" not in "\n".join(again.block)
    again.key = server.key
    pixels(again.generate())


def test_an_acceptance_is_of_one_model_and_one_version(tmp_path: Path) -> None:
    folder = bound(tmp_path / "painter", "openrail++")
    data = ("--data-dir", str(tmp_path / "data"))
    first, second = (cli("models", "accept", str(folder), "--yes", "--json", *data) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    assert json.loads(first.stdout) == json.loads(second.stdout), "twice is once, at the time of the first"
    assert "asks nothing" in cli("models", "accept", "demo-xl", *data).stdout


def test_pictures_of_ones_own_ask_no_acceptance(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    small = ("--width", "128", "--height", "128", "--steps", "10", "--data-dir", str(tmp_path / "data"))
    done = cli("generate", "a cat", "--model", str(bound(tmp_path / "painter")), "-o", str(out), *small, **EAGER)
    assert done.returncode == 0, done.stderr
