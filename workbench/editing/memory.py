"""The memory of an edit, estimated before it runs; a second try with less; the environment it ran in.

The activations that autograd keeps are counted, not guessed: the U-Net is built without storage (on
torch's meta device) from its configuration and run once at the request's size; what it saves for the
backward pass is added up. Fused attention keeps its inputs and output and never the matrix of
weights, as on every device that the workbench runs on.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from workbench import __version__
from workbench.core import keys
from workbench.core.errors import ModelError, OutOfMemory, WorkbenchError
from workbench.core.request import EditRequest
from workbench.diffusion import device as devices
from workbench.diffusion.registry.files import ModelFiles
from workbench.drag.latents import KV_LIMIT
from workbench.imaging.crop import whole

if TYPE_CHECKING:
    from workbench.diffusion.model import Runtime


log = logging.getLogger(__name__)

_SIZES = {"fp32": 4, "fp16": 2, "bf16": 2}
_SLACK = 1.15  # allocator's gaps and short-lived tensors, of everything
_CHECKPOINTED = 0.4  # of the activations that stay with gradient checkpointing
# A trained adapter keeps its input, in float32 where it is not added to the weight
# (`accel/cpu_attention.py`); counted on a real U-Net. On an H100 Stable Diffusion 1.5 in float16 with a
# batch of 4 then held 6.3 GB while it was trained; 6.6 are estimated.
_ADAPTED, _ADAPTED_APART = 1.25, 1.9
_FIXED = {"cuda": 600 << 20, "mps": 300 << 20, "cpu": 250 << 20}  # context, kernels, workspaces


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that an edit needs at its peak, per stage, and what there is.

    `free` counts what the loaded model holds already. `advice` is the sentence for the user, empty
    when it fits.
    """

    stages: Mapping[str, int]
    free: int
    total: int
    sparing: int  # peak in the low-memory mode
    advice: str = ""

    @property
    def peak(self) -> int:
        """The most that any stage needs."""
        return max(self.stages.values())

    @property
    def fits(self) -> bool:
        """True when the edit fits without the low-memory mode."""
        return self.peak <= self.free

    @property
    def fits_sparing(self) -> bool:
        """True when it fits in the low-memory mode."""
        return self.sparing <= self.free


def estimate(
    request: EditRequest,
    files: ModelFiles,
    *,
    native: int,
    device: str,
    dtype: str,
    loaded: bool,
    trained: bool = False,
    memory: devices.Memory | None = None,
) -> Need:
    """The memory that a request needs on a device.

    Args:
        request: the edit; its LoRA batch, working size and guidance decide.
        files: of its model.
        native: the model's native size, px.
        device: name such as "cuda:0".
        dtype: fp32, fp16 or bf16.
        loaded: whether the model's weights are on the device already.
        trained: whether the LoRA is there already, so that none is trained.
        memory: free and total bytes; asked of the device when None.
    """
    found = memory or devices.memory(device)
    kind = device.partition(":")[0]
    weights = _weights(files, dtype)
    free = found.free + (weights if loaded else 0)
    stages = _stages(request, files, native, kind, dtype, trained)
    base = weights + _FIXED.get(kind, _FIXED["cpu"])
    peaks = {name: int(base + extra * _SLACK) for name, extra in stages.items()}
    sparing = int(base + max(v * _CHECKPOINTED for v in stages.values()) * _SLACK)
    made = Need(peaks, free, found.total, sparing)
    if made.fits:
        return made
    return replace(made, advice=_advice(request, files, native, kind, dtype, trained, base, made))


