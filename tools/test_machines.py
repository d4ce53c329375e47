"""Run the numerical tests as other processors would: `make test-machines`.

torch, oneDNN and MKL choose their kernels by the processor's instructions, and are told here to choose as
if it had fewer: none of AVX, AVX2, and AVX-512 where there is one; each with one thread and with two. What
is run are the tests marked `numerics`, or the command given after `--`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
MACHINES = {  # torch's name -> oneDNN's and MKL's
    "default": ("SSE41", "SSE4_2"),
    "avx2": ("AVX2", "AVX2"),
    "avx512": ("AVX512_CORE", "AVX512"),
}


def own() -> str:
    """This processor, by torch's name."""
    import torch

    return torch.backends.cpu.get_cpu_capability().lower()


def machines() -> list[str]:
    """Those that this processor can play, the least first."""
    names = list(MACHINES)
    return names[: names.index(own()) + 1] if own() in names else ["default"]


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(machine: str, threads: int) -> dict[str, str]:
    """What makes torch compute as that machine does."""
    onednn, mkl = MACHINES[machine]
    return {
        **os.environ,
        "ATEN_CPU_CAPABILITY": machine,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "MKL_ENABLE_INSTRUCTIONS": mkl,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }


def numerical_tests() -> list[str]:
    """The files that have tests marked `numerics`."""
    files = sorted((REPO / "tests").rglob("test_*.py"))
    return [
        str(f.relative_to(REPO)) for f in files if "pytest.mark.numerics" in f.read_text("utf-8")
    ]


def run(machine: str, threads: int, command: list[str]) -> bool:
    """Run the command as that machine; prints what it printed, and how it ended."""
    begun = time.monotonic()
    done = subprocess.run(  # noqa: S603
        command, cwd=REPO, env=environment(machine, threads), text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    took = time.monotonic() - begun
    good = done.returncode == 0
    title = (
        f"{machine}, {threads} thread{'s' if threads > 1 else ''}: {'good' if good else 'FAILED'}"
    )
    print(f"=== {title}, {took:.0f} s\n{done.stdout.strip()}\n", flush=True)
    return good


def main(arguments: list[str]) -> int:
    """Run all machines, as many at once as there are cores; 1 when one of them failed."""
    command = [sys.executable, *arguments] if arguments else [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "numerics",
        *numerical_tests(),
    ]  # fmt: skip
    found = machines()
    print(f"This processor can play: {', '.join(found)}.", flush=True)
    good = []
    for threads in (1, 2):
        with ThreadPoolExecutor(max(1, cores() // threads)) as pool:
            good += pool.map(lambda machine, n=threads: run(machine, n, command), found)
    print(f"{sum(good)} of {len(good)} machines agree.")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
