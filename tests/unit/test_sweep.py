"""A sweep's grid, its limits and names, what is found of it in the history, and its pictures."""

from __future__ import annotations

import csv
import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont
from refusals import refusal

from workbench.canvas.sheets import printable
from workbench.core.config import METHODS, DragConfig, LoraConfig
from workbench.core.options import options_of
from workbench.core.record import EditRecord, EditResult, JobState
from workbench.core.request import EditRequest, ImageAsset, ModelRef, Point, PointPair
from workbench.sweeps import (
    METHOD,
    MOST_RUNS,
    PARTS,
    Axis,
    Plan,
    key_of,
    parameter,
    parameters,
    parse_values,
    suggested,
)
from workbench.sweeps.results import (
    Tile,
    estimate,
    grid_sheet,
    metrics_csv,
    outcomes,
    rough_pass,
    verdict,
)

IMAGE = ImageAsset(id="wb1:" + "0" * 32, width=64, height=48)
PAIRS = (PointPair(Point(10, 10), Point(20, 10)), PointPair(Point(30, 30), Point(30, 20)))


def base(**changes: object) -> EditRequest:
    return dataclasses.replace(EditRequest(image=IMAGE, pairs=PAIRS), **changes)  # type: ignore[arg-type]


def plan(*axes: tuple[str, tuple[object, ...]], of: EditRequest | None = None) -> Plan:
    made = tuple(Axis(name, values) for name, values in axes)  # type: ignore[arg-type]
    return Plan(of or base(), made)


def record(
    request: EditRequest, n: int = 0, status: JobState = JobState.DONE, **result: object
) -> EditRecord:
    made = EditResult(**{"image": "wb1:" + "1" * 32, **result}) if status is JobState.DONE else None  # type: ignore[arg-type]
    name = f"01M8478RMQ4VCY84EX5YWD0{n:03d}"
    return EditRecord(id=name, request=request, status=status, result=made, error=None)


# --- the grid -------------------------------------------------------------------------------------------


def test_the_last_axis_gives_the_columns_and_the_others_the_rows() -> None:
    grid = plan(
        (METHOD, ("dragdiffusion", "auto")), ("drag.steps", (5, 9)), ("lora.rank", (2, 4, 8))
    )
    assert (grid.rows, grid.columns) == (4, 3)
    assert grid.column_labels == ["LoRA rank 2", "LoRA rank 4", "LoRA rank 8"]
    assert grid.row_labels[0] == "DragDiffusion, steps 5"
    assert grid.row_labels[-1] == "Auto, steps 9"
    assert [(c.row, c.column) for c in grid.cells] == [(r, c) for r in range(4) for c in range(3)]
    last = grid.cells[-1]
    assert last.values == ("auto", 9, 8)
    assert (last.request.drag.method, last.request.drag.steps, last.request.lora.rank) == (
        "auto",
        9,
        8,
    )
    assert last.name == "Auto, steps 9, LoRA rank 8"
    assert grid.title == "Method × steps × LoRA rank"


def test_one_axis_is_one_row_without_a_name() -> None:
    grid = plan(("drag.steps", (5, 9)))
    assert (grid.rows, grid.row_labels) == (1, [""])
    assert [c.request.drag.steps for c in grid.cells] == [5, 9]


def test_the_own_method_keeps_its_settings_and_another_takes_its_own_defaults() -> None:
    own = DragConfig(steps=33, learning_rate=0.03, composite=False)
    grid = plan((METHOD, METHODS), of=base(drag=own))
    made = {c.request.drag.method: c.request.drag for c in grid.cells}
    assert made["dragdiffusion"] == own
    assert made["gooddrag"].learning_rate == DragConfig.preset("gooddrag").learning_rate
    assert not made["gooddrag"].composite
    gentle = plan((METHOD, METHODS), of=base(drag=DragConfig.preset("dragdiffusion", "gentle")))
    assert gentle.cells[1].request.drag.steps == DragConfig.preset("gooddrag", "gentle").steps


def test_nothing_but_what_is_varied_changes() -> None:
    grid = plan(("inversion.strength", (0.5, 0.8)), ("drag.mask_weight", (0.0, 1.0)))
    for cell in grid.cells:
        same = dataclasses.replace(
            cell.request, inversion=base().inversion, drag=base().drag, lora=base().lora
        )
        assert same == base()
    assert {c.request.inversion.strength for c in grid.cells} == {0.5, 0.8}


