"""Shared by both training stages: clock, learning rate, EMA, optimiser, checkpoints.

A checkpoint is one safetensors file; its JSON (steps, seconds, pictures seen) is in the file's own
header, so that weights and counters can never be of different moments. No pickle anywhere.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.team import Team
from workbench.core.errors import ModelError

log = logging.getLogger(__name__)

WARM_UP_STEPS = 200
WARM_UP_FRACTION = 0.05


def learning_rate_factor(fraction: float, step: int, begun: float = 0.0) -> float:
    """Multiplier of the learning rate, in [0, 1].

    Linear warm-up until 200 steps or 5 % of the time, whichever comes first, then a half cosine
    that reaches zero when the time is over. It follows the clock and not a step count, so that
    every time budget, on every machine, ends annealed.

    Args:
        fraction: elapsed share of the schedule's time, 0..1.
        step: steps done since the schedule began.
        begun: the fraction at the first step; compiling may have taken a part before it.
    """
    warm = min(1.0, max((step + 1) / WARM_UP_STEPS, (fraction - begun) / WARM_UP_FRACTION))
    return warm * 0.5 * (1 + math.cos(math.pi * min(max(fraction, 0.0), 1.0)))


class Clock:
    """Wall-clock time of a stage: this run's share, and the whole schedule's."""

    def __init__(self, run_seconds: float, schedule_seconds: float, spent: float = 0.0) -> None:
        """Start now. `spent`: seconds of the schedule that earlier runs used."""
        self._start = time.monotonic()
        self._run = run_seconds
        self._schedule = schedule_seconds
        self._spent = spent

    @property
    def here(self) -> float:
        """Seconds since this run's start."""
        return time.monotonic() - self._start

    @property
    def total(self) -> float:
        """Seconds of the schedule, earlier runs' included."""
        return self._spent + self.here

    @property
    def fraction(self) -> float:
        """Elapsed share of the schedule, 0..1."""
        return min(1.0, self.total / self._schedule)

    @property
    def over(self) -> bool:
        """True if this run, or the schedule, has used its time."""
        return self.here >= self._run or self.total >= self._schedule


class Pace:
    """State that every process must agree on while it steps: place in the schedule, and whether to stop.

    A process alone reads its clock at each step. In a team the first one's clock is asked every
    `every` steps, and nobody's in between: rates that differ would drive the weights apart.
    """

    def __init__(self, clock: Clock, team: Team, every: int, device: torch.device) -> None:
        """Ask the clock for the first time."""
        self._clock, self._team, self._device = clock, team, device
        self._every = every if team.size > 1 else 1
        self._steps = 0
        self.over, self.fraction = False, 0.0
        self._ask()

    def _ask(self) -> None:
        state = [float(self._clock.over), self._clock.fraction]
        over, self.fraction = self._team.told(state, self._device)
        self.over = over > 0

    def tick(self) -> None:
        """After each step."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._ask()


class Ema:
    """Exponential moving average of parameters, in float32, with a warm-up of its decay.

    decay(n) = min(decay, (1 + n) / (10 + n)): the first steps are nearly copied, so that the
    random start does not linger in a short training.
    """

    def __init__(self, parameters: list[Tensor], decay: float) -> None:
        """Begin at the parameters' present values."""
        self.decay = decay
        self.count = 0
        self._live = parameters
        self.shadow = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters' present values."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self._live], 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the modules hold the averages; afterwards, what they held before."""
        saved = [p.detach().clone() for p in self._live]
        try:
            self._assign(self.shadow)
            yield
        finally:
            self._assign(saved)

    @torch.no_grad()
    def _assign(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._live, values, strict=True):
            parameter.copy_(value)


