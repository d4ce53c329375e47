"""A sweep as one picture: rows and columns with their headings, failed cells with their reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from workbench.canvas.sheets import fit_cell, wrap
from workbench.core.errors import BadInput
from workbench.sweeps.plan import Plan
from workbench.sweeps.results import Outcome, verdict

U8 = npt.NDArray[np.uint8]
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
            f"A sheet of {len(rows)} rows and {len(columns)} columns needs one tile per place."
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
