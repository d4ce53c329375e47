"""Reading scalars from a device without stopping it."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


class Lagged:
    """Floats from the device, one step late on a GPU, so that it never runs dry; at once on a CPU.

    Waiting for the step before also keeps the host from running many steps ahead, which would make
    progress and cancel lie.
    """

    def __init__(self, device: torch.device) -> None:
        """Nothing is pending at first."""
        self._cuda = device.type == "cuda"
        self._pending: list[tuple[Tensor, torch.cuda.Event]] = []

    def push(self, scalar: Tensor) -> list[float]:
        """Send one scalar on its way; returns those that have arrived meanwhile."""
        if not self._cuda:
            return [float(scalar)]
        host = torch.empty((), dtype=torch.float32, pin_memory=True)
        host.copy_(scalar.detach(), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        arrived = self.drain()
        self._pending.append((host, event))
        return arrived

    def drain(self) -> list[float]:
        """Wait for what is pending."""
        out: list[float] = []
        for host, event in self._pending:
            event.synchronize()
            out.append(float(host))
        self._pending.clear()
        return out
