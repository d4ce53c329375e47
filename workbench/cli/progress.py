"""Progress on standard error: one live line per stage on a terminal, sparse plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from workbench.core.record import STAGES, StepInfo, stage_label

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
        """Write; where nobody reads any more (`2>&1 | head`, a closed terminal) the work goes on."""
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
