"""What the README and the page of the API tell people to type, typed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import requests
from PIL import Image

from darkroom.errors import FAILURES, DarkroomError
from darkroom.http.app import EXPOSED
from tests.conftest import Server

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def filled(server: Server, text: str) -> str:
    for name, value in {"$SERVICE_ID": server.service_id, "$API_KEY": server.key, "$MODEL": server.model}.items():
        text = text.replace(name, value)
    return text


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False, env=os.environ | {"PATH": path})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_snippets_make_pictures(server: Server, tmp_path: Path) -> None:
    (snippet,) = blocks(README, "python")
    run([sys.executable, "-c", filled(server, snippet)], tmp_path)
    assert Image.open(tmp_path / "output.png").size == (512, 512)
    (curl,) = [block for block in blocks(README, "sh") if block.startswith("curl")]
    run(["bash", "-c", filled(server, curl)], tmp_path)
    assert Image.open(tmp_path / "out.png").size == (512, 512)


def test_the_readmes_commands_without_a_server(tmp_path: Path) -> None:
    commands = [c for c in re.findall(r"`(darkroom (?:generate|edit|doctor)[^`]*)`", README) if "out.png" in c or c == "darkroom doctor"]
    assert len(commands) == 3
    for command in commands:
        run(shlex.split(command), tmp_path)
        if (tmp_path / "out.png").exists():
            assert Image.open(tmp_path / "out.png").size == (512, 512)
            (tmp_path / "out.png").rename(tmp_path / "in.png")


def test_the_readmes_targets_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", README + API, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_commands_of_the_api_page_work(server: Server, tmp_path: Path) -> None:
    for command in blocks(API, "sh"):
        run(["bash", "-c", filled(server, command)], tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".png"}
    assert all(Image.open(path).format == "PNG" for path in tmp_path.iterdir())


def test_the_table_of_errors_is_the_tree_of_errors() -> None:
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\| (\d{3}) \|", API, re.MULTILINE))
    rooms = ("darkroom.errors", "darkroom.http", "darkroom.jobs")
    tree = {error.name: str(error.status) for error in _below(DarkroomError) if error.__module__.startswith(rooms)}
    assert rows == tree | {name: str(status) for name, status in FAILURES.items()} | {"method_not_allowed": "405"}


def test_a_job_fails_by_no_other_name_than_those_of_the_table() -> None:
    used = [re.findall(r"Failed\([\w.]+, \"(\w+)\"", file.read_text()) for file in (ROOT / "src" / "darkroom").rglob("*.py")]
    assert {name for names in used for name in names} == set(FAILURES)


def test_the_headers_of_a_reply_are_listed(server: Server) -> None:
    table = API[API.index("## Headers of a reply") : API.index("## Errors")]
    listed = {name.lower() for row in re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE) for name in re.findall(r"`([\w-]+)`", row)}
    assert listed == {name.lower() for name in EXPOSED}
    limited = {name for name in listed if name.startswith(("ratelimit", "x-ratelimit"))}
    later = {"x-queue-position", "location", "preference-applied"}
    sent = {name.lower() for name in server.generate(prompt="a zebra").headers}
    assert listed - sent == {"retry-after", "idempotency-replayed"} | limited | later
    sent = {name.lower() for name in server.generate(headers={"Prefer": "respond-async"}).headers}
    assert sent >= later - {"x-queue-position"}  # a job that has begun has no place in the queue


def test_the_error_of_the_api_page_is_what_the_server_says(server: Server) -> None:
    (shown,) = re.findall(r'"errors": \["(steps must.*?)"\]', API)
    assert server.generate(steps=7).json()["errors"] == [shown]
    assert requests.get(f"{server.host}/openapi.json", timeout=30).json()["paths"].keys() >= set(re.findall(r"`(?:GET|POST) (/[\w/]+)`", API))


def _below(error: type[DarkroomError]) -> set[type[DarkroomError]]:
    return {error}.union(*(_below(child) for child in error.__subclasses__()))
