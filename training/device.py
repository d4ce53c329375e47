"""Device and speed of the training: the device, bfloat16, torch.compile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from workbench.diffusion.device import devices

log = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU (training was not tried on MPS).

    Raises:
        BadInput: when the named device is not there.
    """
    if name == "auto" and not torch.cuda.is_available():
        name = "cpu"
    return torch.device(devices(name)[0])


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock reading means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    run()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def choose_bf16(trial: Callable[[bool], Any], device: torch.device, precision: str) -> bool:
    """True if to train in bfloat16 autocast: always on CUDA; on a CPU where a trial is faster.

    Args:
        trial: one forward and backward pass, told whether to use bfloat16.
        device: where the trial runs.
        precision: auto, bf16 or fp32; the latter two decide at once.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type != "cpu":
        return True
    half = _seconds(lambda: trial(True), device, 1)
    full = _seconds(lambda: trial(False), device, 1)
    log.info("a pass takes %.2f s in bfloat16, %.2f s in float32", half, full)
    return half < full


def compile_if_faster(
    function: Callable[..., Any], trial: Callable[[Callable[..., Any]], Any], device: torch.device
) -> Callable[..., Any]:
    """`torch.compile(function)` if it works here and pays; otherwise the function itself.

    Args:
        function: what is to be compiled.
        trial: given a form of the function, runs one forward and backward pass with it.
        device: compiled only on CUDA.
    """
    if device.type != "cuda":
        return function
    eager = _seconds(lambda: trial(function), device, 5)
    start = time.perf_counter()
    try:
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
        fast = _seconds(lambda: trial(compiled), device, 5)
    except Exception as error:  # any failure of the compiler: training must go on without it
        log.warning("torch.compile failed, going on without: %s", str(error)[:500])
        torch._dynamo.reset()
        return function
    log.info(
        "eager %.1f ms, compiled %.1f ms a pass (compiling took %.0f s)",
        eager * 1e3, fast * 1e3, time.perf_counter() - start,
    )  # fmt: skip
    return compiled if fast < eager else function
