"""Training a LoRA on one picture, and merging one into a U-Net's weights (Hu et al. 2021).

The recipe is DragDiffusion's (docs/algorithm.md 1.2): adapters on q, k, v and out of every attention,
noise prediction on the picture's own latents at random timesteps, AdamW at a constant rate. What
is not repeated: the picture's latent distribution is computed once and only sampled per step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from workbench.accel.cpu_attention import MergedLoraLinear, merges_lora
from workbench.accel.cuda import AsyncScalarReader, GraphedCallable, Recorder
from workbench.core.config import LoraConfig
from workbench.core.errors import ModelError, held
from workbench.diffusion.ddim import Schedule
from workbench.diffusion.lora_format import by_module
from workbench.diffusion.unet import Prompt, frozen

Tensor = torch.Tensor
OnTrain = Callable[[int, int, float | None], None]
"""(steps finished, steps in all, latest known loss); raises `Cancelled` to stop."""

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_ADAPTER = "picture"


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """One training batch: `latents` and `noise` [B,C,h,w], `timesteps` [B] on the CPU."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor


TrainBatches = Callable[[int], TrainBatch]
"""The batch of a step (0, 1, ...); all randomness of a training is in here."""


@dataclass(frozen=True, slots=True)
class TrainedLora:
    """`state`: float32 CPU tensors under standard keys `unet.<module>.lora_{A,B}.weight`."""

    state: dict[str, Tensor]
    losses: tuple[float, ...]


def random_draws(
    mean: Tensor, std: Tensor, *, batch: int, seed: int, crop: int = 0, levels: int = 1000
) -> TrainBatches:
    """Batches sampled from the picture's latent distribution by a CPU generator.

    The same numbers come on every device. With `crop`, each item is a random square of that many
    latent cells (a picture that is not square, trained at a fixed resolution); the reference crops
    pixels and encodes each crop, which costs an encoder pass per item for the same distribution but
    for the crop's own border.

    Args:
        mean, std: of the latent [1,C,h,w], in the U-Net's scale.
        batch: items.
        seed: of the generator.
        crop: side in latent cells; 0 takes the whole latent.
        levels: number of training timesteps.
    """
    generator = torch.Generator().manual_seed(seed)
    _, channels, rows, cols = mean.shape
    side = (min(crop, rows), min(crop, cols)) if crop else (rows, cols)

    def draw(_step: int) -> TrainBatch:
        shape = (batch, channels, *side)
        spread = torch.randn(shape, generator=generator)
        noise = torch.randn(shape, generator=generator)
        timesteps = torch.randint(0, levels, (batch,), generator=generator)
        tops = torch.randint(0, rows - side[0] + 1, (batch,), generator=generator).tolist()
        lefts = torch.randint(0, cols - side[1] + 1, (batch,), generator=generator).tolist()

        def cut(full: Tensor) -> Tensor:
            parts = [
                full[:, :, a : a + side[0], b : b + side[1]]
                for a, b in zip(tops, lefts, strict=True)
            ]
            return torch.cat(parts)

        return TrainBatch(cut(mean) + cut(std) * spread.to(mean.device), noise, timesteps)

    return draw


def initial_state(unet: Any, rank: int, seed: int) -> dict[str, Tensor]:
    """Fresh adapters: A ~ N(0, (1/rank)^2) from a CPU generator in module order, B = 0."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, module in _targets(unet):
        out_features, in_features = module.weight.shape[:2]
        down = torch.randn(rank, in_features, generator=generator) / rank
        state[f"unet.{name}.lora_A.weight"] = down
        state[f"unet.{name}.lora_B.weight"] = torch.zeros(out_features, rank)
    return state


def train(
    unet: Any,
    schedule: Schedule,
    prompt: Prompt,
    config: LoraConfig,
    draws: TrainBatches,
    *,
    start: Mapping[str, Tensor],
    graphs: Recorder | None = None,
    on_step: OnTrain = lambda _done, _total, _loss: None,
) -> TrainedLora:
    """Fit adapters to one picture; the U-Net comes back exactly as it was, also on an error.

    Adapter weights are float32 whatever the U-Net's precision; only they get gradients.

    Args:
        unet: diffusers U-Net.
        schedule: noise levels, and whether the model predicts noise or v.
        prompt: what the picture shows.
        config: steps, rate, rank, accumulation, weight decay.
        draws: batches, see `random_draws`; called once per batch in order.
        start: adapters to begin with (standard keys), see `initial_state`.
        graphs: records the step (not with accumulation); None records nothing.
        on_step: progress after each optimiser step.

    Raises:
        ModelError: when the loss became NaN or infinite.
    """
    text, added = prompt.embedding, prompt.added
    losses: list[float] = []

    def take(values: list[float]) -> None:
        for value in values:
            losses.append(value)
            if not math.isfinite(value):
                raise ModelError(
                    f"The loss of the LoRA training became {value} at step {len(losses)}; use a "
                    "lower learning rate, or full precision.",
                    code="not-finite",
                )

    with frozen(unet), _adapters(unet, config.rank, start) as weights, torch.enable_grad():
        device, dtype = text.device, unet.dtype
        fused = device.type in ("cpu", "cuda")
        adam = torch.optim.AdamW(
            list(weights.values()), lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8,
            weight_decay=config.weight_decay, fused=fused,
        )  # fmt: skip
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        reader = AsyncScalarReader(device)
        replayed = None
        if graphs is not None and config.accumulation == 1:
            replayed = _Replayed(
                unet, schedule, text.to(dtype), added, list(weights.values()), scaler, graphs
            )
        for step in range(config.steps):
            total = torch.zeros((), device=device)
            for part in range(config.accumulation):
                draw = draws(step * config.accumulation + part)
                if replayed is not None:
                    total += replayed(draw)
                    continue
                batch = _batch(schedule, draw, text.to(dtype))
                loss = _loss(unet, batch, text.to(dtype), added) / config.accumulation
                scaler.scale(loss).backward()
                total += loss.detach()
            scaler.step(adam)
            scaler.update()
            adam.zero_grad(set_to_none=True)
            take(reader.push(total))
            on_step(step + 1, config.steps, losses[-1] if losses else None)
        take(reader.drain())
        state = {k: w.detach().float().cpu().clone() for k, w in weights.items()}
    return TrainedLora(state, tuple(losses))


Batch = tuple[Tensor, Tensor, Tensor]
"""Noised latents in the U-Net's precision, their timesteps, and what the U-Net should say (float32)."""


