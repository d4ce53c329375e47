"""A loaded model on a device (text, pixels <-> latents, U-Net, schedule), left as it was found.

A runtime serves one thread at a time: hold `runtime.lock` for a whole job. Nothing here depends on
a picture; what does is in `workbench/editing`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.accel.cpu_attention import fast_cpu_layers
from workbench.accel.cuda import Recorder, channels_last
from workbench.core.errors import held
from workbench.core.record import OnStep, ignore_steps
from workbench.core.request import ModelRef
from workbench.diffusion import device as devices
from workbench.diffusion.registry import ModelSpec, Registry
from workbench.diffusion.registry.files import find_files, fingerprint, native_size
from workbench.diffusion.registry.loading import Parts, load_parts
from workbench.diffusion.unet import Prompt

log = logging.getLogger(__name__)

_TEXTS_KEPT = 16
_KEPT = 2  # things of one picture: its inverted latents, and the original's pass
_TILE, _LEAST_TILE = 512, 256  # px; tiles of the autoencoder in the low-memory mode


@dataclass(frozen=True, slots=True)
class Text:
    """An encoded prompt: `embedding` [1,77,C]; XL's `pooled` [1,P]; what did not fit, if anything."""

    embedding: torch.Tensor
    pooled: torch.Tensor | None
    dropped: str

    @property
    def notice(self) -> str | None:
        """The sentence about a prompt that was too long, or None."""
        if not self.dropped:
            return None
        return f"The prompt was too long for the model; this part was left out: {self.dropped!r}."


