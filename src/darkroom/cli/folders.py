"""Which data folder a command works on. One that a server has used is looked for; none is made where none was
named."""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import suppress
from pathlib import Path

from darkroom.cli.flags import settings_of
from darkroom.commands import command
from darkroom.errors import DarkroomError
from darkroom.settings import Settings


def found(data_dir: Path | None, creates: bool = False) -> Settings:
    """The settings with the folder that is meant: the one that was named (by flag, variable or
    darkroom.toml), else ./data, else that of the server which runs on this machine. `creates`: a folder that
    was named may be new.

    Raises DarkroomError where no server has used it.
    """
    settings = settings_of(data_dir=data_dir)
    named = "data_dir" in settings.model_fields_set
    if is_served(settings.data_dir) or is_used(settings) or (creates and named):
        return settings
    running = None if named else last_served()
    if running is not None and is_served(running):
        print(f"darkroom: on the data folder of the server that runs, {running}", file=sys.stderr)
        return settings_of(data_dir=running)
    raise DarkroomError(_unused(settings, running))


def _unused(settings: Settings, last: Path | None) -> str:
    line = f"no server has used the data folder {settings.data_dir}"
    if last is not None:
        line += f", and none runs on {last}, where the last one did"
    return f"{line}; name that of a server with --data-dir, or start one: {command('serve')}"


def is_used(settings: Settings) -> bool:
    """Whether there are rows that belong to this folder."""
    here = settings.data_dir / ("gateway" if settings.database_url else "darkroom.sqlite")
    return here.exists()


def is_served(data_dir: Path) -> bool:
    """Whether a process owns the folder; makes nothing."""
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDWR)  # shared, so that two who look do not see each other
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def remember(data_dir: Path) -> None:
    """Note that a server runs on this folder, for commands that are given elsewhere. A person without a place
    for it does without."""
    with suppress(OSError, RuntimeError):
        path = _state_file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(str(data_dir.absolute()))
        os.replace(draft, path)


def last_served() -> Path | None:
    """The folder of the server that this person started last."""
    try:
        text = _state_file().read_text().strip()
    except (OSError, RuntimeError, UnicodeDecodeError):
        return None
    return Path(text) if text and Path(text).is_absolute() else None


def _state_file() -> Path:
    """By the XDG base directory specification."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "darkroom" / "served"
