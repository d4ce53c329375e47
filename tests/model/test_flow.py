"""How short the way is from a queued job to the loop that optimises."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.app import App
from workbench.core.config import SPECS, InversionConfig, LoraConfig
from workbench.core.record import JobState
from workbench.core.request import EditRequest, ModelRef, Point, PointPair
from workbench.drag.loop import DragLoop
from workbench.storage.settings import Settings

REPO = Path(__file__).resolve().parents[2]
FRAMES, FILES = 7, 5
HANG = 300.0  # seconds; only a hang lasts so long


@pytest.fixture
def app(own_cache: Path, tiny_model: Callable[[str], Path]) -> Iterator[App]:
    made = App(Settings(folder=own_cache, device="cpu", model=str(tiny_model("sd1"))))
    yield made
    made.close()


@pytest.mark.parametrize("method", [name for name, spec in SPECS.items() if spec.optimises])
def test_seven_frames_in_five_files_lead_from_the_job_to_the_loop(
    app: App, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read off the stack of a real edit, from the frame in which a worker carries its job out."""
    stack: list[tuple[str, str]] = []
    drag = DragLoop.drag

    def seen(self: DragLoop, *given: Any) -> Any:
        frame = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(REPO / "workbench"):
                stack.append((path.relative_to(REPO).as_posix(), frame.f_code.co_name))
            frame = frame.f_back  # type: ignore[assignment]
        return drag(self, *given)

    monkeypatch.setattr(DragLoop, "drag", seen)
    rgb = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    request = EditRequest(
        image=app.store.put_image(rgb, "noise"), pairs=(PointPair(Point(20, 20), Point(40, 20)),),
        model=ModelRef(name=app.settings.model), lora=LoraConfig(steps=0),
        inversion=InversionConfig(steps=4, strength=0.5),
        drag=dataclasses.replace(
            SPECS[method].drag_config(), steps=1, refine=SPECS[method].keeps_pixels
        ),
        working_size=64,
    )  # fmt: skip
    job = app.executor.wait(app.submit_edit(request), HANG)
    assert job.state is JobState.DONE, job.error
    begin = [name for _, name in stack].index("_carry_out")
    way = [*reversed(stack[: begin + 1]), ("workbench/drag/loop.py", "drag")]
    assert len(way) <= FRAMES, way
    assert len({path for path, _ in way}) <= FILES, way
