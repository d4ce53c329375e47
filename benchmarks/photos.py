"""Drags on photographs whose true result is known, from folders that a person has.

    cutouts     FOLDER of photographs: a part of one over another, moved, turned or scaled by known
                amounts. NAME.mask.png beside NAME.jpg says what the foreground is; where some have
                one, those are laid over the others. Without any, soft ellipses are cut out. Where
                captions.jsonl marks pictures as held_out, only those are used.
    landmarks   FOLDER/neutral*/ID_*.jpg + .tem and FOLDER/smiling*/ID_*.jpg + .tem: one person twice,
                with landmarks by hand (webmorph's template files). The second picture, brought onto the
                first by the similarity that fits all landmarks, is the truth; the landmarks that moved
                farthest are the arrows.
    pairs       FOLDER/NAME/source.*, target.*, points.json, mask.png: frames of a video with drags, as
                RealDrag has them (arXiv 2512.12287; not to be had here, so its layout is a guess).

Every picture is brought to `SIDE` px. Positions are pixels, x right, y down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.scenes import BUCKETS, Pictures, painted
from workbench.core.errors import BadInput
from workbench.core.request import Point, PointPair
from workbench.imaging import decode
from workbench.imaging.masks import bilinear, blurred, cubic, distance_inside, grown

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

SIDE = 256
MOVES = ("shift", "turn", "scale")
KINDS = ("cutouts", "landmarks", "pairs")
MOST_DRAGS = 600
_CHANGED = 10  # levels (0..255) from which on a pixel counts as changed
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_ARROWS, _APART = 3, 24.0  # of a pair of faces: so many landmarks, at least so far apart
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, eq=False)
class PhotoDrag:
    """One drag on a photograph; the same shape as `benchmarks.scenes.Drag`."""

    index: int
    key: str
    kind: str  # shift, turn, scale, landmarks or pairs
    pairs: tuple[PointPair, ...]
    caption: str
    made: Callable[[], Pictures]

    @property
    def length(self) -> float:
        """Mean length of the pairs in pixels; pins do not count."""
        return float(np.mean([p.length for p in self.pairs if p.length > 0] or [0.0]))

    @property
    def bucket_name(self) -> str:
        """The bucket of lengths in words."""
        low, high = next((b for b in BUCKETS if self.length < b[1]), BUCKETS[-1])
        return f"{low:.0f}-{high:.0f} px"

    def pictures(self) -> Pictures:
        """Source, truth, the changed region and the painted mask."""
        return self.made()


def photo_drags(kind: str, folder: Path, count: int, seed: int) -> list[PhotoDrag]:
    """The first `count` drags of a kind from a folder.

    Raises:
        BadInput: for an unknown kind, a bad count, or a folder that does not hold what is needed.
    """
    if not 1 <= count <= MOST_DRAGS:
        raise BadInput(f"{count} drags were asked for; give 1 to {MOST_DRAGS}.")
    if not folder.is_dir():
        raise BadInput(f"There is no folder {str(folder)!r:.200}.")
    readers = {"cutouts": cutouts, "landmarks": landmarks, "pairs": video_pairs}
    if kind not in readers:
        raise BadInput(f"There is no kind {kind!r:.40}; choose from: {', '.join(KINDS)}.")
    found = readers[kind](folder, count, seed)
    if not found:
        raise BadInput(
            f"{folder} holds nothing that `--kind {kind}` can use; see bench photos --help."
        )
    return found


def read_picture(path: Path) -> U8:
    """A picture, its middle square brought to `SIDE` px.

    Raises:
        BadInput: when it cannot be read.
    """
    try:
        raw = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else b""
    except OSError as exc:
        raise BadInput(f"{path} cannot be read ({exc.strerror}).") from exc
    rgb = decode.decode(raw, path.name).rgb
    return decode.resize(_square(rgb), (SIDE, SIDE))


def _square(a: NDArray[np.uint8]) -> NDArray[np.uint8]:
    side = min(a.shape[:2])
    y, x = (a.shape[0] - side) // 2, (a.shape[1] - side) // 2
    return np.ascontiguousarray(a[y : y + side, x : x + side])


def pictures_of(source: U8, truth: U8, pairs: Sequence[PointPair], mask: Mask | None) -> Pictures:
    """The changed region, and a mask as a person paints it where none is given."""
    gap = np.abs(source.astype(np.int16) - truth).max(axis=2)
    region = blurred((gap > _CHANGED).astype(np.float32)) > 0.5
    if not region.any():
        region = gap > 0
    painted_mask = painted(region, tuple(pairs)) if mask is None else mask
    return Pictures(source, truth, region & painted_mask, painted_mask)


# --- cut-outs -------------------------------------------------------------------------------------------


def cutouts(folder: Path, count: int, seed: int) -> list[PhotoDrag]:
    """Parts of photographs over other photographs, moved by known amounts; balanced over kinds."""
    photos, captions = _photos(folder)
    if len(photos) < 2:
        return []
    out = []
    for index in range(count):
        rng = np.random.Generator(np.random.Philox(key=[seed, index]))
        kind = MOVES[index % len(MOVES)]
        low, high = BUCKETS[(index // len(MOVES)) % len(BUCKETS)]
        front, back = _chosen(rng, photos)
        layout = _layout(rng, kind, float(rng.uniform(low, high)), _mask_of(front))
        name = front.relative_to(folder).with_suffix("").as_posix().replace("/", "-")
        out.append(
            PhotoDrag(
                index, f"{kind}-{seed}-{index}-{name}", kind, layout.pairs(),
                captions.get(front, "a photo"), _maker(front, back, layout),
            )
        )  # fmt: skip
    return out


def _chosen(rng: np.random.Generator, photos: Sequence[Path]) -> tuple[Path, Path]:
    """A foreground and another photograph for the ground: with a mask and without, if there are both."""
    cut = [p for p in photos if _mask_file(p).is_file()]
    rest = [p for p in photos if not _mask_file(p).is_file()]
    if cut and rest:
        return cut[int(rng.integers(len(cut)))], rest[int(rng.integers(len(rest)))]
    first, second = (photos[int(i)] for i in rng.choice(len(photos), 2, replace=False))
    return first, second


def _mask_file(front: Path) -> Path:
    return front.with_name(front.stem + ".mask.png")


def _mask_of(front: Path) -> F32 | None:
    """How much each pixel of a photograph [SIDE, SIDE] belongs to its foreground; None: nobody said."""
    file = _mask_file(front)
    if not file.is_file():
        return None
    rgb = decode.decode(file.read_bytes(), file.name).rgb
    shape = decode.resize(_square(rgb), (SIDE, SIDE), "bilinear")[..., 0]
    return shape.astype(np.float32) / np.float32(255)


def _photos(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Photographs in a folder by name, the held-out ones if any are marked; and their captions."""
    found = sorted(
        p for p in folder.rglob("*")
        if p.suffix.lower() in _SUFFIXES and not p.name.endswith(".mask.png")
    )  # fmt: skip
    captions: dict[Path, str] = {}
    held: set[Path] = set()
    listed = folder / "captions.jsonl"
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                path = folder / str(row["file"])
                text = row["caption"]
            except (ValueError, KeyError, TypeError) as exc:
                raise BadInput(f"{listed} has a line that cannot be read: {line:.60}") from exc
            captions[path] = text[0] if isinstance(text, list) else str(text)
            if row.get("held_out"):
                held.add(path)
    return [p for p in found if p in held] if held else found, captions


