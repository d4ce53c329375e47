"""Configuration of `album`: the sizes of its parts, Stable Diffusion 1.x's block layout, its schedule.

Sizes were chosen for a CPU. The self-attentions have three heads where Stable Diffusion has eight:
every head's width (16, 32, 80) is a multiple of eight, which the fused attention kernels want, and
wide heads are cheap: a pass and its gradient take half the time of `storybook`'s six narrow ones,
which has two thirds of the weights. The autoencoder has no attention, so that what it learns on
128-pixel crops holds at every size, and 12 latent channels: photographs need them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput

NAME = "album"
SIZE = 256  # px, side of the pictures it was trained on
LATENT_CHANNELS = 12
LATENT_SIZE = SIZE // 8
CROP = 128  # px, side of the autoencoder's training crops
TRAIN_TIMESTEPS = 1000
MAX_TOKENS = 77
WEIGHT_LIMIT = 85_000_000  # bytes, all float16 weight files together
EVAL_LEVELS = (100, 300, 500, 700, 900)  # timesteps of the held-out denoising loss
HELD_OUT_SEED = 1_900_000_000  # `sample_batch` seeds from here on are never trained on

VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (64, 128, 256, 256),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "mid_block_add_attention": False,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": SIZE,
    "scaling_factor": 1.0,  # replaced by the measured 1 / std of the latents
}

UNET: dict[str, Any] = {
    "sample_size": LATENT_SIZE,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (48, 96, 240, 240),
    "layers_per_block": 1,
    "attention_head_dim": 3,  # diffusers' historical name for the NUMBER of heads
    "cross_attention_dim": 128,
    "norm_num_groups": 16,
}

TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "projection_dim": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_TOKENS,
    "hidden_act": "quick_gelu",
}

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}

STAGES = ("vae", "bank", "unet", "export")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Everything that a training run can be told. Minutes are wall-clock time of THIS run.

    Batch sizes are per process: with torchrun, every GPU takes so many pictures a step.

    Raises:
        BadInput: a number is out of its range, or a stage's name is unknown.
    """

    stages: tuple[str, ...] = STAGES
    photos: Path | None = None  # a folder of pictures with captions.jsonl; None: scenes alone
    photo_share: float = 0.65  # of the pictures in a batch; the rest are scenes
    out: Path = Path(f"workbench/weights/{NAME}")  # the diffusers folder that is written
    work: Path = Path(".work/demo")  # checkpoints, latent bank; not for the repository
    source: Path | None = None  # a finished folder whose weights are the start
    resume: bool = False  # go on from the checkpoints in `work`
    device: str = "auto"
    seed: int = 0
    vae_minutes: float = 6.0
    bank_minutes: float = 2.0
    unet_minutes: float = 8.0
    # The learning rate's schedule may span several runs; None: it ends with this run.
    vae_total_minutes: float | None = None
    unet_total_minutes: float | None = None
    vae_batch: int | None = None  # None: 128 crops on a GPU, 8 on a CPU
    unet_batch: int | None = None  # None: 256 on a GPU, 24 on a CPU
    vae_lr: float = 8e-4
    unet_lr: float = 1e-3
    bank_scenes: int = 200_000  # at most, per process; `bank_minutes` may end it sooner
    bank_variants: int = 4  # of each photograph: mirrored, cut closer
    adversary_share: float = 0.4  # of the autoencoder's time, its last part, with a discriminator
    sheet_every: float = 120.0  # seconds between sheets of samples; 0: none
    keep_bank: bool = False  # write the latent bank to `work`, for a later run on this machine
    compile: bool = True  # try torch.compile on a GPU and keep it if it is faster
    precision: str = "auto"  # auto | bf16 | fp32
    save_every: float = 60.0  # seconds between checkpoints

    def __post_init__(self) -> None:
        """Check the ranges."""
        for stage in self.stages:
            if stage not in STAGES:
                raise BadInput(
                    f"Stage {stage!r} is unknown; choose from {', '.join(STAGES)}.",
                    code="unknown-name",
                    field="stages",
                )
        for name in ("vae_minutes", "bank_minutes", "unet_minutes"):
            value = getattr(self, name)
            if not 0 < value <= 10_000:
                raise BadInput(
                    f"{name} is {value}; give minutes in (0, 10000].",
                    code="out-of-range",
                    field=name,
                )
        for part, size in (("autoencoder", self.vae_batch), ("U-Net", self.unet_batch)):
            if size is not None and not 1 <= size <= 65_536:
                raise BadInput(
                    f"The batch size of the {part} is {size}; give 1 to 65536.", code="out-of-range"
                )
        for name in ("vae_lr", "unet_lr"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise BadInput(
                    f"{name} is {value}; give a learning rate in (0, 1).",
                    code="out-of-range",
                    field=name,
                )
        if not 0 <= self.seed < 1_000_000:
            raise BadInput(
                f"The seed is {self.seed}; give an integer from 0 to 999999.",
                code="out-of-range",
                field="seed",
            )
        for name in ("bank_scenes", "bank_variants"):
            if getattr(self, name) < 1:
                raise BadInput(
                    f"{name} is {getattr(self, name)}; give at least 1.",
                    code="out-of-range",
                    field=name,
                )
        for name in ("photo_share", "adversary_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise BadInput(
                    f"{name} is {value}; give a share from 0 to 1.", code="out-of-range", field=name
                )
        if self.precision not in ("auto", "bf16", "fp32"):
            raise BadInput(
                f"Precision {self.precision!r} is unknown; choose auto, bf16 or fp32.",
                code="unknown-name",
                field="precision",
            )


def build_vae() -> Any:
    """A fresh `AutoencoderKL`: [B,3,256,256] in [-1,1] <-> [B,12,32,32]."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**VAE)


def build_unet() -> Any:
    """A fresh `UNet2DConditionModel` whose residual branches and output start at zero.

    The zero start (Dhariwal and Nichol 2021) lets a short training use a high learning rate; the
    library's own initialisation does not do it.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from torch import nn

    unet = UNet2DConditionModel(**UNET)
    ends = [unet.conv_out]
    ends += [m.conv2 for m in unet.modules() if isinstance(m, ResnetBlock2D)]
    ends += [m.proj_out for m in unet.modules() if isinstance(m, Transformer2DModel)]
    for layer in ends:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return unet


def build_text_encoder(vocabulary: int, bos: int, eos: int) -> Any:
    """A fresh `CLIPTextModel`: [B,77] token ids -> [B,77,128]. `eos` also pads, as in SD 1.x."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary, bos_token_id=bos, eos_token_id=eos, pad_token_id=eos, **TEXT
        )
    )


def build_scheduler() -> Any:
    """Stable Diffusion 1.x's schedule as a `DDIMScheduler`."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULER)
