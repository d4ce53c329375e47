"""Recordings: without CUDA everything goes through the same buffers, and nothing is recorded."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from workbench.accel.cuda import GraphedCallable, GraphedForward, Recorder

CPU = torch.device("cpu")


class Tape:
    """A recorder whose 'graph' does the work again, in place, as a device does."""

    def __init__(self, refuses: str = "") -> None:
        self.device, self.records = CPU, True
        self.known: set[Any] = set()
        self.replayed = self.aside_calls = 0
        self.refuses = refuses

    def give_up(self) -> None:
        self.records = False

    def aside(self) -> Any:
        self.aside_calls += 1
        return Recorder(CPU).aside()

    def record(self, work: Any) -> tuple[Any, tuple[torch.Tensor, ...]]:
        if self.refuses:
            raise RuntimeError(self.refuses)
        out = work()
        tape = self

        class Graph:
            def replay(self) -> None:
                tape.replayed += 1
                for kept, new in zip(out, work(), strict=True):
                    kept.copy_(new)

        return Graph(), out


def counting(x: torch.Tensor) -> Any:
    return lambda: (x.add_(1).clone(),)


def test_the_second_call_records_and_all_later_ones_replay() -> None:
    tape = Tape()
    x = torch.zeros(2)
    work = GraphedCallable(lambda: (x * 2,), tape)  # type: ignore[arg-type]
    seen = []
    for value in range(5):
        x.fill_(value)
        seen.append(float(work()[0][0]))
    assert seen == [0, 2, 4, 6, 8]
    assert (tape.aside_calls, tape.replayed) == (1, 4)


def test_what_a_replay_returns_is_not_overwritten_by_the_next() -> None:
    for lends in (False, True):
        x = torch.zeros(1)
        work = GraphedCallable(counting(x), Tape(), lends=lends)  # type: ignore[arg-type]
        work()
        first = work()[0]
        before = float(first)
        work()
        assert (float(first) != before) is lends


def test_what_was_recorded_before_needs_no_first_call() -> None:
    tape = Tape()
    for kind, asides in (("a", 1), ("a", 1), ("b", 2), (None, 3), (None, 4)):
        work = GraphedCallable(counting(torch.zeros(1)), tape, kind=kind)  # type: ignore[arg-type]
        work()
        work()
        assert tape.aside_calls == asides


def test_what_cannot_be_recorded_goes_on_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.zeros(1)
    tape = Tape("operation not permitted")
    work = GraphedCallable(counting(x), tape)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        assert [float(work()[0]) for _ in range(4)] == [1, 2, 3, 4]
    assert tape.replayed == 0
    assert [r.message for r in caplog.records] == [
        "no CUDA graph, going on without: operation not permitted"
    ]
    other = GraphedCallable(counting(x), tape)  # type: ignore[arg-type]
    assert [float(other()[0]) for _ in range(3)] == [5, 6, 7] and len(caplog.records) == 1


def test_memory_that_runs_out_while_recording_is_not_hidden() -> None:
    work = GraphedCallable(lambda: (torch.zeros(1),), Tape("CUDA error: out of memory"))  # type: ignore[arg-type]
    work()
    with pytest.raises(RuntimeError, match="out of memory"):
        work()


def test_a_forward_reads_its_own_copy_of_latent_and_timestep() -> None:
    addresses = set()

    def forward(z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        addresses.add((z.data_ptr(), t.data_ptr()))
        return (z * t,)

    work = GraphedForward(forward, torch.zeros(1, 2), Recorder(CPU))
    for t in (3, 7):
        z = torch.full((1, 2), 2.0)
        assert work(z, t)[0].tolist() == [[2.0 * t, 2.0 * t]]
    assert len(addresses) == 1
