"""Picture files in a local folder: sharded, and whole or not there at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from darkroom.errors import PictureDamaged
from darkroom.types import PictureRow


class LocalGallery:
    """Files under `root`, named by keys like `ab/job-...ab-0.png`, and their thumbnails beside them; the folder is the end of the job's
    id. Calls block: use them from a thread."""

    def __init__(self, root: Path):
        self._root = root

    def put(self, name: str, content: bytes) -> str:
        """Write a file, on disk before this returns; the key that names it. Raises OSError."""
        key = self._key(name)
        self._write(self._root / key, content)
        return key

    def get(self, picture: PictureRow) -> bytes:
        """A picture's file, held against its row. Raises FileNotFoundError, or PictureDamaged if it is not what was written."""
        try:
            content = (self._root / picture.key).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise PictureDamaged(f"the file of picture {picture.id} cannot be read ({error.strerror})") from error
        if len(content) != picture.bytes or hashlib.sha256(content).hexdigest() != picture.sha256:
            raise PictureDamaged(f"the file of picture {picture.id} is damaged: it is not what was written")
        return content

    def put_thumbnail(self, key: str, content: bytes) -> None:
        """The thumbnail of a picture, as WebP. Raises OSError."""
        self._write(self._thumbnail(key), content)

    def get_thumbnail(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        return self._thumbnail(key).read_bytes()

    def remove(self, name: str) -> None:
        """As delete, by the name that the file was put under."""
        for key in (self._key(name), self._early_key(name)):
            self.delete(key)

    def delete(self, key: str) -> None:
        """Remove a file and its thumbnail; what is gone is let be."""
        for path in (self._root / key, self._thumbnail(key)):
            path.unlink(missing_ok=True)

    def _thumbnail(self, key: str) -> Path:
        return (self._root / key).with_suffix(".webp")

    @staticmethod
    def _key(name: str) -> str:
        return f"{name.rpartition('-')[0][-2:]}/{name}.png"

    @staticmethod
    def _early_key(name: str) -> str:
        """What it would have been in the first version, where the end of a name was its index: all first pictures in one folder."""
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
