"""Make the examples of the first page once: `python -m training.make_examples [FILE ...]`.

The pages must not wait for torch, so the pictures lie in `examples/`: scenes as PNG files, drawn here,
and photographs as WebP files (SOURCES.md says whose), with captions, a drag (arrows and mask) and what a
shipped model makes of it (WebP) in `examples.json`. The same command on the same scene version draws the
same pictures; the results take about half a minute each on a CPU and are those of the machine that made
them. With FILEs only their results are made again.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training import scenes
from training.kinds_people import robot_points
from workbench.app import App
from workbench.canvas.drawing import Arrow, Drawing, Polygon
from workbench.canvas.rasterize import rasterise
from workbench.core.config import DragConfig, lora_preset
from workbench.core.request import EditRequest, ModelRef, Point, PointPair
from workbench.storage.settings import Settings

log = logging.getLogger(__name__)
FOLDER = Path(__file__).resolve().parents[1] / "workbench" / "ui" / "examples"
SIDE = 256  # px of a scene's picture
GROW = 7  # px around what really changes, as a careful hand would paint

# kind, seed, title, hint, and how far each handle is asked to move (x right, y down, px)
EXAMPLES: tuple[tuple[str, int, str, str, dict[str, tuple[float, float]]], ...] = (
    ("robot", 784, "Robot with a laser", "Move the arm and the laser upwards.",
     {"gun": (-8, -56)}),
    ("animal", 701, "Cat", "Lift the tail.", {"tail": (-18, -26)}),
    ("face", 705, "Portrait", "Turn the nose and let the mouth follow.", {"nose": (-14, 0)}),
    ("flower", 702, "Flower", "Bend the bloom to the left.", {"bloom": (-38, 8)}),
    ("landscape", 703, "Mountains", "Make the peak higher.", {"peak": (6, -34)}),
    ("sailboat", 705, "Sailing boat", "Tilt the mast.", {"mast": (-26, 4)}),
    ("face", 703, "Long hair", "Make the hair shorter.", {"hair": (0, -34)}),
    ("animal", 707, "Black cat", "Lower the head.", {"head": (4, 26)}),
)  # fmt: skip


Corners = tuple[tuple[int, int], ...]

# file, title, prompt, hint, arrow (x, y of handle and target), how much it holds, mask's corners; px
PHOTOS: tuple[tuple[str, str, str, str, tuple[int, int, int, int], float, Corners], ...] = (
    ("otter.webp", "Otter", "a photo of an otter on a rock by the water", "Let it raise its head.",
     (163, 130, 150, 92), 0.0,
     ((90, 50), (260, 50), (330, 190), (290, 230), (190, 230), (120, 200), (90, 150))),
    ("wren.webp", "Wren", "a photo of a small bird behind a rock", "Let it stretch its neck.",
     (215, 182, 215, 140), 0.0, ((130, 80), (320, 80), (320, 230), (240, 300), (130, 292))),
    ("dune.webp", "Dune", "a photo of a sand dune under a blue sky", "Make the dune higher.",
     (337, 222, 322, 160), 0.0,
     ((90, 240), (200, 110), (420, 100), (600, 260), (520, 400), (250, 420), (110, 380))),
    ("cat.webp", "Tabby", "a close-up photo of a tabby cat", "Let it look the other way.",
     (262, 244, 236, 250), 0.0,
     ((180, 150), (330, 150), (360, 220), (330, 285), (200, 290), (160, 240))),
    ("osprey.webp", "Osprey", "a photo of an osprey on a branch", "Move its head to the left.",
     (290, 142, 255, 136), 0.0,
     ((180, 80), (370, 80), (385, 190), (360, 240), (215, 250), (180, 190))),
    ("lake.webp", "Mountain lake", "a photo of snowy mountains and a lake", "Make the peak higher.",
     (289, 108, 292, 66), 0.3,
     ((170, 20), (430, 20), (520, 230), (500, 270), (190, 270), (180, 130))),
)  # fmt: skip


def _point(xy: tuple[float, float]) -> Point:
    return Point(round(float(xy[0]), 1), round(float(xy[1]), 1))


def _beyond(
    wrist: tuple[float, float], gun: tuple[float, float], far: float = 26.0
) -> tuple[float, float]:
    """A point of the laser's beam, `far` px from the muzzle."""
    dx, dy = gun[0] - wrist[0], gun[1] - wrist[1]
    k = far / math.hypot(dx, dy)
    return gun[0] + k * dx, gun[1] + k * dy


def _to_border(corner: Point, side: int = SIDE, near: float = 4.0) -> Point:
    """A corner close to the picture's border, on it: a strip that is left there would stay behind."""

    def moved(v: float) -> float:
        return -0.5 if v <= near else side - 0.5 if v >= side - 1 - near else v

    return Point(moved(corner.x), moved(corner.y))


