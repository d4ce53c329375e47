"""The first stage: the autoencoder, on whole 256x256 pictures drawn on the device.

Loss: L1 + squared error + L1 of finite differences at two scales + a small KL term (Rombach et al.
2022 use the same terms with a perceptual and an adversarial loss, whose networks nobody trained
for us). Finished weights have each latent channel brought to mean 0 and variance 1, exactly, inside
the two 1x1 convolutions; Stable Diffusion's pipeline knows one scale for all channels and no shift.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from training import augment, config
from training.config import HELD_OUT_SEED, SIZE, TrainOptions
from training.device import choose_bf16, compile_if_faster, synchronize
from training.loop import (
    Clock,
    Learner,
    averaged_weights,
    learning_rate_factor,
)

log = logging.getLogger(__name__)

KL_WEIGHT = 1e-4  # on the mean over latent elements; about 1e-6 of the summed form per pixel scale
EMA_DECAY = 0.999
MEASURED_SCENES = 50  # held-out scenes of the PSNR that ends the stage
RENDER_SHARE = 0.12  # of the stage's time goes into drawing new scenes


def reconstruction_loss(made: Tensor, true: Tensor) -> Tensor:
    """L1 + squared error + 0.5 * L1 of horizontal and vertical differences at scales 1 and 2.

    Both [B,3,H,W] in [-1,1]. L1 keeps flat areas clean, the differences keep outlines where they
    are, the squared error is what PSNR measures.
    """
    error = (made - true).float()
    loss = error.abs().mean() + error.square().mean()
    for _ in range(2):
        across = (error[..., 1:] - error[..., :-1]).abs().mean()
        down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        loss = loss + 0.25 * (across + down)
        error = F.avg_pool2d(error, 2)
    return loss


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL of N(mean, exp(logvar)) from N(0, 1), in nats per latent element."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def psnr(made: Tensor, true: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture; both [B,3,H,W] in [0,1]."""
    error = (made.clamp(0, 1).float() - true.float()).square().flatten(1).mean(1)
    return -10 * error.clamp_min(1e-10).log10()


def render_seed(seed: int, chunk: int) -> int:
    """The `sample_batch` seed of a run's n-th chunk of training scenes; never a held-out one."""
    return (seed * 1_000_003 + chunk * 7_919) % (HELD_OUT_SEED - 10_000)


class PicturePool:
    """Scenes kept as uint8 on the device, replaced a few at a time while training goes on."""

    def __init__(self, capacity: int, chunk: int, seed: int, device: torch.device) -> None:
        """Nothing is drawn yet. Memory: 196 KB a picture."""
        self.pictures = torch.empty(capacity, 3, SIZE, SIZE, dtype=torch.uint8, device=device)
        self.filled = 0
        self.seconds = 0.0  # spent on drawing
        self._next = 0
        self._chunk = min(chunk, capacity)
        self._chunks = 0
        self._seed = seed
        self._device = device

    def extend(self) -> None:
        """Draw one more chunk of scenes; the oldest make room when the pool is full."""
        from training import scenes

        start = time.monotonic()
        batch = scenes.sample_batch(self._chunk, render_seed(self._seed, self._chunks))
        self._chunks += 1
        drawn = scenes.render(batch, size=SIZE, device=self._device)
        index = (torch.arange(self._chunk) + self._next) % len(self.pictures)
        self.pictures[index.to(self._device)] = (drawn * 255).round().to(torch.uint8)
        self._next = (self._next + self._chunk) % len(self.pictures)
        self.filled = min(self.filled + self._chunk, len(self.pictures))
        synchronize(self._device)
        self.seconds += time.monotonic() - start

    def draw(self, count: int, generator: Generator) -> Tensor:
        """A training batch [count,3,256,256] in [-1,1], a fifth of it no plain scene."""
        index = torch.randint(self.filled, (count,), generator=generator, device=self._device)
        pictures = self.pictures[index].float() / 255
        return augment.mix_in(pictures, generator) * 2 - 1


