"""Carry out an edit, or prepare a picture for its edits: for pages, command line and benchmarks.

    prepare(task, engine, ...)      LoRA + inversion + a look at how well the model knows the picture
    run_edit(request, engine, ...)  the same where needed, then the drag -> EditRecord in the history

The order of an edit: begin (a pending file) -> LoRA -> inverted latents -> the original's pass ->
the drag -> decode -> put back -> pictures into the store -> the record, which is the commit.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from workbench.canvas.sheets import strip
from workbench.core.config import SPECS, LoraRef
from workbench.core.errors import Cancelled, ModelError, StoreError
from workbench.core.record import EditRecord, EditResult, JobState, OnStep, StepInfo, ignore_steps
from workbench.core.request import EditRequest, PointPair, TrainTask
from workbench.diffusion.lora import merged
from workbench.drag.latents import NotFinite, moved_clean
from workbench.drag.methods import run
from workbench.drag.problem import DragOutcome
from workbench.editing.memory import attempts, environment, now, sentence, with_fingerprint
from workbench.editing.own_pixels import Candidates, found_in, look, moved_of
from workbench.editing.prepare import Engine, JobReport, PreparedEdit
from workbench.editing.text_to_image import to_rgb
from workbench.editing.working_image import PreviewRecorder, WorkingImage
from workbench.imaging import decode
from workbench.imaging.coords import Frame, shrink_mask
from workbench.storage.history import Store

U8 = NDArray[np.uint8]
log = logging.getLogger(__name__)

_STRIP = 1024  # longest side of a picture in the strip, px


def run_edit(
    request: EditRequest,
    engine: Engine,
    *,
    on_step: OnStep = ignore_steps,
    owner: str = "",
    fresh: bool = False,
    low_memory: bool = False,
    previews: bool = True,
) -> EditRecord:
    """Carry out an edit and record it; whatever happens, the history says how it ended.

    Args:
        request: what to do; its picture and mask are in the store.
        engine: the loaded model that the request names, cache and history.
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
    runtime, store = engine.runtime, engine.store
    request = with_fingerprint(request, runtime)
    made_with = environment(runtime)
    record = EditRecord(
        id=store.begin(request, owner=owner, environment=made_with),
        request=request, status=JobState.RUNNING, started=now(), environment=made_with,
    )  # fmt: skip
    close = functools.partial(_close, store, record)
    try:
        for attempt in attempts(runtime, request, low_memory):
            with attempt as sparing:
                result, failure = _edit(request, engine, on_step, sparing, fresh, previews)
    except BaseException as exc:
        stopped = isinstance(exc, (Cancelled, KeyboardInterrupt))
        status = JobState.CANCELLED if stopped else JobState.FAILED
        try:
            close(status, error=None if stopped else sentence(exc))
        except StoreError as second:
            log.error("edit %s: its end (%s) could not be recorded: %s", record.id, status, second)
        raise
    if failure is not None:
        close(JobState.FAILED, result, str(failure))
        raise failure
    return close(JobState.DONE, result)


def _close(
    store: Store,
    record: EditRecord,
    status: JobState,
    result: EditResult | None = None,
    error: str | None = None,
) -> EditRecord:
    """Write the final record of an edit."""
    done = dataclasses.replace(record, status=status, result=result, error=error, finished=now())
    store.finish(done)
    return done


def _edit(
    request: EditRequest,
    engine: Engine,
    on_step: OnStep,
    sparing: bool,
    fresh: bool,
    previews: bool,
) -> tuple[EditResult, ModelError | None]:
    """The edit itself: the result, and why it counts as failed although there is a picture."""
    runtime = engine.runtime
    image = WorkingImage.of(request, engine.store, runtime.native_size)
    with runtime.job(), runtime.low_memory(sparing):
        edit = PreparedEdit(request, image, engine, on_step)
        report = edit.report
        report.note(image.notice)
        if sparing:
            report.note("The low-memory mode was used: slower, and a few levels of rounding.")
        recorder = PreviewRecorder(image, runtime, on_step, previews=previews)
        failure: ModelError | None = None
        own = SPECS[request.drag.method].keeps_pixels
        drafting = request.drag.drafts
        with edit.with_style_lora():
            known = look(edit) if own else None
            moved = None
            if known is not None:
                free = image.mask is None  # a mask overrules the features: docs/algorithm.md 1.7
                moved = moved_of(image, known.trusted(image.rgb, None) if free else None)
            lora, weight = (None, 1.0) if drafting else edit.lora()
            with merged(runtime.unet, lora, weight):
                problem = edit.problem(moved=moved, drafting=drafting, fresh=fresh)
                with report.timed("drag"):
                    try:
                        outcome = run(problem, recorder.on_step)
                    except NotFinite as exc:
                        failure = exc
                        outcome = edit.last_finite(problem, exc, recorder.on_step)
        report.split("drag", "denoise", recorder.denoising())
        if failure is None:
            edit.keep_state(problem, outcome)
        with report.timed("decode"):
            on_step(StepInfo(stage="decode", step=0, total=1))
            pixels = runtime.decode(outcome.latent)
            if not bool(torch.isfinite(pixels).all()):
                raise ModelError(
                    "The decoded picture holds NaN (precision "
                    f"{runtime.dtype_name}); try the precision fp32.",
                    code="not-finite",
                )
            if request.drag.parity and pixels.shape[-2:] != image.size[::-1]:
                pixels = functional.interpolate(pixels, size=image.size[::-1], mode="bilinear")
            edited, unedited = to_rgb(pixels), None
            choice: dict[str, Any] = {}
            knows = known.knows(image.rgb, image.working_mask) if known is not None else {}
            if known is not None and moved is not None:
                again = None if drafting else to_rgb(runtime.decode(moved_clean(problem)))
                both = Candidates.of(moved, edited, again)
                edited, choice = both.judged(knows)
                if engine.on_candidates is not None:
                    engine.on_candidates(both.whole(image))
            elif image.scaled and not request.drag.parity and problem.reference is not None:
                unedited = to_rgb(runtime.decode(problem.reference.latents[-1]))
            on_step(StepInfo(stage="decode", step=1, total=1))
    on_step(StepInfo(stage="save", step=0, total=1))
    with report.timed("save"):
        whole = image.put_back(edited, unedited)
        result = _save(image, engine.store, report, outcome, whole, recorder.frames)
    result = dataclasses.replace(
        result,
        seconds=dict(report.seconds),
        found=found_in(image, whole),
        choice=choice,
        knows=knows,
    )
    on_step(StepInfo(stage="save", step=1, total=1))
    return result, failure