def test_cells_that_mean_the_same_edit_share_one_run() -> None:
    grid = plan((METHOD, ("warp", "auto")), ("drag.steps", (5, 9, 20)))
    assert len(grid.cells) == 6
    assert len(grid.runs()) == 4  # a warp has no steps
    assert len({c.key for c in grid.cells}) == 4
    assert [c.key for c in grid.runs()] == list(dict.fromkeys(c.key for c in grid.cells))


@given(st.data())
def test_every_cell_is_a_valid_edit_and_the_file_gives_the_plan_back(data: st.DataObject) -> None:
    names = data.draw(
        st.lists(st.sampled_from(list(parameters())), min_size=1, max_size=2, unique=True)
    )
    axes = tuple(Axis(n, suggested(n, _now(n))) for n in names)
    total = int(np.prod([len(a.values) for a in axes]))
    if total < 2:
        with refusal("run-count"):
            Plan(base(), axes)
        return
    grid = Plan(base(), axes)
    assert len(grid.cells) == grid.rows * grid.columns == total <= MOST_RUNS
    assert Plan.from_raw(grid.raw()) == grid
    assert [c.key for c in Plan.from_raw(grid.raw()).cells] == [c.key for c in grid.cells]


def _now(name: str) -> object:
    if name == METHOD:
        return "dragdiffusion"
    part, field = name.split(".")
    return getattr(getattr(base(), part), field)


# --- limits ---------------------------------------------------------------------------------------------


def test_every_option_can_be_varied_under_its_own_name() -> None:
    known = parameters()
    expected = {f"{p}.{f}" for p, cls in PARTS.items() for f in options_of(cls)} - {"drag.method"}
    assert set(known) == expected | {METHOD}
    assert len({p.label for p in known.values()}) == len(known)


def test_at_most_36_runs_and_at_least_two() -> None:
    wide = tuple(range(1, 38))
    plan(("drag.steps", wide[:36]))
    with refusal("run-count"):
        plan(("drag.steps", wide))
    with refusal("run-count"):
        plan(("drag.steps", (5,)))
    with refusal("run-count"):
        plan(("drag.steps", wide[:8]), ("lora.rank", (1, 2, 3, 4, 5)))


def test_impossible_plans_say_why() -> None:
    with refusal("twice"):
        plan(("drag.steps", (1, 2)), ("drag.steps", (3, 4)))
    with refusal("no-arrow"):
        plan(("drag.steps", (1, 2)), of=base(pairs=()))
    with refusal("axis-count"):
        plan()
    with refusal("unknown-name"):
        Axis("drag.method", ("warp",))
    with refusal("unreadable"):
        Plan.from_raw(b'{"format": 1, "axes": 3}')
    with refusal("newer-format"):
        Plan.from_raw(b'{"format": 99}')


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("drag.steps", "20, 5000", "out-of-range"),
        ("drag.steps", "20, 2.5", "wrong-type"),
        ("drag.learning_rate", "0.1 fast", "wrong-type"),
        ("drag.learning_rate", "nan", "out-of-range"),
        ("lora.rank", "0", "out-of-range"),
        ("drag.composite", "maybe", "wrong-type"),
        ("method", "warp, magic", "out-of-range"),
        ("drag.steps", " , ", "empty"),
    ],
)
def test_a_value_that_is_not_possible_is_named(name: str, text: str, code: str) -> None:
    with refusal(code):
        parse_values(name, text)


def test_values_are_read_as_people_write_them() -> None:
    assert parse_values("drag.steps", "10, 20;40 10") == (10, 20, 40)
    assert parse_values("drag.learning_rate", "1e-2,.02") == (0.01, 0.02)
    assert parse_values("drag.composite", "yes no") == (True, False)
    assert parse_values("method", "warp, auto") == ("warp", "auto")
    assert all(isinstance(v, int) for v in parse_values("drag.steps", "10 20"))


@pytest.mark.parametrize("name", list(parameters()))
def test_suggested_values_are_possible(name: str) -> None:
    of = parameter(name)
    starts = [_now(name), of.default]
    starts += [v for v in (of.option.low, of.option.high) if v is not None]
    for now in starts:
        if of.kind is int and isinstance(now, float):
            now = int(now)
        values = suggested(name, now)  # type: ignore[arg-type]
        assert Axis(name, values).values == values


