"""The drawing: canvas JSON both ways, exact masks, history, checklist."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from workbench.canvas.drawing import Arrow, Drawing, Polygon, Rect, Stroke
from workbench.canvas.fabric import Colours, from_canvas_json, to_canvas_json
from workbench.canvas.rasterize import Placement, cubic_box, flatten_quadratic, rasterise
from workbench.core.request import Point, PointPair
from workbench.imaging.coords import Viewport

ONE = Viewport.fit(640, 480, 640)


def pair(hx: float, hy: float, tx: float, ty: float) -> PointPair:
    return PointPair(Point(hx, hy), Point(tx, ty))


def line(x1: float, y1: float, x2: float, y2: float, **extra: object) -> dict[str, object]:
    """What the component's line tool leaves."""
    return {
        "type": "Line", "originX": "center", "originY": "center",
        "left": (x1 + x2) / 2, "top": (y1 + y2) / 2,
        "x1": (x1 - x2) / 2, "y1": (y1 - y2) / 2, "x2": (x2 - x1) / 2, "y2": (y2 - y1) / 2,
        "width": abs(x2 - x1), "height": abs(y2 - y1), "stroke": "#ffffff", "strokeWidth": 3,
        "strokeLineCap": "butt", "strokeDashArray": None, **extra,
    }  # fmt: skip


def read(*objects: dict[str, object], view: Viewport = ONE) -> Drawing:
    return from_canvas_json({"objects": list(objects)}, view)


def test_a_line_is_an_arrow_from_handle_to_target() -> None:
    (arrow,) = read(line(320, 240, 420, 300)).arrows
    assert arrow == Arrow(pair(320, 240, 420, 300))
    (back,) = read(line(420, 300, 320, 240)).arrows
    assert back.pair == pair(420, 300, 320, 240)


def test_lines_are_scaled_to_the_picture() -> None:
    view = Viewport.fit(2000, 1500, 688)
    (arrow,) = read(line(100, 200, 300, 50), view=view).arrows
    k = 2000 / 688
    assert arrow.pair.handle.x == pytest.approx(100 * k, abs=1e-4)
    assert arrow.pair.target.y == pytest.approx(50 * 1500 / 516, abs=1e-4)


def test_moved_turned_scaled_and_flipped_lines_follow_their_matrix() -> None:
    turned = line(100, 100, 200, 100, angle=90)
    assert read(turned).arrows[0].pair == pair(150, 50, 150, 150)
    scaled = line(100, 100, 200, 100, scaleX=2)
    assert read(scaled).arrows[0].pair == pair(50, 100, 250, 100)
    flipped = line(100, 100, 200, 140, flipX=True)
    assert read(flipped).arrows[0].pair == pair(200, 100, 100, 140)
    moved = line(100, 100, 200, 100) | {"left": 160, "top": 107}
    assert read(moved).arrows[0].pair == pair(110, 107, 210, 107)


def test_jitter_is_dropped_but_not_a_short_arrow_that_we_placed() -> None:
    assert read(line(10, 10, 11, 11)).arrows == ()
    far = Viewport.fit(6000, 4000, 600)
    short = Drawing(arrows=(Arrow(pair(100, 100, 104, 100)), Arrow(pair(9, 9, 9, 9))))
    assert from_canvas_json(to_canvas_json(short, far), far).arrows == short.arrows


def test_points_pair_up_and_an_odd_one_stays_loose() -> None:
    def click(x: float, y: float) -> dict[str, object]:
        return {
            "type": "Circle", "originX": "left", "originY": "center", "radius": 3,
            "strokeWidth": 4, "left": x - 5, "top": y, "width": 6, "height": 6,
        }  # fmt: skip

    d = read(click(10, 20), click(30, 40), click(50, 60))
    assert d.arrows == (Arrow(pair(10, 20, 30, 40)),)
    assert d.loose == Point(50, 60)


