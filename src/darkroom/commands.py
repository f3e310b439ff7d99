"""Commands of ours as a person can paste them into the shell that started this process. A virtual
environment's `darkroom` is seldom on the PATH, and a data folder that a flag named is not found without
it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

# the data folder that this process works on, where a command without --data-dir would take another; a process
# has but one
_folder: Path | None = None


def works_on(data_dir: Path, found_without: Path) -> None:
    """Note the data folder of this process, and the one that a command finds which names none."""
    global _folder
    _folder = None if data_dir.absolute() == found_without.absolute() else data_dir


def command(words: str, public: bool = False) -> str:
    """A command line, like `.venv/bin/darkroom link --data-dir /srv/pictures`. What is `public` may be read
    by somebody who must not learn where files of this machine are: absolute paths are left out of it."""
    folder = None if public and _folder is not None and _folder.is_absolute() else _folder
    data_dir = "" if folder is None else f" --data-dir {shlex.quote(str(folder))}"
    return f"{program(public)} {words}{data_dir}"


def program(public: bool = False) -> str:
    """What stands before the words of a command: `darkroom` where the PATH finds this one, else where it
    lies."""
    script = Path(sys.argv[0])
    if script.stem != "darkroom":  # python -m darkroom.cli, or another program that imports us
        script = Path(sys.executable).with_name("darkroom")
        if not script.exists():
            return "darkroom" if public else f"{shlex.quote(sys.executable)} -m darkroom.cli"
    if _is_on_path(script):
        return script.name
    here = _from_here(script)
    return (
        script.name
        if public and here.is_absolute()
        else shlex.quote(str(here) if len(here.parts) > 1 else f"./{here}")
    )


def same_again(flag: str, value: str) -> str:
    """The command line of this process, with another value for one of its flags."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word == flag:
            next(words, None)
        elif not word.startswith(f"{flag}="):
            kept.append(word)
    return " ".join([program(), *map(shlex.quote, [*kept, flag, value])])


def _is_on_path(script: Path) -> bool:
    found = shutil.which(script.name)
    return found is not None and script.exists() and os.path.samefile(found, script)


def _from_here(script: Path) -> Path:
    """Relative to the folder that the process was started in, where it lies below it: shorter, and as good in
    that shell."""
    try:
        return script.absolute().relative_to(Path.cwd())
    except (ValueError, OSError):
        return script.absolute()
