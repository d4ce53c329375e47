"""Check that a job leaves a shared model as it found it (docs/faults.md 37).

Attention control, adapters, hooks and gradient switches are all undone by context managers of their
own. `unchanged` stands around a whole job, compares, repairs what can be repaired, and says so.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from workbench.core.interrupts import held

log = logging.getLogger(__name__)

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


@dataclass(frozen=True, slots=True)
class ModelState:
    """A snapshot of everything but the numbers: two equal snapshots mean an untouched model."""

    modules: tuple[tuple[str, int, bool], ...]  # name, identity, training
    parameters: tuple[tuple[str, int, bool, bool], ...]  # name, identity, requires_grad, has grad
    versions: tuple[int, ...]  # counts in-place changes of the weights
    processors: tuple[tuple[str, int], ...]
    hooks: tuple[tuple[str, str, tuple[int, ...]], ...]
    adapters: tuple[str, ...]
    checkpointing: bool
    grad_enabled: bool


def snapshot(model: Any) -> ModelState:
    """Take a snapshot of a diffusers model."""
    modules = list(model.named_modules())
    parameters = list(model.named_parameters())
    processors = getattr(model, "attn_processors", {})
    return ModelState(
        modules=tuple((n, id(m), m.training) for n, m in modules),
        parameters=tuple((n, id(p), p.requires_grad, p.grad is not None) for n, p in parameters),
        versions=tuple(p._version for _, p in parameters),
        processors=tuple(sorted((n, id(p)) for n, p in processors.items())),
        hooks=tuple(
            (n, kind, tuple(found))
            for n, m in modules
            for kind in _HOOKS
            if (found := getattr(m, kind, None))
        ),
        adapters=tuple(sorted(getattr(model, "peft_config", None) or ())),
        checkpointing=bool(getattr(model, "is_gradient_checkpointing", False)),
        grad_enabled=torch.is_grad_enabled(),
    )


def differences(before: ModelState, after: ModelState) -> list[str]:
    """Names of the parts in which two snapshots differ."""
    return [name for name in ModelState.__slots__ if getattr(before, name) != getattr(after, name)]


@contextlib.contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Give the model back as it was, whatever happens in the block.

    What differs afterwards is an error of ours: it is logged, and put back as far as that is
    possible (processors, hooks, gradient switches, checkpointing, adapters).
    """
    before = snapshot(model)
    kept = dict(getattr(model, "attn_processors", {}))
    level = logging.ERROR
    try:
        yield
    except KeyboardInterrupt:  # between two lines of ours: no error, and the process ends
        level = logging.INFO
        raise
    finally:
        with held():
            torch.set_grad_enabled(before.grad_enabled)
            after = snapshot(model)
            if after != before:
                changed = ", ".join(differences(before, after))
                log.log(level, "a job left the model changed: %s", changed)
                _repair(model, before, kept)


def _repair(model: Any, before: ModelState, processors: dict[str, Any]) -> None:
    added = set(getattr(model, "peft_config", None) or ()) - set(before.adapters)
    if added and not before.adapters:
        model.unload_lora()  # takes peft's wrappers off again; deleting would leave them
    elif added:
        model.delete_adapters(sorted(added))
    if processors and dict(model.attn_processors) != processors:
        model.set_attn_processor(dict(processors))
    hooks = {(n, kind): set(keys) for n, kind, keys in before.hooks}
    training = {n: t for n, _, t in before.modules}
    for name, module in model.named_modules():
        module.training = training.get(name, False)
        for kind in _HOOKS:
            found = getattr(module, kind, None) or {}
            for key in set(found) - hooks.get((name, kind), set()):
                del found[key]
    grads = {n: g for n, _, g, _ in before.parameters}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(grads.get(name, False))
        parameter.grad = None
    if not before.checkpointing and getattr(model, "is_gradient_checkpointing", False):
        model.disable_gradient_checkpointing()
