"""Drawing toolkit: batches of illustrated pictures out of signed distance shapes, in torch.

Coordinates are those of a 256 x 256 picture whatever the size drawn: x right, y down, (0, 0) is the
centre of the top-left pixel. A distance is negative inside a shape. Every parameter is a tensor [B] or a
number; every layer is [B, size, size]. Nothing here reads a value back from the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

Tensor = torch.Tensor
Value = Tensor | float

INK = (0.13, 0.10, 0.16)


def col(v: Value) -> Value:
    """Shape a parameter [B] for broadcasting over pictures."""
    return v[:, None, None] if isinstance(v, Tensor) else v


def union(*d: Tensor) -> Tensor:
    """Distance to the union of shapes."""
    out = d[0]
    for other in d[1:]:
        out = torch.minimum(out, other)
    return out


def smooth_union(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Union with the seam rounded over k pixels (polynomial smooth minimum)."""
    h = (0.5 + 0.5 * (b - a) / k).clamp(0, 1)
    return torch.lerp(b, a, h) - k * h * (1 - h)


class Canvas:
    """A batch of pictures under construction; layers are laid one over the other."""

    def __init__(self, n: int, size: int, device: torch.device | str) -> None:
        scale = 256.0 / size
        line = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * scale - 0.5
        self.x = line[None, None, :].expand(1, size, size)
        self.y = line[None, :, None].expand(1, size, size)
        self.n, self.size, self.px = n, size, scale
        self.rgb = torch.zeros(n, 3, size, size, device=device)

    # ---- distances -------------------------------------------------------------------------

    def turned(self, cx: Value, cy: Value, angle: Value = 0.0) -> tuple[Tensor, Tensor]:
        """Coordinates relative to a centre, turned by -angle (radians, clockwise on the screen)."""
        dx, dy = self.x - col(cx), self.y - col(cy)
        if isinstance(angle, float) and angle == 0.0:
            return dx, dy
        a = col(angle)
        co, si = (a.cos(), a.sin()) if isinstance(a, Tensor) else (math.cos(a), math.sin(a))
        return dx * co + dy * si, dy * co - dx * si

    def circle(self, cx: Value, cy: Value, r: Value) -> Tensor:
        """Exact distance to a circle."""
        dx, dy = self.turned(cx, cy)
        return (dx * dx + dy * dy + 1e-6).sqrt() - col(r)

    def ellipse(self, cx: Value, cy: Value, rx: Value, ry: Value, angle: Value = 0.0) -> Tensor:
        """Distance to an ellipse, first-order (value over gradient length)."""
        dx, dy = self.turned(cx, cy, angle)
        rx, ry = col(rx), col(ry)
        u, v = dx / rx, dy / ry
        k0 = (u * u + v * v + 1e-6).sqrt()
        k1 = ((u / rx) ** 2 + (v / ry) ** 2 + 1e-9).sqrt()
        return k0 * (k0 - 1) / k1

    def box(
        self, cx: Value, cy: Value, hw: Value, hh: Value, r: float = 0.0, angle: Value = 0.0
    ) -> Tensor:
        """Exact distance to a rounded box with half sizes hw, hh."""
        dx, dy = self.turned(cx, cy, angle)
        qx, qy = dx.abs() - (col(hw) - r), dy.abs() - (col(hh) - r)
        outside = (qx.clamp(min=0) ** 2 + qy.clamp(min=0) ** 2 + 1e-9).sqrt()
        return outside + torch.maximum(qx, qy).clamp(max=0) - r

    def capsule(
        self, x1: Value, y1: Value, x2: Value, y2: Value, r1: Value, r2: Value | None = None
    ) -> Tensor:
        """Distance to a thick line whose radius goes from r1 to r2."""
        ax, ay = col(x1), col(y1)
        bx, by = col(x2) - ax, col(y2) - ay
        px, py = self.x - ax, self.y - ay
        h = ((px * bx + py * by) / (bx * bx + by * by + 1e-6)).clamp(0, 1)
        r = col(r1) if r2 is None else col(r1) + (col(r2) - col(r1)) * h
        return ((px - bx * h) ** 2 + (py - by * h) ** 2 + 1e-6).sqrt() - r

    def polygon(self, points: Sequence[tuple[Value, Value]], r: float = 0.0) -> Tensor:
        """Exact distance to a polygon (even-odd inside), rounded outwards by r."""
        best: Tensor | None = None
        odd: Tensor | None = None
        for i, (x1, y1) in enumerate(points):
            x2, y2 = points[i - 1]
            ax, ay = col(x1), col(y1)
            ex, ey = col(x2) - ax, col(y2) - ay
            px, py = self.x - ax, self.y - ay
            h = ((px * ex + py * ey) / (ex * ex + ey * ey + 1e-6)).clamp(0, 1)
            d2 = (px - ex * h) ** 2 + (py - ey * h) ** 2
            best = d2 if best is None else torch.minimum(best, d2)
            flips = ((py < 0) != (py < ey)) & (
                (px * ey < ex * py) == (ey > 0) * torch.ones_like(px, dtype=torch.bool)
            )
            odd = flips if odd is None else odd ^ flips
        assert best is not None and odd is not None
        d = (best + 1e-6).sqrt()
        return torch.where(odd, -d, d) - r

    # ---- layers ----------------------------------------------------------------------------

    def cover(self, d: Tensor) -> Tensor:
        """Anti-aliased coverage: 1 inside, 0 outside, a ramp of one pixel between."""
        return (0.5 - d / self.px).clamp(0, 1)

    def paint(self, colour: Tensor, alpha: Tensor) -> None:
        """Blend a colour [B, 3] or picture [B, 3, size, size] over what is there."""
        c = colour[:, :, None, None] if colour.ndim == 2 else colour
        self.rgb = torch.lerp(self.rgb, c.expand_as(self.rgb), alpha[:, None].expand_as(self.rgb))

    def fill(
        self,
        d: Tensor,
        colour: Tensor,
        *,
        puff: float = 9.0,
        depth: float = 0.30,
        line: float = 1.5,
        opacity: Value = 1.0,
    ) -> None:
        """Lay a shape: coloured, shaded as if inflated over `puff` px, outlined in ink.

        The light comes from the upper left. `depth` 0 draws it flat; `line` 0 without outline.
        opacity may be [B]: 0 leaves a picture as it was (a part that some pictures do not have).
        """
        d = d.expand(self.n, -1, -1)
        alpha = col(opacity)
        base = colour[:, :, None, None]
        if depth:
            gx = torch.gradient(d, dim=2)[0] / self.px
            gy = torch.gradient(d, dim=1)[0] / self.px
            rim = (1 + d / puff).clamp(0, 1)
            light = -(0.55 * gx + 0.80 * gy) * rim * rim * depth
            up = light.clamp(min=0)[:, None]
            base = base * (1 + light.clamp(max=0)[:, None]) + (1 - base) * up * 0.75
        if line:
            self.paint(self.ink(colour), self.cover(d - line) * alpha)
            self.paint(base.expand_as(self.rgb), self.cover(d) * alpha)
        else:
            self.paint(base.expand_as(self.rgb), self.cover(d) * alpha)

    def ink(self, colour: Tensor) -> Tensor:
        """Outline colour for a fill: ink with a breath of the fill in it."""
        ink = torch.tensor(INK, device=colour.device)
        return 0.82 * ink + 0.18 * colour * 0.5

    def glow(self, cx: Value, cy: Value, r: Value, colour: Tensor, strength: Value) -> None:
        """Add soft light round a point."""
        d = self.circle(cx, cy, 0.0)
        alpha = torch.exp(-((d / col(r)) ** 2)) * col(strength)
        self.paint(colour, alpha.expand(self.n, -1, -1))

    def gradient(self, top: Tensor, bottom: Tensor) -> None:
        """Fill the whole picture with a vertical gradient between two colours [B, 3]."""
        t = (self.y / 255).clamp(0, 1)[:, None]
        self.rgb = torch.lerp(
            top[:, :, None, None].expand_as(self.rgb), bottom[:, :, None, None].expand_as(self.rgb),
            t.expand_as(self.rgb),
        )  # fmt: skip

    def shade(self, d: Tensor, amount: Value, blur: float = 8.0) -> None:
        """Darken softly inside a shape (a cast shadow)."""
        alpha = (0.5 - d / blur).clamp(0, 1) * col(amount)
        self.rgb = self.rgb * (1 - alpha.expand(self.n, -1, -1)[:, None])
