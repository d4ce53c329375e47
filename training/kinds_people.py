"""Face and robot: parameters, handles and drawing. See `scenes` for what the pieces mean."""

from __future__ import annotations

import torch

from training.palette import (
    BACKDROPS,
    COLOURS,
    HAIR,
    SKIN,
    XY,
    Params,
    cos,
    name,
    pick,
    sin,
    tint,
)
from training.sdf import Canvas, Tensor, union

# ------------------------------------------------------------------------------------ face

FACE_RANGES = {
    "cx": (112, 144), "cy": (112, 126), "r": (50, 62), "turn": (-1, 1), "nod": (-1, 1), "smile": (-1, 1),
    "mouth": (15, 24), "hair": (0, 1), "eye": (8, 10.5), "jaw": (1.08, 1.24), "wall": (0, 1), "brow": (-11, 4),
}  # fmt: skip
FACE_CHOICES = {"c_hair": len(HAIR), "c_skin": len(SKIN), "c_shirt": len(COLOURS), "c_back": len(BACKDROPS), "pattern": 3, "glasses": 3, "style": 2}  # fmt: skip
FACE_DOF = {
    "nose": ("turn", "nod"),
    "mouth": ("mouth", "smile"),
    "hair": ("hair",),
    "brow": ("brow",),
}


def face_points(p: Params) -> dict[str, XY]:
    """Nose tip, right mouth corner, tip of the hair, left brow."""
    fx, fy = p["cx"] + 20 * p["turn"], p["cy"] + 9 * p["nod"]
    return {
        "nose": (fx + 5 * p["turn"], fy + 9),
        "mouth": (fx + p["mouth"], fy + p["r"] * 0.56 - 6 * p["smile"]),
        "hair": (p["cx"] - p["r"] * 1.0, p["cy"] + 26 + 66 * p["hair"]),
        "brow": (fx - p["r"] * 0.38, fy - 23 + p["brow"]),
    }


def draw_face(c: Canvas, p: dict[str, Tensor]) -> None:
    """A head with shoulders before a wall."""
    backdrop(c, p)
    pts = face_points(p)
    hair, skin, shirt = (
        pick(HAIR, p["c_hair"]),
        pick(SKIN, p["c_skin"]),
        pick(COLOURS, p["c_shirt"]),
    )
    cx, cy, r = p["cx"], p["cy"], p["r"]
    fx, fy = cx + 20 * p["turn"], cy + 9 * p["nod"]
    tip = pts["hair"][1]
    # the hair behind the head, down to its tip on either side
    back = c.box(cx, (cy - r * 0.3 + tip + 6) / 2, r * 1.14, (tip + 6 - cy + r * 0.3) / 2, 16.0)
    back = union(back, c.ellipse(cx, cy - r * 0.18, r * 1.14, r * 1.12))
    c.fill(back, hair, puff=16)
    c.fill(c.ellipse(cx, 262.0, 82.0, 62.0), shirt, puff=16)
    c.fill(c.capsule(cx, cy + r * 0.8, cx, 206.0, 17.0), tint(skin, -0.10), puff=8)
    c.fill(c.ellipse(cx, 205.0, 27.0, 11.0), tint(shirt, -0.15), puff=5)
    side = -p["turn"]
    c.fill(c.ellipse(cx + r * 0.97 + 5 * side, fy + 4, 8.0, 12.0), skin, puff=6)
    c.fill(c.ellipse(cx - r * 0.97 + 5 * side, fy + 4, 8.0, 12.0), skin, puff=6)
    c.fill(c.ellipse(cx, cy, r * 0.95, r * p["jaw"]), skin, puff=20, depth=0.24)
    blush = tint(skin, -0.04) * 0.75 + 0.25 * c.rgb.new_tensor((0.95, 0.35, 0.35))
    for s in (-1.0, 1.0):
        c.glow(fx + s * r * 0.55, fy + 16, 11.0, blush, 0.7)
    white = c.rgb.new_tensor([[0.98, 0.98, 0.96]]).expand(c.n, 3)
    dark = c.rgb.new_tensor([[0.12, 0.10, 0.14]]).expand(c.n, 3)
    for s in (-1.0, 1.0):
        ex, ey = fx + s * r * 0.38, fy - 8
        c.fill(
            c.ellipse(ex, ey, p["eye"] * 1.0, p["eye"] * 0.95), white, puff=4, depth=0.15, line=1.2
        )
        c.fill(
            c.circle(ex + 3 * p["turn"], ey + 2 * p["nod"], p["eye"] * 0.52), dark, depth=0, line=0
        )
        c.fill(
            c.circle(ex + 3 * p["turn"] - 1.6, ey + 2 * p["nod"] - 2, 1.5), white, depth=0, line=0
        )
        ring = c.circle(ex, ey, p["eye"] + 5.5).abs() - 1.6
        glasses = (p["glasses"] == 1).float()
        c.fill(ring, dark, depth=0, line=0, opacity=glasses)
        lift = p["brow"] if s < 0 else p["brow"] * 0.4
        bx, by = fx + s * r * 0.38, fy - 23 + lift
        c.fill(c.capsule(bx - 10, by + 1 + s * 1.5, bx + 10, by + 1 - s * 1.5, 2.9), tint(hair, -0.35), depth=0.1, puff=3, line=0.7)  # fmt: skip
    c.fill(
        c.capsule(fx + 1 * p["turn"], fy - 6, *pts["nose"], 3.6, 7.0),
        tint(skin, -0.07),
        puff=6,
        depth=0.35,
        line=1.1,
    )
    mouth(c, p, fx, fy)
    fringe = c.ellipse(cx, cy - r * 0.62, r * 1.06, r * 0.62)
    cut = c.ellipse(fx * 0.6 + cx * 0.4 - 20 * (1 - 2 * p["style"]), cy + 6, r * 1.02, r * 0.92)
    c.fill(torch.maximum(fringe, -cut), hair, puff=12)