@dataclass(frozen=True, slots=True)
class _Layout:
    """Pose of a foreground before and after; lengths in px of the picture, angles in radians.

    `middle` (x, y) of the foreground's photograph lies at `start` before and at `end` after. `arms` lead
    from there to where it is taken hold of. `radii` are those of the ellipse that stands for a mask.
    """

    kind: str
    start: tuple[float, float]
    end: tuple[float, float]
    turn: float
    scale: float
    radii: tuple[float, float]
    middle: tuple[float, float]
    arms: tuple[complex, ...]

    def pairs(self) -> tuple[PointPair, ...]:
        """Arrows: one for a shift, one and a pin in the middle for a turn, two for a scale."""
        start, end = complex(*self.start), complex(*self.end)
        pairs = [(start + a, end + a * self.scale * np.exp(1j * self.turn)) for a in self.arms]
        if self.kind != "scale":
            pairs.append((start, end))
        return tuple(
            PointPair(Point(float(a.real), float(a.imag)), Point(float(b.real), float(b.imag)))
            for a, b in pairs
        )


SHOWN = 1.6  # a foreground is shown at 1 / SHOWN of its size


def _layout(rng: np.random.Generator, kind: str, length: float, mask: F32 | None) -> _Layout:
    a, b = float(rng.uniform(34, 52)), float(rng.uniform(34, 52))
    middle, arms = _grips(mask, 0.6 * a)
    room = max(a, b) + 8
    for _ in range(200):
        x, y = (float(v) for v in rng.uniform(room, SIDE - room, 2))
        sign = 1 if rng.random() < 0.5 else -1
        turn, scale, end = 0.0, 1.0, (x, y)
        reach = abs(arms[0])
        if kind == "turn":
            turn = float(np.clip(2 * np.arcsin(min(1.0, length / (2 * reach))), 0, 1.2)) * sign
        elif kind == "scale":
            scale = float(np.clip(1 + sign * length / reach, 0.6, 1.6))
        else:
            way = length * np.exp(1j * rng.uniform(0, 2 * np.pi))
            end = (x + float(way.real), y + float(way.imag))
        if all(room <= v <= SIDE - room for v in end):
            break
    used = {"shift": (), "turn": arms[:1], "scale": arms}[kind]
    return _Layout(kind, (x, y), end, turn, scale, (a, b), middle, used)


