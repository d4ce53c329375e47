"""Mutual self-attention: the edited picture reads the original's keys and values.

MasaCtrl (Cao et al. 2023, arXiv 2304.08465) as DragDiffusion uses it while denoising
(docs/algorithm.md 3.1). A wrapper round each self-attention's processor hands it the original's hidden
states as the source of keys and values; which attention kernel runs inside does not matter. Either the
original is a row of the same batch, or its hidden states were recorded once per picture and are
replayed, which gives the same numbers for half the work.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.core.interrupts import held

Tensor = torch.Tensor

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
            False  # exchange through tensors that stay where they are (see `accel/cuda_graphs.py`)
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
def sharing(
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
