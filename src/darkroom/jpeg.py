"""What a JPEG asks of its decoder, told from its markers (ITU-T T.81, annex B) before anything is decoded. No Pillow.

A progressive JPEG refines all of its pixels in every scan, and a scan takes as few as 63 bytes: a small file may ask for hours.
"""

from __future__ import annotations

import re

from darkroom.errors import Invalid

MAX_SCANS = 64  # encoders write 3 to 20
MAX_SEGMENTS = 10_000  # a profile or a maker's note of 4 MB takes 65
MAX_FILL = 1024  # bytes between two segments; Pillow reads them one by one
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # neither a stuffed zero, nor a restart, nor fill
SCAN, START, END = 0xDA, 0xD8, 0xD9
ALONE = (0x01, START)  # markers without a segment
ARITHMETIC = range(0xC9, 0xD0)  # frames of arithmetic coding, which no browser shows, but 0xCC


def check_cost(content: bytes) -> None:
    """Raises Invalid for a JPEG that no camera, editor or browser writes, and that would take its decoder long."""
    position, scans = 2, 0
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(content, position)
        if found is None:
            return  # cut off: its decoder says so
        marker = found[1][0]
        if not scans and found.start() - position > MAX_FILL:
            raise _refusal(f"at most {MAX_FILL} bytes between two segments", found.start() - position)
        if marker == END and scans:
            return
        if marker in ARITHMETIC and marker != 0xCC:
            raise _refusal("a frame of Huffman coding", "one of arithmetic coding")
        position = found.end()
        if marker == SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise _refusal(f"at most {MAX_SCANS} scans", "more")
        if marker not in ALONE and marker != END:
            position += max(2, int.from_bytes(content[position : position + 2], "big"))
    raise _refusal(f"at most {MAX_SEGMENTS} segments", "more")


def _refusal(rule: str, got: object) -> Invalid:
    return Invalid(f"image must have {rule} if it is a JPEG, got {got}", name="invalid_image")
