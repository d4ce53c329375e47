"""Animal and flower: parameters, handles and drawing. See `scenes` for what the pieces mean."""

from __future__ import annotations

import torch

from training.kinds_people import backdrop
from training.palette import (
    BACKDROPS,
    COLOURS,
    XY,
    Params,
    cos,
    name,
    pick,
    sin,
    tint,
)
from training.sdf import (
    Canvas,
    Tensor,
    smooth_union,
    union,
)

FUR = {
    "orange": (0.93, 0.57, 0.24), "grey": (0.58, 0.60, 0.65), "black": (0.22, 0.21, 0.25), "white": (0.94, 0.92, 0.88),
    "brown": (0.55, 0.37, 0.25), "yellow": (0.95, 0.80, 0.42),
}  # fmt: skip

# ---------------------------------------------------------------------------------- animal

ANIMAL_RANGES = {
    "cx": (112, 136), "cy": (158, 172), "len": (46, 58), "fat": (27, 34), "head_x": (-12, 22), "head_y": (-16, 18),
    "tail": (0.1, 1.9), "tail_len": (48, 74), "curl": (-0.5, 0.7), "ear": (-0.5, 0.55), "ear_len": (24, 40), "wall": (0, 1), "paw": (0, 10),
}  # fmt: skip
ANIMAL_CHOICES = {
    "c_fur": len(FUR),
    "c_back": len(BACKDROPS),
    "pattern": 3,
    "c_collar": len(COLOURS),
    "spots": 2,
}
ANIMAL_DOF = {"tail": ("tail", "tail_len"), "ear": ("ear", "ear_len"), "head": ("head_x", "head_y")}


def animal_points(p: Params) -> dict[str, XY]:
    """Tip of the tail, tip of the farther ear, the nose."""
    hx, hy = p["cx"] + p["len"] + 14 + p["head_x"], p["cy"] - 44 + p["head_y"]
    tx, ty = p["cx"] - p["len"] - 4, p["cy"] - 8
    mid = 0.55 * p["tail_len"]
    mx, my = tx - mid * cos(p["tail"]), ty - mid * sin(p["tail"])
    a2 = p["tail"] + p["curl"] + 0.35
    rest = 0.55 * p["tail_len"]
    ex, ey = hx - 13, hy - 19
    return {
        "tail": (mx - rest * cos(a2), my - rest * sin(a2)),
        "ear": (ex + p["ear_len"] * sin(p["ear"] - 0.25), ey - p["ear_len"] * cos(p["ear"] - 0.25)),
        "head": (hx + 13, hy + 7),
        "_h": (hx, hy), "_t0": (tx, ty), "_t1": (mx, my), "_e": (ex, ey),
    }  # fmt: skip