class Runtime:
    """One model, ready to run. Make it with `load`."""

    def __init__(
        self,
        *,
        spec: ModelSpec,
        parts: Parts,
        fingerprint: str,
        device: torch.device,
        dtype: torch.dtype,
        native_size: int,
    ) -> None:
        """Take over loaded modules; `native_size` is the longest side it was trained for, px."""
        self.spec = spec
        self.fingerprint = fingerprint
        self.device = device
        self.dtype = dtype
        self.native_size = native_size
        self.unet = parts.unet
        self.vae = parts.vae
        self.scheduler_config = parts.scheduler_config
        self.lock = threading.RLock()
        self._encoders = list(zip(parts.tokenizers, parts.text_encoders, strict=True))
        self._texts: OrderedDict[str, Text] = OrderedDict()
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._recorder: Recorder | None = None
        self.recording = True  # CUDA graphs may be used
        self.saving_memory = False
        self._turned = device.type == "cuda" and dtype != torch.float32
        if self._turned:
            # the order in which the convolutions of half precision want their numbers
            self.unet.to(memory_format=torch.channels_last)

    @property
    def name(self) -> str:
        """The model's registry name or path."""
        return self.spec.name

    @property
    def ref(self) -> ModelRef:
        """The model as a request names it, fingerprint included."""
        return ModelRef(
            name=self.spec.name, revision=self.spec.revision, fingerprint=self.fingerprint
        )

    @property
    def is_sdxl(self) -> bool:
        """Two text encoders, pooled text and time ids."""
        return len(self._encoders) == 2

    @property
    def factor(self) -> int:
        """Image pixels per latent element along one side (8 for Stable Diffusion)."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def dtype_name(self) -> str:
        """fp32, fp16 or bf16."""
        names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
        return names[self.dtype]

    @property
    def graphs(self) -> Recorder | None:
        """Records repeated work, so that it can be replayed; None on a CPU and in low-memory mode."""
        if self.device.type != "cuda" or self.saving_memory or not self.recording:
            return None
        if self._recorder is None:
            self._recorder = Recorder(self.device)
        return self._recorder

    # --- text ---------------------------------------------------------------------------------------

    def text(self, prompt: str) -> Text:
        """Encode a prompt, padded to the tokenizer's window; what is longer is cut and named.

        The last few prompts are kept.
        """
        with self.lock:
            if prompt not in self._texts:
                self._texts[prompt] = self._encode_text(prompt)
                while len(self._texts) > _TEXTS_KEPT:
                    self._texts.popitem(last=False)
            self._texts.move_to_end(prompt)
            return self._texts[prompt]

    @torch.no_grad()
    def prompt(self, prompt: str, size: tuple[int, int]) -> Prompt:
        """A prompt as the U-Net takes it, for a picture of `size` (width, height)."""
        text = self.text(prompt)
        return Prompt(text.embedding, self.added(text, size))

    def _encode_text(self, prompt: str) -> Text:
        clean = prompt.replace("\0", " ")
        embeddings, pooled, dropped = [], None, ""
        for tokenizer, encoder in self._encoders:
            window = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
            cut = tokenizer(
                clean, padding="max_length", max_length=window, truncation=True
            ).input_ids
            ids = torch.tensor([cut], device=self.device)
            dropped = dropped or _dropped(tokenizer, clean, window)
            if not self.is_sdxl:
                embeddings.append(encoder(ids).last_hidden_state)
                continue
            out = encoder(ids, output_hidden_states=True)
            embeddings.append(out.hidden_states[-2])  # XL was trained on the layer before the last
            pooled = getattr(out, "text_embeds", pooled)
        return Text(torch.cat(embeddings, dim=-1), pooled, dropped)

    def added(self, text: Text, size: tuple[int, int]) -> dict[str, torch.Tensor] | None:
        """XL's added conditions for a text and a working picture of `size` (width, height) px."""
        if text.pooled is None:
            return None
        width, height = size
        ids = [height, width, 0, 0, height, width]  # original size, crop corner, target size
        times = torch.tensor([ids], device=self.device, dtype=text.pooled.dtype)
        return {"text_embeds": text.pooled, "time_ids": times}

    # --- pixels and latents ---------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latent of pixels [1,3,H,W] in [-1,1], float32 [1,4,h,w].

        Both are in the U-Net's scale (times `scaling_factor`, after `shift_factor` if there is one).
        """
        posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        shift = self.vae.config.get("shift_factor") or 0.0
        scale = self.vae.config.scaling_factor
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Pixels [N,3,H,W] in [0,1], float32, of latents [N,4,h,w] in the U-Net's scale."""
        shift = self.vae.config.get("shift_factor") or 0.0
        scaled = latent.float() / self.vae.config.scaling_factor + shift
        pixels = self.vae.decode(scaled.to(self.vae.dtype)).sample
        clamped: torch.Tensor = (pixels.float() / 2 + 0.5).clamp(0, 1)
        return clamped

    # --- modes ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def job(self) -> Iterator[None]:
        """Hold the model for a whole job and give it back as it was."""
        with (
            self.lock,
            unchanged(self.unet),
            unchanged(self.vae),
            fast_cpu_layers(self.unet, narrow=not devices.fused_attention_wins()),
            channels_last(self.unet, on=self._turned),
            devices.repeatable(self.device.type),
        ):
            yield

    @contextlib.contextmanager
    def low_memory(self, on: bool = True) -> Iterator[None]:
        """Trade time for memory: gradient checkpointing, tiled autoencoder, nothing kept.

        The gradients are the same numbers. The autoencoder works in overlapping tiles only beyond
        512 px (or the native size, if that is less): its group norms see each tile by itself, so
        that small tiles would get tints of their own.
        """
        if not on:
            yield
            return
        self._kept.clear()
        self._recorder = None
        self.saving_memory = True
        tile = max(_LEAST_TILE, min(self.native_size, _TILE))
        before = self.vae.tile_sample_min_size, self.vae.tile_latent_min_size
        self.vae.tile_sample_min_size = tile
        self.vae.tile_latent_min_size = tile // self.factor
        self.unet.enable_gradient_checkpointing()
        self.vae.enable_tiling()
        self.vae.enable_slicing()
        try:
            yield
        finally:
            self.saving_memory = False
            self.unet.disable_gradient_checkpointing()
            self.vae.disable_tiling()
            self.vae.disable_slicing()
            self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = before

    # --- what is kept between jobs --------------------------------------------------------------------

    def keep(self, name: str, value: Any) -> None:
        """Keep something in device memory for the next job: the last picture's latents and pass."""
        if self.saving_memory:
            return
        self._kept[name] = value
        self._kept.move_to_end(name)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def kept(self, name: str) -> Any:
        """The value kept under a name, or None."""
        return self._kept.get(name)

    def forget(self) -> None:
        """Drop what is kept between jobs: prompts, the original's pass, memory of recordings."""
        with self.lock:
            self._texts.clear()
            self._kept.clear()
            self._recorder = None


