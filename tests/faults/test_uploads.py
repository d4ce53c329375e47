"""Uploads of docs/faults.md rows 1 to 12 and 20: one sentence each, nothing else escapes, memory bounded."""

from __future__ import annotations

import contextlib
import io
import resource
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from workbench.core.errors import BadInput
from workbench.imaging import decode, headers, opening


def save(im: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    im.save(out, kind, **options)
    return out.getvalue()


def photo(w: int = 60, h: int = 40) -> Image.Image:
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
    return small.resize((w, h), Image.Resampling.BICUBIC)


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_header(w: int, h: int, *more: bytes) -> bytes:
    """A PNG that claims a size and carries next to no pixels."""
    ihdr = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    idat = zlib.compress(b"\0" * 10_000)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", ihdr)
        + b"".join(more)
        + chunk(b"IDAT", idat)
        + chunk(b"IEND", b"")
    )


def refused(raw: bytes, name: str = "upload") -> str:
    """The code with which an upload is refused, in one sentence."""
    with pytest.raises(BadInput) as caught:
        decode.decode(raw, name)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 300
    assert "damaged" not in text
    return caught.value.code


def peak(action: Callable[[], object]) -> int:
    """Most bytes that Python had allocated on top while `action` ran."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    "raw",
    [
        b"just text",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        bytes(5000),
        b"\x89PNG",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"\0\0\0\x1cftypavif",
        b"PK\x03\x04",
    ],
)
def test_fault_01_what_is_no_picture(raw: bytes) -> None:
    assert refused(raw) in ("no-picture", "other-kind", "unreadable")


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"8BPS\0\1", "Photoshop"),
        (b"%PDF-1.7", "PDF"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"v/1\1", "OpenEXR"),
        (b"II*\0\x10\0\0\0CR\x02\0", "raw"),
        (b"\0\0\0\x18ftypcrx ", "raw"),
        (b"\0\0\0\x18ftypisom", "video"),
        (b"  <svg xmlns=", "SVG"),
        (b"version https://git-lfs.github.com", "Git LFS"),
        (b"<!DOCTYPE html>", "web page"),
    ],
)
def test_what_is_known_and_not_read_is_called_by_its_name(raw: bytes, name: str) -> None:
    with pytest.raises(BadInput) as caught:
        decode.decode(raw)
    assert caught.value.code == "other-kind"
    assert name in str(caught.value)


def test_fault_01_empty_file() -> None:
    assert refused(b"") == "empty"


def test_fault_01_content_counts_not_the_name() -> None:
    got = decode.decode(save(photo(), "GIF"), "picture.png")
    assert got.rgb.shape == (40, 60, 3)
    assert got.name == "picture.png"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_fault_01_truncated_files(kind: str) -> None:
    raw = save(photo(), kind)
    for share in (0.1, 0.5, 0.8):
        code = refused(raw[: int(len(raw) * share)], f"a.{kind}")
        assert code in ("cut-off", "unreadable", "too-small")


def test_fault_02_ninety_megapixels_are_refused_before_decoding() -> None:
    raw = png_header(10_000, 9_000)
    assert refused(raw, "big.png") == "too-large"
    before = resident()
    assert peak(lambda: refused(raw)) < 2_000_000
    assert resident() - before < 20_000_000


def test_fault_03_a_bomb_gets_the_same_sentence_and_no_memory() -> None:
    before = resident()
    for raw in (
        png_header(20_000, 9_000),
        png_header(60_000, 60_000),
        png_header(2**31 - 1, 2**31 - 1),
    ):
        assert refused(raw) == "too-large"
        assert peak(lambda raw=raw: refused(raw)) < 2_000_000  # type: ignore[misc]
    assert resident() - before < 20_000_000


def claims(kind: str, w: int, h: int) -> bytes:
    """A small file of a kind, its header's size overwritten."""
    raw = bytearray(save(photo(), kind))
    if kind == "GIF":
        raw[6:10] = struct.pack("<HH", w, h)
    elif kind == "BMP":
        raw[18:26] = struct.pack("<ii", w, h)
    elif kind == "JPEG":
        at = raw.index(b"\xff\xc0")
        raw[at + 5 : at + 9] = struct.pack(">HH", h, w)
    elif kind == "WEBP":
        head = b"VP8X" + struct.pack("<I", 10) + bytes(4)
        head += (w - 1).to_bytes(3, "little") + (h - 1).to_bytes(3, "little")
        body = b"WEBP" + head + bytes(raw[12:])
        raw = bytearray(b"RIFF" + struct.pack("<I", len(body)) + body)
    else:
        im = Image.new("L", (60, 40))
        raw = bytearray(save(im, "TIFF", tiffinfo={256: w, 257: h}))
    return bytes(raw)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "JPEG", "WEBP"])
