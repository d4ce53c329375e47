"""Results of a sweep: how long runs take, the table, and the labelled sheet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from workbench.canvas.sheets import fit_cell, wrap
from workbench.core.config import SPECS
from workbench.core.errors import BadInput
from workbench.core.record import EditRecord, EditResult, JobState, StopReason
from workbench.core.request import EditRequest
from workbench.sweeps import Cell, Plan, key_of, show

_Known = Sequence[tuple[EditRequest, EditResult]]
_Work = Callable[[EditRequest, EditResult | None], float]
U8 = npt.NDArray[np.uint8]

LOOKED_AT = 60  # newest edits that count


def estimate(
    requests: Sequence[EditRequest],
    records: Sequence[EditRecord],
    *,
    prepared: Callable[[EditRequest], tuple[bool, bool]],
    stages: Collection[str] | None = None,
    unit: float | None = None,
) -> float | None:
    """Seconds that the requests will take together, at most (a drag may arrive early).

    Args:
        requests: runs, one after the other on one device.
        records: earlier edits, newest first; those with the same model are looked at.
        prepared: whether a request's LoRA and inversion are in the cache already.
        stages: only these count; None for the whole edit.
        unit: rough seconds of one pass of the model over the picture (see `rough_pass`), for stages that
            no earlier edit has measured; None leaves them out.

    Returns:
        None without earlier edits with this model and without `unit`.
    """
    names = {r.model.name for r in requests}
    known = [
        (r.request, r.result)
        for r in records
        if r.result is not None and r.request.model.name in names
    ][:LOOKED_AT]
    if not requests or not (known or unit):
        return None
    total = 0.0
    trained: set[object] = set()
    inverted: set[object] = set()
    for request in requests:
        drafts = request.drag.drafts  # neither LoRA nor inversion
        has_lora, has_latent = (True, True) if drafts else prepared(request)
        lora = (request.image.id, request.prompt, request.lora, request.seed, request.lora_file)
        latent = (*lora, request.inversion)
        own = [k for k in known if k[0].drag.method == request.drag.method] or known
        work: dict[str, tuple[_Known, _Work]] = {}
        if not has_lora and lora not in trained:
            work["lora"] = known, _lora_work
        if not drafts and latent not in inverted:
            if not has_latent:
                work["invert"] = known, _depth
            # the original's pass is only kept in memory, so it is made again for each sweep
            work["reference"] = known, _depth
        if drafts and all(k[0].image.id != request.image.id for k in known):
            work["look"] = known, _once
        work |= {"drag": (own, _drag_work), "denoise": (own, _depth)}
        work |= {"decode": (known, _once), "save": (known, _once)}
        trained.add(lora)
        inverted.add(latent)
        for stage, (among, how_much) in work.items():
            if stages is None or stage in stages:
                rate = _rate(among, stage, how_much)
                total += (unit or 0.0 if rate is None else rate) * how_much(request, None)
    return total


def rough_pass(weights: int, native: int, *, gpu: bool, threads: int) -> float:
    """Rough seconds of one pass of a model over a picture; within a factor of three where it was tried.

    The speeds are those of docs/benchmarks.md: the shipped model on two threads of an EPYC, Stable
    Diffusion 1.5 on an H100. A small model on a GPU waits for the launches of its kernels instead.

    Args:
        weights: bytes of the model's weights.
        native: the model's native size, px.
        gpu: whether it runs on a GPU.
        threads: processor threads that work otherwise.
    """
    work = weights * (native / 8) ** 2
    if gpu:
        return max(_GPU_LEAST, work / _GPU_SPEED)
    return work / (_CPU_SPEED * max(1, min(threads, _CPU_MOST)))


_GPU_SPEED, _GPU_LEAST = 8e14, 0.01  # bytes of weights times latent cells a second; seconds
_CPU_SPEED, _CPU_MOST = 1.4e11, 16  # the same per thread; more threads than that hardly help


def _rate(known: _Known, stage: str, work: _Work) -> float | None:
    """Median seconds per unit of work of a stage; None where it was never measured."""
    rates = [
        result.seconds[stage] / work(made, result)
        for made, result in known
        if stage in result.seconds and stage not in result.cached and work(made, result) > 0
    ]
    return median(rates) if rates else None


def _lora_work(request: EditRequest, _result: EditResult | None) -> float:
    return float(request.lora.steps * request.lora.batch_size * request.lora.accumulation)


def _depth(request: EditRequest, _result: EditResult | None) -> float:
    return float(request.inversion.inverted_steps)


def _drag_work(request: EditRequest, result: EditResult | None) -> float:
    """Steps of motion supervision; a warp or a draft has one move, whatever its settings say."""
    if request.drag.drafts or not SPECS[request.drag.method].optimises:
        return 1.0
    return float(result.iterations if result is not None else request.drag.steps)


def _once(_request: EditRequest, _result: EditResult | None) -> float:
    return 1.0


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


_GROUND, _INK, _SOFT, _BLANK, _BAD = (
    (255,) * 3,
    (30,) * 3,
    (95,) * 3,
    (240, 238, 233),
    (170, 40, 32),
)


@dataclass(frozen=True, slots=True)
class Tile:
    """One place of the sheet: a picture uint8 [H,W,3] with a note, or why there is none."""

    note: str
    picture: U8 | None = None
    failed: bool = False


def grid_sheet(
    title: str,
    columns: Sequence[str],
    rows: Sequence[str],
    tiles: Sequence[Sequence[Tile]],
    *,
    cell: int = 256,
) -> U8:
    """The grid as one picture uint8 [H,W,3].

    Args:
        title: stands over it.
        columns: headings of the columns.
        rows: headings of the rows; they take no room when all are empty.
        tiles: [row][column].
        cell: longest side of a picture, px.

    Raises:
        BadInput: when the tiles do not fill rows and columns.
    """
    if not rows or len(tiles) != len(rows) or any(len(line) != len(columns) for line in tiles):
        raise BadInput(
            f"A sheet of {len(rows)} rows and {len(columns)} columns needs one tile per place.",
            code="tile-count",
        )
    size = max(12, cell // 16)
    font, bold = ImageFont.load_default(size), ImageFont.load_default(size * 1.15)
    gap = max(8, cell // 20)
    line = math.ceil(size * 1.35)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    heads = [wrap(measure, c, bold, cell) for c in columns]
    sides = [wrap(measure, r.replace(", ", ",\n"), bold, cell * 2 // 3) for r in rows]
    side = cell * 2 // 3 + gap if any(rows) else 0
    pictures = [t.picture for row in tiles for t in row if t.picture is not None]
    shape = max((p.shape[0] / p.shape[1] for p in pictures), default=1.0)
    tall = round(cell * min(1.0, shape))
    notes = [[wrap(measure, t.note, font, cell) if t.picture is not None else "" for t in row]
             for row in tiles]  # fmt: skip
    under = [max((n.count("\n") + 1 for n in row if n), default=1) * line for row in notes]
    width = gap + side + len(columns) * (cell + gap)
    large = ImageFont.load_default(size * 1.4)
    over = wrap(measure, title, large, width - 2 * gap)
    top = gap + ((over.count("\n") + 1) * round(size * 1.9) + gap if title else 0)
    head = max(h.count("\n") + 1 for h in heads) * line + gap // 2
    steps = [tall + u + 2 * gap for u in under]
    out = Image.new("RGB", (width, top + head + sum(steps)), _GROUND)
    draw = ImageDraw.Draw(out)
    if title:
        draw.multiline_text((gap, gap), over, fill=_INK, font=large)
    lefts = [gap + side + n * (cell + gap) for n in range(len(columns))]
    for text, x in zip(heads, lefts, strict=True):
        _middle(draw, (x + cell / 2, top), text, bold, _INK)
    y = top + head
    for row, side_text, row_notes, step in zip(tiles, sides, notes, steps, strict=True):
        if side_text:
            draw.multiline_text(
                (side, y + tall / 2), side_text, fill=_INK, font=bold, anchor="rm", align="right"
            )
        for tile, note, x in zip(row, row_notes, lefts, strict=True):
            if tile.picture is None:
                draw.rectangle((x, y, x + cell - 1, y + tall - 1), fill=_BLANK)
                text = wrap(measure, tile.note, font, cell - 2 * gap)
                text = "\n".join(text.splitlines()[: max(1, tall // line - 1)])
                colour = _BAD if tile.failed else _SOFT
                draw.multiline_text(
                    (x + cell / 2, y + tall / 2), text, fill=colour, font=font, anchor="mm",
                    align="center",
                )  # fmt: skip
                continue
            shown = fit_cell(tile.picture, cell, tall)
            h, w = shown.shape[:2]
            out.paste(Image.fromarray(shown), (x + (cell - w) // 2, y + (tall - h) // 2))
            _middle(draw, (x + cell / 2, y + tall + gap // 3), note, font, _INK)
        y += step
    return np.array(out)


def sheet_of(plan: Plan, found: Sequence[Outcome], picture: Callable[[str], U8]) -> U8:
    """A sweep as it stands, uint8 [H,W,3]; `picture` gives the pixels of a stored picture's id."""
    tiles: list[list[Tile]] = [[] for _ in range(plan.rows)]
    for one in found:
        if one.state == "done" and one.record is not None and one.record.result is not None:
            tile = Tile(verdict(one.record), picture(one.record.result.image))
        else:
            words = one.reason or ("not run" if one.state == "missing" else one.state)
            tile = Tile(words, failed=one.state == "failed")
        tiles[one.cell.row].append(tile)
    title = f"{plan.base.image.name}: {plan.title}"
    return grid_sheet(title, plan.column_labels, plan.row_labels, tiles, cell=320)


def _middle(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    colour: tuple[int, ...],
) -> None:
    draw.multiline_text(at, text, fill=colour, font=font, anchor="ma", align="center")
