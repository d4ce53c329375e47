"""Undo and redo, editing a drawing, and what the checklist says of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from workbench.canvas.checklist import (
    Code,
    Finding,
    check_model,
    check_prompt,
    check_request,
    checklist,
    ready,
    tokens,
)
from workbench.canvas.drawing import Arrow, Drawing, History, Rect
from workbench.core.config import DragConfig, LoraRef
from workbench.core.request import EditRequest, ImageAsset, Point, PointPair


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
    s = dataclasses.replace(d, shapes=(*d.shapes, Rect(0, 0, 5, 5))).inverted()
    assert s.without_mask() == d
    assert s.without_arrows().shapes == s.shapes


def codes(drawing: Drawing, mask: np.ndarray, config: DragConfig | None = None) -> list[str]:
    """Each finding as "level code arrows"."""
    found = checklist(drawing, (mask.shape[1], mask.shape[0]), mask, config)
    return [" ".join((f.level, f.code, *map(str, f.arrows))) for f in found]


def arrows(*given_pairs: PointPair) -> Drawing:
    return Drawing(arrows=tuple(Arrow(p) for p in given_pairs))


def test_checklist_of_a_good_drawing() -> None:
    mask = np.zeros((100, 200), bool)
    mask[20:80, 40:160] = True
    checks = checklist(arrows(pair(80, 50, 110, 50)), (200, 100), mask)
    assert [(c.level, c.code) for c in checks] == [("ok", Code.ARROWS), ("ok", Code.MASK_AREA)]
    assert checks[0].values["count"] == 1
    assert checks[1].values["share"] == "36%"
    assert ready(checks)


def test_checklist_blocks() -> None:
    mask = np.ones((100, 200), bool)
    assert codes(Drawing(), mask)[0] == "block no-arrow"
    assert not ready(checklist(Drawing(), (200, 100), mask))
    off = Drawing(arrows=(Arrow(pair(1, 1, 9, 9), on=False),))
    assert codes(off, mask)[0] == "block arrows-off"
    outside = checklist(arrows(pair(20, 20, 213, 12)), (200, 100), mask)[0]
    assert (outside.level, outside.code, outside.arrows) == ("block", Code.OUTSIDE_PICTURE, (1,))
    assert outside.values == {"end": "target", "x": 213, "y": 12, "width": 200, "height": 100}
    many = arrows(*[pair(i, i, i + 9, i) for i in range(70)])
    assert codes(many, mask)[0] == "block too-many-arrows"


def test_fault_14_an_odd_number_of_clicks_blocks_and_says_so() -> None:
    d = Drawing(loose=Point(40, 50))
    checks = checklist(d, (200, 100), np.ones((100, 200), bool))
    assert not ready(checks)
    assert (checks[0].code, checks[0].values) == (Code.NO_TARGET, {"x": 40, "y": 50})


def test_fault_17_degenerate_pairs_are_named() -> None:
    mask = np.ones((200, 200), bool)
    assert codes(arrows(pair(9, 9, 9, 9)), mask)[:2] == ["block no-arrow", "ok holds-still 1"]
    pinned = codes(arrows(pair(9, 9, 9, 9), pair(60, 60, 90, 60)), mask)
    assert pinned[0] == "ok holds-still 1"
    same = arrows(pair(9, 9, 50, 50), pair(9, 9, 90, 50), pair(9, 9, 50, 50))
    found = codes(same, mask)
    assert "warn same-handle 1 2" in found
    assert "warn same-arrows 1 3" in found
    crossing = arrows(pair(50, 50, 90, 90), pair(90, 50, 50, 90))
    assert "warn crossing 1 2" in codes(crossing, mask)
    beside = arrows(pair(50, 50, 90, 90), pair(50, 60, 90, 100))
    assert "warn crossing 1 2" not in codes(beside, mask)
    assert "warn long-arrow 1" in codes(arrows(pair(0, 0, 199, 199)), mask)


def test_fault_20_masks_and_what_they_mean() -> None:
    d = arrows(pair(50, 50, 80, 50))
    empty = np.zeros((100, 200), bool)
    assert "warn no-mask" in codes(d, empty)
    frozen = DragConfig(method="gooddrag", parity=True)
    assert "warn frozen" in codes(d, empty, frozen)
    assert "ok mask-full" in codes(d, ~empty)
    away = empty.copy()
    away[80:, :] = True
    assert {"warn handle-outside-mask 1", "warn target-outside-mask 1"} <= set(codes(d, away))
    tight = empty.copy()
    tight[49:52, 20:150] = True
    assert "warn mask-edge 1" in codes(d, tight)


def test_every_code_has_a_sentence_and_data() -> None:
    """A finding of each code is told and sent without one value lacking."""
    everything = {
        "count": 2, "limit": 64, "x": 1.0, "y": 2.0, "end": "handle", "width": 9, "height": 9,
        "length": 3.0, "share": "3%", "s": "s", "place": "x", "name": "mine", "model": "m", "suits": "n",
    }  # fmt: skip
    for code in Code:
        found = Finding("warn", code, (1, 2), everything)
        assert "{" not in found.text
        assert found.text.endswith(".")
        assert found.to_json()["code"] == code.value


def test_an_inverted_mask_is_called_that() -> None:
    mask = np.ones((100, 200), bool)
    mask[30:70, 30:100] = False
    found = codes(arrows(pair(50, 50, 80, 50)), mask)
    assert "warn mask-inverted" in found
    assert not any("outside-mask" in f for f in found)
    assert "ok mask-area" in found  # the share is always said


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a robot, grey (and old), on a table", []),
        ("a (big:1.3) robot", ["prompt-weights"]),
        ("a ((big)) robot", ["prompt-weights"]),
        ("robot <lora:comic:0.8>", ["prompt-lora"]),
        ("robot, embedding:easynegative", ["prompt-embedding"]),
        ("robot <easynegative>", ["prompt-embedding"]),
        ("a {red|blue} robot", ["prompt-choices"]),
        ("a [red|blue] robot", ["prompt-choices"]),
        ("a __colour__ robot", ["prompt-choices"]),
        ("a robot BREAK a cat", ["prompt-choices"]),
        ("robot " * 75, []),
        ("robot " * 76, ["prompt-long"]),
    ],
)
def test_what_a_prompt_says_in_vain(prompt: str, expected: list[str]) -> None:
    assert [f.code for f in check_prompt(prompt)] == expected


@pytest.mark.parametrize(
    ("text", "count"),
    [("a photo of a cat", 5), ("", 0), ("antidisestablishmentarianism", 5), ("🤖", 2)],
)
def test_tokens_are_clips(text: str, count: int) -> None:
    """As CLIPTokenizer counts them, made of the same merges (see test_models_single_file)."""
    from types import SimpleNamespace

    from workbench.diffusion.registry.files import STANDARD
    from workbench.diffusion.registry.loading import _tokenizers

    files = SimpleNamespace(root=STANDARD / "sd15", is_sdxl=False,
                            config=lambda _part: {"hidden_size": 768}, spec=None)  # fmt: skip
    (tokenizer,) = _tokenizers(files)  # type: ignore[arg-type]
    assert tokens(text) == len(tokenizer(text).input_ids) - 2
    assert abs(tokens(text) - count) <= 2


def test_a_request_is_checked_as_the_page_checks_a_drawing() -> None:
    mask = np.zeros((100, 200), bool)
    mask[20:80, 10:160] = True
    drawing = arrows(pair(80, 50, 110, 50), pair(80, 50, 90, 20), pair(5, 5, 30, 30))
    image = ImageAsset(id="wb1:0", width=200, height=100)
    request = EditRequest(image=image, pairs=drawing.pairs, prompt="a (big:2) robot")
    page = [*checklist(drawing, (200, 100), mask, request.drag), *check_prompt(request.prompt)]
    assert sorted(map(str, check_request(request, mask))) == sorted(map(str, page))


def test_fault_1_a_model_that_does_not_know_the_picture_is_said_before_the_run() -> None:
    auto, classic = DragConfig(method="auto"), DragConfig(method="dragdiffusion")

    def codes(model: str, drag: DragConfig, suits: str, level: str) -> list[Code]:
        found = check_model(model, drag, suits=suits, level=level)
        assert all(f.level == "warn" for f in found)
        return [f.code for f in found]

    assert codes("storybook", auto, "album", "") == [Code.MODEL_UNSUITED]
    assert codes("storybook", auto, "storybook", "well") == []
    assert codes("album", auto, "storybook", "partly") == []  # it knows drawings, too
    assert codes("album", auto, "album", "poorly") == [Code.MODEL_POOR_KEEPS]
    assert codes("album", classic, "album", "poorly") == [Code.MODEL_POOR]


def test_a_lora_that_a_draft_does_not_use_is_said() -> None:
    asset = ImageAsset(id="a" * 64, width=64, height=48)
    lora = LoraRef(id="b" * 64, name="mine")
    found = {}
    for name, drag in {
        "draft": DragConfig(method="auto"),
        "refined": DragConfig(method="auto", refine=True),
        "optimised": DragConfig(method="dragdiffusion"),
    }.items():
        for file in (None, lora):
            request = EditRequest(
                image=asset, pairs=(pair(9, 9, 20, 20),), drag=drag, lora_file=file
            )
            codes = [f.code for f in check_request(request, None) if f.level == "warn"]
            found[name, file is not None] = Code.LORA_UNUSED in codes
    assert [case for case, said in found.items() if said] == [("draft", True)]