def draw_animal(c: Canvas, p: dict[str, Tensor]) -> None:
    """A cat-like animal standing sideways on a floor."""
    backdrop(c, p)
    q = animal_points(p)
    fur = pick(FUR, p["c_fur"])
    dark = c.rgb.new_tensor([[0.13, 0.10, 0.13]]).expand(c.n, 3)
    white = c.rgb.new_tensor([[0.98, 0.97, 0.95]]).expand(c.n, 3)
    pink = c.rgb.new_tensor([[0.95, 0.55, 0.58]]).expand(c.n, 3)
    cx, cy = p["cx"], p["cy"]
    c.fill(214.0 - c.y + 0 * c.x, tint(pick(BACKDROPS, p["c_back"]), -0.28), depth=0, line=1.2)
    c.shade(c.ellipse(cx, 233.0, 82.0, 9.0), 0.32)
    pale = tint(fur, 0.45)
    t = union(c.capsule(*q["_t0"], *q["_t1"], 8.5, 8.0), c.capsule(*q["_t1"], *q["tail"], 8.0, 7.5))
    c.fill(t, fur, puff=8)
    c.fill(c.circle(*q["tail"], 8.8), pale, puff=8)
    for x, step in ((-0.62, 0.0), (0.42, 1.0)):
        lx = cx + p["len"] * x
        c.fill(
            c.capsule(lx, cy + 12, lx + p["paw"] * (step - 0.5), 226.0, 9.5),
            tint(fur, -0.18),
            puff=8,
        )
    body = c.ellipse(cx, cy, p["len"] + 6, p["fat"])
    hx, hy = q["_h"]
    neck = c.capsule(cx + p["len"] * 0.62, cy - 6, hx - 3, hy + 6, 17.0)
    c.fill(smooth_union(body, neck, 14.0), fur, puff=20)
    spot = tint(fur, -0.35)
    on = (p["spots"] == 1).float()
    for k in (-0.5, -0.1, 0.3):
        c.fill(
            torch.maximum(c.ellipse(cx + p["len"] * k, cy - p["fat"] * 0.62, 7.0, 13.0), body + 1),
            spot,
            puff=5,
            depth=0.1,
            line=0,
            opacity=on,
        )
    c.fill(
        c.ellipse(cx, cy + p["fat"] * 0.55, p["len"] * 0.6, p["fat"] * 0.3),
        pale,
        puff=8,
        depth=0,
        line=0,
        opacity=0.8,
    )
    for x, step in ((-0.86, 1.0), (0.68, 0.0)):
        lx = cx + p["len"] * x
        c.fill(c.capsule(lx, cy + 10, lx + p["paw"] * (step - 0.5), 228.0, 10.0), fur, puff=9)
        c.fill(c.ellipse(lx + p["paw"] * (step - 0.5) + 3, 231.0, 13.0, 7.0), pale, puff=6)
    ex, ey = q["_e"]
    c.fill(
        c.capsule(
            ex + 28,
            ey + 4,
            ex + 28 + 0.6 * (q["ear"][0] - ex) + 6,
            ey + 0.6 * (q["ear"][1] - ey),
            9.5,
            5.0,
        ),
        tint(fur, -0.2),
        puff=7,
    )
    c.fill(c.circle(hx, hy, 28.0), fur, puff=17)
    c.fill(c.capsule(ex, ey, *q["ear"], 11.5, 6.0), fur, puff=8)
    c.fill(
        c.capsule(
            ex + 0.3 * (q["ear"][0] - ex), ey + 0.3 * (q["ear"][1] - ey), *q["ear"], 4.6, 3.2
        ),
        pink,
        puff=3,
        depth=0.1,
        line=0,
    )
    collar = pick(COLOURS, p["c_collar"])
    c.fill(c.capsule(hx - 25, hy + 18, hx + 2, hy + 30, 5.0), collar, puff=5, line=1.2)
    c.fill(c.ellipse(hx + 12, hy + 11, 15.0, 11.0), pale, puff=7, depth=0.2, line=0.8)
    for dx in (-6.0, 14.0):
        c.fill(c.ellipse(hx + dx, hy - 5, 5.4, 6.6), white, puff=3, depth=0.1, line=1.0)
        c.fill(c.ellipse(hx + dx + 1.3, hy - 4, 3.0, 4.4), dark, depth=0, line=0)
    c.fill(c.ellipse(*q["head"], 5.4, 4.4), pink, puff=4, depth=0.3, line=1.2)


def animal_caption(p: Params) -> str:
    """Words for an animal."""
    return (
        f"a {name(FUR, p['c_fur'])} cat{' with stripes' if p['spots'] else ''}, {name(COLOURS, p['c_collar'])} collar, "
        f"tail {'up' if p['tail'] > 1.0 else 'down'}, {name(BACKDROPS, p['c_back'])} wall"
    )


# ---------------------------------------------------------------------------------- flower

FLOWER_RANGES = {
    "base_x": (112, 144), "bloom_x": (-46, 46), "bloom_y": (56, 98), "bloom_r": (25, 42), "spin": (0, 1.2), "leaf": (-0.7, 0.8), "leaf_len": (34, 54),
    "vase_w": (22, 32), "vase_h": (28, 36), "bud_x": (34, 60), "bud_y": (106, 140), "wall": (0, 1), "core": (0.34, 0.44),
}  # fmt: skip
FLOWER_CHOICES = {
    "c_bloom": len(COLOURS),
    "c_vase": len(COLOURS),
    "c_back": len(BACKDROPS),
    "pattern": 3,
    "petals": 3,
    "band": 2,
}
FLOWER_DOF = {
    "bloom": ("bloom_x", "bloom_y"),
    "petal": ("bloom_r",),
    "leaf": ("leaf", "leaf_len"),
    "bud": ("bud_x", "bud_y"),
}


def flower_points(p: Params) -> dict[str, XY]:
    """Middle of the bloom, tip of its topmost petal, tip of the leaf, bud."""
    bx, by = p["base_x"] + p["bloom_x"], p["bloom_y"]
    rim = 232 - 2 * p["vase_h"]
    lx, ly = p["base_x"] - 3 + 0.12 * p["bloom_x"], rim - 22
    return {
        "bloom": (bx, by),
        "petal": (bx, by - p["bloom_r"]),
        "leaf": (lx - p["leaf_len"] * cos(p["leaf"]), ly - p["leaf_len"] * sin(p["leaf"])),
        "bud": (p["base_x"] + p["bud_x"], p["bud_y"]),
        "_leaf": (lx, ly), "_rim": (p["base_x"], rim),
    }  # fmt: skip


