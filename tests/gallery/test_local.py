"""Picture files in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkroom.gallery.local import LocalGallery


def test_what_was_put_is_got_and_sharded(tmp_path: Path) -> None:
    gallery = LocalGallery(tmp_path / "pictures")
    key = gallery.put("pic-0123", b"picture")
    assert key == "23/pic-0123.png"
    assert gallery.get(key) == b"picture"
    gallery.put("pic-0123", b"another")
    assert gallery.get(key) == b"another"


def test_a_put_that_fails_leaves_no_file(tmp_path: Path) -> None:
    gallery = LocalGallery(tmp_path)
    (tmp_path / "23" / "pic-0123.png").mkdir(parents=True)  # a folder stands where the file should go
    with pytest.raises(OSError, match="pic-0123"):
        gallery.put("pic-0123", b"picture")
    assert [path.name for path in (tmp_path / "23").iterdir()] == ["pic-0123.png"]