def test_a_brush_stroke_keeps_its_coordinates_until_it_is_moved() -> None:
    path = [["M", 50, 60], ["Q", 50, 60, 75, 70], ["Q", 100, 80, 125, 70], ["L", 150, 60.01]]
    xs = [
        x
        for a, b, c in ((50, 50, 75), (75, 100, 125))
        for x, _ in cubic_box((a, 0), (b, 0), (c, 0))
    ]
    assert min(xs) == 50
    ys = [
        y
        for p in (((0, 60), (0, 60), (0, 70)), ((0, 70), (0, 80), (0, 70)))
        for _, y in cubic_box(*p)
    ]
    top, bottom = min([*ys, 60.0]), max([*ys, 60.01])
    base = {
        "type": "Path", "path": path, "stroke": "#fff", "strokeWidth": 20, "fill": None,
        "originX": "center", "originY": "center", "left": 100.0, "top": (top + bottom) / 2,
    }  # fmt: skip
    (stroke,) = read(base).shapes
    assert isinstance(stroke, Stroke)
    assert stroke.width == 20
    assert stroke.points[0] == Point(49.5, 59.5)  # outlines lie between the pixels
    assert stroke.points[-1].distance(Point(149.5, 59.51)) < 1e-4
    (moved,) = read(base | {"left": 110.0, "scaleX": 2, "scaleY": 2}).shapes
    assert isinstance(moved, Stroke)
    assert moved.points[0].x == pytest.approx(9.5)
    assert moved.width == pytest.approx(40)
    (bare,) = read({k: v for k, v in base.items() if k not in ("left", "top")}).shapes
    assert bare.points[0] == Point(49.5, 59.5)  # type: ignore[union-attr]


def test_eraser_is_known_by_its_colour_and_order_counts() -> None:
    stroke = {"type": "Path", "path": [["M", 20, 50], ["L", 80, 50]], "strokeWidth": 20}
    view = Viewport.fit(100, 100, 100)
    brush = stroke | {"stroke": "rgba(255,255,255,0.35)"}
    eraser = stroke | {"stroke": "RGBA(20, 20,20,0.55)", "strokeWidth": 8}
    d = read(brush, eraser, view=view)
    assert [s.erase for s in d.shapes] == [False, True]
    mask = rasterise(d, 100, 100)
    assert not mask[50, 50]
    assert mask[58, 50]
    assert rasterise(read(eraser, brush, view=view), 100, 100)[50, 50]


def test_rect_and_polygon() -> None:
    rect = {
        "type": "Rect", "originX": "left", "originY": "top", "left": 10, "top": 20, "width": 30,
        "height": 40, "strokeWidth": 2, "strokeUniform": True, "stroke": "#fff",
    }  # fmt: skip
    assert read(rect).shapes == (Rect(10.5, 20.5, 40.5, 60.5, border=2),)
    filled = rasterise(read(rect | {"strokeWidth": 0}), 100, 100)
    assert filled.sum() == 30 * 40
    assert filled[20:60, 10:40].all()
    (turned,) = read(rect | {"angle": 30}).shapes
    assert isinstance(turned, Polygon)
    sides = [a.distance(b) for a, b in pairwise(turned.points)]
    assert sides == pytest.approx([30, 40, 30], abs=1e-3)
    poly = {
        "type": "Polygon", "points": [{"x": 0, "y": 0}, {"x": 40, "y": 0}, {"x": 0, "y": 20}],
        "originX": "center", "originY": "center", "left": 120, "top": 110, "strokeWidth": 0,
    }  # fmt: skip
    (triangle,) = read(poly).shapes
    assert triangle == Polygon((Point(99.5, 99.5), Point(139.5, 99.5), Point(99.5, 119.5)))
    assert read(poly | {"points": [{"x": 0, "y": 0}]}).shapes == ()


DATA = Path(__file__).resolve().parents[1] / "data" / "canvas"
BROWSER = Viewport.fit(400, 300, 400)


def from_browser(name: str) -> Drawing:
    """A drawing as the real component reported it."""
    return from_canvas_json(json.loads((DATA / f"{name}.json").read_text()), BROWSER)


def painted_by_browser(name: str) -> np.ndarray:
    """The pixels that Chromium painted for it."""
    return np.asarray(Image.open(DATA / f"{name}.png")) > 0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("name", ["brush", "brush_edited", "rect", "rect_edited", "polygon"])
def test_masks_are_what_the_browser_painted(name: str) -> None:
    assert overlap(rasterise(from_browser(name), 400, 300), painted_by_browser(name)) > 0.985


def test_arrows_are_what_the_mouse_did_in_the_browser() -> None:
    lines = from_browser("line")
    assert lines.pairs == (pair(100, 100, 250, 160), pair(300, 250, 180, 40))
    clicks = from_browser("point")
    assert clicks.pairs == (pair(100, 100, 200, 150),)
    assert clicks.loose == Point(333, 222)


