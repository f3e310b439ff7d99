"""`loras` on both routes, over a real server whose folder of LoRAs changes while it runs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from darkroom.models.catalogue import resolve
from tests.conftest import SMALL, Server, cli, start
from tests.engine.test_lora_header import FLAT, kohya, lora, peft
from tests.http.test_control import picture
from tests.http.test_generate import errors, pixels

ONE = [{"name": "one", "scale": 0.8}]


def write_lora(file: Path, seed: int, text: bool = False) -> Path:
    """A random LoRA for the model in the box: all its attention, or a text encoder's."""
    net, prefix, leaves = ("text_encoder_2", "lora_te2_", ("q_proj", "v_proj")) if text else ("unet", "lora_unet_", ("to_q", "to_v"))
    weights = next((Path(str(resolve("demo-xl", file).path)) / net).glob("*.safetensors"))
    rng, state = np.random.default_rng(seed), {}
    with safe_open(weights, "numpy") as head:
        for name in sorted(head.keys()):
            module = name.removesuffix(".weight")
            if module.endswith(leaves):
                rows, columns = head.get_slice(name).get_shape()
                flat = prefix + module.replace(".", "_")
                state[f"{flat}.lora_down.weight"] = rng.normal(size=(4, columns)).astype(np.float32) * 0.2
                state[f"{flat}.lora_up.weight"] = rng.normal(size=(rows, 4)).astype(np.float32) * 0.2
                state[f"{flat}.alpha"] = np.array(4, np.float32)
    save_file(state, file)
    return file


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with LoRAs: two that fit, one for SD 3.x, one too narrow, one broken."""
    data = tmp_path_factory.mktemp("data")
    folder = data / "loras"
    folder.mkdir()
    write_lora(folder / "one.safetensors", 1)
    write_lora(folder / "text.safetensors", 2, text=True)
    (folder / "sd3.safetensors").write_bytes(lora(peft("transformer.transformer_blocks.0.attn.to_q")))
    attention = FLAT.replace("down_blocks_1", "down_blocks_2")  # of the model in the box, where its attention begins
    (folder / "narrow.safetensors").write_bytes(lora(kohya(f"lora_unet_{attention}", width=8)))
    (folder / "broken.safetensors").write_bytes(b"\x80\x02}q\0.")
    running = start(data)
    yield running
    running.stop()


def test_a_lora_changes_the_picture_and_stands_in_it(shop: Server) -> None:
    plain, one, again, strong = (pixels(shop.generate(seed=5, loras=loras)) for loras in (None, ONE, ONE, [{"name": "one", "scale": 3}]))
    assert np.abs(one - again).max() <= 2
    assert np.abs(plain - one).max() > 20
    assert np.abs(strong - one).max() > 20
    assert np.abs(plain - pixels(shop.generate(seed=5, loras=[]))).max() <= 2
    both = shop.generate(seed=5, loras=[{"name": "text"}, *ONE])
    text = Image.open(io.BytesIO(both.content)).text
    assert text["parameters"].startswith(f"{SMALL['prompt']} <lora:one:0.8> <lora:text:1>\n")
    assert json.loads(text["darkroom"])["loras"] == [*ONE, {"name": "text", "scale": 1.0}]


def test_control_takes_them_as_json_text(shop: Server) -> None:
    plain, one = (pixels(shop.control(picture(), seed="5", loras=loras)) for loras in (None, json.dumps(ONE)))
    assert np.abs(plain - one).max() > 20
    body = errors(shop.control(picture(), loras="one"), 422)
    assert body["errors"][0].startswith("loras must be a list of at most 8 objects")


@pytest.mark.parametrize(
    ("loras", "said"),
    [
        ([{"name": "nobody"}], 'loras[0].name must be one of narrow, one, text, got "nobody"'),
        ([{"name": "../loras/one"}], "loras[0].name must be one of narrow, one, text"),
        ([{"name": "sd3"}], 'loras[0].name must be a LoRA for sdxl, not one for sd3, got "sd3"'),
        ([{"name": "broken"}], "loras[0].name must be a LoRA that can be used; of this one, it is no .safetensors file"),
        ([{"name": "narrow"}], "loras must fit the model, but narrow cannot be used: its layer"),
        ([{"name": "one", "scale": 11}], "loras[0].scale must be a number between -10 and 10, got 11"),
        ([{"name": "one", "weight": 1}], '"weight" is not a field of loras[0], the nearest is'),
        ("one", "loras must be a list"),
    ],
    ids=str,
)
def test_what_cannot_be_is_a_clear_422(shop: Server, loras: object, said: str) -> None:
    body = errors(shop.generate(loras=loras), 422)
    assert body["name"] == "invalid_loras"
    (line,) = body["errors"]
    assert line.startswith(said)
    assert str(shop.data_dir) not in line


def test_all_that_is_wrong_is_reported_at_once(shop: Server) -> None:
    assert len(errors(shop.generate(steps=7, loras=[{"name": "nobody", "scale": "1"}, {"name": "sd3"}]), 422)["errors"]) == 4


def test_a_name_twice_in_one_object_is_not_taken_in_silence(shop: Server) -> None:
    body = '{"prompt": "a cat", "loras": [{"name": "one", "scale": 1, "scale": 2}]}'
    reply = requests.post(f"{shop.service_id}/v1/images/generate", data=body, headers=shop.headers() | {"Content-Type": "application/json"}, timeout=30)
    assert "must give each name of an object once" in errors(reply, 422)["errors"][0]


def test_models_name_the_loras_that_fit_and_the_documentation_shows_the_field(shop: Server) -> None:
    model = requests.get(f"{shop.service_id}/v1/models", headers=shop.headers(), timeout=30).json()["data"][0]
    assert model["loras"] == ["narrow", "one", "text"]
    paths = requests.get(f"{shop.host}/openapi.json", timeout=30).json()["paths"]
    for route, media, kind in (("generate", "application/json", "array"), ("control", "multipart/form-data", "string")):
        schema = paths[f"/v1/images/{route}"]["post"]["requestBody"]["content"][media]["schema"]
        assert schema["properties"]["loras"]["type"] == kind


def test_files_come_change_and_go_while_the_server_runs(shop: Server, tmp_path: Path) -> None:
    assert shop.generate(loras=[{"name": "late"}]).status_code == 422
    added = shop.cli("models", "lora", "add", "late", str(write_lora(tmp_path / "a.safetensors", 7)))
    assert added.returncode == 0, added.stderr
    first = pixels(shop.generate(seed=5, loras=[{"name": "late"}]))
    write_lora(shop.data_dir / "loras" / "late.safetensors", 8)
    second = pixels(shop.generate(seed=5, loras=[{"name": "late"}]))
    assert np.abs(first - second).max() > 20
    assert shop.cli("models", "lora", "remove", "late", "--yes").returncode == 0
    assert "late" not in errors(shop.generate(loras=[{"name": "late"}]), 422)["errors"][0].partition("got")[0]


def test_generate_and_edit_without_a_server(shop: Server, tmp_path: Path) -> None:
    out, small = tmp_path / "out.png", ("--steps", "10", "--data-dir", str(shop.data_dir))
    sides = ("--width", "128", "--height", "128")
    done = cli("generate", "a red circle", "-o", str(out), "--lora", "one:0.8", "--lora", "text", *sides, *small)
    assert done.returncode == 0, done.stderr
    assert json.loads(Image.open(out).text["darkroom"])["loras"] == [*ONE, {"name": "text", "scale": 1.0}]
    done = cli("edit", str(out), "a red circle", "-o", str(out), "--lora", "one:-1", *small)
    assert "<lora:one:-1>" in Image.open(out).text["parameters"], done.stderr
    for wrong, said in (("one:much", 'loras[0].scale must be a number between -10 and 10, got "much"'), ("nobody:1", "loras[0].name must be one of")):
        done = cli("generate", "a red circle", "-o", str(out), "--lora", wrong, *small)
        assert done.returncode == 1
        assert done.stderr.startswith(f"darkroom: {said}")
        assert done.stderr.count("\n") == 1
    done = cli("generate", "a red circle", "-o", str(out), "--lora", "narrow:1", *sides, *small)
    assert done.returncode == 1
    assert "loras must fit the model" in done.stderr