def reconstruct(vae: Any, pictures: Tensor, batch: int = 16) -> Tensor:
    """Encode to the mean and decode: [B,3,H,W] in [0,1] -> the same."""
    parts = []
    with torch.no_grad():
        for part in torch.split(pictures, batch):
            latents = vae.encode(part * 2 - 1).latent_dist.mean
            parts.append(vae.decode(latents).sample / 2 + 0.5)
    return torch.cat(parts).clamp(0, 1)


def held_out(count: int, device: torch.device) -> tuple[list[Any], Tensor]:
    """The first `count` held-out scenes and their pictures [count,3,256,256] in [0,1]."""
    from training import scenes

    batch = scenes.sample_batch(count, HELD_OUT_SEED)
    drawn = [
        scenes.render(batch[i : i + 50], size=SIZE, device=device) for i in range(0, count, 50)
    ]
    return batch, torch.cat(drawn)


def train_vae(options: TrainOptions, device: torch.device) -> dict[str, Any]:
    """Train the autoencoder and write it to `work/vae` (float16, normalised).

    Returns:
        What was done: steps, pictures, seconds, batch, rate, precision.
    """
    cuda = device.type == "cuda"
    torch.manual_seed(options.seed)
    batch_size = options.vae_batch or (32 if cuda else 8)
    vae = config.build_vae()
    if options.source is not None and (options.source / "vae").is_dir():
        vae = type(vae).from_pretrained(options.source / "vae", dtype=torch.float32)
        log.info("vae: starting from the weights in %s", options.source.name)
    vae = vae.to(device, memory_format=torch.channels_last).train()
    learner = Learner({"vae": vae}, lr=options.vae_lr, ema_decay=EMA_DECAY)
    generator = Generator(device).manual_seed(options.seed)
    run_seconds = options.vae_minutes * 60
    total_seconds = (options.vae_total_minutes or options.vae_minutes) * 60
    checkpoint = options.work / "vae.ckpt.safetensors"
    spent, seconds_before, pool_seed = 0.0, 0.0, options.seed
    if options.resume and checkpoint.exists():
        earlier = learner.restore(checkpoint)
        seconds_before = earlier["seconds"]
        generator.manual_seed(options.seed + learner.steps)
        pool_seed += learner.steps
        if earlier["spent"] < 0.999 * total_seconds and earlier["schedule"] == total_seconds:
            spent = earlier["spent"]
        else:  # that schedule was finished, or another is asked for: begin one anew
            learner.cycle_steps = 0
        log.info("vae: resumed at step %d, %.0f s into its schedule", learner.steps, spent)
    clock = Clock(run_seconds, total_seconds, spent)
    pool = PicturePool(16_384 if cuda else 1_024, 256 if cuda else 16, pool_seed, device)
    pool.extend()

    def passes(pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = vae.quant_conv(vae.encoder(pixels)).float().chunk(2, 1)
        logvar = logvar.clamp(-30, 20)
        latents = mean + (0.5 * logvar).exp() * noise
        made = vae.decoder(vae.post_quant_conv(latents))
        reconstruction = reconstruction_loss(made, pixels)
        return reconstruction + KL_WEIGHT * kl_divergence(mean, logvar), reconstruction, logvar

    def loss_of(forward: Any, bf16: bool) -> tuple[Tensor, Tensor, Tensor]:
        pixels = pool.draw(batch_size, generator).contiguous(memory_format=torch.channels_last)
        shape = (batch_size, config.LATENT_CHANNELS, config.LATENT_SIZE, config.LATENT_SIZE)
        noise = torch.randn(shape, generator=generator, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            out: tuple[Tensor, Tensor, Tensor] = forward(pixels, noise)
        return out

    def trial(forward: Any, bf16: bool = True) -> None:
        loss_of(forward, bf16)[0].backward()  # type: ignore[no-untyped-call]
        vae.zero_grad(set_to_none=True)

    bf16 = choose_bf16(lambda half: trial(passes, half), device, options.precision)
    forward = passes
    if options.compile:
        forward = compile_if_faster(passes, lambda form: trial(form, bf16), device)

    def facts() -> dict[str, Any]:
        return {
            "spent": clock.total,
            "schedule": total_seconds,
            "seconds": seconds_before + clock.here,
        }

    shown, saved, every = clock.here, clock.here, 25 if cuda else 2
    first, started = learner.steps, clock.here
    begun = clock.fraction if learner.cycle_steps == 0 else 0.0
    while not clock.over:
        if pool.seconds < RENDER_SHARE * clock.here:
            pool.extend()
        loss, reconstruction, logvar = loss_of(forward, bf16)
        learner.step(
            loss, learning_rate_factor(clock.fraction, learner.cycle_steps, begun), batch_size
        )
        if (learner.steps - first) % every:
            continue
        value = float(reconstruction.detach())
        if clock.here - shown > 10 or learner.steps == first + every:
            shown = clock.here
            learner.guard(value)
            log.info(
                "vae %.1f/%.1f min: step %d, %.0f pictures/s, pool %d, loss %.4f, latent noise %.3f",
                shown / 60, options.vae_minutes, learner.steps,
                (learner.steps - first) * batch_size / (shown - started), pool.filled, value,
                float((0.5 * logvar.detach()).exp().mean()),
            )  # fmt: skip
        if clock.here - saved > options.save_every:
            saved = clock.here
            learner.save(checkpoint, facts())
    if learner.steps == first:
        log.warning("vae: preparing used up the %.1f minutes; no step done", options.vae_minutes)
    learner.save(checkpoint, facts())
    return {
        "steps": learner.steps,
        "pictures_seen": learner.seen,
        "seconds": round(seconds_before + clock.here, 1),
        "batch": batch_size,
        "learning_rate": options.vae_lr,
        "precision": "bf16" if bf16 else "fp32",
    }


def export_vae(options: TrainOptions, device: torch.device, done: dict[str, Any]) -> None:
    """From the checkpoint's averaged weights to `work/vae`, a diffusers folder in float16."""
    vae = config.build_vae()
    vae.load_state_dict(averaged_weights(options.work / "vae.ckpt.safetensors", "vae"))
    vae = vae.to(device).eval()
    cuda = device.type == "cuda"
    pool = PicturePool(1_024 if cuda else 64, 256 if cuda else 16, options.seed + 1, device)
    while pool.filled < len(pool.pictures):
        pool.extend()
    normalise_latents(vae, pool.pictures)
    vae = vae.half().float()  # what will be loaded: measure and encode with exactly that
    scale = 1 / float(_sampled(vae, pool.pictures).std())
    vae.register_to_config(scaling_factor=scale)
    _, true = held_out(MEASURED_SCENES, device)
    decibels = psnr(reconstruct(vae, true), true)
    folder = options.work / "vae"
    vae.half().cpu().save_pretrained(folder)
    done["psnr_db"] = round(float(decibels.mean()), 3)
    (folder / "training.json").write_text(json.dumps(done, indent=1))
    log.info("vae: %.2f dB on held-out scenes, scaling factor %.4f", done["psnr_db"], scale)


def _sampled(vae: Any, pictures: Tensor) -> Tensor:
    """Sampled, unscaled latents [N,4,32,32] of uint8 pictures."""
    generator = Generator(pictures.device).manual_seed(0)
    with torch.no_grad():
        parts = []
        for part in torch.split(pictures, 32):
            posterior = vae.encode(part.float() / 127.5 - 1).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator, device=part.device)
            parts.append(posterior.mean + posterior.std * noise)
        return torch.cat(parts)


@torch.no_grad()
def normalise_latents(vae: Any, pictures: Tensor) -> None:
    """Give each latent channel mean 0 and variance 1 on `pictures`; the reconstruction is the same.

    With m, s a channel's mean and standard deviation: mean' = (mean - m) / s and
    logvar' = logvar - 2 ln s in the encoder's last 1x1 convolution, z = s z' + m in the decoder's
    first. Args: pictures, uint8 [N,3,H,W].
    """
    latents = _sampled(vae, pictures)
    mean = latents.mean((0, 2, 3))
    std = latents.std((0, 2, 3)).clamp_min(1e-6)
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]


def load_vae(folder: Path, device: torch.device) -> Any:
    """The autoencoder of a folder, in float32, for use only."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32)
    return vae.to(device).eval().requires_grad_(False)