class Learner:
    """Named modules, their AdamW, their EMA, and the counters; steps, saves and loads them."""

    def __init__(
        self,
        modules: dict[str, nn.Module],
        *,
        lr: float,
        ema_decay: float,
        weight_decay: float = 0.01,
        clip: float = 1.0,
        team: Team | None = None,
    ) -> None:
        """Set up for training; the modules must already be on their device.

        A team begins with its first process's weights.
        """
        self.names: list[str] = []
        self.parameters: list[Tensor] = []
        for prefix, module in modules.items():
            for name, parameter in module.named_parameters():
                self.names.append(f"{prefix}.{name}")
                self.parameters.append(parameter)
        self.team = team or Team()
        with torch.no_grad():
            self.team.share(self.parameters)
        self.lr = lr
        self.clip = clip
        self.device = self.parameters[0].device
        self.fused = self.device.type == "cuda"
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=self.fused)
        self.ema = Ema(self.parameters, ema_decay)
        self.steps = 0  # over all runs
        self.cycle_steps = 0  # since the learning rate's schedule began
        self.seen = 0  # pictures over all runs
        self._kept: dict[str, Tensor] | None = None

    def step(self, factor: float, pictures: int) -> None:
        """One optimiser step with the gradients that are there, at `factor` times the rate.

        `pictures`: how many this process contributed.
        """
        self.team.average([p.grad for p in self.parameters if p.grad is not None])
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.steps += 1
        self.cycle_steps += 1
        self.seen += pictures * self.team.size

    def tensors(self) -> dict[str, Tensor]:
        """All state by name: `model.`, `ema.`, and AdamW's `mean.` and `square.`."""
        out: dict[str, Tensor] = {}
        for name, parameter, shadow in zip(
            self.names, self.parameters, self.ema.shadow, strict=True
        ):
            out[f"model.{name}"] = parameter.detach()
            out[f"ema.{name}"] = shadow
            state = self.optimizer.state.get(parameter)
            if state:
                out[f"mean.{name}"] = state["exp_avg"]
                out[f"square.{name}"] = state["exp_avg_sq"]
        return out

    def load(self, tensors: dict[str, Tensor], optimizer_steps: int) -> None:
        """Take over the state that `tensors()` gave.

        Moments are copied into tensors of their parameter's own memory layout: the fused AdamW
        reads raw memory and would silently pair the wrong elements otherwise.
        """
        with torch.no_grad():
            for name, parameter, shadow in zip(
                self.names, self.parameters, self.ema.shadow, strict=True
            ):
                parameter.copy_(tensors[f"model.{name}"])
                shadow.copy_(tensors[f"ema.{name}"])
                if f"mean.{name}" not in tensors:
                    continue
                where = self.device if self.fused else torch.device("cpu")
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(optimizer_steps), device=where),
                    "exp_avg": torch.zeros_like(parameter).copy_(tensors[f"mean.{name}"]),
                    "exp_avg_sq": torch.zeros_like(parameter).copy_(tensors[f"square.{name}"]),
                }

    @property
    def optimizer_steps(self) -> int:
        """Steps that AdamW's bias correction has counted."""
        for state in self.optimizer.state.values():
            return int(state["step"])
        return 0

    def guard(self, loss: float) -> None:
        """Remember this state if the loss is finite; otherwise return to the last one remembered.

        Raises:
            ModelError: the loss is not finite before any state could be remembered.
        """
        if math.isfinite(loss):
            self._kept = {name: tensor.clone() for name, tensor in self.tensors().items()}
            return
        if self._kept is None:
            raise ModelError(
                f"The training loss is {loss} from the start; lower the learning rate {self.lr}.",
                code="not-finite",
            )
        self.lr *= 0.5
        log.warning("the loss is %s: back to the last good state, rate now %g", loss, self.lr)
        self.load(self._kept, self.optimizer_steps)

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Write a checkpoint as one file, replaced atomically."""
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            **facts,
            "steps": self.steps,
            "cycle_steps": self.cycle_steps,
            "seen": self.seen,
            "ema_count": self.ema.count,
            "optimizer_steps": self.optimizer_steps,
        }
        tensors = {name: t.contiguous() for name, t in self.tensors().items()}
        temporary = path.with_suffix(".partial")
        save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})
        temporary.replace(path)

    def restore(self, path: Path) -> dict[str, Any]:
        """Load a checkpoint; returns its facts.

        Raises:
            ModelError: the file is of a model of another shape.
        """
        tensors, facts = read_tensors(path)
        try:
            self.load(tensors, facts["optimizer_steps"])
        except (KeyError, RuntimeError) as error:
            raise ModelError(
                f"The checkpoint {path.name} is of another model ({error}); remove it or train "
                "without --resume.",
                code="other-model",
            ) from error
        self.steps, self.cycle_steps = facts["steps"], facts["cycle_steps"]
        self.seen, self.ema.count = facts["seen"], facts["ema_count"]
        return facts


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A safetensors file's tensors (on the CPU) and the facts in its header."""
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        facts = json.loads((file.metadata() or {}).get("facts", "{}"))
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118


def averaged_weights(path: Path, prefix: str) -> dict[str, Tensor]:
    """One module's averaged weights out of a checkpoint, as a state dict."""
    start = f"ema.{prefix}."
    tensors, _ = read_tensors(path)
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