# --- what came out --------------------------------------------------------------------------------------


def test_cells_are_found_in_the_history_by_what_was_asked_for() -> None:
    grid = plan(("drag.steps", (1, 2, 3, 4, 5)))
    ask = [c.request for c in grid.cells]
    # the run wrote the model's fingerprint into its record: that must not hide it
    done = dataclasses.replace(ask[0], model=ModelRef(name=ask[0].model.name, fingerprint="f" * 8))
    failed = dataclasses.replace(record(ask[1], 2, JobState.FAILED), error="Out of memory.")
    found = outcomes(
        grid,
        [record(done, 1), failed, record(base(seed=9), 3)],
        running=[ask[2]],
        waiting=[ask[3]],
        errors={},
    )
    assert [o.state for o in found] == ["done", "failed", "running", "waiting", "missing"]
    assert found[1].reason == "Out of memory."
    early = outcomes(grid, [], errors={key_of(ask[4]): "The model is not here."})
    assert (early[4].state, early[4].reason) == ("failed", "The model is not here.")


def test_a_later_failure_does_not_hide_a_picture() -> None:
    grid = plan(("drag.steps", (1, 2)))
    ask = grid.cells[0].request
    newest_first = [record(ask, 3, JobState.FAILED), record(ask, 2)]
    assert outcomes(grid, newest_first)[0].record == newest_first[1]


def test_the_table_of_measures() -> None:
    grid = plan((METHOD, ("warp", "auto")), ("drag.steps", (5, 9)))
    results = {"distances": (1.25, 3.75), "iterations": 5, "seconds": {"drag": 2.0, "decode": 0.5},
               "stop": "STEP_LIMIT", "change_outside_mask": 2.0, "cached": ("lora",)}  # fmt: skip
    found = outcomes(
        grid,
        [record(grid.cells[2].request, 1, **results)],
        errors={grid.cells[3].key: 'It said "no", twice.'},
    )
    rows = list(csv.DictReader(io.StringIO(metrics_csv(grid, found))))
    assert [(r["method"], r["drag.steps"]) for r in rows] == [
        ("warp", "5"), ("warp", "9"), ("auto", "5"), ("auto", "9"),
    ]  # fmt: skip
    assert [r["state"] for r in rows] == ["missing", "missing", "done", "failed"]
    assert (rows[2]["left_1_px"], rows[2]["left_2_px"], rows[2]["mean_left_px"]) == (
        "1.250", "3.750", "2.500",
    )  # fmt: skip
    assert (rows[2]["seconds"], rows[2]["drag_seconds"], rows[2]["from_cache"]) == (
        "2.50",
        "2.00",
        "lora",
    )
    assert rows[3]["reason"] == 'It said "no", twice.'
    edit = found[2].record
    assert edit is not None
    assert verdict(edit) == "3.8 px to go, 5 steps"


def test_time_is_estimated_from_earlier_edits_of_the_same_model() -> None:
    seconds = {"lora": 8.0, "invert": 3.5, "reference": 3.5, "drag": 10.0, "denoise": 7.0,
               "decode": 1.0, "save": 0.5}  # fmt: skip
    made = base(lora=LoraConfig(steps=4, batch_size=2), drag=DragConfig(steps=20))
    earlier = [record(made, 1, seconds=seconds, iterations=20)]
    grid = plan(("drag.steps", (40, 80)), of=made)
    runs = [c.request for c in grid.runs()]
    fixed = 7.0 + 1.0 + 0.5
    expected = (40 + 80) * 0.5 + 2 * fixed + 3.5  # the original's pass once
    assert estimate(runs, earlier, prepared=lambda _: (True, True)) == pytest.approx(expected)
    # LoRA and inversion are made once for both
    cold = estimate(runs, earlier, prepared=lambda _: (False, False))
    assert cold == pytest.approx(expected + 8.0 + 3.5)
    # twice the training steps take twice as long
    longer = [dataclasses.replace(r, lora=LoraConfig(steps=8, batch_size=2)) for r in runs]
    assert estimate(longer, earlier, prepared=lambda _: (False, True)) == pytest.approx(
        expected + 16.0
    )
    other = [dataclasses.replace(r, model=ModelRef(name="another")) for r in runs]
    assert estimate(other, earlier, prepared=lambda _: (True, True)) is None
    # what came from the cache took no time and says nothing
    cached = [record(made, 1, seconds={**seconds, "drag": 0.1}, iterations=20, cached=("drag",))]
    assert estimate(runs, cached, prepared=lambda _: (True, True)) == pytest.approx(2 * fixed + 3.5)


