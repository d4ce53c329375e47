"""The golden cases of the reference programs: tensors, options, and the micro model under them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from workbench.core.config import DragConfig
from workbench.diffusion.ddim import Schedule, schedule_from
from workbench.diffusion.unet import Denoiser, Prompt
from workbench.drag.problem import DragProblem
from workbench.imaging.coords import mask_levels

Tensor = torch.Tensor


@dataclass(frozen=True)
class Micro:
    """The micro pipeline's parts, frozen, float32."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule: Schedule

    def text(self, prompt: str) -> Tensor:
        ids = self.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")
        with torch.no_grad():
            found: Tensor = self.text_encoder(ids.input_ids)[0]
        return found


def load_micro(folder: Path) -> Micro:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
    }
    for part in parts.values():
        part.eval().requires_grad_(False)
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return Micro(tokenizer=tokenizer, schedule=schedule_from(config, 50), **parts)


@dataclass(frozen=True)
class Case:
    """One golden case."""

    name: str
    folder: Path
    tensors: dict[str, Tensor]
    arrays: dict[str, Any]
    info: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        found: dict[str, Any] = self.info["options"]
        return found

    @property
    def pixels(self) -> Tensor:
        """[1,3,H,W] in [-1,1], from the picture itself."""
        rgb = np.asarray(Image.open(self.folder / "image.png").convert("RGB"))
        return torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture."""
        with Image.open(self.folder / "image.png") as picture:
            return picture.height, picture.width

    @property
    def feature_grid(self) -> tuple[int, int]:
        return self.size[0] // 2, self.size[1] // 2

    @property
    def mask(self) -> Tensor:
        """Mask on the latent, from the picture of the mask."""
        painted = np.asarray(Image.open(self.folder / "mask.png").convert("L")) > 0
        _, latent = mask_levels(painted)
        return torch.from_numpy(latent)[None, None].float()

    @property
    def clean(self) -> Tensor:
        """The edited latent [1,4,h,w] when all is denoised."""
        if self.gooddrag:
            return self.tensors["final_latent"]
        return self.tensors["denoise_latents_msa"][-1, 1:]

    @property
    def result(self) -> np.ndarray[Any, Any]:
        return np.asarray(Image.open(self.folder / "result.png").convert("RGB")).astype(int)

    @property
    def handles(self) -> Tensor:
        return torch.from_numpy(self.arrays["handle_init"])

    @property
    def targets(self) -> Tensor:
        return torch.from_numpy(self.arrays["target"])

    @property
    def adapter(self) -> dict[str, Tensor] | None:
        """The LoRA under which the case was made, in PEFT keys."""
        if self.name not in ("masked", "odd", "gooddrag_masked"):
            return None
        folder = self.folder.parent / "masked" / "lora_peft"
        return load_file(folder / "pytorch_lora_weights.safetensors")

    @property
    def trail(self) -> Tensor:
        """[n+1,1,4,h,w] from clean to the drag's start, as recorded."""
        if "gen_latents" in self.tensors:
            return self.tensors["gen_latents"][15:].flip(0)
        return self.tensors["inv_latents"]

    @property
    def gooddrag(self) -> bool:
        return self.name.startswith("gooddrag")

    @property
    def held(self) -> bool:
        """Whether there is a mask term; GoodDrag's program takes an empty mask to freeze everything."""
        return self.gooddrag or bool(self.mask.any())

    # --- the recorded run, update by update ---------------------------------------------------------

    def round_of(self, k: int) -> int:
        """GoodDrag's round of update k; DragDiffusion has one."""
        return int(self.arrays["grad_round"][k]) if self.gooddrag else 0

    def timestep(self, k: int) -> int:
        return int(self.arrays["grad_t"][k]) if self.gooddrag else int(self.info["drag_timestep"])

    def start_of_round(self, i: int) -> Tensor:
        """The latent [1,4,h,w] that enters round i."""
        return self.tensors["round_start"][i] if self.gooddrag else self.tensors["init_code"]

    def before(self, k: int) -> Tensor:
        """The latent [1,4,h,w] that update k starts from."""
        if k == 0 or self.round_of(k) != self.round_of(k - 1):
            return self.start_of_round(self.round_of(k))
        return self.tensors["drag_latents"][k - 1]

    def points_at(self, k: int) -> Tensor:
        """The points [P,2] that the loss of update k uses."""
        if self.gooddrag:
            return torch.from_numpy(self.arrays["grad_points"][k])
        return self.handles if k == 0 else torch.from_numpy(self.arrays["points"][k - 1])

    def original_after(self, k: int) -> Tensor:
        """The original's latent [1,4,h,w] one DDIM step after update k's timestep."""
        if self.gooddrag:
            return self.tensors["orig_prev"][self.round_of(k)]
        return self.tensors["denoise_latents_msa"][1, :1]

    def config(self, **changes: Any) -> DragConfig:
        o = self.options
        if self.gooddrag:
            values: dict[str, Any] = {
                "method": "gooddrag", "steps": 2000, "learning_rate": o["latent_lr"],
                "mask_weight": o["lam"], "patch_radius": o["r1"], "track_radius": o["r2"],
                "max_shift": o["d"], "drag_rounds": o["drag_end_step"],
                "trackings_per_round": o["track_per_step"],
                "updates_per_tracking": o["max_drag_per_track"],
                "no_change_limit": o["max_track_no_change"],
            }  # fmt: skip
        else:
            values = {
                "steps": o["n_pix_step"], "learning_rate": o["latent_lr"], "mask_weight": o["lam"],
                "sharing_start_layer": o["start_layer"], "sharing_start_step": o["start_step"],
            }  # fmt: skip
        return DragConfig(**{**values, "parity": True, **changes})

    def problem(self, micro: Micro, trail: Tensor | None = None, **changes: Any) -> DragProblem:
        guided = self.options.get("mode") == "gen"
        return DragProblem(
            unet=micro.unet, schedule=micro.schedule, prompt=Prompt(self.text(micro)),
            inversion_latents=self.trail if trail is None else trail,
            handles=self.handles, targets=self.targets, feature_grid=self.feature_grid,
            mask=self.mask, config=self.config(**changes),
            negative=Prompt(micro.text(self.options["neg_prompt"])) if guided else None,
            guidance=self.options["guidance"] if guided else 1.0,
        )  # fmt: skip

    def text(self, micro: Micro) -> Tensor:
        return micro.text(self.info["prompt"])

    def denoiser(self, micro: Micro) -> Denoiser:
        return self.problem(micro).denoiser()


def load_case(folder: Path) -> Case:
    with np.load(folder / "drag.npz") as arrays:
        kept = {name: arrays[name] for name in arrays}
    info = json.loads((folder / "case.json").read_text())
    return Case(folder.name, folder, load_file(folder / "tensors.safetensors"), kept, info)


def worst(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is compared with {tuple(b.shape)}"
    return float((a - b).abs().max())
