"""Which family a folder, a file or a pulled repository belongs to, and what a pull fetches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from darkroom.engine.load import load_family
from darkroom.errors import Invalid, ModelUnavailable, NotFound, Unsupported
from darkroom.models.catalogue import COMPLETE, DEMOS, add, known, memory_bytes, remove, resolve
from darkroom.models.pull import Listing, choose
from darkroom.types import ModelCard


def folder(path: Path, class_name: str = "StableDiffusion3Pipeline", **transformer: object) -> Path:
    (path / "transformer").mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    (path / "transformer" / "config.json").write_text(json.dumps(transformer))
    return path


def single_file(path: Path, *names: str) -> Path:
    head = json.dumps({name: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    return path


@pytest.mark.parametrize(("positions", "side"), [(192, 2048), (384, 2048), (64, 1024), (70, 1088), (None, 2048)])
def test_a_folder_of_sd3_says_its_family_and_how_large_it_can_paint(tmp_path: Path, positions: int | None, side: int) -> None:
    card = resolve(str(folder(tmp_path / "mine", pos_embed_max_size=positions, patch_size=2)), tmp_path)
    assert (card.family, card.max_side) == ("sd3", side)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight", "sd3"),
        ("joint_blocks.0.x_block.mlp.fc1.weight", "sd3"),
        ("model.diffusion_model.input_blocks.0.0.weight", "sdxl"),
    ],
)
def test_a_single_file_is_known_by_the_names_of_its_weights(tmp_path: Path, name: str, family: str) -> None:
    assert resolve(str(single_file(tmp_path / "a.safetensors", "first_stage_model.x", name)), tmp_path).family == family


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0{no}!", b"\x01\0\0\0\0\0\0\x007", b"\xff" * 40])
def test_a_file_that_is_no_safetensors_is_refused_when_it_is_opened(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    card = resolve(str(tmp_path / "a.safetensors"), tmp_path)
    with pytest.raises(ModelUnavailable, match=r"^a\.safetensors is broken or cut off"):
        load_family(card, "cpu", "float32")


def pulled(path: Path, hub_id: str) -> Path:
    (path / COMPLETE).write_text(json.dumps({"hub_id": hub_id, "revision": "1", "license": "other"}))
    return path


def test_a_pulled_model_is_of_the_family_that_lies_there(tmp_path: Path) -> None:
    hub_id = "stabilityai/stable-diffusion-3.5-medium"
    assert resolve(hub_id, tmp_path).path is None
    pulled(folder(tmp_path / "models" / "stabilityai--stable-diffusion-3.5-medium", pos_embed_max_size=64), hub_id)
    card = resolve(hub_id, tmp_path)
    assert (card.name, card.family, card.hub_id, card.max_side) == ("stable-diffusion-3.5-medium", "sd3", hub_id, 1024)
    pulled(folder(tmp_path / "models" / "somebody--other", "FluxPipeline"), "somebody/other")
    with pytest.raises(Unsupported, match="FluxPipeline"):
        resolve("somebody/other", tmp_path)


def test_a_pull_fetches_each_net_once_in_half_precision_where_there_is_one() -> None:
    wanted = [
        "model_index.json", "tokenizer_3/spiece.model", "text_encoder_3/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors", "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.fp16.safetensors", "text_encoder_2/model.safetensors",
        "text_encoder_3/model.fp16-00001-of-00002.safetensors", "text_encoder_3/model.fp16-00002-of-00002.safetensors",
    ]  # fmt: skip
    rest = [
        "sd3.5_large.safetensors", "text_encoders/t5xxl_fp8.safetensors", "text_encoder/model.safetensors",
        "text_encoder_3/model-00001-of-00002.safetensors", "text_encoder_3/model.onnx",
    ]  # fmt: skip
    card = ModelCard("any", "sd3", None, hub_id="owner/any")
    assert set(choose(card, Listing("1", "other", dict.fromkeys(wanted + rest)), "sd3")) == set(wanted)
    without_t5 = [name for name in wanted if not name.startswith("text_encoder_3/model")]
    assert set(choose(card, Listing("1", "other", dict.fromkeys(without_t5)), "sd3")) == set(without_t5)
    with pytest.raises(Unsupported, match="weights of unet"):
        choose(card, Listing("1", "other", dict.fromkeys(wanted)), "sdxl")


def test_the_models_known_by_name_say_what_they_are(tmp_path: Path) -> None:
    cards = {card.name: card for card in known(tmp_path)}
    assert cards.keys() == {
        "demo-xl", "demo-3.5", "stable-diffusion-xl-base-1.0", "sdxl-turbo", "stable-diffusion-3-medium", "stable-diffusion-3.5-medium",
        "stable-diffusion-3.5-large", "stable-diffusion-3.5-large-turbo",
    }  # fmt: skip
    for name, card in cards.items():
        assert card.family == ("sd3" if "3-" in name or "3.5" in name else "sdxl")
        assert card.min_steps <= card.default_steps <= card.max_steps
        assert bool(card.licence.asks) == (name not in DEMOS)
        assert card.licence.url
        assert card.licence.version
        assert name in DEMOS or card.parameters > 3e9
        assert card.gated == (card.family == "sd3" and name not in DEMOS)
        assert resolve(name, tmp_path) == card
        assert card.hub_id is None or resolve(card.hub_id, tmp_path) == card
    assert memory_bytes(cards["stable-diffusion-3.5-large"], "float16") == 2 * cards["stable-diffusion-3.5-large"].parameters
    turbo = cards["sdxl-turbo"]
    assert (turbo.min_steps, turbo.default_steps, turbo.default_cfg) == (1, 1, 0.0)


def test_a_model_of_ones_own_gets_a_name_and_loses_it(tmp_path: Path) -> None:
    mine, data = folder(tmp_path / "somewhere", pos_embed_max_size=64), tmp_path / "data"
    assert add("mine", str(mine), data).family == "sd3"
    assert resolve("mine", data).path == str(mine)
    assert add("theirs", "owner/painter", data).path is None
    assert [card.name for card in known(data)][-2:] == ["mine", "theirs"]
    for taken in ("mine", "sdxl-turbo", "auto", "a b", ""):
        with pytest.raises(Invalid, match="the name must be free"):
            add(taken, str(mine), data)
    with pytest.raises(NotFound, match="is no diffusers folder"):
        add("nothing", str(tmp_path / "nowhere at all"), data)
    assert "stay where they are" in remove(resolve("mine", data), data)
    assert mine.exists()
    with pytest.raises(NotFound, match="no model 'mine'"):
        resolve("mine", data)
    with pytest.raises(NotFound, match="neither pulled nor added"):
        remove(resolve("demo-xl", data), data)


def test_a_named_model_whose_files_are_gone_spoils_no_other(tmp_path: Path) -> None:
    mine, data = folder(tmp_path / "somewhere"), tmp_path / "data"
    add("mine", str(mine), data)
    shutil.rmtree(mine)
    assert resolve("mine", data).path is None
    assert resolve("demo-xl", data).path


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model_index.json", None), ("model_index.json", '{"_class'), ("model_index.json", "[]"), ("model_index.json", '{"_class_name": []}'),
        ("transformer/config.json", None),
        ("transformer/config.json", '{"pos_embed_max_size": "many"}'), ("darkroom.json", '{"language": ["a cat"]}'), ("darkroom.json", "\x00"),
    ],
)  # fmt: skip
def test_a_named_model_whose_files_cannot_be_read_spoils_no_other(tmp_path: Path, file: str, content: str | None) -> None:
    mine, data = folder(tmp_path / "somewhere"), tmp_path / "data"
    add("mine", str(mine), data)
    (mine / file).unlink() if content is None else (mine / file).write_text(content)
    assert resolve("mine", data).path is None
    assert resolve("demo-xl", data).path
    with pytest.raises((NotFound, Unsupported), match=r"somewhere|config"):
        resolve(str(mine), data)
    assert "forgotten" in remove(resolve("mine", data), data)


def test_a_pulled_model_is_under_its_licence_by_its_path_too(tmp_path: Path) -> None:
    hub_id = "stabilityai/stable-diffusion-3.5-medium"
    path = folder(tmp_path / "models" / "stabilityai--stable-diffusion-3.5-medium")
    with pytest.raises(Unsupported, match="darkroom models pull stabilityai"):
        resolve(str(path), tmp_path)
    pulled(path, hub_id)
    assert resolve(str(path), tmp_path) == resolve(hub_id, tmp_path)
    assert add("mine", str(path), tmp_path).licence.asks
    assert resolve("mine", tmp_path).licence == resolve(hub_id, tmp_path).licence
    (path / "model_index.json").write_text("")
    assert resolve("demo-xl", tmp_path).path, "a pulled model that is damaged spoils no other"


def test_auto_is_the_manuals_model_where_it_is_installed(tmp_path: Path) -> None:
    assert resolve("auto", tmp_path).name == "demo-xl"
    folder = tmp_path / "models" / "stabilityai--stable-diffusion-xl-base-1.0"
    shutil.copytree(str(resolve("demo-xl", tmp_path).path), folder)
    (folder / "darkroom.json").unlink()
    (folder / ".complete").write_text(json.dumps({"hub_id": "stabilityai/stable-diffusion-xl-base-1.0", "license": "openrail++", "files": {}}))
    assert resolve("auto", tmp_path).name == "stable-diffusion-xl-base-1.0"


def test_the_settings_may_name_models_too(tmp_path: Path) -> None:
    mine = folder(tmp_path / "somewhere")
    assert resolve("mine", tmp_path, {"mine": str(mine)}).path == str(mine)
    for name in ("sdxl-turbo", "demo-xl", "auto", "a,b"):
        with pytest.raises(Invalid, match="setting models"):
            known(tmp_path, {name: str(mine)})
    with pytest.raises(Invalid, match="the name must be free"):
        add("mine", str(mine), tmp_path, {"mine": str(mine)})
