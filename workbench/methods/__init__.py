"""The drag methods by name, with one signature: `run(problem, on_step) -> outcome`."""

from __future__ import annotations

from collections.abc import Callable

from workbench.errors import BadInput
from workbench.methods import auto, dragdiffusion, gooddrag, warp
from workbench.methods.finish import reference_of
from workbench.methods.options import AutoOptions, WarpOptions
from workbench.methods.types import (
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
