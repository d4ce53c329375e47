"""Fault 44: many edits in a row leave nothing behind: memory, file handles, threads, hooks, files."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from edit_bench import Bench

from workbench.core.config import METHODS, DragConfig, InversionConfig, LoraConfig
from workbench.core.errors import Cancelled
from workbench.core.record import JobState, StepInfo
from workbench.diffusion.model import snapshot

GROWTH = 48 * 2**20  # bytes of resident memory that a series may end above its beginning
PAGE = 4096


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def tensors() -> int:
    gc.collect()
    # its type, not isinstance: some libraries warn when their lazy objects are asked
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.fixture
def requests(bench: Bench) -> Iterator[object]:
    """Edits without end: every method in turn, pictures that come again and such that are new."""

    def endless() -> Iterator[object]:
        n = 0
        while True:
            method = METHODS[n % len(METHODS)]
            rgb = np.full((64, 72, 3), n // 8 % 250, np.uint8)
            rgb[20:40, 20:40] = 255
            yield bench.request(
                image=bench.store.put_image(rgb),
                lora=LoraConfig(steps=n % 2, rank=2, batch_size=1),
                inversion=InversionConfig(steps=2, strength=0.5),
                drag=dataclasses.replace(DragConfig.preset(method), steps=1, drag_rounds=1),
            )
            n += 1

    return endless()


@pytest.mark.parametrize("count", [24, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.timeout(3000)
def test_fault_44_edits_in_a_row_leave_memory_handles_threads_and_hooks_flat(
    bench: Bench, requests: Iterator[object], count: int
) -> None:
    def stop(info: StepInfo) -> None:
        if info.stage == "decode":  # every method has it
            raise Cancelled("Cancelled.")

    def series(number: int) -> None:
        for n in range(number):
            request = next(requests)
            if n % 10 == 9:  # some are stopped on their way
                with pytest.raises(Cancelled):
                    bench.edit(request, on_step=stop)
            else:
                bench.edit(request)

    bench.cache.limit_bytes = 20 * 2**20  # so that the cache is full before the end, and evicts
    before = snapshot(bench.runtime.unet), snapshot(bench.runtime.vae)
    series(12)  # first uses fill what is kept for good: text encodings, allocators, imports
    counts = handles(), threading.active_count(), tensors()
    memory = resident()
    series(count)
    after = handles(), threading.active_count(), tensors()
    assert after[0] <= counts[0] + 2
    assert after[1] <= counts[1]
    assert after[2] <= counts[2] + 50
    assert resident() - memory < GROWTH
    assert (snapshot(bench.runtime.unet), snapshot(bench.runtime.vae)) == before
    records = bench.store.records()
    assert len(records) == count + 12
    assert {r.status for r in records} == {JobState.DONE, JobState.CANCELLED}
    assert bench.store.pending() == []
    assert not list((bench.store.folder / "temp").iterdir())
    assert bench.cache.size() <= 2 * bench.cache.limit_bytes
