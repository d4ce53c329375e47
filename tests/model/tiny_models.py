"""Random pipelines of each architecture, small enough to run whole edits in seconds.

They draw nothing recognisable; their shapes, schedules, text encoders and added inputs are those of
Stable Diffusion 1.x, 2.x (epsilon and v-prediction) and XL.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

KINDS = ("sd1", "sd2", "sd2v", "sdxl")
_WIDTH = 32
_UNET: dict[str, dict[str, Any]] = {
    "sd1": {"attention_head_dim": 4},
    "sd2": {"attention_head_dim": [2, 4, 4, 4], "use_linear_projection": True},
    "sd2v": {"attention_head_dim": [2, 4, 4, 4], "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 3],
        "attention_head_dim": [2, 4, 4],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + _WIDTH,
        "cross_attention_dim": 2 * _WIDTH,
        "sample_size": 16,
    },
}


def build(kind: str, folder: Path, tokenizer: Path, seed: int = 0) -> Path:
    """Write a random pipeline of `kind` in diffusers' layout into `folder`."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    given = {
        "sample_size": 8,
        "block_out_channels": (16, 32, 32, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": _WIDTH,
        **_UNET[kind],
    }
    unet = UNet2DConditionModel(**given)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
    )
    text = {
        "vocab_size": 565,
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu" if kind == "sd1" else "gelu",
        "bos_token_id": 563,
        "eos_token_id": 564,
        "projection_dim": _WIDTH,
    }
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if kind == "sd2v" else "epsilon",
    )
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    CLIPTextModel(CLIPTextConfig(**text)).save_pretrained(folder / "text_encoder")
    scheduler.save_pretrained(folder / "scheduler")
    shutil.copytree(tokenizer, folder / "tokenizer")
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    if kind == "sdxl":
        second = CLIPTextModelWithProjection(CLIPTextConfig(**text))
        second.save_pretrained(folder / "text_encoder_2")
        shutil.copytree(tokenizer, folder / "tokenizer_2")
        index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
