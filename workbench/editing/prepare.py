"""What is computed once per picture and kept: LoRA, inverted latents, the original's pass.

Each stage asks the cache under its own key (`keys`), so that a change of a setting repeats exactly
what depends on it. A second drag on the same picture finds everything here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load, save

from workbench.core import keys
from workbench.core.config import LoraRef
from workbench.core.errors import BadInput, ModelError
from workbench.core.record import OnStep, StepInfo
from workbench.core.request import EditRequest
from workbench.diffusion.ddim import Schedule, invert, schedule_from
from workbench.diffusion.lora import initial_state, merged, random_draws, train
from workbench.diffusion.lora_files import (
    LoraCard,
    LoraFile,
    check,
    read,
    write,
)
from workbench.diffusion.lora_format import rank_of
from workbench.drag.denoise import reference_of
from workbench.drag.problem import DragProblem, Reference
from workbench.editing.crop_plan import names_of
from workbench.editing.text_to_image import cached_path, denoiser_of, freeu
from workbench.imaging import decode

if TYPE_CHECKING:
    from workbench.diffusion.model import Runtime, Text
    from workbench.editing.working_image import Workpiece
    from workbench.storage.cache import Cache
    from workbench.storage.history import Store

log = logging.getLogger(__name__)

REFERENCE_ON_DISK = 96 << 20  # bytes; a bigger one is only kept in memory


@dataclass
class Account:
    """What a job has to say about itself: seconds per stage, what was cached, notices, losses."""

    seconds: dict[str, float] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    lora_losses: tuple[float, ...] = ()

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's seconds to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - start
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + taken, 4)

    def note(self, text: str | None) -> None:
        """Say something once."""
        if text and text not in self.notices:
            self.notices.append(text)


class Stages:
    """The stages of one request on one loaded model; make one per job."""

    def __init__(
        self,
        request: EditRequest,
        piece: Workpiece,
        *,
        runtime: Runtime,
        cache: Cache,
        store: Store,
        on_step: OnStep,
    ) -> None:
        """Nothing is computed yet."""
        self.request = request
        self.piece = piece
        self.runtime = runtime
        self.cache = cache
        self.store = store
        self.on_step = on_step
        self.account = Account()
        self.style = request.style if request.generation is None else None
        if request.style is not None and self.style is None:
            self.account.note(
                "A generated picture was made without the style LoRA: it is left out."
            )
        self.model = keys.styled_model(runtime.fingerprint, self.style)
        names = names_of(request, piece.id, piece.crop, runtime.fingerprint)
        self.adapter, self.latent = names.adapter, names.latent
        steps = request.generation.steps if request.generation else request.inversion.steps
        self.schedule: Schedule = schedule_from(runtime.scheduler_config, steps)
        self._encoded: tuple[torch.Tensor, torch.Tensor] | None = None

    # --- text -----------------------------------------------------------------------------------------

    def text(self) -> Text:
        """The encoded prompt; a notice says what did not fit."""
        found = self.runtime.text(self.request.prompt)
        self.account.note(found.notice)
        return found

    @property
    def guidance(self) -> float:
        """Classifier-free guidance of inversion and drag; a generated picture has its own."""
        generation = self.request.generation
        return generation.guidance if generation else self.request.inversion.guidance

    # --- picture --------------------------------------------------------------------------------------

    def encoded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the working picture's latent."""
        if self._encoded is None:
            with self.account.timed("encode"):
                self.on_step(StepInfo(stage="encode", step=0, total=1))
                self._encoded = self.runtime.encode(self.piece.pixels())
                self.on_step(StepInfo(stage="encode", step=1, total=1))
            if not torch.isfinite(self._encoded[0]).all():
                raise ModelError(self._nan("encoding the picture"))
        return self._encoded

    # --- adapters -------------------------------------------------------------------------------------

    def _file(self, ref: LoraRef, *, style: bool) -> LoraFile:
        """A LoRA that the request names, converted and checked against the model."""
        unet = self.runtime.unet
        label = ref.name or "The LoRA"
        file = read(self.store.blob(ref.id), label, unet.config.layers_per_block)
        for notice in check(
            file, unet, name=label, model=self.runtime.fingerprint,
            image=self.request.image.id, style=style,
        ):  # fmt: skip
            self.account.note(notice)
        return file

    @contextlib.contextmanager
    def styled(self) -> Iterator[None]:
        """The model with the style LoRA in its weights, and FreeU for a generated picture."""
        style = self.style
        state = self._file(style, style=True).weights if style and style.weight else None
        with (
            merged(self.runtime.unet, state, style.weight if style else 1.0),
            freeu(self.runtime, self.request.generation),
        ):
            yield

    def lora(self) -> tuple[dict[str, torch.Tensor] | None, float]:
        """The picture's LoRA and its weight: from a file, the cache, or trained now."""
        ref = self.request.lora_file
        if self.request.generation is not None:
            return None, 1.0
        if ref is not None:
            return self._file(ref, style=False).weights, ref.weight
        if self.adapter is None:
            return None, 1.0
        return read(self.trained()).weights, 1.0

    def _waiting(self, stage: str) -> None:
        self.on_step(StepInfo(stage=stage, step=0, total=1, waiting=True))

    def trained(self, start: LoraRef | None = None) -> bytes:
        """Bytes of the picture's trained LoRA file, from the cache if it is there."""
        name = self.adapter if start is None else keys.key("continued", self.adapter, start.id)
        if name is None:
            raise BadInput("The LoRA has 0 training steps; there is nothing to train.")
        with self.account.timed("lora"):
            raw, hit = self.cache.get_or_make(
                name,
                lambda: self._train(start),
                kind="lora",
                label=self.request.image.name,
                on_wait=lambda: self._waiting("lora"),
            )
        self._hit("lora", hit)
        return raw

    def _train(self, start: LoraRef | None) -> bytes:
        request, run, config = self.request, self.runtime, self.request.lora
        before = self._file(start, style=False) if start is not None else None
        begin = before.weights if before is not None else None
        seed = request.seed
        if start is not None:  # going on with the noise of the first time would teach less
            seed = int(keys.key("further", seed, start.id)[-15:], 16)
        if begin is not None and begin.keys() != initial_state(run.unet, 1, 0).keys():
            raise BadInput(
                "The LoRA to go on from is not a plain one of every attention layer, so training "
                "cannot go on from it; use it as it is, or train a new one.",
                code="cannot-continue",
            )
        if begin is not None and rank_of(begin) != config.rank:
            raise BadInput(
                f"The LoRA to go on from has rank {rank_of(begin)}, and the options say "
                f"{config.rank}; choose rank {rank_of(begin)}."
            )
        mean, std, crop = self._training_latent()
        text = self.text()
        draws = random_draws(
            mean, std, batch=config.batch_size, seed=seed, crop=crop,
            levels=len(self.schedule.alphas),
        )  # fmt: skip

        def heard(done: int, total: int, loss: float | None) -> None:
            self.on_step(StepInfo(stage="lora", step=done, total=total, loss=loss))

        self.on_step(StepInfo(stage="lora", step=0, total=config.steps))
        made = train(
            run.unet, self.schedule, text.embedding, config, draws, start=begin,
            seed=seed, added=run.added(text, self.piece.size), graphs=run.graphs, on_step=heard,
        )  # fmt: skip
        if not all(bool(torch.isfinite(t).all()) for t in made.state.values()):
            raise ModelError(self._nan("training the LoRA", "a lower learning rate"))
        self.account.lora_losses = made.losses
        return write(made.state, self._card(before.card.steps if before is not None else 0))

    def _training_latent(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Mean, standard deviation and crop (latent cells) for training at `resolution`."""
        resolution, factor = self.request.lora.resolution, self.runtime.factor
        if not resolution:
            return *self.encoded(), 0
        width, height = self.piece.size
        scale = resolution / min(width, height)
        size = tuple(max(factor, round(side * scale / factor) * factor) for side in (width, height))
        scaled = decode.resize(self.piece.rgb, (size[0], size[1]), "bilinear")
        mean, std = self.runtime.encode(self.piece.pixels(scaled))
        return mean, std, resolution // factor

    def _card(self, before: int) -> LoraCard:
        """Where the LoRA comes from; it had been trained for `before` steps already."""
        request = self.request
        return LoraCard(
            model=self.runtime.fingerprint,
            model_name=self.runtime.name,
            image=request.image.id,
            image_name=request.image.name,
            prompt=request.prompt,
            rank=request.lora.rank,
            steps=before + request.lora.steps,
            seed=request.seed,
            config=dataclasses.asdict(request.lora),
        )

    # --- latents --------------------------------------------------------------------------------------

    def trail(self) -> torch.Tensor:
        """Latents [n+1,1,C,h,w] from the clean picture to where the drag begins; LoRA active."""
        if self.request.generation is not None:
            return self._generated_trail()
        n = self.request.inversion.inverted_steps
        kept = self.runtime.kept(self.latent)
        if isinstance(kept, torch.Tensor):
            self._hit("invert", True)
            return kept
        with self.account.timed("invert"):
            raw, hit = self.cache.get_or_make(
                self.latent,
                lambda: self._invert(n),
                kind="inversion",
                label=self.request.image.name,
                on_wait=lambda: self._waiting("invert"),
            )
        self._hit("invert", hit)
        found: torch.Tensor = load(raw)["trail"].to(self.runtime.device)
        self.runtime.keep(self.latent, found)
        return found

    def noised(self) -> torch.Tensor:
        """Latents [n+1,1,C,h,w] like `trail`, but plainly noised: no model is asked.

        The noise is drawn from the request's seed on the CPU.
        """
        mean, _ = self.encoded()
        n = self.request.inversion.inverted_steps
        generator = torch.Generator("cpu").manual_seed(self.request.seed)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        levels = [self.schedule.noised(mean, noise, t) for t in reversed(self.schedule.tail(n))]
        return torch.stack([mean, *levels])

    def _invert(self, n: int) -> bytes:
        mean, _ = self.encoded()
        denoiser = denoiser_of(
            self.runtime, self.request.prompt, self.piece.size, self.schedule,
            guidance=self.guidance,
        )  # fmt: skip

        def heard(done: int, total: int) -> None:
            self.on_step(StepInfo(stage="invert", step=done, total=total))

        made = invert(denoiser.eps, mean, self.schedule, n, heard)
        if not torch.isfinite(made).all():
            raise ModelError(self._nan("inverting the picture"))
        return bytes(save({"trail": made.cpu().contiguous()}))

    def _generated_trail(self) -> torch.Tensor:
        """The sampler's own latents at the timesteps between the picture and the drag's start."""
        generation = self.request.generation
        assert generation is not None
        with self.account.timed("generate"):
            path, hit = cached_path(
                self.runtime, self.cache, self.request.prompt, generation, self.model, self.on_step
            )
        self._hit("generate", hit)
        n = max(1, min(generation.steps, round(self.request.inversion.strength * generation.steps)))
        levels = [path.at(self.schedule, t) for t in reversed(self.schedule.tail(n))]
        return torch.stack([path.final, *levels]).to(self.runtime.device)

    # --- the original's pass --------------------------------------------------------------------------

    def reference(self, problem: DragProblem) -> Reference:
        """The original denoised once: from memory, the cache, or computed now."""
        config = problem.config
        name = keys.key(
            "reference", keys.ALGO_DRAG, self.latent, Reference.facts(config),
            self.runtime.dtype_name, self.guidance,
        )  # fmt: skip
        kept = self.runtime.kept(name)
        if isinstance(kept, Reference):
            self._hit("reference", True)
            return kept
        with self.account.timed("reference"):
            raw = self.cache.get(name)
            if raw is not None:
                tensors = load(raw)
                found = Reference.from_tensors(
                    {k: v.to(self.runtime.device) for k, v in tensors.items()}
                )
                self._hit("reference", True)
            else:
                found = self._reference(problem, name)
        self.runtime.keep(name, found)
        return found

    def _reference(self, problem: DragProblem, name: str) -> Reference:
        limit = {"kv_limit": 0} if self.runtime.saving_memory else {}
        made = reference_of(problem, self.on_step, **limit)
        if not torch.isfinite(made.latents).all():
            raise ModelError(self._nan("denoising the original"))
        tensors = {k: v.detach().cpu().contiguous() for k, v in made.to_tensors().items()}
        if sum(t.numel() * t.element_size() for t in tensors.values()) <= REFERENCE_ON_DISK:
            self.cache.put(
                name, bytes(save(tensors)), kind="reference", label=self.request.image.name
            )
        return made

    # --- small things ---------------------------------------------------------------------------------

    def _hit(self, stage: str, hit: bool) -> None:
        if hit:
            self.account.cached.append(stage)
            self.on_step(StepInfo(stage=stage, step=1, total=1, cached=True))

    def _nan(self, doing: str, more: str = "") -> str:
        wish = f" or {more}" if more else ""
        return (
            f"The numbers became NaN while {doing} (precision {self.runtime.dtype_name}); try the "
            f"precision fp32{wish}."
        )
