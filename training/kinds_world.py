"""Landscape and sailboat: parameters, handles and drawing. See `scenes` for what the pieces mean."""

from __future__ import annotations

from typing import Any

import torch

from training.palette import (
    COLOURS,
    SKIES,
    XY,
    Params,
    cos,
    name,
    pick,
    sin,
    tint,
)
from training.sdf import Canvas, Tensor, union

PEAKS = {"purple": (0.46, 0.40, 0.62), "brown": (0.52, 0.38, 0.33), "slate": (0.42, 0.48, 0.56)}
GRASS = {
    "green": (0.40, 0.68, 0.34),
    "dark green": (0.24, 0.50, 0.32),
    "golden": (0.86, 0.72, 0.34),
}

# ------------------------------------------------------------------------------- landscape

LAND_RANGES = {
    "sun_x": (30, 226), "sun_y": (26, 74), "sun_r": (14, 19), "peak_x": (70, 186), "peak_y": (76, 128), "spread": (0.85, 1.25),
    "tree_x": (46, 210), "tree_y": (196, 232), "tree_h": (44, 84), "hill": (0, 6.28), "hill2": (0, 6.28), "cloud_x": (40, 216), "cloud_y": (34, 70),
    "lake_x": (50, 206),
}  # fmt: skip
LAND_CHOICES = {
    "c_sky": len(SKIES),
    "c_peak": len(PEAKS),
    "c_grass": len(GRASS),
    "lake": 2,
    "snow": 2,
    "cloud": 2,
}
LAND_DOF = {"sun": ("sun_x", "sun_y"), "peak": ("peak_x", "peak_y"), "tree": ("tree_x", "tree_h")}


def landscape_points(p: Params) -> dict[str, XY]:
    """Sun, summit, tip of the tree."""
    return {
        "sun": (p["sun_x"], p["sun_y"]),
        "peak": (p["peak_x"], p["peak_y"]),
        "tree": (p["tree_x"], p["tree_y"] - p["tree_h"]),
    }


def sky(c: Canvas, p: dict[str, Tensor]) -> None:
    """Gradient sky."""
    rows = torch.tensor(list(SKIES.values()), device=c.rgb.device)[p["c_sky"].round().long()]
    c.gradient(rows[:, 0], rows[:, 1])


def cloud(c: Canvas, x: Tensor, y: Tensor, opacity: Tensor) -> None:
    """A small cloud of puffs."""
    white = c.rgb.new_tensor([[0.97, 0.97, 0.98]]).expand(c.n, 3)
    d = union(c.ellipse(x, y, 25.0, 9.0), c.circle(x - 8, y - 6, 10.0), c.circle(x + 8, y - 4, 8.5))
    c.fill(d, white, puff=8, depth=0.22, line=0.9, opacity=opacity)


