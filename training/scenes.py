"""Scenes with known motion: pictures drawn from numbers, whose features can be dragged exactly.

A `Scene` is a kind, a seed and its parameters. Its handles are functions of the parameters, so
`scene.drag({"gun": (x, y)})` returns the scene after the drag, and rendering that gives the true picture.
Coordinates are pixels of the 256 x 256 picture, x right, y down, (0, 0) the centre of the top-left pixel.

Determinism: a scene depends on (kind, seed, SCENES_VERSION) and on nothing else; SCENES_VERSION is raised
whenever a scene or its drawing changes.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training import kinds_life, kinds_people, kinds_world
from training.palette import (
    COLOURS,
    HAIR,
    SKIES,
    name,
)
from training.sdf import Canvas, Tensor

Vector = np.ndarray[Any, np.dtype[np.float64]]
SCENES_VERSION = 1
SIZE = 256
MARGIN = 14.0
SEPARATION = 16.0


@dataclass(frozen=True, slots=True)
class Kind:
    """All that is known of one kind of scene."""

    ranges: Mapping[str, tuple[float, float]]
    choices: Mapping[str, int]
    dof: Mapping[str, tuple[str, ...]]  # handle -> parameters that a drag of it may change
    points: Callable[[Mapping[str, Any]], dict[str, tuple[Any, Any]]]
    draw: Callable[[Canvas, dict[str, Tensor]], None]
    caption: Callable[[Mapping[str, float]], str]
    colour: Callable[[Mapping[str, float]], str]


_KINDS: dict[str, Kind] = {
    "face": Kind(
        kinds_people.FACE_RANGES, kinds_people.FACE_CHOICES, kinds_people.FACE_DOF, kinds_people.face_points,
        kinds_people.draw_face, kinds_people.face_caption, lambda p: name(HAIR, p["c_hair"]),
    ),
    "robot": Kind(
        kinds_people.ROBOT_RANGES, kinds_people.ROBOT_CHOICES, kinds_people.ROBOT_DOF, kinds_people.robot_points,
        kinds_people.draw_robot, kinds_people.robot_caption, lambda p: name(COLOURS, p["c_body"]),
    ),
    "landscape": Kind(
        kinds_world.LAND_RANGES, kinds_world.LAND_CHOICES, kinds_world.LAND_DOF, kinds_world.landscape_points,
        kinds_world.draw_landscape, kinds_world.landscape_caption, lambda p: name(SKIES, p["c_sky"]),
    ),
    "animal": Kind(
        kinds_life.ANIMAL_RANGES, kinds_life.ANIMAL_CHOICES, kinds_life.ANIMAL_DOF, kinds_life.animal_points,
        kinds_life.draw_animal, kinds_life.animal_caption, lambda p: name(kinds_life.FUR, p["c_fur"]),
    ),
    "flower": Kind(
        kinds_life.FLOWER_RANGES, kinds_life.FLOWER_CHOICES, kinds_life.FLOWER_DOF, kinds_life.flower_points,
        kinds_life.draw_flower, kinds_life.flower_caption, lambda p: name(COLOURS, p["c_bloom"]),
    ),
    "sailboat": Kind(
        kinds_world.BOAT_RANGES, kinds_world.BOAT_CHOICES, kinds_world.BOAT_DOF, kinds_world.boat_points,
        kinds_world.draw_sailboat, kinds_world.sailboat_caption, lambda p: name(COLOURS, p["c_hull"]),
    ),
}  # fmt: skip
KINDS: tuple[str, ...] = tuple(_KINDS)
MAIN_COLORS: tuple[str, ...] = tuple(dict.fromkeys([*COLOURS, *HAIR, *SKIES, *kinds_life.FUR]))


@dataclass(frozen=True, slots=True)
class Handle:
    """A named feature and where it is, in pixels of the 256 x 256 picture."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """One picture as numbers."""

    kind: str
    seed: int
    params: Mapping[str, float]

    @property
    def caption(self) -> str:
        """Caption of the scene, as a person would type it."""
        words = _KINDS[self.kind].caption(self.params)
        return "an" + words[1:] if words[2] in "aeiou" else words

    @property
    def main_color(self) -> str:
        """The colour of the main thing, out of MAIN_COLORS."""
        return _KINDS[self.kind].colour(self.params)

    @property
    def handles(self) -> dict[str, Handle]:
        """All features that can be dragged."""
        return {
            k: Handle(k, float(x), float(y))
            for k, (x, y) in _KINDS[self.kind].points(self.params).items()
            if not k.startswith("_")
        }

    def drag(
        self,
        moves: Mapping[str, tuple[float, float]] | str,
        target: tuple[float, float] | None = None,
    ) -> Scene:
        """The scene after its handles were dragged to targets (x, y).

        Solves the handles' own degrees of freedom by damped Gauss-Newton within their ranges; where the
        scene cannot reach a target it comes as near as it can: read the handles of the result.

        Raises:
            KeyError: for a handle that this kind does not have.
        """
        if isinstance(moves, str):
            if target is None:
                raise TypeError("drag(handle, target) needs a target")
            moves = {moves: target}
        kind = _KINDS[self.kind]
        names = list(moves)
        free = list(dict.fromkeys(p for n in names for p in kind.dof[n]))
        low = np.array([kind.ranges[p][0] for p in free], dtype=float)
        high = np.array([kind.ranges[p][1] for p in free], dtype=float)
        span = high - low
        goal = np.array([moves[n] for n in names], dtype=float).ravel()

        def at(v: Vector) -> Vector:
            params = {**self.params, **dict(zip(free, (low + span * v).tolist(), strict=True))}
            pts = kind.points(params)
            return np.array([pts[n] for n in names], dtype=float).ravel()

        here = (np.array([self.params[p] for p in free]) - low) / span
        # an arm may have to fold the other way: when the nearest solution misses, start elsewhere
        starts = [here, *np.random.Generator(np.random.Philox(key=0)).random((8, len(free)))]
        v, miss = here, np.inf
        for start in starts:
            found, left = _solve(at, goal, start)
            if left < miss - 1e-6:
                v, miss = found, left
            if miss < 0.3:
                break
        params = {**self.params, **dict(zip(free, (low + span * v).tolist(), strict=True))}
        return dataclasses.replace(self, params=params)


def _solve(at: Callable[[Vector], Vector], goal: Vector, start: Vector) -> tuple[Vector, float]:
    """Damped Gauss-Newton for at(v) = goal with every v in [0, 1]; returns v and the distance left."""
    v, error, damping = start, at(start) - goal, 1e-3
    for _ in range(60):
        probes = 1e-5 * np.eye(len(v))
        jac = np.stack([(at(v + e) - at(v - e)) / 2e-5 for e in probes], axis=1)
        push = jac.T @ error
        # a parameter at its bound that would be pushed out does not take part
        live = ~(((v <= 0) & (push > 0)) | ((v >= 1) & (push < 0)))
        step = np.zeros_like(v)
        if live.any():
            j = jac[:, live]
            ridge = damping * max(1.0, float(np.trace(j.T @ j))) * np.eye(int(live.sum()))
            step[live] = np.linalg.solve(j.T @ j + ridge, j.T @ error)
        trial = np.clip(v - step, 0, 1)
        trial_error = at(trial) - goal
        if trial_error @ trial_error < error @ error:
            v, error, damping = trial, trial_error, max(damping / 4, 1e-9)
            if error @ error < 1e-8:
                break
        else:
            damping *= 8
            if damping > 1e6:
                break
    return v, float(np.sqrt(error @ error))


def sample(kind: str, seed: int) -> Scene:
    """The scene of a kind and a seed.

    Raises:
        KeyError: for a kind that does not exist.
    """
    spec = _KINDS[kind]
    rng = np.random.Generator(
        np.random.Philox(key=[seed, (SCENES_VERSION << 32) | zlib.crc32(kind.encode())])
    )
    keys, bounds = list(spec.ranges), np.array(list(spec.ranges.values()), dtype=float)
    scene = None
    for _ in range(400):
        values = bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) * rng.random(len(keys))
        params = dict(zip(keys, values.tolist(), strict=True))
        for k, n in spec.choices.items():
            params[k] = float(rng.integers(n))
        scene = Scene(kind, seed, params)
        if well_placed(scene):
            return scene
    raise RuntimeError(f"no well placed {kind} for seed {seed}")


def well_placed(scene: Scene) -> bool:
    """Handles inside the picture by MARGIN and apart by SEPARATION pixels."""
    pts = [p for k, p in _KINDS[scene.kind].points(scene.params).items() if not k.startswith("_")]
    for i, (x, y) in enumerate(pts):
        if not (MARGIN <= x <= SIZE - 1 - MARGIN and MARGIN <= y <= SIZE - 1 - MARGIN):
            return False
        for u, v in pts[:i]:
            if (x - u) ** 2 + (y - v) ** 2 < SEPARATION**2:
                return False
    return True


def sample_batch(n: int, seed: int, kinds: Sequence[str] = KINDS) -> list[Scene]:
    """n scenes, kinds in turn, with seeds seed, seed + 1, ..."""
    return [sample(kinds[i % len(kinds)], seed + i) for i in range(n)]


def render(
    scenes: Sequence[Scene],
    *,
    size: int = SIZE,
    device: torch.device | str = "cpu",
    supersample: int = 1,
) -> Tensor:
    """Draw scenes as [B, 3, size, size] float32 in [0, 1]; kinds may be mixed.

    Anti-aliasing is analytic; supersample > 1 draws larger and averages, as a check.
    """
    big = size * supersample
    out = torch.empty(len(scenes), 3, big, big, device=device)
    for kind in dict.fromkeys(s.kind for s in scenes):
        index = [i for i, s in enumerate(scenes) if s.kind == kind]
        keys = list(scenes[index[0]].params)
        table = torch.tensor(
            [[scenes[i].params[k] for k in keys] for i in index], dtype=torch.float32
        ).to(device, non_blocking=True)
        canvas = Canvas(len(index), big, device)
        _KINDS[kind].draw(canvas, {k: table[:, j] for j, k in enumerate(keys)})
        out[torch.tensor(index, device=device)] = canvas.rgb
    out = out.clamp(0, 1)
    if supersample > 1:
        out = torch.nn.functional.avg_pool2d(out, supersample)
    return out


def changed_mask(
    before: Scene, after: Scene, *, threshold: float = 2 / 255, grow: int = 3
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Mask of the pixels in which two renders differ by more than a threshold in any channel, grown."""
    a, b = render([before, after])
    changed = ((a - b).abs().amax(0) > threshold).float()[None, None]
    if grow:
        changed = torch.nn.functional.max_pool2d(changed, 2 * grow + 1, 1, grow)
    mask: np.ndarray[Any, np.dtype[np.bool_]] = changed[0, 0].numpy() > 0
    return mask


