"""What the tests of the history's faults share: a picture, and a finished edit."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.core.record import EditRecord, EditResult, JobState
from workbench.core.request import EditRequest, Point, PointPair
from workbench.storage.history import Store


def picture(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def edit(store: Store, seed: int = 0) -> EditRecord:
    image = store.put_image(picture(seed))
    mask = store.put_mask(picture(seed)[..., 0] > 99)
    req = EditRequest(image=image, mask=mask, pairs=(PointPair(Point(1, 2), Point(5, 6)),))
    name = store.begin(req)
    result = EditResult(image=store.put_blob(f"result {seed}".encode(), "txt"))
    record = EditRecord(id=name, request=req, status=JobState.DONE, result=result)
    store.finish(record)
    return record
