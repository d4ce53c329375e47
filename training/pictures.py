"""The autoencoder's training pictures on the device: photographs, and scenes drawn as it goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from training import augment
from training.config import HELD_OUT_SEED, SIZE


def render_seed(seed: int, chunk: int) -> int:
    """The `sample_batch` seed of a run's n-th chunk of training scenes; never a held-out one."""
    return (seed * 1_000_003 + chunk * 7_919) % (HELD_OUT_SEED - 10_000)


def cut(pictures: Tensor, index: Tensor, side: int, generator: Generator) -> Tensor:
    """Squares of `side` pixels at random places of uint8 [N,3,H,W], every other one mirrored.

    Returns [len(index),3,side,side] in [0,1].
    """
    device, count = pictures.device, len(index)
    room = torch.tensor(pictures.shape[-2:], device=device) - side + 1
    place = torch.rand((count, 2), generator=generator, device=device)
    top, left = (place * room).long().unbind(1)
    line = torch.arange(side, device=device)
    mirrored = torch.rand((count, 1), generator=generator, device=device) < 0.5
    rows = top[:, None] + line
    columns = left[:, None] + torch.where(mirrored, line.flip(0), line)
    out = pictures[index[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return out.permute(0, 3, 1, 2).float() / 255


class PicturePool:
    """Photographs and scenes as uint8 on the device; the scenes are replaced a chunk at a time."""

    def __init__(
        self,
        capacity: int,
        chunk: int,
        seed: int,
        device: torch.device,
        photos: tuple[Tensor, Tensor] | None = None,
        photo_share: float = 0.0,
    ) -> None:
        """No scene is drawn yet. Memory: 196 KB a picture.

        Args:
            capacity: scenes kept.
            chunk: scenes drawn at a time.
            seed: of the scenes.
            device: where all pictures are.
            photos: uint8 [N,3,256,256] and weights [N] of photographs.
            photo_share: of the pictures of a draw.
        """
        self.scenes = torch.empty(capacity, 3, SIZE, SIZE, dtype=torch.uint8, device=device)
        self.filled = 0
        self._next = 0
        self._chunk = min(chunk, capacity)
        self._chunks = 0
        self._seed = seed
        self._device = device
        self._share = photo_share if photos is not None else 0.0
        self._photos: Tensor | None = None
        self._weights: Tensor | None = None
        if photos is not None:
            self._photos, self._weights = photos[0].to(device), photos[1].to(device)

    def extend(self) -> None:
        """Draw one more chunk of scenes; the oldest make room when the pool is full."""
        from training import scenes

        batch = scenes.sample_batch(self._chunk, render_seed(self._seed, self._chunks))
        self._chunks += 1
        drawn = scenes.render(batch, size=SIZE, device=self._device)
        index = (torch.arange(self._chunk) + self._next) % len(self.scenes)
        self.scenes[index.to(self._device)] = (drawn * 255).round().to(torch.uint8)
        self._next = (self._next + self._chunk) % len(self.scenes)
        self.filled = min(self.filled + self._chunk, len(self.scenes))

    def fill(self, count: int) -> None:
        """Draw until there are `count` scenes."""
        while self.filled < min(count, len(self.scenes)):
            self.extend()

    def draw(self, count: int, generator: Generator, side: int = SIZE) -> Tensor:
        """A training batch [count,3,side,side] in [-1,1]: photographs first, then scenes.

        A fifth of the scenes is warped, or a picture of no scene at all (`augment`).
        """
        parts = []
        from_photos = round(self._share * count)
        if from_photos and self._photos is not None and self._weights is not None:
            index = torch.multinomial(self._weights, from_photos, True, generator=generator)
            parts.append(cut(self._photos, index, side, generator))
        if from_photos < count:
            index = torch.randint(
                self.filled, (count - from_photos,), generator=generator, device=self._device
            )
            pictures = augment.mix_in(self.scenes[index].float() / 255, generator)
            whole = torch.arange(len(pictures), device=self._device)
            bytes_ = (pictures * 255).round().to(torch.uint8)
            parts.append(cut(bytes_, whole, side, generator))
        out = torch.cat(parts) * 2 - 1
        return out.contiguous(memory_format=torch.channels_last)


def held_out_scenes(count: int, device: torch.device) -> tuple[list[Any], Tensor]:
    """The first `count` held-out scenes and their pictures [count,3,256,256] in [0,1]."""
    from training import scenes

    batch = scenes.sample_batch(count, HELD_OUT_SEED)
    drawn = [
        scenes.render(batch[i : i + 50], size=SIZE, device=device) for i in range(0, count, 50)
    ]
    return batch, torch.cat(drawn)
