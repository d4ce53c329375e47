"""Retry a job with less memory; record errors and the environment."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import platform
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from workbench import __version__
from workbench.core import keys
from workbench.core.errors import ModelError, OutOfMemory, WorkbenchError
from workbench.core.request import EditRequest
from workbench.diffusion import device

if TYPE_CHECKING:
    from workbench.diffusion.model import Runtime

log = logging.getLogger(__name__)


class Attempt:
    """One try in a `with` block, which gives the mode: True for low memory.

    It swallows lack of memory, and the refusal of an operation that cannot repeat its bits, which
    `device.lenient` lets through from then on.
    """

    def __init__(self, sparing: bool, *, patient: bool) -> None:
        """`patient`: a refused operation is a reason to try again in the same mode."""
        self._sparing, self._patient = sparing, patient
        self.done = self.again = False

    def __enter__(self) -> bool:
        """The mode of this try."""
        return self._sparing

    def __exit__(self, _kind: Any, exc: BaseException | None, _trace: Any) -> bool:
        """Note how it ended."""
        self.done = exc is None
        if isinstance(exc, RuntimeError) and self._patient and device.lenient(exc):
            self.again = True
        elif isinstance(exc, Exception) and device.is_out_of_memory(exc):
            log.warning(
                "out of memory%s: %s", " in low-memory mode" * self._sparing, str(exc)[:200]
            )
        else:
            return False
        return True


def attempts(runtime: Runtime, request: EditRequest, low_memory: bool) -> Iterator[Attempt]:
    """Try some work; when memory runs out, free what is kept and try again in low-memory mode.

    for attempt in attempts(...):
        with attempt as sparing:
            result = work(sparing)

    A loop, so that a failed try is over, and its traceback holds no tensors, before the next begins.

    Raises:
        OutOfMemory: when the low-memory mode was not enough either; names a smaller setting.
    """
    for sparing in (True,) if low_memory else (False, True):
        for patient in (True, False):
            attempt = Attempt(sparing, patient=patient)
            yield attempt
            if attempt.done:
                return
            if not attempt.again:
                break
        runtime.forget()
        device.release()
    raise OutOfMemory(_smaller(runtime, request))


def _smaller(runtime: Runtime, request: EditRequest) -> str:
    """The advice when memory was not enough."""
    now = request.working_size or runtime.native_size
    size = max(64, now * 3 // 4 // 64 * 64)
    wishes = [f"a working size of {size} px (now {now})"]
    if request.lora.batch_size > 1:
        wishes.append(f"a LoRA batch size of 1 (now {request.lora.batch_size})")
    if runtime.dtype_name == "fp32" and runtime.device.type != "cpu":
        wishes.append("the precision fp16")
    found = device.memory(str(runtime.device))
    return (
        f"The device {runtime.device} ran out of memory ({found.free / 1e9:.1f} of "
        f"{found.total / 1e9:.1f} GB are free now), in the low-memory mode, too; choose "
        f"{' or '.join(wishes)}."
    )


def with_fingerprint(request: EditRequest, runtime: Runtime) -> EditRequest:
    """The request with the loaded model's own reference.

    Raises:
        ModelError: when it was made for other files of that model.
    """
    wanted = request.model.fingerprint
    if wanted and wanted != runtime.fingerprint:
        raise ModelError(
            f"The files of the model {request.model.name!r} are not those that the request was made "
            "for; choose the model again."
        )
    return dataclasses.replace(request, model=runtime.ref)


DECIDES_BITS = (
    "torch", "diffusers", "transformers", "peft", "arithmetic", "system", "processor",
    "instructions", "device", "dtype", "threads", "gpu",
)  # fmt: skip
"""What of an environment decides the last bits of a picture: other kernels round differently."""


OTHER_PROCESSOR = 1.0
"""Mean difference of 255 up to which two processors' pictures of one edit may differ in full precision.

Rounding turns signs in the drag's loss, which a drag magnifies; how far was measured by replaying edits
as processors without AVX-512 and without AVX2 would compute them: docs/formats.md, "Replay".
"""


def expected_difference(then: Mapping[str, str], now: Mapping[str, str]) -> float | None:
    """The largest mean difference (of 255) that replaying an edit should show, by two environments.

    0 where everything that decides bits is the same: the same machine and versions. None where nothing is
    promised: on another kind of device, in half precision, with another arithmetic of our own. Records of
    before version 2 do not name their processor, which then counts as another one.
    """
    if "processor" in then and all(then.get(n) == now.get(n) for n in DECIDES_BITS):
        return 0.0
    alike = all(then.get(n) == now.get(n) for n in ("arithmetic", "device", "dtype"))
    full = now.get("device") == "cpu" and now.get("dtype") == "fp32"
    return OTHER_PROCESSOR if alike and full else None


def environment(runtime: Runtime) -> dict[str, str]:
    """Versions, device and settings of an edit; recorded, not part of a key."""
    from importlib.metadata import version

    names = ("torch", "diffusers", "transformers", "peft")
    made = {name: version(name) for name in names}
    made |= {
        "workbench": __version__,
        "arithmetic": keys.arithmetic(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": device.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": str(runtime.device),
        "dtype": runtime.dtype_name,
        "threads": str(torch.get_num_threads()),
    }
    if runtime.device.type == "cuda":
        made["gpu"] = torch.cuda.get_device_name(runtime.device)
    return made


def sentence(exc: BaseException) -> str:
    """An error as one sentence for the record."""
    if isinstance(exc, WorkbenchError):
        return str(exc)
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return f"The edit failed in a way that was not foreseen ({' '.join(text.split()):.300})."


def now() -> str:
    """This moment, ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
