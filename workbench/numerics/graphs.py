"""The same kernels again without asking Python for each: CUDA graphs, where they help.

One step of a drag or of a LoRA training is one or two thousand small kernels whose launching takes
longer than their work. A step that is a function of tensors which stay where they are is recorded at
its third call and replayed from then on: the same kernels on the same addresses, so the same numbers.
Whatever cannot be recorded goes on as before, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

Tensor = torch.Tensor
log = logging.getLogger(__name__)

_WARM = 2  # calls before recording: libraries choose their kernels in the first ones


class Recorded:
    """A function without arguments that reads and writes tensors in place, replayed where possible.

    What it returns is overwritten by the next call: copy what is to last. Everything that the function
    reads must keep its address, and it must not wait for the device.
    """

    def __init__(self, work: Callable[[], tuple[Tensor, ...]], *, on: bool) -> None:
        """`on` is only looked at where there is CUDA."""
        self._work = work
        self._on = on and torch.cuda.is_available()
        self._calls = 0
        self._side = torch.cuda.Stream() if self._on else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._out: tuple[Tensor, ...] = ()

    @property
    def replays(self) -> bool:
        """Whether the graph is there."""
        return self._graph is not None

    def __call__(self) -> tuple[Tensor, ...]:
        """Do the work, or replay it.

        Raises:
            whatever the work raises when it is not being recorded; torch.OutOfMemoryError always.
        """
        if self._graph is not None:
            self._graph.replay()
            return self._out
        if not self._on or self._side is None:
            return self._work()
        self._calls += 1
        if self._calls <= _WARM:
            return self._aside()
        try:
            graph = torch.cuda.CUDAGraph()
            # other threads (a page, a preview) may use the device meanwhile: only ours is watched
            with torch.cuda.graph(graph, stream=self._side, capture_error_mode="thread_local"):
                out = self._work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as exc:
            log.warning("no CUDA graph, going on without: %s", " ".join(str(exc).split())[:300])
            self._on = False
            torch.cuda.synchronize()
            return self._work()
        self._graph, self._out = graph, out
        graph.replay()  # recording has computed nothing
        return out

    def _aside(self) -> tuple[Tensor, ...]:
        """On the stream on which it will be recorded, so that autograd binds itself to that one."""
        assert self._side is not None
        main = torch.cuda.current_stream()
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            out = self._work()
        main.wait_stream(self._side)
        return out
