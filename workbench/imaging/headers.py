"""Read a picture file's first bytes: kind, size, and whether it is built to exhaust a decoder.

Every limit is far above what programs write: it is checked here, on the bytes, before any decoder
sees the file.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from workbench.core.errors import BadInput

MAX_PIXELS = 64_000_000
MAX_SLOW_PIXELS = 32_000_000  # AVIF, HEIC, JPEG 2000: decoders that need several times the memory
MAX_SIDE = 16_384
MIN_SIDE = 16
MAX_ASPECT = 8
MAX_PIECES = 50_000  # chunks, segments, blocks, strips or tiles
MAX_SCANS = 100  # of a progressive JPEG; programs write about ten
MAX_SCANNED = 1_500_000_000  # pixels times scans
MAX_EXIF_PIECES = 64  # Pillow joins them by concatenation
FORMATS = "PNG, JPEG, WebP, AVIF, GIF, TIFF, BMP or JPEG 2000"
_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
# Files that are known and not read: a sign at an offset, and the name
_OTHER: tuple[tuple[int, bytes, str], ...] = (
    (0, b"8BPS", "a Photoshop file"), (0, b"%PDF", "a PDF"), (0, b"%!PS", "a PostScript file"),
    (0, b"\xff\x0a", "a JPEG XL"), (4, b"JXL ", "a JPEG XL"), (0, b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (0, b"#?RADIANCE", "a Radiance HDR picture"), (0, b"\x00\x00\x01\x00", "an icon"),
    (0, b"gimp xcf", "a GIMP file"), (0, b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (8, b"CR\x02", "a camera's raw file"), (0, b"IIRO", "a camera's raw file"),
    (8, b"crx ", "a camera's raw file"), (0, b"DDS ", "a DirectDraw texture"), (0, b"P6", "a PPM picture"),
    (0, b"P5", "a PGM picture"), (0, b"<svg", "an SVG drawing"), (0, b"<?xml", "an XML file"),
    (4, b"ftypisom", "a video"), (4, b"ftypmp4", "a video"), (4, b"ftypqt", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"), (0, b"PK\x03\x04", "a zip archive"),
    (0, b"version https://git-lfs", "a Git LFS pointer"), (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
)  # fmt: skip


def kind_of(raw: bytes) -> str | None:
    """PNG, JPEG, GIF, WebP, TIFF, BMP, AVIF, HEIC or "JPEG 2000"; None for anything else."""
    head = raw[:32]
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "JPEG 2000"
    if head[4:8] == b"ftyp":
        brands = raw[8 : min(len(raw), int.from_bytes(raw[:4], "big"), 128)]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        return "HEIC" if head[8:12] in _HEIC else None
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")) and head[8:10] != b"CR":
        return "TIFF"
    return "BMP" if head.startswith(b"BM") else None


def other_kind(raw: bytes) -> str:
    """The name of a kind of file that is known and not read, or ""."""
    start = raw[:64].lstrip(b"\xef\xbb\xbf \r\n\t") if raw[:1] in b" \r\n\t\xef" else raw[:64]
    return next((name for at, sign, name in _OTHER if start[at : at + len(sign)] == sign), "")


def check_size(width: int, height: int, label: str, most: int = MAX_PIXELS) -> None:
    """Check a size against all limits.

    Raises:
        BadInput: naming the size and the limit.
    """
    at = f'"{label}" is {width}x{height} px'
    if width * height > most:
        raise BadInput(
            f"{at}, {width * height / 1e6:.1f} megapixels; the limit is "
            f"{most / 1e6:.0f} megapixels, so scale it down first.",
            code="too-large",
        )
    if max(width, height) > MAX_SIDE:
        raise BadInput(
            f"{at}; the longest side may have {MAX_SIDE} px, so scale or crop it.", code="too-large"
        )
    if min(width, height) < MIN_SIDE:
        raise BadInput(f"{at}; each side must have at least {MIN_SIDE} px.", code="too-small")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadInput(
            f"{at}; one side may be at most {MAX_ASPECT} times the other, so crop it first.",
            code="too-long",
        )


def check_structure(raw: bytes, kind: str, label: str) -> None:
    """Refuse a file that declares more than any picture has: before a decoder reserves or walks it.

    Raises:
        BadInput: code "exhausting", naming what there is too much of.
    """
    walk = {"PNG": _png, "JPEG": _jpeg, "GIF": _gif, "WebP": _webp, "TIFF": _tiff,
            "JPEG 2000": _jpeg2000, "AVIF": _boxes, "HEIC": _boxes}.get(kind)  # fmt: skip
    if walk is None:
        return
    for count, (limit, what) in walk(raw, label):
        if count > limit:
            raise BadInput(
                f'"{label}" is a {kind} with more than {limit} {what}; save it again with an ordinary '
                "program.",
                code="exhausting",
                limit=limit,
            )


Counts = Iterator[tuple[int, tuple[int, str]]]
_PIECES = (MAX_PIECES, "pieces")


def _png(raw: bytes, _label: str) -> Counts:
    at, count = 8, 0
    while at < len(raw):
        at += 12 + int.from_bytes(raw[at : at + 4], "big")
        count += 1
        yield count, _PIECES


_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)


def _jpeg(raw: bytes, label: str) -> Counts:
    """Segments before the pixels, then scans; what follows the end of the picture is not read."""
    at, count, scans, exif = 2, 0, 0, 0
    pixels = 0
    while at < len(raw):
        found = _MARKER.search(raw, at) if scans else _next_segment(raw, at)
        if found is None:
            return
        count += found.end() - found.start() - 1 if not scans else 1
        marker, at = raw[found.end() - 1], found.end()
        if marker == 0xD9:
            return
        if marker in (0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
            yield count, _PIECES
            continue
        length = max(2, int.from_bytes(raw[at : at + 2], "big"))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            pixels = int.from_bytes(raw[at + 3 : at + 5], "big") * int.from_bytes(
                raw[at + 5 : at + 7], "big"
            )
            _rare_jpeg(marker, raw[at + 2 : at + 3], label)
        exif += marker == 0xE1 and raw[at + 2 : at + 8] == b"Exif\0\0"
        scans += marker == 0xDA
        yield count, _PIECES
        yield exif, (MAX_EXIF_PIECES, "EXIF segments")
        yield scans, (min(MAX_SCANS, max(12, MAX_SCANNED // max(pixels, 1))), "scans")
        at += length


def _next_segment(raw: bytes, at: int) -> re.Match[bytes] | None:
    """The marker that must stand at `at`; None where something else does."""
    return re.compile(rb"\xff+[^\xff]", re.DOTALL).match(raw, at)


def _rare_jpeg(marker: int, depth: bytes, label: str) -> None:
    kinds = {0xC3: "lossless", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical",
             0xCB: "lossless arithmetic", 0xCD: "hierarchical", 0xCF: "hierarchical"}  # fmt: skip
    kind = kinds.get(marker, "" if depth in (b"\x08", b"") else f"{depth[0]} bits per colour")
    if kind:
        raise BadInput(
            f'"{label}" is a rare form of JPEG ({kind}), which is not read; save it as PNG.',
            code="rare-form",
        )


def _gif(raw: bytes, _label: str) -> Counts:
    """Blocks up to the second picture: no more is read."""
    size = 3 * 2 ** ((raw[10] & 7) + 1) if len(raw) > 10 and raw[10] & 128 else 0
    at, pictures, blocks, data, texts = 13 + size, 0, 0, 0, 0
    while at < len(raw) and pictures < 2:
        sign = raw[at]
        if sign == 0x3B:
            return
        blocks += 1
        yield blocks, (5_000, "blocks")
        if sign == 0x2C:
            pictures += 1
            flags = raw[at + 9] if at + 9 < len(raw) else 0
            at += 11 + (3 * 2 ** ((flags & 7) + 1) if flags & 128 else 0)
        elif sign == 0x21:
            at += 2
        else:
            at += 1
            continue
        while at < len(raw) and raw[at]:
            at += 1 + raw[at]
            data += sign == 0x2C
            texts += sign == 0x21
            if not (data + texts) % 1_000:
                yield data, (600_000, "pieces")
                yield texts, (MAX_PIECES, "pieces of comments")
        at += 1


def _webp(raw: bytes, _label: str) -> Counts:
    at, count = 12, 0
    while at + 8 <= len(raw):
        length = int.from_bytes(raw[at + 4 : at + 8], "little")
        at += 8 + length + (length & 1)
        count += 1
        yield count, _PIECES


_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
               16: 8, 17: 8, 18: 8}  # fmt: skip


def _tiff(raw: bytes, label: str) -> Counts:
    """The first two directories: numbers of values, size of a tile, samples of a pixel."""
    order = "<" if raw[:1] == b"I" else ">"
    big = raw[2:3] == b"+" or raw[3:4] == b"+"
    try:
        at = struct.unpack_from(order + ("Q" if big else "I"), raw, 8 if big else 4)[0]
        for _page in range(2):
            if not 8 <= at < len(raw):
                return
            number = struct.unpack_from(order + ("Q" if big else "H"), raw, at)[0]
            yield number, (1_000, "tags")
            at += 8 if big else 2
            size, tags = (20 if big else 12), {}
            for _entry in range(number):
                tag, kind = struct.unpack_from(order + "HH", raw, at)
                count = struct.unpack_from(order + ("Q" if big else "I"), raw, at + 4)[0]
                if _TIFF_SIZES.get(kind, 1) > 1:
                    what = "strips or tiles" if tag in (273, 279, 324, 325) else "values in one tag"
                    yield count, (MAX_PIECES if tag in (273, 279, 324, 325) else 200_000, what)
                form = {3: "H", 4: "I", 16: "Q"}.get(kind)
                if form and count == 1:
                    tags[tag] = struct.unpack_from(order + form, raw, at + (12 if big else 8))[0]
                at += size
            _tile(tags, label)
            yield tags.get(277, 1), (16, "samples per pixel")
            at = struct.unpack_from(order + ("Q" if big else "I"), raw, at)[0]
    except struct.error:
        return  # cut off: the decoder says so


def _tile(tags: dict[int, int], label: str) -> None:
    width, height = tags.get(256, 0), tags.get(257, 0)
    tile = tags.get(322, 0) * tags.get(323, 0)
    if tile > max(4 * width * height, 2**22):
        raise BadInput(
            f'"{label}" declares tiles of {tags[322]}x{tags[323]} px for a picture of '
            f"{width}x{height} px; save it again with an ordinary program.",
            code="exhausting",
        )


def _jpeg2000(raw: bytes, label: str) -> Counts:
    at = raw.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(raw) < at + 42:
        return
    right, low, left, top, tile_w, tile_h = struct.unpack_from(">6I", raw, at + 8)
    parts = struct.unpack_from(">H", raw, at + 40)[0]
    check_size(max(0, right - left), max(0, low - top), label, MAX_SLOW_PIXELS)
    yield parts, (4, "colour components")
    yield right * low // max(1, tile_w * tile_h), (20_000, "tiles")


def _boxes(raw: bytes, label: str) -> Counts:
    """AVIF and HEIC: every size that the file declares (`ispe`), and the number of items."""
    for count, found in enumerate(re.finditer(rb"ispe\0\0\0\0(.{8})", raw[: 2**20], re.DOTALL), 1):
        width, height = struct.unpack(">II", found[1])
        if width * height > MAX_SLOW_PIXELS:
            check_size(width, height, label, MAX_SLOW_PIXELS)
        yield count, (2_000, "pictures")


def webp_size(raw: bytes) -> tuple[int, int]:
    """Canvas size from a WebP header: the decoder reserves the canvas as soon as it is made."""
    if raw[12:16] == b"VP8X" and len(raw) >= 30:
        return 1 + int.from_bytes(raw[24:27], "little"), 1 + int.from_bytes(raw[27:30], "little")
    return MIN_SIDE, MIN_SIDE  # the other two kinds cannot exceed 16383 px and reserve nothing
