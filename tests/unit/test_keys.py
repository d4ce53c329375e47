"""Keys: frozen, stable under order, changed by all that affects pixels and by nothing else."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.core import keys
from workbench.core.config import (
    METHODS,
    DragConfig,
    GenerationConfig,
    InversionConfig,
    LoraConfig,
    LoraRef,
)
from workbench.core.options import options_of
from workbench.core.request import EditRequest, ImageAsset, MaskAsset, ModelRef, Point, PointPair

IMAGE = ImageAsset(id="wb1:" + "1" * 32, width=64, height=48, name="a.png")
REQUEST = EditRequest(
    image=IMAGE,
    mask=MaskAsset(id="wb1:" + "2" * 32, width=64, height=48),
    pairs=(PointPair(Point(10, 12), Point(20.5, 12)), PointPair(Point(3, 4), Point(3, 9))),
    prompt="a robot at dusk – ξ",
    model=ModelRef(name="storybook", fingerprint="wb1:" + "3" * 32),
    seed=7,
)

# What a key is today. If one of these changes, every cache and every "same edit" in the world is
# lost: raise the stage's ALGO number only when its arithmetic changed, and write the new key here.
GOLDEN = {
    "empty": "wb1:43b690e215391cb7ff226b763e796946",
    "lora": "wb1:8d581fbe17d2605bf6d7db462c40499d",
    "inversion": "wb1:4216d90fd72adbaa6919737348392fff",
    "edit": "wb1:b744783a1fff9c49de8788177f1d4c4c",
    "edit without lora": "wb1:16257cc9491f6ca8369b6fd14dff7e2e",
    "pixels": "wb1:86d115f30d9e5bde6118b7955276c960",
}


def frozen_keys() -> dict[str, str | None]:
    lora = keys.lora_key(IMAGE.id, "m", "p", LoraConfig(), 0)
    bare = dataclasses.replace(REQUEST, lora=LoraConfig(steps=0), mask=None, working_size=256)
    return {
        "empty": keys.key("x"),
        "lora": lora,
        "inversion": keys.inversion_key(IMAGE.id, "m", lora, "p", InversionConfig()),
        "edit": keys.edit_key(REQUEST),
        "edit without lora": keys.edit_key(bare),
        "pixels": keys.pixels_key("RGB", 2, 1, bytes(range(6))),
    }


def other(cls: type[Any], name: str, value: Any) -> Any:
    """A valid value of an option that differs from `value`."""
    kind, _default, opt = options_of(cls)[name]
    if kind is bool:
        return not value
    if opt.choices:
        return next(c for c in opt.choices if c != value)
    if kind is int:
        return value + 1 if opt.high is None or value + 1 <= opt.high else value - 1
    nudged = value * 1.25 if value else 0.5
    return nudged if opt.high is None or nudged <= opt.high else value * 0.75


def option_fields() -> list[tuple[str, str]]:
    parts = {"lora": LoraConfig, "inversion": InversionConfig, "drag": DragConfig}
    return [(part, f) for part, cls in parts.items() for f in options_of(cls)]


@pytest.mark.parametrize("name", GOLDEN)
def test_frozen_requests_keep_their_keys(name: str) -> None:
    assert frozen_keys()[name] == GOLDEN[name]


def test_keys_do_not_depend_on_the_process() -> None:
    """Python's own hash is salted per process; ours must be the same in the next one."""
    import subprocess
    import sys

    code = "from workbench.core import keys; print(keys.key('a', {'x': 1, 'y': [None, 'ü', 0.1]}))"
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert runs == {keys.key("a", {"y": [None, "ü", 0.1], "x": 1}).encode() + b"\n"}


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), min_size=2))
def test_order_of_a_dict_does_not_count(data: dict[str, Any]) -> None:
    turned = dict(reversed(data.items()))
    assert keys.key("k", data) == keys.key("k", turned)
    assert keys.canonical(data) == keys.canonical(json.loads(keys.canonical(turned)))


def test_every_option_belongs_to_a_config() -> None:
    """All fields of the configs are options: none can escape the loop below."""
    for cls in (LoraConfig, InversionConfig, DragConfig):
        assert set(options_of(cls)) == {f.name for f in dataclasses.fields(cls)}


@pytest.mark.parametrize(("part", "name"), option_fields())
def test_every_option_changes_the_key(part: str, name: str) -> None:
    config = getattr(REQUEST, part)
    changed = dataclasses.replace(
        config, **{name: other(type(config), name, getattr(config, name))}
    )
    assert keys.edit_key(dataclasses.replace(REQUEST, **{part: changed})) != keys.edit_key(REQUEST)


CHANGES: dict[str, Any] = {
    "image": dataclasses.replace(IMAGE, id="wb1:" + "9" * 32),
    "mask": None,
    "pairs": REQUEST.pairs[:1],
    "prompt": REQUEST.prompt + " ",
    "model": ModelRef(name="storybook", fingerprint="wb1:" + "4" * 32),
    "lora": LoraConfig(steps=81),
    "inversion": InversionConfig(steps=51),
    "drag": DragConfig(steps=81),
    "seed": 8,
    "working_size": 512,
    "crop": False,
    "lora_file": LoraRef(id="wb1:" + "5" * 32),
    "style": LoraRef(id="wb1:" + "5" * 32, weight=0.5),
    "generation": GenerationConfig(seed=3),
}
SILENT: dict[str, Any] = {"parent": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}


