"""What the pictures of a model are made of, told without reading its weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from darkroom.engine.weights import SMALL, stamps
from darkroom.types import ModelCard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the hub's cache has them: links to blobs; its UNet lies elsewhere behind a link."""
    blobs, unet, model = tmp_path / "blobs", tmp_path / "elsewhere", tmp_path / "model"
    for one in (blobs, unet, model / "scheduler"):
        one.mkdir(parents=True)
    (blobs / "index").write_text("{}")
    (model / "model_index.json").symlink_to(blobs / "index")
    (model / "darkroom.json").write_text("{}")
    (model / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    (unet / "config.json").write_text("{}")
    (unet / "weights.safetensors").write_bytes(bytes(SMALL + 1))
    (model / "unet").symlink_to(unet)
    return model


def card(path: Path) -> ModelCard:
    return ModelCard("any", "sdxl", str(path))


def touched(file: Path) -> None:
    """Another time of change, as a file of equal size has that was put in its place."""
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a config": lambda model: (model / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilom"}'),
    "a blob": lambda model: (model.parent / "blobs" / "index").write_text("[]"),
    "darkroom.json": lambda model: (model / "darkroom.json").write_text("[]"),
    "a config behind a linked folder": lambda model: (model.parent / "elsewhere" / "config.json").write_text("[]"),
    "weights behind a linked folder": lambda model: touched(model.parent / "elsewhere" / "weights.safetensors"),
    "another file": lambda model: (model / "scheduler" / "more.json").write_text("{}"),
    "a file that moved": lambda model: (model / "darkroom.json").rename(model / "scheduler" / "darkroom.json"),
    "a link that leads elsewhere": lambda model: _linked(model),
}


def _linked(model: Path) -> None:
    (model.parent / "other").mkdir()
    (model / "unet").unlink()
    (model / "unet").symlink_to(model.parent / "other")


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_another_model(folder: Path, change: str) -> None:
    before = stamps(card(folder))
    assert stamps(card(folder)) == before
    CHANGES[change](folder)
    assert stamps(card(folder)) != before


def test_a_copy_of_a_config_is_the_same_model(folder: Path) -> None:
    before = stamps(card(folder))
    touched(folder / "scheduler" / "scheduler_config.json")
    assert stamps(card(folder)) == before


def test_a_link_that_leads_back_ends(folder: Path) -> None:
    (folder / "unet" / "round").symlink_to(folder)
    (folder / "nowhere").symlink_to(folder / "gone")
    assert 5 < len(stamps(card(folder))) < 20


def test_a_model_without_files_is_made_of_none() -> None:
    assert stamps(ModelCard("any", "sdxl", None)) == []


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_the_configs_beside_a_single_file_belong_to_it(folder: Path, tmp_path: Path, family: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(SMALL + 1))
    one = ModelCard("any", family, str(file))
    before = stamps(one)
    CHANGES["a config"](folder)
    assert stamps(one) != before
    before = stamps(one)
    touched(file)
    assert stamps(one) != before


def test_the_configs_of_the_hubs_cache_belong_to_a_file_that_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "models--stabilityai--stable-diffusion-xl-base-1.0"
    snapshot = repo / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(snapshot.name)
    (snapshot / "model_index.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    file = tmp_path / "alone.safetensors"
    file.write_bytes(b"weights")
    before = stamps(card(file))
    (snapshot / "scheduler").mkdir()
    (snapshot / "scheduler" / "scheduler_config.json").write_text("{}")
    assert stamps(card(file)) != before
