"""Drawings of docs/faults.md rows 13, 14, 17, 19 and 20: hostile canvas data gives BadInput, bounded work."""

from __future__ import annotations

import contextlib
import copy
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.canvas.checklist import Code, checklist, ready
from workbench.canvas.drawing import Arrow, Drawing, Polygon, Rect, Stroke
from workbench.canvas.fabric import from_canvas_json, to_canvas_json
from workbench.canvas.rasterize import rasterise
from workbench.core.errors import BadInput
from workbench.core.request import (
    EditRequest,
    ImageAsset,
    Point,
    PointPair,
)
from workbench.imaging.coords import Viewport

VIEW = Viewport.fit(640, 480, 640)

GOOD: dict[str, Any] = to_canvas_json(
    Drawing(
        (Arrow(PointPair(Point(10, 20), Point(30, 60))),),
        (
            Stroke((Point(5, 5), Point(50, 60), Point(90, 70)), 20.0),
            Rect(10, 10, 60, 50, border=2),
            Polygon((Point(0, 0), Point(40, 0), Point(0, 40))),
        ),
        Point(9, 9),
    ),
    VIEW,
)


def refused(data: Any) -> str:
    with pytest.raises(BadInput) as caught:
        from_canvas_json(data, VIEW)
    text = str(caught.value)
    assert text.endswith(".")
    assert len(text) < 250
    return text


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -float("inf"), 1e308, -1e308, "12", True, [], {}, 10**400],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["Path", "Rect", "Polygon", "Line", "Circle"])
def test_fault_13_numbers_that_are_none(value: Any, kind: str) -> None:
    for key in ("left", "top", "scaleX", "angle", "strokeWidth"):
        data = copy.deepcopy(GOOD)
        for o in data["objects"]:
            if o["type"] == kind:
                o[key] = value
        text = refused(data)
        assert key in text or "x is" in text or "y is" in text or "stroke width" in text


@pytest.mark.parametrize(
    "data",
    [
        [],
        "objects",
        7,
        {"objects": {}},
        {"objects": "abc"},
        {"objects": [None]},
        {"objects": [[]]},
        {"objects": [{}]},
        {"objects": [{"type": None}]},
        {"objects": [{"type": "Textbox"}]},
        {"objects": [{"type": "Image", "src": "http://example.org/x.png"}]},
        {"objects": [{"type": "Group", "objects": []}]},
        {"objects": [{"type": "Path", "path": "M 0 0 L 9 9"}]},
        {"objects": [{"type": "Path", "path": [["L", 1, 2]]}]},
        {"objects": [{"type": "Path", "path": [["M", 1]]}]},
        {"objects": [{"type": "Path", "path": [["M", 1, 2], ["Q", 1, 2, 3]]}]},
        {"objects": [{"type": "Path", "path": [["A", 1, 2, 3, 4, 5, 6, 7]]}]},
        {"objects": [{"type": "Path", "path": [[["M"], 1, 2]]}]},
        {"objects": [{"type": "Path", "path": [[]]}]},
        {"objects": [{"type": "Path", "path": [None]}]},
        {"objects": [{"type": "Polygon", "points": [[1, 2]]}]},
        {"objects": [{"type": "Polygon", "points": [{"x": 1}, {"x": 1}, {"x": 1}]}]},
        {"objects": [{"type": "Circle", "radius": -4}]},
        {"objects": [{"type": "Rect", "strokeWidth": -1}]},
    ],
)
def test_fault_13_shapes_that_are_none(data: Any) -> None:
    refused(data)


def test_fault_13_missing_keys_take_fabrics_defaults() -> None:
    assert from_canvas_json({}, VIEW) == Drawing()
    assert from_canvas_json({"objects": [{"type": "Path"}]}, VIEW) == Drawing()
    assert from_canvas_json({"objects": [{"type": "Line"}]}, VIEW).arrows == ()
    assert from_canvas_json({"objects": [{"type": "Polygon"}]}, VIEW) == Drawing()
    bare = from_canvas_json({"objects": [{"type": "Rect"}, {"type": "Circle"}]}, VIEW)
    assert bare.loose == Point(0, 0)


def test_fault_13_too_many_objects_and_points() -> None:
    line = GOOD["objects"][-2]
    assert line["type"] == "Line"
    assert "more than 10000 objects" in refused({"objects": [line] * 10_001})
    long = {
        "type": "Path",
        "path": [["M", 0, 0], *[["L", i % 640, i % 480] for i in range(200_001)]],
    }
    assert "more than 200000 points" in refused({"objects": [long]})
    curly = {"type": "Path", "path": [["M", 0, 0], *[["Q", 1e6, 1e6, 0, 0]] * 4000]}
    assert "more than 200000 points" in refused({"objects": [curly]})
    polygon = {"type": "Polygon", "points": [{"x": 1, "y": 2}] * 200_001}
    assert "more than 200000 points" in refused({"objects": [polygon]})


def test_fault_13_the_largest_drawing_is_painted_in_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    at = np.clip(np.cumsum(rng.normal(0, 3, (100_000, 2)), axis=0) + 500, -50, 1050)
    strokes = tuple(
        Stroke(tuple(Point(x, y) for x, y in at[i : i + 10_000].tolist()), 40.0)
        for i in range(0, 100_000, 10_000)
    )
    huge = Stroke((Point(-1e6, -1e6), Point(1e6, 1e6)), 1e6)
    tracemalloc.start()
    try:
        mask = rasterise(Drawing(shapes=strokes), 1000, 800)
        assert 0.005 < mask.mean() < 1
        assert rasterise(Drawing(shapes=(huge,)), 1000, 800).all()
        crowd = Stroke(tuple(Point(i % 7, i % 5) for i in range(50_000)), 1e6)
        assert rasterise(Drawing(shapes=(crowd,)), 1000, 800).all()
        assert tracemalloc.get_traced_memory()[1] < 700_000_000
    finally:
        tracemalloc.stop()


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = [
    "type", "left", "top", "path", "points", "x1", "y1", "x2", "y2", "scaleX", "angle", "skewX",
    "stroke", "strokeWidth", "originX", "originY", "radius", "width", "height", "flipX",
    "strokeUniform", "strokeDashArray", "strokeLineCap",
]  # fmt: skip


