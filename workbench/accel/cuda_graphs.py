"""CUDA graphs: record work on the GPU once and replay it without launching each kernel from Python.

One forward of a U-Net is a thousand small kernels whose launching takes several times as long as their
work. Work that is a function of tensors which stay where they are is recorded at its second call and
replayed from then on: the same kernels on the same addresses, so the same numbers. Whatever cannot be
recorded goes on as before, and the log says so. Without CUDA nothing is ever recorded.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch

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
