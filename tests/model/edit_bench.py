"""A model with a fresh history and cache, a picture and a mask: what tests of whole edits begin with."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.config import DragConfig, InversionConfig, LoraConfig
from workbench.core.record import EditRecord, StepInfo
from workbench.core.request import EditRequest, Point, PointPair
from workbench.diffusion.model import Runtime
from workbench.edit import run_edit
from workbench.editing.prepare import Engine
from workbench.storage.cache import Cache
from workbench.storage.history import Store

U8 = NDArray[np.uint8]


@dataclasses.dataclass
class Bench:
    """A model with a fresh history and cache, and a picture with a mask."""

    runtime: Runtime
    store: Store
    cache: Cache
    steps: list[StepInfo] = dataclasses.field(default_factory=list)

    def request(self, **more: Any) -> EditRequest:
        rgb = picture(72, 64)
        mask = np.zeros((64, 72), np.bool_)
        mask[16:56, 12:60] = True
        given: dict[str, Any] = {
            "image": self.store.put_image(rgb, "robot.png"),
            "mask": self.store.put_mask(mask),
            "pairs": (PointPair(Point(24, 30), Point(40, 30)), PointPair(Point(44, 44), Point(44, 34))),
            "prompt": "a robot",
            "lora": LoraConfig(steps=2, rank=2, batch_size=1),
            "inversion": InversionConfig(steps=4, strength=0.5),
            "drag": DragConfig(steps=3),
            "working_size": 64,
        }  # fmt: skip
        return EditRequest(**{**given, **more})

    @property
    def engine(self) -> Engine:
        return Engine(self.runtime, self.cache, self.store)

    def edit(self, request: EditRequest | None = None, **more: Any) -> EditRecord:
        self.steps.clear()
        given: dict[str, Any] = {"on_step": self.steps.append, **more}
        return run_edit(
            request or self.request(), self.engine, **given
        )  # fmt: skip

    def stages(self) -> list[str]:
        return list(dict.fromkeys(s.stage for s in self.steps))


def picture(width: int, height: int, seed: int = 0) -> U8:
    """Smooth colours with a box on them."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x + y) * 3 % 256], axis=-1)
    rgb[height // 3 : height // 2, width // 4 : width // 2] = (200, 30 + seed, 40)
    return rgb.astype(np.uint8)
