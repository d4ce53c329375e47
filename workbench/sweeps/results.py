"""What became of a sweep's cells: found in the history, as CSV, in a few words. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.core.record import EditRecord, JobState, StopReason
from workbench.core.request import EditRequest
from workbench.sweeps.plan import (
    Cell,
    Plan,
    key_of,
    show,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One cell's state: its edit where there is one, and why it has no picture."""

    cell: Cell
    state: str  # done, failed, running, waiting, missing
    record: EditRecord | None = None
    reason: str = ""


def outcomes(
    plan: Plan,
    records: Sequence[EditRecord],
    *,
    running: Sequence[EditRequest] = (),
    waiting: Sequence[EditRequest] = (),
    errors: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Every cell of the grid as it stands.

    Args:
        plan: the sweep.
        records: edits of its picture, newest first.
        running: requests of edits under way.
        waiting: requests that are queued.
        errors: why a run has no edit at all, by `key_of` its request.
    """
    wanted = {cell.key for cell in plan.cells}
    found: dict[str, EditRecord] = {}
    for record in records:
        name = key_of(record.request)
        kept = found.get(name)
        if name in wanted and (kept is None or (_done(record) and not _done(kept))):
            found[name] = record
    at_work, queued = {key_of(r) for r in running}, {key_of(r) for r in waiting}
    out = []
    for cell in plan.cells:
        edit = found.get(cell.key)
        if edit is not None and _done(edit):
            out.append(Outcome(cell, "done", edit))
        elif cell.key in at_work:
            out.append(Outcome(cell, "running"))
        elif cell.key in queued:
            out.append(Outcome(cell, "waiting"))
        elif cell.key in (errors or {}):
            out.append(Outcome(cell, "failed", edit, (errors or {})[cell.key]))
        elif edit is not None and edit.status is JobState.FAILED:
            out.append(Outcome(cell, "failed", edit, edit.error or "It failed."))
        else:
            out.append(Outcome(cell, "missing", edit))
    return out


def _done(record: EditRecord) -> bool:
    return record.status is JobState.DONE and record.result is not None


def metrics_csv(plan: Plan, found: Sequence[Outcome]) -> str:
    """The measures of every cell as CSV with a heading, lengths in image px, times in seconds."""
    pairs = len(plan.base.pairs)
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n")
    write.writerow(
        [*(a.name for a in plan.axes), "state", "edit", "stop", "steps", "mean_left_px"]
        + [f"left_{n + 1}_px" for n in range(pairs)]
        + ["seconds", "drag_seconds", "change_outside_mask", "from_cache", "reason"]
    )
    for one in found:
        values: list[Any] = [show(v) for v in one.cell.values]
        result = one.record.result if one.record and one.state == "done" else None
        row: list[Any]
        if result is None:
            row = [one.state, "", "", "", "", *[""] * pairs, "", "", "", "", one.reason]
        else:
            left = [f"{d:.3f}" for d in result.distances][:pairs]
            mean = f"{sum(result.distances) / len(result.distances):.3f}" if left else ""
            row = [
                one.state,
                one.record.id if one.record else "",
                result.stop,
                result.iterations,
                mean,
            ]
            row += [*left, *[""] * (pairs - len(left)), f"{sum(result.seconds.values()):.2f}"]
            row += [f"{result.seconds.get('drag', 0.0):.2f}", f"{result.change_outside_mask:g}"]
            row += [" ".join(result.cached), ""]
        write.writerow([*values, *row])
    return out.getvalue()


def verdict(record: EditRecord) -> str:
    """An edit's outcome in a few words: '3.1 px to go, 40 steps'."""
    if record.result is None:
        return record.error or record.status.value
    result = record.result
    steps = f"{result.iterations} step{'' if result.iterations == 1 else 's'}"
    if result.stop == StopReason.REACHED.name:
        return f"arrived, {steps}"
    if not result.distances:
        return steps
    return f"{max(result.distances):.1f} px to go, {steps}"