def hull(mask: NDArray[np.bool_]) -> list[Point]:
    """Corners of the convex hull of a mask bool [H,W], clockwise (Andrew's monotone chain)."""
    rows = [(int(y), np.flatnonzero(mask[y])) for y in np.flatnonzero(mask.any(axis=1))]
    points = sorted({(int(x), y) for y, xs in rows for x in (xs[0], xs[-1])})

    def chain(ordered: list[tuple[int, int]]) -> list[tuple[int, int]]:
        kept: list[tuple[int, int]] = []
        for p in ordered:
            while len(kept) > 1 and _turn(kept[-2], kept[-1], p) <= 0:
                kept.pop()
            kept.append(p)
        return kept[:-1]

    corners = chain(points) + chain(points[::-1])
    return [Point(float(x), float(y)) for x, y in corners]


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def make(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Draw all examples into `folder`; returns what stands in `examples.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    listing: list[dict[str, Any]] = []
    for kind, seed, title, hint, moves in EXAMPLES:
        before = scenes.sample(kind, seed)
        start = before.handles
        wanted = {n: (start[n].x + dx, start[n].y + dy) for n, (dx, dy) in moves.items()}
        after = before.drag(wanted)
        end = after.handles
        ways = [((start[n].x, start[n].y), (end[n].x, end[n].y)) for n in moves]
        if kind == "robot":  # the arm and the beam follow the gun with arrows of their own
            wrists = [robot_points(scene.params)["_wrist"] for scene in (before, after)]
            ways.append((wrists[0], wrists[1]))
            beam = [_beyond(wrist, gun) for wrist, gun in zip(wrists, ways[0], strict=True)]
            ways.append((beam[0], beam[1]))
        arrows = [Arrow(PointPair(_point(a), _point(b))) for a, b in ways]
        corners = [_to_border(c) for c in hull(scenes.changed_mask(before, after, grow=GROW))]
        drawing = Drawing(tuple(arrows), (Polygon(tuple(corners)),))
        pixels = (scenes.render([before])[0] * 255 + 0.5).byte().permute(1, 2, 0).numpy()
        name = f"{kind}-{seed}.png"
        Image.fromarray(pixels).save(folder / name, optimize=True)
        listing.append({
            "file": name, "title": title, "prompt": before.caption, "hint": hint,
            "drawing": drawing.to_json(), "after": f"{kind}-{seed}-after.webp",
        })  # fmt: skip
        log.info("%s: %s", name, before.caption)
    listing += [_photo(*photo) for photo in PHOTOS]
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in listing)
    text = f"[\n{lines}\n]\n"
    (folder / "examples.json").write_text(text, encoding="utf-8")
    return listing


def _photo(
    file: str,
    title: str,
    prompt: str,
    hint: str,
    arrow: tuple[int, int, int, int],
    grow: float,
    corners: Corners,
) -> dict[str, Any]:
    """What stands in `examples.json` about a photograph."""
    pair = PointPair(_point(arrow[:2]), _point(arrow[2:]), grow=grow)
    drawing = Drawing((Arrow(pair),), (Polygon(tuple(_point(c) for c in corners)),))
    return {
        "file": file, "title": title, "prompt": prompt, "hint": hint,
        "drawing": drawing.to_json(), "after": f"{Path(file).stem}-after.webp",
    }  # fmt: skip


def finish(listing: list[dict[str, Any]], folder: Path = FOLDER) -> None:
    """Run each example's drag on the shipped model that suits it and write its result into `folder`."""
    photos = {photo[0] for photo in PHOTOS}
    with tempfile.TemporaryDirectory() as cache:
        app = App(Settings(folder=Path(cache), model="storybook"))
        for entry in listing:
            model = "album" if entry["file"] in photos else "storybook"
            pixels = np.asarray(Image.open(folder / entry["file"]).convert("RGB"))
            drawing = Drawing.from_json(entry["drawing"])
            request = EditRequest(
                image=app.store.put_image(pixels, entry["title"]),
                mask=app.store.put_mask(rasterise(drawing, *pixels.shape[1::-1])),
                pairs=drawing.pairs,
                prompt=entry["prompt"],
                model=ModelRef(name=model),
                lora=lora_preset("tutorial"),
                drag=DragConfig.preset(app.settings.method, app.settings.preset),
            )
            result = app.store.record(app.perform("edit", request)).result
            assert result is not None
            after = Image.fromarray(app.store.image(result.image))
            after.save(folder / entry["after"], "WEBP", quality=92, method=6)
            log.info("%s: %s", entry["after"], result.choice or result.stop)
        app.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    made = make()
    finish([entry for entry in made if not sys.argv[1:] or entry["file"] in sys.argv[1:]])
