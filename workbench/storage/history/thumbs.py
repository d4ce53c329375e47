"""Small pictures for lists: made once, kept beside the history, made again when damaged."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from workbench.core.errors import StoreError
from workbench.core.keys import digest
from workbench.storage.files import write_atomic
from workbench.storage.history.blobs import UNDECODABLE, Blobs, is_id

log = logging.getLogger(__name__)
_CHECK = 16


class Thumbs:
    """`<folder>/wb1-<hash>-<side>.jpg`: 16 characters of a hash, then a JPEG."""

    def __init__(self, blobs: Blobs, folder: Path, temp: Path) -> None:
        """Make small pictures of what lies in `blobs`."""
        self._blobs, self._folder, self._temp = blobs, folder, temp

    def get(self, name_id: str, side: int = 256) -> bytes:
        """JPEG of a stored picture, mask or image file, longest side at most `side` px (16..1024).

        Raises:
            StoreError: when the picture is missing or damaged.
        """
        side = max(16, min(int(side), 1024))
        if not is_id(name_id):
            raise StoreError(f"{name_id!r:.60} is no picture of the history.")
        path = self._folder / f"{name_id.replace(':', '-')}-{side}.jpg"
        try:
            known = path.read_bytes()
        except OSError:  # not made yet, or not to be had: it is made below
            known = b""
        if known[:_CHECK] == _check(known[_CHECK:]):
            return known[_CHECK:]
        raw = self._make(name_id, side)
        try:
            write_atomic(path, _check(raw) + raw, temp=self._temp, durable=False)
        except StoreError as exc:
            log.info("a thumbnail was not kept: %s", exc)
        return raw

    def _make(self, name_id: str, side: int) -> bytes:
        if self._blobs.find(name_id, "images"):
            image = Image.fromarray(self._blobs.image(name_id))
        elif self._blobs.find(name_id, "masks"):
            image = Image.fromarray(np.where(self._blobs.mask(name_id), 255, 0).astype(np.uint8))
        else:
            image = self._open(name_id)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=85)
        return out.getvalue()

    def _open(self, name_id: str) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(self._blobs.blob(name_id)))
            image.load()
        except UNDECODABLE as exc:
            raise StoreError(f"The file {name_id} is no picture ({exc}).") from exc
        return image


def _check(raw: bytes) -> bytes:
    return digest(raw).encode()[-_CHECK:]
