"""Commands that we print and show, pasted into the shell that started the server; and which data folder a
command finds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image

from tests.conftest import Server, cli, start

SCRIPT = Path(sys.executable).parent / "darkroom"
PROGRAM = "'my env/bin/darkroom'"


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with an environment of its own, as `make run` makes one, which is not on the PATH."""
    if not SCRIPT.exists():
        pytest.skip("darkroom is not installed")
    (tmp_path / "room" / "my env" / "bin").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "room" / "my env" / "bin")
    return tmp_path / "room"


@pytest.fixture
def run(room: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers in the room by the script that lies there, on a data folder that has to be quoted."""
    running: list[Server] = []

    def begin(**environment: str) -> Server:
        def by_script(words: list[str]) -> list[str]:
            return ["my env/bin/darkroom", *words[3:]]

        running.append(
            start(Path("the data"), "--model", "demo-xl", folder=room, wrap=by_script, **environment)
        )
        return running[-1]

    yield begin
    for one in running:
        one.process.kill()
        one.process.wait()


def paste(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """The line in a fresh shell, which has neither our script on its PATH nor a variable of ours."""
    clean = {name: value for name, value in os.environ.items() if name != "API_KEY"}
    found = os.pathsep.join(
        part for part in os.environ["PATH"].split(os.pathsep) if not (Path(part) / "darkroom").exists()
    )
    clean |= {"PATH": found, **environment}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=200, check=False, env=clean
    )


def test_what_is_printed_after_a_restart_works_as_pasted(run: Callable[..., Server], room: Path) -> None:
    run().stop()
    server = run()
    assert not [line for line in server.block if line.startswith("curl")], "without a key it would be refused"
    line = next(line for line in server.block if "curl" in line)
    assert line.startswith(
        f"API_KEY=$({PROGRAM} key create --plain --data-dir 'the data') && curl --fail-with-body "
    )
    done = paste(line, room)
    assert done.returncode == 0, done.stderr
    assert Image.open(room / "out.png").size == (512, 512)


def test_the_pages_show_commands_that_work_as_pasted(run: Callable[..., Server], room: Path) -> None:
    server = run()
    commands = requests.get(f"{server.host}/console/state", timeout=30).json()["commands"]
    done = paste(commands["link"], room)
    assert re.fullmatch(rf"{server.host}/sign-in#link=\S+\n", done.stdout), done.stderr
    done = paste(f"{commands['generate']} 'a cat' --steps 10 --width 128 --height 128 -o cat.png", room)
    assert done.returncode == 0, done.stderr
    assert Image.open(room / "cat.png").size == (128, 128)


def test_a_model_that_is_here_is_served_too_by_the_command_that_is_shown(
    run: Callable[..., Server], room: Path
) -> None:
    server = run()
    session = requests.Session()
    link = next(line for line in server.block if line.startswith("Dashboard")).partition("#link=")[2]
    session.post(f"{server.host}/console/sign-in", json={"link": link}, timeout=30)
    models = session.get(f"{server.host}/console/models", timeout=30).json()["data"]
    shown = {model["name"]: model["serve_command"] for model in models}
    flags = "serve --port 0 --data-dir 'the data' --model demo-xl,demo-3.5"
    assert (shown["demo-xl"], shown["demo-3.5"]) == ("", f"{PROGRAM} {flags}")


def test_a_stranger_learns_no_path_of_this_machine(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl", DARKROOM_PRELOAD="false")
    here = requests.get(f"{server.host}/console/state", timeout=30).json()["commands"]
    there = requests.get(
        f"{server.host}/console/state", headers={"X-Forwarded-For": "192.0.2.1"}, timeout=30
    ).json()["commands"]
    assert str(server.data_dir) in here["link"]
    assert there["link"].endswith("darkroom link")
    assert not [word for word in there["link"].split() if word.startswith("/")]


def test_link_and_password_find_the_running_server_and_make_nothing(
    run: Callable[..., Server], tmp_path: Path
) -> None:
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = f"'{tmp_path}/room/my env/bin/darkroom'"
    for words in (
        "link",
        "password --stdin <<< 'long enough'",
        "key list",
        "webhook list",
        "service list",
        "key create",
    ):
        refused = paste(f"{program} {words}", elsewhere, **state)
        assert refused.returncode == 1, words
        assert (
            "no server has used the data folder data; name that of a server with --data-dir" in refused.stderr
        )
        assert len(refused.stderr.splitlines()) == 1
    server = run(**state)
    found = paste(f"{program} link", elsewhere, **state)
    assert found.stdout.startswith(f"{server.host}/sign-in#link="), found.stderr
    assert str(tmp_path / "room" / "the data") in found.stderr
    key = paste(f"{program} key create --plain", elsewhere, **state).stdout.strip()
    assert (
        requests.get(f"{server.host}/v1/models", headers=server.headers(key), timeout=30).status_code == 200
    )
    assert paste(f"{program} password --stdin <<< 'long enough'", elsewhere, **state).returncode == 0
    assert paste(f"{program} link --data-dir nowhere", elsewhere, **state).returncode == 1, (
        "a folder that was named is meant"
    )
    server.stop()
    late = paste(f"{program} link", elsewhere, **state)
    assert late.returncode == 1
    assert f"none runs on {tmp_path / 'room' / 'the data'}, where the last one did" in late.stderr
    assert list(elsewhere.iterdir()) == []


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path, server: Server) -> None:
    port = server.host.rpartition(":")[2]
    for words, variables in (
        (("--port", port), {}),
        (("--port", "0", "--model", "nonsense"), {}),
        (("--port", "0"), {"DARKROOM_PASSWORD": "short"}),
    ):
        failed = cli("serve", "--data-dir", str(tmp_path / "a" / "data"), *words, **variables)
        assert failed.returncode == 1
        assert len(failed.stderr.splitlines()) == 1, failed.stderr
        assert not (tmp_path / "a").exists(), words


def test_a_folder_that_was_named_may_be_new_where_something_is_made(tmp_path: Path) -> None:
    named = ("--data-dir", str(tmp_path / "data"))
    for words in (
        ("key", "list"),
        ("key", "revoke", "x"),
        ("service", "list"),
        ("webhook", "rotate"),
        ("link",),
    ):
        refused = cli(*words, *named)
        assert (refused.returncode, (tmp_path / "data").exists()) == (1, False), words
        assert "no server has used the data folder" in refused.stderr
    assert cli("key", "create", "--plain", *named).stdout.startswith("dk_")
    assert len(json.loads(cli("key", "list", "--json", *named).stdout)) == 1


@pytest.mark.parametrize("words", ["123456789", "", "x" * 1001])
def test_a_password_keeps_the_rule_of_length_wherever_it_comes_from(tmp_path: Path, words: str) -> None:
    (tmp_path / "secret").write_text(f"{words}\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "darkroom.sqlite").touch()
    rule = f"must have 10 to 1000 characters, got {len(words)}\n"
    data, start = ("--data-dir", str(tmp_path / "data")), ("serve", "--port", "0", "--model", "demo-xl")
    by_file = cli(*start, *data, DARKROOM_PASSWORD_FILE=str(tmp_path / "secret"))
    assert by_file.stderr == f"darkroom: password_file {rule}"
    if words:  # an empty variable is as good as none
        by_variable = cli(*start, *data, DARKROOM_PASSWORD=words)
        assert by_variable.stderr == f"darkroom: password {rule}"
    by_hand = subprocess.run(
        [sys.executable, "-m", "darkroom.cli", "password", "--stdin", *data],
        input=f"{words}\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert by_hand.stderr == f"darkroom: password {rule}"
    (tmp_path / "darkroom.toml").write_text(f'password = "{words or "short"}"\n')
    by_toml = subprocess.run(
        [sys.executable, "-m", "darkroom.cli", *start, *data],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert by_toml.returncode == 1
    assert "password must have 10 to 1000 characters" in by_toml.stderr
