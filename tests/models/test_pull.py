"""`darkroom models pull` from a hub on this machine, and what is served of what came."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import EAGER, cli
from tests.engine.conftest import make_checkpoint
from tests.models.hub import Hub, Repository

TOKEN = "hf_ThisIsNoRealTokenItIsForTests"
WEIGHTS = {"unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model", "text_encoder_2/model"}
Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    """A command of `darkroom` whose hub is ours; it must not end in a traceback."""

    def go(*words: str, **environment: str) -> subprocess.CompletedProcess:
        home = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "", "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = cli(*words, "--data-dir", str(tmp_path / "data"), **home | environment)
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return go


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("hub") / "tiny", widths=(32, 64))


@pytest.fixture
def painter(hub: Hub, tiny: Path) -> Repository:
    """maker/painter, with weights in two dtypes and with what a pull leaves where it is."""
    repository = hub.repositories["maker/painter"] = Repository.of(tiny, half=True)
    repository.files |= {
        "LICENSE.md": b"as you like it", "README.md": b"# Painter", "painter.safetensors": b"all in one" * 5000,
        "unet/model.onnx": b"for another engine", "vae_decoder/config.json": b"{}", "text_encoder/pytorch_model.fp16.bin": b"a pickle",
    }  # fmt: skip
    return repository


def bulky(name: str, tiny: Path, size: int = 25_000_000) -> Repository:
    """Weights of one component that take the hub's client three pieces; nothing for an engine to read."""
    repository = Repository.of(tiny)
    repository.files[name] = bytes(range(251)) * (size // 251)
    return repository


def models(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models"


def test_pull_then_list_then_generate(hub: Hub, painter: Repository, run: Run, tmp_path: Path) -> None:
    hub.token = TOKEN
    done = run("models", "pull", "maker/painter", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert TOKEN not in done.stdout + done.stderr
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    for _, path, headers in hub.asked:  # the store of large files is another host: the token is not for it
        assert headers.get("authorization") == (None if path.startswith("/objects/") else f"Bearer {TOKEN}"), path

    brought = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts}
    assert {name for name in brought if name.endswith(".safetensors")} == {f"{name}.fp16.safetensors" for name in WEIGHTS}
    assert brought - {".complete"} == hub.fetched("maker/painter")
    assert brought.isdisjoint({"README.md", "painter.safetensors", "unet/model.onnx", "vae_decoder/config.json", "text_encoder/pytorch_model.fp16.bin"})
    assert {"LICENSE.md", "model_index.json", "scheduler/scheduler_config.json", "tokenizer_2/tokenizer.json"} <= brought

    asked = len(hub.asked)
    assert f"maker/painter  sdxl  CreativeML Open RAIL++-M  {folder}" in run("models", "list").stdout
    assert run("models", "pull", "maker/painter").returncode == 0
    out = tmp_path / "out.png"
    done = run("generate", "a cat", "--model", "maker/painter", "-o", str(out), "--width", "128", "--height", "128", "--steps", "10", **EAGER)
    assert done.returncode == 0, done.stderr
    assert Image.open(out).size == (128, 128)
    assert len(hub.asked) == asked  # what is here is not asked for again


def test_without_an_fp16_variant_the_plain_weights_come(hub: Hub, tiny: Path, run: Run, tmp_path: Path) -> None:
    repository = hub.repositories["maker/plain"] = Repository.of(tiny)
    shards = {f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors": b"a half" * 2000 for i in (1, 2)}
    repository.files |= shards | {"unet/diffusion_pytorch_model.safetensors.index.json": b"{}"}
    del repository.files["unet/diffusion_pytorch_model.safetensors"]
    repository.files["vae/diffusion_pytorch_model.fp16.safetensors"] = b"an fp16 variant of one net alone" * 500
    assert run("models", "pull", "maker/plain").returncode == 0
    fetched = hub.fetched("maker/plain")
    assert shards.keys() | {"unet/diffusion_pytorch_model.safetensors.index.json"} <= fetched
    assert {name for name in fetched if name.startswith(("vae/", "text_encoder/"))} == {
        "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors",
    }  # fmt: skip


def test_one_name_of_two_owners_is_two_models(hub: Hub, painter: Repository, tiny: Path, run: Run) -> None:
    hub.repositories["other/painter"] = Repository.of(tiny)
    assert run("models", "pull", "maker/painter").returncode == 0
    assert run("models", "pull", "other/painter").returncode == 0
    assert hub.fetched("other/painter")
    listed = run("models", "list").stdout
    assert "maker/painter  " in listed
    assert "other/painter  " in listed


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_names_the_page_to_agree_on(hub: Hub, painter: Repository, run: Run, tmp_path: Path, status: int) -> None:
    painter.gated = status
    done = run("models", "pull", "maker/painter")
    assert done.returncode == 1
    assert "maker/painter is gated: agree at https://huggingface.co/maker/painter and set HF_TOKEN" in done.stderr
    assert not list(models(tmp_path).glob("*/.complete"))


def test_unknown_private_and_refused_are_one_line_each(hub: Hub, painter: Repository, run: Run) -> None:
    hub.token = TOKEN
    for words, environment, said in (
        ("maker/nothing", {"HF_TOKEN": TOKEN}, "the hub has no model maker/nothing"),
        ("maker/painter", {}, "the hub has no model maker/painter, or it is private and HF_TOKEN does not open it"),
        ("maker/painter", {"HF_TOKEN": "hf_wrong"}, "401; is HF_TOKEN right?"),
        ("maker/painter", {"HF_HUB_OFFLINE": "1"}, "the hub could not deliver maker/painter"),
    ):
        done = run("models", "pull", words, **environment)
        assert done.returncode == 1
        assert said in done.stderr
        assert "hf_wrong" not in done.stdout + done.stderr


def test_a_connection_cut_in_the_middle_goes_on_where_it_was(hub: Hub, tiny: Path, run: Run, tmp_path: Path) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    repository = hub.repositories["maker/bulky"] = bulky(name, tiny)
    repository.cut[name] = [15_000_000]
    done = run("models", "pull", "maker/bulky")
    assert done.returncode == 0, done.stderr
    piece = 10 * 2**20  # what the hub's client keeps of a stream, piece by piece
    assert hub.ranges(name) == [None, f"bytes={piece}-"]
    assert (models(tmp_path) / "maker--bulky" / name).read_bytes() == repository.files[name]


def test_half_a_model_is_not_a_model_and_the_next_pull_brings_the_rest(hub: Hub, tiny: Path, run: Run, tmp_path: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    repository = hub.repositories["maker/painter"] = Repository.of(tiny)
    repository.cut[name] = [1000] * 100
    out = tmp_path / "out.png"
    done = run("generate", "a cat", "--model", "maker/painter", "-o", str(out))
    assert done.returncode == 1
    told = r"could not deliver maker/painter \(RemoteProtocolError\); to go on: .*darkroom models pull maker/painter"
    assert re.search(told, done.stderr)
    assert not out.exists()
    assert "maker/painter" not in run("models", "list").stdout
    assert (models(tmp_path) / "maker--painter" / "vae" / "diffusion_pytorch_model.safetensors").exists()

    repository.cut.clear()
    hub.asked.clear()
    assert run("models", "pull", "maker/painter").returncode == 0
    assert hub.fetched("maker/painter") == {name}
    assert "maker/painter" in run("models", "list").stdout


def test_what_lies_there_is_not_taken_for_enough_when_the_hub_fails_in_the_middle(hub: Hub, painter: Repository, run: Run, tmp_path: Path) -> None:
    (models(tmp_path) / "maker--painter").mkdir(parents=True)
    (models(tmp_path) / "maker--painter" / "LICENSE.md").touch()
    painter.listings = 1
    done = run("models", "pull", "maker/painter")
    assert done.returncode == 1
    told = "did not deliver model_index.json of maker/painter; to go on: .*darkroom models pull maker/painter"
    assert re.search(told, done.stderr)
    assert not list(models(tmp_path).glob("*/.complete"))


def test_a_disk_without_room_is_told_before_any_weights_come(hub: Hub, painter: Repository, run: Run, tmp_path: Path) -> None:
    painter.sizes["unet/diffusion_pytorch_model.fp16.safetensors"] = 10**18
    done = run("models", "pull", "maker/painter")
    assert done.returncode == 1
    assert "1000000000.0 GB are to come, and the disk has room for" in done.stderr
    assert hub.fetched("maker/painter") == {"model_index.json"}


def test_a_file_that_is_not_what_the_hub_states_is_refused_and_named(hub: Hub, painter: Repository, run: Run, tmp_path: Path) -> None:
    folder = models(tmp_path) / "maker--painter"
    names = ("scheduler/scheduler_config.json", "vae/diffusion_pytorch_model.fp16.safetensors")  # the hub states git's hash, and sha256
    for name in names:
        painter.spoil = {name}
        done = run("models", "pull", "maker/painter")
        assert done.returncode == 1
        assert f"{name} of maker/painter came with another hash than the hub states" in done.stderr
        assert not (folder / name).exists()
        assert not (folder / ".complete").exists()
        painter.spoil.clear()
        (folder / names[1]).unlink(missing_ok=True)
    assert run("models", "pull", "maker/painter").returncode == 0
    for name in names:
        assert (folder / name).read_bytes() == painter.files[name]


def test_another_kind_of_model_is_refused_before_its_weights_come(hub: Hub, tiny: Path, run: Run) -> None:
    other = hub.repositories["maker/other"] = Repository.of(tiny)
    index = json.loads(other.files["model_index.json"])
    other.files["model_index.json"] = json.dumps(index | {"_class_name": "StableDiffusionPipeline"}).encode()
    bare = hub.repositories["maker/bare"] = Repository.of(tiny)
    del bare.files["unet/diffusion_pytorch_model.safetensors"]
    bare.files["unet/diffusion_pytorch_model.bin"] = b"a pickle"
    hub.repositories["maker/file"] = Repository({"painter.safetensors": b"all in one" * 5000})
    for hub_id, said in (
        ("maker/other", "_class_name must be one of StableDiffusionXLPipeline"),
        ("maker/bare", "maker/bare has no .safetensors weights of unet"),
        ("maker/file", "maker/file is not in diffusers' layout: it has no model_index.json"),
    ):
        done = run("models", "pull", hub_id)
        assert done.returncode == 1
        assert said in done.stderr
        assert hub.fetched(hub_id) <= {"model_index.json"}


def test_a_pulled_model_is_shown_verified_and_removed(hub: Hub, painter: Repository, run: Run, tmp_path: Path) -> None:
    assert run("models", "verify", "maker/painter").returncode == 1
    folder = Path(run("models", "pull", "maker/painter").stdout.splitlines()[-1])
    assert "✓" in run("models", "verify", "maker/painter").stdout
    shown = json.loads(run("models", "show", "maker/painter", "--json").stdout)
    assert (shown["family"], shown["path"], shown["licence"]) == ("sdxl", str(folder), "CreativeML Open RAIL++-M July 26, 2023")
    assert shown["it asks a host"]
    assert "licence" in run("models", "show", "maker/painter").stdout
    file = folder / "vae" / "config.json"
    file.write_text(file.read_text() + " ")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    damaged = run("models", "verify", "maker/painter")
    assert damaged.returncode == 1
    assert "vae/config.json is not what the hub stated" in damaged.stdout
    assert "unet/diffusion_pytorch_model.fp16.safetensors is missing" in damaged.stdout
    assert run("models", "add", "mine", "maker/painter").returncode == 0
    listed = [line.split()[0] for line in run("models", "list").stdout.splitlines()]
    assert "mine" in listed
    assert "maker/painter" not in listed, "twice the same"
    for name in ("maker/painter", "mine"):
        damaged = run("models", "verify", name)
        mend = "darkroom models remove --yes maker/painter .*&& .*darkroom models pull maker/painter"
        assert re.search(mend, damaged.stderr)
    assert run("models", "remove", "mine", "--yes").returncode == 0
    assert run("models", "remove", "maker/painter").returncode == 1  # not asked, not removed
    assert folder.exists()
    assert run("models", "remove", "maker/painter", "--yes").returncode == 0
    assert not folder.exists()
    assert "maker/painter" not in run("models", "list").stdout


def test_a_named_model_that_is_not_here_says_what_brings_it(run: Run, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(tiny, folder)
    assert run("models", "add", "mine", str(folder)).returncode == 0
    assert run("models", "add", "theirs", "maker/painter").returncode == 0
    folder.rename(tmp_path / "elsewhere")
    lines = run("models", "list").stdout.splitlines()
    assert "mine  unknown  unknown  no model lies there any more" in lines
    theirs = next(line for line in lines if line.startswith("theirs"))
    assert re.fullmatch("theirs  unknown  unknown  not here; .*darkroom models pull maker/painter .*", theirs)


def test_one_progress_bar_knows_its_total_from_the_start(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    hub.repositories["maker/bulky"] = bulky("vae/diffusion_pytorch_model.safetensors", tiny)
    shown = on_a_terminal("models", "pull", "maker/bulky", "--data-dir", str(tmp_path / "data"), HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hf"))
    bars = [line for line in re.split(r"[\r\n]+", shown) if "%|" in line]
    assert bars, shown
    assert all("bulky:" in bar for bar in bars), bars
    totals = {re.search(r"/(\S+) \[", bar)[1] for bar in bars}  # type: ignore[index]
    assert len(totals) == 1, bars
    assert "100%|" in bars[-1], bars


def on_a_terminal(*words: str, **environment: str) -> str:
    """What a command of `darkroom` writes to a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 100))
    with subprocess.Popen([sys.executable, "-m", "darkroom.cli", *words], stdout=theirs, stderr=theirs, env=os.environ | environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal whose other end closes
            while piece := os.read(ours, 4096):
                shown += piece
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode()
