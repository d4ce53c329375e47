"""Pictures of a drag: marks at the right pixels and colours, sheets, heat map, animation."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from refusals import refusal

from workbench.canvas.overlay import Style, canvas_background, overlay
from workbench.canvas.sheets import animation, animation_frames, heatmap, sheet, strip
from workbench.core.request import Point, PointPair
from workbench.imaging import decode
from workbench.imaging.coords import Viewport
from workbench.ui.shell.figures import steadied

GREEN = (60, 140, 80)


def pair(hx: float, hy: float, tx: float, ty: float) -> PointPair:
    return PointPair(Point(hx, hy), Point(tx, ty))


def plain(w: int = 300, h: int = 200) -> np.ndarray:
    return np.full((h, w, 3), GREEN, np.uint8)


def close(pixel: np.ndarray, colour: tuple[int, ...], tolerance: int = 12) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= tolerance)


@pytest.mark.parametrize(("w", "h"), [(300, 200), (512, 512), (1200, 900)])
def test_handle_is_red_target_blue_shaft_white(w: int, h: int) -> None:
    style = Style()
    p = pair(0.3 * w, 0.4 * h, 0.7 * w, 0.6 * h)
    out = overlay(plain(w, h), None, [p], style=style)
    assert close(out[round(p.handle.y), round(p.handle.x)], style.handle)
    assert close(out[round(p.target.y), round(p.target.x)], style.target)
    assert close(out[round(0.5 * h), round(0.5 * w)], style.arrow)
    assert close(out[2, 2], GREEN, 0)


def test_marks_are_centred_on_their_point() -> None:
    """The centroid of what the disc covers is the point itself, to a tenth of a pixel."""
    ground = np.zeros((200, 200, 3), np.uint8)
    out = overlay(ground, None, [pair(80, 90, 80, 90)], style=Style(numbers=False))
    weight = out.sum(axis=2).astype(float)
    y, x = np.mgrid[:200, :200]
    assert (x * weight).sum() / weight.sum() == pytest.approx(80, abs=0.1)
    assert (y * weight).sum() / weight.sum() == pytest.approx(90, abs=0.1)


def test_protected_area_is_darker_and_painted_is_as_it_was() -> None:
    mask = np.zeros((200, 300), bool)
    mask[50:150, 60:240] = True
    out = overlay(plain(), mask, [])
    assert close(out[100, 150], GREEN, 0)
    assert close(out[10, 10], tuple(int(c * 0.75) for c in GREEN), 1)
    assert out[50, 150].sum() > sum(GREEN)  # outline, inside the painted area
    for all_or_nothing in (None, np.zeros_like(mask), np.ones_like(mask)):
        np.testing.assert_array_equal(overlay(plain(), all_or_nothing, []), plain())
    tinted = overlay(plain(), mask, [], style=Style(tint=(255, 0, 0)))
    assert close(tinted[100, 150], (118, 98, 56), 2)


def test_arrows_beyond_the_border_do_no_harm() -> None:
    for p in (pair(-50, -50, -20, -90), pair(-50, 100, 400, 100), pair(0, 0, 299, 199)):
        out = overlay(plain(), None, [p])
        assert out.shape == (200, 300, 3)


def test_trail_shows_the_way() -> None:
    way = [[Point(50 + 10 * k, 100)] for k in range(11)]
    out = overlay(plain(), None, [pair(50, 100, 200, 100)], paths=way, style=Style(numbers=False))
    assert close(out[100, 100], (255, 205, 60), 20)
    assert close(out[100, 150], Style().handle)


def test_canvas_background_shows_the_view_at_canvas_size() -> None:
    rgb = plain()
    rgb[90:110, 90:110] = (200, 30, 30)
    view = Viewport.fit(300, 200, 600)
    out = decode.decode(canvas_background(rgb, view)).rgb
    assert out.shape == (400, 600, 3)
    x, y = view.to_canvas(100, 100)
    assert close(out[round(y), round(x)], (200, 30, 30), 40)
    assert close(out[390, 10], GREEN, 6)  # nothing is drawn on it: the stage does that
    away = view.zoomed(8, Point(290, 190), 300, 200)
    assert close(decode.decode(canvas_background(rgb, away)).rgb[200, 300], GREEN, 6)


def test_numbers_of_arrows_out_of_view_are_not_drawn() -> None:
    rgb = plain()
    out = overlay(rgb, None, [pair(-40, 100, -10, 100), pair(150, -30, 150, -12)])
    np.testing.assert_array_equal(out, rgb)


def test_strip() -> None:
    source, result = plain(), np.full((200, 300, 3), 9, np.uint8)
    out = strip(source, None, [], result)
    assert out.shape == (200, 300 + 15 + 300, 3)
    np.testing.assert_array_equal(out[:, 315:], result)
    np.testing.assert_array_equal(out[:, 300:315], 255)
    smaller = strip(source, None, [], np.zeros((100, 150, 3), np.uint8), gap=25)
    assert smaller.shape == (200, 625, 3)


def test_heat_is_where_the_difference_is() -> None:
    before, after = plain(), plain()
    after[50:60, 70:90] = (200, 140, 80)
    after[80, 80] = (61, 140, 80)
    out = heatmap(before, after)
    assert out[55, 75].min() > 150
    quiet = out[10, 10]
    assert len(set(quiet.tolist())) == 1
    assert quiet.max() < 60
    assert np.abs(out[80, 80].astype(int) - quiet).max() < 8
    np.testing.assert_array_equal(out, heatmap(after, before) * 0 + out)
    with refusal("picture-sizes"):
        heatmap(before, np.zeros((10, 10, 3), np.uint8))


def test_contact_sheet() -> None:
    pictures = [plain(300, 200), plain(100, 300), plain(40, 40)]
    labels = ["one", "lam = 0.1\nlr = 0.02 and a much longer line that must wrap", "x" * 200]
    out = sheet(pictures, labels, cell=128, title="Sweep")
    assert out.dtype == np.uint8
    assert out.shape[1] == 2 * 128 + 3 * 6
    greens = (out == GREEN).all(axis=2).mean()
    assert greens > 0.2
    assert sheet(pictures, labels, columns=9, cell=64, dark=True).shape[1] == 3 * 64 + 4 * 6
    assert sheet(pictures[:1], [""], cell=64).shape[1] == 64 + 2 * 6
    with refusal("label-count"):
        sheet(pictures, labels[:2])
    with refusal("label-count"):
        sheet([], [])


def test_animation() -> None:
    frames = [np.full((150, 700, 3), 40 * k, np.uint8) for k in range(5)]
    way = [[Point(100 + 5 * k, 75)] for k in range(21)]
    arrow = [pair(100, 75, 200, 75)]
    pictures = animation_frames(frames, arrow, way, longest=350)
    assert [p.shape for p in pictures] == [(75, 350, 3)] * 5
    handle = Style().handle
    assert close(pictures[0][37, 50], handle, 25)
    assert close(pictures[-1][37, 100], handle, 25)
    gif = Image.open(io.BytesIO(animation(frames, arrow, way, longest=350)))
    assert gif.format == "GIF"
    assert gif.n_frames == 5  # type: ignore[attr-defined]
    assert gif.info["loop"] == 0
    gif.seek(4)
    assert gif.info["duration"] == 1200
    gif.seek(2)
    shown = np.asarray(gif.convert("RGB"))
    assert close(shown[37, 100], Style().target, 40)  # small marks keep their colour
    one = Image.open(io.BytesIO(animation(frames[:1], arrow)))
    assert one.size == (512, 110)
    with refusal("frames"):
        animation([frames[0], frames[0][:50]], arrow)
    with refusal("frames"):
        animation([], arrow)


def test_an_animation_for_the_page_keeps_all_colours() -> None:
    """256 colours make a smooth picture grainy, from its first frame on."""
    y, x = np.mgrid[0:96, 0:128]
    source = np.stack([2 * x, y + x // 2, 255 - 2 * y], axis=2).astype(np.uint8)
    frames = [source, 255 - source]
    errors = []
    for kind in ("WEBP", "GIF"):
        film = Image.open(io.BytesIO(animation(frames, (), kind=kind)))
        assert film.format == kind
        assert film.n_frames == 2  # type: ignore[attr-defined]
        assert film.info["loop"] == 0
        errors.append(np.abs(np.asarray(film.convert("RGB"), np.float32) - source).mean())
    assert errors[0] < 2 < errors[1]


def test_fault_26_frames_begin_with_the_original_and_end_with_the_result() -> None:
    rng = np.random.default_rng(0)
    real = [np.full((8, 8, 3), 60 + 20 * n, np.uint8) for n in range(5)]
    noise = rng.integers(-30, 30, (8, 8, 3))
    guesses = [(f + noise * (5 - n) / 5).astype(np.uint8) for n, f in enumerate(real)]
    made = steadied(real[0], guesses, real[-1], moved=False)
    assert (made[0] == real[0]).all()
    assert (made[-1] == real[-1]).all()
    for frame, guess, truth in zip(made, guesses, real, strict=True):
        error = np.abs(frame.astype(float) - truth).mean()
        assert error < 1.5 < np.abs(guess.astype(float) - truth).mean()
    onward = steadied(real[0], guesses[2:], real[-1], moved=True)
    assert np.abs(onward[0].astype(float) - real[2]).mean() < 15  # not pulled back to the original
    assert steadied(real[0], [], real[-1], moved=False) == []