def mouth(c: Canvas, p: dict[str, Tensor], fx: Tensor, fy: Tensor) -> None:
    """Lips as a bent band whose ends are the mouth's corners."""
    mx, my = fx, fy + p["r"] * 0.56
    u = (c.x - mx[:, None, None]) / p["mouth"][:, None, None]
    bend = -6 * p["smile"][:, None, None] * (2 * u * u - 1)
    half = 2.2 + 4.4 * (1 - u * u).clamp(min=0).sqrt() * (
        0.45 + 0.55 * p["smile"][:, None, None].abs()
    )
    d = (c.y - my[:, None, None] - bend).abs() - half
    inside = (u.abs() - 1) * p["mouth"][:, None, None]
    red = c.rgb.new_tensor([[0.78, 0.16, 0.20]]).expand(c.n, 3)
    c.fill(torch.maximum(d, inside) * 0.9, red, puff=5, depth=0.3, line=1.2)


def backdrop(c: Canvas, p: dict[str, Tensor]) -> None:
    """A wall: a gradient with stripes, dots or nothing on it."""
    base = pick(BACKDROPS, p["c_back"])
    c.gradient(tint(base, 0.16 * (1 + p["wall"])[:, None]), tint(base, -0.16))
    pale = tint(base, 0.28)
    stripes = ((c.x + 0 * c.y + 13) % 42 - 21).abs() - 8
    c.fill(
        stripes.expand(c.n, -1, -1),
        pale,
        depth=0,
        line=0,
        opacity=(p["pattern"] == 1).float() * 0.30,
    )
    dx, dy = (c.x % 36) - 18, (c.y % 36) - 18
    dots = torch.sqrt(dx * dx + dy * dy + 1e-6) - 6
    c.fill(
        dots.expand(c.n, -1, -1), pale, depth=0, line=0, opacity=(p["pattern"] == 2).float() * 0.38
    )


