"""Whole edits on a random model: against the authors' picture, from the cache, on every architecture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edit_bench import Bench, picture
from forced import led
from gates import LEVELS
from golden import load_case
from tiny_models import KINDS

from workbench.core.config import DragConfig, GenerationConfig, InversionConfig, LoraRef
from workbench.core.record import JobState
from workbench.core.request import EditRequest, Point, PointPair, TrainTask
from workbench.diffusion import model
from workbench.diffusion.model import Runtime
from workbench.edit import prepare
from workbench.editing.lora_library import LoraLibrary
from workbench.editing.memory import OTHER_PROCESSOR, environment, expected_difference
from workbench.imaging import decode
from workbench.storage.cache import Cache


@pytest.mark.parametrize("case", ["masked", "odd"])
def test_whole_edit_equals_the_authors_picture(
    bench: Bench, micro_sd: Path, reference_dir: Path, case: str, tmp_path: Path
) -> None:
    """Upload to PNG: decode, LoRA file, inversion, drag, denoise, decode; led as forced.py says."""
    bench.runtime = model.load(str(micro_sd), device="cpu")
    facts = json.loads((reference_dir / case / "case.json").read_text())
    source = decode.decode((reference_dir / case / "image.png").read_bytes())
    mask = decode.decode_mask(
        (reference_dir / case / "mask.png").read_bytes(), source.width, source.height
    )
    points = [Point(*p) for p in facts["points_xy"]]
    library = LoraLibrary(tmp_path / "loras", bench.store)
    lora = reference_dir / "masked/lora_official/pytorch_lora_weights.safetensors"
    request = EditRequest(
        image=bench.store.put_image(source.rgb),
        mask=bench.store.put_mask(mask),
        pairs=tuple(PointPair(a, b) for a, b in zip(points[::2], points[1::2], strict=True)),
        prompt=facts["prompt"],
        lora_file=library.reference(str(lora)),
        drag=DragConfig(steps=facts["options"]["n_pix_step"], parity=True),
        working_size=max(source.width, source.height),
    )
    with led(load_case(reference_dir / case)) as seen:
        record = bench.edit(request)
    assert len(seen.grads) == facts["options"]["n_pix_step"]
    assert record.result is not None
    ours = bench.store.image(record.result.image)
    theirs = decode.decode((reference_dir / case / "result.png").read_bytes()).rgb
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= LEVELS


def test_second_drag_trains_and_inverts_nothing(bench: Bench) -> None:
    first = bench.edit()
    assert bench.stages() == [
        "encode", "lora", "invert", "reference", "drag", "denoise", "decode", "save",
    ]  # fmt: skip
    assert first.result is not None
    assert first.result.cached == ()
    other = bench.request(pairs=(PointPair(Point(24, 30), Point(30, 24)),))
    second = bench.edit(other)
    assert second.result is not None
    assert second.result.cached == ("lora", "invert", "reference")
    assert "encode" not in bench.stages()
    assert all(s.cached for s in bench.steps if s.stage in ("lora", "invert", "reference"))


def test_cache_serves_a_new_process(bench: Bench, tiny_model: Callable[[str], Path]) -> None:
    first = bench.edit()
    bench.runtime = model.load(str(tiny_model("sd1")), device="cpu")
    bench.cache = Cache(bench.cache.folder)
    again = bench.edit(fresh=True)
    assert first.result is not None
    assert again.result is not None
    assert set(again.result.cached) == {"lora", "invert", "reference"}
    assert again.result.image == first.result.image


def test_same_request_same_bits_without_any_cache(bench: Bench, tmp_path: Path) -> None:
    first = bench.edit()
    bench.runtime.forget()
    bench.cache = Cache(tmp_path / "another")
    again = bench.edit()
    assert first.result is not None
    assert again.result is not None
    assert again.result.cached == ()
    assert again.result.image == first.result.image
    assert again.result.trajectory == first.result.trajectory


def test_which_environments_promise_the_same_bits(tiny: Runtime) -> None:
    here = environment(tiny)
    assert expected_difference(here, dict(here)) == 0
    assert expected_difference(here, {**here, "python": "9", "workbench": "9"}) == 0
    for name in ("processor", "instructions", "threads", "torch"):
        assert expected_difference(here, {**here, name: "another"}) == OTHER_PROCESSOR
    old = {k: v for k, v in here.items() if k not in ("processor", "instructions")}
    assert expected_difference(old, here) == OTHER_PROCESSOR
    for name in ("arithmetic", "device", "dtype"):
        assert expected_difference({**here, name: "another"}, here) is None


def test_outside_the_mask_not_a_bit_changes(bench: Bench) -> None:
    record = bench.edit()
    assert record.result is not None
    assert record.request.mask is not None
    before = bench.store.image(record.request.image.id)
    after = bench.store.image(record.result.image)
    mask = bench.store.mask(record.request.mask.id)
    assert record.result.change_outside_mask == 0
    assert np.array_equal(after[~mask], before[~mask])
    assert not np.array_equal(after[mask], before[mask])
    assert after.shape == before.shape


def test_without_mask_the_whole_picture_may_change(bench: Bench) -> None:
    record = bench.edit(bench.request(mask=None))
    assert record.result is not None
    before = bench.store.image(record.request.image.id)
    after = bench.store.image(record.result.image)
    assert (before != after).mean() > 0.5


def test_result_is_told_in_image_pixels(bench: Bench) -> None:
    record = bench.edit()
    result = record.result
    assert result is not None
    assert len(result.distances) == len(record.request.pairs) == 2
    start = result.trajectory[0]
    for point, pair in zip(start, record.request.pairs, strict=True):
        assert point.distance(pair.handle) <= 1.5  # half a grid step, in image pixels
    for point, pair, left in zip(
        result.trajectory[-1], record.request.pairs, result.distances, strict=True
    ):
        assert abs(point.distance(pair.target) - left) <= 2.0
    assert result.iterations == 3
    assert len(result.losses) == 3
    assert result.strip is not None
    assert decode.decode(bench.store.blob(result.strip)).height == 64
    assert result.frames
    assert decode.decode(bench.store.blob(result.frames[0])).rgb.shape == (64, 72, 3)
    assert set(result.seconds) >= {"lora", "invert", "drag", "denoise", "decode", "save"}
    assert record.environment["dtype"] == "fp32"
    assert record.request.model.fingerprint == bench.runtime.fingerprint
    drags = [s for s in bench.steps if s.stage == "drag"]
    assert drags[0].points is not None
    assert drags[-1].loss is not None


def test_more_steps_continue_where_the_optimiser_stands(bench: Bench) -> None:
    """Run on = the same request with more steps; equal to having run them at once."""
    bench.edit(bench.request(drag=DragConfig(steps=2)))
    longer = bench.edit(bench.request(drag=DragConfig(steps=5)))
    assert longer.result is not None
    assert "drag" in longer.result.cached
    at_once = bench.edit(bench.request(drag=DragConfig(steps=5)), fresh=True)
    assert at_once.result is not None
    assert longer.result.iterations == at_once.result.iterations == 5
    assert longer.result.trajectory == at_once.result.trajectory
    assert longer.result.image == at_once.result.image
    fewer = bench.edit(bench.request(drag=DragConfig(steps=1)))
    assert fewer.result is not None
    assert fewer.result.iterations == 1


def test_evicted_state_is_computed_again(bench: Bench) -> None:
    bench.edit(bench.request(drag=DragConfig(steps=2)))
    assert bench.cache.clear(kind="state") == 1
    longer = bench.edit(bench.request(drag=DragConfig(steps=3)))
    assert longer.result is not None
    assert "drag" not in longer.result.cached
    assert longer.result.iterations == 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_runs_whole(
    bench: Bench, tiny_model: Callable[[str], Path], kind: str
) -> None:
    """Load, train, invert, drag, denoise; the LoRA is saved, read again, and used as a file."""
    bench.runtime = model.load(str(tiny_model(kind)), device="cpu")
    record = bench.edit()
    assert record.status is JobState.DONE
    (entry,) = [e for e in bench.cache.entries() if e.kind == "lora"]
    raw = bench.cache.get(entry.key)
    assert raw is not None
    lora = LoraRef(id=bench.store.put_blob(raw, "safetensors"), name="mine")
    again = bench.edit(bench.request(lora_file=lora))
    assert again.result is not None
    assert record.result is not None
    assert again.result.notices == ()
    assert again.result.image == record.result.image


@pytest.mark.parametrize(("kind", "dtype"), [("sd1", "bf16"), ("sd2v", "fp16"), ("sdxl", "fp16")])
def test_half_precision_runs_whole(
    bench: Bench, tiny_model: Callable[[str], Path], kind: str, dtype: str
) -> None:
    bench.runtime = model.load(str(tiny_model(kind)), device="cpu", dtype=dtype)
    record = bench.edit()
    assert record.status is JobState.DONE
    assert record.environment["dtype"] == dtype
    again = bench.edit(fresh=True)
    assert again.result is not None
    assert record.result is not None
    assert again.result.image == record.result.image


def test_big_picture_is_edited_on_a_crop(bench: Bench) -> None:
    rgb = picture(640, 480)
    mask = np.zeros((480, 640), np.bool_)
    mask[200:260, 300:350] = True
    request = bench.request(
        image=bench.store.put_image(rgb), mask=bench.store.put_mask(mask),
        pairs=(PointPair(Point(320, 230), Point(335, 230)),),
    )  # fmt: skip
    record = bench.edit(request)
    assert record.result is not None
    after = bench.store.image(record.result.image)
    assert after.shape == rgb.shape
    assert np.array_equal(after[~mask], rgb[~mask])
    assert not np.array_equal(after[mask], rgb[mask])
    assert any("around the mask" in n for n in record.result.notices)
    moved = mask.copy()
    moved[198:203, 305:312] = True  # a touch of the brush keeps crop, LoRA and inversion
    nudged = dataclasses.replace(request, mask=bench.store.put_mask(moved))
    again = bench.edit(nudged)
    assert again.result is not None
    assert set(again.result.cached) == {"lora", "invert", "reference"}
    whole = bench.edit(dataclasses.replace(request, crop=False))
    assert whole.result is not None
    assert "lora" not in whole.result.cached


def test_generated_picture_is_dragged_from_its_own_latents(bench: Bench) -> None:
    from workbench.core.request import GenerateTask
    from workbench.editing.text_to_image import generate

    config = GenerationConfig(steps=6, guidance=4.0, width=64, height=64, freeu_b1=1.2)
    made = generate(
        GenerateTask(prompt="a robot", config=config, count=1), runtime=bench.runtime,
        cache=bench.cache, store=bench.store,
    )  # fmt: skip
    shown = made["pictures"][0]
    request = bench.request(
        image=dataclasses.replace(bench.request().image, id=shown["image"], width=64, height=64),
        mask=None,
        pairs=(PointPair(Point(24, 30), Point(40, 30)),),
        generation=GenerationConfig(**shown["config"]),
        inversion=InversionConfig(steps=6, strength=0.5),
    )
    record = bench.edit(request)
    assert record.result is not None
    assert bench.stages()[0] == "generate"
    assert not {"lora", "invert"} & set(bench.stages())
    assert "generate" in record.result.cached
    untouched = bench.edit(dataclasses.replace(request, drag=DragConfig(steps=0, composite=False)))
    assert untouched.result is not None
    own, original = bench.store.image(untouched.result.image), bench.store.image(shown["image"])
    assert np.abs(own.astype(int) - original).max() <= 1  # nothing dragged: the very picture


def test_style_is_part_of_the_model(bench: Bench) -> None:
    raw = LoraLibrary(bench.store.folder / "loras", bench.store)
    style = bench.edit(bench.request(prompt="in another style"))
    (entry,) = [e for e in bench.cache.entries() if e.kind == "lora"]
    found = bench.cache.get(entry.key)
    assert found is not None
    raw.put("style", found)
    ref = raw.reference("style", 0.8)
    plain = bench.edit()
    styled = bench.edit(bench.request(style=ref))
    assert style.result is not None
    assert plain.result is not None
    assert styled.result is not None
    assert styled.result.image != plain.result.image
    assert "lora" not in styled.result.cached  # trained on top of the style
    off = bench.edit(bench.request(style=dataclasses.replace(ref, weight=0.0)))
    assert off.result is not None
    assert off.result.image == plain.result.image


def test_prepare_says_how_well_the_picture_is_known(bench: Bench) -> None:
    request = bench.request(pairs=())
    made = prepare(TrainTask(request=request), bench.engine, on_step=bench.steps.append)
    json.dumps(made)
    assert len(made["losses"]) == 2
    assert bench.store.image(made["reconstruction"]).shape == (64, 72, 3)
    assert 0 < made["psnr"] < 99
    assert made["size"] == [72, 64]
    first = bench.edit()
    assert first.result is not None
    assert set(first.result.cached) == {"lora", "invert", "reference"}
    again = prepare(TrainTask(request=request), bench.engine)
    assert again["cached"] == ["lora", "invert", "reference"]
    assert again["reconstruction"] == made["reconstruction"]


def test_training_goes_on_from_a_lora(bench: Bench) -> None:
    request = bench.request(pairs=())
    first = prepare(TrainTask(request=request), bench.engine)
    raw = bench.cache.get(first["lora"])
    assert raw is not None
    start = LoraRef(id=bench.store.put_blob(raw, "safetensors"), name="first")
    second = prepare(TrainTask(request=request, start=start, name="second"), bench.engine)
    assert second["lora_file"]["name"] == "second"
    assert second["lora_file"]["id"] != start.id
    record = bench.edit(bench.request(lora_file=LoraRef(**second["lora_file"])))
    assert record.result is not None
    assert record.result.notices == ()