def _grips(mask: F32 | None, reach: float) -> tuple[tuple[float, float], tuple[complex, ...]]:
    """The middle (x, y) of a foreground in its photograph, and two arms from there, px of the picture.

    All end well inside the thing: the middle where it is thickest, the first arm about `reach` long, the
    second on the other side.
    """
    half = (SIDE - 1) / 2
    if mask is None:
        return (half, half), (complex(reach), complex(-reach))
    deep = distance_inside(mask > 0.5)
    row, col = np.unravel_index(int(np.argmax(deep)), deep.shape)
    rows, cols = np.nonzero(deep >= min(4.0, float(deep.max())))
    places = ((cols - col) + 1j * (rows - row)) / SHOWN
    off = np.abs(np.abs(places) - reach)
    first = places[int(np.argmin(off))]
    second = places[int(np.argmin(off + 0.5 * np.abs(places + first)))]
    arms = tuple(complex(a) if abs(a) > 4 else complex(reach) for a in (first, second))
    return (float(col), float(row)), arms


def _maker(front: Path, back: Path, layout: _Layout) -> Callable[[], Pictures]:
    def make() -> Pictures:
        fore, ground = read_picture(front), read_picture(back)
        alpha = _alpha(front, layout)
        source, truth = (_over(ground, fore, alpha, layout, moved=m) for m in (False, True))
        return pictures_of(source, truth, layout.pairs(), None)

    return make


def _alpha(front: Path, layout: _Layout) -> F32:
    """Opacity of the foreground in its own photograph [SIDE, SIDE]."""
    shape = _mask_of(front)
    if shape is None:
        y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
        a, b = (SHOWN * r for r in layout.radii)
        shape = np.clip((1 - np.hypot(x / a, y / b)) * min(a, b) / 2 + 0.5, 0, 1)
    return blurred(shape.astype(np.float32))