def load(
    model: str | ModelRef | ModelSpec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    registry: Registry | None = None,
    memory: Path | None = None,
    on_step: OnStep = ignore_steps,
) -> Runtime:
    """Load a model by name, path or spec.

    `memory` is the JSON file that remembers the sums of weight files.

    Raises:
        BadInput: for an unknown name, device or precision.
        ModelError: when files are missing, damaged or of a wrong kind.
    """
    registry = registry or Registry()
    if isinstance(model, ModelRef):
        model = model.name
    spec = registry.resolve(model) if isinstance(model, str) else model
    where = torch.device(devices.devices(device)[0])
    files = find_files(spec, registry)
    kind = devices.choose_dtype(dtype, where, files.bytes // 2)
    name = fingerprint(files, memory)
    parts = load_parts(files, where, kind, on_step)
    log.info("loaded %s on %s as %s", spec.name, where, kind)
    return Runtime(
        spec=spec,
        parts=parts,
        fingerprint=name,
        device=where,
        dtype=kind,
        native_size=native_size(files),
    )


def _dropped(tokenizer: Any, prompt: str, window: int) -> str:
    """The end of a prompt that does not fit into the window, as the tokenizer reads it."""
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    if len(ids) <= window:
        return ""
    return str(tokenizer.decode(ids[window - 1 : -1])).strip()


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


@dataclass(frozen=True, slots=True)
class ModelState:
    """A snapshot of everything but the numbers: two equal snapshots mean an untouched model."""

    modules: tuple[tuple[str, int, bool], ...]  # name, identity, training
    parameters: tuple[tuple[str, int, bool, bool], ...]  # name, identity, requires_grad, has grad
    versions: tuple[int, ...]  # counts in-place changes of the weights
    processors: tuple[tuple[str, int], ...]
    hooks: tuple[tuple[str, str, tuple[int, ...]], ...]
    adapters: tuple[str, ...]
    checkpointing: bool
    grad_enabled: bool


def snapshot(model: Any) -> ModelState:
    """Take a snapshot of a diffusers model."""
    modules = list(model.named_modules())
    parameters = list(model.named_parameters())
    processors = getattr(model, "attn_processors", {})
    return ModelState(
        modules=tuple((n, id(m), m.training) for n, m in modules),
        parameters=tuple((n, id(p), p.requires_grad, p.grad is not None) for n, p in parameters),
        versions=tuple(p._version for _, p in parameters),
        processors=tuple(sorted((n, id(p)) for n, p in processors.items())),
        hooks=tuple(
            (n, kind, tuple(found))
            for n, m in modules
            for kind in _HOOKS
            if (found := getattr(m, kind, None))
        ),
        adapters=tuple(sorted(getattr(model, "peft_config", None) or ())),
        checkpointing=bool(getattr(model, "is_gradient_checkpointing", False)),
        grad_enabled=torch.is_grad_enabled(),
    )


def differences(before: ModelState, after: ModelState) -> list[str]:
    """Names of the parts in which two snapshots differ."""
    return [name for name in ModelState.__slots__ if getattr(before, name) != getattr(after, name)]


@contextlib.contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Give the model back as it was, whatever happens in the block.

    What differs afterwards is an error of ours: it is logged, and put back as far as that is
    possible (processors, hooks, gradient switches, checkpointing, adapters).
    """
    before = snapshot(model)
    kept = dict(getattr(model, "attn_processors", {}))
    level = logging.ERROR
    try:
        yield
    except KeyboardInterrupt:  # between two lines of ours: no error, and the process ends
        level = logging.INFO
        raise
    finally:
        with held():
            torch.set_grad_enabled(before.grad_enabled)
            after = snapshot(model)
            if after != before:
                changed = ", ".join(differences(before, after))
                log.log(level, "a job left the model changed: %s", changed)
                _repair(model, before, kept)


def _repair(model: Any, before: ModelState, processors: dict[str, Any]) -> None:
    added = set(getattr(model, "peft_config", None) or ()) - set(before.adapters)
    if added and not before.adapters:
        model.unload_lora()  # takes peft's wrappers off again; deleting would leave them
    elif added:
        model.delete_adapters(sorted(added))
    if processors and dict(model.attn_processors) != processors:
        model.set_attn_processor(dict(processors))
    hooks = {(n, kind): set(keys) for n, kind, keys in before.hooks}
    training = {n: t for n, _, t in before.modules}
    for name, module in model.named_modules():
        module.training = training.get(name, False)
        for kind in _HOOKS:
            found = getattr(module, kind, None) or {}
            for key in set(found) - hooks.get((name, kind), set()):
                del found[key]
    grads = {n: g for n, _, g, _ in before.parameters}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(grads.get(name, False))
        parameter.grad = None
    if not before.checkpointing and getattr(model, "is_gradient_checkpointing", False):
        model.disable_gradient_checkpointing()
