"""Picture files in a local folder: sharded, and whole or not there at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


class LocalGallery:
    """Files under `root`, named by keys like `ab/abcdef.png`, and their thumbnails beside them. Calls block: use them from a thread."""

    def __init__(self, root: Path):
        self._root = root

    def put(self, name: str, content: bytes) -> str:
        """Write a file, on disk before this returns; the key that names it. Raises OSError."""
        key = self._key(name)
        self._write(self._root / key, content)
        return key

    def get(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        return (self._root / key).read_bytes()

    def put_thumbnail(self, key: str, content: bytes) -> None:
        """The thumbnail of a picture, as WebP. Raises OSError."""
        self._write(self._thumbnail(key), content)

    def get_thumbnail(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        return self._thumbnail(key).read_bytes()

    def remove(self, name: str) -> None:
        """As delete, by the name that the file was put under."""
        self.delete(self._key(name))

    def delete(self, key: str) -> None:
        """Remove a file and its thumbnail; what is gone is let be."""
        for path in (self._root / key, self._thumbnail(key)):
            path.unlink(missing_ok=True)

    def _thumbnail(self, key: str) -> Path:
        return (self._root / key).with_suffix(".webp")

    @staticmethod
    def _key(name: str) -> str:
        return f"{name[-2:]}/{name}.png"

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
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