def test_fault_03_every_format_is_checked_by_its_header(kind: str) -> None:
    raw = claims(kind, 16_000, 16_000)
    before = resident()
    assert refused(raw) == "too-large"
    assert peak(lambda: refused(raw)) < 2_000_000
    assert resident() - before < 20_000_000


def test_fault_04_one_pixel_wide() -> None:
    assert refused(png_header(1, 10_000_000)) == "too-large"
    assert refused(save(Image.new("L", (900, 100)))) == "too-long"
    assert decode.decode(save(Image.new("L", (800, 100)))).width == 800


def test_fault_05_too_small() -> None:
    assert refused(save(Image.new("RGB", (8, 8)))) == "too-small"
    assert refused(save(Image.new("RGB", (100, 15)))) == "too-small"
    assert decode.decode(save(Image.new("RGB", (16, 16)))).height == 16


def test_fault_06_a_phones_picture_is_upright_and_points_fit_it() -> None:
    """Stored lying, shown upright: the red corner that the user saw is at the top left."""
    stored = Image.new("RGB", (80, 48), (20, 20, 200))
    stored.paste((250, 0, 0), (0, 32, 16, 48))  # bottom left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    got = decode.decode(save(stored, "JPEG", exif=exif, quality=95))
    assert got.rgb.shape == (80, 48, 3)
    assert got.rgb[5, 5, 0] > 200
    assert got.rgb[70, 40, 2] > 150


@pytest.mark.filterwarnings("ignore")  # as in production, where warnings are log lines
def test_fault_06_damaged_exif_does_not_matter() -> None:
    raw = save(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk")
    assert decode.decode(raw).rgb.shape == (40, 60, 3)
    exif = Image.Exif()
    exif[0x0112] = 77
    assert decode.decode(save(photo(), "JPEG", exif=exif)).rgb.shape == (40, 60, 3)


def test_fault_10_gps_is_gone_from_the_result() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    exif[0x010F] = "CAMERA-MAKER"
    raw = save(photo(), "JPEG", exif=exif)
    assert b"CAMERA-MAKER" in raw
    got = decode.decode(raw)
    for out in (decode.encode_png(got.rgb), decode.encode_jpeg(got.rgb)):
        im = Image.open(io.BytesIO(out))
        assert not im.getexif()
        assert b"CAMERA-MAKER" not in out


def test_fault_11_text_bombs() -> None:
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9))
    before = resident()
    assert refused(png_header(64, 64, bomb)) == "exhausting"
    many = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000), 9)) * 80
    assert refused(png_header(64, 64, many)) == "exhausting"
    ours = chunk(
        b"iTXt", decode.EDIT_CHUNK.encode() + b"\0\1\0\0\0" + zlib.compress(bytes(50_000_000), 9)
    )
    assert refused(png_header(64, 64, ours)) == "exhausting"
    assert resident() - before < 200_000_000


def test_fault_11_profile_bomb_and_chunk_flood() -> None:
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50_000_000), 9))
    refused(png_header(64, 64, profile))
    flood = chunk(b"tEXt", b"a\0b") * (headers.MAX_PIECES + 1)
    assert refused(png_header(64, 64, flood)) == "exhausting"
    for piece in (b"\xff\xe1\0\x08Exif\0\0", b"\xff\xfe\0\2", b"\xff", b"\xff\xd8"):
        flooded = b"\xff\xd8" + piece * (headers.MAX_PIECES + 9) + save(photo(), "JPEG")[2:]
        assert refused(flooded) == "exhausting"


