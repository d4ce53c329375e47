"""Reading and writing pictures: colours of every mode, orientation, metadata, masks, sizes."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import HANG, until
from PIL import Image, ImageCms, ImageFilter, PngImagePlugin
from refusals import refusal

from workbench.core.errors import Cancelled
from workbench.imaging import decode, opening


def save(im: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    im.save(out, kind, **options)
    return out.getvalue()


def flat(mode: str, colour: object, size: tuple[int, int] = (20, 18)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def noise(w: int = 40, h: int = 30, seed: int = 0) -> decode.U8:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_very_pixels(kind: str, options: dict[str, object]) -> None:
    rgb = noise()
    got = decode.decode(save(Image.fromarray(rgb), kind, **options), f"a.{kind.lower()}")
    np.testing.assert_array_equal(got.rgb, rgb)
    assert got.alpha is None
    assert got.notices == ()
    assert (got.width, got.height) == (40, 30)
    assert got.rgb.flags.c_contiguous
    assert got.rgb.flags.writeable


def test_jpeg_and_gif_give_the_picture() -> None:
    for kind in ("JPEG", "GIF"):
        got = decode.decode(save(flat("RGB", (200, 40, 10)), kind))
        assert np.abs(got.rgb.astype(int) - (200, 40, 10)).max() <= 4


@pytest.mark.parametrize(
    ("im", "colour"),
    [
        (flat("RGBA", (255, 0, 0, 128)), (255, 127, 127)),
        (flat("LA", (0, 51)), (204, 204, 204)),
        (flat("L", 77), (77, 77, 77)),
        (flat("1", 1), (255, 255, 255)),
        (flat("1", 0), (0, 0, 0)),
    ],
    ids=lambda v: getattr(v, "mode", None),
)
def test_fault_08_modes_are_flattened_as_defined(im: Image.Image, colour: tuple[int, ...]) -> None:
    got = decode.decode(save(im))
    assert tuple(got.rgb[3, 4]) == colour
    assert (got.alpha is not None) == (im.mode in ("RGBA", "LA"))


def test_fault_08_palette_with_transparent_entry() -> None:
    im = flat("P", 1)
    im.putpalette([0, 0, 0, 10, 200, 30] + [0] * 762)
    im.putpixel((5, 5), 0)
    got = decode.decode(save(im, transparency=0))
    assert tuple(got.rgb[0, 0]) == (10, 200, 30)
    assert tuple(got.rgb[5, 5]) == (255, 255, 255)
    assert got.alpha is not None
    assert got.alpha[5, 5] == 0
    assert got.alpha[0, 0] == 255
    assert "white" in got.notices[0]


def test_fault_08_transparent_pixels_are_white_unless_all_are() -> None:
    im = flat("RGBA", (10, 20, 30, 0))
    hollow = decode.decode(save(im))
    assert hollow.alpha is None
    assert hollow.rgb[3, 4].tolist() == [10, 20, 30]
    assert "fully transparent" in hollow.notices[0]
    im.putpixel((0, 0), (1, 2, 3, 255))
    got = decode.decode(save(im))
    assert got.rgb[3, 4].tolist() == [255, 255, 255]
    assert got.rgb[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "CMYK", "RGBX"])
def test_fault_08_print_and_video_modes_of_tiff(mode: str) -> None:
    grey = Image.new("RGB", (20, 18), (128, 128, 128))
    im = Image.new("LAB", (20, 18), (137, 128, 128)) if mode == "LAB" else grey.convert(mode)
    got = decode.decode(save(im, "TIFF"))
    assert np.abs(got.rgb.astype(int) - 128).max() <= 3
    assert got.alpha is None


def test_fault_08_cmyk_jpeg() -> None:
    got = decode.decode(save(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(got.rgb[5, 5].astype(int) - (255, 0, 0)).max() <= 6


def test_fault_07_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.full((20, 20), 40000, np.uint16)
    values[0, 0], values[0, 1] = 65535, 128
    got = decode.decode(save(Image.fromarray(values)))
    assert got.rgb[5, 5].tolist() == [156, 156, 156]  # 40000 / 65535 * 255 = 155.6
    assert got.rgb[0, 0].tolist() == [255, 255, 255]
    assert got.rgb[0, 1].tolist() == [0, 0, 0]
    assert "16-bit" in got.notices[0]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0.0, 0.5], [1.0, 0.25]], np.float32), [[0, 128], [255, 64]]),
        (np.array([[0.0, 50.0], [255.0, 100.0]], np.float32), [[0, 50], [255, 100]]),
        (np.array([[-1.0, 1.0], [3.0, np.nan]], np.float32), [[0, 128], [255, 0]]),
        (np.array([[0, 100000], [50000, 25000]], np.int32), [[0, 255], [128, 64]]),
        (np.array([[0, 65535], [257, 0]], np.int32), [[0, 255], [1, 0]]),
    ],
)
def test_fault_07_wide_values_are_scaled(values: np.ndarray, wanted: list[list[int]]) -> None:
    big = np.kron(values, np.ones((10, 10), values.dtype))
    got = decode.decode(save(Image.fromarray(big), "TIFF"))
    assert got.rgb[::10, ::10, 0].tolist() == wanted


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_fault_06_orientation_is_applied_before_hashing(orientation: int, kind: str) -> None:
    """However the camera was held, the upright picture and its name are the same."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = (250, 250, 250)  # a light top-left quarter
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    if kind == "WEBP":
        options = {"lossless": True}
    got = decode.decode(save(stored, kind, exif=exif, **options))
    assert got.rgb.shape == upright.shape
    assert np.abs(got.rgb.astype(int) - upright).max() <= 2
    assert any("upright" in n for n in got.notices) == (orientation > 1)
    if kind != "JPEG":
        assert got.id == decode.image_id(upright)


