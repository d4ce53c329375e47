"""Whole edits that are stopped, run out of memory, meet NaN or odd input: the next one is fine."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_bench import Bench
from refusals import refusal

from workbench import edit
from workbench.core.config import DragConfig
from workbench.core.errors import Cancelled, ModelError, OutOfMemory
from workbench.core.record import JobState, StepInfo
from workbench.core.request import Point, PointPair
from workbench.diffusion import model
from workbench.diffusion.model import snapshot
from workbench.storage.cache import Cache


def test_fault_20_an_empty_mask_is_no_mask(bench: Bench) -> None:
    empty = bench.store.put_mask(np.zeros((64, 72), np.bool_))
    a, b = bench.edit(bench.request(mask=empty)), bench.edit(bench.request(mask=None))
    assert a.result is not None
    assert b.result is not None
    assert a.result.image == b.result.image


def test_fault_36_cancel_in_every_stage(bench: Bench) -> None:
    bench.edit()
    before = snapshot(bench.runtime.unet)
    for stage in ("encode", "lora", "invert", "reference", "drag", "denoise", "decode", "save"):
        bench.cache.clear()
        bench.runtime.forget()
        heard = []

        def stop(info: StepInfo, stage: str = stage, heard: list[str] = heard) -> None:
            heard.append(info.stage)
            if info.stage == stage:
                raise Cancelled("Cancelled.")

        with pytest.raises(Cancelled):
            bench.edit(on_step=stop)
        assert heard[-1] == stage
        assert heard.count(stage) == 1  # nothing went on after the request to stop
        record = bench.store.records()[0]
        assert (record.status, record.result) == (JobState.CANCELLED, None)
        assert snapshot(bench.runtime.unet) == before
    assert bench.store.pending() == []
    assert bench.edit().status is JobState.DONE


def test_fault_37_success_failure_and_cancel_leave_the_model_as_it_was(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(bench.runtime.unet), snapshot(bench.runtime.vae)
    bench.edit()
    assert (snapshot(bench.runtime.unet), snapshot(bench.runtime.vae)) == before
    with monkeypatch.context() as patch:
        patch.setattr(bench.runtime, "decode", lambda _z: torch.full((1, 3, 64, 64), torch.nan))
        with refusal("not-finite", kind=ModelError):
            bench.edit()
    assert (snapshot(bench.runtime.unet), snapshot(bench.runtime.vae)) == before
    assert "left the model changed" not in caplog.text


def test_fault_22_nan_in_the_drag_keeps_the_last_finite_step(bench: Bench) -> None:
    """The learning rate's limit is no protection: the numbers may overflow all the same."""
    request = bench.request(drag=DragConfig(steps=4))
    calls = 0
    from workbench.drag.latents import LatentOptimiser

    real = LatentOptimiser.gradient

    def burst(self: LatentOptimiser, loss: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        found = real(self, loss)
        return found * torch.nan if calls == 3 else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentOptimiser, "gradient", burst)
        with refusal("not-finite", kind=ModelError):
            bench.edit(request)
    record = bench.store.records()[0]
    assert record.status is JobState.FAILED
    assert record.error is not None
    assert "learning rate" in record.error
    assert record.result is not None
    assert bench.store.image(record.result.image).shape == (64, 72, 3)
    assert not [e for e in bench.cache.entries() if e.kind == "state"]
    good = bench.edit(request)
    assert good.result is not None
    assert "drag" not in good.result.cached


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("workbench.diffusion.lora.train", "lora"),
        ("workbench.editing.prepare.invert", "inversion"),
    ],
)
def test_fault_22_nan_before_the_drag_is_not_cached(bench: Bench, where: str, kind: str) -> None:
    module, _, name = where.rpartition(".")
    real = getattr(importlib.import_module(module), name)

    def broken(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        if kind == "inversion":
            return found * torch.nan
        return dataclasses.replace(found, state={k: v * torch.nan for k, v in found.state.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, broken)
        with refusal("not-finite", kind=ModelError):
            bench.edit()
    assert kind not in {e.kind for e in bench.cache.entries()}
    assert bench.edit().status is JobState.DONE


@pytest.mark.parametrize(
    "where", ["diffusion.lora.train", "editing.prepare.reference_of", "edit.run"]
)
def test_fault_38_out_of_memory_once_is_survived(bench: Bench, where: str) -> None:
    module, _, name = where.rpartition(".")
    real = getattr(importlib.import_module(f"workbench.{module}"), name)
    modes: list[bool] = []

    def short(*args: Any, **kwargs: Any) -> Any:
        modes.append(bench.runtime.saving_memory)
        if len(modes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"workbench.{where}", short)
        record = bench.edit()
    assert modes == [False, True]
    assert record.status is JobState.DONE
    assert record.result is not None
    assert any("low-memory mode" in n for n in record.result.notices)
    assert not bench.runtime.unet.is_gradient_checkpointing
    bench.cache.clear()
    normal = bench.edit()
    assert normal.result is not None
    # the same arithmetic in another order: rows in pairs instead of kept attention states
    sparing, usual = (bench.store.image(r.result.image) for r in (record, normal) if r.result)
    assert np.abs(sparing.astype(int) - usual).max() <= 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_fault_38_out_of_memory_twice_names_a_smaller_setting(
    bench: Bench, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_args: Any, **_kwargs: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(bench.runtime, "decode", short)
        with refusal("memory", kind=OutOfMemory):
            bench.edit()
    record = bench.store.records()[0]
    assert record.status is JobState.FAILED
    assert bench.edit().status is JobState.DONE


def test_unforeseen_errors_are_recorded_and_raised(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any) -> Any:
        raise ValueError("a surprise")

    with monkeypatch.context() as patch:
        patch.setattr(edit, "_save", broken)
        with pytest.raises(ValueError, match="surprise"):
            bench.edit()
    record = bench.store.records()[0]
    assert record.status is JobState.FAILED
    assert record.error is not None
    assert "not foreseen" in record.error
    assert "a surprise" in record.error


def test_fault_43_changed_model_files_are_noticed(bench: Bench) -> None:
    stale = dataclasses.replace(bench.runtime.ref, fingerprint="wb1:" + "0" * 32)
    with pytest.raises(ModelError):
        bench.edit(bench.request(model=stale))
    assert bench.store.records() == []


def test_fault_23_a_long_prompt_is_said_so(bench: Bench) -> None:
    record = bench.edit(bench.request(prompt="robot " * 300))
    assert record.result is not None
    assert any("left out" in n for n in record.result.notices)


@pytest.mark.parametrize(
    "points",
    [((71, 63), (71, 50)), ((0, 0), (10, 10)), ((40, 30), (40, 30)), ((71.4, 63.4), (0, 0))],
)
def test_fault_15_16_17_points_at_borders(bench: Bench, points: Any) -> None:
    pair = PointPair(Point(*points[0]), Point(*points[1]))
    record = bench.edit(bench.request(pairs=(pair, pair), mask=None))
    assert record.status is JobState.DONE


def test_fault_18_a_flat_picture_stays(bench: Bench) -> None:
    flat = bench.store.put_image(np.full((64, 64, 3), 128, np.uint8))
    record = bench.edit(bench.request(image=flat, mask=None, pairs=(
        PointPair(Point(30, 30), Point(50, 30)),
    )))  # fmt: skip
    assert record.status is JobState.DONE


def test_fault_29_without_a_cache_the_edit_still_finishes(bench: Bench, tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    bench.cache = Cache(blocked)
    assert bench.edit().status is JobState.DONE


def test_fault_32_eviction_does_not_disturb_an_edit(bench: Bench, tmp_path: Path) -> None:
    bench.cache = Cache(tmp_path / "tiny", limit_bytes=10_000)
    assert bench.edit().status is JobState.DONE


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_fault_45_nothing_in_a_run_opens_a_socket(
    bench: Bench, tiny_model: Callable[[str], Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    class Refused(socket.socket):
        def __init__(self, *_args: Any, **_kwargs: Any) -> None:
            raise AssertionError("a run tried to use the network")

    monkeypatch.setattr(socket, "socket", Refused)
    monkeypatch.setattr(socket, "getaddrinfo", Refused)
    bench.runtime = model.load(str(tiny_model(kind)), device="cpu")
    assert bench.edit().status is JobState.DONE
