"""Faster execution on CUDA: record work once and replay it, keep feature maps channels-last."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
log = logging.getLogger(__name__)

_WARM = 1  # calls before recording: libraries choose and load their kernels in the first one
_SPARE = 512 << 20  # bytes of the allocator's reserve that are left to it


class Recorder:
    """Stream and shared memory of the recordings of one model.

    Recordings take turns in this memory. Without CUDA nothing is recorded, and all goes the same way
    otherwise.
    """

    def __init__(self, device: torch.device) -> None:
        """Nothing is recorded yet; the memory goes back when this object and its recordings are gone."""
        self.device = device
        self.records = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self.records else None
        self._pool = torch.cuda.MemPool() if self.records else None
        # The pool has a part on the host, too, which torch gives up with the last recording and then
        # refuses to use again: a recording of next to nothing keeps it.
        self._keeper: Any = None
        if self.records:
            try:
                self._keeper = self._first()
            except RuntimeError as exc:
                log.warning("nothing can be recorded here: %s", " ".join(str(exc).split())[:300])
                self.give_up()
        self.known: set[Hashable] = set()  # kinds of work that were recorded

    def _first(self) -> Any:
        # nothing here ever accumulates a gradient, which is what torch warns about
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        with torch.cuda.device(self.device):
            one = torch.zeros(1, device=self.device).add_(1)
            return self.record(lambda: (one.add_(1),))

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """On the recordings' stream (autograd binds itself to it), with the recordings' memory."""
        if self._stream is None or self._pool is None:
            yield
            return
        with torch.cuda.device(self.device):
            main = torch.cuda.current_stream()
            self._stream.wait_stream(main)
            try:
                with torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(self._pool):
                    yield
            finally:
                main.wait_stream(self._stream)

    def give_up(self) -> None:
        """Record no more: after a failed recording torch takes the pool for one that is in use."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.records = False
        self._stream = self._pool = None

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Any, tuple[Tensor, ...]]:
        """(graph, what the work returned) of work that has run `aside` before; computes nothing.

        torch's own context gives the allocator's reserve back first, which takes as long as the
        recording; here only a large one. The garbage collector must not free device memory meanwhile.

        Raises:
            RuntimeError: when the work cannot be recorded.
        """
        assert self._stream is not None and self._pool is not None
        graph = torch.cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.device(self.device):
                torch.cuda.synchronize()
                spare = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
                if spare > _SPARE:  # what the call before has worked in, beside the pool
                    torch.cuda.empty_cache()
                with torch.cuda.stream(self._stream):
                    # other threads (a page, a preview) may use the device: only ours is watched
                    graph.capture_begin(self._pool.id, capture_error_mode="thread_local")  # type: ignore[arg-type]
                    try:
                        out = work()
                    finally:
                        graph.capture_end()
        finally:
            if collects:
                gc.enable()
        return graph, out


class GraphedCallable:
    """A function without arguments that reads and writes tensors in place, replayed where possible.

    Everything that the function reads must keep its address, and it must not wait for the device.
    """

    def __init__(
        self,
        work: Callable[[], tuple[Tensor, ...]],
        recorder: Recorder | None,
        *,
        kind: Hashable = None,
        lends: bool = False,
    ) -> None:
        """Without a recorder the work is simply done.

        `kind` names all that decides which kernels the work runs: what was recorded once under it is
        recorded at the first call the next time. With `lends`, a replay returns the recording's own
        tensors, which the next replay of whatever recording overwrites; else copies.
        """
        self._work = work
        self._recorder = recorder
        self._kind = kind
        self._lends = lends
        self._calls = 0
        self._graph: Any = None
        self._out: tuple[Tensor, ...] = ()

    def __call__(self) -> tuple[Tensor, ...]:
        """Do the work, or replay it.

        Raises:
            whatever the work raises when it is not being recorded; torch.OutOfMemoryError always.
        """
        if self._graph is not None:
            return self._replayed()
        recorder = self._recorder
        if recorder is None:
            return self._work()
        self._calls += 1
        if recorder.records and (self._calls > _WARM or self._kind in recorder.known):
            try:
                self._graph, self._out = recorder.record(self._work)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as exc:
                if "out of memory" in str(exc):
                    raise
                why = " ".join(str(exc).split())[:300]
                log.warning("no CUDA graph, going on without: %s", why)
                recorder.give_up()
                return self._work()
            if self._kind is not None:
                recorder.known.add(self._kind)
            return self._replayed()
        with recorder.aside():
            return self._work()

    def _replayed(self) -> tuple[Tensor, ...]:
        self._graph.replay()
        return self._out if self._lends else tuple(out.clone() for out in self._out)