def _over(ground: U8, fore: U8, alpha: F32, layout: _Layout, *, moved: bool) -> U8:
    """The foreground laid over the ground before or after its move, uint8 [SIDE, SIDE, 3]."""
    at, turn, scale = (layout.end, layout.turn, layout.scale) if moved else (layout.start, 0.0, 1.0)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    dx, dy = (x - at[0]) * (SHOWN / scale), (y - at[1]) * (SHOWN / scale)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = layout.middle[0] + c * dx + s * dy, layout.middle[1] - s * dx + c * dy
    share = bilinear(alpha, v, u) * ((u >= 0) & (u < SIDE) & (v >= 0) & (v < SIDE))
    out = ground.astype(np.float32)
    i, j = np.nonzero(share > 0.003)
    # shown smaller: a blurred copy keeps what is between its pixels from showing up as stripes
    soft = np.rint(blurred(fore.astype(np.float32))).astype(np.uint8)
    own = cubic(soft, v[i, j], u[i, j])
    out[i, j] += (own - out[i, j]) * share[i, j][:, None]
    return np.rint(np.clip(out, 0, 255)).astype(np.uint8)


# --- faces with landmarks -------------------------------------------------------------------------------


def read_tem(path: Path) -> NDArray[np.float64]:
    """Landmarks [N, 2] (x, y) of a webmorph template file: their number, then one pair a line.

    Raises:
        BadInput: when the file does not hold that.
    """
    try:
        lines = path.read_text(encoding="ascii", errors="replace").split("\n")
        count = int(lines[0])
        points = np.array([[float(v) for v in line.split()] for line in lines[1 : 1 + count]])
    except (OSError, ValueError, IndexError) as exc:
        raise BadInput(f"{path} is not a landmark template (.tem): {exc}.") from exc
    if points.shape != (count, 2) or count < 3 or not np.isfinite(points).all():
        raise BadInput(
            f"{path} says that it has {count} landmarks and holds {len(points)} good ones."
        )
    return points


def landmarks(folder: Path, count: int, seed: int) -> list[PhotoDrag]:
    """Neutral and smiling pictures of one person each."""
    del seed  # people are taken by name

    def by_person(kind: str) -> dict[str, Path]:
        found = sorted(folder.glob(f"{kind}*/*.tem"))
        return {p.name.split("_")[0]: p for p in found if not p.name.startswith(".")}

    before, after = by_person("neutral"), by_person("smiling")
    out: list[PhotoDrag] = []
    for person in sorted(before.keys() & after.keys())[:count]:
        pairs, made = _faces(before[person], after[person])
        out.append(
            PhotoDrag(len(out), f"face-{person}", "landmarks", pairs, "a photo of a face", made)
        )
    return out


