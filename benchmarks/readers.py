"""Sets of drags that others made: DragBench's folders, GoodDrag's, and our own manifest.

    DragBench   FOLDER/<category>/<name>/  original_image.png  meta_data.pkl  [user_drag.png]
    GoodDrag    FOLDER/<name>/             original.jpg        points.json    mask.png
    manifest    FOLDER/manifest.json                           (docs/formats.md)

Every file is untrusted: pictures go through `workbench.imaging.decode`, pickles through `unpickle`, and a
manifest cannot name a file outside its folder. Points are image pixels, x right, y down, in turns
handle and target; a mask is painted where the picture may change, and one without paint means that
all of it may.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.unpickle import read_pickle
from workbench.core import keys
from workbench.core.errors import BadInput
from workbench.core.request import (
    MAX_PAIRS,
    MAX_PROMPT,
    Point,
    PointPair,
)
from workbench.imaging import decode, opening

U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Kind = Literal["dragbench", "gooddrag", "manifest"]

MANIFEST = "manifest.json"
MANIFEST_KIND = "drag-workbench-set"
MANIFEST_FORMAT = 1
META, PICTURE = "meta_data.pkl", "original_image.png"
POINTS, MASK = "points.json", "mask.png"
ORIGINALS = ("original.jpg", "original.jpeg", "original.png")
MAX_JSON = 16 * 1024 * 1024
MAX_SAMPLES = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One picture with its drag, checked."""

    name: str  # "animals/JH_2023-09-14-1820-16"
    category: str  # "" where the set has none
    rgb: U8  # [H, W, 3]
    mask: Mask | None  # [H, W], None = all of the picture may change
    pairs: tuple[PointPair, ...]
    prompt: str
    notices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name by content: picture, mask, arrows and prompt; folders and file names do not count."""
        mask = decode.mask_id(self.mask) if self.mask is not None else None
        arrows = [p.to_json() for p in self.pairs]
        return keys.key("sample", decode.image_id(self.rgb), mask, arrows, self.prompt)


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample that was found but not yet read."""

    kind: Kind
    name: str
    path: Path  # its folder; of a manifest the manifest
    item: Mapping[str, Any] | None = None  # the manifest's entry

    def read(self) -> Sample:
        """Read and check everything.

        Raises:
            BadInput: naming the file, what is wrong with it, and the limit.
        """
        if self.kind == "dragbench":
            return _dragbench(self)
        if self.kind == "gooddrag":
            return _gooddrag(self)
        return _listed(self)


def find_samples(folder: Path) -> list[Entry]:
    """All samples below a folder (or of a manifest), by name; nothing but a manifest is opened.

    Raises:
        BadInput: when the folder does not exist or holds none.
    """
    if folder.is_file() and folder.suffix == ".json":
        return _manifest(folder)
    if not folder.is_dir():
        raise BadInput(
            f"{folder} is not a folder; give one with DragBench's or GoodDrag's layout.",
            code="no-folder",
        )
    if (folder / MANIFEST).is_file():
        return _manifest(folder / MANIFEST)
    found = sorted(_walk(folder, folder, 0), key=lambda e: e.name)
    if not found:
        raise BadInput(
            f"{folder} holds no drags: no folder with {META} (DragBench), none with {POINTS} "
            f"(GoodDrag), and no {MANIFEST}.",
            code="no-drags",
        )
    return found


def _walk(top: Path, folder: Path, depth: int) -> Iterator[Entry]:
    name = folder.relative_to(top).as_posix() if folder != top else folder.name
    if (folder / META).is_file():
        yield Entry("dragbench", name, folder)
    elif (folder / POINTS).is_file():
        yield Entry("gooddrag", name, folder)
    elif depth < 3:
        for inner in folder.iterdir():
            if inner.is_dir() and not inner.is_symlink():
                yield from _walk(top, inner, depth + 1)


# --- the three layouts ------------------------------------------------------------------------------------


