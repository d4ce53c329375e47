"""What the tests of hostile zips share: a good zip, and ways to build bad ones from it."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workbench.core.record import EditRecord, EditResult, JobState
from workbench.core.request import EditRequest, Point, PointPair
from workbench.storage.archive import Limits, Refused
from workbench.storage.archive.read import import_zip
from workbench.storage.history import Store


def png(seed: int) -> bytes:
    out = io.BytesIO()
    rgb = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(out, "PNG")
    return out.getvalue()


def names(raw: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        return file.namelist()


def rebuild(
    raw: bytes,
    change: Callable[[dict[str, bytes]], None] = lambda files: None,
    *,
    entry: Callable[[zipfile.ZipInfo], None] = lambda info: None,
    manifest: Callable[[dict[str, Any]], None] = lambda data: None,
    fix: bool = True,
    compress: int = zipfile.ZIP_STORED,
) -> bytes:
    """The zip with changes; with `fix` the manifest's hashes are made to fit, as an attacker would."""
    with zipfile.ZipFile(io.BytesIO(raw)) as old:
        files = {n: old.read(n) for n in old.namelist()}
    data = json.loads(files.pop("manifest.json"))
    change(files)
    if fix:
        data["files"] = {
            n: {"sha256": hashlib.sha256(b).hexdigest(), "bytes": len(b)} for n, b in files.items()
        }
    manifest(data)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compress) as new:
        for name, body in {**files, "manifest.json": json.dumps(data).encode()}.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compress
            info.external_attr = 0o100644 << 16
            entry(info)
            new.writestr(info, body)
    return out.getvalue()


def refused(
    store: Store, raw: bytes | Path, code: str | tuple[str, ...], limits: Limits | None = None
) -> None:
    with pytest.raises(Refused) as caught:
        import_zip(store, raw, limits=limits)
    assert caught.value.code in ((code,) if isinstance(code, str) else code), caught.value
    assert list(store.files()) == []
    assert store.records() == []
    assert store.unreadable() == []


def make_source(folder: Path) -> Store:
    """A history of two edits."""
    store = Store(folder / "history")
    for seed in (1, 2):
        rgb = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        image, mask = store.put_image(rgb, "p.png"), store.put_mask(rgb[..., 0] > 99)
        request = EditRequest(image=image, mask=mask, pairs=(PointPair(Point(1, 2), Point(3, 4)),))
        name = store.begin(request)
        result = EditResult(image=store.put_blob(png(seed + 10), "png"))
        store.finish(EditRecord(id=name, request=request, status=JobState.DONE, result=result))
    return store
