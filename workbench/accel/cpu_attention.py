"""Faster attention and LoRA layers for narrow U-Nets on a CPU; the same numbers in float32.

Three layers of a small U-Net take most of its time on a CPU without being most of its arithmetic:

- attention with few channels per head (8 in `storybook`): torch's fused kernel multiplies a score
  block [rows, keys] with a [keys, 8] matrix, an inner shape at which matrix libraries crawl. The
  transposed product, [8, keys] times [keys, rows], is three to ten times as fast; everything else is
  the textbook: scores of a block of rows stay in the cache, and backward computes them again. So
  it was measured on AMD; on Intel, whose matrix library knows such shapes, torch's kernel takes half
  the time of ours and is left alone (`device.fused_attention_wins`).
- the gated feed-forward layer: one projection that is cut in two gives two strided halves, and a
  concatenation in backward; two projections by the two halves of the weight give neither.
- LoRA while it trains: x W + (x A) B makes four products and two sums over all tokens where the
  weights are small; x (W + A B) makes one, and the product of A and B does not depend on the tokens.

Rejected: bfloat16 for the attention alone (as fast in backward, not the same numbers), keeping the
probabilities instead of computing them again (fresh memory costs more than the exponentials), a
thread per head (Python's lock ate the gain with one picture).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor

WIDEST_HEAD = 16  # channels per head up to which the transposed products win
_LEAST_ROWS = 512  # queries: below, a fused kernel with less to set up wins
_BLOCK = 1_500_000  # bytes of one score block per thread: about a core's second-level cache
_LORA_GAIN = 8  # how much dearer an operation on all tokens is than one of a matrix product


def suits(query: Tensor, head_width: int) -> bool:
    """True when `narrow_attention` is faster for queries [N,L,C] with so many channels a head."""
    return (
        query.device.type == "cpu"
        and query.dtype == torch.float32
        and head_width <= WIDEST_HEAD
        and query.shape[1] >= _LEAST_ROWS
    )


def narrow_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V for each head of [N,L,C] and [N,M,C], C = heads * d; [N,L,C]."""
    out: Tensor = _Narrow.apply(query, key, value, heads)  # type: ignore[no-untyped-call]
    return out