def _save(
    image: WorkingImage,
    store: Store,
    report: JobReport,
    outcome: DragOutcome,
    whole: U8,
    frames: list[bytes],
) -> EditResult:
    """Put the pictures into the store; the result that names them."""
    shown = store.put_blob(decode.encode_png(_strip(image, whole)), "png")
    return EditResult(
        image=store.put_image(whole, image.request.image.name).id,
        trajectory=tuple(image.points(row.cpu().numpy()) for row in outcome.trajectory),
        distances=image.distances(outcome.distances),
        change_outside_mask=image.change_outside(whole),
        iterations=outcome.iterations,
        losses=tuple(float(v) for v in outcome.losses if math.isfinite(v)),
        stop=outcome.stop.name,
        cached=tuple(report.cached),
        notices=tuple(report.notices),
        strip=shown,
        frames=tuple(store.put_blob(raw, "jpg") for raw in frames),
    )


def _strip(image: WorkingImage, result: U8) -> U8:
    """Source with mask and arrows beside the result, not larger than a screen."""
    height, width = result.shape[:2]
    scale = min(1.0, _STRIP / max(width, height))
    if scale == 1.0:
        return strip(image.source, image.mask, image.request.pairs, result)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    frame = Frame.whole(width, height, *size)
    pairs: list[PointPair] = [frame.forward_pair(p) for p in image.request.pairs]
    mask = shrink_mask(image.mask, size[::-1]) if image.mask is not None else None
    return strip(decode.resize(image.source, size), mask, pairs, decode.resize(result, size))


# --- preparing ------------------------------------------------------------------------------------------


def prepare(
    task: TrainTask,
    engine: Engine,
    *,
    on_step: OnStep = ignore_steps,
    low_memory: bool = False,
) -> dict[str, Any]:
    """Train a picture's LoRA, invert the picture, and look how well the model knows it.

    Returns plain JSON data: `lora` (cache key or None), `lora_file` (a reference, when a LoRA was
    continued), `losses`, `reconstruction` (picture id: inverted and denoised again), `psnr` (dB, to
    the working picture), `knows` (how well the model knows the picture where it may change: `level`,
    `psnr`, `noise`), `size`, `crop`, `seconds`, `cached`, `notices`.

    Raises:
        Cancelled, ModelError, OutOfMemory, BadInput, StoreError: as `run_edit`.
    """
    request = with_fingerprint(task.request, engine.runtime)
    for attempt in attempts(engine.runtime, request, low_memory):
        with attempt as sparing:
            made = _prepare(task, request, engine, on_step, sparing)
    return made


def _prepare(
    task: TrainTask, request: EditRequest, engine: Engine, on_step: OnStep, sparing: bool
) -> dict[str, Any]:
    runtime, store = engine.runtime, engine.store
    image = WorkingImage.of(request, store, runtime.native_size)
    made: LoraRef | None = None
    with runtime.job(), runtime.low_memory(sparing):
        edit = PreparedEdit(request, image, engine, on_step)
        with edit.with_style_lora():
            knows = look(edit).knows(image.rgb, image.working_mask)
            if task.start is not None:
                raw = edit.trained(task.start)
                made = LoraRef(id=store.put_blob(raw, "safetensors"), name=task.name)
                request = dataclasses.replace(request, lora_file=made)
                losses = edit.report.lora_losses
                edit = PreparedEdit(request, image, engine, on_step)
                edit.report.lora_losses = losses
            lora, weight = edit.lora()
            with merged(runtime.unet, lora, weight):
                problem = edit.problem(reference=task.preview, fresh=True)
        picture, psnr = None, None
        if problem.reference is not None:
            with edit.report.timed("decode"):
                rgb = to_rgb(runtime.decode(problem.reference.latents[-1]))
            picture, psnr = store.put_image(rgb, "reconstruction").id, _psnr(rgb, image.rgb)
    report = edit.report
    report.note(image.notice)
    return {
        "request": request.to_json(),
        "lora": edit.adapter,
        "lora_file": dataclasses.asdict(made) if made else None,
        "losses": list(report.lora_losses),
        "reconstruction": picture,
        "psnr": psnr,
        "knows": knows,
        "size": list(image.size),
        "crop": [image.crop.x0, image.crop.y0, image.crop.width, image.crop.height],
        "seconds": dict(report.seconds),
        "cached": list(report.cached),
        "notices": list(report.notices),
    }


def _psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB; 99 for equal pictures."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 99.0 if error == 0 else round(min(99.0, 10 * math.log10(255**2 / error)), 2)