def test_an_arrow_that_was_moved_scaled_and_turned_in_the_browser() -> None:
    painted = painted_by_browser("line_edited")
    (p,) = from_browser("line_edited").pairs
    scale = json.loads((DATA / "line_edited.json").read_text())["objects"][0]["scaleX"]
    ends = tuple(Point(q.x - 0.5, q.y - 0.5) for q in (p.handle, p.target))
    again = rasterise(Drawing(shapes=(Stroke(ends, 6 * scale),)), 400, 300)
    assert (again & painted).sum() / painted.sum() > 0.99  # ours has round ends besides


coordinate = st.floats(-50, 700).map(lambda v: round(v, 3))
points = st.builds(Point, coordinate, coordinate)
pairs = st.builds(PointPair, points, points)
width = st.floats(0.5, 80).map(lambda v: round(v, 3))
shapes = st.one_of(
    st.builds(Stroke, st.lists(points, min_size=2, max_size=6).map(tuple), width, st.booleans()),
    st.builds(Rect, coordinate, coordinate, st.just(701.0), st.just(702.0), st.booleans(), width),
    st.builds(Polygon, st.lists(points, min_size=3, max_size=6).map(tuple), st.booleans(), width),
)
drawings = st.builds(
    Drawing,
    st.lists(st.builds(Arrow, pairs, st.booleans()), max_size=4).map(tuple),
    st.lists(shapes, max_size=4).map(tuple),
    st.none() | points,
    st.booleans(),
)