def test_every_field_of_a_request_is_decided_about() -> None:
    """A new field must be entered above: does it affect pixels or not?"""
    assert {f.name for f in dataclasses.fields(EditRequest)} == set(CHANGES) | set(SILENT)


@pytest.mark.parametrize("name", CHANGES)
def test_what_affects_pixels_changes_the_key(name: str) -> None:
    changed = dataclasses.replace(REQUEST, **{name: CHANGES[name]})
    assert keys.edit_key(changed) != keys.edit_key(REQUEST)


@pytest.mark.parametrize("name", SILENT)
def test_what_does_not_affect_pixels_leaves_the_key(name: str) -> None:
    changed = dataclasses.replace(REQUEST, **{name: SILENT[name]})
    assert keys.edit_key(changed) == keys.edit_key(REQUEST)


@pytest.mark.parametrize("name", sorted(options_of(GenerationConfig)))
def test_every_option_of_a_generation_changes_the_key(name: str) -> None:
    value = {"negative_prompt": "x", "width": 64, "height": 64}.get(name)
    first = GenerationConfig()
    changed = value or other(GenerationConfig, name, getattr(first, name))
    made = [
        keys.edit_key(dataclasses.replace(REQUEST, generation=g))
        for g in (first, dataclasses.replace(first, **{name: changed}))
    ]
    assert made[0] != made[1]


@pytest.mark.parametrize("name", ["lora_file", "style"])
def test_weight_of_a_lora_counts_and_its_name_does_not(name: str) -> None:
    def made(**more: Any) -> str:
        ref = LoraRef(id="wb1:" + "5" * 32, **more)
        return keys.edit_key(dataclasses.replace(REQUEST, **{name: ref}))

    assert made() == made(name="a pretty one") != made(weight=0.5)


def test_a_style_of_no_weight_is_none() -> None:
    style = LoraRef(id="wb1:" + "5" * 32, weight=0)
    assert keys.edit_key(dataclasses.replace(REQUEST, style=style)) == keys.edit_key(REQUEST)


def test_names_leave_the_key() -> None:
    renamed = dataclasses.replace(
        REQUEST,
        image=dataclasses.replace(IMAGE, name="other.jpg"),
        model=dataclasses.replace(REQUEST.model, name="a folder", revision="2"),
    )
    assert keys.edit_key(renamed) == keys.edit_key(REQUEST)


def test_order_of_the_pairs_counts_and_whole_numbers_equal_floats() -> None:
    turned = dataclasses.replace(REQUEST, pairs=REQUEST.pairs[::-1])
    assert keys.edit_key(turned) != keys.edit_key(REQUEST)
    whole = dataclasses.replace(REQUEST, drag=DragConfig(feather=3))
    assert keys.edit_key(whole) == keys.edit_key(REQUEST)


def test_without_lora_its_options_do_not_count() -> None:
    a = dataclasses.replace(REQUEST, lora=LoraConfig(steps=0))
    b = dataclasses.replace(REQUEST, lora=LoraConfig(steps=0, rank=4))
    assert keys.lora_key(IMAGE.id, "m", "p", a.lora, 0) is None
    assert keys.edit_key(a) == keys.edit_key(b) != keys.edit_key(REQUEST)


def test_stages_chain() -> None:
    """A change upstream changes all keys downstream, and nothing upstream of it."""
    lora = keys.lora_key(IMAGE.id, "m", "p", LoraConfig(), 0)
    longer = keys.lora_key(IMAGE.id, "m", "p", LoraConfig(steps=81), 0)
    config = InversionConfig()
    assert lora != longer
    assert keys.inversion_key(IMAGE.id, "m", lora, "p", config) != keys.inversion_key(
        IMAGE.id, "m", longer, "p", config
    )
    drag = dataclasses.replace(REQUEST, drag=DragConfig(steps=5))
    for request in (REQUEST, drag):
        assert keys.lora_key(IMAGE.id, "m", "p", request.lora, 0) == lora


@pytest.mark.parametrize("algo", ["ALGO_LORA", "ALGO_INVERT", "ALGO_DRAG"])
def test_algorithm_numbers_are_in_the_edit_key(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys.edit_key(REQUEST)
    monkeypatch.setattr(keys, algo, getattr(keys, algo) + 1)
    assert keys.edit_key(REQUEST) != before


def test_a_method_that_changed_has_new_keys_and_leaves_the_others_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways = [dataclasses.replace(REQUEST, drag=DragConfig(method=m)) for m in METHODS]
    before = [keys.edit_key(r) for r in ways]
    monkeypatch.setitem(keys.ALGO_METHOD, "auto", keys.ALGO_METHOD.get("auto", 1) + 1)
    after = [keys.edit_key(r) for r in ways]
    assert [m for m, a, b in zip(METHODS, before, after, strict=True) if a != b] == ["auto"]


def test_kinds_and_sizes_never_collide() -> None:
    assert keys.key("a", 1) != keys.key("b", 1)
    raw = bytes(12)
    shapes = [("RGB", 2, 2), ("RGB", 4, 1), ("RGB", 1, 4), ("L", 4, 3)]
    assert len({keys.pixels_key(*s, raw) for s in shapes}) == len(shapes)


def test_nan_has_no_key() -> None:
    with pytest.raises(ValueError, match="JSON"):
        keys.key("k", float("nan"))
