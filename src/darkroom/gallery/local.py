"""Picture files in a local folder: sharded, and whole or not there at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


class LocalGallery:
    """Files under `root`, named by keys like `ab/abcdef.png`. Calls block: use them from a thread."""

    def __init__(self, root: Path):
        self._root = root

    def put(self, name: str, content: bytes) -> str:
        """Write a file, on disk before this returns; the key that names it."""
        key = f"{name[-2:]}/{name}.png"
        path = self._root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        return key

    def get(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        return (self._root / key).read_bytes()

    def delete(self, key: str) -> None:
        """Remove a file; one that is gone is let be."""
        (self._root / key).unlink(missing_ok=True)
