"""Estimate the memory of an edit before it runs.

The activations that autograd keeps are counted, not guessed: the U-Net is built without storage (on
torch's meta device) from its configuration and run once at the request's size; what it saves for the
backward pass is added up. Fused attention keeps its inputs and output and never the matrix of
weights, as on every device that the workbench runs on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from workbench.core.request import EditRequest
from workbench.diffusion import device as devices
from workbench.diffusion.registry import ModelFiles
from workbench.imaging.crop import whole

log = logging.getLogger(__name__)

_SIZES = {"fp32": 4, "fp16": 2, "bf16": 2}
_SLACK = 1.15  # allocator's gaps and short-lived tensors, of everything
_CHECKPOINTED = 0.4  # of the activations that stay with gradient checkpointing
# A trained adapter keeps its input, in float32 where it is not added to the weight
# (`accel/cpu_attention.py`); counted on a real U-Net. On an H100 Stable Diffusion 1.5 in float16 with a
# batch of 4 then held 6.3 GB while it was trained; 6.6 are estimated.
_ADAPTED, _ADAPTED_APART = 1.25, 1.9
_FIXED = {"cuda": 600 << 20, "mps": 300 << 20, "cpu": 250 << 20}  # context, kernels, workspaces
_ATTENTION_KEPT = 640 << 20  # most that the original's attention states may take (methods.finish)


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
    made["drag"] += min(_ATTENTION_KEPT, made["drag"] // 2)
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