def _stages(
    request: EditRequest, files: ModelFiles, native: int, kind: str, dtype: str, trained: bool
) -> dict[str, int]:
    """Bytes beyond the weights, per stage."""
    crop = whole(request.image.width, request.image.height, native, longest=request.working_size)
    width, height = crop.working
    guided = request.generation is not None and request.generation.guidance > 1
    rows = 2 if guided or request.inversion.guidance > 1 else 1
    activations = _counted(files)
    size = _SIZES[dtype]
    made = {
        "drag": activations(rows, width, height) * size,
        "decode": _decoder(files, width, height) * (4 if files.is_sdxl else size),
    }
    if not trained and request.lora.steps and request.generation is None and not request.lora_file:
        side = request.lora.resolution
        scale = side / min(width, height) if side else 1.0
        count = activations(request.lora.batch_size, int(width * scale), int(height * scale))
        apart = dtype == "bf16" or (dtype == "fp16" and kind != "cuda")
        made["lora"] = int(count * size * (_ADAPTED_APART if apart else _ADAPTED))
    # the original's attention states stay while the edit is dragged
    made["drag"] += min(KV_LIMIT, made["drag"] // 2)
    return made


def _advice(
    request: EditRequest,
    files: ModelFiles,
    native: int,
    kind: str,
    dtype: str,
    trained: bool,
    base: int,
    made: Need,
) -> str:
    """The sentence about the first smaller setting that fits."""

    def peak(changed: EditRequest) -> int:
        stages = _stages(changed, files, native, kind, dtype, trained)
        return int(base + max(stages.values()) * _SLACK)

    short = f"This needs about {made.peak / 1e9:.1f} GB and {made.free / 1e9:.1f} GB are free; "
    if made.fits_sparing:
        return short + "the low-memory mode fits (slower)."
    single = replace(request, lora=replace(request.lora, batch_size=1))
    if request.lora.batch_size > 1 and peak(single) <= made.free:
        return short + f"a LoRA batch size of 1 fits (now {request.lora.batch_size})."
    now = request.working_size or native
    for size in range((now - 1) // 64 * 64, 63, -64):
        if peak(replace(single, working_size=size)) <= made.free:
            batch = " with a LoRA batch size of 1" if request.lora.batch_size > 1 else ""
            return short + f"a working size of {size} px{batch} fits (now {now} px)."
    return short + "free some memory, or choose a smaller model."


def _weights(files: ModelFiles, dtype: str) -> int:
    """Bytes of all weights in a precision."""
    from workbench.diffusion.registry.files import read_header

    total = 0
    for path in {p for paths in files.weights.values() for p in paths}:
        for name, facts in read_header(path).items():
            if name != "__metadata__":
                count = 1
                for side in facts["shape"]:
                    count *= side
                total += count * _SIZES[dtype]
    return total


def _decoder(files: ModelFiles, width: int, height: int) -> int:
    """Elements alive at once while decoding: a few maps of the widest full-size layer."""
    channels = files.config("vae").get("block_out_channels", [128, 256, 512, 512])
    return 5 * int(channels[min(1, len(channels) - 1)]) * width * height


def _counted(files: ModelFiles) -> Callable[[int, int, int], int]:
    """The function (rows, width, height) -> elements kept for the backward pass."""
    config = {k: _hashable(v) for k, v in files.config("unet").items() if not k.startswith("_")}
    factor = 2 ** (len(files.config("vae").get("block_out_channels", [0] * 4)) - 1)
    frozen = tuple(sorted(config.items(), key=lambda kv: kv[0]))

    def count(rows: int, width: int, height: int) -> int:
        return rows * _saved_elements(frozen, max(1, width // factor), max(1, height // factor))

    return count


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list) else value


@lru_cache(maxsize=64)
def _saved_elements(config: tuple[tuple[str, Any], ...], width: int, height: int) -> int:
    """Elements that one latent row [1,C,height,width] leaves for the backward pass."""
    from diffusers import UNet2DConditionModel

    given = dict(config)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(given).requires_grad_(False).eval()
        latent = torch.zeros(1, unet.config.in_channels, height, width, requires_grad=True)
        text = torch.zeros(1, 77, unet.config.cross_attention_dim)
        more: dict[str, Any] = {}
        if unet.config.addition_embed_type == "text_time":
            pooled = (
                unet.config.projection_class_embeddings_input_dim
                - 6 * unet.config.addition_time_embed_dim
            )
            added = {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)}
            more["added_cond_kwargs"] = added
        step = torch.tensor(500)
    own = {p.untyped_storage()._cdata for p in unet.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        where = tensor.untyped_storage()._cdata
        if where not in own:
            seen[where] = max(seen.get(where, 0), tensor.numel())
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), _Fused():
        unet(latent, step, text, return_dict=False, **more)
    return sum(seen.values())


class _Fused(TorchFunctionMode):
    """Attention as the fused kernels do it: of the matrix of weights nothing is kept."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace scaled-dot-product attention, leave everything else."""
        if func is functional.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """A stand-in that keeps what a fused attention keeps: queries, keys, values and the output."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
        """Shapes only: the output has the queries' shape with the values' width."""
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # pragma: no cover - never asked for
        """Not needed: only the forward pass is looked at."""
        return grad, grad, grad


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
        if isinstance(exc, RuntimeError) and self._patient and devices.lenient(exc):
            self.again = True
        elif isinstance(exc, Exception) and devices.is_out_of_memory(exc):
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
        devices.release()
    raise _smaller(runtime, request)


def _smaller(runtime: Runtime, request: EditRequest) -> OutOfMemory:
    """The advice when memory was not enough."""
    now = request.working_size or runtime.native_size
    size = max(64, now * 3 // 4 // 64 * 64)
    wishes = [f"a working size of {size} px (now {now})"]
    if request.lora.batch_size > 1:
        wishes.append(f"a LoRA batch size of 1 (now {request.lora.batch_size})")
    if runtime.dtype_name == "fp32" and runtime.device.type != "cpu":
        wishes.append("the precision fp16")
    found = devices.memory(str(runtime.device))
    return OutOfMemory(
        f"The device {runtime.device} ran out of memory ({found.free / 1e9:.1f} of "
        f"{found.total / 1e9:.1f} GB are free now), in the low-memory mode, too; choose "
        f"{' or '.join(wishes)}.",
        code="memory", working_size=size,
    )  # fmt: skip


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
"""Parts of the environment that decide the last bits of a picture: other kernels round differently."""


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
        "processor": devices.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability()
        + (" fused" if devices.fused_attention_wins() else ""),
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
