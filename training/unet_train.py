"""The second stage: the U-Net and the text encoder together, on the latent bank.

Epsilon prediction, min-SNR-5 weights (Hang et al. 2023, arXiv 2303.09556), prompts dropped for a
tenth of the pictures (Ho and Salimans 2022), timesteps stratified over the batch.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Generator, Tensor

from training import config
from training.bank import (
    Bank,
    ensure_tokenizer,
    held_out_bank,
    held_out_photo_bank,
    make_bank,
    vae_folder,
)
from training.config import EVAL_LEVELS, TRAIN_TIMESTEPS, TrainOptions
from training.device import choose_bf16, compile_if_faster
from training.loop import Clock, Learner, Pace, learning_rate_factor
from training.photos import read_photos
from training.samples import Sheet
from training.team import Team
from training.tokenizer import encode
from training.vae_train import load_vae

log = logging.getLogger(__name__)

EMA_DECAY = 0.999
PROMPT_DROPOUT = 0.1
MIN_SNR_GAMMA = 5.0
JUDGED_ON_GPU, JUDGED_ON_CPU = 512, 32  # held-out scenes of the loss in the log
JUDGE_EVERY = 120.0  # seconds between the held-out losses in the log
CHECKPOINT = "unet.ckpt.safetensors"


def min_snr_weights(alphas_cumprod: Tensor, gamma: float = MIN_SNR_GAMMA) -> Tensor:
    """Loss weight of each timestep for epsilon prediction: min(SNR, gamma) / SNR (eq. 7).

    SNR(t) = alpha_bar_t / (1 - alpha_bar_t). Returns [T], in (0, 1].
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / snr


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (Ho et al. 2020, eq. 4); alpha_bar [B]."""
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def stratified_timesteps(count: int, generator: Generator) -> Tensor:
    """One timestep from each of `count` equal slices of 0..999: less variance than independent."""
    device = generator.device
    offset = torch.rand(count, generator=generator, device=device)
    steps = (torch.arange(count, device=device) + offset) / count * TRAIN_TIMESTEPS
    return steps.long().clamp(max=TRAIN_TIMESTEPS - 1)


@torch.no_grad()
def denoising_losses(
    unet: Any, text_encoder: Any, bank: Bank, batch: int = 64, levels: tuple[int, ...] = EVAL_LEVELS
) -> dict[str, float]:
    """Mean squared error of the predicted noise at each level, over the whole bank.

    Posterior means, and the same noise each time, so that two models can be compared.
    """
    device = bank.mean.device
    alphas = config.build_scheduler().alphas_cumprod.to(device)
    generator = Generator("cpu").manual_seed(0)
    latents = bank.mean.float() * bank.scale
    out = {}
    for level in levels:
        noise = torch.randn(latents.shape, generator=generator).to(device)
        total = 0.0
        for start in range(0, len(latents), batch):
            part = slice(start, start + batch)
            count = len(latents[part])
            steps = torch.full((count,), level, device=device)
            noisy = add_noise(latents[part], noise[part], alphas[steps])
            context = text_encoder(bank.ids[part].long()).last_hidden_state
            error = unet(noisy, steps, context).sample.float() - noise[part]
            total += float(error.square().mean((1, 2, 3)).sum())
        out[str(level)] = round(total / len(latents), 5)
    return out


def _models(options: TrainOptions, tokenizer: Any, device: torch.device) -> tuple[Any, Any]:
    """U-Net and text encoder: fresh, or with the weights of `source`."""
    unet = config.build_unet()
    text_encoder = config.build_text_encoder(
        len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id
    )
    source = options.source
    if source is not None and (source / "unet").is_dir():
        unet = type(unet).from_pretrained(source / "unet", dtype=torch.float32)
        text_encoder = type(text_encoder).from_pretrained(
            source / "text_encoder", dtype=torch.float32
        )
        log.info("unet: starting from the weights in %s", source.name)
    unet = unet.to(device, memory_format=torch.channels_last).train()
    return unet, text_encoder.to(device).train()


def _judged(options: TrainOptions, tokenizer: Any, vae: Any, device: torch.device) -> Any:
    """Held-out banks by kind: photos (if there are any) and scenes."""
    count = JUDGED_ON_GPU if device.type == "cuda" else JUDGED_ON_CPU
    banks = {"scenes": held_out_bank(count, vae, tokenizer, device)}
    photos = read_photos(options.photos)[1][:count] if options.photos is not None else []
    if photos:
        banks["photos"] = held_out_photo_bank(photos, vae, tokenizer, device)
    return banks


def train_unet(
    options: TrainOptions,
    device: torch.device,
    bank: Bank | None = None,
    team: Team | None = None,
) -> dict[str, Any]:
    """Train U-Net and text encoder; the state goes to `work/unet.ckpt.safetensors`.

    Returns:
        What was done: steps, pictures seen, seconds, batch, rate, held-out losses.
    """
    team = team or Team()
    cuda = device.type == "cuda"
    if bank is None:
        bank = make_bank(options, device, team)
    torch.manual_seed(options.seed)
    tokenizer = ensure_tokenizer(options)
    unet, text_encoder = _models(options, tokenizer, device)
    batch_size = options.unet_batch or (256 if cuda else 24)
    learner = Learner(
        {"unet": unet, "text_encoder": text_encoder},
        lr=options.unet_lr, ema_decay=EMA_DECAY, team=team,
    )  # fmt: skip
    generator = Generator(device)
    total_seconds = (options.unet_total_minutes or options.unet_minutes) * 60
    checkpoint = options.work / CHECKPOINT
    spent, seconds_before = 0.0, 0.0
    if options.resume and checkpoint.exists():
        facts = learner.restore(checkpoint)
        seconds_before = facts["seconds"]
        if facts["spent"] < 0.999 * total_seconds and facts["schedule"] == total_seconds:
            spent = facts["spent"]
        else:
            learner.cycle_steps = 0
        log.info("unet: resumed at step %d, %.0f s into its schedule", learner.steps, spent)
    generator.manual_seed(options.seed + learner.steps + 5_003 * team.rank)
    clock = Clock(options.unet_minutes * 60, total_seconds, spent)

    alphas = config.build_scheduler().alphas_cumprod.to(device)
    weights = min_snr_weights(alphas)
    empty = encode(tokenizer, [""]).to(device)
    judged, sheet = {}, None
    if team.leads:
        vae = load_vae(vae_folder(options), device)
        judged = _judged(options, tokenizer, vae, device)
        sheet = Sheet(vae, text_encoder, tokenizer, unet, options)

    def passes(noisy: Tensor, noise: Tensor, steps: Tensor, context: Tensor) -> Tensor:
        predicted: Tensor = unet(noisy, steps, context, return_dict=False)[0]
        return (predicted.float() - noise).square().mean((1, 2, 3))

    def loss_of(forward: Any, bf16: bool) -> tuple[Tensor, Tensor]:
        latents, ids = bank.draw(batch_size, generator)
        dropped = torch.rand(batch_size, generator=generator, device=device) < PROMPT_DROPOUT
        ids = torch.where(dropped[:, None], empty, ids)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        steps = stratified_timesteps(batch_size, generator)
        noisy = add_noise(latents, noise, alphas[steps])
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            context = text_encoder(ids).last_hidden_state
            error = forward(noisy, noise, steps, context)
        return (weights[steps] * error).mean(), error.mean()

    def trial(forward: Any, bf16: bool = True) -> None:
        loss_of(forward, bf16)[0].backward()  # type: ignore[no-untyped-call]
        unet.zero_grad(set_to_none=True)
        text_encoder.zero_grad(set_to_none=True)

    bf16 = choose_bf16(lambda half: trial(passes, half), device, options.precision)
    forward = passes
    if options.compile:
        forward = compile_if_faster(passes, lambda form: trial(form, bf16), device)
    team.wait()

    def facts_now() -> dict[str, Any]:
        return {
            "spent": clock.total,
            "schedule": total_seconds,
            "seconds": seconds_before + clock.here,
            "batch": batch_size * team.size,
            "learning_rate": options.unet_lr,
            "precision": "bf16" if bf16 else "fp32",
            "processes": team.size,
            "bank_pictures": len(bank.mean) * team.size,
            "photo_share": options.photo_share if options.photos is not None else 0.0,
        }

    def judge() -> dict[str, dict[str, float]]:
        with learner.ema.applied():
            return {
                kind: denoising_losses(unet, text_encoder, part) for kind, part in judged.items()
            }

    shown, judged_at, saved, drawn = clock.here, clock.here, clock.here, clock.here
    every = 25 if cuda else 2
    first, started = learner.steps, clock.here
    pace = Pace(clock, team, every, device)
    begun = pace.fraction if learner.cycle_steps == 0 else 0.0
    running = torch.zeros((), device=device)
    while learner.steps == first or not pace.over:  # one step at least, however long preparing took
        loss, error = loss_of(forward, bf16)
        loss.backward()  # type: ignore[no-untyped-call]
        learner.step(learning_rate_factor(pace.fraction, learner.cycle_steps, begun), batch_size)
        running += error.detach() / every
        pace.tick()
        if (learner.steps - first) % every:
            continue
        team.average([running])
        value = float(running)
        running.zero_()
        now, _ = team.told([clock.here, 0.0], device)
        if now - shown > 10 or learner.steps - first <= every:
            shown = now
            learner.guard(value)
            log.info(
                "unet %.1f/%.1f min: step %d, %.0f pictures/s, %.2f M seen, loss %.4f",
                shown / 60, options.unet_minutes, learner.steps,
                (learner.steps - first) * batch_size * team.size / max(1e-9, shown - started),
                learner.seen / 1e6, value,
            )  # fmt: skip
        if not team.leads:
            continue
        if clock.here - judged_at > JUDGE_EVERY:
            judged_at = clock.here
            log.info("unet: held-out loss by timestep %s", judge())
        if sheet is not None and options.sheet_every and clock.here - drawn > options.sheet_every:
            with learner.ema.applied():
                sheet.draw(f"step-{learner.steps:06d}")
            drawn = clock.here
        if clock.here - saved > options.save_every:
            saved = clock.here
            learner.save(checkpoint, facts_now())
    facts = facts_now()
    losses: dict[str, dict[str, float]] = {}
    if team.leads:
        learner.save(checkpoint, facts)
        losses = judge()
        if sheet is not None and options.sheet_every:
            with learner.ema.applied():
                sheet.draw("last")
        log.info("unet: held-out loss by timestep %s after %d steps", losses, learner.steps)
    team.wait()
    return {**facts, "steps": learner.steps, "pictures_seen": learner.seen, "held_out": losses}