def draw_landscape(c: Canvas, p: dict[str, Tensor]) -> None:
    """Mountains, a meadow, a fir, a sun."""
    sky(c, p)
    cloud(c, p["cloud_x"], p["cloud_y"], (p["cloud"] == 1).float())
    sun = c.rgb.new_tensor([[1.0, 0.86, 0.36]]).expand(c.n, 3)
    c.glow(p["sun_x"], p["sun_y"], p["sun_r"] * 2.2, tint(sun, 0.3), 0.55)
    c.fill(c.circle(p["sun_x"], p["sun_y"], p["sun_r"]), sun, puff=9, depth=0.2)
    rock = pick(PEAKS, p["c_peak"])
    horizon = 172.0
    far = (
        horizon
        - 34
        - 10 * torch.sin(c.x * 0.045 + p["hill"][:, None, None])
        - 6 * torch.sin(c.x * 0.11 + p["hill2"][:, None, None])
    )
    c.fill((far - c.y) * 0.9, tint(rock, 0.28), puff=14, depth=0.2, line=1.2)
    px, py, k = p["peak_x"], p["peak_y"], p["spread"]
    foot = horizon + 26
    drop = foot - py
    left, right = px - drop * 0.85 * k, px + drop * 0.80 * k
    mountain = c.polygon(
        [(px, py), (px + drop * 0.22 * k, py + drop * 0.33), (px + drop * 0.34 * k, py + drop * 0.38), (right, foot), (left, foot),
         (px - drop * 0.42 * k, py + drop * 0.46), (px - drop * 0.25 * k, py + drop * 0.34)], 1.5,
    )  # fmt: skip
    c.fill(mountain, rock, puff=22, depth=0.42)
    sx = (c.x - px[:, None, None]) / drop[:, None, None]
    snowline = py[:, None, None] + drop[:, None, None] * (0.26 + 0.05 * torch.sin(sx * 42))
    snow = c.rgb.new_tensor([[0.95, 0.96, 0.98]]).expand(c.n, 3)
    c.fill(
        torch.maximum(mountain + 0.6, c.y - snowline),
        snow,
        puff=14,
        depth=0.3,
        line=0.8,
        opacity=(p["snow"] == 1).float(),
    )
    grass = pick(GRASS, p["c_grass"])
    near = horizon + 3 * torch.sin(c.x * 0.03 + p["hill2"][:, None, None])
    c.fill(near - c.y, grass, puff=26, depth=0.22)
    water = torch.tensor([v[0] for v in SKIES.values()], device=c.rgb.device)[
        p["c_sky"].round().long()
    ]
    c.fill(
        c.ellipse(p["lake_x"], 222.0, 52.0, 15.0),
        tint(water, -0.12),
        puff=7,
        depth=0.25,
        opacity=(p["lake"] == 1).float(),
    )
    tx, ty, h = p["tree_x"], p["tree_y"], p["tree_h"]
    c.shade(c.ellipse(tx + 4, ty + 2, 20.0, 5.0), 0.3)
    bark = c.rgb.new_tensor([[0.42, 0.28, 0.20]]).expand(c.n, 3)
    c.fill(c.box(tx, ty - 6, 4.6, 9.0, 1.5), bark, puff=4)
    fir = c.rgb.new_tensor([[0.13, 0.45, 0.33]]).expand(c.n, 3)
    for low, high, wide in ((0.14, 0.62, 0.36), (0.38, 0.82, 0.29), (0.60, 1.0, 0.22)):
        tri = c.polygon(
            [
                (tx, ty - h * high),
                (tx + 6 + h * wide * 0.9, ty - h * low),
                (tx - 6 - h * wide * 0.9, ty - h * low),
            ],
            1.5,
        )
        c.fill(tri, fir, puff=10, depth=0.4)


def landscape_caption(p: Params) -> str:
    """Words for a landscape."""
    return (
        f"a landscape with a {name(SKIES, p['c_sky'])} sky, a {'snowy ' if p['snow'] else ''}{name(PEAKS, p['c_peak'])} mountain, "
        f"{name(GRASS, p['c_grass'])} grass{', a lake' if p['lake'] else ''}"
    )


# -------------------------------------------------------------------------------- sailboat

BOAT_RANGES = {
    "x": (100, 156), "y": (166, 188), "tilt": (-0.28, 0.28), "mast": (84, 108), "boom": (44, 66), "flag": (-8, 8),
    "sun_x": (34, 222), "sun_y": (26, 54), "wave": (0, 6.28), "swell": (1.5, 4), "cloud_x": (36, 220), "cloud_y": (34, 60),
}  # fmt: skip
BOAT_CHOICES = {
    "c_sky": len(SKIES),
    "c_hull": len(COLOURS),
    "c_sail": len(COLOURS),
    "cloud": 2,
    "stripe": 2,
}
BOAT_DOF = {
    "bow": ("x", "y"),
    "mast": ("tilt", "mast"),
    "sail": ("boom",),
    "sun": ("sun_x", "sun_y"),
}


