"""Prepare a picture once, edit it many times: the one path for pages, command line and benchmarks.

    prepare(task, ...)      LoRA + inversion + a look at how well the model knows the picture
    run_edit(request, ...)  the same where needed, then the drag -> EditRecord in the history

The order of an edit: begin (a pending file) -> LoRA -> inverted latents -> the original's pass ->
the drag -> decode -> put back -> pictures into the store -> the record, which is the commit.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from workbench.canvas.sheets import strip
from workbench.core.config import SPECS, LoraRef
from workbench.core.errors import Cancelled, ModelError, StoreError
from workbench.core.record import (
    EditRecord,
    EditResult,
    JobState,
    OnStep,
    StepInfo,
    ignore_steps,
)
from workbench.core.request import EditRequest, PointPair, TrainTask
from workbench.diffusion.lora import merged
from workbench.drag.problem import DragOutcome
from workbench.drag.warp import moved_clean
from workbench.editing.dragging import drag, problem_of
from workbench.editing.oom_retry import (
    environment,
    now,
    sentence,
    with_fingerprint,
    with_memory,
)
from workbench.editing.own_pixels import delivered, found_in, look, moved_of
from workbench.editing.prepare import Account, Stages
from workbench.editing.previews import Film
from workbench.editing.text_to_image import to_rgb
from workbench.editing.working_image import Workpiece
from workbench.imaging import decode
from workbench.imaging.coords import Frame, shrink_mask

if TYPE_CHECKING:
    from workbench.diffusion.model import Runtime
    from workbench.storage.cache import Cache
    from workbench.storage.history import Store

log = logging.getLogger(__name__)

_STRIP = 1024  # longest side of a picture in the strip, px


def run_edit(
    request: EditRequest,
    *,
    runtime: Runtime,
    cache: Cache,
    store: Store,
    on_step: OnStep = ignore_steps,
    owner: str = "",
    fresh: bool = False,
    low_memory: bool = False,
    previews: bool = True,
) -> EditRecord:
    """Carry out an edit and record it; whatever happens, the history says how it ended.

    Args:
        request: what to do; its picture and mask are in the store.
        runtime: the loaded model that the request names.
        cache: of what can be computed again.
        store: the history.
        on_step: progress; raises `Cancelled` to stop.
        owner: whose edit it is.
        fresh: drag from the beginning even where an earlier run of the same drag could be continued.
        low_memory: start in the low-memory mode.
        previews: show the picture while it is dragged, which takes a tenth of the time at most.

    Raises:
        Cancelled: after a "cancelled" record was written.
        ModelError, OutOfMemory, BadInput: after a "failed" record was written.
        StoreError: when the history cannot be read or written.
    """
    request = with_fingerprint(request, runtime)
    edit = store.begin(request, owner=owner, environment=environment(runtime))
    started = now()

    def close(status: JobState, result: EditResult | None, error: str | None) -> EditRecord:
        record = EditRecord(
            id=edit, request=request, status=status, result=result, error=error,
            started=started, finished=now(), environment=environment(runtime),
        )  # fmt: skip
        store.finish(record)
        return record

    try:
        result, failure = with_memory(
            lambda sparing: _edit(
                request, runtime, cache, store, on_step, fresh, sparing, previews
            ),
            runtime,
            request,
            low_memory,
        )
    except BaseException as exc:
        stopped = isinstance(exc, (Cancelled, KeyboardInterrupt))
        status = JobState.CANCELLED if stopped else JobState.FAILED
        try:
            close(status, None, None if stopped else sentence(exc))
        except StoreError as second:
            log.error("edit %s ended as %s, which could not be recorded: %s", edit, status, second)
        raise
    if failure is not None:
        close(JobState.FAILED, result, str(failure))
        raise failure
    return close(JobState.DONE, result, None)


def _edit(
    request: EditRequest,
    runtime: Runtime,
    cache: Cache,
    store: Store,
    on_step: OnStep,
    fresh: bool,
    sparing: bool,
    previews: bool,
) -> tuple[EditResult, ModelError | None]:
    """The edit itself: the result, and why it counts as failed although there is a picture."""
    piece = Workpiece.of(request, store, runtime.native_size)
    with runtime.job(), runtime.low_memory(sparing):
        stages = Stages(request, piece, runtime=runtime, cache=cache, store=store, on_step=on_step)
        account = stages.account
        account.note(piece.notice)
        if sparing:
            account.note("The low-memory mode was used: slower, and a few levels of rounding.")
        film = Film(piece, runtime, on_step, previews=previews)
        own = SPECS[request.drag.method].keeps_pixels
        drafting = own and not request.drag.refine
        with stages.styled():
            known = look(stages) if own else None
            moved = moved_of(piece, known.trusted(piece)) if known is not None else None
            lora, weight = (None, 1.0) if drafting else stages.lora()
            with merged(runtime.unet, lora, weight):
                problem = problem_of(stages, moved)
                if not drafting:
                    problem = dataclasses.replace(problem, reference=stages.reference(problem))
                outcome, failure = drag(stages, problem, film, cache, fresh)
        with account.timed("decode"):
            on_step(StepInfo(stage="decode", step=0, total=1))
            pixels = runtime.decode(outcome.latent)
            if not bool(torch.isfinite(pixels).all()):
                raise ModelError(
                    "The decoded picture holds NaN (precision "
                    f"{runtime.dtype_name}); try the precision fp32."
                )
            if request.drag.parity and pixels.shape[-2:] != piece.size[::-1]:
                pixels = functional.interpolate(pixels, size=piece.size[::-1], mode="bilinear")
            edited, unedited = to_rgb(pixels), None
            choice: dict[str, Any] = {}
            if known is not None and moved is not None:
                again = None if drafting else to_rgb(runtime.decode(moved_clean(problem)))
                edited, choice = delivered(moved, edited, again, known.knows(piece))
            elif piece.scaled and not request.drag.parity and problem.reference is not None:
                unedited = to_rgb(runtime.decode(problem.reference.latents[-1]))
            on_step(StepInfo(stage="decode", step=1, total=1))
    on_step(StepInfo(stage="save", step=0, total=1))
    with account.timed("save"):
        back = piece.put_back(edited, unedited)
    result = _save(request, piece, store, account, outcome, back, film)
    knows = known.knows(piece) if known is not None else {}
    result = dataclasses.replace(result, found=found_in(piece, back), choice=choice, knows=knows)
    on_step(StepInfo(stage="save", step=1, total=1))
    return result, failure


# --- the result -----------------------------------------------------------------------------------------


def _save(
    request: EditRequest,
    piece: Workpiece,
    store: Store,
    account: Account,
    outcome: DragOutcome,
    result: NDArray[np.uint8],
    film: Film,
) -> EditResult:
    with account.timed("save"):
        outside = piece.change_outside(result)
        image = store.put_image(result, request.image.name)
        shown = _strip(piece, result)
        strip_id = store.put_blob(decode.encode_png(shown), "png")
        frames = tuple(store.put_blob(raw, "jpg") for raw in film.frames)
    return EditResult(
        image=image.id,
        trajectory=tuple(piece.points(row) for row in outcome.trajectory),
        distances=piece.distances(outcome.distances),
        change_outside_mask=outside,
        iterations=outcome.iterations,
        losses=tuple(float(v) for v in outcome.losses if math.isfinite(v)),
        stop=outcome.stop.name,
        seconds=dict(account.seconds),
        cached=tuple(account.cached),
        notices=tuple(account.notices),
        strip=strip_id,
        frames=frames,
    )


def _strip(piece: Workpiece, result: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Source with mask and arrows beside the result, not larger than a screen."""
    height, width = result.shape[:2]
    scale = min(1.0, _STRIP / max(width, height))
    if scale == 1.0:
        return strip(piece.source, piece.mask, piece.request.pairs, result)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    frame = Frame.whole(width, height, *size)
    pairs: list[PointPair] = [frame.forward_pair(p) for p in piece.request.pairs]
    mask = shrink_mask(piece.mask, size[::-1]) if piece.mask is not None else None
    return strip(decode.resize(piece.source, size), mask, pairs, decode.resize(result, size))


