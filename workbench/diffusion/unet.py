"""The U-Net as plain functions of (latent, timestep), with mutual self-attention.

Features are read by a forward hook on `unet.up_blocks[i]`; nothing of the model is copied or
overridden. Latents and predictions are float32 here whatever the weights are, so that both sides
of every later difference come from the same precision.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.accel.cuda import GraphedForward, Recorder
from workbench.core.errors import held
from workbench.diffusion.ddim import Schedule

Tensor = torch.Tensor


class _Reached(BaseException):
    """Control flow, never seen outside: the feature is there, the rest of the U-Net is not needed.

    A BaseException, so that no `except Exception` inside a model can swallow it.
    """


class FeatureHook:
    """Output of a hooked block in the last forward."""

    def __init__(self) -> None:
        """Empty until the first forward."""
        self.output: Tensor | None = None

    def take(self) -> Tensor:
        """The output, released from the tap."""
        out, self.output = self.output, None
        if out is None:
            raise RuntimeError("the tapped block did not run")
        return out


def block_of(unet: Any, block: int) -> Any:
    """The up block whose output is feature `block` (1..4 as in the reference: 3 is up_blocks[2]).

    Counted from the output, so that models with three levels (XL) give the same depth.
    """
    blocks = unet.up_blocks
    return blocks[max(0, len(blocks) - 5 + block)]


@contextlib.contextmanager
def feature_hook(unet: Any, block: int, *, stop: bool = False) -> Iterator[FeatureHook]:
    """Read the output of an up block during forwards in this context; the hook is removed after.

    With `stop`, a forward ends at that block by an internal exception which the caller catches
    through `run_to_hook`.
    """
    found = FeatureHook()

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        found.output = output[0] if isinstance(output, tuple) else output
        if stop:
            raise _Reached

    handle = block_of(unet, block).register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@contextlib.contextmanager
def frozen(*modules: Any) -> Iterator[None]:
    """Switch weight gradients off, and put each parameter's switch back afterwards."""
    on = [p for m in modules for p in m.parameters() if p.requires_grad]
    for p in on:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in on:
            p.requires_grad_(True)


@dataclass(frozen=True, slots=True)
class Prompt:
    """An encoded prompt: its embedding [1,L,C], and SDXL's added conditions, each [1,...]."""

    embedding: Tensor
    added: Mapping[str, Tensor] | None = None


