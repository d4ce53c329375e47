"""The drag methods by name, with one signature: `run(problem, on_step) -> outcome`."""

from __future__ import annotations

from collections.abc import Callable

from workbench.core.errors import BadInput
from workbench.drag import (
    auto,
    dragdiffusion,
    gooddrag,
    warp,
)
from workbench.drag.denoise import reference_of
from workbench.drag.options import AutoOptions, WarpOptions
from workbench.drag.problem import (
    DragOutcome,
    DragProblem,
    DragState,
    DragStep,
    OnDragStep,
    Pixels,
    Reference,
    ignore,
)

__all__ = [
    "AutoOptions", "DragOutcome", "DragProblem", "DragState", "DragStep", "OnDragStep",
    "Pixels", "Reference", "WarpOptions", "reference_of", "run",
]  # fmt: skip

_METHODS: dict[str, Callable[[DragProblem, OnDragStep], DragOutcome]] = {
    "dragdiffusion": dragdiffusion.run,
    "gooddrag": gooddrag.run,
    "warp": warp.run,
    "auto": auto.run,
}


def run(problem: DragProblem, on_step: OnDragStep = ignore) -> DragOutcome:
    """Carry out a drag by the method that `problem.config.method` names.

    Raises:
        BadInput: for a method that is not known.
        ModelError: when the numbers became NaN or infinite.
        Cancelled: passed through from `on_step`.
    """
    if problem.config.method not in _METHODS:
        raise BadInput(f"There is no drag method {problem.config.method!r}.")
    return _METHODS[problem.config.method](problem, on_step)
