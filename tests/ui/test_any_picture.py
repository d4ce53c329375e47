"""Any picture from upload to download: large, transparent, wide, tiny; the size and part that are edited."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from streamlit.testing.v1 import AppTest

from workbench.app import App
from workbench.canvas.drawing import Arrow, Drawing, Polygon
from workbench.core.request import Point, PointPair
from workbench.imaging import decode
from workbench.imaging.crop import Crop
from workbench.storage.archive import page as png_metadata
from workbench.ui.shell import figures
from workbench.ui.shell.backend import Backend, get_backend
from workbench.ui.shell.forms import say
from workbench.ui.shell.workspace import Workspace
from workbench.ui.upload import intake

QUICK: dict[str, Any] = {
    "lora": {"steps": 0},
    "inversion": {"steps": 4, "strength": 0.5},
    "drag": {"method": "dragdiffusion", "steps": 2, "learning_rate": 0.1},
}


@pytest.fixture
def backend(app: App) -> Backend:
    return get_backend()


def photograph(width: int, height: int) -> NDArray[np.uint8]:
    """Sky, ground, a shaded ball and grain, uint8 [H,W,3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(width, height)
    sky = np.stack([110 + 90 * y, 150 + 80 * y, 220 - 20 * y], axis=2)
    ground = np.stack([90 - 60 * y, 120 - 30 * y, 60 - 20 * y], axis=2)
    rgb = np.where((y < 0.35)[..., None], sky, ground)
    away = np.hypot(x - 0.5, y - 0.35) / 0.04
    rgb = np.where((away < 1)[..., None], (220 - 120 * away)[..., None] * (1, 0.5, 0.4), rgb)
    grain = np.random.default_rng(3).integers(-6, 7, (height, width, 1), np.int8)
    return (rgb + grain).clip(0, 255).astype(np.uint8)


def encoded(rgb: NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, kind, **options)
    return out.getvalue()


def opened(backend: Backend, raw: bytes, drawing: Drawing, name: str = "a.png") -> Workspace:
    space = intake.take(backend, backend.decode(raw, name))
    space.set(**QUICK)
    space.change(drawing=drawing.to_json(), prompt="a ball")
    return space


def box(x0: float, y0: float, x1: float, y1: float, *pair: float) -> Drawing:
    """A painted rectangle and one arrow, in image px."""
    corners = (Point(x0, y0), Point(x1, y0), Point(x1, y1), Point(x0, y1))
    arrow = Arrow(PointPair(Point(pair[0], pair[1]), Point(pair[2], pair[3])))
    return Drawing((arrow,), (Polygon(corners),))


def run(backend: Backend, space: Workspace, drawing: Drawing) -> tuple[Any, NDArray[np.uint8]]:
    """The edit as the page asks for it: its record and the downloaded picture, with alpha if any."""
    request = space.request(drawing.pairs, backend.mask_asset(space, drawing))
    record = backend.store.record(backend.app.perform("edit", request))
    with Image.open(io.BytesIO(png_metadata.result_png(record, backend.store))) as picture:
        return record, np.asarray(picture)


def test_a_photograph_of_many_megapixels(backend: Backend, visit: Callable[..., AppTest]) -> None:
    width, height = 2400, 1600
    raw = encoded(photograph(width, height), "JPEG", quality=90)
    before = decode.decode(raw, "photo.jpg").rgb
    drawing = box(1080, 720, 1320, 980, 1200, 840, 1224, 840)
    space = opened(backend, raw, drawing, "photo.jpg")
    piece = backend.piece(space)
    assert not piece.is_whole(width, height)
    page = visit(project=space.id)
    (told,) = (c.value for c in page.caption if "around the mask" in c.value)
    assert f"{piece.width} × {piece.height} px" in told
    assert "64 × 64 px" in told
    record, after = run(backend, space, drawing)
    assert after.shape == (height, width, 3)
    mask = backend.store.mask(record.request.mask.id)
    assert (after[~mask] == before[~mask]).all()  # the rest of it, bit for bit
    assert (after[mask] != before[mask]).any()
    assert record.result.change_outside_mask == 0.0


def test_fault_10_one_sentence_says_what_a_large_picture_becomes(
    backend: Backend, visit: Callable[..., AppTest]
) -> None:
    space = opened(backend, encoded(photograph(400, 300)), Drawing())
    page = visit(project=space.id)
    native = backend.model_facts(space).native
    said = [str(c.value) for c in page.caption]
    waits = say("upload.edited_part_waits", native=native)
    assert sum(waits in text for text in said) == 1
    assert not any(say("upload.edited_at_at", at="") in text for text in said)
    assert page.text_area[0].placeholder == say("upload.prompt_placeholder")


def test_size_and_part_are_changed_on_the_page(
    backend: Backend, visit: Callable[..., AppTest]
) -> None:
    drawing = box(20, 20, 90, 90, 40, 40, 70, 40)
    space = opened(backend, encoded(photograph(640, 480)), drawing)
    page = visit(project=space.id)
    assert any("around the mask" in c.value for c in page.caption)
    page.toggle(key=f"working_crop_{space.id}").set_value(False).run()
    assert not page.exception
    assert any("640 × 480 px · edited at 88 × 64 px" in c.value for c in page.caption)
    page.number_input(key=f"working_size_{space.id}_0").set_value(128).run()
    assert any("edited at 128 × 96 px" in c.value for c in page.caption)
    again = Workspace.open(backend.store, space.id)
    request = again.request(drawing.pairs, None)
    assert (request.working_size, request.crop) == (128, False)
    record, after = run(backend, again, drawing)
    assert after.shape == (480, 640, 3)
    assert any("128x96" in n for n in record.result.notices)


def test_a_transparent_picture_keeps_its_alpha(backend: Backend) -> None:
    rgb = photograph(80, 72)
    alpha = np.full((72, 80), 255, np.uint8)
    alpha[:, 50:] = np.linspace(255, 0, 30).astype(np.uint8)
    raw = encoded(np.dstack([rgb, alpha]))
    drawing = box(10, 10, 40, 50, 20, 30, 30, 30)
    space = opened(backend, raw, drawing)
    record, after = run(backend, space, drawing)
    assert after.shape == (72, 80, 4)
    assert (after[..., 3] == alpha).all()
    mask = backend.store.mask(record.request.mask.id)
    kept = ~mask & (alpha == 255)
    assert (after[..., :3][kept] == rgb[kept]).all()


@pytest.mark.parametrize(("width", "height"), [(320, 180), (90, 320), (21, 17)])
def test_every_shape_comes_back_at_its_own_size(backend: Backend, width: int, height: int) -> None:
    before = photograph(width, height)
    x, y = width / 2, height / 2
    drawing = box(x - 6, y - 6, x + 6, y + 6, x - 3, y, x + 3, y)
    space = opened(backend, encoded(before), drawing)
    record, after = run(backend, space, drawing)
    assert after.shape == (height, width, 3)
    mask = backend.store.mask(record.request.mask.id)
    assert (after[~mask] == before[~mask]).all()


def test_the_edited_part_is_lit() -> None:
    rgb = np.full((100, 200, 3), 200, np.uint8)
    shown = intake.lit(rgb, Crop(400, 200, 400, 400, 64, 64), (2000, 1000))
    assert (shown[50, 60] == 200).all()  # inside: as it was
    assert (shown[5, 5] == 90).all()  # outside: darkened
    assert (shown[20, 45] == 255).all()  # the edge


def test_a_big_picture_is_looked_at_where_it_changes(app: App, backend: Backend) -> None:
    """The instant preview and the results show the part, at more detail than the whole would have."""
    rgb = photograph(2400, 1600)
    corners = tuple(Point(x, y) for x, y in ((1100, 450), (1300, 450), (1300, 650), (1100, 650)))
    arrow = PointPair(Point(1200, 560), Point(1240, 500))
    drawing = Drawing((Arrow(arrow),), (Polygon(corners),))
    space = opened(backend, encoded(rgb), drawing)
    draft = backend.draft(space, drawing)
    assert draft is not None
    with Image.open(io.BytesIO(draft[0])) as shown:
        assert max(shown.size) <= 640
        assert shown.width == pytest.approx(shown.height, abs=4)  # as the area, not as the picture
    size, mask = (2400, 1600), backend.areas.of(space, drawing).mask
    near = figures.close_up(size, mask, drawing.pairs)
    assert near is not None
    assert (near.x0, near.y0) == pytest.approx((1033, 383), abs=4)
    assert near.out_width == near.width == pytest.approx(335, abs=6)  # never enlarged
    np.testing.assert_array_equal(
        figures.seen(rgb, near),
        rgb[near.y0 : near.y0 + near.height, near.x0 : near.x0 + near.width],
    )


def test_no_close_up_where_the_whole_is_as_good() -> None:
    arrow = (PointPair(Point(100, 100), Point(120, 100)),)
    part = np.zeros((900, 900), np.bool_)
    part[80:140, 80:140] = True
    assert figures.close_up((900, 900), part, arrow) is not None
    assert figures.close_up((900, 900), None, arrow) is None
    assert figures.close_up((900, 900), np.zeros_like(part), arrow) is None
    assert figures.close_up((900, 900), np.ones_like(part), arrow) is None
    assert figures.close_up((600, 600), part[:600, :600], arrow) is None
    far = (PointPair(Point(-500, -500), Point(2000, 2000)),)
    assert figures.close_up((900, 900), part, far) is None  # arrows beyond the picture