def linear_light_profile() -> bytes:
    """Pillow's sRGB profile under another name, its curves replaced by straight lines."""
    raw = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    raw = raw.replace("sRGB".encode("utf-16-be"), "flat".encode("utf-16-be"))
    curve = raw.index(b"para")
    line = b"para" + bytes(4) + b"\0\3\0\0" + struct.pack(">5i", 65536, 65536, 0, 65536, 0)
    return raw[:curve] + line + raw[curve + len(line) :]


def test_profile_is_converted_to_srgb() -> None:
    """In linear light, 55 of 255 is what sRGB calls 128."""
    raw = save(flat("RGB", (55, 55, 55)), icc_profile=linear_light_profile())
    got = decode.decode(raw)
    assert np.abs(got.rgb[0, 0].astype(int) - 128).max() <= 1
    assert "sRGB" in got.notices[0]


def test_unfit_profiles_are_left_out_and_srgb_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile, notices in ((srgb, 0), (lab, 1), (b"no profile", 1)):
        got = decode.decode(save(flat("RGB", (90, 91, 92)), icc_profile=profile))
        assert got.rgb[0, 0].tolist() == [90, 91, 92]
        assert len(got.notices) == notices


def test_fault_09_animations_and_pages_give_the_first_and_say_so() -> None:
    frames = [flat("RGB", c) for c in ((200, 0, 0), (0, 200, 0))]
    for kind in ("PNG", "WEBP", "GIF", "TIFF"):
        raw = save(frames[0], kind, save_all=True, append_images=frames[1:])
        got = decode.decode(raw)
        assert got.rgb[0, 0, 0] > 190, kind
        assert got.rgb[0, 0, 1] < 10, kind
        assert any("first" in n for n in got.notices), kind
        assert decode.decode(save(frames[0], kind)).notices == ()


def test_fault_10_nothing_of_the_upload_but_pixels_is_written() -> None:
    exif = Image.Exif()
    exif[0x010E] = "SECRET-DESCRIPTION"
    exif.get_ifd(0x8825)[1] = "SECRET-GPS"
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "SECRET-TEXT")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    raw = save(Image.fromarray(noise()), exif=exif, pnginfo=info, icc_profile=profile)
    assert b"SECRET" in raw
    got = decode.decode(raw)
    for out in (
        decode.encode_png(got.rgb),
        decode.encode_png(got.rgb, edit={"a": 1}),
        decode.encode_jpeg(got.rgb, 90),
        decode.encode_webp(got.rgb),
        decode.encode_mask_png(got.rgb[..., 0] > 5),
    ):
        assert b"SECRET" not in out
        im = Image.open(io.BytesIO(out))
        im.load()
        assert not set(im.info) & {"exif", "icc_profile", "Comment", "xmp"}


