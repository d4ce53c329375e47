"""What the tests of the history's faults share: a picture, and a finished edit."""

from __future__ import annotations

import re
from pathlib import Path
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


def orphans(store: Store) -> list[Path]:
    """Files that no record, note, project or pending edit mentions, and unfinished writes."""
    known = {name for text in store.texts() for name in re.findall(r"wb1:[0-9a-f]{32}", text)}
    found = [path for _, name, path in store.files() if name not in known]
    return found + sorted((store.folder / "temp").glob("*.part"))
