"""The data: JSON there and back, ranges, and words for what is wrong (docs/faults.md 12, 17, 20, 21, 23)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal

from workbench.core.config import (
    METHODS,
    STRENGTHS,
    DragConfig,
    GenerationConfig,
    InversionConfig,
    LoraConfig,
    LoraRef,
)
from workbench.core.errors import BadInput
from workbench.core.options import (
    from_mapping,
    option,
    options_of,
    range_text,
)
from workbench.core.record import (
    RECORD_FORMAT,
    EditRecord,
    EditResult,
    JobState,
    StopReason,
    Way,
)
from workbench.core.request import (
    MAX_PAIRS,
    MAX_PROMPT,
    EditRequest,
    ImageAsset,
    MaskAsset,
    ModelRef,
    Point,
    PointPair,
)

CONFIGS = (LoraConfig, InversionConfig, DragConfig)
IMAGE = ImageAsset(id="wb1:" + "1" * 32, width=64, height=48)


def option_value(cls: type[Any], name: str) -> st.SearchStrategy[Any]:
    kind, _default, opt = options_of(cls)[name]
    if kind is bool:
        return st.booleans()
    if opt.choices:
        return st.sampled_from(opt.choices)
    if kind is int:
        return st.integers(int(opt.low or 0), int(opt.high or 0))
    return st.floats(opt.low, opt.high)


def configs(cls: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{n: option_value(cls, n) for n in options_of(cls)})


numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
pairs = st.builds(
    PointPair,
    st.builds(Point, st.floats(-0.5, 63.5), st.floats(-0.5, 47.5)),
    st.builds(Point, st.floats(-0.5, 63.5), st.floats(-0.5, 47.5)),
)
requests = st.builds(
    EditRequest,
    image=st.builds(ImageAsset, id=words, width=st.just(64), height=st.just(48), name=words),
    pairs=st.lists(pairs, max_size=4).map(tuple),
    mask=st.none() | st.just(MaskAsset(id="wb1:" + "2" * 32, width=64, height=48)),
    prompt=words,
    model=st.builds(ModelRef, name=words, revision=words, fingerprint=words),
    lora=configs(LoraConfig),
    inversion=configs(InversionConfig),
    drag=configs(DragConfig),
    seed=st.integers(0, 2**63 - 1),
    working_size=st.just(0) | st.integers(64, 4096),
    crop=st.booleans(),
    lora_file=st.none() | st.builds(LoraRef, id=words, name=words, weight=st.floats(-4, 4)),
    style=st.none() | st.builds(LoraRef, id=words, name=words, weight=st.floats(-4, 4)),
    generation=st.none() | st.builds(GenerationConfig, negative_prompt=words, width=st.just(64)),
    parent=st.none() | words,
)
points = st.builds(Point, numbers, numbers)
results = st.builds(
    EditResult,
    image=words,
    trajectory=st.lists(st.lists(points, max_size=3).map(tuple), max_size=3).map(tuple),
    distances=st.lists(numbers, max_size=3).map(tuple),
    change_outside_mask=numbers,
    iterations=st.integers(0, 2000),
    losses=st.lists(numbers, max_size=5).map(tuple),
    stop=st.sampled_from([s.name for s in StopReason]),
    seconds=st.dictionaries(words, numbers, max_size=3),
    cached=st.lists(words, max_size=2).map(tuple),
    notices=st.lists(words, max_size=2).map(tuple),
    strip=st.none() | words,
    frames=st.lists(words, max_size=2).map(tuple),
)
records = st.builds(
    EditRecord,
    id=words,
    request=requests,
    status=st.sampled_from([s for s in JobState if s.ended]),
    result=st.none() | results,
    error=st.none() | words,
    started=words,
    finished=words,
    environment=st.dictionaries(words, words, max_size=3),
)


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


@given(requests)
def test_request_round_trip(request: EditRequest) -> None:
    assert EditRequest.from_json(through_json(request.to_json())) == request


@given(records)
def test_record_round_trip(record: EditRecord) -> None:
    assert EditRecord.from_json(through_json(record.to_json())) == record


@pytest.mark.parametrize("cls", CONFIGS)
def test_config_round_trip(cls: type[Any]) -> None:
    @given(configs(cls))
    def holds(config: Any) -> None:
        assert from_mapping(cls, through_json(dataclasses.asdict(config))) == config

    holds()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_no_json_crashes_the_readers(data: Any) -> None:
    for reader in (EditRequest.from_json, EditRecord.from_json, EditResult.from_json):
        with pytest.raises(BadInput):
            reader(data)


REQUEST_JSON = EditRequest(image=IMAGE, pairs=(PointPair(Point(1, 2), Point(3, 4)),)).to_json()


@given(st.sampled_from(sorted(REQUEST_JSON)), json_values)
def test_one_wrong_field_is_refused_or_meant(name: str, value: Any) -> None:
    with contextlib.suppress(BadInput):
        request = EditRequest.from_json({**REQUEST_JSON, name: value})
        assert EditRequest.from_json(through_json(request.to_json())) == request


RECORD_JSON = EditRecord(
    id="x",
    request=EditRequest.from_json(REQUEST_JSON),
    status=JobState.DONE,
    result=EditResult(image="wb1:" + "5" * 32),
).to_json()


@given(st.sampled_from(sorted(RECORD_JSON)), json_values)
def test_one_wrong_field_of_a_record_is_refused_or_meant(name: str, value: Any) -> None:
    with contextlib.suppress(BadInput):
        record = EditRecord.from_json({**RECORD_JSON, name: value})
        assert EditRecord.from_json(through_json(record.to_json())) == record


@given(st.sampled_from(sorted(RECORD_JSON["result"])), json_values)
def test_one_wrong_field_of_a_result_is_refused_or_meant(name: str, value: Any) -> None:
    with contextlib.suppress(BadInput):
        result = EditResult.from_json({**RECORD_JSON["result"], name: value})
        assert EditResult.from_json(through_json(result.to_json())) == result


def out_of_range() -> list[tuple[type[Any], str, Any]]:
    cases: list[tuple[type[Any], str, Any]] = []
    for cls in CONFIGS:
        for name, (kind, _default, opt) in options_of(cls).items():
            if kind in (int, float):
                cases += [(cls, name, v) for v in (True, "3", None, math.nan, math.inf, 10**400)]
                step = 1 if kind is int else 1e-6
                if opt.low is not None:
                    cases.append((cls, name, opt.low - step))
                if opt.high is not None:
                    cases.append((cls, name, opt.high + step))
            if kind is int:
                cases.append((cls, name, 1.5))
            if kind is bool:
                cases += [(cls, name, 1), (cls, name, "true")]
            if kind is str:
                cases += [(cls, name, "nonsense"), (cls, name, 3)]
    return cases


@pytest.mark.parametrize(("cls", "name", "value"), out_of_range())
def test_fault_21_options_out_of_range_name_field_value_and_range(
    cls: type[Any], name: str, value: Any
) -> None:
    with pytest.raises(BadInput) as caught:
        cls(**{name: value})
    error = caught.value
    assert (error.code, error.field.partition(".")[2]) == ("out-of-range", name)
    assert error.values["value"] is value
    assert error.field in str(error)
    _kind, _default, opt = options_of(cls)[name]
    if opt.low is not None and opt.high is not None:
        assert range_text(opt) in str(error)


@pytest.mark.parametrize("cls", CONFIGS)
def test_edges_of_the_ranges_are_allowed(cls: type[Any]) -> None:
    for name, (kind, default, opt) in options_of(cls).items():
        for edge in (opt.low, opt.high):
            if edge is not None:
                made = cls(**{name: kind(edge)})
                assert type(getattr(made, name)) is type(default)


def test_whole_numbers_become_floats() -> None:
    assert type(DragConfig(feather=3).feather) is float


def test_unknown_and_missing_fields() -> None:
    with refusal("unknown-key", "colour"):
        EditRequest.from_json({**REQUEST_JSON, "colour": 1})
    later = EditRequest.from_json({**REQUEST_JSON, "colour": 1}, strict=False)
    assert later == EditRequest.from_json(REQUEST_JSON)
    for name in ("image", "pairs"):
        with refusal("missing", name):
            EditRequest.from_json({k: v for k, v in REQUEST_JSON.items() if k != name})
    short = EditRequest.from_json({"image": REQUEST_JSON["image"], "pairs": []})
    assert short.lora == LoraConfig()


@pytest.mark.parametrize("bad", [(64.0, 10.0), (-0.6, 0.0), (3.0, 47.6), (1e308, 0.0)])
def test_fault_17_a_point_outside_the_picture_is_named(bad: tuple[float, float]) -> None:
    for pair in (PointPair(Point(1, 1), Point(*bad)), PointPair(Point(*bad), Point(1, 1))):
        with refusal("outside-picture", "pairs") as caught:
            EditRequest(image=IMAGE, pairs=(PointPair(Point(1, 1), Point(2, 2)), pair))
        assert caught.value.values["arrow"] == 2


def test_fault_17_points_on_the_edge_pixels_are_inside() -> None:
    corner = PointPair(Point(-0.5, -0.5), Point(63.5, 47.5))
    assert EditRequest(image=IMAGE, pairs=(corner,)).pairs[0].length == math.hypot(64, 48)


def test_fault_20_a_mask_of_another_size_is_refused() -> None:
    mask = MaskAsset(id="m", width=48, height=64)
    with refusal("mask-size", "mask"):
        EditRequest(image=IMAGE, mask=mask, pairs=())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, True, "1", None])
def test_fault_13_a_point_is_two_finite_numbers(value: Any) -> None:
    with refusal("not-finite", "point.x"):
        Point(value, 0)
    with refusal("not-finite", "point.y"):
        Point(0, value)


@pytest.mark.parametrize("data", [None, "abcd", [1, 2, 3], [1, 2, 3, "4"], {"a": 1}])
def test_a_pair_is_four_numbers(data: Any) -> None:
    with pytest.raises(BadInput):
        PointPair.from_json(data)


def test_limits_of_a_request() -> None:
    pair = PointPair(Point(1, 1), Point(2, 2))
    with refusal("too-many-arrows", "pairs"):
        EditRequest(image=IMAGE, pairs=(pair,) * (MAX_PAIRS + 1))
    with refusal("too-long", "prompt"):
        EditRequest(image=IMAGE, pairs=(), prompt="x" * (MAX_PROMPT + 1))
    for seed in (-1, 2**63, 1.0, True, "1"):
        with refusal("out-of-range", "seed"):
            EditRequest(image=IMAGE, pairs=(), seed=seed)  # type: ignore[arg-type]
    for size in (63, 4097, -1, 256.0, True):
        with refusal("out-of-range", "working_size"):
            EditRequest(image=IMAGE, pairs=(), working_size=size)  # type: ignore[arg-type]


def test_presets() -> None:
    for method in METHODS:
        normal = DragConfig.preset(method)
        assert normal.method == method
        steps = [DragConfig.preset(method, s).steps for s in STRENGTHS]
        assert steps == sorted(steps)
    assert DragConfig.preset() == DragConfig()  # the reference's own defaults
    with refusal("unknown-name", "drag.method"):
        DragConfig.preset("magic")
    with refusal("unknown-name", "preset"):
        DragConfig.preset("warp", "brutal")


def test_inverted_steps_round_as_the_reference_does() -> None:
    assert InversionConfig().inverted_steps == 35
    assert InversionConfig(steps=50, strength=0.75).inverted_steps == 38  # 37.5 -> even
    assert InversionConfig(steps=50, strength=0.05).inverted_steps == 2  # 2.5 -> even
    assert InversionConfig(steps=2, strength=0.02).inverted_steps == 1


def test_every_option_says_what_it_does() -> None:
    for cls in CONFIGS:
        for name, (_kind, default, opt) in options_of(cls).items():
            assert opt.help.endswith("."), name
            assert opt.low is None or opt.low <= default, name


def test_range_in_words() -> None:
    @dataclasses.dataclass
    class Sample:
        a: int = option(1, "A.", low=1, unit="px")
        b: int = option(1, "B.", high=4)
        c: int = option(1, "C.", unit="px")
        d: int = option(1, "D.")

    texts = {n: range_text(o) for n, (_k, _d, o) in options_of(Sample).items()}
    assert texts == {"a": "of at least 1 px", "b": "of at most 4", "c": "in px", "d": ""}


def test_data_is_frozen() -> None:
    for obj in (Point(1, 2), IMAGE, DragConfig(), EditRequest(image=IMAGE, pairs=())):
        name = dataclasses.fields(obj)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(obj, name, 1)


def test_job_states() -> None:
    assert [s.value for s in JobState if not s.ended] == ["queued", "running"]


def test_record_of_another_format_is_refused() -> None:
    record = EditRecord(
        id="x", request=EditRequest(image=IMAGE, pairs=()), status=JobState.DONE
    ).to_json()
    with refusal("newer-format"):
        EditRecord.from_json({**record, "format": RECORD_FORMAT + 1})
    with refusal("damaged"):
        EditRecord.from_json({**record, "status": "half done"})
    with refusal("damaged"):
        EditRecord.from_json({k: v for k, v in record.items() if k != "request"})


@given(st.lists(st.lists(st.tuples(numbers, numbers), max_size=3), max_size=4))
def test_a_way_is_the_points_that_it_was_made_of(rows: list[list[tuple[float, float]]]) -> None:
    points = tuple(tuple(Point(*p) for p in row) for row in rows)
    way = Way(rows)
    assert (way, len(way), way[1:], list(reversed(way))) == (
        points, len(points), points[1:], list(reversed(points)),
    )  # fmt: skip
    assert (
        EditResult.from_json(EditResult(image="x", trajectory=way).to_json()).trajectory == points
    )
    with pytest.raises(IndexError):
        way[len(points)]


@pytest.mark.parametrize(
    "point", [[1.0], [1.0, 2.0, 3.0], [True, 1.0], ["1", 1.0], [None, 1.0], [math.inf, 1.0],
              [math.nan, 1.0], [10**400, 1.0], 3.0]
)  # fmt: skip
def test_a_way_of_anything_but_finite_numbers_is_refused(point: Any) -> None:
    with pytest.raises(BadInput):
        EditResult.from_json({"image": "x", "trajectory": [[[0.0, 1.0], point]]})


def test_settings_that_are_equal_are_made_once_and_kinds_of_numbers_stay_apart() -> None:
    first, again = (from_mapping(LoraConfig, {"steps": 7}) for _ in range(2))
    assert first is again
    with pytest.raises(BadInput):
        from_mapping(LoraConfig, {"steps": 7.0})
    with pytest.raises(BadInput):
        from_mapping(LoraConfig, {"steps": True})
