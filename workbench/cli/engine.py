"""Shared by the commands that compute: an App, progress on standard error, Ctrl-C and SIGTERM.

Work that does not come to a next step within two seconds (an import, the reading of a large model)
is stopped as if asked a second time. What is being put back as it was (the model, a record) is
finished first. Nothing half-written is left either way: files get their names
in one step.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import dataclasses
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO

from workbench.app import App
from workbench.cli.parsers import read_settings
from workbench.core.errors import BadInput, Cancelled, StoreError, interrupt
from workbench.core.record import STAGES, JobState, OnStep, StepInfo, stage_label
from workbench.jobs import CancelToken, Job
from workbench.storage.settings import Settings

_PATIENCE = 2.0


@contextlib.contextmanager
def stopping(token: CancelToken, patience: float = _PATIENCE) -> Iterator[None]:
    """Let signals set `token` while the block runs; the old handlers come back afterwards.

    Raises:
        KeyboardInterrupt: in the block, at the second signal or when the first was not heard.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    timer: threading.Timer | None = None

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal timer
        if token.cancelled:
            interrupt()
            return
        token.set()
        timer = threading.Timer(patience, _thread.interrupt_main)
        timer.daemon = True
        timer.start()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, on_signal) for n in numbers]
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


_WIDTH = max(map(len, STAGES.values()))
_PLAIN_EVERY = 10.0  # seconds between two lines of one stage where there is no terminal
_LIVE_EVERY = 0.1


class Progress:
    """Shows `StepInfo`s as they come; call it as an `OnStep`, and `close` it at the end."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`live` redraws one line (default: when `stream` is a terminal)."""
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._live = self._stream.isatty() if live is None else live
        self._clock = clock
        self._stage = ""
        self._prefix = ""
        self._first = (0, 0.0)  # step and time of the stage's first report
        self._shown = 0.0
        self._last: StepInfo | None = None
        self._open = False

    def title(self, prefix: str) -> None:
        """Put `prefix` (such as '2/5 robot.png') before the lines that follow."""
        self.close()
        self._prefix = f"{prefix}  " if prefix else ""
        self._stage = ""

    def __call__(self, info: StepInfo) -> None:
        """Show one step."""
        if self._quiet:
            return
        now = self._clock()
        if info.stage != self._stage or (self._last and info.step < self._last.step):
            self.close()
            self._stage, self._first, self._shown = info.stage, (info.step, now), 0.0
        self._last = info
        done = info.step >= info.total
        pause = _LIVE_EVERY if self._live else _PLAIN_EVERY
        if not done and self._shown and now - self._shown < pause:
            return
        if not self._live and not done and not self._shown and not info.waiting:
            self._shown = now  # the first plain line waits: most stages are over by then
            return
        self._shown = now
        self._write(self.line(info, now), end=done)

    def line(self, info: StepInfo, now: float) -> str:
        """The text for a step: stage, bar, count, what is left to go, speed, time left."""
        if info.waiting:
            name = f"{self._prefix}{stage_label(info.stage):<{_WIDTH}}"
            return f"{name}  another run is at the same; waiting for it, {_clock_text(now - self._first[1])}"
        total, step = max(1, info.total), min(info.step, max(1, info.total))
        filled = round(20 * step / total)
        parts = [
            f"{self._prefix}{stage_label(info.stage):<{_WIDTH}}",
            "[" + "#" * filled + "." * (20 - filled) + f"] {info.step}/{info.total}",
        ]
        if info.cached:
            parts.append("from the cache")
        steps, seconds = info.step - self._first[0], now - self._first[1]
        if steps > 0 and seconds > 0.5 and not info.cached:
            pace = steps / seconds
            parts.append(f"{pace:.1f}/s" if pace >= 1 else f"{1 / pace:.1f} s each")
            if info.step < info.total:
                parts.append(f"{_clock_text((info.total - info.step) / pace)} left")
        if info.distances:
            parts.append("to go " + " ".join(f"{d:.0f}" for d in info.distances[:6]) + " px")
        if info.loss is not None:
            parts.append(f"loss {info.loss:.4g}")
        return "  ".join(parts)

    def close(self) -> None:
        """End the live line, so that what follows starts on its own."""
        if self._open:
            self._open = False
            self._send("\n")

    def _write(self, text: str, *, end: bool) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._open = True
            self._send("\r" + text[:width].ljust(width))
            if end:
                self.close()
        else:
            self._send(text + "\n")

    def _send(self, text: str) -> None:
        """Write; a closed reader (`2>&1 | head`, a closed terminal) does not stop the work."""
        if self._quiet:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._quiet = True


def _clock_text(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


EDIT = "id of an edit, as 'history list' shows it, or: last"


@contextlib.contextmanager
def opened_app(args: argparse.Namespace | None = None) -> Iterator[App]:
    """An App of this process; `--device`, `--dtype`, `--model` and `--workers` overrule the settings.

    Raises:
        BadInput: when settings or `models.toml` are wrong.
        StoreError: when the history folder cannot be used.
    """
    settings = settings_for(args)
    try:
        app = App(settings)
    except StoreError as exc:
        text = str(exc).rstrip(".")
        raise StoreError(
            f"{text} (it is in {settings.folder}; WORKBENCH_CACHE names another)."
        ) from exc
    try:
        yield app
    finally:
        app.close()


def edit_id(app: App, text: str) -> str:
    """The id that a person means: `last` is the newest edit outside the bin.

    Raises:
        BadInput: when there is no edit yet.
    """
    if text != "last":
        return text
    newest = app.store.records()[:1]
    if not newest:
        raise BadInput("The history is empty, so there is no last edit.", code="no-edit")
    return newest[0].id


def settings_for(args: argparse.Namespace | None) -> Settings:
    """The installation's settings with what the command line overrules."""
    names = ("device", "dtype", "model", "workers")
    given = {n: getattr(args, n, None) for n in names} if args is not None else {}
    return dataclasses.replace(read_settings(), **{k: v for k, v in given.items() if v})


@contextlib.contextmanager
def steps(*, quiet: bool = False) -> Iterator[tuple[OnStep, Progress]]:
    """An `OnStep` that shows progress and stops at Ctrl-C or SIGTERM."""
    progress, token = Progress(quiet=quiet), CancelToken()

    def on_step(info: StepInfo) -> None:
        progress(info)
        token.check()

    with stopping(token):
        try:
            yield on_step, progress
        finally:
            progress.close()


def follow(app: App, job_id: str, on_step: OnStep) -> Job:
    """Report the progress of a queued job until it ends; what `on_step` raises cancels it.

    Raises:
        Cancelled: when it was cancelled.
    """
    seen: StepInfo | None = None
    try:
        while True:
            job = app.executor.wait(job_id, 0.1)
            if job.progress is not None and job.progress is not seen:
                seen = job.progress
                on_step(seen)
            if job.state.ended:
                break
    except BaseException:
        app.executor.cancel(job_id)
        app.executor.wait(job_id, 5.0)
        raise
    if job.state is JobState.CANCELLED:
        raise Cancelled("Cancelled.")
    return job
