"""Pictures that are not scenes, made on the device: the autoencoder must also carry an upload.

Textures, gradients, gratings, flat polygons, noise patches, and scenes that were warped and
recoloured. All functions are batched, take and return [B,3,H,W] in [0,1], and draw every random
number from the generator that is passed in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def _rand(shape: tuple[int, ...], generator: Generator, low: float = 0, high: float = 1) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Coordinates x, y in [-1,1], each [1,1,H,W]."""
    line = torch.linspace(-1, 1, size, device=device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x[None, None], y[None, None]


def _ramp(value: Tensor, generator: Generator) -> Tensor:
    """Colour a scalar field [B,1,H,W] in [0,1] with a random three-colour ramp."""
    colors = _rand((value.shape[0], 3, 3, 1, 1), generator)
    low, mid, high = colors.unbind(1)
    rising = (2 * value).clamp(0, 1)
    falling = (2 * value - 1).clamp(0, 1)
    return low + (mid - low) * rising + (high - mid) * falling


def gradients(count: int, size: int, generator: Generator) -> Tensor:
    """Linear and radial gradients between three random colours."""
    x, y = _grid(size, generator.device)
    angle = _rand((count, 1, 1, 1), generator, 0, 2 * math.pi)
    centre = _rand((2, count, 1, 1, 1), generator, -1, 1)
    linear = 0.5 + 0.4 * (x * angle.cos() + y * angle.sin())
    radial = ((x - centre[0]).square() + (y - centre[1]).square()).sqrt() / 2
    pick = _rand((count, 1, 1, 1), generator) < 0.6
    return _ramp(torch.where(pick, linear, radial).clamp(0, 1), generator)


def textures(count: int, size: int, generator: Generator) -> Tensor:
    """Fractal value noise: octaves of smooth noise, the falloff random per picture."""
    field = torch.zeros(count, 3, size, size, device=generator.device)
    falloff = _rand((count, 1, 1, 1), generator, 0.35, 0.95)
    weight = torch.ones_like(falloff)
    total = torch.zeros_like(falloff)
    cells = 3
    while cells <= size // 2:
        noise = _rand((count, 3, cells, cells), generator)
        field += weight * F.interpolate(noise, size=(size, size), mode="bicubic")
        total += weight
        weight = weight * falloff
        cells *= 2
    field = (0.5 + 1.8 * (field / total - 0.5)).clamp(0, 1)
    ramped = _ramp(field[:, :1], generator)
    return torch.where(_rand((count, 1, 1, 1), generator) < 0.5, ramped, field)


def gratings(count: int, size: int, generator: Generator) -> Tensor:
    """Stripes and checks of random direction, period (4 to 64 px) and sharpness."""
    x, y = _grid(size, generator.device)
    angle = _rand((count, 1, 1, 1), generator, 0, math.pi)
    period = 2 ** _rand((count, 1, 1, 1), generator, 2, 6)
    scale = math.pi * size / period
    along = (scale * (x * angle.cos() + y * angle.sin())).sin()
    across = (scale * (y * angle.cos() - x * angle.sin())).sin()
    wave = torch.where(_rand((count, 1, 1, 1), generator) < 0.5, along, along * across)
    sharp = 2 ** _rand((count, 1, 1, 1), generator, 0, 4)
    return _ramp(torch.sigmoid(2 * sharp * wave), generator)


def polygons(base: Tensor, generator: Generator, layers: int = 10) -> Tensor:
    """Lay random convex polygons with soft edges over `base`, flat or filled from it."""
    count, _, size, _ = base.shape
    x, y = _grid(size, generator.device)
    out = base
    for _ in range(layers):
        sides = _rand((5, count, 1, 1, 1), generator, 0, 2 * math.pi)
        centre = _rand((2, count, 1, 1, 1), generator, -0.9, 0.9)
        radius = _rand((count, 1, 1, 1), generator, 0.04, 0.5).square() * 2
        distance = torch.full((count, 1, size, size), -2.0, device=base.device)
        for side in sides:
            edge = (x - centre[0]) * side.cos() + (y - centre[1]) * side.sin() - radius
            distance = torch.maximum(distance, edge)
        cover = torch.sigmoid(-distance * size)  # an edge about two pixels wide
        flat = _rand((count, 3, 1, 1), generator).expand_as(base)
        fill = torch.where(_rand((count, 1, 1, 1), generator) < 0.75, flat, base.roll(1, 0))
        out = out + cover * (fill - out)
    return out


def noise_patches(pictures: Tensor, generator: Generator) -> Tensor:
    """Add grain inside random rectangles, its strength random per picture."""
    count, _, size, _ = pictures.shape
    x, y = _grid(size, generator.device)
    box = _rand((4, count, 1, 1, 1), generator, -1, 1)
    inside = ((x - box[0]).abs() < box[2].abs()) & ((y - box[1]).abs() < box[3].abs())
    strength = _rand((count, 1, 1, 1), generator, 0, 0.15)
    grain = torch.randn(pictures.shape, generator=generator, device=generator.device)
    return (pictures + inside * strength * grain).clamp(0, 1)


def synthetic(count: int, size: int, generator: Generator) -> Tensor:
    """Pictures of no scene at all, every kind above mixed."""
    kinds = (gradients, textures, gratings)
    choice = torch.randint(
        len(kinds), (count, 1, 1, 1), generator=generator, device=generator.device
    )
    base = torch.zeros(count, 3, size, size, device=generator.device)
    for index, kind in enumerate(kinds):
        base = torch.where(choice == index, kind(count, size, generator), base)
    covered = polygons(base, generator)
    base = torch.where(_rand((count, 1, 1, 1), generator) < 0.6, covered, base)
    return noise_patches(base, generator)


def warped(pictures: Tensor, generator: Generator) -> Tensor:
    """The pictures turned, scaled, mirrored, bent by a smooth field, and recoloured."""
    count, _, size, _ = pictures.shape
    angle = _rand((count,), generator, -math.pi, math.pi)
    zoom = 2 ** _rand((count,), generator, -1.0, 0.6)
    mirror = torch.where(_rand((count,), generator) < 0.5, -1.0, 1.0)
    shift = _rand((count, 2), generator, -0.4, 0.4)
    matrix = torch.stack(
        [
            torch.stack([zoom * angle.cos() * mirror, -zoom * angle.sin(), shift[:, 0]], -1),
            torch.stack([zoom * angle.sin() * mirror, zoom * angle.cos(), shift[:, 1]], -1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [count, 3, size, size], align_corners=False)
    bend = torch.randn((count, 2, 6, 6), generator=generator, device=generator.device)
    bend = F.interpolate(bend, size=(size, size), mode="bicubic").permute(0, 2, 3, 1)
    grid = grid + 0.06 * bend
    out = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    return recolored(out, generator)


def recolored(pictures: Tensor, generator: Generator) -> Tensor:
    """Random mixing of the channels, contrast, brightness and gamma."""
    count = pictures.shape[0]
    mix = torch.rand((count, 3, 3), generator=generator, device=generator.device)
    mix = torch.softmax(6 * mix, -1)  # rows near a permutation, so that colours stay vivid
    out = torch.einsum("brc,bchw->brhw", mix, pictures)
    contrast = _rand((count, 1, 1, 1), generator, 0.5, 1.4)
    offset = _rand((count, 3, 1, 1), generator, -0.15, 0.15)
    out = (0.5 + contrast * (out - 0.5) + offset).clamp(0, 1)
    gamma = 2 ** _rand((count, 1, 1, 1), generator, -0.7, 0.7)
    return out.clamp_min(1e-4).pow(gamma)


def mix_in(pictures: Tensor, generator: Generator, share: float = 0.2) -> Tensor:
    """Replace the last `share` of the batch: half warped scenes, half synthetic pictures.

    At least one picture is replaced from a batch of four upwards.
    """
    count, _, size, _ = pictures.shape
    replaced = max(round(share * count), 1 if count >= 4 else 0)
    if replaced == 0:
        return pictures
    bent = replaced // 2
    made = replaced - bent
    parts = [pictures[: count - replaced]]
    if bent:
        parts.append(warped(pictures[count - replaced : count - made], generator))
    parts.append(synthetic(made, size, generator))
    return torch.cat(parts)
