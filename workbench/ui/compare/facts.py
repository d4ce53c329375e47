"""Compared edits, and their common and different facts: parameters, measures, short names."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import streamlit as st

from workbench.core.config import method_label
from workbench.core.errors import StoreError
from workbench.core.record import EditRecord, JobState
from workbench.storage.files import is_ulid
from workbench.storage.history import Store
from workbench.ui.shell import figures, shell
from workbench.ui.shell.edits import EditView, parameters
from workbench.ui.shell.forms import plain, say, seconds

FEWEST, MOST = 2, 6
_IN_A_NAME = 3  # parameters that a short name has room for


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table over edits: what it says of each, and where that is best."""

    label: str
    values: tuple[str, ...]
    best: frozenset[int] = field(default_factory=frozenset)

    @property
    def differs(self) -> bool:
        """True if the edits do not all say the same."""
        return len(set(self.values)) > 1


def ids(text: str) -> list[str]:
    """The edits that an address names, `a,b,c`: each once, at most `MOST`."""
    named = dict.fromkeys(part.strip().upper() for part in text[:500].split(","))
    return [name for name in named if is_ulid(name)][:MOST]


def has_picture(record: EditRecord) -> bool:
    """True if an edit can be looked at."""
    return record.status is JobState.DONE and record.result is not None


def parameter_rows(store: Store, records: Sequence[EditRecord]) -> list[Row]:
    """Everything the edits were asked for, one row each; what differs comes first."""
    requests = [r.request for r in records]
    columns = [dict(parameters(r)) for r in requests]
    masks = list(dict.fromkeys(r.mask.id for r in requests if r.mask))
    pictures = list(dict.fromkeys(r.image.id for r in requests))
    for column, request in zip(columns, requests, strict=True):
        # two pictures may have one name, two masks one area: the number tells them apart
        image = request.image
        number = f" ({pictures.index(image.id) + 1})" if len(pictures) > 1 else ""
        column[say("common.picture")] = (
            f"{plain(image.name, 60)}{number}, {image.width} × {image.height} px"
        )
        column[say("common.arrows")] = "; ".join(
            f"({p.handle.x:.0f}, {p.handle.y:.0f}) → ({p.target.x:.0f}, {p.target.y:.0f})"
            for p in request.pairs
        )
        if request.mask:
            number = f" ({masks.index(request.mask.id) + 1})" if len(masks) > 1 else ""
            column[say("common.mask")] = f"{_painted(store, request.mask.id)}{number}"
    labels = list(dict.fromkeys([say("common.picture"), *(k for c in columns for k in c)]))
    rows = [Row(label, tuple(c.get(label, "–") for c in columns)) for label in labels]
    return sorted(rows, key=lambda row: not row.differs)


def _painted(store: Store, mask: str) -> str:
    try:
        return say("compare.mean_of_the_picture", mean=100 * float(np.mean(store.mask(mask))))
    except StoreError:
        return "painted"


def metric_rows(views: Sequence[EditView]) -> list[Row]:
    """Results, one row per measure; the best edit of a row is marked."""
    rows = [Row(say("common.stopped_because"), tuple(v.outcome() for v in views))]
    most = max((len(v.request.pairs) for v in views), default=0)
    # "best" means something only for one drag of one picture
    alike = len({(v.request.image.id, v.request.pairs) for v in views}) == 1
    nowhere: frozenset[int] = frozenset()
    for n in range(most):
        found = [v.arrivals() for v in views]
        left = [a[n].left if n < len(a) else None for a in found]
        texts = tuple(
            say("compare.left_of_length_px", left=a[n].left, length=a[n].length)
            if n < len(a)
            else "–"
            for a in found
        )
        rows.append(
            Row(
                say("compare.arrow_n_remaining", n=n + 1),
                texts,
                _lowest(left) if alike else nowhere,
            )
        )
    rows.append(Row(say("common.steps"), tuple(str(v.result.iterations) for v in views)))
    rows.append(
        Row(
            say("compare.drag_time"),
            tuple(seconds(v.result.seconds.get("drag", 0.0)) for v in views),
        )
    )
    rows.append(Row(say("compare.total_time"), tuple(seconds(v.total()) for v in views)))
    rows.append(Row(say("compare.reused_from_cache"), tuple(_cached(v) for v in views)))
    outside = [v.result.change_outside_mask for v in views]
    texts = tuple(
        say("compare.change_outside_mask_of_255", change_outside_mask=v.result.change_outside_mask)
        if v.request.mask
        else say("compare.no_mask")
        for v in views
    )
    masked = [o if v.request.mask else None for o, v in zip(outside, views, strict=True)]
    rows.append(Row(say("compare.largest_change_outside_the_mask"), texts, _lowest(masked)))
    return rows