# --- preparing ------------------------------------------------------------------------------------------


def prepare(
    task: TrainTask,
    *,
    runtime: Runtime,
    cache: Cache,
    store: Store,
    on_step: OnStep = ignore_steps,
    low_memory: bool = False,
) -> dict[str, Any]:
    """Train a picture's LoRA, invert the picture, and look how well the model knows it.

    Returns plain JSON data: `lora` (cache key or None), `lora_file` (a reference, when a LoRA was
    continued), `losses`, `reconstruction` (picture id: inverted and denoised again), `psnr` (dB, to
    the working picture), `size`, `crop`, `seconds`, `cached`, `notices`.

    Raises:
        Cancelled, ModelError, OutOfMemory, BadInput, StoreError: as `run_edit`.
    """
    request = with_fingerprint(task.request, runtime)
    return with_memory(
        lambda sparing: _prepare(task, request, runtime, cache, store, on_step, sparing),
        runtime,
        request,
        low_memory,
    )


def _prepare(
    task: TrainTask,
    request: EditRequest,
    runtime: Runtime,
    cache: Cache,
    store: Store,
    on_step: OnStep,
    sparing: bool,
) -> dict[str, Any]:
    piece = Workpiece.of(request, store, runtime.native_size)
    made: LoraRef | None = None
    with runtime.job(), runtime.low_memory(sparing):
        stages = Stages(request, piece, runtime=runtime, cache=cache, store=store, on_step=on_step)
        with stages.styled():
            if task.start is not None:
                raw = stages.trained(task.start)
                made = LoraRef(id=store.put_blob(raw, "safetensors"), name=task.name)
                request = dataclasses.replace(request, lora_file=made)
                losses = stages.account.lora_losses
                stages = Stages(
                    request, piece, runtime=runtime, cache=cache, store=store, on_step=on_step
                )
                stages.account.lora_losses = losses
            lora, weight = stages.lora()
            with merged(runtime.unet, lora, weight):
                problem = problem_of(stages)
                reference = stages.reference(problem) if task.preview else None
        picture, psnr = None, None
        if reference is not None:
            with stages.account.timed("decode"):
                rgb = to_rgb(runtime.decode(reference.latents[-1]))
            picture, psnr = store.put_image(rgb, "reconstruction").id, _psnr(rgb, piece.rgb)
    account = stages.account
    account.note(piece.notice)
    return {
        "request": request.to_json(),
        "lora": stages.adapter,
        "lora_file": dataclasses.asdict(made) if made else None,
        "losses": list(account.lora_losses),
        "reconstruction": picture,
        "psnr": psnr,
        "size": list(piece.size),
        "crop": [piece.crop.x0, piece.crop.y0, piece.crop.width, piece.crop.height],
        "seconds": dict(account.seconds),
        "cached": list(account.cached),
        "notices": list(account.notices),
    }


def _psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB; 99 for equal pictures."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 99.0 if error == 0 else round(min(99.0, 10 * math.log10(255**2 / error)), 2)
