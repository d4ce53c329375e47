"""Edits for tests of the pages, written into a history without computing anything."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.record import EditRecord, EditResult, JobState
from workbench.core.request import EditRequest, Point, PointPair
from workbench.storage.history import Store

WIDTH, HEIGHT = 48, 36


def pixels(seed: int) -> NDArray[np.uint8]:
    """A smooth picture, uint8 [36,48,3], another one for every seed."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / WIDTH
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    rgb = np.stack([127 + 100 * np.sin(5 * x + 4 * y + p) for p in phases], axis=2)
    return rgb.clip(0, 255).astype(np.uint8)


def add_edit(
    store: Store,
    *,
    seed: int = 0,
    name: str = "",
    after: EditRecord | None = None,
    status: JobState = JobState.DONE,
    **request: Any,
) -> EditRecord:
    """An edit of the picture `seed`, or (`after`) of another edit's result."""
    number = len(store.records(binned=None))
    if after is not None and after.result is not None:
        image = store.put_image(store.image(after.result.image), after.request.image.name)
        request["parent"] = after.id
    else:
        image = store.put_image(pixels(seed), name or f"Picture {seed}")
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    mask = store.put_mask((x - 24) ** 2 + (y - 18) ** 2 < 150)
    request.setdefault("pairs", (PointPair(Point(20, 18), Point(28, 16)),))
    made = EditRequest(image=image, mask=mask, **request)
    result = EditResult(
        image=store.put_image(pixels(1000 + number)).id,
        distances=(0.5,) * len(made.pairs),
        seconds={"drag": 2.0},
        cached=("lora",),
        stop="REACHED",
        iterations=7,
    )
    record = EditRecord(
        id=store.begin(made),
        request=made,
        status=status,
        result=result if status is JobState.DONE else None,
        error=None if status is JobState.DONE else "The memory ran out; take a smaller size.",
        started="2026-11-23T10:00:00.000000+00:00",
        finished="2026-11-23T10:00:05.000000+00:00",
        environment={"torch": "2.13.0"},
    )
    store.finish(record)
    return record
