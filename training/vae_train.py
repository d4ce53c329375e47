"""The first stage: the autoencoder, on crops of photographs and of scenes.

Loss: L1 + squared error + L1 of finite differences at two scales + a small KL term, and late a
patch discriminator's (Rombach et al. 2022 add a perceptual loss, whose network nobody trained for
us). Finished weights have each latent channel brought to mean 0 and variance 1, exactly, inside
the two 1x1 convolutions; Stable Diffusion's pipeline knows one scale for all channels and no shift.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from training import config
from training.adversary import Adversary, detail_energy
from training.config import SIZE, TrainOptions
from training.device import choose_bf16, compile_if_faster
from training.loop import Clock, Learner, Pace, averaged_weights, learning_rate_factor
from training.photos import Photo, decode, read_photos
from training.pictures import PicturePool, held_out_scenes
from training.team import Team

log = logging.getLogger(__name__)

KL_WEIGHT = 1e-4  # on the mean over latent elements; about 1e-6 of the summed form per pixel scale
EMA_DECAY = 0.999
MEASURED_SCENES = 50  # held-out scenes of the PSNR that ends the stage
RENDER_EVERY = 20  # steps between chunks of new scenes
WHOLE_SHARE = 0.12  # of the time, its last part, whole pictures are seen instead of crops


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


def reconstruct(vae: Any, pictures: Tensor, batch: int = 16) -> Tensor:
    """Encode to the mean and decode: [B,3,H,W] in [0,1] -> the same."""
    parts = []
    with torch.no_grad():
        for part in torch.split(pictures, batch):
            latents = vae.encode(part * 2 - 1).latent_dist.mean
            parts.append(vae.decode(latents).sample / 2 + 0.5)
    return torch.cat(parts).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class Judged:
    """Held-out pictures by kind (photos, scenes), each [N,3,256,256] in [0,1]."""

    pictures: dict[str, Tensor]

    def measure(self, vae: Any) -> dict[str, dict[str, float]]:
        """PSNR in dB and the share of fine detail that the round trip keeps, by kind."""
        out = {}
        for kind, true in self.pictures.items():
            made = reconstruct(vae, true)
            out[kind] = {
                "psnr_db": round(float(psnr(made, true).mean()), 3),
                "detail": round(float(detail_energy(made) / detail_energy(true)), 3),
            }
        return out


def judged_pictures(
    photos: tuple[list[Photo], list[Photo]] | None, scenes_count: int, device: torch.device
) -> Judged:
    """The held-out photographs, if there are any, and `scenes_count` held-out scenes."""
    pictures = {}
    if photos is not None and photos[1]:
        pictures["photos"] = (decode(photos[1]).float() / 255).to(device)
    pictures["scenes"] = held_out_scenes(scenes_count, device)[1]
    return Judged(pictures)


def picture_pool(
    options: TrainOptions,
    photos: tuple[list[Photo], list[Photo]] | None,
    device: torch.device,
    seed: int,
) -> PicturePool:
    """The training pictures of `options`, the first scenes drawn."""
    cuda = device.type == "cuda"
    stored = None
    if photos is not None:
        stored = decode(photos[0]), torch.tensor([photo.weight for photo in photos[0]])
    pool = PicturePool(
        4_096 if cuda else 64, 64 if cuda else 16, seed, device, stored, options.photo_share
    )
    pool.fill(1_024 if cuda else 16)
    return pool


def train_vae(
    options: TrainOptions, device: torch.device, team: Team | None = None
) -> dict[str, Any]:
    """Train the autoencoder; the state goes to `work/vae.ckpt.safetensors`.

    Crops first, then a discriminator joins (`adversary_share`), and the last part sees whole
    pictures: a quarter as many, not compiled, because a second shape would be compiled again.

    Returns:
        What was done: steps, pictures, seconds, batch, rate, precision.
    """
    team = team or Team()
    cuda = device.type == "cuda"
    torch.manual_seed(options.seed)
    batch_size = options.vae_batch or (128 if cuda else 8)
    vae = config.build_vae()
    if options.source is not None and (options.source / "vae").is_dir():
        vae = type(vae).from_pretrained(options.source / "vae", dtype=torch.float32)
        log.info("vae: starting from the weights in %s", options.source.name)
    vae = vae.to(device, memory_format=torch.channels_last).train()
    learner = Learner({"vae": vae}, lr=options.vae_lr, ema_decay=EMA_DECAY, team=team)
    generator = Generator(device)
    total_seconds = (options.vae_total_minutes or options.vae_minutes) * 60
    checkpoint = options.work / "vae.ckpt.safetensors"
    spent, seconds_before = 0.0, 0.0
    if options.resume and checkpoint.exists():
        earlier = learner.restore(checkpoint)
        seconds_before = earlier["seconds"]
        if earlier["spent"] < 0.999 * total_seconds and earlier["schedule"] == total_seconds:
            spent = earlier["spent"]
        else:  # that schedule was finished, or another is asked for: begin a new one
            learner.cycle_steps = 0
        log.info("vae: resumed at step %d, %.0f s into its schedule", learner.steps, spent)
    seed = options.seed + learner.steps + 5_003 * team.rank
    generator.manual_seed(seed)
    clock = Clock(options.vae_minutes * 60, total_seconds, spent)
    photos = read_photos(options.photos) if options.photos is not None else None
    pool = picture_pool(options, photos, device, seed)
    judged = judged_pictures(photos, MEASURED_SCENES, device) if team.leads else None

    def passes(pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = vae.quant_conv(vae.encoder(pixels)).float().chunk(2, 1)
        logvar = logvar.clamp(-30, 20)
        latents = mean + (0.5 * logvar).exp() * noise
        made = vae.decoder(vae.post_quant_conv(latents))
        return made, KL_WEIGHT * kl_divergence(mean, logvar), logvar

    def run(forward: Any, bf16: bool, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count, side = len(pixels), pixels.shape[-1] // 8
        shape = (count, config.LATENT_CHANNELS, side, side)
        noise = torch.randn(shape, generator=generator, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            out: tuple[Tensor, Tensor, Tensor] = forward(pixels, noise)
        return out

    def trial(forward: Any, bf16: bool = True) -> None:
        made, kl, _ = run(forward, bf16, pool.draw(batch_size, generator, config.CROP))
        (made.float().mean() + kl).backward()  # type: ignore[no-untyped-call]
        vae.zero_grad(set_to_none=True)

    bf16 = choose_bf16(lambda half: trial(passes, half), device, options.precision)
    compiled = passes
    if options.compile:
        compiled = compile_if_faster(passes, lambda form: trial(form, bf16), device)
    adversary = Adversary(team, device, bf16)
    team.wait()

    def facts() -> dict[str, Any]:
        return {
            "spent": clock.total,
            "schedule": total_seconds,
            "seconds": seconds_before + clock.here,
        }

    every = 25 if cuda else 2
    shown, saved, measured = clock.here, clock.here, clock.here
    first, started = learner.steps, clock.here
    pace = Pace(clock, team, every, device)
    begun = pace.fraction if learner.cycle_steps == 0 else 0.0
    while learner.steps == first or not pace.over:  # one step at least, however long preparing took
        whole = pace.fraction > 1 - WHOLE_SHARE
        side, count = (SIZE, max(1, batch_size // 4)) if whole else (config.CROP, batch_size)
        pixels = pool.draw(count, generator, side)
        made, kl, logvar = run(passes if whole else compiled, bf16, pixels)
        leaf = made.detach().float().requires_grad_()
        reconstruction = reconstruction_loss(leaf, pixels)
        (grad,) = torch.autograd.grad(reconstruction, leaf)
        against = pace.fraction > 1 - options.adversary_share
        if against:
            grad = grad + adversary.gradient(leaf, grad)
        torch.autograd.backward([made, kl], [grad.to(made.dtype), None])
        learner.step(learning_rate_factor(pace.fraction, learner.cycle_steps, begun), count)
        if against:
            adversary.learn(pixels, leaf.detach().contiguous(memory_format=torch.channels_last))
        pace.tick()
        if learner.steps % RENDER_EVERY == 0:
            pool.extend()
        if (learner.steps - first) % every:
            continue
        value = reconstruction.detach()
        team.average([value])
        steered = adversary.steer() if against else {}
        now, _ = team.told([clock.here, 0.0], device)
        if now - shown > 10 or learner.steps == first + every:
            shown = now
            learner.guard(float(value))
            log.info(
                "vae %.1f/%.1f min: step %d, %.0f pictures/s, loss %.4f, latent noise %.3f %s",
                shown / 60, options.vae_minutes, learner.steps,
                learner.seen / max(1, learner.steps) * (learner.steps - first)
                / max(1e-9, shown - started), float(value),
                float((0.5 * logvar.detach()).exp().mean()), steered or "",
            )  # fmt: skip
        if not team.leads:
            continue
        if judged is not None and clock.here - measured > 45:
            measured = clock.here
            with learner.ema.applied():
                log.info("vae: held out %s", judged.measure(vae))
        if clock.here - saved > options.save_every:
            saved = clock.here
            learner.save(checkpoint, facts())
    if team.leads:
        learner.save(checkpoint, facts())
    team.wait()
    return {
        "steps": learner.steps,
        "pictures_seen": learner.seen,
        "seconds": round(seconds_before + clock.here, 1),
        "batch": batch_size * team.size,
        "learning_rate": options.vae_lr,
        "precision": "bf16" if bf16 else "fp32",
        "processes": team.size,
    }


def export_vae(options: TrainOptions, device: torch.device, done: dict[str, Any]) -> None:
    """From the checkpoint's averaged weights to `work/vae`, a diffusers folder in float16."""
    vae = config.build_vae()
    vae.load_state_dict(averaged_weights(options.work / "vae.ckpt.safetensors", "vae"))
    vae = vae.to(device).eval()
    cuda = device.type == "cuda"
    photos = read_photos(options.photos) if options.photos is not None else None
    pool = picture_pool(options, photos, device, options.seed + 1)
    generator = Generator(device).manual_seed(options.seed)
    pictures = ((pool.draw(1_024 if cuda else 64, generator) + 1) * 127.5).round().to(torch.uint8)
    normalise_latents(vae, pictures)
    vae = vae.half().float()  # what will be loaded: measure and encode with exactly that
    scale = 1 / float(_sampled(vae, pictures).std())
    vae.register_to_config(scaling_factor=scale)
    done["held_out"] = judged_pictures(photos, MEASURED_SCENES, device).measure(vae)
    folder = options.work / "vae"
    vae.half().cpu().save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(done, indent=1))
    log.info("vae: held out %s, scaling factor %.4f", done["held_out"], scale)


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