def curve(c: Canvas, a: XY, b: XY, m: XY, r: float) -> Tensor:
    """Distance to a quadratic Bezier curve a-m-b drawn as eight thick lines."""
    out: Tensor | None = None
    last = a
    for i in range(1, 9):
        t = i / 8
        u = (1 - t) ** 2, 2 * t * (1 - t), t * t
        now = tuple(u[0] * a[k] + u[1] * m[k] + u[2] * b[k] for k in (0, 1))
        piece = c.capsule(last[0], last[1], now[0], now[1], r)
        out = piece if out is None else torch.minimum(out, piece)
        last = now
    assert out is not None
    return out


def draw_flower(c: Canvas, p: dict[str, Tensor]) -> None:
    """A flower and a bud in a vase on a table."""
    backdrop(c, p)
    q = flower_points(p)
    green = c.rgb.new_tensor([[0.26, 0.58, 0.28]]).expand(c.n, 3)
    table = c.rgb.new_tensor([[0.62, 0.44, 0.30]]).expand(c.n, 3)
    c.fill(216.0 - c.y + 0 * c.x, table, puff=20, depth=0.15, line=1.4)
    x = p["base_x"]
    c.shade(c.ellipse(x + 6, 236.0, 46.0, 9.0), 0.35)
    rim = q["_rim"][1]
    c.fill(curve(c, (x + 5, rim + 6), q["bud"], (x + 6, rim - 38), 3.4), green, puff=3, line=1.2)
    bloom, vase = pick(COLOURS, p["c_bloom"]), pick(COLOURS, p["c_vase"])
    c.fill(c.ellipse(*q["bud"], 11.0, 14.0), tint(bloom, -0.05), puff=9, depth=0.4)
    c.fill(c.ellipse(q["bud"][0], q["bud"][1] + 10, 9.0, 7.0), green, puff=5, line=1.1)
    c.fill(
        curve(
            c,
            (x - 3, rim + 6),
            q["bloom"],
            (x - 3 + 0.25 * p["bloom_x"], (rim + p["bloom_y"]) / 2 + 10),
            4.0,
        ),
        green,
        puff=4,
        line=1.3,
    )
    lx, ly = q["_leaf"]
    mx, my = (lx + q["leaf"][0]) / 2, (ly + q["leaf"][1]) / 2
    blade = c.ellipse(mx, my, p["leaf_len"] / 2 + 2, 11.0, p["leaf"])
    c.fill(blade, tint(green, 0.10), puff=10, depth=0.4)
    c.fill(
        c.capsule(lx, ly, lx + 0.8 * (q["leaf"][0] - lx), ly + 0.8 * (q["leaf"][1] - ly), 1.3),
        tint(green, -0.3),
        depth=0,
        line=0,
    )
    bx, by = q["bloom"]
    r = p["bloom_r"]
    n = 5 + p["petals"].round()
    for k in range(7):
        angle = 6.2831853 * k / n
        away = r * 0.58
        px, py = bx + away * angle.sin(), by - away * angle.cos()
        d = c.ellipse(px, py, r * 0.31, r * 0.43, angle)
        c.fill(
            d,
            tint(bloom, 0.12 if k % 2 else 0.0),
            puff=10,
            depth=0.36,
            line=1.4,
            opacity=(k < n).float(),
        )
    core = c.rgb.new_tensor([[0.98, 0.80, 0.26]]).expand(c.n, 3)
    core = torch.where(
        (p["c_bloom"].round() == 2)[:, None],
        c.rgb.new_tensor([[0.45, 0.28, 0.16]]).expand(c.n, 3),
        core,
    )
    c.fill(c.circle(bx, by, r * p["core"]), core, puff=9, depth=0.4)
    w, h = p["vase_w"], p["vase_h"]
    body = smooth_union(
        c.ellipse(x, 232 - h * 0.85, w, h * 0.9), c.box(x, rim + 6, w * 0.52, 7.0, 3.0), 10.0
    )
    body = torch.maximum(body, c.y - 234)
    c.fill(body, vase, puff=16, depth=0.42)
    c.fill(
        torch.maximum(body + 1.2, (c.y - (232 - h * 0.85)[:, None, None]).abs() - 5),
        tint(vase, 0.5),
        depth=0.1,
        line=0.7,
        opacity=(p["band"] == 1).float(),
    )
    c.fill(c.ellipse(x, rim + 1, w * 0.56, 4.6), tint(vase, -0.35), puff=4, line=1.2)


def flower_caption(p: Params) -> str:
    """Words for a flower."""
    side = "left" if p["bloom_x"] < -15 else "right" if p["bloom_x"] > 15 else "up"
    return (
        f"a {name(COLOURS, p['c_bloom'])} flower bending {side} in a {'banded ' if p['band'] else ''}{name(COLOURS, p['c_vase'])} vase, "
        f"{name(BACKDROPS, p['c_back'])} wall"
    )