def face_caption(p: Params) -> str:
    """Words for a face."""
    mood = "smiling" if p["smile"] > 0.33 else "sad" if p["smile"] < -0.33 else "calm"
    length = "long" if p["hair"] > 0.5 else "short"
    return (
        f"a {mood} face with {length} {name(HAIR, p['c_hair'])} hair, {name(SKIN, p['c_skin'])} skin, "
        f"{name(COLOURS, p['c_shirt'])} shirt{', glasses' if p['glasses'] == 1 else ''}"
    )


# ----------------------------------------------------------------------------------- robot

ROBOT_RANGES = {
    "cx": (112, 140), "head": (-14, 14), "w": (27, 36), "h": (30, 38), "antenna": (-0.55, 0.55), "ant_len": (17, 25),
    "l_up": (1.75, 4.2), "l_fore": (1.75, 4.4), "r_up": (-1.0, 1.2), "r_fore": (-1.1, 1.0), "size": (0.92, 1.05), "wall": (0, 1),
}  # fmt: skip
ROBOT_CHOICES = {
    "c_body": len(COLOURS),
    "c_back": len(BACKDROPS),
    "pattern": 3,
    "beam": 2,
    "panel": 3,
}
ROBOT_DOF = {"gun": ("r_up", "r_fore"), "hand": ("l_up", "l_fore"), "head": ("head",), "antenna": ("antenna", "ant_len")}  # fmt: skip
_TORSO = 138.0


def robot_points(p: Params) -> dict[str, XY]:
    """Muzzle of the gun, left hand, visor, tip of the antenna (and joints, with a leading _)."""
    s = p["size"]
    arm = 31 * s
    lsx, rsx, sy = (
        p["cx"] - (p["w"] + 5) * s,
        p["cx"] + (p["w"] + 5) * s,
        _TORSO - (p["h"] - 10) * s,
    )
    lex, ley = lsx + arm * cos(p["l_up"]), sy - arm * sin(p["l_up"])
    rex, rey = rsx + arm * cos(p["r_up"]), sy - arm * sin(p["r_up"])
    gun = 48 * s
    hy = _TORSO - (p["h"] + 24) * s
    hx = p["cx"] + p["head"]
    top = hy - 19 * s
    return {
        "gun": (rex + gun * cos(p["r_fore"]), rey - gun * sin(p["r_fore"])),
        "hand": (lex + arm * cos(p["l_fore"]), ley - arm * sin(p["l_fore"])),
        "head": (hx, hy),
        "antenna": (hx + p["ant_len"] * sin(p["antenna"]), top - p["ant_len"] * cos(p["antenna"])),
        "_ls": (lsx, sy), "_rs": (rsx, sy), "_le": (lex, ley), "_re": (rex, rey), "_top": (hx, top),
        "_wrist": (rex + arm * cos(p["r_fore"]), rey - arm * sin(p["r_fore"])),
    }  # fmt: skip


