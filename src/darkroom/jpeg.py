"""What a JPEG asks of its decoder, told from its markers (ITU-T T.81, annex B) before anything is decoded. No Pillow.

A progressive JPEG refines all of its pixels in every scan, and a scan takes as few as 63 bytes: a small file may ask for hours.
"""

from __future__ import annotations

import re

from darkroom.errors import Invalid

MAX_SCANS = 64  # encoders write 3 to 20
MAX_SEGMENTS = 10_000  # a profile or a maker's note of 4 MB takes 65
MAX_FILL = 1024  # bytes between two segments, or of 0xFF in a scan
MAX_FILL_IN_ALL = 2**16  # bytes between the segments before the first scan; Pillow reads them one by one
# Neither a stuffed zero, nor a restart, nor fill, nor a reserved marker (JPG and JPG0 to JPG13), behind which Pillow reads on byte
# by byte although a segment follows.
MARKER = re.compile(rb"\xff([\x01-\xc7\xc9-\xcf\xd8-\xef\xfe])")
FILL = b"\xff" * (MAX_FILL + 1)
PIECE = 2**18  # bytes that are searched at once: a search holds up all other threads
SCAN, START, END = 0xDA, 0xD8, 0xD9
ALONE = (0x01, START)  # markers without a segment
ARITHMETIC = range(0xC9, 0xD0)  # frames of arithmetic coding, which no browser shows, but 0xCC


def check_cost(content: bytes) -> None:
    """Raises Invalid for a JPEG that no camera, editor or browser writes, and that would take its decoder long."""
    position, scans, fill = 2, 0, 0
    for _ in range(MAX_SEGMENTS):
        found = _next_marker(content, position)
        if found is None:
            return  # cut off: its decoder says so
        marker, gap = found[1][0], found.start() - position
        if not scans:
            fill += gap
            if gap > MAX_FILL:
                raise _refusal(f"at most {MAX_FILL} bytes between two segments", gap)
            if fill > MAX_FILL_IN_ALL:
                raise _refusal(f"at most {MAX_FILL_IN_ALL} bytes between its segments", "more")
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


def _next_marker(content: bytes, position: int) -> re.Match[bytes] | None:
    """The marker that begins at `position` or later. Raises Invalid for long fill before it: the decoder, which is given a scan
    in pieces, goes back to where fill began with each of them."""
    while position < len(content):
        found = MARKER.search(content, position, position + PIECE)
        end = found.start() + 1 if found else position + PIECE
        if content.find(FILL, position, end) >= 0:
            raise _refusal(f"at most {MAX_FILL} bytes of fill", "more")
        if found:
            return found
        position += PIECE - MAX_FILL
    return None


def _refusal(rule: str, got: object) -> Invalid:
    return Invalid(f"image must be a JPEG with {rule}, got {got}", name="invalid_image")
