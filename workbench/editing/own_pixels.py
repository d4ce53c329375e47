"""Steps around the drag: features of the picture, the moved picture, and what is delivered.

The moved picture keeps its pixels at the picture's own resolution; the model works at its own. Here the
two are put together, the better result is chosen without knowing the truth, and it is measured where
each handle's surroundings are in the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from workbench.core.request import PointPair
from workbench.drag.tracking import Template
from workbench.editing.crop_plan import LEVEL, NOISES, Look, look_key, look_of, unfit
from workbench.editing.text_to_image import denoiser_of, to_rgb
from workbench.editing.working_image import WorkingImage
from workbench.imaging import decode
from workbench.imaging.coords import Frame
from workbench.warping.held import PictureFeatures
from workbench.warping.layers import Motion, Plan, agreement, composed, plan, render, seams

if TYPE_CHECKING:
    from workbench.editing.prepare import PreparedEdit

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Tensor = torch.Tensor

# --- the model's look at the picture -------------------------------------------------------------------


@torch.no_grad()
def look(edit: PreparedEdit) -> Look:
    """The model's look at the request's picture, without any LoRA of it; kept in the cache."""
    image, run = edit.image, edit.runtime
    name = look_key(image.id, edit.model, edit.request.prompt, image.size)
    kept = run.kept(name)
    if not isinstance(kept, Look):
        with edit.report.timed("look"):
            raw, _ = edit.cache.get_or_make(
                name, lambda: _look(edit), kind="features", label=edit.request.image.name
            )
        kept = look_of(raw, image.crop.frame)
        run.keep(name, kept)
    return kept


def _look(edit: PreparedEdit) -> bytes:
    run, image = edit.runtime, edit.image
    mean, _ = edit.encoded()
    denoiser = denoiser_of(run, edit.request.prompt, image.size, edit.schedule)
    t = min(edit.schedule.timesteps, key=lambda t: abs(t - LEVEL))
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn((NOISES, *mean.shape[1:]), generator=generator).to(mean)
    feature, guess = denoiser.both(edit.schedule.noised(mean, noise, t), t)
    error = ((guess - noise) ** 2).mean((0, 1))
    again = torch.from_numpy(np.ascontiguousarray(to_rgb(run.decode(mean))))
    tensors = {
        "features": feature.float().mean(0).half(), "noise_error": error.float(), "again": again,
    }  # fmt: skip
    return bytes(save({k: v.cpu().contiguous() for k, v in tensors.items()}))


# --- the moved picture ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class MovedPicture:
    """A request's picture moved along its arrows.

    `full` uint8 [H, W, 3] is the edited part at the picture's own resolution, `working` [h, w, 3] the
    same as the model sees it; `full_doubt` [H, W] and `doubt` [h, w], 0..1, say how little each pixel
    can be trusted.
    """

    motion: Motion
    full: U8
    working: U8
    full_doubt: F32
    doubt: F32


def moved_of(image: WorkingImage, features: PictureFeatures | None = None) -> MovedPicture | None:
    """Move what the arrows hold on the part that is edited; None when nothing moves."""
    rows, cols = image.crop.slices
    source = np.ascontiguousarray(image.source[rows, cols])
    mask = image.mask[rows, cols] if image.mask is not None else None
    crop = image.crop
    frame = Frame(crop.x0, crop.y0, crop.width, crop.height, crop.width, crop.height)
    if features is not None:
        features = PictureFeatures(
            features.values, (0.0, 0.0, float(crop.width), float(crop.height))
        )
    pairs = [frame.forward_pair(p) for p in image.request.pairs]
    motion = plan(source, mask, pairs, Plan(features=features))
    if motion is None:
        return None
    full = render(motion, source, mask, fine=True)
    doubt: F32 = np.zeros(source.shape[:2], np.float32)
    doubt[motion.grid.box] = np.clip(motion.grid.full(motion.trust().doubt()), 0, 1)
    if mask is not None:
        doubt *= mask
    small = decode.resize(np.rint(doubt * 255).astype(np.uint8), image.size, "box")
    working = decode.resize(full, image.size, "lanczos")
    return MovedPicture(motion, full, working, doubt, np.asarray(small / 255, np.float32))


# --- what is delivered ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What an edit may deliver, pictures uint8 [H, W, 3]; see `Engine.on_candidates`.

    `moved` has the picture's own pixels alone, `made` the model's where these cannot be trusted, by
    `doubt` [H, W] in 0..1. `name` says what the model made: "draft" or "refined".
    """

    moved: U8
    made: U8
    doubt: F32
    name: str

    @classmethod
    def of(cls, moved: MovedPicture, drawn: U8, again: U8 | None) -> Candidates:
        """Both candidates of the edited part.

        Args:
            moved: the picture's own pixels.
            drawn: the model's result at its size.
            again: for a refined result, the moved picture through the autoencoder and back.
        """
        agreed = agreement(drawn, again) if again is not None else None
        made = composed(moved.full, drawn, moved.full_doubt, agreed)
        name = "draft" if again is None else "refined"
        return cls(moved.full, made, moved.full_doubt, name)

    def whole(self, image: WorkingImage) -> Candidates:
        """The same put back into the whole picture, as a result is."""
        doubt = np.zeros(image.source.shape[:2], np.float32)
        doubt[image.crop.slices] = self.doubt
        moved, made = (image.put_back(p) for p in (self.moved, self.made))
        return Candidates(moved, made, doubt, self.name)

    def judged(self, knows: dict[str, Any]) -> tuple[U8, dict[str, Any]]:
        """The better one, chosen without knowing the truth, and why.

        That is the model's, but a draft only where it knows the picture well, and a refined result only
        where it is not unfit.

        Args:
            knows: see `Look.knows`.

        Returns:
            uint8 [H, W, 3]; {"result": "moved", "draft" or "refined", "why": a code, and the figures
            of both candidates}.
        """
        old, new = (seams(p, self.doubt) for p in (self.moved, self.made))
        figures = {
            "step_moved": round(old.step, 2), "step": round(new.step, 2),
            "texture_moved": round(old.texture, 3), "texture": round(new.texture, 3),
        }  # fmt: skip
        if unfit(knows):
            return self.moved, {"result": "moved", "why": "model-unfit", **figures}
        if self.name == "draft" and knows["level"] != "well":  # a LoRA teaches a refined one more
            return self.moved, {"result": "moved", "why": "own-better", **figures}
        return self.made, {"result": self.name, "why": "fits", **figures}


def found_in(image: WorkingImage, result: U8) -> tuple[tuple[float, float], ...]:
    """Find each handle's surroundings in a result uint8 [H, W, 3]: (px from the target, likeness).

    Found by `workbench.drag.tracking` on the part that was edited, at the model's size; px are the
    picture's own. It asks the picture, not the model, so that no model can praise itself.
    """
    rows, cols = image.crop.slices
    after = decode.resize(np.ascontiguousarray(result[rows, cols]), image.size, "lanczos")
    kx, ky = image.frame.scale
    template, out = Template(), []
    for pair in image.request.pairs:
        there: PointPair = image.frame.forward_pair(pair)
        hit = template.find(image.rgb, after, there)
        gap = np.hypot((hit.point.x - there.target.x) / kx, (hit.point.y - there.target.y) / ky)
        out.append((round(float(gap), 2), round(float(hit.score), 4)))
    return tuple(out)
