"""Stop-watch of the speed benchmark: seconds, FLOPs and peak memory per stage, step by step.

Both sides of a comparison report "stage s has finished step k of n"; what lies between two such marks
belongs to the later one. A run that was shortened is extended by its own steady step.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

_SETTLED = 4  # step of a stage at which a device has loaded, and we have recorded, what repeats


@dataclass(slots=True)
class StageTime:
    """One stage of one run."""

    seconds: float = 0.0
    flops: float = 0.0
    marks: list[tuple[int, float, float]] = field(default_factory=list)  # step, seconds, FLOPs
    peak_bytes: int = 0
    ahead: bool = False  # the device runs ahead of the marks

    @property
    def steps(self) -> int:
        """Steps finished."""
        return max((s for s, _, _ in self.marks), default=0)

    def _gaps(self, column: int) -> list[float]:
        marks = [m for m in self.marks if m[0] >= 1]
        return [
            (b[column] - a[column]) / (b[0] - a[0])
            for a, b in itertools.pairwise(marks)
            if b[0] > a[0]
        ]

    @property
    def typical_step(self) -> float | None:
        """Median seconds of a step, which a preview now and then does not change."""
        gaps = self._gaps(1)
        return statistics.median(gaps) if gaps else None

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a steady step; None below two steps.

        On a device that runs ahead only the marks that waited for it mean something: between the
        step at which all is loaded and recorded, and the last. Elsewhere the median keeps out what
        other programs do meanwhile.
        """
        if not self.ahead:
            return self.typical_step
        gaps = [(s, t) for s, t, _ in self.marks if s >= 1]
        late = [g for g in gaps if g[0] >= _SETTLED]
        gaps = late if len(late) > 1 else gaps
        if len(gaps) < 2 or gaps[-1][0] == gaps[0][0]:
            return None
        return (gaps[-1][1] - gaps[0][1]) / (gaps[-1][0] - gaps[0][0])

    @property
    def step_flops(self) -> float | None:
        """FLOPs of a step; None below two steps."""
        gaps = self._gaps(2)
        # a stage's last step may do less: a drag's only looks where the points are
        return statistics.median_high(gaps) if gaps else None

    def at(self, steps: int) -> float:
        """Seconds that `steps` steps would take: measured, plus or minus steady steps."""
        per = self.step_seconds
        return self.seconds + (steps - self.steps) * per if per is not None else self.seconds

    def flops_at(self, steps: int) -> float:
        """FLOPs of `steps` steps, without what happens once per stage; all of a stage of one step."""
        per = self.step_flops
        return per * steps if per is not None else self.flops


clock: Callable[[], float] = time.perf_counter
"""Seconds that count; `use_cpu_clock` changes it."""


def use_cpu_clock() -> None:
    """Count CPU seconds of this process instead, which other programs on the machine hardly change."""
    global clock
    clock = time.process_time


class Trace:
    """Collects the marks of one run on one device."""

    def __init__(self, device: torch.device, counter: Any = None) -> None:
        """`counter` is a `FlopCounterMode` that is on, or None."""
        self.stages: dict[str, StageTime] = {}
        self.device = device
        self.first: float | None = None  # seconds until anything was reported
        self.longest = 0.0  # between two reports: how long a cancel may have to wait
        self._counter = counter
        self._start = self._last = clock()
        self._seen_flops = self._flops()
        _reset_peak(device)

    def _flops(self) -> float:
        return float(self._counter.get_total_flops()) if self._counter is not None else 0.0

    def mark(self, stage: str, step: int, total: int) -> None:
        """A stage reports that `step` of `total` steps are done."""
        now = clock()
        if self.first is None:
            self.first = now - self._start
        self.longest = max(self.longest, now - self._last)
        if step <= 1 or step == _SETTLED or step >= total:
            synchronise(self.device)  # in between, the device is left to run ahead
            now = clock()
        found = self.stages.setdefault(stage, StageTime(ahead=self.device.type == "cuda"))
        flops = self._flops()
        found.seconds += now - self._last
        found.flops += flops - self._seen_flops
        found.marks.append((step, now, flops))
        found.peak_bytes = max(found.peak_bytes, _peak(self.device))
        _reset_peak(self.device)
        self._last, self._seen_flops = now, flops

    def ticker(self, stage: str, total: int) -> Any:
        """A function without arguments that reports one more step each time; begins at once."""
        done = 0
        self.mark(stage, 0, total)

        def tick() -> None:
            nonlocal done
            done += 1
            self.mark(stage, done, total)

        return tick

    @property
    def seconds(self) -> float:
        """Seconds from the start to the last mark."""
        return self._last - self._start

    def at(self, full: dict[str, int]) -> float:
        """Seconds of the run with full numbers of steps."""
        extra = sum(s.at(full.get(n, s.steps)) - s.seconds for n, s in self.stages.items())
        return self.seconds + extra


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clear(device: torch.device) -> None:
    """Give back what earlier runs left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _peak(device: torch.device) -> int:
    """Peak bytes since the last reset: what the allocator held on CUDA, the process elsewhere.

    Held, not handed out: what a recording works in is handed out while it is recorded, and never
    again while it is replayed.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    row = next((r for r in status.read_text().splitlines() if r.startswith("VmHWM:")), "0 0")
    return int(row.split()[1]) * 1024


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux: 5 sets the high-water mark of this process back; elsewhere there is none to set
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def counting() -> Iterator[Any]:
    """Count FLOPs (multiply and add are two) of matrix products, convolutions and attention."""

    def forward(q: Any, k: Any, v: Any, *_args: Any, **_kwargs: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    def backward(grad: Any, q: Any, k: Any, v: Any, *_args: Any, **_kwargs: Any) -> int:
        return int(sdpa_backward_flop_count(grad, q, k, v))

    # torch 2.13 does not count the CPU's attention kernel
    ops = torch.ops.aten
    more = {
        ops._scaled_dot_product_flash_attention_for_cpu: forward,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        yield counter


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of several large square matrix products."""
    side = 8192 if device.type == "cuda" else 2048
    torch.manual_seed(0)
    a = torch.randn(side, side, device=device, dtype=dtype)
    b = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(12 if device.type == "cuda" else 6):
        synchronise(device)
        start = clock()
        a @ b
        synchronise(device)
        best = min(best, clock() - start)
    return 2.0 * side**3 / best
