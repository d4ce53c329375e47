"""The stage in front of the canvas with a real mouse: live warp, grabbing, keys, selection, results.

Numbers of faults are those of the walk-through that `docs/interface.md` lists.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import JOB, Bench, Server, picture
from patience import until
from PIL import Image
from playwright.sync_api import WebSocketRoute, expect

from workbench.canvas.rasterize import rasterise
from workbench.ui import components
from workbench.ui.shell.forms import say

SIZE = (256, 192)
COMPONENTS = Path(components.__file__).parent
LONG = {"lora": {"steps": 2, "batch_size": 1, "rank": 4}, "drag": {"steps": 2000}}


@pytest.fixture
def project(server: Server) -> str:
    """A fresh project with a small picture: two discs on waves."""
    return server.project(picture(*SIZE, seed=3))


def stage_pixels(bench: Bench, part: str) -> np.ndarray:
    """What a layer of the stage shows: uint8 [h, w, 4]."""
    data = bench.page.evaluate(
        """(part) => {
          const find = (n) => n.querySelector(part) || [...n.querySelectorAll("*")]
            .map((m) => m.shadowRoot && find(m.shadowRoot)).find(Boolean);
          return find(document).toDataURL("image/png").split(",")[1];
        }""",
        part,
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def overflow(bench: Bench) -> list[int]:
    """Pixels by which the page is taller and wider than its window."""
    found: list[int] = bench.page.evaluate(
        """() => { const m = document.querySelector("[data-testid=stMain]");
          return [m.scrollHeight - m.clientHeight, m.scrollWidth - m.clientWidth]; }"""
    )
    return found


@pytest.mark.parametrize("window", [(1440, 900), (1280, 720)])
def test_fault_7_the_page_fits_the_window(
    server: Server, new_bench: Any, window: tuple[int, int]
) -> None:
    for shape in ((256, 192), (96, 256)):
        name = server.project(picture(*shape, seed=41))
        bench: Bench = new_bench(viewport={"width": window[0], "height": window[1]})
        bench.open("/drag", project=name)
        expect(bench.canvas).to_have_count(1)
        bench.settle(1.0)
        assert overflow(bench) == [0, 0]
        frame = bench.canvas.bounding_box()
        run = bench.page.get_by_role("button", name="Run", exact=True).bounding_box()
        assert frame is not None
        assert run is not None
        assert frame["y"] + frame["height"] <= window[1]
        assert run["y"] + run["height"] <= window[1]
        # as large as the window allows: it ends at the window's edge or at the column's
        assert frame["y"] + frame["height"] > window[1] - 48 or frame["width"] > 0.6 * window[0]


def test_live_the_picture_bends_while_the_mouse_moves(
    server: Server, bench: Bench, project: str
) -> None:
    bench.open("/drag", project=project)
    expect(bench.canvas).to_have_count(1)
    bench.settle(1.0)
    start, end = bench.on_canvas(77, 102, SIZE), bench.on_canvas(110, 112, SIZE)  # the red disc
    bench.page.mouse.move(*start)
    bench.page.mouse.down()
    bench.page.mouse.move(*end, steps=10)
    bench.page.wait_for_function(
        """() => { const find = (n) => n.querySelector(".wb-warp") || [...n.querySelectorAll("*")]
            .map((m) => m.shadowRoot && find(m.shadowRoot)).find(Boolean);
          return Number(find(document).dataset.frames) > 1; }"""
    )
    bench.page.wait_for_timeout(200)
    bent = stage_pixels(bench, ".wb-warp")
    box = bench.canvas.bounding_box()
    assert box is not None
    x, y = round(end[0] - box["x"]), round(end[1] - box["y"])
    red, green, blue, alpha = bent[y, x].astype(int)
    assert alpha == 255
    assert red > 150 > max(green, blue), "the disc is not under the mouse"
    assert not server.drawing(project).arrows, "it asked the server"
    bench.page.mouse.up()
    bench.settle()
    assert len(server.arrows(project, 1)) == 1


def test_fault_17_ends_are_grabbed_and_nudged(server: Server, bench: Bench, project: str) -> None:
    bench.open("/drag", project=project)
    bench.stroke((60, 80), (100, 50), size=SIZE)
    first = server.arrows(project, 1)[0]
    bench.stroke((100, 50), (140, 70), size=SIZE)  # the target, in one go
    moved = server.drawn(project, lambda d: d.pairs[0].target.x > 130).pairs
    assert len(moved) == 1
    assert moved[0].handle == first.handle
    assert abs(moved[0].target.x - 140) < 1
    assert abs(moved[0].target.y - 70) < 1
    bench.stroke((60, 80), (50, 100), size=SIZE)  # the handle
    pair = server.drawn(project, lambda d: d.pairs[0].handle.x < 55).pairs[0]
    assert abs(pair.handle.x - 50) < 1
    assert pair.target == moved[0].target
    bench.page.keyboard.press("ArrowLeft")
    bench.page.keyboard.press("Shift+ArrowDown")
    bench.settle(0.6)
    nudged = server.drawn(project, lambda d: d.pairs[0].handle.y > pair.handle.y + 9).pairs[0]
    assert nudged.handle.x == pytest.approx(pair.handle.x - 1)
    assert nudged.handle.y == pytest.approx(pair.handle.y + 10)
    bench.page.keyboard.press("Delete")
    bench.settle()
    assert not server.drawn(project, lambda d: not d.arrows).arrows


def test_two_fast_arrows_are_both_kept(server: Server, bench: Bench, project: str) -> None:
    bench.open("/drag", project=project)
    for y in (30, 80, 130, 170):
        bench.stroke((60, y), (90, y + 5), size=SIZE, wait=False)
    bench.settle()
    server.arrows(project, 4)


def test_fault_18_a_polygon_is_dropped_by_esc_and_closed_by_enter(
    server: Server, bench: Bench, project: str
) -> None:
    bench.open("/drag", project=project)
    bench.tool("Polygon")
    corners = [(150.0, 100.0), (220.0, 100.0), (185.0, 160.0)]
    for x, y in corners:
        bench.page.mouse.click(*bench.on_canvas(x, y, SIZE))
    bench.page.keyboard.press("Escape")
    bench.page.keyboard.press("Enter")  # nothing to close: and no run without an arrow
    bench.settle()
    assert not server.drawing(project).shapes
    for x, y in corners:
        bench.page.mouse.click(*bench.on_canvas(x, y, SIZE))
    bench.page.keyboard.press("Enter")
    bench.settle()
    mask = rasterise(server.drawn(project, lambda d: d.has_mask), *SIZE)
    assert mask[115, 185]
    assert 0.03 < mask.mean() < 0.07


def test_fault_19_fast_brush_keys_are_all_counted(
    server: Server, bench: Bench, project: str
) -> None:
    bench.open("/drag", project=project)
    bench.tool("Brush")
    bench.page.mouse.move(*bench.on_canvas(100, 100, SIZE))
    for _ in range(8):
        bench.page.keyboard.press("]")
    expect(bench.page.get_by_role("slider", name="Brush size")).to_have_value("160")
    for _ in range(3):
        bench.page.keyboard.press("[")
    expect(bench.page.get_by_role("slider", name="Brush size")).to_have_value("82")


def test_keys_choose_tools_and_open_the_sheet(server: Server, bench: Bench, project: str) -> None:
    bench.open("/drag", project=project)
    expect(bench.canvas).to_have_attribute("data-tool", "arrow")
    for key, tool in (("b", "brush"), ("e", "eraser"), ("r", "rect"), ("p", "polygon"), ("s", "select"),
                      ("i", "pin"), ("m", "adjust"), ("a", "arrow")):  # fmt: skip
        bench.page.keyboard.press(key)
        expect(bench.canvas).to_have_attribute("data-tool", tool)
    bench.settle()
    bench.page.keyboard.press("?")
    expect(bench.page.get_by_text("Close the polygon, else Run")).to_be_visible()


def test_a_click_selects_shift_adds_and_alt_takes_away(
    server: Server, bench: Bench, project: str
) -> None:
    bench.open("/drag", project=project)
    bench.tool("Select")
    red, blue = (77, 102), (179, 90)  # middles of the discs
    bench.page.mouse.click(*bench.on_canvas(*red, SIZE))
    bench.settle()
    mask = rasterise(server.drawn(project, lambda d: d.has_mask), *SIZE)
    assert mask[red[1], red[0]]
    assert not mask[blue[1], blue[0]]
    assert 0.008 < mask.mean() < 0.03  # the disc is 1.6 % of the picture
    bench.page.keyboard.down("Shift")
    bench.page.mouse.click(*bench.on_canvas(*blue, SIZE))
    bench.page.keyboard.up("Shift")
    bench.settle()
    both = rasterise(server.drawn(project, lambda d: len(d.shapes) > 1), *SIZE)
    assert both[red[1], red[0]]
    assert both[blue[1], blue[0]]
    bench.page.keyboard.down("Alt")
    bench.page.mouse.click(*bench.on_canvas(*red, SIZE))
    bench.page.keyboard.up("Alt")
    bench.settle()
    left = rasterise(server.drawn(project, lambda d: len(d.shapes) == 1), *SIZE)
    assert left[blue[1], blue[0]]
    assert not left[red[1], red[0]]


def test_the_slider_selects_more_and_less_of_the_last_click(
    server: Server, bench: Bench, project: str
) -> None:
    bench.open("/drag", project=project)
    bench.tool("Select")
    bench.page.mouse.click(*bench.on_canvas(77, 102, SIZE))
    bench.settle()
    first = rasterise(server.drawn(project, lambda d: d.has_mask), *SIZE)
    bench.page.get_by_role("slider").focus()
    bench.page.keyboard.press("Home")
    bench.settle()
    less = server.drawn(project, lambda d: rasterise(d, *SIZE).sum() < first.sum())
    assert rasterise(less, *SIZE)[102, 77]
    assert len(less.shapes) == 1


def test_the_wheel_the_keys_and_the_table_say_what_a_handle_holds(
    server: Server, bench: Bench, project: str
) -> None:
    bench.open("/drag", project=project)
    bench.stroke((77, 102), (110, 112), size=SIZE)
    server.arrows(project, 1)
    bench.page.mouse.move(*bench.on_canvas(77, 102, SIZE))
    for _ in range(3):
        bench.page.mouse.wheel(0, -120)
    pair = server.drawn(project, lambda d: d.pairs[0].grow > 0.25).pairs[0]
    assert (pair.grow, pair.move) == (0.3, "auto")
    bench.page.keyboard.press("-")
    bench.page.keyboard.press("t")
    bench.page.keyboard.press("t")
    pair = server.drawn(project, lambda d: d.pairs[0].move == "turn").pairs[0]
    assert (pair.grow, pair.move) == (0.2, "turn")
    bench.page.get_by_text("Arrows", exact=True).click()
    held, moves = (
        bench.page.get_by_label("How much arrow 1 holds"),
        bench.page.get_by_label("How arrow 1 moves"),
    )
    expect(held).to_have_value("0.2")
    expect(moves).to_have_value("turn")
    moves.select_option("stretch")
    server.drawn(project, lambda d: d.pairs[0].move == "stretch")
    bench.settle()
    held.focus()
    bench.page.keyboard.press("Home")
    pair = server.drawn(project, lambda d: d.pairs[0].grow == -1).pairs[0]
    assert pair.move == "stretch"


def test_run_shows_at_the_click_that_it_was_pressed(
    server: Server, bench: Bench, project: str
) -> None:
    bench.open("/drag", project=project)
    bench.stroke((77, 102), (110, 112), size=SIZE)
    run = bench.page.get_by_role("button", name="Run", exact=True)
    expect(run).to_be_enabled()
    before, after = run.evaluate(
        """(button) => {
          const look = () => getComputedStyle(button, "::before").content;
          const before = look();
          button.click();
          return [before, look()];
        }"""
    )  # no time passes between the two: no server was asked
    assert before == "none"
    assert after == '"' + say("draw.starting") + '"'
    expect(bench.page.locator("html[data-wb-run]")).to_have_count(0)


def test_a_pin_is_a_click(server: Server, bench: Bench, project: str) -> None:
    bench.open("/drag", project=project)
    expect(bench.canvas).to_have_attribute("data-tool", "arrow")
    bench.page.keyboard.press("i")
    expect(bench.canvas).to_have_attribute("data-tool", "pin")
    bench.page.mouse.click(*bench.on_canvas(150, 120, SIZE))
    bench.settle()
    (pair,) = server.arrows(project, 1)
    assert pair.length == 0
    assert abs(pair.handle.x - 150) < 1


def test_a_mask_is_loaded_from_a_file(server: Server, bench: Bench, project: str) -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[20:60, 30:90] = 255
    out = io.BytesIO()
    Image.fromarray(mask).save(out, "PNG")
    bench.open("/drag", project=project)
    bench.page.get_by_role("button", name="Mask", exact=True).click()
    bench.page.locator("input[type=file]").first.set_input_files(
        [{"name": "mask.png", "mimeType": "image/png", "buffer": out.getvalue()}]
    )
    bench.settle()
    painted = rasterise(server.drawn(project, lambda d: d.has_mask), *SIZE)
    assert painted[80, 120]
    assert not painted[20, 20]
    assert painted.mean() == pytest.approx(mask.mean() / 255, abs=0.01)


def test_fault_14_and_15_the_mask_is_hatched_and_the_rest_stays_visible(
    server: Server, bench: Bench, project: str
) -> None:
    bench.open("/drag", project=project)
    bench.tool("Rectangle")
    bench.stroke((20, 20), (90, 70), size=SIZE)
    bench.page.wait_for_timeout(300)
    seen = stage_pixels(bench, ".wb-mask")
    k = seen.shape[1] / SIZE[0]
    outside = seen[round(150 * k), round(200 * k)]
    assert tuple(outside[:3]) == (0, 0, 0)
    assert abs(int(outside[3]) - 64) < 4  # three quarters of the picture's light
    inside = seen[round(30 * k) : round(60 * k), round(30 * k) : round(80 * k), 3]
    assert inside.min() < 60 < 150 < inside.max()  # lines, and picture between them
    bench.page.keyboard.press("d")
    bench.page.wait_for_timeout(300)
    assert stage_pixels(bench, ".wb-mask")[round(150 * k), round(200 * k), 3] == 0


def test_fault_34_the_canvas_says_what_it_is(server: Server, bench: Bench, project: str) -> None:
    bench.open("/drag", project=project)
    bench.stroke((60, 80), (100, 50), size=SIZE)
    server.arrows(project, 1)
    stage = bench.page.get_by_role("application")
    expect(stage).to_have_accessible_name("Drawing canvas: Test picture, 256 × 192 px")
    expect(stage).to_have_attribute("tabindex", "0")
    said = bench.page.locator("#wb-said")
    expect(said).to_contain_text("Arrow 1: from 60, 80 to 100, 50, 50 px")
    stage.focus()
    bench.page.keyboard.press("n")  # one more, by keyboard alone
    bench.settle()
    server.arrows(project, 2)
    expect(bench.page.locator(".wb-told")).to_contain_text("Arrow 2")
    for name in ("Zoom in", "Zoom out", "Undo", "Redo"):
        expect(bench.page.get_by_role("button", name=name, exact=True)).to_have_count(1)


def test_fault_3_4_5_run_becomes_progress_and_the_result_takes_the_place(
    server: Server, bench: Bench
) -> None:
    name = server.project(picture(64, 48, seed=6))
    bench.open("/drag", project=name)
    bench.stroke((19, 19), (30, 15), size=(64, 48))
    run = bench.page.get_by_role("button", name="Run", exact=True)
    place = run.bounding_box()
    run.click()
    cancel = bench.page.get_by_role("button", name="Cancel", exact=True)
    expect(cancel).to_be_visible()
    there = cancel.bounding_box()
    assert place is not None
    assert there is not None
    assert abs(there["y"] - place["y"]) < 24, "Cancel is not where Run was"
    expect(run).to_have_count(0)
    expect(bench.page.get_by_role("link", name="Open in Results")).to_be_visible(timeout=JOB)
    shown = bench.page.locator(".wb-shown")
    expect(shown).to_be_visible()
    frame, box = shown.bounding_box(), bench.canvas.bounding_box()
    assert frame == box, "the result is not as large as the canvas"
    (record,) = server.store.records(image=server.store.projects.load(name).image)
    bench.page.mouse.move(*bench.on_canvas(32, 24, (64, 48)))
    bench.page.mouse.down()
    expect(shown).to_be_hidden()  # held: the original
    bench.page.mouse.up()
    expect(shown).to_be_visible()
    with bench.page.expect_download() as waiting:
        bench.page.get_by_role("button", name="Download", exact=True).click()
    assert waiting.value.suggested_filename.endswith(".png")
    bench.page.get_by_role("button", name="Edit arrows").click()
    expect(shown).to_be_hidden()
    bench.page.get_by_role("button", name="Keep dragging from here").click()
    bench.settle(1.0)
    child = bench.query("project")
    assert child != name
    assert record.result is not None
    assert server.store.projects.load(str(child)).image == record.result.image


def test_fault_5_esc_never_cancels_a_job(server: Server, bench: Bench) -> None:
    name = server.project(picture(64, 48, seed=26), **LONG)
    bench.open("/drag", project=name)
    bench.stroke((19, 19), (57, 45), size=(64, 48))
    bench.page.get_by_role("button", name="Run", exact=True).click()
    expect(bench.page.get_by_text("Dragging · step")).to_be_visible(timeout=JOB)
    for _ in range(3):
        bench.page.keyboard.press("Escape")
        bench.page.wait_for_timeout(400)
    expect(bench.page.get_by_text("Dragging · step")).to_be_visible()
    bench.cancel()


def test_two_tabs_draw_at_once_and_the_second_stroke_follows_at_once(
    server: Server, new_bench: Any, project: str
) -> None:
    one, two = new_bench(), new_bench()
    for bench in (one, two):
        bench.open("/drag", project=project)
    one.stroke((30, 30), (50, 34), size=SIZE)
    server.arrows(project, 1)
    two.stroke((30, 60), (50, 64), size=SIZE)  # this tab has not seen the first one
    server.arrows(project, 2)
    for y in (90, 120, 150):  # nor has this one seen the second, and it does not wait
        one.stroke((30, y), (50, y + 4), size=SIZE, wait=False)
    one.settle()
    pairs = server.arrows(project, 5)
    assert sorted(round(p.handle.y) for p in pairs) == [30, 60, 90, 120, 150]
    expect(one.page.locator(".wb-marks text")).to_have_text(["1", "2", "3", "4", "5"])


def test_a_stroke_that_a_busy_server_passed_over_comes_with_the_next_one(
    server: Server, new_bench: Any, project: str
) -> None:
    """A busy server runs once for several messages: it never sees the list that the second one sent."""
    one, two = new_bench(), new_bench()
    holds, drops, held = False, False, []

    def between(route: WebSocketRoute) -> None:
        to_server = route.connect_to_server()
        route.on_message(lambda message: None if drops else to_server.send(message))

        def answer(message: str | bytes) -> None:
            held.append((route, message))
            if not holds:
                release()

        to_server.on_message(answer)

    def release() -> None:
        for route, message in held:
            route.send(message)
        held.clear()

    def stored(count: int) -> None:  # waits in the browser: Python carries its messages
        until(lambda: one.page.wait_for_timeout(50) or len(server.drawing(project).arrows) == count)

    one.page.route_web_socket(re.compile("/_stcore/stream"), between)
    for bench in (one, two):
        bench.open("/drag", project=project)
    one.stroke((30, 30), (50, 34), size=SIZE)
    stored(1)
    two.stroke((30, 60), (50, 64), size=SIZE)
    stored(2)
    holds = True
    one.stroke((30, 90), (50, 94), size=SIZE, wait=False)
    stored(3)
    drops = True
    one.stroke((30, 120), (50, 124), size=SIZE, wait=False)
    one.page.wait_for_timeout(300)
    holds = drops = False
    release()
    expect(one.page.locator(".wb-marks text")).to_have_count(4)
    one.stroke((30, 150), (50, 154), size=SIZE)
    pairs = server.arrows(project, 5)
    assert sorted(round(p.handle.y) for p in pairs) == [30, 60, 90, 120, 150]


def test_fault_16_a_short_arrow_does_not_hide_what_it_drags(
    server: Server, bench: Bench, project: str
) -> None:
    bench.open("/drag", project=project)
    bench.stroke((40, 60), (110, 60), size=SIZE)
    bench.stroke((150, 140), (154, 140), size=SIZE)
    server.arrows(project, 2)
    wide: list[float] = bench.page.locator(".wb-marks circle").evaluate_all(
        "nodes => nodes.map(n => Number(n.getAttribute('r')))"
    )
    long, short = max(wide[:4]), max(w for w in wide[4:8])
    assert short < 0.6 * long
    box = bench.canvas.bounding_box()
    assert box is not None
    assert 2 * short < 4 * box["width"] / SIZE[0]  # a dot is not as wide as the way is long


def test_fault_32_canvas_and_tools_end_at_the_columns_edges(
    server: Server, bench: Bench, project: str
) -> None:
    bench.open("/drag", project=project)
    expect(bench.canvas).to_have_count(1)
    bench.stand_still()
    edges = []
    for name in ("pad_all", "pad_tools", "pad_row", "canvas_box"):
        frame = bench.page.locator(f".st-key-{name}").bounding_box()
        assert frame is not None
        edges.append((round(frame["x"]), round(frame["x"] + frame["width"])))
    assert len(set(edges)) == 1
    card = bench.page.locator(".st-key-card_run").bounding_box()
    head = bench.page.locator(".st-key-wb_head").bounding_box()
    assert card is not None
    assert head is not None
    assert abs(card["x"] + card["width"] - head["x"] - head["width"]) < 2
    assert abs(edges[0][0] - head["x"]) < 2


def test_fault_4_the_result_stays_when_the_runs_last_picture_goes_after_it_has_come(
    bench: Bench,
) -> None:
    code = (COMPONENTS / "shown.js").read_text(encoding="utf-8")
    shown = bench.page.evaluate(
        """async (code) => {
          const show = (await import("data:text/javascript," + encodeURIComponent(code))).default;
          const [live, result] = [{}, {}];
          const leave = show({ parentElement: live, data: { kind: "live", src: "a" } });
          const end = show({ parentElement: result, data: { kind: "result", src: "b" } });
          leave();
          const kept = document.wbShown?.kind;
          end();
          return [kept, document.wbShown];
        }""",
        code,
    )
    assert shown == ["result", None]


def test_fault_36_run_right_after_choosing_a_method_is_not_lost(
    server: Server, bench: Bench, project: str
) -> None:
    bench.open("/drag", project=project)
    bench.stroke((77, 102), (110, 112), size=SIZE)
    run = bench.page.get_by_role("button", name="Run", exact=True)
    expect(run).to_be_enabled()
    bench.page.get_by_role("combobox", name="Method").click()
    bench.page.get_by_role("option", name=re.compile("^GoodDrag")).click()
    run.click()
    until(lambda: len(server.store.projects.load(project).settings.get("jobs", [])) == 1)
    assert server.store.projects.load(project).settings["drag"]["method"] == "gooddrag"
    bench.settle()
