"""ICC profiles of version 2, written by hand: those of displays (primaries and a gamma) and of grey."""

from __future__ import annotations

import struct

import numpy as np

DISPLAY_P3 = [(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)]
ADOBE_RGB = [(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)]
D65, D50 = (0.3127, 0.3290), np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def rgb_profile(primaries: list[tuple[float, float]], gamma: float = 2.2) -> bytes:
    """A display's: three primaries (xy) under D65, adapted to D50 by Bradford's matrix."""
    matrix, white = np.stack([_xyz(x, y) for x, y in primaries], 1), _xyz(*D65)
    matrix = matrix * np.linalg.solve(matrix, white)
    matrix = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ white)) @ BRADFORD @ matrix
    tags = {name: _point(matrix[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return _profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma)))


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1, (1 - x - y) / y])


def _fixed(values: np.ndarray) -> bytes:
    """s15Fixed16."""
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _point(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, int(gamma * 256))


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78
    tags = {b"desc": name, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _point(D50)} | tags
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    date = struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    head = struct.pack(">I", start + len(body)) + b"\0" * 4 + struct.pack(">I", 0x02400000) + b"mntr" + space + b"XYZ " + date
    return head + b"acsp" + b"\0" * 28 + _fixed(D50) + b"\0" * 48 + table + body