def similarity(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[complex, complex]:
    """(m, t) of the similarity z -> m z + t (complex x + iy) that brings points `a` nearest to `b`."""
    p, q = (v[:, 0] + 1j * v[:, 1] for v in (a, b))
    pm, qm = p.mean(), q.mean()
    m = complex(((q - qm) * np.conj(p - pm)).sum() / (np.abs(p - pm) ** 2).sum())
    return m, complex(qm - m * pm)


def _faces(first: Path, second: Path) -> tuple[tuple[PointPair, ...], Callable[[], Pictures]]:
    a, b = read_tem(first), read_tem(second)
    if len(a) != len(b):
        raise BadInput(f"{first.name} has {len(a)} landmarks and {second.name} {len(b)}.")
    low, high = a.min(axis=0), a.max(axis=0)
    middle, side = (low + high) / 2, 1.25 * float((high - low).max())
    k = SIDE / side
    m, t = similarity(b, a)

    def to_crop(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((points - middle) * k + SIDE / 2 - 0.5)

    z = m * (b[:, 0] + 1j * b[:, 1]) + t
    here, there = to_crop(a), to_crop(np.stack([z.real, z.imag], axis=1))
    moved = np.hypot(*(there - here).T)
    chosen: list[int] = []
    for i in np.argsort(-moved):
        if all(np.hypot(*(here[i] - here[j])) >= _APART for j in chosen):
            chosen.append(int(i))
        if len(chosen) == _ARROWS:
            break
    pairs = tuple(
        PointPair(Point(*map(float, here[i])), Point(*map(float, there[i])))
        for i in chosen
        if moved[i] > 1
    ) or (PointPair(Point(*map(float, here[0])), Point(*map(float, there[0]))),)

    def make() -> Pictures:
        source = _cropped(_photo_of(first), lambda x, y: _back(x, y, middle, k, None))
        truth = _cropped(_photo_of(second), lambda x, y: _back(x, y, middle, k, (m, t)))
        return pictures_of(source, truth, pairs, None)

    return pairs, make


def _photo_of(landmark_file: Path) -> Path:
    for suffix in _SUFFIXES:
        if (found := landmark_file.with_suffix(suffix)).is_file():
            return found
    raise BadInput(f"There is no picture beside {landmark_file}.")


def _back(
    x: F32, y: F32, middle: NDArray[np.float64], k: float, onto: tuple[complex, complex] | None
) -> tuple[F32, F32]:
    """Pixels of the crop as pixels of a photograph, through the similarity that was laid onto it."""
    z = (x - SIDE / 2 + 0.5) / k + middle[0] + 1j * ((y - SIDE / 2 + 0.5) / k + middle[1])
    if onto is not None:
        z = (z - onto[1]) / onto[0]
    return z.real.astype(np.float32), z.imag.astype(np.float32)


def _cropped(path: Path, place: Callable[[F32, F32], tuple[F32, F32]]) -> U8:
    """A photograph read at the places that the pixels of the crop stand for."""
    rgb = decode.decode(path.read_bytes(), path.name).rgb
    y, x = (v.ravel().astype(np.float32) for v in np.mgrid[:SIDE, :SIDE])
    u, v = place(x, y)
    step = max(1, round(float(np.hypot(u[1] - u[0], v[1] - v[0]))))
    soft = np.rint(blurred(rgb.astype(np.float32), step // 2)).astype(np.uint8) if step > 1 else rgb
    return np.rint(cubic(soft, v, u)).astype(np.uint8).reshape(SIDE, SIDE, 3)


# --- frames of a video ----------------------------------------------------------------------------------


def video_pairs(folder: Path, count: int, seed: int) -> list[PhotoDrag]:
    """Source and target frames with drags; see the head of this module for the layout."""
    del seed
    out: list[PhotoDrag] = []
    for entry in sorted(p for p in folder.iterdir() if (p / "points.json").is_file())[:count]:
        source, target = (_one(entry, name) for name in ("source", "target"))
        try:
            data = json.loads((entry / "points.json").read_text(encoding="utf-8"))
            points = data["points"] if isinstance(data, dict) else data
            flat = [Point(*(float(v) for v in p)) for p in points]
            prompt = str(data.get("prompt", "a photo")) if isinstance(data, dict) else "a photo"
        except (ValueError, KeyError, TypeError) as exc:
            raise BadInput(f"{entry / 'points.json'} cannot be read: {exc}.") from exc
        if not flat or len(flat) % 2:
            raise BadInput(f"{entry / 'points.json'} needs handle and target in turn.")
        size = decode.decode(source.read_bytes(), source.name).rgb.shape[:2]
        side = min(size)
        x0, y0, k = (size[1] - side) // 2, (size[0] - side) // 2, SIDE / side

        def scaled(p: Point, x0: int = x0, y0: int = y0, k: float = k) -> Point:
            return Point((p.x - x0 + 0.5) * k - 0.5, (p.y - y0 + 0.5) * k - 0.5)

        pairs = tuple(
            PointPair(scaled(a), scaled(b)) for a, b in zip(flat[::2], flat[1::2], strict=True)
        )
        made = _frames(source, target, entry / "mask.png", pairs)
        out.append(PhotoDrag(len(out), f"pair-{entry.name}", "pairs", pairs, prompt, made))
    return out


def _one(entry: Path, name: str) -> Path:
    for suffix in _SUFFIXES:
        if (found := entry / f"{name}{suffix}").is_file():
            return found
    raise BadInput(f"{entry} lacks {name}.jpg or {name}.png.")


def _frames(
    source: Path, target: Path, mask: Path, pairs: tuple[PointPair, ...]
) -> Callable[[], Pictures]:
    def make() -> Pictures:
        painted_mask: Mask | None = None
        if mask.is_file():
            painted_mask = read_picture(mask)[..., 0] > 127
            painted_mask = grown(painted_mask, 1)
        return pictures_of(read_picture(source), read_picture(target), pairs, painted_mask)

    return make