def draw_robot(c: Canvas, p: dict[str, Tensor]) -> None:
    """A robot on a floor with a laser gun in its right-hand-side arm."""
    backdrop(c, p)
    q = robot_points(p)
    s = p["size"]
    body = pick(COLOURS, p["c_body"])
    limb = tint(body, -0.22)
    steel = c.rgb.new_tensor([[0.36, 0.38, 0.43]]).expand(c.n, 3)
    dark = c.rgb.new_tensor([[0.12, 0.13, 0.20]]).expand(c.n, 3)
    floor = tint(pick(BACKDROPS, p["c_back"]), -0.30)
    c.fill(218.0 - c.y + 0 * c.x, floor, depth=0, line=1.2)
    cx = p["cx"]
    c.shade(c.ellipse(cx, 236.0, 62.0, 9.0), 0.35)
    ty = _TORSO
    w, h = p["w"] * s, p["h"] * s
    for side in (-1.0, 1.0):
        lx = cx + side * w * 0.48
        c.fill(c.capsule(lx, ty + h - 4, lx, 222.0, 8.5 * s), limb, puff=8)
        c.fill(c.box(lx + side * 3, 229.0, 16.0 * s, 8.0 * s, 6.0), body, puff=7)
    c.fill(c.capsule(cx, ty - h, q["head"][0], q["head"][1], 7.0 * s), steel, puff=6)
    c.fill(c.capsule(*q["_top"], *q["antenna"], 2.6), steel, puff=2.5, line=1.3)
    bulb = c.rgb.new_tensor([[0.92, 0.20, 0.18]]).expand(c.n, 3)
    c.fill(c.circle(*q["antenna"], 7.0), bulb, puff=6, depth=0.45)
    c.fill(c.box(cx, ty, w, h, 9.0), body, puff=13)
    panel = tint(body, -0.45)
    c.fill(c.box(cx, ty + 2, w * 0.58, h * 0.44, 4.0), panel, puff=5, depth=0.15, line=1.2)
    lamp = c.rgb.new_tensor([[0.98, 0.80, 0.20]]).expand(c.n, 3)
    c.fill(c.circle(cx - w * 0.27, ty + 2, 6.0 * s), bulb, puff=5, line=1.0)
    c.fill(c.circle(cx + w * 0.27, ty + 2, 6.0 * s), lamp, puff=5, line=1.0)
    hx, hy = q["head"]
    c.fill(c.box(hx, hy, 27 * s, 19 * s, 8.0), body, puff=11)
    c.fill(c.box(hx, hy, 20 * s, 9.0 * s, 6.0), dark, puff=5, depth=0.1, line=1.2)
    glow = c.rgb.new_tensor([[0.45, 0.95, 0.98]]).expand(c.n, 3)
    for side in (-1.0, 1.0):
        c.fill(c.circle(hx + side * 9 * s, hy, 5.0 * s), glow, puff=4, depth=0.2, line=0)
    # arms over the body, so that hand and gun are never hidden
    c.fill(c.capsule(*q["_ls"], *q["_le"], 8.0 * s), limb, puff=7)
    c.fill(c.capsule(*q["_le"], *q["hand"], 7.0 * s), limb, puff=7)
    c.fill(c.circle(*q["_ls"], 10.5 * s), body, puff=8)
    c.fill(c.circle(*q["_le"], 8.8 * s), body, puff=7)
    c.fill(c.circle(*q["hand"], 11.5 * s), body, puff=9)
    beam = c.rgb.new_tensor([[1.0, 0.32, 0.30]]).expand(c.n, 3)
    gx, gy = q["gun"]
    ex, ey = gx + 260 * p["r_fore"].cos(), gy - 260 * p["r_fore"].sin()
    lit = p["beam"]
    c.fill(c.capsule(gx, gy, ex, ey, 6.0), beam, depth=0, line=0, opacity=lit * 0.35)
    c.fill(c.capsule(gx, gy, ex, ey, 2.6), tint(beam, 0.55), depth=0, line=0, opacity=lit)
    c.fill(c.capsule(*q["_rs"], *q["_re"], 8.0 * s), limb, puff=7)
    c.fill(c.capsule(*q["_re"], *q["_wrist"], 7.0 * s), limb, puff=7)
    c.fill(c.capsule(*q["_wrist"], gx, gy, 6.6 * s), steel, puff=6)
    c.fill(c.circle(gx, gy, 5.4), bulb, puff=4, line=1.0)
    c.fill(c.circle(*q["_rs"], 10.5 * s), body, puff=8)
    c.fill(c.circle(*q["_re"], 8.8 * s), body, puff=7)
    c.fill(c.circle(*q["_wrist"], 10.0 * s), body, puff=8)


def robot_caption(p: Params) -> str:
    """Words for a robot."""
    arm = "raised" if p["r_fore"] > 0.25 else "lowered" if p["r_fore"] < -0.35 else "level"
    return (
        f"a {name(COLOURS, p['c_body'])} robot with a {arm} laser gun{' firing' if p['beam'] else ''}, "
        f"{name(BACKDROPS, p['c_back'])} wall"
    )