def test_fault_11_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opening.MAX_BYTES == 64 * 2**20
    monkeypatch.setattr(opening, "MAX_BYTES", 2**20)
    assert refused(bytes(3 * 2**20)) == "too-large"


def test_fault_12_hostile_names_stay_labels() -> None:
    for name in ("../../x", "a\0b", "n" * 300, "a.png:$x.png", "<script>alert(1)</script>.png"):
        label = decode.decode(save(photo()), name).name
        assert "\0" not in label
        assert len(label) <= 80
        assert not label.startswith((".", "/"))
        assert "/" not in label


def test_fault_20_masks_that_are_none() -> None:
    for raw in (b"", b"text", save(photo())[:50], png_header(20_000, 9_000)):
        with pytest.raises(BadInput):
            decode.decode_mask(raw, 60, 40)


def seeds_of() -> list[tuple[str, bytes]]:
    im = photo()
    info = PngImagePlugin.PngInfo()
    info.add_itxt(decode.EDIT_CHUNK, '{"prompt": "a robot"}')
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "words"
    palette = im.convert("P")
    grey16 = Image.fromarray((np.arange(2400).reshape(40, 60) * 27).astype(np.uint16))
    animation = {"save_all": True, "append_images": [im.transpose(Image.Transpose.ROTATE_180)]}
    return [
        ("PNG", save(im, pnginfo=info, exif=exif)),
        ("PNG", save(palette, transparency=3)),
        ("PNG", save(grey16)),
        ("PNG", save(im, **animation)),
        ("JPEG", save(im, "JPEG", exif=exif)),
        ("JPEG", save(im, "JPEG", progressive=True)),
        ("JPEG", save(im.convert("CMYK"), "JPEG")),
        ("WebP", save(im, "WEBP", exif=exif)),
        ("WebP", save(im.convert("RGBA"), "WEBP", lossless=True)),
        ("WebP", save(im, "WEBP", **animation)),
        ("GIF", save(im, "GIF")),
        ("GIF", save(im, "GIF", **animation)),
        ("TIFF", save(im, "TIFF")),
        ("TIFF", save(im, "TIFF", compression="tiff_deflate", exif=exif)),
        ("TIFF", save(grey16, "TIFF", compression="tiff_lzw")),
        ("BMP", save(im, "BMP")),
    ]


def mutate(raw: bytes, rng: np.random.Generator) -> bytes:
    """Flip, overwrite, cut, insert, repeat: what a broken disk or an attacker does."""
    data = bytearray(raw)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, max(1, len(data))))
        kind = int(rng.integers(0, 6))
        if kind == 0:
            data[at : at + 1] = bytes([int(rng.integers(0, 256))])
        elif kind == 1:
            n = int(rng.integers(1, 9))
            data[at : at + n] = rng.integers(0, 256, n, dtype=np.uint8).tobytes()
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 40))]
        elif kind == 4:
            data[at:at] = data[at : at + int(rng.integers(1, 200))]
        else:  # a length or a size field
            data[at : at + 4] = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff")[
                int(rng.integers(0, 3))
            ]
        if not data:
            break
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
def test_fault_01_five_hundred_mutated_uploads_raise_nothing_but_bad_input() -> None:
    rng = np.random.default_rng(20261123)
    originals = seeds_of()
    for _kind, raw in originals:
        assert decode.decode(raw).rgb.size
    read = failed = 0
    before = resident()
    tracemalloc.start()
    try:
        for n in range(500):
            kind, raw = originals[n % len(originals)]
            broken = mutate(raw, rng)
            try:
                got = decode.decode(broken, f"{n}.{kind}")
            except BadInput:
                failed += 1
            else:
                read += 1
                assert got.rgb.dtype == np.uint8
                assert got.rgb.ndim == 3
                assert got.width * got.height <= headers.MAX_PIXELS
                decode.encode_png(got.rgb, alpha=got.alpha, edit=got.edit, fast=True)
        highest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read > 50
    assert failed > 100
    # a mutated header may claim up to 64 MP; nothing may claim more
    assert highest < 1_000_000_000
    assert resident() - before < 2_000_000_000


