"""The drags of the benchmark: held out, balanced, repeatable, true."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from refusals import refusal

from benchmarks import scenes
from training.config import HELD_OUT_SEED

DRAGS = scenes.drag_set(24, 9)


def test_a_set_is_the_same_every_time_and_begins_with_the_shorter_one() -> None:
    again = scenes.drag_set(4, 9)
    assert [d.key for d in again] == [d.key for d in DRAGS[:4]]
    assert [d.pairs for d in again] == [d.pairs for d in DRAGS[:4]]
    assert len({d.key for d in DRAGS}) == len(DRAGS)


def test_no_scene_is_of_the_training_or_of_another_set() -> None:
    other = scenes.drag_set(4, 10)
    seeds = {d.before.seed for d in DRAGS}
    assert min(seeds) >= HELD_OUT_SEED + scenes.OFFSET
    assert not seeds & {d.before.seed for d in other}


def test_kinds_lengths_and_numbers_of_pairs_are_balanced() -> None:
    assert set(Counter(d.kind for d in DRAGS).values()) == {4}
    assert set(Counter(d.bucket for d in DRAGS).values()) == {8}
    pairs = Counter(len(d.pairs) for d in DRAGS)
    assert set(pairs) == {1, 2, 3, 4}
    assert min(pairs.values()) > 2


@pytest.mark.parametrize("drag", DRAGS[::5], ids=lambda d: d.key)
def test_the_arrows_end_where_the_handles_really_are(drag: scenes.Drag) -> None:
    start, end = drag.before.handles, drag.after.handles
    for name, pair in zip(drag.names, drag.pairs, strict=True):
        assert (pair.handle.x, pair.handle.y) == (start[name].x, start[name].y)
        assert (pair.target.x, pair.target.y) == (end[name].x, end[name].y)
        assert drag.bucket[0] - 0.5 <= pair.length <= drag.bucket[1] + 0.5


@pytest.mark.parametrize("drag", DRAGS[::9], ids=lambda d: d.key)
def test_the_mask_holds_all_that_changes_and_the_arrows(drag: scenes.Drag) -> None:
    p = drag.pictures()
    assert (p.region <= p.mask).all()
    assert 0 < p.region.sum() < p.mask.sum() < p.mask.size
    changed = np.abs(p.source.astype(int) - p.truth).max(axis=2)
    assert changed[~p.mask].max() <= 2
    for pair in drag.pairs:
        for point in (pair.handle, pair.target):
            assert p.mask[round(point.y), round(point.x)]


@pytest.mark.parametrize(("count", "seed"), [(0, 1), (1201, 1), (1, -1), (1, 10**6)])
def test_a_bad_set_is_refused(count: int, seed: int) -> None:
    with refusal("out-of-range"):
        scenes.drag_set(count, seed)
