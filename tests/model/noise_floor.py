"""Measure what the gates of the parity tests rest on: how far a correct program can be from another.

    PYTHONPATH=. .venv/bin/python tests/model/noise_floor.py    # on this processor
    PYTHONPATH=. .venv/bin/python tools/test_machines.py tests/model/noise_floor.py    # on all it can play

Prints, for each recorded case, (1) the largest deviations of a run that is led along the recorded one,
and (2) how far whole free runs end from each other when only the last bit of their start is changed.
Gates are set to at least four times the largest of (1) over all machines, bounds of chaotic ends to
twice the largest of (2).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forced import difference, forced
from gates import picture
from golden import Case, Micro, load_case, load_micro, worst

from workbench.diffusion.lora import merged
from workbench.drag import methods

CASES = ("masked", "nomask", "odd", "gen", "gooddrag_masked", "gooddrag_nomask")
RUNS = 10


def led(case: Case, micro: Micro) -> dict[str, Any]:
    """Deviations of a led run from the recorded one."""
    seen = forced(case, micro)
    assert seen.outcome is not None
    turned = sum(
        worst(*pair) > 1e-5 for pair in zip(seen.grads, case.tensors["drag_grads"], strict=True)
    )
    adam = map(worst, seen.latents, case.tensors["drag_latents"])
    losses, recorded = np.array(seen.outcome.losses), case.arrays["loss"]
    starts = [worst(a, case.start_of_round(i)) for i, a in enumerate(seen.starts)]
    return {
        "start": max(starts), "adam": max(adam), "updates with a turned sign": turned,
        "gradient": max(difference(case, micro, k, g) for k, g in enumerate(seen.grads)),
        "loss": float(np.abs(losses / recorded - 1).max()),
        "clean": worst(seen.outcome.latent, case.clean),
        "levels": int(np.abs(picture(micro, case, seen.outcome.latent) - case.result).max()),
    }  # fmt: skip


def free(case: Case, micro: Micro) -> dict[str, Any]:
    """Spread of whole runs whose start differs in its last bit."""
    pictures, ends, counts, stops = [], [], set(), set()
    for seed in range(RUNS):
        generator = torch.Generator().manual_seed(seed)
        sign = torch.randint(0, 2, case.trail[-1].shape, generator=generator) * 2 - 1
        trail = case.trail.clone()
        trail[-1] *= 1 + sign * 2.0**-23
        done = methods.run(case.problem(micro, trail))
        pictures.append(picture(micro, case, done.latent))
        ends.append(done.trajectory[-1])
        counts.add(done.iterations)
        stops.add(done.stop.name)
    pictures.append(case.result)
    ends.append(torch.from_numpy(case.arrays["handle_final"]))
    gaps = [np.abs(a - b) for i, a in enumerate(pictures) for b in pictures[:i]]
    return {
        "levels": max(int(g.max()) for g in gaps), "mean": max(float(g.mean()) for g in gaps),
        "points": max(worst(a, b) for i, a in enumerate(ends) for b in ends[:i]),
        "updates": sorted(counts), "stop": sorted(stops),
    }  # fmt: skip


def main() -> None:
    reference = Path(__file__).parents[1] / "data" / "reference"
    micro = load_micro(reference / "micro_sd")
    print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), "threads")
    for name in sys.argv[1:] or CASES:
        case = load_case(reference / name)
        with merged(micro.unet, case.adapter):
            print(f"{name:16} led ", _words(led(case, micro)), flush=True)
            print(f"{name:16} free", _words(free(case, micro)), flush=True)


def _words(found: dict[str, Any]) -> str:
    return "  ".join(
        f"{k} {v:.1e}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()
    )


if __name__ == "__main__":
    main()