def _cached(view: EditView) -> str:
    """Stages taken from the cache, which make times incomparable."""
    words = {
        "lora": say("compare.training"),
        "invert": "inversion",
        "reference": "original",
        "drag": say("compare.earlier_steps"),
    }
    return ", ".join(words.get(stage, stage) for stage, _, kept in view.timings() if kept) or "–"


def _lowest(values: Sequence[float | None]) -> frozenset[int]:
    """Index of the smallest value; none when all are the same or unknown."""
    known = [v for v in values if v is not None]
    if len(known) < 2 or max(known) - min(known) < 1e-9:
        return frozenset()
    return frozenset(n for n, v in enumerate(values) if v == min(known))


def names(records: Sequence[EditRecord]) -> list[str]:
    """A short name for each edit: its number, its method, and what sets it apart from the rest."""
    if not records:
        return []
    columns = [dict(parameters(r.request)) for r in records]
    pictures = len({r.request.image.id for r in records}) > 1
    # what is another for each picture says nothing that the picture's name does not say
    unsaid = {
        say("common.arrows"),
        say("common.mask"),
        *((say("common.prompt"), say("common.working_size")) if pictures else ()),
    }
    out = []
    for n, (record, column) in enumerate(zip(records, columns, strict=True), 1):
        # each method has its own defaults: only among edits of one method do parameters say more
        alike = [c for c in columns if c[say("common.method")] == column[say("common.method")]]
        apart = [
            label
            for label in column
            if len({c.get(label) for c in alike}) > 1 and label not in unsaid
        ]
        words = [method_label(record.request.drag.method)]
        words += [f"{_tail(k)} {plain(column[k], 24)}" for k in apart[:_IN_A_NAME]]
        if pictures:
            words.insert(0, plain(record.request.image.name, 24))
        out.append(f"{n} · {', '.join(words)}")
    return out


def _tail(label: str) -> str:
    """A parameter's name for a heading: of the drag as it is, of other stages with the stage."""
    stage, _, name = label.rpartition(": ")
    short = name[:1].lower() + name[1:]
    return short if stage in ("", say("common.drag")) else f"{stage} {short}"


def table(rows: Sequence[Row], heads: Sequence[str], *, caption: str, marked: bool) -> str:
    """The rows as an HTML table; all text in it is inert.

    Args:
        rows: the lines, in their order.
        heads: one per edit.
        caption: what it is, for screen readers.
        marked: whether rows that differ are marked.
    """
    head = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in heads)
    body = []
    for row in rows:
        cells = "".join(
            f'<td class="{"wb-best" if n in row.best else ""}">{html.escape(v)}</td>'
            for n, v in enumerate(row.values)
        )
        kind = "wb-differs" if marked and row.differs else ""
        body.append(f'<tr class="{kind}"><th scope="row">{html.escape(row.label)}</th>{cells}</tr>')
    return (
        f'<div class="wb-facts" role="region" tabindex="0" aria-label="{html.escape(caption)}">'
        f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def fitting(first: figures.U8, second: figures.U8) -> figures.U8 | None:
    """The second picture at the first one's size, or None when their shapes do not agree."""
    (h, w), (oh, ow) = first.shape[:2], second.shape[:2]
    if abs(w / h - ow / oh) > 0.01 * w / h:
        return None
    return figures.fit(second, w, h)


PART = "compare_at"


def session_key(what: str) -> str:
    """Under which the session remembers a choice: each picture has its own."""
    return f"at_{what}_{shell.current('project') or ''}"


def chosen_ids() -> list[str]:
    """The edits of this address, else those of this session."""
    text = st.query_params.get("edits") or st.session_state.get(session_key("edits")) or ""
    return ids(str(text))


def choose(names: Sequence[str]) -> None:
    """Put the choice into address and session."""
    text = ",".join(names)
    st.session_state[session_key("edits")] = text
    if text:
        if st.query_params.get("edits") != text:
            st.query_params["edits"] = text
    elif "edits" in st.query_params:
        del st.query_params["edits"]


def show_part(name: str) -> None:
    """Turn to a part of the page."""
    st.session_state[PART] = name
    st.query_params["part"] = name.lower()