def _rows(heads: int, queries: int, keys: int) -> int:
    return max(1, min(queries, torch.get_num_threads() * _BLOCK // (4 * heads * keys)))


def _by_head(x: Tensor, heads: int) -> Tensor:
    """View [N,L,C] as [N,heads,L,d]."""
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


class _Narrow(torch.autograd.Function):
    """Blocks of rows, all heads at once; outputs are formed as [heads, d, rows] and written back."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        q = _by_head(query * (query.shape[-1] // heads) ** -0.5, heads).contiguous()
        k, v = (_by_head(x, heads).transpose(2, 3).contiguous() for x in (key, value))  # [n,h,d,M]
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        result = _by_head(out, heads)
        n, _, rows, width = q.shape
        keys = k.shape[3]
        step = _rows(heads, rows, keys)
        block, narrow = q.new_empty(heads, step, keys), q.new_empty(heads, width, step)
        for i in range(n):
            for a in range(0, rows, step):
                b = min(rows, a + step)
                scores, part = block[:, : b - a], narrow[:, :, : b - a]
                torch.bmm(q[i, :, a:b], k[i], out=scores)
                torch.softmax(scores, -1, out=scores)
                torch.bmm(v[i], scores.transpose(1, 2), out=part)
                result[i, :, a:b] = part.transpose(1, 2)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out = ctx.saved_tensors
        n, heads, rows, width = q.shape
        keys = k.shape[3]
        g = _by_head(grad, heads).contiguous()
        qt, gt = q.transpose(2, 3).contiguous(), g.transpose(2, 3).contiguous()
        # sum over keys of probability times its gradient, the same for a whole row
        mean = (g * _by_head(out, heads)).sum(-1, keepdim=True)
        to_query = torch.empty_like(out)
        by_head = _by_head(to_query, heads)
        to_key, to_value = q.new_zeros(2, n, heads, width, keys)
        step = _rows(heads, rows, keys)
        blocks, narrow = q.new_empty(2, heads, step, keys), q.new_empty(heads, width, step)
        for i in range(n):
            for a in range(0, rows, step):
                b = min(rows, a + step)
                scores, change = blocks[:, :, : b - a]
                part = narrow[:, :, : b - a]
                torch.bmm(q[i, :, a:b], k[i], out=scores)
                torch.softmax(scores, -1, out=scores)
                torch.bmm(g[i, :, a:b], v[i], out=change)
                change.sub_(mean[i, :, a:b]).mul_(scores)
                to_value[i].baddbmm_(gt[i, :, :, a:b], scores)
                to_key[i].baddbmm_(qt[i, :, :, a:b], change)
                torch.bmm(k[i], change.transpose(1, 2), out=part)
                by_head[i, :, a:b] = part.transpose(1, 2)
        by_key = (x.permute(0, 3, 1, 2).flatten(2) for x in (to_key, to_value))
        return to_query.mul_(width**-0.5), *by_key, None


class NarrowAttentionProcessor:
    """Attention processor for a U-Net's transformer blocks: the narrow way where it pays, else torch's."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *_args: Any,
        **_kwargs: Any,
    ) -> Tensor:
        """[N,L,C] -> [N,L,C]; keys and values from `encoder_hidden_states` [N,M,C'] if given."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = attn.to_q(hidden_states)
        k, v = attn.to_k(source), attn.to_v(source)
        if len(k) != len(q):  # one row of keys for several of queries
            k, v = k.expand(len(q), -1, -1), v.expand(len(q), -1, -1)
        if attention_mask is None and suits(q, q.shape[-1] // attn.heads):
            mixed = narrow_attention(q, k, v, attn.heads)
        else:
            q, k, v = (_by_head(x, attn.heads) for x in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
            mixed = mixed.transpose(1, 2).flatten(2)
        out: Tensor = attn.to_out[0](mixed)
        return out


def plain(attn: Any) -> bool:
    """True when an attention has nothing that `NarrowAttentionProcessor` leaves out."""
    return (
        attn.spatial_norm is None
        and attn.group_norm is None
        and not attn.norm_cross
        and getattr(attn, "norm_q", None) is None
        and getattr(attn, "norm_k", None) is None
        and not attn.residual_connection
        and attn.rescale_output_factor == 1.0
        and attn.added_kv_proj_dim is None
        and not (attn.training and attn.to_out[1].p > 0)
    )


def split_gate(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GEGLU (Shazeer 2020, arXiv 2002.05202): value * gelu(gate), both halves of one weight [2D,C]."""
    values, gates = weight.chunk(2)
    value_bias, gate_bias = (None, None) if bias is None else bias.chunk(2)
    return F.linear(x, values, value_bias) * F.gelu(F.linear(x, gates, gate_bias))


class _SplitGate:
    """The forward of one diffusers GEGLU module."""

    def __init__(self, module: Any) -> None:
        self.projection = module.proj

    def __call__(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """[...,C] -> [...,D]."""
        return split_gate(hidden_states, self.projection.weight, self.projection.bias)


@contextlib.contextmanager
def fast_cpu_layers(unet: Any, *, narrow: bool = True) -> Iterator[None]:
    """Compute a float32 U-Net on a CPU in the way above during the block; elsewhere nothing changes.

    `narrow` False leaves attention to torch. What was found is put back, also on an error.
    """
    if unet.device.type != "cpu" or unet.dtype != torch.float32:
        yield
        return
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    found: list[tuple[Any, Any]] = []
    gates: list[Any] = []
    processor = NarrowAttentionProcessor()
    try:
        for module in unet.modules():
            if isinstance(module, Attention):
                if narrow and type(module.processor) is AttnProcessor2_0 and plain(module):
                    found.append((module, module.processor))
                    module.set_processor(processor)
            elif type(module) is GEGLU and type(module.proj) is torch.nn.Linear:
                gates.append(module)
                module.forward = _SplitGate(module)
        yield
    finally:
        for module, before in found:
            module.set_processor(before)
        for module in gates:
            del module.forward  # the class's own shows again


def merges_lora(layer: Any, rank: int) -> bool:
    """True when training a linear layer [D,C] is cheaper with its adapter added to the weight.

    On CUDA it always is: the adapter is float32, and x A B would make, and keep for backward, a float32
    copy of all tokens. Not so in bfloat16, whose weights have too few digits for what is added.
    """
    weight = layer.weight
    if weight.ndim != 2:
        return False
    if weight.device.type == "cuda":
        return bool(weight.dtype in (torch.float16, torch.float32))
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    out, given = weight.shape
    return bool(out * given <= _LORA_GAIN * rank * (out + given))


class MergedLoraLinear:
    """The forward of one peft layer: x (W + B A)^T, with gradients for A and B.

    The sum is formed in float32 and rounded once, as `lora.merged` does it for what comes after.
    """

    def __init__(self, base: Any, down: Tensor, up: Tensor) -> None:
        """`base` is the frozen linear layer, `down` [r,C] and `up` [D,r] the trained matrices."""
        self.base, self.down, self.up = base, down, up

    def __call__(self, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """[...,C] -> [...,D]."""
        weight = self.base.weight
        whole = torch.addmm(weight.float(), self.up, self.down).to(weight.dtype)
        return F.linear(x, whole, self.base.bias)