def boat_points(p: Params) -> dict[str, XY]:
    """Bow, masthead, outer corner of the sail, sun; turned with the boat about its middle."""
    co, si = cos(p["tilt"]), sin(p["tilt"])

    def at(u: Any, v: Any) -> XY:
        return p["x"] + u * co - v * si, p["y"] + u * si + v * co

    return {
        "bow": at(60, -17),
        "mast": at(4, -18 - p["mast"]),
        "sail": at(-p["boom"], -26),
        "sun": (p["sun_x"], p["sun_y"]),
        "_foot": at(4, -14), "_tack": at(0, -26), "_head": at(2, -14 - p["mast"]),
        "_l": at(-56, -17), "_lk": at(-38, 13), "_rk": at(38, 13), "_jib": at(44, -24), "_jib0": at(9, -24), "_jib1": at(8, -p["mast"] * 0.78),
        "_flag": at(26, -20 - p["mast"] + p["flag"] * 0.5), "_flag0": at(4, -11 - p["mast"]),
    }  # fmt: skip


def draw_sailboat(c: Canvas, p: dict[str, Tensor]) -> None:
    """A boat on the sea under sail."""
    sky(c, p)
    cloud(c, p["cloud_x"], p["cloud_y"], (p["cloud"] == 1).float())
    sun = c.rgb.new_tensor([[1.0, 0.88, 0.42]]).expand(c.n, 3)
    c.glow(p["sun_x"], p["sun_y"], 34.0, tint(sun, 0.3), 0.5)
    c.fill(c.circle(p["sun_x"], p["sun_y"], 14.0), sun, puff=9, depth=0.2)
    sea = (
        torch.tensor([v[0] for v in SKIES.values()], device=c.rgb.device)[p["c_sky"].round().long()]
        * 0.75
    )
    sea = sea + 0.25 * c.rgb.new_tensor([0.10, 0.40, 0.62])
    horizon = 160.0
    c.fill(horizon - c.y + 0 * c.x, tint(sea, 0.12), depth=0, line=1.0)
    q = boat_points(p)
    hull = pick(COLOURS, p["c_hull"])
    sail = pick(COLOURS, p["c_sail"])
    wood = c.rgb.new_tensor([[0.45, 0.30, 0.20]]).expand(c.n, 3)
    c.fill(c.capsule(*q["_foot"], *q["mast"], 3.2), wood, puff=3, line=1.2)
    c.fill(c.polygon([q["_flag0"], q["_flag"], q["mast"]], 1.0), tint(hull, 0.1), puff=5, line=1.1)
    main = c.polygon([q["_head"], q["sail"], q["_tack"]], 2.0)
    c.fill(main, sail, puff=20, depth=0.36)
    band = torch.maximum(main + 1.5, (c.y - q["_tack"][1][:, None, None] + 26).abs() - 6)
    c.fill(band, hull, depth=0.1, line=0.7, opacity=(p["stripe"] == 1).float())
    c.fill(
        c.polygon([q["_jib1"], q["_jib"], q["_jib0"]], 2.0), tint(sail, 0.25), puff=16, depth=0.34
    )
    c.fill(c.circle(*q["sail"], 4.6), wood, puff=4, line=1.1)
    body = c.polygon([q["_l"], q["bow"], q["_rk"], q["_lk"]], 3.0)
    c.fill(body, hull, puff=13, depth=0.42)
    rim = c.capsule(*q["_l"], *q["bow"], 4.2)
    c.fill(rim, tint(hull, 0.42), puff=4, depth=0.2, line=1.1)
    for k, (shift, level, tone) in enumerate(
        ((0.0, 12.0, 0.0), (1.9, 30.0, -0.14), (4.1, 52.0, -0.28))
    ):
        line = (
            172.0
            + level
            + p["swell"][:, None, None]
            * torch.sin(c.x * (0.075 - 0.012 * k) + p["wave"][:, None, None] + shift)
        )
        c.fill((line - c.y) * 0.95, tint(sea, tone), puff=12, depth=0.22, line=1.1)


def sailboat_caption(p: Params) -> str:
    """Words for a sailboat."""
    return (
        f"a sailboat with a {name(COLOURS, p['c_hull'])} hull and a {'striped ' if p['stripe'] else ''}{name(COLOURS, p['c_sail'])} sail, "
        f"{name(SKIES, p['c_sky'])} sky{', a cloud' if p['cloud'] else ''}"
    )