def _batch(schedule: Schedule, draw: TrainBatch, text: Tensor) -> Batch:
    clean = draw.latents.to(text.device, torch.float32)
    noise = draw.noise.to(text.device, torch.float32, non_blocking=True)
    noisy = schedule.add_noise(clean, noise, draw.timesteps)
    levels = draw.timesteps.to(text.device, non_blocking=True)
    return noisy.to(text.dtype), levels, schedule.training_target(clean, noise, draw.timesteps)


def _loss(unet: Any, batch: Batch, text: Tensor, added: Mapping[str, Tensor] | None) -> Tensor:
    """Mean squared error of the predicted noise (or v) on one batch, float32."""
    noisy, levels, target = batch
    n = len(noisy)
    given: dict[str, Any] = {"encoder_hidden_states": text.expand(n, -1, -1)}
    if added:
        given["added_cond_kwargs"] = {
            k: v.to(text.device, text.dtype).expand(n, *v.shape[1:]) for k, v in added.items()
        }
    out = unet(noisy, levels, return_dict=False, **given)[0]
    return F.mse_loss(out.float(), target)


class _Replayed:
    """Loss and gradients of a batch, on tensors that stay where they are (see `accel/cuda.py`)."""

    def __init__(
        self,
        unet: Any,
        schedule: Schedule,
        text: Tensor,
        added: Mapping[str, Tensor] | None,
        weights: list[Tensor],
        scaler: torch.amp.GradScaler,
        recorder: Recorder,
    ) -> None:
        self._schedule, self._text, self._weights = schedule, text, weights
        self._batch: Batch | None = None

        def work() -> tuple[Tensor, ...]:
            assert self._batch is not None
            with torch.enable_grad():
                loss = _loss(unet, self._batch, text, added)
                return loss.detach(), *torch.autograd.grad(scaler.scale(loss), weights)

        self._step = GraphedCallable(work, recorder, lends=True)

    def __call__(self, draw: TrainBatch) -> Tensor:
        """Set the gradients; returns the loss, which the next call overwrites."""
        new = _batch(self._schedule, draw, self._text)
        if self._batch is None:
            self._batch = new
        else:
            for kept, given in zip(self._batch, new, strict=True):
                kept.copy_(given)
        loss, *grads = self._step()
        for weight, grad in zip(self._weights, grads, strict=True):
            weight.grad = grad
        return loss


