"""Every update of the authors' drags, and the pictures that came of them, by the methods' own loops.

A run that is led along the recorded one (forced.py) is compared throughout; a free run is chaotic, and
only what the noise floor allows is asked of it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import gates
import numpy as np
import pytest
from forced import Forced, forced
from golden import Case, Micro, load_case

from workbench.core.record import StepInfo, StopReason
from workbench.diffusion.lora import merged
from workbench.drag import methods

pytestmark = pytest.mark.numerics

STOPS = {
    "masked": StopReason.STEP_LIMIT,
    "nomask": StopReason.REACHED,
    "odd": StopReason.STEP_LIMIT,
    "gen": StopReason.STEP_LIMIT,
    "gooddrag_masked": StopReason.REACHED,
    "gooddrag_nomask": StopReason.STUCK,
}


@pytest.fixture(scope="module")
def cases(reference_dir: Path) -> dict[str, Case]:
    return {name: load_case(reference_dir / name) for name in STOPS}


@pytest.fixture(scope="module")
def led(cases: dict[str, Case], micro: Micro) -> Any:
    """`led(name)`: the whole method, led along the recorded run, once per case."""

    @lru_cache
    def run(name: str) -> Forced:
        with merged(micro.unet, cases[name].adapter):
            return forced(cases[name], micro)

    return run


@pytest.mark.parametrize("name", STOPS)
def test_every_update(name: str, cases: dict[str, Case], micro: Micro, led: Any) -> None:
    """At the first, the mask term is exactly 0: both of its sides come from one program."""
    seen = led(name)
    with merged(micro.unet, cases[name].adapter):
        gates.updates(cases[name], micro, seen)


@pytest.mark.parametrize("name", STOPS)
def test_losses_and_trackings(name: str, cases: dict[str, Case], led: Any) -> None:
    gates.account(cases[name], led(name))
    assert led(name).outcome.stop is STOPS[name]


@pytest.mark.parametrize("name", STOPS)
def test_picture_of_the_recorded_drag(
    name: str, cases: dict[str, Case], micro: Micro, led: Any
) -> None:
    gates.result(cases[name], micro, led(name))


@pytest.mark.parametrize("name", ["masked", "gooddrag_masked"])
def test_a_free_run_stays_within_what_its_last_bits_decide(
    name: str, cases: dict[str, Case], micro: Micro
) -> None:
    case = cases[name]
    steps: list[StepInfo] = []
    with merged(micro.unet, case.adapter):
        done = methods.run(case.problem(micro), steps.append)
    assert done.stop is STOPS[name]
    assert done.iterations == len(case.arrays["loss"])
    assert np.allclose(done.losses[:10], case.arrays["loss"][:10], rtol=gates.LOSS, atol=0)
    off = np.abs(gates.picture(micro, case, done.latent) - case.result)
    assert off.max() <= gates.FREE_WORST
    assert off.mean() <= gates.FREE_MEAN
    counted = [s.step for s in steps if s.stage == "drag" and s.loss is not None]
    assert counted[-1] == done.iterations
