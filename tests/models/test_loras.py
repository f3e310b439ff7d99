"""The folder of LoRAs, and the commands on it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from darkroom.errors import Invalid, NotFound, Unsupported
from darkroom.models.loras import add, found, remove
from tests.conftest import cli
from tests.engine.test_lora_header import FLAT, kohya, lora, peft

GOOD = lora(kohya(f"lora_unet_{FLAT}"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "Some file (v2).safetensors"
    path.write_bytes(GOOD)
    return path


def test_what_lies_in_the_folder_is_found_as_it_is_now(tmp_path: Path) -> None:
    assert found(tmp_path) == {}
    folder = tmp_path / "loras"
    folder.mkdir()
    (folder / "one.safetensors").write_bytes(GOOD)
    (folder / "broken.safetensors").write_bytes(GOOD[:-1])
    (folder / "notes.txt").write_text("hello")
    (folder / "folder.safetensors").mkdir()
    (folder / "a b.safetensors").write_bytes(GOOD)
    (folder / "dead.safetensors").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.safetensors")
    cards = found(tmp_path)
    assert {name for name, card in cards.items() if not card.fault} == {"one"}
    assert cards["one"].families == ("sdxl",)
    assert (cards["one"].format, cards["one"].rank, cards["one"].bytes) == ("kohya", 4, len(GOOD))
    faults = {"broken": "cut off", "folder": "no file", "a b": "its name must be", "dead": "cannot be read", "pipe": "no file"}
    assert all(said in cards[name].fault for name, said in faults.items())
    assert not any(card.families for card in cards.values() if card.fault)
    (folder / "one.safetensors").write_bytes(lora(peft("transformer.transformer_blocks.0.attn.to_q", rank=8)))
    assert (found(tmp_path)["one"].families, found(tmp_path)["one"].rank) == (("sd3",), 8)


def test_add_and_remove(tmp_path: Path, file: Path) -> None:
    card = add("mine-1.5", file, tmp_path / "data")
    assert (card.name, card.rank) == ("mine-1.5", 4)
    assert (tmp_path / "data" / "loras" / "mine-1.5.safetensors").read_bytes() == GOOD
    assert [path.name for path in (tmp_path / "data" / "loras").iterdir()] == ["mine-1.5.safetensors"]
    for name in ("mine-1.5", "", "../mine", "a/b", "/etc/x", ".hidden", "a b", "a:b", "é", "a" * 101, "a\n"):
        with pytest.raises(Invalid, match="the name must be free"):
            add(name, file, tmp_path / "data")
    with pytest.raises(NotFound, match="is no file"):
        add("other", tmp_path / "nothing", tmp_path / "data")
    file.write_bytes(GOOD[:50])
    with pytest.raises(Unsupported, match=r"^Some file \(v2\)\.safetensors cannot be used: "):
        add("other", file, tmp_path / "data")
    remove("mine-1.5", tmp_path / "data")
    assert found(tmp_path / "data") == {}
    for name in ("mine-1.5", "../../mine", ""):
        with pytest.raises(NotFound, match="there is no LoRA"):
            remove(name, tmp_path / "data")


def test_the_commands(tmp_path: Path, file: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    added = cli("models", "lora", "add", "mine", str(file), *data)
    assert added.stdout == "mine  sdxl  kohya  rank 4  0.0 MB\n"
    (tmp_path / "data" / "loras" / "bad.safetensors").write_bytes(b"no")
    assert cli("models", "lora", "list", *data).stdout.splitlines() == ["✗ bad: it is no .safetensors file, or cut off", added.stdout.strip()]
    listed = json.loads(cli("models", "lora", "list", "--json", *data).stdout)
    assert [(card["name"], card["families"], card["rank"]) for card in listed] == [("bad", [], 0), ("mine", ["sdxl"], 4)]
    again = cli("models", "lora", "add", "mine", str(file), *data)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert cli("models", "lora", "remove", "mine", "--yes", *data).stdout == "mine is removed\n"
    assert cli("models", "lora", "remove", "mine", "--yes", *data).returncode == 1
