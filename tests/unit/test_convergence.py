"""The report of each arrow, from positions that were written down by hand."""

from __future__ import annotations

import pytest

from workbench.core.config import DragConfig
from workbench.core.record import Converged, EditResult, StopReason, convergence
from workbench.core.request import Point, PointPair

PAIR = PointPair(Point(10, 10), Point(50, 10))


def report(
    xs: list[float], *, method: str = "dragdiffusion", stop: StopReason = StopReason.STEP_LIMIT
) -> Converged:
    """One arrow of 40 px whose handle was at these x."""
    rows = tuple((Point(x, 10),) for x in xs)
    result = EditResult(
        image="i", trajectory=rows, distances=(abs(50 - xs[-1]),), stop=stop.name
    )  # fmt: skip
    return convergence((PAIR,), result, DragConfig.preset(method), 2.0)[0]


def test_a_drag_that_arrives() -> None:
    found = report([10, 14, 20, 26, 32, 38, 44, 48], stop=StopReason.REACHED)
    assert (found.number, found.length, found.left, found.nearest) == (1, 40, 2, 2)
    assert found.arrived
    assert found.jumps == ()
    assert found.sentence == ""
    assert found.share == pytest.approx(0.95)


def test_a_leap_is_named_with_its_step() -> None:
    """One turn of dragdiffusion moves by 1 grid px: 2 image px; 6 is allowed."""
    found = report([10, 16, 22, 29, 40])
    assert found.jumps == (3, 4)
    assert found.sentence.startswith("Arrow 1: tracking jumped at step 3 and 1 more")
    assert report([10, 16, 22, 29, 40], method="gooddrag").jumps == ()


def test_slipping_back_is_told() -> None:
    found = report([10, 16, 22, 28, 34, 28, 22, 16])
    assert (found.left, found.nearest, found.arrived) == (34, 16, False)
    assert "within 16.0 px of its target and slipped back to 34.0 px" in found.sentence


def test_the_warped_start_is_no_jump() -> None:
    assert report([10, 50, 48, 50], method="auto").jumps == ()
    assert report([10, 50, 20, 50], method="auto").jumps == (1, 2)
    assert report([10, 49], method="warp").jumps == ()


def test_a_record_without_positions_counts_as_not_begun() -> None:
    found = convergence((PAIR,), EditResult(image="i"), DragConfig(), 2.0)[0]
    assert (found.left, found.nearest, found.arrived, found.jumps) == (40, 40, False, ())
    still = PointPair(Point(3, 3), Point(3, 3))
    assert convergence((still,), EditResult(image="i"), DragConfig(), 2.0)[0].share == 1
