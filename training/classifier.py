"""The judge of prompt adherence: a small CNN that names a picture's kind and main colour.

It learns from scenes, half of them after the autoencoder's round trip, so that it judges what was
drawn and not how sharply. Its own accuracy on held-out round-trip scenes is reported with every
figure it gives.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from training.config import SIZE
from training.device import synchronize
from training.loop import learning_rate_factor
from training.pictures import held_out_scenes, render_seed
from training.vae_train import reconstruct

log = logging.getLogger(__name__)

SIDE = 64  # px, the classifier's own resolution
CLASSIFIER_CHUNKS = 900_000  # its training scenes' chunk numbers begin here


class Classifier(nn.Module):
    """[B,3,H,W] in [0,1] -> logits of the kind [B,kinds] and of the main colour [B,colors]."""

    def __init__(self, kinds: int, colors: int, width: int = 32) -> None:
        """Four convolution levels on the picture brought down to 64x64."""
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for level in range(4):
            after = width * 2 ** min(level, 2)
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
                nn.Conv2d(after, after, 3, padding=1, stride=2),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            ]
            before = after
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        cells = (SIDE // 16) ** 2
        self.kind = nn.Linear(before * cells, kinds)
        self.color = nn.Linear(before * cells, colors)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of kind and colour."""
        small = F.interpolate(pictures, size=(SIDE, SIDE), mode="area")
        features = self.body(small * 2 - 1)
        return self.kind(features), self.color(features)


def labels(batch: list[Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Class indices of kind and main colour, int64 [B] each."""
    from training import scenes

    colors = list(scenes.MAIN_COLORS)
    kinds = list(scenes.KINDS)
    kind = torch.tensor([kinds.index(scene.kind) for scene in batch], device=device)
    color = torch.tensor([colors.index(scene.main_color) for scene in batch], device=device)
    return kind, color


def train_classifier(
    vae: Any, device: torch.device, seconds: float, seed: int = 0, judged: int = 200
) -> tuple[Classifier, dict[str, Any]]:
    """Train for `seconds` of wall-clock time, a third of it spent on drawing scenes.

    Returns:
        The classifier and its facts: scenes, steps, accuracy on `judged` held-out round-trip scenes.
    """
    from training import scenes

    start = time.monotonic()
    torch.manual_seed(seed)
    cuda = device.type == "cuda"
    chunk = 512 if cuda else 32
    pictures: list[Tensor] = []
    kinds: list[Tensor] = []
    colors: list[Tensor] = []
    while len(pictures) < 60 and (not pictures or time.monotonic() - start < seconds / 3):
        number = CLASSIFIER_CHUNKS + len(pictures)
        batch = scenes.sample_batch(chunk, render_seed(seed, number))
        drawn = scenes.render(batch, size=SIZE, device=device)
        half = chunk // 2
        drawn = torch.cat([reconstruct(vae, drawn[:half]), drawn[half:]])
        pictures.append(F.interpolate(drawn, size=(SIDE, SIDE), mode="area").half())
        kind, color = labels(batch, device)
        kinds.append(kind)
        colors.append(color)
        synchronize(device)
    images, kind, color = torch.cat(pictures), torch.cat(kinds), torch.cat(colors)

    model = Classifier(len(scenes.KINDS), len(scenes.MAIN_COLORS)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    generator = Generator(device).manual_seed(seed)
    begun = (time.monotonic() - start) / seconds
    steps = 0
    while (fraction := (time.monotonic() - start) / seconds) < 1 or steps == 0:
        index = torch.randint(len(images), (128,), generator=generator, device=device)
        noise = torch.randn((128, 3, SIDE, SIDE), generator=generator, device=device)
        of_kind, of_color = model(images[index].float() + 0.03 * noise)
        loss = F.cross_entropy(of_kind, kind[index]) + F.cross_entropy(of_color, color[index])
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * learning_rate_factor(min(fraction, 1), steps, begun)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        steps += 1
        if steps % 20 == 0:
            synchronize(device)
    model.eval()
    batch, true = held_out_scenes(judged, device)
    share = adherence(model, reconstruct(vae, true), batch)
    facts = {"scenes": len(images), "steps": steps, "held_out_scenes": judged, **share}
    log.info("classifier: %s", facts)
    return model, facts


@torch.no_grad()
def adherence(model: Classifier, pictures: Tensor, batch: list[Any]) -> dict[str, float]:
    """Shares of the pictures recognised as their scene's kind, main colour, and both."""
    kind, color = labels(batch, pictures.device)
    hits_kind, hits_color = [], []
    for start in range(0, len(batch), 50):
        part = slice(start, start + 50)
        of_kind, of_color = model(pictures[part])
        hits_kind.append(of_kind.argmax(1) == kind[part])
        hits_color.append(of_color.argmax(1) == color[part])
    right_kind, right_color = torch.cat(hits_kind), torch.cat(hits_color)
    return {
        "kind": round(float(right_kind.float().mean()), 4),
        "color": round(float(right_color.float().mean()), 4),
        "both": round(float((right_kind & right_color).float().mean()), 4),
    }
