"""Everything an edit needs before its drag: LoRA, inverted latents, the original's pass, kept state.

Each stage asks the cache under its own key (`core/keys.py`), so that a change of a setting repeats
exactly what depends on it. A second drag on the same picture finds everything here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load, save

from workbench.core import keys
from workbench.core.config import SPECS, LoraRef
from workbench.core.errors import BadInput, ModelError
from workbench.core.record import OnStep, StepInfo, StopReason
from workbench.core.request import EditRequest
from workbench.diffusion.ddim import Schedule, invert, schedule_from
from workbench.diffusion.lora import merged
from workbench.diffusion.lora_files import LoraFile, check, read
from workbench.drag.latents import NotFinite, denoise, reference_of
from workbench.drag.problem import DragOutcome, DragProblem, DragState, Pixels, Reference
from workbench.editing.crop_plan import names_of
from workbench.editing.lora_library import train_lora
from workbench.editing.own_pixels import Candidates, MovedPicture, moved_of
from workbench.editing.text_to_image import cached_path, denoiser_of, freeu

if TYPE_CHECKING:
    from workbench.diffusion.model import Runtime, Text
    from workbench.editing.working_image import WorkingImage
    from workbench.storage.cache import Cache
    from workbench.storage.history import Store

log = logging.getLogger(__name__)

REFERENCE_ON_DISK = 96 << 20  # bytes; a bigger one is only kept in memory


@dataclass(frozen=True, slots=True)
class Engine:
    """Tools of a job: a loaded model, the cache of derived data, the history.

    `on_candidates` is shown the whole pictures of which an edit delivers one.
    """

    runtime: Runtime
    cache: Cache
    store: Store
    on_candidates: Callable[[Candidates], object] | None = None


@dataclass
class JobReport:
    """Report of a job beside its result: seconds per stage, what was cached, notices, losses."""

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

    def split(self, stage: str, part: str, seconds: float) -> None:
        """Count some of a stage's seconds as another's."""
        self.seconds[stage] = round(self.seconds[stage] - seconds, 4)
        self.seconds[part] = round(seconds, 4)

    def note(self, text: str | None) -> None:
        """Say something once."""
        if text and text not in self.notices:
            self.notices.append(text)


class PreparedEdit:
    """One request on one loaded model, stage by stage; make one per job."""

    def __init__(
        self, request: EditRequest, image: WorkingImage, engine: Engine, on_step: OnStep
    ) -> None:
        """Name the stages; each is computed when it is asked for."""
        self.request = request
        self.image = image
        self.runtime, self.cache, self.store = engine.runtime, engine.cache, engine.store
        self.on_step = on_step
        self.report = JobReport()
        self.style = request.style if request.generation is None else None
        if request.style is not None and self.style is None:
            self.report.note("A generated picture was made without the style LoRA: it is left out.")
        self.model = keys.with_style_lora(self.runtime.fingerprint, self.style)
        names = names_of(request, image.id, image.crop, self.runtime.fingerprint)
        self.adapter, self.latent = names.adapter, names.latent
        steps = request.generation.steps if request.generation else request.inversion.steps
        self.schedule: Schedule = schedule_from(self.runtime.scheduler_config, steps)
        self._encoded: tuple[torch.Tensor, torch.Tensor] | None = None

    # --- text -----------------------------------------------------------------------------------------

    def text(self) -> Text:
        """The encoded prompt; a notice says what did not fit."""
        found = self.runtime.text(self.request.prompt)
        self.report.note(found.notice)
        return found

    @property
    def guidance(self) -> float:
        """Classifier-free guidance of inversion and drag; a generated picture has its own."""
        generation = self.request.generation
        return generation.guidance if generation else self.request.inversion.guidance

    # --- picture --------------------------------------------------------------------------------------

    def encoded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation [1,C,h,w] of the working picture's latent.

        Raises:
            ModelError: when they are not finite.
        """
        if self._encoded is None:
            with self.report.timed("encode"):
                self.on_step(StepInfo(stage="encode", step=0, total=1))
                self._encoded = self.runtime.encode(self.image.pixels())
                self.on_step(StepInfo(stage="encode", step=1, total=1))
            if not torch.isfinite(self._encoded[0]).all():
                raise ModelError(self.nan_text("encoding the picture"), code="not-finite")
        return self._encoded

    # --- adapters -------------------------------------------------------------------------------------

    def lora_file(self, ref: LoraRef, *, style: bool) -> LoraFile:
        """A LoRA that the request names, converted and checked against the model.

        Raises:
            BadInput, StoreError: when its file cannot be read as a LoRA, or does not fit the model.
        """
        unet = self.runtime.unet
        label = ref.name or "The LoRA"
        file = read(self.store.blob(ref.id), label, unet.config.layers_per_block)
        for notice in check(
            file, unet, name=label, model=self.runtime.fingerprint,
            image=self.request.image.id, style=style,
        ):  # fmt: skip
            self.report.note(notice)
        return file

    @contextlib.contextmanager
    def with_style_lora(self) -> Iterator[None]:
        """The model with the style LoRA in its weights, and FreeU for a generated picture."""
        style = self.style
        state = self.lora_file(style, style=True).weights if style and style.weight else None
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
            return self.lora_file(ref, style=False).weights, ref.weight
        if self.adapter is None:
            return None, 1.0
        return read(self.trained()).weights, 1.0

    def _waiting(self, stage: str) -> None:
        self.on_step(StepInfo(stage=stage, step=0, total=1, waiting=True))

    def trained(self, start: LoraRef | None = None) -> bytes:
        """Bytes of the picture's trained LoRA file, from the cache if it is there.

        Raises:
            BadInput: when there are no steps to train, or `start` cannot be continued.
            ModelError: when the training came to NaN.
        """
        name = self.adapter if start is None else keys.key("continued", self.adapter, start.id)
        if name is None:
            raise BadInput("The LoRA has 0 training steps; there is nothing to train.")
        with self.report.timed("lora"):
            raw, hit = self.cache.get_or_make(
                name,
                lambda: train_lora(self, start),
                kind="lora",
                label=self.request.image.name,
                on_wait=lambda: self._waiting("lora"),
            )
        self._hit("lora", hit)
        return raw

    # --- latents --------------------------------------------------------------------------------------

    def inversion_latents(self) -> torch.Tensor:
        """Latents [n+1,1,C,h,w] from the clean picture to where the drag begins; LoRA active.

        Raises:
            ModelError: when the inversion came to NaN.
            Cancelled: passed through from `on_step`.
        """
        if self.request.generation is not None:
            return self._generated_latents()
        n = self.request.inversion.inverted_steps
        kept = self.runtime.kept(self.latent)
        if isinstance(kept, torch.Tensor):
            self._hit("invert", True)
            return kept
        with self.report.timed("invert"):
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
        """Latents [n+1,1,C,h,w] like `inversion_latents`, but plainly noised: no model is asked.

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
            self.runtime, self.request.prompt, self.image.size, self.schedule,
            guidance=self.guidance,
        )  # fmt: skip

        def on_progress(done: int, total: int) -> None:
            self.on_step(StepInfo(stage="invert", step=done, total=total))

        made = invert(denoiser.eps, mean, self.schedule, n, on_progress)
        if not torch.isfinite(made).all():
            raise ModelError(self.nan_text("inverting the picture"), code="not-finite")
        return bytes(save({"trail": made.cpu().contiguous()}))

    def _generated_latents(self) -> torch.Tensor:
        """The sampler's own latents at the timesteps between the picture and the drag's start."""
        generation = self.request.generation
        assert generation is not None
        with self.report.timed("generate"):
            path, hit = cached_path(
                self.runtime, self.cache, self.request.prompt, generation, self.model, self.on_step
            )
        self._hit("generate", hit)
        n = max(1, min(generation.steps, round(self.request.inversion.strength * generation.steps)))
        levels = [path.at(self.schedule, t) for t in reversed(self.schedule.tail(n))]
        return torch.stack([path.final, *levels]).to(self.runtime.device)

    # --- the drag -------------------------------------------------------------------------------------

    def problem(
        self,
        *,
        moved: MovedPicture | None = None,
        drafting: bool = False,
        reference: bool = True,
        fresh: bool = False,
    ) -> DragProblem:
        """The numerical problem, with the LoRA active; "run on" continues a kept state.

        Args:
            moved: the moved picture, where it is known already.
            drafting: the latents are plainly noised, not inverted, and the original is not needed.
            reference: denoise the original, too, unless it is kept.
            fresh: do not continue an earlier run of the same drag.
        """
        request, run, image = self.request, self.runtime, self.image
        self.text()  # notes what did not fit
        negative = request.generation.negative_prompt if request.generation else ""
        handles, targets = image.handles_and_targets()
        mask = image.latent_mask()
        if mask is None and request.drag.parity and request.mask is not None:
            height, width = (side // run.factor for side in image.size[::-1])
            mask = torch.zeros(1, 1, height, width)  # the method decides what an empty mask means
        # FreeU's Fourier transforms cannot be recorded
        recordable = request.generation is None or request.generation.freeu is None
        made = DragProblem(
            unet=run.unet,
            schedule=self.schedule,
            prompt=run.prompt(request.prompt, image.size),
            inversion_latents=self.noised() if drafting else self.inversion_latents(),
            handles=handles,
            targets=targets,
            feature_grid=image.feature_grid,
            config=request.drag,
            mask=mask,
            negative=run.prompt(negative, image.size) if self.guidance > 1 else None,
            guidance=self.guidance,
            graphs=run.graphs if recordable else None,
            pixels=self._pixels(moved) if SPECS[request.drag.method].moves_pixels else None,
        )
        if reference and not drafting:
            made = dataclasses.replace(made, reference=self.reference(made))
        return made if fresh else self._continued(made)

    def _pixels(self, moved: MovedPicture | None) -> Pixels | None:
        """The picture moved along the arrows, for methods that start from it."""
        moved = moved or moved_of(self.image)
        if moved is None:
            return None
        return Pixels(
            picture=self.image.pixels().to(self.runtime.device),
            moved=self.image.pixels(moved.working).to(self.runtime.device),
            doubt=torch.from_numpy(moved.doubt),
            encode=lambda picture: self.runtime.encode(picture)[0],
        )

    def _state_key(self) -> str:
        """Key of an optimiser's state: the drag but for its number of steps."""
        request = self.request
        config = keys.drag_parts(request.drag)
        for name in ("steps", "composite", "feather"):  # none of them changes a step that was made
            config.pop(name)
        mask = request.mask.id if request.mask else None
        pairs = [p.to_json() for p in request.pairs]
        return keys.key(
            "state", keys.ALGO_DRAG, self.latent, mask, pairs, config, self.runtime.dtype_name,
            *keys.method_version(request.drag.method),
        )  # fmt: skip

    def _continued(self, problem: DragProblem) -> DragProblem:
        """The problem, continued from an earlier run of the same drag if there was one."""
        raw, steps = self.cache.get(self._state_key()), problem.config.steps
        state = DragState.from_tensors(load(raw)) if raw is not None else None
        if state is None or not 0 < state.updates <= steps:
            return problem
        self.report.cached.append("drag")
        left = dataclasses.replace(problem.config, steps=steps - state.updates)
        return dataclasses.replace(problem, resume=state, config=left)

    def keep_state(self, problem: DragProblem, outcome: DragOutcome) -> None:
        """Keep where a drag stands, for "run on".

        Raises:
            ModelError: when the drag came to NaN.
        """
        if not bool(torch.isfinite(outcome.latent).all()):
            raise ModelError(
                self.nan_text("denoising the edited picture", "a lower learning rate"),
                code="not-finite",
            )
        kept = problem.resume.updates if problem.resume is not None else -1
        if outcome.state is not None and outcome.state.updates > kept:
            raw = bytes(save(outcome.state.to_tensors()))
            self.cache.put(self._state_key(), raw, kind="state", label=self.request.image.name)

    def last_finite(self, problem: DragProblem, exc: NotFinite, on_step: OnStep) -> DragOutcome:
        """The picture of the last latent that was finite, for the record of a drag that failed.

        Raises:
            NotFinite: the given one, when not even that can be shown.
        """
        if problem.reference is None or not bool(torch.isfinite(exc.latent).all()):
            raise exc
        rest = problem.timesteps[problem.timesteps.index(exc.t) :]
        with torch.no_grad():
            clean = denoise(
                problem, problem.denoiser(), problem.reference, exc.latent, rest, on_step
            )
        if not bool(torch.isfinite(clean).all()):
            raise exc
        away = (problem.targets - problem.handles).norm(dim=1)
        return DragOutcome(
            latent=clean, trajectory=(problem.handles,), distances=tuple(away.tolist()), losses=(),
            iterations=0, stop=StopReason.STEP_LIMIT,
        )  # fmt: skip

    # --- the original's pass --------------------------------------------------------------------------

    def reference(self, problem: DragProblem) -> Reference:
        """The original denoised once: from memory, the cache, or computed now.

        Raises:
            ModelError: when the pass came to NaN.
            Cancelled: passed through from `on_step`.
        """
        config = problem.config
        name = keys.key(
            "reference", keys.ALGO_DRAG, self.latent, Reference.facts(config),
            self.runtime.dtype_name, self.guidance,
        )  # fmt: skip
        kept = self.runtime.kept(name)
        if isinstance(kept, Reference):
            self._hit("reference", True)
            return kept
        with self.report.timed("reference"):
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
            raise ModelError(self.nan_text("denoising the original"), code="not-finite")
        tensors = {k: v.detach().cpu().contiguous() for k, v in made.to_tensors().items()}
        if sum(t.numel() * t.element_size() for t in tensors.values()) <= REFERENCE_ON_DISK:
            self.cache.put(
                name, bytes(save(tensors)), kind="reference", label=self.request.image.name
            )
        return made

    # --- small things ---------------------------------------------------------------------------------

    def _hit(self, stage: str, hit: bool) -> None:
        if hit:
            self.report.cached.append(stage)
            self.on_step(StepInfo(stage=stage, step=1, total=1, cached=True))

    def nan_text(self, doing: str, more: str = "") -> str:
        """The sentence about numbers that became NaN, with the advice that may help."""
        wish = f" or {more}" if more else ""
        return (
            f"The numbers became NaN while {doing} (precision {self.runtime.dtype_name}); try the "
            f"precision fp32{wish}."
        )
