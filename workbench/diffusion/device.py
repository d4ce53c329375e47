"""Devices, precision, threads and memory: available, chosen and free.

torch is imported inside the functions: settings page and `--help` ask here without waiting for it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import BadInput

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DTYPES = ("auto", "fp32", "fp16", "bf16")
_SMALL = 100_000_000  # parameters; below it, half precision saves nothing worth its error


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device that are free and there in all."""

    free: int
    total: int


def devices(wanted: str = "auto") -> list[str]:
    """Names of the devices that jobs may use: every CUDA device, else MPS, else the CPU.

    A wanted one is given back as the only entry.

    Raises:
        BadInput: when the wanted one is not there.
    """
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        return ["mps"] if torch.backends.mps.is_available() else ["cpu"]
    try:
        device = torch.device(wanted)
    except RuntimeError as exc:
        raise BadInput(
            f"There is no device {wanted[:40]!r}; choose auto, cpu, cuda, cuda:1 or mps.",
            code="unknown-name",
        ) from exc
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = {"cpu": True, "cuda": (device.index or 0) < count,
            "mps": torch.backends.mps.is_available()}  # fmt: skip
    if not here.get(device.type, False):
        seen = f"{count} CUDA devices" if count else "no CUDA device"
        raise BadInput(
            f"The device {wanted!r} is not there ({seen} found); choose another or auto.",
            code="no-device",
        )
    return [f"cuda:{device.index or 0}" if device.type == "cuda" else device.type]


def choose_dtype(wanted: str, device: torch.device, parameters: int) -> torch.dtype:
    """The precision of the weights: float32 on a CPU and for small models, else float16.

    bfloat16 keeps float16's range problems away but has three bits less of precision, which point
    tracking notices; it is there for who asks.

    Raises:
        BadInput: for an unknown name.
    """
    import torch

    if wanted not in DTYPES:
        raise BadInput(
            f"There is no precision {wanted!r}; choose one of: {', '.join(DTYPES)}.",
            code="unknown-name",
        )
    if wanted == "auto":
        wanted = dtype_name(device.type, parameters)
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[wanted]


def dtype_name(device: str, parameters: int) -> str:
    """The precision that "auto" means on a device for a model of so many parameters."""
    return "fp32" if device.startswith("cpu") or parameters < _SMALL else "fp16"


def set_threads(count: int) -> None:
    """Fix the number of CPU threads of this process; 0 leaves torch's own choice.

    Sums are split by thread, so results are bit-identical only for one and the same number.
    """
    import torch

    if count:
        torch.set_num_threads(count)


def repeatable(device: str = "cpu") -> contextlib.AbstractContextManager[None]:
    """A context in which torch takes only algorithms that give the same bits each time.

    On CUDA an operation that has no such algorithm is refused, since the fused attention takes the
    repeatable way only then; `lenient` ends that.
    """
    return _repeatable(device.startswith("cuda") and not _lenient)


_lenient = False  # an operation was refused: from then on a warning has to do


def lenient(exc: BaseException) -> bool:
    """True when an operation was refused for not being deterministic; from now on it is let through."""
    global _lenient
    refused = isinstance(exc, RuntimeError) and "deterministic implementation" in str(exc)
    if refused and not _lenient:
        log.warning("results will differ in their last bits: %s", str(exc)[:200])
        _lenient = True
    return refused  # also of the second of two jobs that were refused at once


@contextlib.contextmanager
def _repeatable(strict: bool) -> Any:
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    memory: Any = torch.utils.deterministic  # a module with a property, which its types leave out
    filling = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    # would write NaN into every new tensor first, which finds bugs and costs a pass over memory
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
        torch.backends.cudnn.benchmark = benchmark
        memory.fill_uninitialized_memory = filling


def processor() -> str:
    """The CPU's name, from the kernel where it tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def fused_attention_wins() -> bool:
    """True where torch's own attention beats `accel/cpu_attention.py` on narrow heads.

    By the processor's maker and not by a stop-watch: a machine must compute in one way always. Measured
    with torch 2.13 on a Xeon with AVX-512, and held to AVX2: half the time of ours (docs/benchmarks.md).
    """
    return "intel" in processor().lower()


def memory(device: str) -> Memory:
    """Free and total bytes of a device; for a CPU the machine's (or container's) memory."""
    if device.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(torch.device(device))
        # what torch holds in reserve without using it is free to us
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Memory(free + spare, total)
    total, free = _machine()
    limit, used = _container()
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0, limit - used))
    return Memory(free, total)


def _machine() -> tuple[int, int]:
    info = Path("/proc/meminfo")
    if info.is_file():
        rows = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        size = {k: int(v.split()[0]) * 1024 for k, v in rows.items() if v.split()}
        return size["MemTotal"], size.get("MemAvailable", size["MemFree"])
    import psutil  # not on Linux: comes with peft

    found = psutil.virtual_memory()
    return int(found.total), int(found.available)


def _container() -> tuple[int | None, int]:
    """Memory limit and use of this control group (v2), where there is one."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        stat = Path("/sys/fs/cgroup/memory.stat").read_text().split()
        cached = int(stat[stat.index("inactive_file") + 1])  # given back when asked for
        return (None if limit == "max" else int(limit)), int(used) - cached
    except (OSError, ValueError):
        return None, 0


def release() -> None:
    """Give back what nobody uses: Python's garbage and the allocators' reserves."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def is_out_of_memory(exc: BaseException) -> bool:
    """True for every way in which torch and Python say that memory has run out."""
    if isinstance(exc, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(exc, torch.OutOfMemoryError):
        return True
    text = str(exc)
    return isinstance(exc, RuntimeError) and any(
        sign in text
        for sign in ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )
