"""The documents say what is."""

from __future__ import annotations

import re
from pathlib import Path

from darkroom.checks import IMAGE_TO_IMAGE
from darkroom.cli.models import lora_app, models_app
from darkroom.models.catalogue import KNOWN
from darkroom.settings import Settings

ROOT = Path(__file__).parent.parent


def test_every_setting_is_in_the_settings_table_with_its_default_and_help() -> None:
    table = (ROOT / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert f"| `{name}` | `{field.default}` | {field.description} |" in table


def test_the_readme_names_every_field_of_a_request() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{field}`" in readme for field in IMAGE_TO_IMAGE)


def test_the_readmes_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for room in (ROOT / "src" / "darkroom").iterdir():
        if (room.suffix == ".py" and room.name not in ("__init__.py",)) or (room.is_dir() and (room / "__init__.py").exists()):
            assert f"`{room.name}`" in text or f"`{room.name}/`" in text, room.name


def test_the_table_of_models_is_the_catalogue() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    for card in KNOWN:
        start = f"| `{card.name}` | {card.family} | `{card.hub_id}` | {card.licence.name} | {'yes' if card.gated else 'no'} | {card.disk_bytes / 1e9:.1f} GB |"
        assert f"{start} {card.default_steps}, {card.min_steps} to {card.max_steps} | {card.default_cfg:g} |" in text, card.name


def test_every_models_command_is_in_the_table_of_commands() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    assert set(re.findall(r"^\| `darkroom models (\w+)", text, re.MULTILINE)) == {command.name for command in models_app.registered_commands} | {"lora"}
    assert set(re.findall(r"^\| `darkroom models lora (\w+)", text, re.MULTILINE)) == {command.name for command in lora_app.registered_commands}
