"""Picture files in a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from darkroom.errors import PictureDamaged
from darkroom.gallery.local import LocalGallery
from darkroom.types import PictureRow


def row(key: str, content: bytes) -> PictureRow:
    digest = hashlib.sha256(content).hexdigest()
    return PictureRow("pic-1", "job-1", "svc-1", key, 128, 128, len(content), digest, {}, 0.0)


def test_what_was_put_is_got_and_replaced(tmp_path: Path) -> None:
    gallery = LocalGallery(tmp_path / "pictures")
    key = gallery.put("job-0123-0", b"picture")
    assert gallery.get(row(key, b"picture")) == b"picture"
    assert gallery.put("job-0123-0", b"another") == key
    assert gallery.get(row(key, b"another")) == b"another"


def test_jobs_are_spread_over_folders_and_the_pictures_of_one_lie_together(tmp_path: Path) -> None:
    gallery = LocalGallery(tmp_path)
    keys = [gallery.put(f"job-{job:024x}-{index}", b"picture") for job in range(64) for index in range(2)]
    folders = [key.partition("/")[0] for key in keys]
    assert len(set(folders)) == 64
    assert not any(folder.startswith("-") for folder in folders)
    assert folders[::2] == folders[1::2]


def test_what_the_first_version_wrote_is_read_and_removed(tmp_path: Path) -> None:
    gallery, early = LocalGallery(tmp_path), tmp_path / "-0" / "job-0123-0.png"
    early.parent.mkdir()
    early.write_bytes(b"picture")
    assert gallery.get(row("-0/job-0123-0.png", b"picture")) == b"picture"
    gallery.remove("job-0123-0")
    assert not early.exists()


@pytest.mark.parametrize("content", [b"", b"pictur", b"picturf", b"picture and more"])
def test_a_file_that_is_not_what_was_written_is_told(tmp_path: Path, content: bytes) -> None:
    gallery = LocalGallery(tmp_path)
    key = gallery.put("job-0123-0", b"picture")
    (tmp_path / key).write_bytes(content)
    with pytest.raises(PictureDamaged, match="pic-1 is damaged"):
        gallery.get(row(key, b"picture"))
    (tmp_path / key).unlink()
    with pytest.raises(FileNotFoundError):
        gallery.get(row(key, b"picture"))
    (tmp_path / key).mkdir()
    with pytest.raises(PictureDamaged, match="cannot be read"):
        gallery.get(row(key, b"picture"))


def test_a_put_that_fails_leaves_no_file(tmp_path: Path) -> None:
    gallery = LocalGallery(tmp_path)
    (tmp_path / "23" / "job-0123-0.png").mkdir(parents=True)  # a folder stands where the file should go
    with pytest.raises(OSError, match="job-0123-0"):
        gallery.put("job-0123-0", b"picture")
    assert [path.name for path in (tmp_path / "23").iterdir()] == ["job-0123-0.png"]
