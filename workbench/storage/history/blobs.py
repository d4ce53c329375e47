"""Pictures, masks and files named by their content, and the thumbnails made from them."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workbench.core.errors import BadInput, StoreError
from workbench.core.keys import TAG, digest
from workbench.core.request import ImageAsset, MaskAsset
from workbench.imaging.decode import (
    encode_mask_png,
    encode_png,
    image_id,
    mask_id,
)
from workbench.storage.files import write_atomic

Kind = Literal["images", "masks", "blobs"]
KINDS: tuple[Kind, ...] = ("images", "masks", "blobs")
SUFFIXES = ("png", "jpg", "gif", "webp", "mp4", "json", "txt", "safetensors")  # never a pickle
MOST_PIXELS = 64_000_000
# What Pillow raises for bytes that are no picture, or one that is far too large.
UNDECODABLE = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_HEX = re.compile(r"[0-9a-f]{32}")
_FILE = re.compile(rf"wb1-([0-9a-f]{{32}})\.({'|'.join(SUFFIXES)})")


class Blobs:
    """`<kind>/<two digits>/wb1-<hash>.<suffix>`; equal content is stored once."""

    def __init__(self, folder: Path, temp: Path) -> None:
        """Keep files below `folder`; `temp` lies on the same file system."""
        self.folder = folder
        self._temp = temp

    def put_image(self, rgb: NDArray[np.uint8], name: str = "picture") -> ImageAsset:
        """Store a picture, uint8 [H,W,3]; its id is the hash of its pixels.

        Raises:
            BadInput: for an array of another shape or type.
            StoreError: when the disk refuses.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or not rgb.size:
            raise BadInput(
                f"A picture is uint8 [H,W,3], not {rgb.dtype} {list(rgb.shape)}.",
                code="not-a-picture",
            )
        height, width = rgb.shape[:2]
        name_id = image_id(rgb)
        self._put("images", name_id, "png", lambda: encode_png(rgb, fast=True))
        return ImageAsset(id=name_id, width=width, height=height, name=name)

    def put_mask(self, mask: NDArray[np.bool_]) -> MaskAsset:
        """Store a mask, bool [H,W], True = may change.

        Raises:
            BadInput: for an array of another shape or type.
            StoreError: when the disk refuses.
        """
        if mask.ndim != 2 or mask.dtype != np.bool_ or not mask.size:
            raise BadInput(
                f"A mask is bool [H,W], not {mask.dtype} {list(mask.shape)}.", code="not-a-mask"
            )
        height, width = mask.shape
        name_id = mask_id(mask)
        self._put("masks", name_id, "png", lambda: encode_mask_png(mask))
        return MaskAsset(id=name_id, width=width, height=height)

    def put_blob(self, raw: bytes, suffix: str) -> str:
        """Store a file as it is; its id is the hash of its bytes.

        Raises:
            BadInput: for a suffix that is not one of `SUFFIXES`.
            StoreError: when the disk refuses.
        """
        suffix = suffix.lower().lstrip(".")
        if suffix not in SUFFIXES:
            raise BadInput(
                f"A .{suffix} file is not kept; possible are: {', '.join(SUFFIXES)}.",
                code="unknown-suffix",
            )
        name_id = digest(raw)
        self._put("blobs", name_id, suffix, lambda: raw)
        return name_id

    def image(self, name_id: str) -> NDArray[np.uint8]:
        """Pixels of a picture, uint8 [H,W,3], as they were stored.

        Raises:
            StoreError: when it is missing or its pixels are not those that were stored.
        """
        rgb = decode_png(self._read("images", name_id), "RGB")
        if image_id(rgb) != name_id:
            raise StoreError(
                f"The picture {name_id} was changed on disk; restore it or redo it.",
                code="changed-on-disk",
            )
        return rgb

    def mask(self, name_id: str) -> NDArray[np.bool_]:
        """A mask, bool [H,W], as it was stored.

        Raises:
            StoreError: when it is missing or is not what was stored.
        """
        mask = decode_png(self._read("masks", name_id), "L") > 127
        if mask_id(mask) != name_id:
            raise StoreError(
                f"The mask {name_id} was changed on disk; restore it or redo it.",
                code="changed-on-disk",
            )
        return mask

    def blob(self, name_id: str) -> bytes:
        """Bytes of a file, as they were stored.

        Raises:
            StoreError: when it is missing or its hash is wrong.
        """
        raw = self._read("blobs", name_id)
        if digest(raw) != name_id:
            raise StoreError(
                f"The file {name_id} was changed on disk; restore it or redo it.",
                code="changed-on-disk",
            )
        return raw

    @staticmethod
    def id_of(raw: bytes) -> str:
        """The id that `put_blob` would give to these bytes."""
        return digest(raw)

    def find(self, name_id: str, *kinds: Kind) -> Path | None:
        """Path of an id's file, or None."""
        if not is_id(name_id):
            return None
        token = name_id.removeprefix(TAG)
        for kind in kinds or KINDS:
            for suffix in SUFFIXES if kind == "blobs" else ("png",):
                path = self.folder / kind / token[:2] / f"wb1-{token}.{suffix}"
                if path.is_file():
                    return path
        return None

    def kind_of(self, name_id: str) -> Kind | None:
        """Kind of the file that an id names, or None."""
        return next((kind for kind in KINDS if self.find(name_id, kind)), None)

    def has(self, name_id: str) -> bool:
        """True when a file of this id is there (its content is checked on reading)."""
        return self.find(name_id) is not None

    def files(self) -> Iterator[tuple[Kind, str, Path]]:
        """All files: kind, id, path."""
        for kind in KINDS:
            for path in sorted((self.folder / kind).glob("??/wb1-*")):
                match = _FILE.fullmatch(path.name)
                if match:
                    yield kind, TAG + match[1], path

    def check(self, kind: Kind, name_id: str) -> str | None:
        """Fault of a stored file, or None."""
        try:
            {"images": self.image, "masks": self.mask, "blobs": self.blob}[kind](name_id)
        except StoreError as exc:
            return str(exc)
        return None

    def _read(self, kind: Kind, name_id: str) -> bytes:
        path = self.find(name_id, kind)
        if path is None:
            raise StoreError(f"{name_id:.60} is not in the history's {kind}; import it again.")
        try:
            return path.read_bytes()
        except OSError as exc:
            raise StoreError(f"{path.name} cannot be read ({exc.strerror}).") from exc

    def _put(self, kind: Kind, name_id: str, suffix: str, make: Callable[[], bytes]) -> None:
        known = self.find(name_id, kind)
        if known is not None and self.check(kind, name_id) is None:
            with contextlib.suppress(OSError):
                os.utime(known)  # young files are safe from the bin's clearing
            return
        token = name_id.removeprefix(TAG)
        path = known or self.folder / kind / token[:2] / f"wb1-{token}.{suffix}"
        write_atomic(path, make(), temp=self._temp)


def is_id(text: object) -> bool:
    """True for text in the form of a content id; nothing else becomes part of a path."""
    return (
        isinstance(text, str)
        and text.startswith(TAG)
        and _HEX.fullmatch(text.removeprefix(TAG)) is not None
    )


def decode_png(raw: bytes, mode: str) -> NDArray[np.uint8]:
    """Pixels of a PNG that the store wrote: [H,W,3] for RGB, [H,W] for L.

    Raises:
        StoreError: when it is not such a PNG.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
            if image.width * image.height > MOST_PIXELS or image.mode != mode:
                raise StoreError(f"A stored {mode} PNG is {image.size} {image.mode}.")
            return np.array(image, dtype=np.uint8)
    except UNDECODABLE as exc:
        raise StoreError(f"A stored PNG cannot be decoded ({exc}).") from exc


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
            raise StoreError(f"{name_id!r:.60} is not a picture of the history.", code="no-picture")
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
            raise StoreError(
                f"The file {name_id} is not a picture ({exc}).", code="no-picture"
            ) from exc
        return image


def _check(raw: bytes) -> bytes:
    return digest(raw).encode()[-_CHECK:]