def _dragbench(entry: Entry) -> Sample:
    """DragBench (arXiv 2306.14435): prompt, points and mask in a pickle."""
    path = entry.path / META
    meta = read_pickle(_bytes(path, opening.MAX_BYTES), f"{entry.name}/{META}")
    if not isinstance(meta, dict):
        raise BadInput(
            f"{entry.name}/{META} holds no dictionary with prompt, points and mask.",
            code="not-a-dictionary",
        )
    for wanted in ("prompt", "points", "mask"):
        if wanted not in meta:
            raise BadInput(f"{entry.name}/{META} lacks {wanted!r}.", code="missing")
    return _sample(
        entry, _picture(entry.path / PICTURE, entry.name), _points(meta["points"], entry.name),
        meta["prompt"], meta["mask"],
    )  # fmt: skip


def _gooddrag(entry: Entry) -> Sample:
    """GoodDrag (arXiv 2404.07206): points in JSON, the mask's first channel, no prompt."""
    data = _json(entry.path / POINTS, f"{entry.name}/{POINTS}")
    if not isinstance(data, dict) or "points" not in data:
        raise BadInput(f"{entry.name}/{POINTS} lacks 'points'.", code="no-points")
    original = next((p for n in ORIGINALS if (p := entry.path / n).is_file()), None)
    if original is None:
        raise BadInput(
            f"{entry.name} holds no picture; {', '.join(ORIGINALS)} were looked for.",
            code="no-picture",
        )
    picture = _picture(original, entry.name)
    mask: Any = None
    if (entry.path / MASK).is_file():
        raw = _bytes(entry.path / MASK, opening.MAX_BYTES)
        mask = decode.decode_mask(raw, picture.width, picture.height, f"{entry.name}/{MASK}")
    return _sample(entry, picture, _points(data["points"], entry.name), "", mask)


def _listed(entry: Entry) -> Sample:
    """One entry of our manifest."""
    assert entry.item is not None
    item, top = entry.item, entry.path.parent
    picture = _picture(_inside(top, item.get("image"), entry.name), entry.name)
    pairs = item.get("pairs")
    if not isinstance(pairs, list) or not 1 <= len(pairs) <= MAX_PAIRS:
        raise BadInput(f"{entry.name}: 'pairs' must be a list of 1 to {MAX_PAIRS} arrows.")
    mask: Any = item.get("mask")
    if mask == "auto":
        from workbench.canvas.selection import propose

        mask = propose(picture.rgb, [PointPair.from_json(p) for p in pairs])
    elif mask is not None:
        raw = _bytes(_inside(top, mask, entry.name), opening.MAX_BYTES)
        mask = decode.decode_mask(raw, picture.width, picture.height, entry.name)
    return _sample(
        entry, picture, [PointPair.from_json(p) for p in pairs], item.get("prompt", ""), mask
    )


def _manifest(path: Path) -> list[Entry]:
    data = _json(path, path.name)
    if not isinstance(data, dict) or data.get("kind") != MANIFEST_KIND:
        raise BadInput(
            f"{path} is not a manifest: its 'kind' must be {MANIFEST_KIND!r}.", code="other-kind"
        )
    if data.get("format") != MANIFEST_FORMAT:
        raise BadInput(
            f"{path} has format {data.get('format')!r:.20}; this version reads {MANIFEST_FORMAT}.",
            code="newer-format",
        )
    samples = data.get("samples")
    if not isinstance(samples, list) or not 1 <= len(samples) <= MAX_SAMPLES:
        raise BadInput(
            f"{path}: 'samples' must be a list of 1 to {MAX_SAMPLES} drags.", code="sample-count"
        )
    entries, seen = [], set()
    for number, item in enumerate(samples, 1):
        name = item.get("name") if isinstance(item, dict) else None
        name = decode.clean_name(name, "") if isinstance(name, str) else ""
        if not name or name in seen:
            raise BadInput(f"{path}: sample {number} has no name of its own.", code="bad-name")
        seen.add(name)
        entries.append(Entry("manifest", name, path, item))
    return sorted(entries, key=lambda e: e.name)


# --- checks that all share --------------------------------------------------------------------------------


