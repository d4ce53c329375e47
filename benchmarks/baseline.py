"""The reference's computation, step for step, as the yardstick of the speed benchmark.

DragDiffusion's public program as docs/algorithm.md 1 to 3 describes it, its waste included, because that is
what a user of it waits for: the model is read from disk for every training and every run, each training
step sends the picture through the VAE encoder again, the drag computes gradients of all U-Net weights and
throws them away, feature maps are upsampled to half the image, losses are read back one by one, and both
rows are denoised and decoded. Written from that description; nothing here is used by the product.

On a GPU the stages run as the reference runs them: weights in half precision for training, inversion and
denoising; float32 weights under half-precision autocast, with a gradient scaler, for the drag. On a CPU
everything is float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
Tick = Callable[[], None]
Position = tuple[float, float]


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Read the whole pipeline from disk, as the reference does at every click."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, torch_dtype=dtype, local_files_only=True
    )
    pipe.scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    return pipe.to(device)


def embed(pipe: Any, prompt: str) -> Tensor:
    """Text embedding [1, 77, C], encoded again at every run."""
    tok = pipe.tokenizer(
        prompt, padding="max_length", truncation=True, max_length=pipe.tokenizer.model_max_length,
        return_tensors="pt",
    )  # fmt: skip
    out: Tensor = pipe.text_encoder(tok.input_ids.to(pipe.device))[0]
    return out


def train_lora(
    pipe: Any, image: Tensor, prompt: str, *, steps: int, batch: int, rank: int, tick: Tick
) -> None:
    """LoRA on every attention projection (2.10); every step encodes its pictures again.

    image: [1, 3, H, W] in [-1, 1]. The adapter stays active in the U-Net afterwards.
    """
    from diffusers import DDPMScheduler
    from peft import LoraConfig

    unet, vae = pipe.unet, pipe.vae
    for module in (unet, vae, pipe.text_encoder):
        module.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=rank, lora_alpha=rank, init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        )
    )  # fmt: skip
    params = [p for p in unet.parameters() if p.requires_grad]
    for p in params:
        p.data = p.data.float()
    optimiser = torch.optim.AdamW(params, lr=5e-4, weight_decay=1e-2)
    noise_schedule = DDPMScheduler.from_config(pipe.scheduler.config)
    with torch.no_grad():
        text = embed(pipe, prompt).repeat(batch, 1, 1)
    scaler = torch.amp.GradScaler(enabled=image.is_cuda)
    for _ in range(steps):
        pixels = image.repeat(batch, 1, 1, 1)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (batch,), device=latents.device)
        noisy = noise_schedule.add_noise(latents, noise, t)
        with half_autocast(image):
            predicted = unet(noisy, t, encoder_hidden_states=text).sample
        loss = F.mse_loss(predicted.float(), noise.float())
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        loss.item()
        tick()


@contextlib.contextmanager
def half_autocast(like: Tensor) -> Iterator[None]:
    """float16 autocast on a GPU, nothing on a CPU."""
    with torch.autocast(like.device.type, torch.float16, enabled=like.is_cuda):
        yield


def ddim(scheduler: Any, z: Tensor, eps: Tensor, t: int, gap: int) -> Tensor:
    """One deterministic DDIM step t -> t - gap."""
    alphas = scheduler.alphas_cumprod
    a_t = float(alphas[t])
    a_s = float(alphas[t - gap]) if t - gap >= 0 else float(scheduler.final_alpha_cumprod)
    x0 = (z - (1 - a_t) ** 0.5 * eps) / a_t**0.5
    out: Tensor = a_s**0.5 * x0 + (1 - a_s) ** 0.5 * eps
    return out


@torch.no_grad()
def invert(
    pipe: Any, image: Tensor, prompt: str, *, steps: int, strength: float, tick: Tick
) -> Tensor:
    """Encode and invert the picture (2.3); returns the latent at the drag's timestep."""
    pipe.scheduler.set_timesteps(steps)
    text = embed(pipe, prompt)
    z = pipe.vae.encode(image).latent_dist.mean * pipe.vae.config.scaling_factor
    gap = 1000 // steps
    alphas = pipe.scheduler.alphas_cumprod
    rising = pipe.scheduler.timesteps.flip(0)[: round(strength * steps)].tolist()
    for t in rising:
        eps = pipe.unet(z, t, encoder_hidden_states=text).sample
        a_t = float(alphas[t])
        a_s = float(alphas[t - gap]) if t - gap >= 0 else float(pipe.scheduler.final_alpha_cumprod)
        x0 = (z - (1 - a_s) ** 0.5 * eps) / a_s**0.5
        z = a_t**0.5 * x0 + (1 - a_t) ** 0.5 * eps
        tick()
    result: Tensor = z
    return result