class GraphedForward:
    """A function of (latent [N,C,h,w], timestep []), recorded; its inputs are copied in."""

    def __init__(
        self,
        work: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
        latent: Tensor,
        recorder: Recorder,
        *,
        kind: Hashable = None,
    ) -> None:
        """`latent` gives shape, type and device."""
        given = self._latent = torch.empty_like(latent)
        level = self._t = torch.zeros((), dtype=torch.long, device=latent.device)
        self._recorded = GraphedCallable(lambda: work(given, level), recorder, kind=kind)

    def __call__(self, latent: Tensor, t: int) -> tuple[Tensor, ...]:
        """The work's outputs, to keep."""
        self._latent.copy_(latent)
        self._t.fill_(t)
        return self._recorded()


class AsyncScalarReader:
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


class _Norm:
    """The forward of one group norm."""

    def __init__(self, module: Any, norms: Any) -> None:
        self.module, self.norms = module, norms

    def __call__(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> the same, in the same order."""
        m = self.module
        if self.norms.suits(x, m.num_groups, m.weight, m.bias):
            out: Tensor = self.norms.group_norm(x, m.num_groups, m.weight, m.bias, m.eps)
            return out
        return F.group_norm(x, m.num_groups, m.weight, m.bias, m.eps)


def transformer_output(
    module: Any,
    hidden_states: Tensor,
    residual: Tensor,
    batch_size: int,
    height: int,
    width: int,
    inner_dim: int,
) -> Tensor:
    """Tokens [N,H W,C] of a diffusers transformer back to its map [N,C,H,W], plus the residual."""
    linear = module.use_linear_projection
    tokens = module.proj_out(hidden_states) if linear else hidden_states
    # a view of the tokens is a channels-last map
    out: Tensor = tokens.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
    return (out if linear else module.proj_out(out)) + residual


@functools.cache
def _norms(device: torch.device) -> Any:
    """The kernels, if they run on this device."""
    try:
        from workbench.accel import groupnorm_triton as norms

        x = torch.ones(1, 320, 8, 8, device=device, dtype=torch.float16)
        x = x.to(memory_format=torch.channels_last)
        ones = x.new_ones(320)
        norms.group_norm(x, 32, ones, ones, 1e-5)
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernels
    except Exception as exc:  # no Triton, no C compiler for it, a GPU too old: each has other words
        log.warning("group norm goes torch's way, which is slower: %s", str(exc)[:200])
        return None
    return norms


@contextlib.contextmanager
def channels_last(unet: Any, *, on: bool) -> Iterator[None]:
    """Keep a U-Net's maps channels-last during the block; what was found is put back, on an error too."""
    norms = _norms(unet.device) if on else None
    if norms is None:
        yield
        return
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    name = "_get_output_for_continuous_inputs"
    changed: list[tuple[Any, str]] = []
    try:
        for module in unet.modules():
            if type(module) is torch.nn.GroupNorm:
                setattr(module, "forward", _Norm(module, norms))  # noqa: B010
                changed.append((module, "forward"))
            elif isinstance(module, Transformer2DModel) and module.is_input_continuous:
                setattr(module, name, functools.partial(transformer_output, module))
                changed.append((module, name))
        yield
    finally:
        for module, what in changed:
            delattr(module, what)  # the class's own shows again