def test_edit_settings_travel_in_the_png() -> None:
    edit = {"pairs": [[1, 2, 3, 4.5]], "prompt": "a robot, 机器人 🤖", "n": None}
    got = decode.decode(decode.encode_png(noise(), edit=edit))
    assert got.edit == edit
    assert decode.decode(decode.encode_png(noise())).edit is None


@pytest.mark.parametrize(
    "text", ["[1, 2]", "no json", '{"a": NaN}', "[" * 100_000, '{"a": "%s"}' % ("x" * 300_000)]
)
def test_damaged_edit_settings_are_ignored_with_a_notice(text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(decode.EDIT_CHUNK, text, zip=True)
    got = decode.decode(save(flat("RGB", 0), pnginfo=info))
    assert got.edit is None
    assert "ignored" in got.notices[0]


def test_edit_settings_that_cannot_be_written_are_refused() -> None:
    for edit in ({"a": float("nan")}, {"a": object()}, {"a": "x" * decode.MAX_EDIT}):
        with refusal("metadata"):
            decode.encode_png(noise(), edit=edit)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_alpha_round_trip_is_exact(seed: int) -> None:
    """What is seen on white survives saving with alpha, also where something dark was moved in."""
    rng = np.random.default_rng(seed)
    rgba = rng.integers(0, 256, (20, 20, 4), dtype=np.uint8)
    got = decode.decode(save(Image.fromarray(rgba)))
    again = decode.decode(decode.encode_png(got.rgb, alpha=got.alpha))
    np.testing.assert_array_equal(again.rgb, got.rgb)
    np.testing.assert_array_equal(again.alpha, got.alpha)
    edited = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    saved = decode.decode(decode.encode_png(edited, alpha=got.alpha))
    np.testing.assert_array_equal(saved.rgb, edited)


def test_masks_of_every_kind() -> None:
    mask = np.zeros((30, 40), bool)
    mask[5:20, 10:30] = True
    grey = np.where(mask, 1, 0).astype(np.uint8)
    white = np.where(mask[..., None], 255, 0).astype(np.uint8).repeat(3, 2)
    rgba_opaque = np.dstack([white, np.full((30, 40), 255, np.uint8)])
    strokes = np.dstack([np.zeros_like(white), np.where(mask, 40, 0).astype(np.uint8)])
    blue = np.zeros((30, 40, 3), np.uint8)
    blue[mask] = (0, 0, 1)
    sixteen = np.where(mask, 1, 0).astype(np.uint16)
    for a in (grey, white, rgba_opaque, strokes, blue, sixteen, grey.astype(np.int32)):
        kind = "TIFF" if a.dtype == np.int32 else "PNG"
        got = decode.decode_mask(save(Image.fromarray(a), kind), 40, 30)
        np.testing.assert_array_equal(got, mask)
    np.testing.assert_array_equal(decode.decode_mask(decode.encode_mask_png(mask), 40, 30), mask)
    jpeg = decode.decode_mask(save(Image.fromarray(white), "JPEG"), 40, 30)
    assert (jpeg != mask).mean() < 0.02
    clear = decode.decode_mask(save(flat("RGBA", (255, 255, 255, 0), (40, 30))), 40, 30)
    assert not clear.any()


def blob(width: int = 256, height: int = 256) -> np.ndarray:
    """A painted disc, bool [H,W]."""
    y, x = np.mgrid[:height, :width]
    return (x - width // 2) ** 2 + (y - height // 2) ** 2 < (width // 5) ** 2


def noisy(height: int = 256, width: int = 256) -> np.ndarray:
    """A photograph: soft shading and grain, uint8 [H,W,3]."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:height, :width]
    base = np.stack([x / width, y / height, (x + y) / (width + height)], axis=-1) * 200
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def mask_files() -> dict[str, bytes]:
    """The same painted disc as the common tools write it."""
    mask = blob()
    grey = np.where(mask, 255, 0).astype(np.uint8)
    rng = np.random.default_rng(5)
    rgba = np.dstack([noisy(), np.where(mask, 0, 255).astype(np.uint8)])
    cut = np.dstack([noisy(), grey])
    clean = cut.copy()
    clean[~mask] = 0
    strokes = np.zeros((256, 256, 4), np.uint8)
    strokes[mask] = (255, 0, 0, 128)
    row = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    row[0, :, 3] = 0
    speckled = grey.copy()
    at = rng.integers(0, 256, (40, 2))
    speckled[at[:, 0], at[:, 1]] = 180
    soft = np.asarray(Image.fromarray(grey).resize((64, 64)).resize((256, 256)))
    return {
        "white on black": save(Image.fromarray(grey)),
        "dark grey ground": save(Image.fromarray(np.where(mask, 255, 30).astype(np.uint8))),
        "video range": save(Image.fromarray(np.where(mask, 235, 16).astype(np.uint8))),
        "labels": save(Image.fromarray(mask.astype(np.uint8))),
        "lossy WebP": save(Image.fromarray(np.dstack([grey] * 3)), "WEBP", quality=60),
        "JPEG": save(Image.fromarray(grey), "JPEG", quality=60),
        "JPEG saved as PNG": save(Image.open(io.BytesIO(save(Image.fromarray(grey), "JPEG")))),
        "soft edges": save(Image.fromarray(soft)),
        "specks": save(Image.fromarray(np.maximum(speckled, rng.integers(0, 9, grey.shape,
                                                                         dtype=np.uint8)))),
        "ComfyUI's hole": save(Image.fromarray(rgba)),
        "a cut-out that keeps its ground": save(Image.fromarray(cut)),
        "a cut-out": save(Image.fromarray(clean)),
        "red strokes": save(Image.fromarray(strokes)),
        "one transparent row": save(Image.fromarray(row)),
        "16 bits": save(Image.fromarray(grey.astype(np.uint16) * 257)),
        "float": save(Image.fromarray(mask.astype(np.float32)), "TIFF"),
        "a palette": save(Image.fromarray(grey).convert("P")),
        "one bit": save(Image.fromarray(grey).convert("1")),
    }  # fmt: skip


@pytest.mark.parametrize("name", mask_files())
def test_what_is_painted_is_decided_from_the_pixels(name: str) -> None:
    got = decode.decode_mask(mask_files()[name], 256, 256, name)
    inner, outer = blob(), blob()
    wrong = (got != blob()).mean()
    assert wrong < 0.004, wrong
    away = ~np.asarray(Image.fromarray(outer).filter(ImageFilter.MaxFilter(9)))
    assert not got[away].any()  # not a speck
    assert got[np.asarray(Image.fromarray(inner).filter(ImageFilter.MinFilter(9)))].all()


def test_a_photograph_is_no_mask() -> None:
    with refusal("not-a-mask", "mask"):
        decode.decode_mask(save(Image.fromarray(noisy())), 256, 256)


def test_masks_of_one_value() -> None:
    for value, painted in ((0, 0.0), (16, 0.0), (255, 1.0)):
        assert decode.decode_mask(save(flat("L", value, (40, 30))), 40, 30).mean() == painted
    noise = np.random.default_rng(1).integers(0, 30, (60, 60), dtype=np.uint8)
    assert not decode.decode_mask(save(Image.fromarray(noise)), 60, 60).any()
    assert decode.decode_mask(save(Image.fromarray(255 - noise)), 60, 60).all()


def test_fault_20_mask_of_another_size_names_both_sizes() -> None:
    with refusal("mask-size", "mask"):
        decode.decode_mask(save(flat("L", 255)), 40, 30)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("../../etc/x", "x"),
        ("C:\\pictures\\me.png", "me.png"),
        ("a\0b\x1b[31m.png", "a b [31m.png"),
        ("x" * 300, "x" * 80),
        ("a.png:$x.png", "a.png:$x.png"),
        ("\u202egnp.exe", "gnp.exe"),
        ("  ", "picture"),
        ("", "picture"),
        ("dir/", "picture"),
        ("photo 1.JPG", "photo 1.JPG"),
        ("机器人🤖.png", "机器人🤖.png"),
        ("bad\ud800name", "bad name"),
    ],
)
def test_fault_12_names_are_labels(name: str, label: str) -> None:
    assert decode.clean_name(name) == label
    assert decode.decode(save(flat("RGB", 0)), name).name == label


@given(st.integers(16, 9000), st.integers(16, 9000), st.sampled_from([256, 512, 768, 1024]))
def test_working_size_properties(w: int, h: int, native: int) -> None:
    if max(w, h) > 8 * min(w, h):
        return
    ww, wh = decode.working_size(w, h, native)
    assert ww % 8 == 0
    assert wh % 8 == 0
    assert min(ww, wh) >= 64
    assert ww * wh <= native * native
    if min(w, h) * native >= 64 * max(w, h):
        assert max(ww, wh) == native
    # each side is the exact one rounded to 8
    scale = max(native / max(w, h), 64 / min(w, h))
    assert abs(ww - w * scale) <= 4.0001
    assert abs(wh - h * scale) <= 4.0001


def test_working_size_examples() -> None:
    assert decode.working_size(2000, 1500) == (512, 384)
    assert decode.working_size(511, 333, 256) == (256, 168)
    assert decode.working_size(100, 100, 512) == (512, 512)
    assert decode.working_size(2000, 1500, longest=1000) == (1000, 752)
    assert decode.working_size(2000, 250, 256) == (512, 64)
    assert decode.working_size(300, 300, 512, multiple=64) == (512, 512)
    assert decode.working_size(64, 64, 512, longest=70) == (64, 64)


def test_ids_depend_on_pixels_and_size_only() -> None:
    rgb = noise(40, 30)
    assert decode.image_id(rgb) == decode.image_id(np.asfortranarray(rgb))
    assert decode.image_id(rgb) != decode.image_id(rgb.reshape(40, 30, 3))
    assert decode.image_id(rgb).startswith("wb1:")
    mask = rgb[..., 0] > 100
    assert decode.mask_id(mask) != decode.mask_id(~mask)


def test_resize() -> None:
    rgb = noise(40, 30)
    assert decode.resize(rgb, (16, 24)).shape == (24, 16, 3)
    same = decode.resize(rgb, (40, 30))
    assert same is not rgb
    np.testing.assert_array_equal(same, rgb)
    theirs = np.asarray(Image.fromarray(rgb).resize((16, 24), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode.resize(rgb, (16, 24), "bilinear"), theirs)
    assert json.dumps(decode.working_size(40, 30)) == "[512, 384]"


def test_fault_11_a_file_that_is_being_opened_can_be_given_up() -> None:
    raw = save(Image.fromarray(noise()), "TIFF")
    assert decode.decode(raw, "first").width == 40  # the helper runs
    helper = opening._helper
    assert helper is not None
    os.kill(helper.process.pid, signal.SIGSTOP)  # it takes as long as it likes
    stops = [opening.Stop(), opening.Stop()]  # the second one waits for the first
    ended: list[str] = []

    def wait(n: int) -> None:
        try:
            decode.decode(raw, str(n), stops[n])
            ended.append(f"{n} opened")
        except Cancelled:
            ended.append(f"{n} given up")

    first, second = (threading.Thread(target=wait, args=(n,)) for n in range(2))
    first.start()
    until(lambda: stops[0]._helper is not None)
    second.start()
    stops[1].set()
    second.join(HANG)
    assert ended == ["1 given up"]
    assert helper.process.poll() is None  # the first one's helper was left alone
    stops[0].set()
    first.join(HANG)
    assert ended == ["1 given up", "0 given up"]
    assert helper.process.poll() is not None
    assert decode.decode(raw, "again").width == 40
    with pytest.raises(Cancelled):
        decode.decode(raw, "late", stops[0])