class Denoiser:
    """eps(z, t) and features of a U-Net for one prompt, with classifier-free guidance if above 1."""

    def __init__(
        self,
        unet: Any,
        schedule: Schedule,
        prompt: Prompt,
        *,
        negative: Prompt | None = None,
        guidance: float = 1.0,
        block: int = 3,
        graphs: Recorder | None = None,
    ) -> None:
        """Fix the conditions.

        Args:
            unet: a diffusers UNet2DConditionModel.
            schedule: noise levels and what the model predicts.
            prompt: what the picture shows.
            negative: of the unconditional row; needed when guidance > 1.
            guidance: s in eps = u + s (c - u); 1 runs no unconditional row.
            block: which feature, see `block_of`.
            graphs: records forwards and loops over this denoiser; None records nothing.
        """
        self.unet = unet
        self.schedule = schedule
        self.block = block
        self.guidance = guidance
        self.guided = guidance > 1.0 and negative is not None
        weight = next(unet.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.graphs = graphs
        self._attention: MutualSelfAttention | None = None
        self._recorded: dict[tuple[torch.Size, str], GraphedForward] = {}
        other = negative or prompt
        self._text = self._rows(prompt.embedding, other.embedding)
        own, others = prompt.added or {}, other.added or prompt.added or {}
        self._added = {k: self._rows(v, others.get(k)) for k, v in own.items()}
        self._times: dict[int, Tensor] = {}

    def _rows(self, cond: Tensor, uncond: Tensor | None) -> Tensor:
        rows = [uncond, cond] if self.guided and uncond is not None else [cond]
        return torch.cat([r.to(self.device, self.dtype) for r in rows])

    @property
    def rows(self) -> int:
        """U-Net rows per latent: 2 under guidance (unconditional first), else 1."""
        return 2 if self.guided else 1

    def eps(self, z: Tensor, t: int) -> Tensor:
        """Predicted noise float32 [N,C,h,w] of latents z [N,C,h,w] at timestep t."""
        if self.graphs is not None and not torch.is_grad_enabled():
            return self._noise(z, self._replayed(z, t, self.graphs)[1], t)
        return self._noise(z, self._forward(z, self._time(t)), t)

    def feature(self, z: Tensor, t: int) -> Tensor:
        """Feature [1,C',fh,fw] of one latent; the U-Net runs only as far as needed."""
        with feature_hook(self.unet, self.block, stop=True) as found, contextlib.suppress(_Reached):
            self._forward(z, self._time(t))
        return self._weighted(found.take())

    def both(self, z: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """(feature [1,C',fh,fw], predicted noise [1,C,h,w]) of one latent, in one forward."""
        if self.graphs is not None and not torch.is_grad_enabled():
            feature, out = self._replayed(z, t, self.graphs)
        else:
            feature, out = self._tapped(z, self._time(t))
        return self._weighted(feature), self._noise(z, out, t)

    @contextlib.contextmanager
    def with_attention(self, attention: MutualSelfAttention) -> Iterator[None]:
        """Tell it of the attention control that is on the U-Net during the block.

        Recorded forwards need to know: what they exchange with it has to keep its address.
        """
        self._attention = attention
        attention.still = self.graphs is not None
        try:
            yield
        finally:
            self._attention, attention.still = None, False
            # they were recorded through this attention's processors
            self._recorded = {k: v for k, v in self._recorded.items() if k[1] == "off"}

    def _replayed(self, z: Tensor, t: int, recorder: Recorder) -> tuple[Tensor, Tensor]:
        """Feature and output of a recorded forward; one recording per shape and attention mode."""
        attention = self._attention
        key = (z.shape, attention.mode if attention is not None else "off")
        if key not in self._recorded:
            # a proxy: a cycle would keep the device memory of both alive
            work = functools.partial(Denoiser._tapped, weakref.proxy(self))
            kind = ("forward", *key, self._text.shape, self.block)
            self._recorded[key] = GraphedForward(work, z, recorder, kind=kind)
        if attention is not None:
            attention.fill()
        feature, out = self._recorded[key](z, t)
        if attention is not None:
            attention.keep()
        return feature, out

    def _tapped(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with feature_hook(self.unet, self.block) as found:
            out = self._forward(z, t)
        return found.take(), out

    def _time(self, t: int) -> Tensor:
        if t not in self._times:  # once per timestep: a host-to-device copy waits for the device
            self._times[t] = torch.tensor(t, device=self.device)
        return self._times[t]

    def _forward(self, z: Tensor, t: Tensor) -> Tensor:
        n = len(z)
        rows = z.to(self.dtype).repeat(self.rows, 1, 1, 1)
        given: dict[str, Any] = {"encoder_hidden_states": self._text.repeat_interleave(n, 0)}
        if self._added:
            given["added_cond_kwargs"] = {
                k: v.repeat_interleave(n, 0) for k, v in self._added.items()
            }
        out: Tensor = self.unet(rows, t, return_dict=False, **given)[0]
        return out

    def _noise(self, z: Tensor, out: Tensor, t: int) -> Tensor:
        out = out.float()
        if self.guided:
            u, c = out.chunk(2)
            out = u + self.guidance * (c - u)
        return self.schedule.noise_of(z, out, t)

    def _weighted(self, feature: Tensor) -> Tensor:
        """Under guidance, both rows side by side in channels: (1-c) u and c v, c = s/(2s-1)."""
        if not self.guided:
            return feature
        c = self.guidance / (2 * self.guidance - 1)
        u, v = feature.chunk(2)
        return torch.cat([(1 - c) * u, c * v], dim=1)


_SD_BLOCKS = 16  # transformer blocks of Stable Diffusion 1.x and 2.x: down 0-5, mid 6, up 7-15


@dataclass(slots=True)
class ReferenceKV:
    """States that keys and values of the original are projected from, per (timestep, layer): [R,L,C].

    R is 1, or 2 under guidance (unconditional first). The hidden state before the projections is
    kept instead of the two results: half the memory, and the projections are a percent of the work.
    """

    states: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(s.numel() * s.element_size() for s in self.states.values())

    def to_tensors(self, prefix: str = "kv") -> dict[str, Tensor]:
        """Named tensors `kv.<timestep>.<layer>`, fit for safetensors."""
        return {f"{prefix}.{t}.{layer}": s for (t, layer), s in self.states.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str = "kv") -> ReferenceKV:
        """Read what `to_tensors` named; other names are passed over."""
        found: dict[tuple[int, int], Tensor] = {}
        for name, tensor in tensors.items():
            head, *rest = name.split(".")
            if head == prefix and len(rest) == 2:
                found[int(rest[0]), int(rest[1])] = tensor
        return cls(found)


def self_attentions(unet: Any) -> list[tuple[str, Any]]:
    """(processor name, Attention) of the self-attention of each transformer block, forward order."""
    stages = [
        *((f"down_blocks.{i}", b) for i, b in enumerate(unet.down_blocks)),
        ("mid_block", unet.mid_block),
        *((f"up_blocks.{i}", b) for i, b in enumerate(unet.up_blocks)),
    ]
    return [
        (f"{name}.attentions.{j}.transformer_blocks.{k}.attn1.processor", block.attn1)
        for name, stage in stages
        for j, transformer in enumerate(getattr(stage, "attentions", None) or ())
        for k, block in enumerate(getattr(transformer, "transformer_blocks", ()))
        if not getattr(block, "only_cross_attention", False)
    ]


def shared_layers(unet: Any, start_layer: int) -> list[int]:
    """Indices in `self_attentions` of the layers from `start_layer` on.

    `start_layer` is counted in Stable Diffusion's 16 blocks. Other models: layer 10 means all of the
    last two up blocks, 7 all up blocks, 6 the middle as well, 0 everything, 16 nothing; in between
    in proportion.
    """
    names = [name for name, _ in self_attentions(unet)]
    n = len(names)
    if n == _SD_BLOCKS:
        return list(range(min(start_layer, n), n))
    last_two = tuple(f"up_blocks.{len(unet.up_blocks) - i}." for i in (1, 2))
    middle = sum(name.startswith("down") for name in names)
    up = sum(not name.startswith("up") for name in names)
    late = n - sum(name.startswith(last_two) for name in names)
    anchors = [(0, 0), (6, middle), (7, up), (10, late), (_SD_BLOCKS, n)]
    for (a, first), (b, last) in itertools.pairwise(anchors):
        if a <= start_layer <= b:
            start = round(first + (last - first) * (start_layer - a) / (b - a))
            return list(range(start, n))
    return []


class MutualSelfAttention:
    """Switchboard of the wrapped attentions: what they do in the coming forward.

    mode "off" leaves attention alone; "pairs" treats rows as (original, edited) pairs in which both
    read the original; "record" keeps the original's states; "replay" reads the kept ones.
    """

    def __init__(self, kv: ReferenceKV | None = None) -> None:
        """`kv` is filled by "record" and read by "replay"."""
        self.kv = kv or ReferenceKV()
        self.mode = "off"
        self.t = 0  # timestep of the coming forward: key of record and replay
        self.still = (
            False  # exchange through tensors that stay where they are (see `accel/cuda.py`)
        )
        self._slots: dict[int, Tensor] = {}

    def fill(self) -> None:
        """Before a still forward: what it will read, at timestep `t`."""
        if self.mode != "replay":
            return
        for (t, layer), state in self.kv.states.items():
            if t != self.t:
                continue
            if layer not in self._slots:
                self._slots[layer] = torch.empty_like(state)
            self._slots[layer].copy_(state)

    def keep(self) -> None:
        """After a still forward: what it has recorded, at timestep `t`."""
        if self.mode == "record":
            for layer, hidden in self._slots.items():
                self.kv.states[self.t, layer] = hidden.clone()

    def source(self, layer: int, hidden: Tensor) -> Tensor:
        """States [N,L,C] from which a layer projects keys and values, given its own."""
        if self.mode == "pairs":
            groups = hidden.unflatten(0, (-1, 2))  # under guidance: (u_o, u_e), (c_o, c_e)
            shared: Tensor = groups[:, :1].expand(-1, 2, -1, -1).flatten(0, 1)
            return shared
        if self.mode == "record":
            if self.still:
                self._slots[layer] = hidden.detach()
            else:
                self.kv.states[self.t, layer] = hidden.detach().clone()
        elif self.mode == "replay":
            state = self._slots[layer] if self.still else self.kv.states[self.t, layer]
            return state.to(hidden)
        return hidden


class _Wrapped:
    """A processor that asks the switchboard where keys and values come from."""

    def __init__(self, inner: Any, layer: int, attention: MutualSelfAttention) -> None:
        self.inner, self.layer, self.attention = inner, layer, attention

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        source = encoder_hidden_states
        if source is None and self.attention.mode != "off":
            found = self.attention.source(self.layer, hidden_states)
            source = None if found is hidden_states else found
        return self.inner(attn, hidden_states, source, *args, **kwargs)


@contextlib.contextmanager
def mutual_self_attention(
    unet: Any, start_layer: int, kv: ReferenceKV | None = None
) -> Iterator[MutualSelfAttention]:
    """Wrap the self-attentions from `start_layer` on; the processors found are put back after,
    also on an error or a cancel.

    Starts in mode "off": set `mode` and `t` before each forward.
    """  # fmt: skip
    attention = MutualSelfAttention(kv)
    layers = self_attentions(unet)
    found = [(layers[i][1], layers[i][1].processor) for i in shared_layers(unet, start_layer)]
    wanted = shared_layers(unet, start_layer)
    try:
        for i, (attn, processor) in zip(wanted, found, strict=True):
            attn.set_processor(_Wrapped(processor, i, attention))
        yield attention
    finally:
        with held():
            for attn, processor in found:
                attn.set_processor(processor)