def features(
    unet: Any, z: Tensor, t: int, text: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The U-Net's output, and the output of up_blocks[2] upsampled to half the image (2.5)."""
    kept: list[Tensor] = []
    hook = unet.up_blocks[2].register_forward_hook(lambda _m, _i, out: kept.append(out))
    try:
        eps = unet(z, t, encoder_hidden_states=text).sample
    finally:
        hook.remove()
    return eps, F.interpolate(kept[0], size, mode="bilinear", align_corners=False)


def drag(
    pipe: Any,
    z: Tensor,
    prompt: str,
    pairs: tuple[Sequence[Position], Sequence[Position]],
    mask: Tensor,
    *,
    start: int,
    steps: int,
    tick: Tick,
) -> Tensor:
    """80 updates of the latent (2.6, 2.7): weight gradients on, full-size features, blocking reads.

    Args:
        pipe: the pipeline, its schedule set by `invert`.
        z: inverted latent [1, 4, h, w] at the schedule's timestep number `start`.
        prompt: the drag's prompt.
        pairs: handles and targets, (row, col) on the feature grid, half the image.
        mask: [1, 1, h, w], 1 = may change.
        start: index of the drag's timestep in the schedule.
        steps: updates.
        tick: called after each.
    """
    t, gap = int(pipe.scheduler.timesteps[start]), 1000 // len(pipe.scheduler.timesteps)
    unet = pipe.unet.float()
    unet.requires_grad_(True)
    with torch.no_grad():
        text = embed(pipe, prompt).float()
    z = z.detach().float()
    size = (z.shape[-2] * 4, z.shape[-1] * 4)
    with torch.no_grad():
        eps0, reference = features(unet, z, t, text, size)
        previous0 = ddim(pipe.scheduler, z, eps0, t, gap)
    z = z.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([z], lr=0.01)
    scaler = torch.amp.GradScaler(enabled=z.is_cuda)
    now, goal = ([torch.tensor(point).round() for point in points] for points in pairs)
    first = [h.clone() for h in now]
    for step in range(steps):
        with half_autocast(z):
            eps, current = features(unet, z, t, text, size)
            previous = ddim(pipe.scheduler, z, eps, t, gap)
            if step > 0:
                now = [_track(reference, current, a, b) for a, b in zip(first, now, strict=True)]
            loss = torch.zeros((), device=z.device)
            for here, there in zip(now, goal, strict=True):
                # an arrived point still costs its patch here: every run does the same work
                away = there - here
                loss = loss + _patch_loss(current, here, away / (away.norm() + 1e-7))
            loss = loss + 0.1 * ((previous - previous0) * (1 - mask)).abs().sum()
            loss.item()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        tick()
    unet.requires_grad_(False)
    unet.zero_grad(set_to_none=True)
    return z.detach()


def _track(reference: Tensor, current: Tensor, origin: Tensor, here: Tensor) -> Tensor:
    r, c = (int(v) for v in here)
    r0, r1 = max(0, r - 3), min(current.shape[2], r + 4)
    c0, c1 = max(0, c - 3), min(current.shape[3], c + 4)
    template = reference[:, :, int(origin[0]), int(origin[1])][:, :, None, None]
    cost = (template - current[:, :, r0:r1, c0:c1]).abs().sum(1)[0]
    best = int(cost.argmin().item())
    return torch.tensor([float(r0 + best // (c1 - c0)), float(c0 + best % (c1 - c0))])


def _patch_loss(current: Tensor, here: Tensor, unit: Tensor) -> Tensor:
    _, _, rows, cols = current.shape
    r = min(max(int(here[0]), 2), rows - 4)
    c = min(max(int(here[1]), 2), cols - 4)
    still = current[:, :, r - 1 : r + 2, c - 1 : c + 2].detach()
    dr, dc = float(unit[0]), float(unit[1])
    fr, fc = int(dr // 1), int(dc // 1)
    a, b = dr - fr, dc - fc

    def cut(i: int, j: int) -> Tensor:
        return current[:, :, r - 1 + fr + i : r + 2 + fr + i, c - 1 + fc + j : c + 2 + fc + j]

    moved = (
        cut(0, 0) * (1 - a) * (1 - b)
        + cut(1, 0) * a * (1 - b)
        + cut(0, 1) * (1 - a) * b
        + cut(1, 1) * a * b
    )
    return 9 * F.l1_loss(still, moved)


@torch.no_grad()
def denoise(pipe: Any, z: Tensor, edited: Tensor, prompt: str, *, start: int, tick: Tick) -> Tensor:
    """Both rows down to the picture (2.8), the edited one reading the original's keys and values."""
    dtype = pipe.vae.dtype
    unet = pipe.unet.to(dtype)
    text = embed(pipe, prompt).repeat(2, 1, 1)
    rows = torch.cat([z, edited]).to(dtype)
    gap = 1000 // len(pipe.scheduler.timesteps)
    before = dict(unet.attn_processors)
    unet.set_attn_processor(_sharing(before))
    try:
        for t in pipe.scheduler.timesteps[start:].tolist():
            eps = unet(rows, t, encoder_hidden_states=text).sample
            rows = ddim(pipe.scheduler, rows, eps, t, gap)
            tick()
    finally:
        unet.set_attn_processor(before)
    return rows


@torch.no_grad()
def decode(pipe: Any, rows: Tensor) -> Tensor:
    """Both rows through the VAE decoder; the reference keeps the second."""
    out: Tensor = pipe.vae.decode(rows / pipe.vae.config.scaling_factor).sample
    return out[1:]


def _sharing(processors: dict[str, Any]) -> dict[str, Any]:
    last_two = ("up_blocks.2.", "up_blocks.3.")
    return {
        name: _FirstRowAttention() if name.startswith(last_two) and ".attn1." in name else processor
        for name, processor in processors.items()
    }


class _FirstRowAttention:
    """Self-attention in which every row reads the first row's keys and values."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_kw: Any
    ) -> Tensor:
        n, length, _ = hidden_states.shape
        first = hidden_states[:1].expand(n, -1, -1)
        heads = attn.heads

        def split(x: Tensor) -> Tensor:
            return x.view(n, length, heads, -1).transpose(1, 2)

        q, k, v = attn.to_q(hidden_states), attn.to_k(first), attn.to_v(first)
        out = F.scaled_dot_product_attention(split(q), split(k), split(v))
        out = out.transpose(1, 2).reshape(n, length, -1)
        result: Tensor = attn.to_out[1](attn.to_out[0](out))
        return result
