"""Prepare a picture once, edit it many times: the one path for pages, command line and benchmarks.

    prepare(task, ...)      LoRA + inversion + a look at how well the model knows the picture
    run_edit(request, ...)  the same where needed, then the drag -> EditRecord in the history

The order of an edit: begin (a pending file) -> LoRA -> inverted latents -> the original's pass ->
the drag -> decode -> put back -> pictures into the store -> the record, which is the commit.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import math
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch.nn import functional

from workbench import __version__, device, images, keys
from workbench.errors import Cancelled, ModelError, OutOfMemory, StoreError, WorkbenchError
from workbench.filmstrip import Film
from workbench.generate import to_rgb
from workbench.geometry import Frame, shrink_mask
from workbench.methods import DragOutcome, DragProblem, DragState, run
from workbench.methods.finish import denoise
from workbench.numerics.lora import merged
from workbench.numerics.optimiser import NotFinite
from workbench.preview import strip
from workbench.records import (
    EditRecord,
    EditResult,
    JobState,
    OnStep,
    StepInfo,
    Stop,
    ignore_steps,
)
from workbench.sources import LoraRef
from workbench.stages import Account, Stages
from workbench.tasks import TrainTask
from workbench.types import EditRequest, PointPair
from workbench.workpiece import Workpiece

if TYPE_CHECKING:
    from workbench.cache import Cache
    from workbench.runtime import Runtime
    from workbench.store import Store

log = logging.getLogger(__name__)
T = TypeVar("T")

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
    request = _with_fingerprint(request, runtime)
    edit = store.begin(request, owner=owner, environment=environment(runtime))
    started = _now()

    def close(status: JobState, result: EditResult | None, error: str | None) -> EditRecord:
        record = EditRecord(
            id=edit, request=request, status=status, result=result, error=error,
            started=started, finished=_now(), environment=environment(runtime),
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
        with stages.styled():
            lora, weight = stages.lora()
            with merged(runtime.unet, lora, weight):
                problem = problem_of(stages)
                problem = dataclasses.replace(problem, reference=stages.reference(problem))
                outcome, failure = _drag(stages, problem, film, cache, fresh)
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
            edited = to_rgb(pixels)
            on_step(StepInfo(stage="decode", step=1, total=1))
    on_step(StepInfo(stage="save", step=0, total=1))
    result = _save(request, piece, store, account, outcome, edited, film)
    on_step(StepInfo(stage="save", step=1, total=1))
    return result, failure


def problem_of(stages: Stages) -> DragProblem:
    """The numerical problem of a request: LoRA active, latents inverted."""
    run, piece, request = stages.runtime, stages.piece, stages.request
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
        trail=stages.trail(),
        handles=handles,
        targets=targets,
        lattice=piece.lattice,
        config=request.drag,
        mask=mask,
        uncond=uncond.embedding if uncond else None,
        guidance=stages.guidance,
        added=run.added(text, piece.size),
        uncond_added=run.added(uncond, piece.size) if uncond else None,
    )


# --- the drag, continued where an earlier run of it stopped ---------------------------------------------


def state_key(stages: Stages) -> str:
    """Key of an optimiser's state: the drag but for its number of steps."""
    request = stages.request
    config = dataclasses.asdict(request.drag)
    for name in ("steps", "composite", "feather"):  # none of them changes a step that was made
        config.pop(name)
    mask = request.mask.id if request.mask else None
    pairs = [p.to_json() for p in request.pairs]
    return keys.key(
        "state", keys.ALGO_DRAG, stages.latent, mask, pairs, config, stages.runtime.dtype_name
    )


def _drag(
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
        clean = denoise(
            problem, problem.denoiser(), problem.reference, exc.latent, problem.timesteps,
            film.drag_step,
        )  # fmt: skip
    if not bool(torch.isfinite(clean).all()):
        raise exc
    away = (problem.targets - problem.handles).norm(dim=1)
    return DragOutcome(
        latent=clean, trajectory=(problem.handles,), distances=tuple(away.tolist()), losses=(),
        iterations=0, stop=Stop.STEP_LIMIT,
    )  # fmt: skip


# --- the result -----------------------------------------------------------------------------------------


def _save(
    request: EditRequest,
    piece: Workpiece,
    store: Store,
    account: Account,
    outcome: DragOutcome,
    edited: NDArray[np.uint8],
    film: Film,
) -> EditResult:
    with account.timed("save"):
        result = piece.put_back(edited)
        outside = piece.change_outside(result)
        image = store.put_image(result, request.image.name)
        shown = _strip(piece, result)
        strip_id = store.put_blob(images.encode_png(shown), "png")
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
    return strip(images.resize(piece.source, size), mask, pairs, images.resize(result, size))


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
    request = _with_fingerprint(task.request, runtime)
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


# --- memory, names, times -------------------------------------------------------------------------------


def with_memory(
    work: Callable[[bool], T], runtime: Runtime, request: EditRequest, low_memory: bool
) -> T:
    """Do the work; when memory runs out, free what is kept and try once more in low-memory mode.

    Raises:
        OutOfMemory: when that was not enough either; names a smaller setting.
    """
    try:
        return work(low_memory)
    except Exception as exc:
        if not device.is_out_of_memory(exc):
            raise
        log.warning("out of memory on %s: %s", runtime.device, str(exc)[:200])
    # Outside the handler, so that the traceback no longer holds the tensors of the first attempt.
    runtime.forget()
    device.release()
    if not low_memory:
        try:
            return work(True)
        except Exception as exc:
            if not device.is_out_of_memory(exc):
                raise
            log.warning("out of memory in low-memory mode, too: %s", str(exc)[:200])
        runtime.forget()
        device.release()
    raise OutOfMemory(_smaller(runtime, request))


def _smaller(runtime: Runtime, request: EditRequest) -> str:
    """What to do when memory was not enough."""
    now = request.working_size or runtime.native_size
    size = max(64, now * 3 // 4 // 64 * 64)
    wishes = [f"a working size of {size} px (now {now})"]
    if request.lora.batch_size > 1:
        wishes.append(f"a LoRA batch size of 1 (now {request.lora.batch_size})")
    if runtime.dtype_name == "fp32" and runtime.device.type != "cpu":
        wishes.append("the precision fp16")
    found = device.memory(str(runtime.device))
    return (
        f"The device {runtime.device} ran out of memory ({found.free / 1e9:.1f} of "
        f"{found.total / 1e9:.1f} GB are free now), in the low-memory mode, too; choose "
        f"{' or '.join(wishes)}."
    )


def _with_fingerprint(request: EditRequest, runtime: Runtime) -> EditRequest:
    wanted = request.model.fingerprint
    if wanted and wanted != runtime.fingerprint:
        raise ModelError(
            f"The files of the model {request.model.name!r} are not those that the request was made "
            "for; choose the model anew."
        )
    return dataclasses.replace(request, model=runtime.ref)


def environment(runtime: Runtime) -> dict[str, str]:
    """With what an edit was made; recorded, not keyed."""
    from importlib.metadata import version

    names = ("torch", "diffusers", "transformers", "peft")
    made = {name: version(name) for name in names}
    made |= {
        "workbench": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(runtime.device),
        "dtype": runtime.dtype_name,
        "threads": str(torch.get_num_threads()),
    }
    if runtime.device.type == "cuda":
        made["gpu"] = torch.cuda.get_device_name(runtime.device)
    return made


def sentence(exc: BaseException) -> str:
    """An error as one sentence for the record."""
    if isinstance(exc, WorkbenchError):
        return str(exc)
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return f"The edit failed in a way that was not foreseen ({' '.join(text.split()):.300})."


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