@settings(max_examples=400)
@given(st.integers(0, 4), st.sampled_from(KEYS), junk)
def test_fault_13_the_parser_raises_nothing_but_bad_input(index: int, key: str, value: Any) -> None:
    data = copy.deepcopy(GOOD)
    data["objects"][index][key] = value
    try:
        drawing = from_canvas_json(data, VIEW)
    except BadInput:
        return
    assert Drawing.from_json(json.loads(json.dumps(drawing.to_json()))) == drawing
    assert rasterise(drawing, 64, 48).shape == (48, 64)


@given(junk)
def test_fault_13_no_junk_gets_through(value: Any) -> None:
    for read in (lambda v: from_canvas_json(v, VIEW), Drawing.from_json):
        for data in (value, {"objects": value, "shapes": value}, {"arrows": value, "loose": value}):
            try:
                assert isinstance(read(data), Drawing)
            except BadInput:
                continue


@settings(max_examples=200)
@given(st.sampled_from(["arrows", "shapes", "loose", "invert", "format"]), junk)
def test_fault_13_stored_drawings_are_checked_too(key: str, value: Any) -> None:
    data = Drawing((Arrow(PointPair(Point(1, 2), Point(3, 4))),)).to_json()
    data[key] = value
    with contextlib.suppress(BadInput):
        assert isinstance(Drawing.from_json(data), Drawing)
    data = Drawing(shapes=(Rect(1, 2, 3, 4),)).to_json()
    data["shapes"][0]["box"] = value
    with contextlib.suppress(BadInput):
        assert isinstance(Drawing.from_json(data), Drawing)


def test_fault_14_an_odd_click_is_kept_and_blocks_the_run() -> None:
    d = from_canvas_json({"objects": [GOOD["objects"][-1]]}, VIEW)
    assert d.loose == Point(9, 9)
    assert d.arrows == ()
    checks = checklist(d, (640, 480), rasterise(d, 640, 480))
    assert not ready(checks)
    assert checks[0].code is Code.NO_TARGET


def test_fault_17_what_the_checklist_lets_through_the_request_takes() -> None:
    """Handles and targets exactly on and just beyond the border: both sides agree."""
    image = ImageAsset(id="wb1:0", width=100, height=50)
    mask = np.ones((50, 100), bool)
    for x in (-0.6, -0.5, 0.0, 99.0, 99.5, 99.6, 250.0):
        pair = PointPair(Point(50, 25), Point(x, 20))
        passed = ready(checklist(Drawing((Arrow(pair),)), (100, 50), mask))
        if passed:
            EditRequest(image=image, pairs=(pair,))
        else:
            with pytest.raises(BadInput) as caught:
                EditRequest(image=image, pairs=(pair,))
            assert (caught.value.code, caught.value.field) == ("outside-picture", "pairs")
        assert passed == (-0.5 <= x <= 99.5)


@pytest.mark.parametrize(("w", "h"), [(511, 333), (200, 800), (2000, 1500), (8000, 6000)])
@pytest.mark.parametrize("canvas", [344, 688, 1024])
def test_fault_19_a_drawn_arrow_comes_back_within_half_a_pixel(w: int, h: int, canvas: int) -> None:
    """Mouse positions at device scale 2 are halves of a CSS pixel; JSON keeps four digits."""
    view = Viewport.fit(w, h, canvas)
    k = w / canvas
    for hx, hy, tx, ty in ((10.5, 20.0, 100.0, 80.5), (300.0, 200.5, 20.5, 30.0)):
        line = {
            "type": "Line", "originX": "center", "originY": "center",
            "left": round((hx + tx) / 2, 4), "top": round((hy + ty) / 2, 4),
            "x1": (hx - tx) / 2, "y1": (hy - ty) / 2, "x2": (tx - hx) / 2, "y2": (ty - hy) / 2,
            "strokeWidth": 3,
        }  # fmt: skip
        (arrow,) = from_canvas_json({"objects": [line]}, view).arrows
        for got, (x, y) in ((arrow.pair.handle, (hx, hy)), (arrow.pair.target, (tx, ty))):
            assert abs(got.x - x * k) <= 0.5
            assert abs(got.y - y * h / view.canvas_height) <= 0.5


def test_fault_20_empty_and_full_masks_have_a_meaning() -> None:
    arrow = Drawing((Arrow(PointPair(Point(50, 25), Point(60, 25))),))
    for painted, level, code in ((False, "warn", Code.NO_MASK), (True, "ok", Code.MASK_FULL)):
        checks = checklist(arrow, (100, 50), np.full((50, 100), painted))
        assert ready(checks)
        assert (level, code) in [(c.level, c.code) for c in checks]


def test_fault_20_a_handle_that_is_not_covered_warns() -> None:
    mask = np.zeros((50, 100), bool)
    mask[:, 70:] = True
    arrow = Drawing((Arrow(PointPair(Point(20, 25), Point(85, 25))),))
    checks = checklist(arrow, (100, 50), mask)
    assert ready(checks)
    assert Code.HANDLE_OUTSIDE_MASK in [c.code for c in checks]
