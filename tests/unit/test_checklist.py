"""Undo and redo, editing a drawing, and what the checklist says of it."""

from __future__ import annotations

import numpy as np

from workbench.canvas.checklist import checklist, ready
from workbench.canvas.drawing import Arrow, Drawing, History, Rect
from workbench.core.config import DragConfig
from workbench.core.request import Point, PointPair


def pair(hx: float, hy: float, tx: float, ty: float) -> PointPair:
    return PointPair(Point(hx, hy), Point(tx, ty))


def test_history() -> None:
    a, b, c = (Drawing(arrows=(Arrow(pair(i, 0, 9, 9)),)) for i in range(3))
    h = History().push(a).push(b)
    assert h.push(b) is h
    assert h.undo().present == a
    assert h.undo().redo() == h
    assert h.undo().undo().undo().present == Drawing()
    assert not h.undo().undo().can_undo
    assert h.undo().push(c).redo().present == c
    assert not h.undo().push(c).can_redo
    long = History(limit=3)
    for i in range(10):
        long = long.push(Drawing(arrows=(Arrow(pair(i, 0, 9, 9)),)))
    assert len(long.past) == 3
    assert long.can_undo


def test_editing_a_drawing_leaves_the_old_one() -> None:
    d = Drawing().with_arrow(pair(1, 2, 3, 4)).with_arrow(pair(5, 6, 7, 8))
    assert d.with_pair(0, pair(9, 9, 9, 9)).pairs[0] == pair(9, 9, 9, 9)
    assert d.switched(0, False).pairs == (pair(5, 6, 7, 8),)
    assert d.without_arrow(0).pairs == (pair(5, 6, 7, 8),)
    assert len(d.pairs) == 2
    s = d.with_shape(Rect(0, 0, 5, 5)).inverted()
    assert s.without_mask() == d
    assert s.without_arrows().shapes == s.shapes


def texts(drawing: Drawing, mask: np.ndarray, config: DragConfig | None = None) -> str:
    size = (mask.shape[1], mask.shape[0])
    return " | ".join(f"{c.level}: {c.text}" for c in checklist(drawing, size, mask, config))


def arrows(*given_pairs: PointPair) -> Drawing:
    return Drawing(arrows=tuple(Arrow(p) for p in given_pairs))


def test_checklist_of_a_good_drawing() -> None:
    mask = np.zeros((100, 200), bool)
    mask[20:80, 40:160] = True
    checks = checklist(arrows(pair(80, 50, 110, 50)), (200, 100), mask)
    assert [c.level for c in checks] == ["ok", "ok"]
    assert "1 arrow" in checks[0].text
    assert "36%" in checks[1].text
    assert ready(checks)


def test_checklist_blocks() -> None:
    mask = np.ones((100, 200), bool)
    assert "Draw an arrow" in texts(Drawing(), mask)
    off = Drawing(arrows=(Arrow(pair(1, 1, 9, 9), on=False),))
    assert "switched off" in texts(off, mask)
    outside = texts(arrows(pair(20, 20, 213, 12)), mask)
    assert outside.startswith("block: Arrow 1: the target (213.0, 12.0) is outside the 200x100")
    assert "at most 64" in texts(arrows(*[pair(i, i, i + 9, i) for i in range(70)]), mask)
    assert not ready(checklist(Drawing(), (200, 100), mask))


def test_fault_14_an_odd_number_of_clicks_blocks_and_says_so() -> None:
    d = Drawing(loose=Point(40, 50))
    checks = checklist(d, (200, 100), np.ones((100, 200), bool))
    assert not ready(checks)
    assert "(40, 50) has no target" in checks[0].text


def test_fault_17_degenerate_pairs_are_named() -> None:
    mask = np.ones((200, 200), bool)
    assert "same point" in texts(arrows(pair(9, 9, 9, 9)), mask)
    same = arrows(pair(9, 9, 50, 50), pair(9, 9, 90, 50), pair(9, 9, 50, 50))
    assert "Arrows 1 and 2 pull the same handle" in texts(same, mask)
    assert "Arrows 1 and 3 are the same" in texts(same, mask)
    assert "1 and 2 cross" in texts(arrows(pair(50, 50, 90, 90), pair(90, 50, 50, 90)), mask)
    assert "cross" not in texts(arrows(pair(50, 50, 90, 90), pair(50, 60, 90, 100)), mask)
    assert "more than half" in texts(arrows(pair(0, 0, 199, 199)), mask)


def test_fault_20_masks_and_what_they_mean() -> None:
    d = arrows(pair(50, 50, 80, 50))
    empty = np.zeros((100, 200), bool)
    assert "whole picture may change" in texts(d, empty)
    frozen = DragConfig(method="gooddrag", parity=True)
    assert "freezes" in texts(d, empty, frozen)
    assert "Everything is painted" in texts(d, ~empty)
    away = empty.copy()
    away[80:, :] = True
    assert "the handle is outside the painted area" in texts(d, away)
    assert "the target is outside the painted area" in texts(d, away)
    tight = empty.copy()
    tight[49:52, 20:150] = True
    assert "the handle is at the painted area's edge" in texts(d, tight)
