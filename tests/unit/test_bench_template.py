"""The template locator on motions that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from workbench.core.request import Point, PointPair
from workbench.drag.tracking import Disc, Template

U8 = np.ndarray


def scene(angle: float = 0.0, shift: tuple[int, int] = (0, 0)) -> U8:
    """A crooked thing of several colours at (100, 90), turned and shifted, on a soft ground."""
    y, x = np.mgrid[:200, :220].astype(np.float64)
    a = np.radians(angle)
    dx, dy = x - 100 - shift[0], y - 90 - shift[1]
    u, v = np.cos(a) * dx + np.sin(a) * dy, -np.sin(a) * dx + np.cos(a) * dy
    rgb = np.stack([140 + 0 * x, 150 + x / 6, 170 - y / 8], axis=-1)
    rgb[(np.abs(u) < 14) & (np.abs(v) < 9)] = (200, 60, 50)
    rgb[(u > 2) & (u < 10) & (np.abs(v) < 20)] = (40, 60, 160)
    rgb[((u + 8) ** 2 + (v + 5) ** 2) < 16] = (250, 230, 90)
    return np.clip(rgb, 0, 255).astype(np.uint8)


PAIR = PointPair(Point(100, 90), Point(124, 102))


def test_what_moved_is_found_where_it_is() -> None:
    found = Template().find(scene(), scene(shift=(24, 12)), PAIR)
    assert found.point.distance(Point(124, 102)) < 0.3
    assert found.score > 0.98


def test_what_stayed_is_found_where_it_was() -> None:
    found = Template().find(scene(), scene(), PAIR)
    assert found.point.distance(PAIR.handle) < 0.1
    assert found.score == pytest.approx(1, abs=1e-3)


def test_what_stopped_half_way_is_found_half_way() -> None:
    found = Template().find(scene(), scene(shift=(12, 6)), PAIR)
    assert found.point.distance(Point(112, 96)) < 0.3


@pytest.mark.parametrize("angle", [-40, 22, 55])
def test_what_turned_is_found(angle: float) -> None:
    found = Template().find(scene(), scene(angle, (24, 12)), PAIR)
    assert found.point.distance(Point(124, 102)) < 1.5


def test_what_is_gone_is_not_alike() -> None:
    empty = np.full((200, 220, 3), 150, np.uint8)
    assert Template().find(scene(), empty, PAIR).score < 0.3


def test_it_grows_with_the_picture() -> None:
    def big(rgb: U8) -> U8:
        return np.array(Image.fromarray(rgb).resize((660, 600), Image.Resampling.BICUBIC))

    pair = PointPair(Point(301, 271), Point(373, 307))
    found = Template().find(big(scene()), big(scene(shift=(24, 12))), pair)
    assert found.point.distance(pair.target) < 1.5


def test_the_search_disc_holds_both_ends_and_overshoot() -> None:
    disc = Disc.around(PointPair(Point(0, 0), Point(40, 0)))
    assert disc.centre == Point(20, 0) and disc.radius == 40
    short = Disc.around(PointPair(Point(0, 0), Point(8, 0)))
    assert short.radius == 20


def test_features_at_the_edge_are_searched_without_failing() -> None:
    pair = PointPair(Point(1, 2), Point(218, 198))
    found = Template().find(scene(), scene(), pair)
    assert 0 <= found.point.x < 220 and 0 <= found.point.y < 200