def drag_targets(
    scene: Scene, rng: np.random.Generator, *, min_px: float = 8, max_px: float = 64, pairs: int = 1
) -> dict[str, tuple[float, float]]:
    """A random drag whose truth is known: handle -> target (x, y), every length in [min_px, max_px].

    Raises:
        ValueError: when the scene has no such drag.
    """
    spec = _KINDS[scene.kind]
    start = scene.handles
    names = list(start)
    if pairs > len(names):
        raise ValueError(f"a {scene.kind} has {len(names)} handles, not {pairs}")
    for _ in range(3000):
        chosen = sorted(rng.choice(len(names), size=pairs, replace=False).tolist())
        moved = [names[i] for i in chosen]
        params = dict(scene.params)
        for p in dict.fromkeys(p for n in moved for p in spec.dof[n]):
            low, high = spec.ranges[p]
            # half of the trials are small changes, so that short drags come as often as long ones
            reach = (high - low) * (1.0 if rng.random() < 0.5 else 0.35)
            params[p] = float(np.clip(params[p] + rng.uniform(-reach, reach), low, high))
        after = dataclasses.replace(scene, params=params)
        if not well_placed(after):
            continue
        now = after.handles
        lengths = [np.hypot(now[n].x - start[n].x, now[n].y - start[n].y) for n in moved]
        if min_px <= min(lengths) and max(lengths) <= max_px:
            return {n: (now[n].x, now[n].y) for n in moved}
    raise ValueError(
        f"no drag of {pairs} handles between {min_px} and {max_px} px in this {scene.kind}"
    )


def contact_sheet(
    images: Tensor, columns: int, gap: int = 4
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Lay pictures [B, 3, H, W] in [0, 1] out as one uint8 picture [rows*H, columns*W, 3]."""
    n, _, h, w = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    pixels = (images.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for i in range(n):
        r, k = divmod(i, columns)
        sheet[r * (h + gap) : r * (h + gap) + h, k * (w + gap) : k * (w + gap) + w] = pixels[i]
    return sheet
