"""Models of the speed benchmark: a model for ours and one for the baseline, from disk or made up.

`sd15-random` is the exact architecture of Stable Diffusion 1.5 (U-Net of 860 M weights, autoencoder,
CLIP ViT-L text encoder) with random weights: speed does not depend on what the weights know.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import baseline
from workbench.core.errors import BadInput
from workbench.diffusion import device as devices
from workbench.diffusion import model as runtimes
from workbench.diffusion.registry import WEIGHTS, ModelSpec, Registry
from workbench.diffusion.registry.files import find_files
from workbench.diffusion.registry.loading import Parts

log = logging.getLogger(__name__)

SD15_RANDOM = "sd15-random"
DTYPES = {
    "fp32": "fp32", "fp16": "fp16", "bf16": "bf16",
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "auto": "auto",
}  # fmt: skip
_SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
    "num_train_timesteps": 1000, "prediction_type": "epsilon",
}  # fmt: skip
_UNET: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8,
    "cross_attention_dim": 768,
}  # fmt: skip
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215, "sample_size": 512,
}  # fmt: skip
_TEXT: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "hidden_act": "quick_gelu", "max_position_embeddings": 77,
    "projection_dim": 768,
}  # fmt: skip


@dataclass(slots=True)
class Subject:
    """One model under test; `folder` is None where it only exists in memory."""

    name: str
    device: torch.device
    dtype: torch.dtype
    folder: Path | None
    registered: str | ModelSpec
    made: Parts | None = None

    @property
    def loads(self) -> bool:
        """True if reading the model from disk can be timed."""
        return self.folder is not None

    def runtime(self) -> runtimes.Runtime:
        """Ours: read from disk, or put round the modules that were made up."""
        if self.made is None:
            short = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
            return runtimes.load(self.registered, device=str(self.device), dtype=short[self.dtype])
        return runtimes.Runtime(
            spec=ModelSpec(name=self.name, path=str(WEIGHTS), native_size=512),
            parts=self.made, fingerprint="random", device=self.device, dtype=self.dtype,
            native_size=512,
        )  # fmt: skip

    def pipe(self) -> Any:
        """The baseline's pipeline: read from disk, or a copy of the made-up modules."""
        if self.folder is not None:
            return baseline.load(self.folder, self.device, self.dtype)
        if self.made is None:
            raise BadInput("The model was neither read nor made.")
        from diffusers import DDIMScheduler

        unet = copy.deepcopy(self.made.unet).to(memory_format=torch.contiguous_format)
        return types.SimpleNamespace(
            unet=unet, vae=copy.deepcopy(self.made.vae),
            text_encoder=self.made.text_encoders[0], tokenizer=self.made.tokenizers[0],
            scheduler=DDIMScheduler(**_SCHEDULE), device=self.device,
        )  # fmt: skip


def subject(model: str, *, device: str, dtype: str, load_stage: bool, folder: Path) -> Subject:
    """Find or make the model.

    Args:
        model: registered name, diffusers folder, or `sd15-random`.
        device: as in the settings.
        dtype: fp32, fp16, bf16 (or torch's long names), or auto.
        load_stage: whether reading from disk is to be timed; a made-up model is then written to
            `folder` once (2 GB in half precision).
        folder: where a made-up model is kept.

    Raises:
        BadInput: for an unknown model or precision, or a single-file checkpoint.
    """
    if dtype not in DTYPES:
        raise BadInput(f"There is no precision {dtype!r}; choose fp32, fp16, bf16 or auto.")
    where = torch.device(devices.devices(device)[0])
    if model == SD15_RANDOM:
        kind = devices.choose_dtype(DTYPES[dtype], where, 860_000_000)
        if not load_stage:
            return Subject(model, where, kind, None, model, random_sd15(where, kind))
        saved = _saved(folder / f"{SD15_RANDOM}-{str(kind).rpartition('.')[2]}", kind)
        return Subject(model, where, kind, saved, ModelSpec(name=SD15_RANDOM, path=str(saved)))
    registry = Registry()
    spec = registry.resolve(model)
    files = find_files(spec, registry)
    if files.single is not None:
        raise BadInput(
            "The speed benchmark reads diffusers folders; a single-file checkpoint would time the "
            "conversion, too."
        )
    kind = devices.choose_dtype(DTYPES[dtype], where, files.bytes // 2)
    return Subject(model, where, kind, files.root, spec)


def random_sd15(device: torch.device, dtype: torch.dtype, seed: int = 0) -> Parts:
    """Stable Diffusion 1.5's architecture with random weights, made on the device itself."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    with _made_on(device, dtype):
        unet = UNet2DConditionModel(**_UNET)
        vae = AutoencoderKL(**_VAE)
    text = CLIPTextModel(CLIPTextConfig(**_TEXT)).to(device, dtype)
    for module in (unet, vae, text):
        module.requires_grad_(False).eval()
    tokenizer = CLIPTokenizer.from_pretrained(str(WEIGHTS / "tokenizer"), local_files_only=True)
    return Parts(
        unet=unet, vae=vae, text_encoders=[text], tokenizers=[tokenizer],
        scheduler_config=dict(_SCHEDULE),
    )  # fmt: skip


@contextlib.contextmanager
def _made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _saved(folder: Path, dtype: torch.dtype) -> Path:
    """The made-up model in diffusers' layout; written at the first call."""
    if (folder / "model_index.json").is_file():
        return folder
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    log.info("writing random weights to %s", folder)
    parts = random_sd15(torch.device("cpu"), dtype)
    StableDiffusionPipeline(
        vae=parts.vae, text_encoder=parts.text_encoders[0], tokenizer=parts.tokenizers[0],
        unet=parts.unet, scheduler=DDIMScheduler(**_SCHEDULE), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def weight_bytes(*modules: Any) -> int:
    """Bytes of all parameters."""
    return sum(p.numel() * p.element_size() for m in modules for p in m.parameters())
