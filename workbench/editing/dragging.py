"""From a prepared picture to a dragged latent, going on where an earlier run of the same drag stopped."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load, save

from workbench.core import keys
from workbench.core.config import SPECS
from workbench.core.errors import ModelError
from workbench.core.record import Stop
from workbench.core.request import EditRequest
from workbench.drag.denoise import denoise
from workbench.drag.methods import run
from workbench.drag.optimizer import NotFinite
from workbench.drag.problem import DragOutcome, DragProblem, DragState, Pixels
from workbench.editing.own_pixels import MovedPicture, moved_of
from workbench.editing.prepare import Stages
from workbench.editing.previews import Film

if TYPE_CHECKING:
    from workbench.storage.cache import Cache


def problem_of(stages: Stages, moved: MovedPicture | None = None) -> DragProblem:
    """The numerical problem of a request: LoRA active, latents inverted.

    `moved`: the moved picture where it is known already. A draft's latents are not inverted, but plainly
    noised.
    """
    run, piece, request = stages.runtime, stages.piece, stages.request
    spec = SPECS[request.drag.method]
    drafting = spec.keeps_pixels and not request.drag.refine
    text = stages.text()
    negative = request.generation.negative_prompt if request.generation else ""
    uncond = run.text(negative) if stages.guidance > 1 else None
    handles, targets = piece.handles_and_targets()
    mask = piece.latent_mask()
    if mask is None and request.drag.parity and request.mask is not None:
        height, width = (side // run.factor for side in piece.size[::-1])
        mask = torch.zeros(1, 1, height, width)  # what an empty mask means is the method's affair
    return DragProblem(
        unet=run.unet,
        schedule=stages.schedule,
        text=text.embedding,
        trail=stages.noised() if drafting else stages.trail(),
        handles=handles,
        targets=targets,
        lattice=piece.lattice,
        config=request.drag,
        mask=mask,
        uncond=uncond.embedding if uncond else None,
        guidance=stages.guidance,
        added=run.added(text, piece.size),
        uncond_added=run.added(uncond, piece.size) if uncond else None,
        graphs=None if _freeu(request) else run.graphs,
        pixels=_pixels(stages, moved) if spec.moves_pixels else None,
    )


def _freeu(request: EditRequest) -> bool:
    """Whether FreeU is on, whose Fourier transforms cannot be recorded."""
    return request.generation is not None and request.generation.freeu is not None


def _pixels(stages: Stages, moved: MovedPicture | None) -> Pixels | None:
    piece, run = stages.piece, stages.runtime
    moved = moved or moved_of(piece)
    if moved is None:
        return None
    return Pixels(
        picture=piece.pixels().to(run.device),
        moved=piece.pixels(moved.working).to(run.device),
        doubt=torch.from_numpy(moved.doubt),
        encode=lambda picture: run.encode(picture)[0],
    )


def state_key(stages: Stages) -> str:
    """Key of an optimiser's state: the drag but for its number of steps."""
    request = stages.request
    config = keys.drag_parts(request.drag)
    for name in ("steps", "composite", "feather"):  # none of them changes a step that was made
        config.pop(name)
    mask = request.mask.id if request.mask else None
    pairs = [p.to_json() for p in request.pairs]
    return keys.key(
        "state", keys.ALGO_DRAG, stages.latent, mask, pairs, config, stages.runtime.dtype_name,
        *keys.method_version(request.drag.method),
    )  # fmt: skip


def drag(
    stages: Stages, problem: DragProblem, film: Film, cache: Cache, fresh: bool
) -> tuple[DragOutcome, ModelError | None]:
    """Run the method; "run on" is the same request with more steps, which continues the kept state."""
    name, config = state_key(stages), problem.config
    state = None if fresh else _kept_state(cache, name, config.steps)
    if state is not None:
        left = dataclasses.replace(config, steps=config.steps - state.updates)
        problem = dataclasses.replace(problem, resume=state, config=left)
        stages.account.cached.append("drag")
    failure: ModelError | None = None
    with stages.account.timed("drag"):
        try:
            outcome = run(problem, film.drag_step)
        except NotFinite as exc:
            failure, outcome = exc, _last_finite(problem, exc, film)
        denoising = film.denoising()
    seconds = stages.account.seconds
    seconds["drag"] = round(seconds["drag"] - denoising, 4)
    seconds["denoise"] = round(denoising, 4)
    if failure is None and not math.isfinite(float(outcome.latent.sum())):
        raise ModelError(
            f"The edited latent became NaN (precision {stages.runtime.dtype_name}); use a lower "
            "learning rate or the precision fp32."
        )
    kept = state.updates if state is not None else -1
    if failure is None and outcome.state is not None and outcome.state.updates > kept:
        raw = bytes(save(outcome.state.to_tensors()))
        cache.put(name, raw, kind="state", label=stages.request.image.name)
    return outcome, failure


def _kept_state(cache: Cache, name: str, steps: int) -> DragState | None:
    raw = cache.get(name)
    if raw is None:
        return None
    state = DragState.from_tensors(load(raw))
    return state if 0 < state.updates <= steps else None


def _last_finite(problem: DragProblem, exc: NotFinite, film: Film) -> DragOutcome:
    """The picture of the last latent that was finite, for the record of a drag that failed."""
    if problem.reference is None or not bool(torch.isfinite(exc.latent).all()):
        raise exc
    with torch.no_grad():
        rest = problem.timesteps  # GoodDrag's rounds go down with the noise, the others stay
        if exc.t is not None:
            rest = rest[rest.index(exc.t) :]
        clean = denoise(
            problem, problem.denoiser(), problem.reference, exc.latent, rest, film.drag_step
        )
    if not bool(torch.isfinite(clean).all()):
        raise exc
    away = (problem.targets - problem.handles).norm(dim=1)
    return DragOutcome(
        latent=clean, trajectory=(problem.handles,), distances=tuple(away.tolist()), losses=(),
        iterations=0, stop=Stop.STEP_LIMIT,
    )  # fmt: skip
