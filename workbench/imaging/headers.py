"""What a picture file's first bytes say: kind, size, and whether it is built to exhaust a decoder."""

from __future__ import annotations

from workbench.core.errors import BadInput

MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384
MIN_SIDE = 16
MAX_ASPECT = 8
MAX_PIECES = 50_000  # chunks of a PNG; segments and fill bytes before the pixels of a JPEG
FORMATS = "PNG, JPEG, WebP, GIF, TIFF or BMP"


def kind_of(raw: bytes) -> str | None:
    """PNG, JPEG, GIF, WebP, TIFF or BMP by the first bytes, None for anything else."""
    head = raw[:12]
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "WebP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    return "BMP" if head.startswith(b"BM") else None


def check_size(width: int, height: int, label: str) -> None:
    """Check a size against all limits.

    Raises:
        BadInput: naming the size and the limit.
    """
    at = f'"{label}" is {width}x{height} px'
    if width * height > MAX_PIXELS:
        raise BadInput(
            f"{at}, {width * height / 1e6:.1f} megapixels; the limit is "
            f"{MAX_PIXELS / 1e6:.0f} megapixels, so scale it down first."
        )
    if max(width, height) > MAX_SIDE:
        raise BadInput(f"{at}; the longest side may have {MAX_SIDE} px, so scale or crop it.")
    if min(width, height) < MIN_SIDE:
        raise BadInput(f"{at}; each side must have at least {MIN_SIDE} px.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadInput(
            f"{at}; one side may be at most {MAX_ASPECT} times the other, so crop it first."
        )


def check_pieces(raw: bytes, kind: str, label: str) -> None:
    """Refuse a PNG or JPEG of endless tiny pieces: Pillow walks them one by one in Python.

    (And joins EXIF segments by concatenation: 4 MB of empty ones take it five seconds.)

    Raises:
        BadInput: above MAX_PIECES.
    """
    at, count = (8, 0) if kind == "PNG" else (2, 0)
    step = _png_chunk if kind == "PNG" else _jpeg_segment
    while (at := step(raw, at)) < len(raw):
        count += 1
        if count > MAX_PIECES:
            raise BadInput(
                f'"{label}" is a {kind} of more than {MAX_PIECES} pieces; save it again '
                "with an ordinary program."
            )


def _png_chunk(raw: bytes, at: int) -> int:
    """Where the chunk after the one at `at` begins."""
    return at + 12 + int.from_bytes(raw[at : at + 4], "big")


def _jpeg_segment(raw: bytes, at: int) -> int:
    """Where the segment after the one at `at` begins; the end when the pixels begin there."""
    marker = raw[at + 1 : at + 2]
    if raw[at : at + 1] != b"\xff" or marker in (b"\xda", b"\xd9", b""):
        return len(raw)
    if marker == b"\xff":
        return at + 1
    if marker in b"\x01\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7\xd8\0":
        return at + 2
    return at + 2 + max(2, int.from_bytes(raw[at + 2 : at + 4], "big"))


def webp_size(raw: bytes) -> tuple[int, int]:
    """Canvas size from a WebP header: the decoder reserves the canvas as soon as it is made."""
    if raw[12:16] == b"VP8X" and len(raw) >= 30:
        return 1 + int.from_bytes(raw[24:27], "little"), 1 + int.from_bytes(raw[27:30], "little")
    return MIN_SIDE, MIN_SIDE  # the other two kinds cannot exceed 16383 px and reserve nothing