def near(a: object, b: object, tolerance: float) -> bool:
    """Equal up to `tolerance` in every number."""
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= tolerance
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(near(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if dataclasses.is_dataclass(a):
        names = [f.name for f in dataclasses.fields(a)]
        return type(a) is type(b) and all(
            near(getattr(a, n), getattr(b, n), tolerance) for n in names
        )
    return a == b


@given(drawings)
def test_json_round_trip_is_exact(drawing: Drawing) -> None:
    assert Drawing.from_json(json.loads(json.dumps(drawing.to_json()))) == drawing


@settings(max_examples=60)
@given(drawings, st.sampled_from([640, 344, 1200]), st.floats(1, 12), points)
def test_canvas_round_trip_at_any_zoom(drawing: Drawing, cw: int, zoom: float, at: Point) -> None:
    """What was drawn in one view is the same drawing in another: no drift beyond the rounding."""
    view = Viewport.fit(640, 480, cw).zoomed(zoom, at, 640, 480)
    again = from_canvas_json(
        json.loads(json.dumps(to_canvas_json(drawing, view))), view, invert=drawing.invert
    )
    # the anisotropy of a rounded canvas height shows in lengths only, below 0.4 %
    assert near(drawing, again, 0.3)
    assert [a.on for a in again.arrows] == [a.on for a in drawing.arrows]
    for a, b in zip(drawing.arrows, again.arrows, strict=True):
        assert a.pair.handle.distance(b.pair.handle) < 1e-3
        assert a.pair.target.distance(b.pair.target) < 1e-3


def test_nothing_drifts_over_a_hundred_rebuilds() -> None:
    drawing = Drawing(
        (Arrow(pair(12.3456, 7.7, 300.001, 200.5)),),
        (Stroke((Point(10, 10), Point(50.5, 20), Point(90, 70)), 24.0),),
    )
    now = drawing
    for i in range(100):
        view = Viewport.fit(2000, 1500, 600 + 7 * i)
        canvas = json.loads(json.dumps(to_canvas_json(now, view)))
        for o in canvas["objects"]:
            o["left"], o["top"] = round(o["left"], 4), round(o["top"], 4)
        now = from_canvas_json(canvas, view)
    assert near(drawing, now, 0.05)


def distance_to(points: tuple[Point, ...], w: int, h: int) -> np.ndarray:
    """Distance of every pixel centre to a polyline, the slow and sure way."""
    yy, xx = np.mgrid[:h, :w].astype(float)
    best = np.full((h, w), np.inf)
    for a, b in zip(points, points[1:] or points, strict=False):
        vx, vy = b.x - a.x, b.y - a.y
        length2 = vx * vx + vy * vy
        t = np.clip(((xx - a.x) * vx + (yy - a.y) * vy) / length2, 0, 1) if length2 else 0.0
        best = np.minimum(best, np.hypot(xx - a.x - t * vx, yy - a.y - t * vy))
    return best


grid = st.one_of(st.floats(-20, 100), st.integers(-20, 100).map(float))


@given(
    st.lists(st.builds(Point, grid, grid), min_size=1, max_size=5).map(tuple),
    st.floats(0.1, 60),
)
def test_strokes_equal_a_brute_force_distance_test(points: tuple[Point, ...], width: float) -> None:
    mask = rasterise(Drawing(shapes=(Stroke(points, width),)), 80, 70)
    distance, r = distance_to(points, 80, 70), max(width / 2, 0.75)
    assert mask[distance < r - 1e-5].all()
    assert not mask[distance > r + 1e-5].any()


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = (
        Stroke((Point(5, 5), Point(90, 200), Point(20, 250)), 31.0),
        Polygon((Point(50, 3), Point(99, 240), Point(2, 260)), True, 3.0),
        Rect(10.5, 100, 60, 130.25),
    )
    whole = rasterise(Drawing(shapes=shapes), 100, 270)
    monkeypatch.setattr("workbench.canvas.rasterize._BAND", 37)
    monkeypatch.setattr("workbench.canvas.rasterize._CHUNK", 50)
    np.testing.assert_array_equal(rasterise(Drawing(shapes=shapes), 100, 270), whole)


def test_polygons_fill_by_non_zero_winding() -> None:
    a = [math.radians(90 + 144 * i) for i in range(5)]
    star = Polygon(tuple(Point(50 + 40 * math.cos(t), 50 - 40 * math.sin(t)) for t in a))
    mask = rasterise(Drawing(shapes=(star,)), 100, 100)
    assert mask[50, 50]  # even-odd would leave a hole
    assert not mask[20, 20]
    square = Rect(9.5, 19.5, 29.5, 49.5)
    assert rasterise(Drawing(shapes=(square,)), 100, 100).sum() == 20 * 30
    bordered = Rect(9.5, 19.5, 29.5, 49.5, border=4)
    assert 24 * 34 - 12 <= rasterise(Drawing(shapes=(bordered,)), 100, 100).sum() <= 24 * 34


def test_invert_and_empty() -> None:
    assert not rasterise(Drawing(), 20, 10).any()
    assert rasterise(Drawing(invert=True), 20, 10).all()
    dot = Drawing(shapes=(Stroke((Point(5, 5),), 4.0),))
    np.testing.assert_array_equal(rasterise(dot.inverted(), 20, 10), ~rasterise(dot, 20, 10))
    assert not Drawing().has_mask
    assert not Drawing(shapes=(Stroke((Point(5, 5),), 4.0, erase=True),)).has_mask
    assert dot.has_mask


def test_quadratics_are_flattened_within_a_tenth_of_a_pixel() -> None:
    p, q, r = (0.0, 0.0), (100.0, 200.0), (300.0, 0.0)
    line = [p, *flatten_quadratic(p, q, r)]
    for t in np.linspace(0, 1, 200):
        s = 1 - t
        x = s * s * p[0] + 2 * s * t * q[0] + t * t * r[0]
        y = s * s * p[1] + 2 * s * t * q[1] + t * t * r[1]
        best = min(distance_to_segment(x, y, a, b) for a, b in pairwise(line))
        assert best <= 0.1
    assert flatten_quadratic((0, 0), (5, 0), (10, 0)) == [(10, 0)]


def distance_to_segment(
    x: float, y: float, a: tuple[float, float], b: tuple[float, float]
) -> float:
    vx, vy = b[0] - a[0], b[1] - a[1]
    t = min(1, max(0, ((x - a[0]) * vx + (y - a[1]) * vy) / (vx * vx + vy * vy)))
    return math.hypot(x - a[0] - t * vx, y - a[1] - t * vy)


def test_a_placement_takes_the_origin_point_of_the_stroked_box() -> None:
    place = Placement(left=10, top=20, width=30, height=40, stroke=4, scale_x=2)
    scaled = place.matrix()
    assert scaled.apply(0, 0) == (10 + 34, 20 + 22)
    uniform = dataclasses.replace(place, uniform=True).matrix()
    assert uniform.apply(0, 0) == (10 + 32, 20 + 22)
    assert uniform.stretch == pytest.approx(math.sqrt(2))


def test_eraser_colour_can_be_chosen() -> None:
    colours = Colours(eraser="#123456")
    d = Drawing(shapes=(Rect(1, 2, 30, 40, erase=True), Rect(1, 2, 30, 40)))
    made = to_canvas_json(d, ONE, colours=colours)
    assert from_canvas_json(made, ONE, colours=colours) == d
    assert from_canvas_json(None, ONE, invert=True) == Drawing(invert=True)
