"""The measurements of `bench speed`, in the order of their importance, each written as it is made."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import baseline, speed_trace
from benchmarks.speed_models import Subject, subject, weight_bytes
from benchmarks.speed_report import Sink
from benchmarks.speed_subject import (
    COUNT,
    EXTENDED,
    FULL,
    PROMPT,
    QUICK,
    Plan,
    latent_mask,
    painted,
    pairs_of,
    picture,
    positions,
)
from benchmarks.speed_trace import (
    Trace,
    clear,
    counting,
    matrix_peak,
)
from workbench.core.config import DragConfig, InversionConfig, LoraConfig
from workbench.core.errors import WorkbenchError
from workbench.core.record import StepInfo
from workbench.core.request import EditRequest
from workbench.diffusion.device import processor, set_threads
from workbench.diffusion.model import Runtime
from workbench.edit import run_edit
from workbench.editing.prepare import Engine
from workbench.storage.cache import Cache
from workbench.storage.history import Store
from workbench.storage.settings import Settings

log = logging.getLogger(__name__)


def measure(args: argparse.Namespace, sink: Sink) -> None:
    """Run what was asked for."""
    started = time.perf_counter()
    _quiet()
    set_threads(args.threads)
    if args.clock == "cpu":
        speed_trace.use_cpu_clock()
    chosen = subject(
        args.model, device=args.device, dtype=args.dtype, load_stage=not args.no_load_stage,
        folder=Settings.load().folder / "bench",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-speed-") as folder:
        Speed(args, sink, chosen, Path(folder), started).run()


class Speed:
    """One benchmark run."""

    def __init__(
        self, args: argparse.Namespace, sink: Sink, chosen: Subject, folder: Path, started: float
    ) -> None:
        """Load ours; the baseline makes its own at every run."""
        self.args, self.sink, self.subject, self.folder = args, sink, chosen, folder
        self.started = started
        self.plan = QUICK if args.quick else FULL
        self.trains = "train" in args.stages
        self.loads = "load" in args.stages and chosen.loads and not args.no_load_stage
        before = speed_trace.clock()
        self.runtime: Runtime = chosen.runtime()
        self.load_seconds = speed_trace.clock() - before
        self.size = args.size or self.runtime.native_size
        self.rgb = picture(self.size)
        self.mask = painted(self.size) if args.mask else None
        self.cost: dict[str, float] = {}
        self.store = Store(folder / "history")
        self._caches = 0
        self.cache = self._new_cache()

    # --- the order of things --------------------------------------------------------------------------

    def run(self) -> None:
        """All parts, the most important first."""
        args = self.args
        self._setup()
        self._part("flops", self._flops)
        for repeat in range(args.repeats):
            # baseline and ours take turns in going first, so that a warm machine favours neither
            sides = (("first baseline", self._baseline), ("first ours", self._first))
            for name, work in sides if repeat % 2 == 0 else sides[::-1]:
                if "compare" in args.parts:
                    self._part(name, work, repeat)
            if "second" in args.parts:
                self._part("second", self._second, repeat)
            if "warp" in args.parts:
                self._part("warp", self._warp, repeat)
            if repeat == 0:
                self._once()
        self.store.close()

    def _once(self) -> None:
        if "full" in self.args.parts and self.args.quick:
            self._part("full", self._full)
        if "memory" in self.args.parts:
            self._part("low memory", self._low_memory)
        if "growth" in self.args.parts:
            self._part("growth", self._growth)

    def _part(self, name: str, work: Callable[..., None], *given: int) -> None:
        """Do one part if there is time for it, judged by how long it took before."""
        spent = time.perf_counter() - self.started
        needed = self.cost.get(name, 0.0)
        if self.args.seconds and spent + 1.1 * needed > self.args.seconds:
            self.sink.add("skipped", part=name, needs=round(needed, 1), spent=round(spent, 1))
            return
        begun = time.perf_counter()
        try:
            work(*given)
        except (WorkbenchError, torch.OutOfMemoryError) as exc:
            log.warning("%s failed", name, exc_info=True)
            self.sink.add("failed", part=name, why=f"{type(exc).__name__}: {exc}"[:300])
        self.cost[name] = time.perf_counter() - begun

    def _setup(self) -> None:
        run, subject = self.runtime, self.subject
        cuda = run.device.type == "cuda"
        self.peak = matrix_peak(run.device, run.dtype)
        self.sink.add(
            "setup", model=subject.name, device=str(run.device), dtype=run.dtype_name,
            machine=torch.cuda.get_device_name(run.device) if cuda else processor(),
            threads=torch.get_num_threads(), torch=torch.__version__, size=self.size,
            mask=self.mask is not None, previews=self.args.previews, quick=self.args.quick,
            trains=self.trains, loads=self.loads, clock=self.args.clock,
            plan={"lora": self.plan.lora, "drag": self.plan.drag, "ddim": self.plan.ddim},
            full={"lora": FULL.lora, "drag": FULL.drag, "ddim": FULL.ddim},
            weights=weight_bytes(run.unet, run.vae), peak_flops=self.peak,
            load_seconds=round(self.load_seconds, 3), ready=round(time.perf_counter() - self.started, 2),
        )  # fmt: skip

    # --- parts ----------------------------------------------------------------------------------------

    def _flops(self) -> None:
        """Count both sides in a short run, which also warms both up."""
        for side in ("baseline", "ours"):
            with counting() as counter:
                if side == "baseline":
                    trace = self._run_baseline(COUNT, counter)
                else:
                    trace = self._edit(self._request(COUNT), self._new_cache(), counter=counter)
            for stage, found in trace.stages.items():
                self.sink.add(
                    "flops", side=side, stage=stage, per_step=found.step_flops,
                    full=found.flops_at(EXTENDED.get(stage, 1)),
                )  # fmt: skip

    def _baseline(self, repeat: int) -> None:
        self._write("first", "baseline", repeat, self._run_baseline(self.plan))

    def _first(self, repeat: int) -> None:
        self.cache = self._new_cache()
        if self.loads:
            self.load_seconds = _seconds(self.subject.runtime)
        trace = self._edit(self._request(self.plan), self.cache)
        self._write("first", "ours", repeat, trace, load=self.load_seconds if self.loads else 0.0)

    def _second(self, repeat: int) -> None:
        trace = self._edit(self._request(self.plan, shift=1 + repeat), self.cache)
        self._write("second", "ours", repeat, trace)

    def _warp(self, repeat: int) -> None:
        drag = DragConfig.preset("warp")
        trace = self._edit(self._request(self.plan, shift=1 + repeat, drag=drag), self.cache)
        self._write("warp", "ours", repeat, trace, extend=False)

    def _full(self) -> None:
        """Ours at full length: first edit, second drag."""
        cache = self._new_cache()
        trace = self._edit(self._request(FULL), cache)
        self._write("full first", "ours", 0, trace)
        self._write("full second", "ours", 0, self._edit(self._request(FULL, shift=1), cache))

    def _low_memory(self) -> None:
        short = Plan(lora=2, drag=3, ddim=4)
        trace = self._edit(self._request(short), self._new_cache(), low_memory=True)
        self._write("low memory", "ours", 0, trace)

    def _growth(self) -> None:
        """Time of a drag step against the number of pairs, and of pixels."""
        quick = InversionConfig(steps=4, strength=0.5)
        lora = LoraConfig(steps=0)
        cache = self._new_cache()
        for pairs in (1, 8, 32, 1):  # the first again at the end: what the machine does meanwhile
            request = self._request(self.plan, pairs=pairs, lora=lora, inversion=quick, steps=8)
            self._grown("pairs", pairs, self._edit(request, cache))
        for part in (2, 3, 4):
            side = self.size * part // 4 // 8 * 8
            request = self._request(
                self.plan, lora=lora, inversion=quick, steps=8, working_size=max(64, side)
            )
            self._grown("pixels", max(64, side) ** 2, self._edit(request, cache))

    def _grown(self, what: str, n: int, trace: Trace) -> None:
        self.sink.add("growth", what=what, n=n, step_seconds=trace.stages["drag"].typical_step)

    # --- one run of a side ----------------------------------------------------------------------------

    def _run_baseline(self, plan: Plan, counter: Any = None) -> Trace:
        run, size = self.runtime, (self.size, self.size)
        run.forget()
        clear(run.device)
        self.other = torch.cuda.memory_allocated(run.device) if run.device.type == "cuda" else 0
        if self.loads:
            trace = Trace(run.device, counter)
            tick = trace.ticker("load", 2)
            self.subject.pipe()  # once for the training, once for the run: the reference does both
            tick()
            pipe = self.subject.pipe()
            tick()
        else:
            pipe = self.subject.pipe()
            trace = Trace(run.device, counter)
        image = torch.from_numpy(self.rgb).permute(2, 0, 1)[None].to(run.device, run.dtype)
        image = image / 127.5 - 1
        n = plan.inversion.inverted_steps
        if self.trains:
            baseline.train_lora(
                pipe, image, PROMPT, steps=plan.lora, batch=plan.batch, rank=plan.rank,
                tick=trace.ticker("train", plan.lora),
            )  # fmt: skip
        z = baseline.invert(
            pipe, image, PROMPT, steps=plan.ddim, strength=0.7, tick=trace.ticker("invert", n)
        )
        pairs = positions(pairs_of(1, self.size), size)
        whole = torch.ones(1, 1, *z.shape[-2:], device=z.device)
        mask = whole if self.mask is None else latent_mask(self.mask, z)
        start = len(pipe.scheduler.timesteps) - n
        edited = baseline.drag(
            pipe, z, PROMPT, pairs, mask, start=start, steps=plan.drag,
            tick=trace.ticker("drag", plan.drag),
        )  # fmt: skip
        rows = baseline.denoise(
            pipe, z, edited, PROMPT, start=start, tick=trace.ticker("denoise", n)
        )
        tick = trace.ticker("decode", 1)
        baseline.decode(pipe, rows)
        tick()
        del pipe
        clear(run.device)
        return trace

    def _edit(
        self, request: EditRequest, cache: Cache, *, counter: Any = None, low_memory: bool = False
    ) -> Trace:
        clear(self.runtime.device)
        self.other = 0
        trace = Trace(self.runtime.device, counter)
        self.runtime.recording = counter is None  # what is replayed is not counted

        def on_progress(info: StepInfo) -> None:
            trace.mark(info.stage, info.step, info.total)

        run_edit(
            request, Engine(self.runtime, cache, self.store), on_step=on_progress,
            fresh=True, low_memory=low_memory, previews=self.args.previews and counter is None,
        )  # fmt: skip
        return trace

    def _request(
        self,
        plan: Plan,
        *,
        shift: int = 0,
        pairs: int = 1,
        drag: DragConfig | None = None,
        lora: LoraConfig | None = None,
        inversion: InversionConfig | None = None,
        steps: int | None = None,
        working_size: int = 0,
    ) -> EditRequest:
        trained = LoraConfig(steps=plan.lora if self.trains else 0, batch_size=plan.batch,
                             rank=plan.rank)  # fmt: skip
        # a stop distance of 0 is never undercut: every run does all its steps, as the baseline does
        usual = DragConfig(steps=plan.drag if steps is None else steps, stop_distance=0.0)
        return EditRequest(
            image=self.store.put_image(self.rgb, "speed.png"),
            mask=self.store.put_mask(self.mask) if self.mask is not None else None,
            pairs=pairs_of(pairs, self.size, shift),
            prompt=PROMPT,
            model=self.runtime.ref,
            lora=lora or trained,
            inversion=inversion or plan.inversion,
            drag=drag or usual,
            working_size=working_size or self.size,
            crop=False,
        )

    def _new_cache(self) -> Cache:
        self.runtime.forget()
        self._caches += 1
        return Cache(self.folder / f"derived-{self._caches}")

    def _write(
        self, what: str, side: str, repeat: int, trace: Trace, *, load: float = 0.0,
        extend: bool = True,
    ) -> None:  # fmt: skip
        full = EXTENDED if extend and what != "low memory" else {}
        stages = {
            name: {
                "seconds": round(s.seconds, 4), "full": round(s.at(full.get(name, s.steps)), 4),
                "steps": s.steps, "step_seconds": s.step_seconds,
                "peak_bytes": max(0, s.peak_bytes - self.other),
            }
            for name, s in trace.stages.items()
        }  # fmt: skip
        if load:
            stages["load"] = {"seconds": round(load, 4), "full": round(load, 4), "steps": 1,
                              "step_seconds": None, "peak_bytes": 0}  # fmt: skip
        self.sink.add(
            "run", what=what, side=side, repeat=repeat, seconds=round(trace.seconds + load, 4),
            full=round(trace.at(full) + load, 4), stages=stages,
            first_progress=round(trace.first or 0.0, 4), longest_wait=round(trace.longest, 4),
        )  # fmt: skip


def _quiet() -> None:
    """The libraries' advice is not for who reads the tables."""
    import diffusers
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


def _seconds(work: Callable[[], Any]) -> float:
    begun = speed_trace.clock()
    work()
    return speed_trace.clock() - begun
