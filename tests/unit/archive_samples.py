"""What the tests of export and import share: pictures and finished edits."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save

from workbench.core.record import EditRecord, EditResult, JobState
from workbench.core.request import EditRequest, Point, PointPair
from workbench.storage.history import Store


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(seed)).save(out, "PNG")
    return out.getvalue()


def picture(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def edit(store: Store, seed: int = 0, owner: str = "", **changes: Any) -> EditRecord:
    image = store.put_image(picture(seed), name=f"p{seed}.png")
    mask = store.put_mask(picture(seed)[..., 0] > 100)
    pairs = (PointPair(Point(1, 2), Point(5, 6)), PointPair(Point(9, 9), Point(9, 9)))
    request = EditRequest(image=image, mask=mask, pairs=pairs, **changes)
    name = store.begin(request, owner=owner)
    result = EditResult(
        image=store.put_image(picture(1000 + seed)).id,  # as the pipeline does
        strip=store.put_blob(png(2000 + seed), "png"),
        frames=(store.put_blob(png(3000), "png"), store.put_blob(png(3001), "png")),
        distances=(1.5, 0.0),
        seconds={"drag": 2.0},
    )
    record = EditRecord(
        id=name,
        request=request,
        status=JobState.DONE,
        result=result,
        environment={"torch": "2.13.0"},
        finished="2026-11-23T10:00:05.000000+00:00",
    )
    store.finish(record)
    return record


def weights(seed: int) -> bytes:
    return save({"w": picture(seed)}, {"prompt": "a robot"})


def entries(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        return {n: file.read(n) for n in file.namelist()}
