"""Every method through whole edits on a random model: records, run-on, protection, repetition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from edit_bench import Bench

from workbench.accel.cuda import Recorder
from workbench.core.config import METHODS, DragConfig
from workbench.core.record import EditResult, JobState
from workbench.core.request import EditRequest, Point, PointPair
from workbench.diffusion.model import Runtime
from workbench.edit import run_edit
from workbench.editing.crop_plan import look_of, stage_names
from workbench.editing.own_pixels import Candidates
from workbench.imaging.crop import blend_weight
from workbench.warping.layers import plan, render


def request(bench: Bench, method: str, steps: int = 3) -> EditRequest:
    drag = dataclasses.replace(
        DragConfig.preset(method), steps=steps, drag_rounds=1, trackings_per_round=1,
        refine=method == "auto",
    )  # fmt: skip
    return bench.request(drag=drag)


def result(bench: Bench, asked: EditRequest) -> EditResult:
    record = bench.edit(asked)
    assert record.status is JobState.DONE
    assert record.result is not None
    return record.result


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fills_the_record_and_keeps_what_is_unpainted(
    bench: Bench, method: str
) -> None:
    asked = request(bench, method)
    done = result(bench, asked)
    assert done.change_outside_mask == 0
    assert len(done.distances) == 2
    assert all(len(row) == 2 for row in done.trajectory)
    first = [(p.x, p.y) for p in done.trajectory[0]]
    assert np.allclose(first, [(24, 30), (44, 44)], atol=1.5)  # the feature grid's rounding
    assert (done.iterations == 0) == (method == "warp")
    assert len(done.losses) == done.iterations
    source, made = bench.store.image(asked.image.id), bench.store.image(done.image)
    assert (source != made).any()
    assert len(done.found) == 2
    assert all(left >= 0 and -1 <= alike <= 1 for left, alike in done.found)


def draft(bench: Bench, **more: object) -> EditRequest:
    return bench.request(drag=DragConfig.preset("auto"), **more)


def test_a_draft_trains_and_inverts_nothing(bench: Bench) -> None:
    done = result(bench, draft(bench))
    assert not {"lora", "invert", "reference"} & set(done.seconds)
    assert done.iterations == 0
    assert done.change_outside_mask == 0


def test_a_model_that_knows_nothing_leaves_the_moved_picture(bench: Bench) -> None:
    """Random weights: what is delivered is the picture's own pixels, and the record says why."""
    asked = draft(bench)
    done = result(bench, asked)
    assert (done.choice["result"], done.choice["why"]) == ("moved", "model-unfit")
    assert done.knows["level"] == "poorly"
    source, mask = bench.store.image(asked.image.id), bench.store.mask(asked.mask.id)  # type: ignore[union-attr]
    moved = render(plan(source, mask, asked.pairs), source, mask, fine=True)  # type: ignore[arg-type]
    gap = np.abs(bench.store.image(done.image).astype(int) - moved)
    edge = blend_weight(mask, asked.drag.feather) < 1
    assert gap[~edge].max() == 0


def test_the_candidates_are_shown_before_one_is_delivered(bench: Bench) -> None:
    seen: list[Candidates] = []
    engine = dataclasses.replace(bench.engine, on_candidates=seen.append)
    done = run_edit(draft(bench), engine).result
    (both,) = seen
    assert both.name == "draft" and both.moved.shape == both.made.shape == (64, 72, 3)
    assert both.doubt.shape == (64, 72) and 0 <= both.doubt.min() < both.doubt.max() <= 1
    assert (both.moved != both.made).any()
    assert done is not None
    delivered = both.moved if done.choice["result"] == "moved" else both.made
    np.testing.assert_array_equal(bench.store.image(done.image), delivered)


def test_the_models_look_at_a_picture_is_kept(bench: Bench) -> None:
    first = result(bench, draft(bench))
    bench.runtime.forget()
    again = bench.edit(draft(bench, pairs=(PointPair(Point(24, 30), Point(34, 36)),)))
    assert again.result is not None
    assert again.result.knows == first.knows
    assert [e.kind for e in bench.cache.entries()].count("features") == 1


@pytest.mark.parametrize("method", ["warp", "auto"])
def test_every_run_gives_the_same_picture(bench: Bench, method: str) -> None:
    asked = request(bench, method)
    first = result(bench, asked)
    again = bench.edit(asked, fresh=True)
    assert again.result is not None
    assert again.result.image == first.image


def test_auto_runs_on_from_where_it_stopped(bench: Bench) -> None:
    whole = result(bench, request(bench, "auto", 6))
    bench.cache.clear("state")
    half = result(bench, request(bench, "auto", 3))
    rest = result(bench, request(bench, "auto", 6))
    assert "drag" in rest.cached
    assert (half.iterations, rest.iterations) == (3, 6)
    assert rest.losses == whole.losses
    assert rest.trajectory == whole.trajectory
    assert rest.image == whole.image


def test_the_second_drag_of_auto_uses_the_kept_stages(bench: Bench) -> None:
    result(bench, request(bench, "auto"))
    warped = result(bench, request(bench, "warp"))
    assert warped.cached == ("lora", "invert", "reference")
    assert warped.stop == "ONE_STEP"


@pytest.mark.parametrize("method", METHODS)
def test_recorded_work_gives_the_same_picture(
    bench: Bench, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU every forward and step goes through buffers that stay in place; here, too."""
    asked = request(bench, method)
    plain = result(bench, asked)
    bench.cache.clear()
    bench.runtime.forget()
    recorder = Recorder(torch.device("cpu"))
    monkeypatch.setattr(Runtime, "graphs", property(lambda _self: recorder))
    recorded = result(bench, asked)
    assert {"lora", "invert", "reference"} <= set(recorded.seconds)  # all of it was computed anew
    assert not recorded.cached
    assert recorded.image == plain.image
    assert recorded.losses == plain.losses
    assert recorded.trajectory == plain.trajectory


def test_pages_find_the_look_by_its_key_and_read_it(bench: Bench) -> None:
    record = bench.edit(draft(bench))
    assert record.result is not None
    names = stage_names(record.request, bench.store, bench.runtime.native_size)
    raw = bench.cache.get(names.look)
    assert raw is not None
    found = look_of(raw, names.crop.frame)
    assert found.features.box == (0, 0, 72, 64)
    assert found.again.shape[:2] == names.crop.working[::-1]
    assert found.features.similarity(Point(24, 30)).max() <= 1.001