def _sample(
    entry: Entry,
    picture: decode.Decoded,
    pairs: Sequence[PointPair],
    prompt: Any,
    mask: Any,
) -> Sample:
    if not isinstance(prompt, str):
        raise BadInput(
            f"{entry.name}: the prompt is {type(prompt).__name__}, not text.", code="wrong-type"
        )
    if len(prompt) > MAX_PROMPT:
        raise BadInput(
            f"{entry.name}: the prompt has {len(prompt)} characters; the limit is {MAX_PROMPT}.",
            code="too-long",
        )
    if not 1 <= len(pairs) <= MAX_PAIRS:
        raise BadInput(
            f"{entry.name} has {len(pairs)} arrows; 1 to {MAX_PAIRS} are possible.",
            code="pair-count",
        )
    width, height = picture.width, picture.height
    for number, pair in enumerate(pairs, 1):
        for what, p in (("handle", pair.handle), ("target", pair.target)):
            if not (-0.5 <= p.x <= width - 0.5 and -0.5 <= p.y <= height - 0.5):
                raise BadInput(
                    f"{entry.name}: {what} {number} ({p.x:.0f}, {p.y:.0f}) is outside the "
                    f"{width}x{height} picture.",
                    code="outside-picture",
                )
    category = entry.name.rpartition("/")[0]
    if entry.item is not None:
        category = str(entry.item.get("category", ""))[:80]
    return Sample(
        entry.name, category, picture.rgb, _mask(mask, width, height, entry.name), tuple(pairs),
        prompt, picture.notices,
    )  # fmt: skip


def _mask(mask: Any, width: int, height: int, name: str) -> Mask | None:
    """A mask of numbers, painted where it is not 0; of several channels the first."""
    if mask is None:
        return None
    if not isinstance(mask, np.ndarray) or mask.ndim not in (2, 3) or mask.dtype.kind not in "biuf":
        raise BadInput(
            f"{name}: the mask is not an array of numbers with two or three axes.",
            code="not-a-mask",
        )
    plane = mask[..., 0] if mask.ndim == 3 and mask.shape[2] else mask
    if plane.shape != (height, width):
        size = "x".join(str(n) for n in plane.shape[::-1])
        raise BadInput(
            f"{name}: the mask is {size} px but the picture is {width}x{height} px; they must have "
            "the same size.",
            code="mask-size",
        )
    painted = np.ascontiguousarray(plane > 0)
    return painted if painted.any() else None


def _points(points: Any, name: str) -> list[PointPair]:
    """Handle, target, handle, target, ... as [x, y]."""
    if not isinstance(points, (list, np.ndarray)) or len(points) % 2:
        raise BadInput(
            f"{name}: the points must be a list of handles and targets in turns.", code="not-a-pair"
        )
    found = []
    for p in points:
        if not isinstance(p, (list, np.ndarray)) or len(p) != 2:
            raise BadInput(f"{name}: a point is [x, y], not {str(p)[:40]!r}.", code="points-shape")
        x, y = (v.item() if isinstance(v, np.generic) else v for v in p)
        found.append(Point(x, y))
    return [PointPair(a, b) for a, b in zip(found[::2], found[1::2], strict=True)]


def _picture(path: Path, name: str) -> decode.Decoded:
    return decode.decode(_bytes(path, opening.MAX_BYTES), name)


def _inside(top: Path, name: Any, what: str) -> Path:
    """A file that a manifest names; never one outside its folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadInput(f"{what}: a file's name is missing in the manifest.", code="no-file")
    path = (top / name).resolve()
    if not path.is_relative_to(top.resolve()):
        raise BadInput(
            f"{what}: {name!r:.80} lies outside the manifest's folder.", code="outside-folder"
        )
    return path


def _json(path: Path, name: str) -> Any:
    try:
        return json.loads(_bytes(path, MAX_JSON))
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"{name} is not JSON ({str(exc)[:80]}).", code="not-json") from exc


def _bytes(path: Path, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise BadInput(f"{path} is not a file.", code="missing-file")
        if size > limit:
            raise BadInput(
                f"{path} has {size / 2**20:.0f} MB; the limit is {limit >> 20} MB.",
                code="too-large",
            )
        return path.read_bytes()
    except OSError as exc:
        raise BadInput(f"{path} cannot be read ({exc.strerror}).", code="unreadable") from exc
