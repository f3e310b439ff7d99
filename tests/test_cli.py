"""The command line, and the server's own life, as an operator meets them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from PIL import Image

from tests.conftest import Server, cli


def test_the_block_is_three_plain_lines_and_a_curl_line_that_works(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    assert re.fullmatch(r"SERVICE_ID=http://127\.0\.0\.1:\d+/svc-[a-z0-9]{8}", server.block[0])
    assert re.fullmatch(r"API_KEY=dk_\w{12}_[\w-]{43}_[0-9a-f]{8}", server.block[1])
    assert server.block[2] == "MODEL=demo-xl"
    line = next(line for line in server.block if line.startswith("curl"))
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(["bash", "-c", f"{line} -sS"], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out.png").size == (512, 512)


def test_a_later_start_keeps_service_and_keys_and_shows_no_secret(serve: Callable[..., Server], tmp_path: Path) -> None:
    first = serve("--model", "demo-xl")
    assert requests.get(f"{first.host}/healthz", timeout=10).json()["worker"] in ("loading", "ready")
    assert first.stop() == 0
    assert not list((tmp_path / "data").glob("darkroom.sqlite-*"))  # the database was closed in order
    second = serve("--model", "demo-xl", "--public-url", "https://pictures.example/")
    assert second.block[0] == f"SERVICE_ID=https://pictures.example/{first.service_id.rpartition('/')[2]}"
    assert second.block[1] == "API_KEY=$API_KEY"
    assert any("darkroom key create" in line for line in second.block)
    for path in [tmp_path / "data" / name for name in ("darkroom.sqlite", "secrets/pepper", "lock", "admin.sock")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    busy = cli("serve", "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert busy.returncode == 1
    assert "another darkroom runs" in busy.stderr
    assert "Traceback" not in busy.stderr


def test_rows_and_files_of_a_picture_and_no_secret_in_the_rows(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve("--model", "demo-xl")
    png = server.generate(seed=4).content
    server.stop()
    rows = sqlite3.connect(tmp_path / "data" / "darkroom.sqlite")
    assert rows.execute("select status, steps_run from jobs").fetchall() == [("finished", 10)]
    (key,) = rows.execute("select key from pictures").fetchone()
    assert (tmp_path / "data" / "pictures" / key).read_bytes() == png
    assert server.key.encode() not in (tmp_path / "data" / "darkroom.sqlite").read_bytes()
    assert server.key not in server.log.read_text()


def test_services_and_keys_without_a_server(tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    key = json.loads(cli("key", "create", "--name", "laptop", "--json", *data).stdout)
    assert key["key"].endswith(key["last4"])
    listed = json.loads(cli("key", "list", "--json", *data).stdout)
    assert [(row["public_id"], row["name"]) for row in listed] == [(key["public_id"], "laptop")]
    assert "key" not in listed[0]
    assert "hash" not in listed[0]
    assert json.loads(cli("key", "revoke", key["public_id"], "--json", *data).stdout)["revoked"] is True
    again = cli("key", "revoke", key["public_id"], *data)
    assert again.returncode == 1
    assert again.stderr.startswith("darkroom: ")
    made = json.loads(cli("service", "create", "second", "--json", *data).stdout)
    assert [row["id"] for row in json.loads(cli("service", "list", "--json", *data).stdout)][-1] == made["id"]
    assert cli("key", "create", "--service", "svc-nothing0", *data).returncode == 1


def test_a_call_over_the_socket_that_is_none_gets_an_answer_and_stays_out_of_the_log(server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect((server.data_dir / "admin.path").read_text())
        connection.sendall(b'{"call": "password", "to": "hunter2\n')
        assert b"the server failed" in connection.makefile("rb").readline()
    assert server.logged("a fault of ours")
    assert not re.search("hunter2", server.log.read_text())


def test_generate_and_edit_without_a_server(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    small = ("--steps", "10", "--data-dir", str(tmp_path / "data"))
    done = cli("generate", "a red circle on a white background", "-o", str(one), "--width", "128", "--height", "192", "--seed", "3", *small)
    assert done.returncode == 0, done.stderr
    assert (len(done.stdout.splitlines()), done.stderr.strip()) == (1, ""), "what it says beside the outcome is noise"
    assert Image.open(one).size == (128, 192)
    assert json.loads(Image.open(one).text["darkroom"])["seed"] == 3
    done = cli("edit", str(one), "a blue circle on a white background", "-o", str(two), "--control-strength", "0.35", *small, DARKROOM_LOG_LEVEL="info")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "backend" in done.stderr
    assert Image.open(two).size == (128, 192)
    assert "is a folder" in cli("generate", "a cat", "-o", str(tmp_path), *small).stderr
    wrong = cli("generate", "a cat", "--width", "100", *small)
    assert wrong.returncode == 1
    assert "width must be a multiple of 64" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_doctor_says_what_is_missing_and_the_line_that_mends_it(tmp_path: Path) -> None:
    assert cli("doctor", "--data-dir", str(tmp_path)).returncode == 0
    new = cli("doctor", "--data-dir", str(tmp_path), DARKROOM_GRAPHS_DIR=str(tmp_path / "graphs"))
    assert "Getting demo-xl ready (first time only)" in new.stdout
    lacking = cli("doctor", "--data-dir", str(tmp_path), "--model", "stable-diffusion-xl-base-1.0")
    assert lacking.returncode == 1
    assert "darkroom models pull stable-diffusion-xl-base-1.0" in lacking.stdout
    assert "darkroom models accept stable-diffusion-xl-base-1.0" in lacking.stdout
    assert "--device" in cli("doctor", "--data-dir", str(tmp_path), DARKROOM_DEVICE="toaster").stdout
    (tmp_path / "file").write_text("")
    assert "--data-dir" in cli("doctor", "--data-dir", str(tmp_path / "file" / "x")).stdout
    assert cli("doctor", "--data-dir", str(tmp_path / "a" / "b" / "c")).returncode == 0
    assert not (tmp_path / "a").exists()


def test_what_the_operator_gets_wrong_is_one_line_and_no_trace(tmp_path: Path) -> None:
    (tmp_path / "darkroom.toml").write_text("port = [")
    (tmp_path / "file").write_text("")
    here = ("--data-dir", str(tmp_path / "data"))
    done = {
        "cannot be read": cli("doctor", DARKROOM_CORS_ORIGINS="https://a"),
        "nearest is DARKROOM_MAX_QUEUE": cli("doctor", DARKROOM_MAX_QUEU="1"),
        "is not a folder": cli("generate", "a cat", "-o", str(tmp_path / "missing" / "out.png"), *here),
        "cannot be used": cli("key", "create", "--data-dir", str(tmp_path / "file" / "data")),
        "darkroom.toml cannot be read": subprocess.run(
            [sys.executable, "-m", "darkroom.cli", "doctor"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        ),
    }
    for line, result in done.items():
        assert result.returncode == 1, line
        assert line in result.stderr
        assert "Traceback" not in result.stderr


def test_a_data_folder_may_have_any_name(tmp_path: Path) -> None:
    for name in ("with #", "50%41?", "käse"):
        listed = cli("key", "create", "--data-dir", str(tmp_path / name))
        assert listed.returncode == 0, listed.stderr
        assert (tmp_path / name / "darkroom.sqlite").exists()


def test_wrong_settings_are_one_clear_line(tmp_path: Path, server: Server) -> None:
    assert "port" in cli("serve", "--port", "70000", "--data-dir", str(tmp_path)).stderr
    wrong = cli("doctor", DARKROOM_MAX_QUEUE="none")
    assert wrong.returncode == 1
    assert "max_queue" in wrong.stderr
    taken = cli("serve", "--port", server.host.rpartition(":")[2], "--data-dir", str(tmp_path))
    assert taken.returncode == 1
    assert "cannot listen" in taken.stderr
    assert "Traceback" not in taken.stderr
    assert "no model" in cli("serve", "--port", "0", "--model", "nonsense", "--data-dir", str(tmp_path)).stderr


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_the_worker_ends_with_the_gateway(serve: Callable[..., Server], sign: signal.Signals) -> None:
    server = serve("--model", "demo-xl")
    found = subprocess.run(["pgrep", "-P", str(server.process.pid), "-f", "worker.child"], capture_output=True, text=True, check=False).stdout.split()
    assert len(found) == 1
    server.stop(sign)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{found[0]}/cmdline").exists() and Path(f"/proc/{found[0]}/cmdline").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    path = Path(f"/proc/{found[0]}/cmdline")
    assert not path.exists() or not path.read_bytes()


@pytest.mark.parametrize("late", ["torch", "httpx2", "httpcore2", "alembic", "huggingface_hub", "rich", "sqlalchemy.dialects.postgresql"])
def test_the_gateway_starts_without_what_it_may_never_need(late: str) -> None:
    rooms = "cli, darkroom.log, darkroom.http.app, darkroom.worker.local, darkroom.store.jobs, darkroom.jobs"  # in the order of `serve`
    code = f"import sys, darkroom.{rooms}; sys.exit({late!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