def test_fault_9_without_an_earlier_edit_the_time_is_guessed_from_model_and_device() -> None:
    request = base(lora=LoraConfig(steps=10, batch_size=2), drag=DragConfig(steps=20))
    cold = {"prepared": lambda _: (False, False)}
    assert estimate([request], [], **cold) is None
    depth = request.inversion.inverted_steps
    # training, inversion, the original's pass, drag, denoising, decoding, saving
    assert estimate([request], [], **cold, unit=0.5) == pytest.approx(
        0.5 * (20 + depth + depth + 20 + depth + 2)
    )
    assert estimate([request], [], **cold, unit=0.5, stages=("lora",)) == pytest.approx(10.0)
    # a stage that was never measured is guessed, one that was is not
    seconds = {"drag": 40.0, "denoise": 0.0, "decode": 0.0, "save": 0.0}
    made = base(drag=DragConfig(steps=20))
    earlier = [record(made, 1, seconds=seconds, iterations=20)]
    mixed = estimate([request], earlier, **cold, unit=0.5)
    assert mixed == pytest.approx(40.0 + 0.5 * (20 + depth + depth))
    # a draft trains and inverts nothing, and has one move, which an earlier draft has measured
    draft = base(drag=DragConfig(method="auto"))
    seconds = {"look": 3.0, "drag": 2.0, "denoise": 1.0, "decode": 0.5, "save": 0.5}
    drawn = [record(draft, 1, seconds=seconds, iterations=0)]
    assert estimate([draft], drawn, **cold, unit=0.5) == pytest.approx(4.0)  # has been looked at
    assert estimate([draft], [], **cold, unit=0.5, stages=("lora", "invert", "reference")) == 0.0


def test_a_rough_pass_is_within_three_times_of_what_was_measured() -> None:
    # docs/benchmarks.md: 80 steps of 4 pictures, the shipped model on two threads, SD 1.5 on an H100
    for measured, guess in (
        (40.8, rough_pass(35_516_593, 256, gpu=False, threads=2)),
        (4.62, rough_pass(4_265_000_000, 512, gpu=True, threads=16)),
    ):
        assert 1 / 3 < 320 * guess / measured < 3


# --- the sheet ------------------------------------------------------------------------------------------


def test_the_sheet_holds_every_picture_unchanged_in_its_place() -> None:
    colours = [[(200, 30, 30), (30, 200, 30)], [(30, 30, 200), (200, 200, 30)]]
    tiles = [[Tile("note", np.full((64, 64, 3), c, np.uint8)) for c in row] for row in colours]
    made = grid_sheet("A title", ["left", "right"], ["top", "bottom"], tiles, cell=64)
    places = {}
    for row in colours:
        for colour in row:
            ys, xs = np.nonzero((made == colour).all(axis=2))
            assert len(ys) == 64 * 64
            places[colour] = (ys.min(), xs.min())
    assert places[(200, 30, 30)][0] == places[(30, 200, 30)][0] < places[(30, 30, 200)][0]
    assert places[(200, 30, 30)][1] == places[(30, 30, 200)][1] < places[(30, 200, 30)][1]


def test_labels_use_letters_that_the_font_has() -> None:
    font = ImageFont.load_default(20)
    missing = bytes(font.getmask("\uffff"))
    text = printable("Bäume × 2 · “Été” — straße → 中 ≥ 1 …")
    assert text == "Baume x 2 · “Ete” - strasse -> ? >= 1 ..."
    assert all(c == " " or bytes(font.getmask(c)) != missing for c in text)


def test_a_failed_place_is_a_red_reason_and_no_picture() -> None:
    tiles = [
        [Tile("ok", np.full((96, 96, 3), 128, np.uint8)), Tile("Out of memory.", None, failed=True)]
    ]
    made = grid_sheet("", ["a", "b"], [""], tiles, cell=96)
    right = made[:, made.shape[1] // 2 :].astype(int)
    assert ((right[..., 0] - right[..., 1]) > 80).any()
    assert not ((made[:, : made.shape[1] // 2].astype(int) @ (1, -1, 0)) > 80).any()
    with refusal("tile-count"):
        grid_sheet("", ["a"], ["x", "y"], tiles)
