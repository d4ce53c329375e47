"""What the tests of the history share: pictures, a request, a finished edit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from workbench.core.record import EditRecord, EditResult, JobState
from workbench.core.request import EditRequest, Point, PointPair
from workbench.storage.history import Store


def picture(seed: int = 0, shape: tuple[int, int] = (12, 16)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def request(store: Store, seed: int = 0, **changes: Any) -> EditRequest:
    image = store.put_image(picture(seed), name=f"p{seed}.png")
    mask = store.put_mask(picture(seed)[..., 0] > 100)
    pairs = (PointPair(Point(1, 2), Point(5, 6)),)
    return EditRequest(image=image, mask=mask, pairs=pairs, **changes)


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(seed)).save(out, "PNG")
    return out.getvalue()


def edit(store: Store, seed: int = 0, owner: str = "", **changes: Any) -> EditRecord:
    """A finished edit."""
    req = request(store, seed, **changes)
    name = store.begin(req, owner=owner, environment={"torch": "2"})
    result = EditResult(image=store.put_blob(png(1000 + seed), "png"), distances=(1.5,))
    record = EditRecord(
        id=name, request=req, status=JobState.DONE, result=result, environment={"torch": "2"}
    )
    store.finish(record)
    return record