def test_fault_01_warnings_as_errors_change_nothing() -> None:
    """The suite runs with warnings as errors: Pillow's are then one more kind of exception."""
    rng = np.random.default_rng(7)
    for n, (kind, raw) in enumerate(seeds_of()):
        for _ in range(6):
            with contextlib.suppress(BadInput):
                assert decode.decode_mask(mutate(raw, rng), 60, 40, f"{n}.{kind}").any() in (0, 1)


def test_a_picture_at_the_limit_is_read() -> None:
    """64 megapixels are taken (any phone's or camera's picture), at bounded cost."""
    raw = save(Image.new("L", (8000, 8000), 77), compress_level=1)
    assert len(raw) < opening.MAX_BYTES
    got = decode.decode(raw)
    assert got.rgb.shape == (8000, 8000, 3)
    assert (got.rgb[::1000, ::1000] == 77).all()


# --- limits (each of these held the server for seconds or gigabytes) ----------------------------------


def tiff(tags: dict[int, tuple[int, int, int]], tail: bytes = b"") -> bytes:
    """A TIFF directory: tag -> (type, count, value)."""
    entries = b"".join(struct.pack("<HHII", t, *v) for t, v in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tail


GREY = {256: (4, 1, 64), 257: (4, 1, 64), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
        277: (3, 1, 1)}  # fmt: skip


def hostile() -> dict[str, bytes]:
    small = save(photo(), "GIF")
    at = 13 + 3 * 2 ** ((small[10] & 7) + 1)
    jpeg = save(photo(), "JPEG")
    progressive = save(photo(), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    jp2 = bytearray(save(photo(), "JPEG2000"))
    size = jp2.index(b"\xff\x4f\xff\x51")
    many = bytearray(jp2)
    many[size + 24 : size + 32] = struct.pack(">II", 1, 1)
    wide = bytearray(jp2)
    wide[size + 8 : size + 16] = struct.pack(">II", 16_000, 16_000)
    many[size + 8 : size + 16] = struct.pack(">II", 4_000, 4_000)
    return {
        "a tile of 26752x26752": tiff({**GREY, 322: (4, 1, 26_752), 323: (4, 1, 26_752),
                                       324: (4, 1, 8), 325: (4, 1, 8)}),
        "two million strips": tiff({**GREY, 273: (4, 2_000_000, 150), 279: (4, 2_000_000, 150)},
                                   bytes(8_000_000)),
        "a tag of a million fractions": tiff({**GREY, 33432: (5, 1_000_000, 150)}, bytes(8_000_000)),
        "65535 samples": tiff({**GREY, 277: (3, 1, 65_535), 273: (4, 1, 8)}),
        "GIF comments": small[:at] + b"!\xfe\1a\0" * 60_000 + small[at:],
        "a GIF comment of tiny pieces": small[:at] + b"!\xfe" + b"\1a" * 80_000 + b"\0" + small[at:],
        "EXIF segments": jpeg[:2] + (b"\xff\xe1\0\x0cExif\0\0abcd") * 900 + jpeg[2:],
        "scans": progressive[:-2] + scan * 9_000 + b"\xff\xd9",
        "scans behind a comment with an end mark": progressive[:-2] + b"\xff\xfe\0\4\xff\xd9"
        + scan * 200 + b"\xff\xd9",
        "WebP chunks": b"RIFF\xff\xff\xff\0WEBP" + b"JUNK\0\0\0\0" * 60_000,
        "JPEG 2000 tiles": bytes(many),
        "JPEG 2000 size": bytes(wide),
    }  # fmt: skip


@pytest.mark.parametrize("name", hostile())
def test_fault_11_what_exhausts_a_decoder_is_refused_by_its_header(name: str) -> None:
    raw = hostile()[name]
    before = resident()
    assert refused(raw, name) in ("exhausting", "too-large")
    with pytest.raises(BadInput) as caught:
        decode.decode_mask(raw, 64, 64, name)
    assert caught.value.code in ("exhausting", "too-large")
    assert resident() - before < 100_000_000


def test_fault_11_what_passes_the_header_is_decoded_under_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that exceeds a limit costs the helper, and the next one is read by another."""
    monkeypatch.setattr(opening, "_CHEAP_PIXELS", 0)
    raw = save(photo())
    assert decode.decode(raw).rgb.shape == (40, 60, 3)
    helper = opening._helper
    assert helper is not None
    helper.process.kill()
    helper.process.wait()
    assert decode.decode(raw).rgb.shape == (40, 60, 3)
    assert opening._helper is not helper
    again = opening._helper
    assert again is not None

    def dies(_self: object, *_given: object) -> None:
        again.process.kill()
        raise EOFError

    with monkeypatch.context() as patch:
        patch.setattr(type(again), "ask", dies)
        assert refused(raw) == "exhausting"
    assert decode.decode(raw).rgb.shape == (40, 60, 3)
    opening.close()


def test_the_helper_gives_what_this_process_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [raw for _kind, raw in seeds_of()]
    here = [decode.decode(raw, "a b.png") for raw in files]
    monkeypatch.setattr(opening, "_CHEAP_PIXELS", 0)
    for raw, expected in zip(files, here, strict=True):
        got = decode.decode(raw, "a b.png")
        np.testing.assert_array_equal(got.rgb, expected.rgb)
        assert (got.alpha is None) == (expected.alpha is None)
        assert (got.notices, got.edit, got.name) == (expected.notices, expected.edit, expected.name)
    assert refused(save(photo())[:200]) == "cut-off"
    mask = decode.decode_mask(save(Image.new("L", (60, 40), 255)), 60, 40)
    assert mask.all()
    opening.close()


@pytest.mark.parametrize(("lacks", "code"), [(2, ""), (5, ""), (600, "cut-off")])
def test_a_jpeg_whose_pixels_are_complete_opens(lacks: int, code: str) -> None:
    whole = save(photo().resize((240, 160)), "JPEG", quality=90)
    if code:
        assert refused(whole[:-lacks]) == code
        return
    got = decode.decode(whole[:-lacks])
    assert [getattr(n, "code", "") for n in got.notices] == ["no-end"]
    difference = np.abs(got.rgb.astype(int) - decode.decode(whole).rgb)
    assert (difference > 0).mean() < 0.01


def test_rare_forms_of_jpeg_are_named() -> None:
    raw = bytearray(save(photo(), "JPEG"))
    at = raw.index(b"\xff\xc0")
    for marker, depth in ((0xC3, 8), (0xC1, 12), (0xC7, 8)):
        raw[at + 1], raw[at + 4] = marker, depth
        assert refused(bytes(raw)) == "rare-form"


@pytest.fixture
def no_heif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without pillow-heif, whatever is installed on this one."""
    tmp_path.joinpath("pillow_heif.py").write_text("raise ImportError\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    opening.close()
    yield
    opening.close()


@pytest.mark.usefixtures("no_heif")
def test_avif_and_jpeg_2000_open_and_heic_says_how() -> None:
    for kind in ("AVIF", "JPEG2000"):
        got = decode.decode(save(photo(), kind))
        assert got.rgb.shape == (40, 60, 3)
        assert np.abs(got.rgb.astype(int) - np.asarray(photo())).mean() < 12
    assert refused(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)) == "heic"


def test_heic_opens_where_pillow_heif_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif of requirements-dev.txt")
    rgb = np.asarray(photo().resize((600, 400)))
    out = io.BytesIO()
    heif.from_pillow(Image.fromarray(rgb)).save(out, quality=95)
    raw = out.getvalue()
    got = decode.decode(raw, "IMG_0001.HEIC")
    assert got.rgb.shape == rgb.shape
    assert np.abs(got.rgb.astype(int) - rgb).mean() < 4
    assert refused(raw[: len(raw) // 2]) in ("unreadable", "cut-off")
    assert refused(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)) == "unreadable"