@contextlib.contextmanager
def _adapters(unet: Any, rank: int, state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Inject peft's LoRA layers holding `state`; yields the trainable weights by standard key.

    Afterwards the very module objects that were replaced are put back: peft's own unloading would
    leave switches behind.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    if getattr(unet, "peft_config", None):
        raise RuntimeError("the U-Net already carries adapters; merge or unload them first")
    had = hasattr(unet, "peft_config")
    originals = dict(_targets(unet))
    config = PeftConfig(
        r=rank, lora_alpha=rank, target_modules=list(TARGETS), init_lora_weights=False
    )
    try:
        inject_adapter_in_model(config, unet, _ADAPTER)
        weights: dict[str, Tensor] = {}
        for name in originals:
            layer = unet.get_submodule(name)
            for part in ("lora_A", "lora_B"):
                weight = getattr(layer, part)[_ADAPTER].weight
                key = f"unet.{name}.{part}.weight"
                weight.data = state[key].to(weight.device, torch.float32, copy=True)
                weight.requires_grad_(True)
                weights[key] = weight
            if merges_lora(originals[name], rank):
                down, up = (getattr(layer, p)[_ADAPTER].weight for p in ("lora_A", "lora_B"))
                layer.forward = MergedLoraLinear(originals[name], down, up)
        yield weights
    finally:
        with held():
            for name, module in originals.items():
                parent, _, child = name.rpartition(".")
                setattr(unet.get_submodule(parent), child, module)
            if not had and hasattr(unet, "peft_config"):
                del unet.peft_config


def _targets(unet: Any) -> list[tuple[str, Any]]:
    """(name, module) of every attention projection that takes an adapter, in module order."""
    return [
        (name, module)
        for name, module in unet.named_modules()
        if name.endswith(tuple("." + t for t in TARGETS)) and hasattr(module, "weight")
    ]


@contextlib.contextmanager
def merged(unet: Any, state: Mapping[str, Tensor] | None, weight: float = 1.0) -> Iterator[None]:
    """W + weight * (W' - W) in place of each adapted W during the block; the very tensors return after.

    W' is what the LoRA makes of W: W + B A, or LoHa's, LoKr's and full differences, and DoRA's
    magnitude. Inversion, drag and denoising then pay nothing for the adapter. Restoring is exact
    because the original storage is kept aside, not recomputed by subtraction.

    Args:
        unet: diffusers U-Net.
        state: standard names (see `lora_format`); None or empty does nothing.
        weight: strength.

    Raises:
        ModelError: when the adapter names a module that the U-Net does not have, or another shape.
    """
    kept: list[tuple[Any, Tensor]] = []

    def put(parameter: Any, new: Tensor) -> None:
        kept.append((parameter, parameter.data))
        parameter.data = new.to(parameter.dtype)

    try:
        for name, parts in by_module(state or {}).items():
            module = _module_of(unet, name)
            try:
                change = change_of(parts, module.weight)
                if change is not None:
                    old = module.weight.data.float()
                    if "dora_scale" in parts:
                        change = magnitude(old + change, parts["dora_scale"]) - old
                    put(module.weight, old + weight * change)
                if "diff_b" in parts:
                    bias = module.bias.data
                    added = parts["diff_b"].to(bias.device).float().reshape(bias.shape)
                    put(module.bias, bias.float() + weight * added)
            except (RuntimeError, AttributeError, KeyError) as exc:
                raise ModelError(
                    f"The LoRA's weights for {name} do not fit this model; it was trained for "
                    "another one.",
                    code="misfit",
                ) from exc
        yield
    finally:
        with held():
            for parameter, original in kept:
                parameter.data = original


def _module_of(unet: Any, name: str) -> Any:
    try:
        return unet.get_submodule(name)
    except AttributeError as exc:
        raise ModelError(
            f"The LoRA changes {name}, which this model does not have; it was trained for "
            "another one.",
            code="misfit",
        ) from exc


def change_of(parts: Mapping[str, Tensor], weight: Tensor) -> Tensor | None:
    """Change that one module's parts add to its weight, float32 of the weight's shape; None: nothing.

    Raises:
        RuntimeError: from torch, when the shapes do not fit.
    """
    here = {n: t.to(weight.device).float() for n, t in parts.items()}
    made = None
    if "lora_A.weight" in here:
        made = here["lora_B.weight"].flatten(1) @ here["lora_A.weight"].flatten(1)
    elif "hada_w1_a" in here:
        made = _product(here, "hada_w1", "hada_t1") * _product(here, "hada_w2", "hada_t2")
    elif any(n.startswith("lokr") for n in here):
        one = here["lokr_w1"] if "lokr_w1" in here else here["lokr_w1_a"] @ here["lokr_w1_b"]
        two = here["lokr_w2"] if "lokr_w2" in here else _product(here, "lokr_w2", "lokr_t2")
        made = torch.kron(one.reshape(*one.shape, *[1] * (two.dim() - 2)), two.contiguous())
    if made is not None:
        made = made.reshape(weight.shape)
    if "diff" in here:
        full = here["diff"].reshape(weight.shape)
        made = full if made is None else made + full
    return made


def _product(parts: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    """a b, or its Tucker form with a core [r,r,k,k]."""
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    if core not in parts:
        return a @ b
    return torch.einsum("ijkl,jr,ip->prkl", parts[core], b, a)


def magnitude(weight: Tensor, scale: Tensor) -> Tensor:
    """DoRA: `weight` with its rows (scale [out,1]) or columns (scale [1,in]) at these norms."""
    rows = scale.shape[0] == weight.shape[0] and scale.shape[1] == 1
    dims = [d for d in range(weight.dim()) if d != (0 if rows else 1)]
    norm = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
    shape = [1] * weight.dim()
    shape[0 if rows else 1] = -1
    factor = scale.to(weight.device).float().reshape(shape) / (norm + torch.finfo(norm.dtype).eps)
    made: Tensor = weight * factor
    return made
