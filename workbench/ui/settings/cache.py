"""The cache: what is in it, how big, when it was used, and clearing as much of it as one wants."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence

import streamlit as st

from workbench.storage.cache import CacheEntry
from workbench.ui.settings.device import field, overruled
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import (
    count,
    inert,
    plain,
    size,
    when,
)

KINDS = {
    "lora": ("LoRAs", "what the model learnt of a picture; training again takes the longest"),
    "inversion": ("Inversions", "the picture as noise, from which every drag begins"),
    "reference": ("References", "the original's way, which a drag follows"),
    "preview": ("Reconstructions", "how well the model knows a picture"),
    "generation": ("Generated pictures", "their latents, used instead of an inversion"),
    "state": ("Unfinished work", "from where a run goes on"),
}
AGES = {"a day": 1, "a week": 7, "a month": 30}


def show(backend: Backend) -> None:
    """The whole part."""
    cache = backend.app.cache
    if cache.problem:
        st.error(inert(cache.problem))
        return
    entries = cache.entries()
    total = sum(e.bytes for e in entries)
    limit = backend.app.settings.cache_bytes
    st.caption(
        "What can be computed again: keeping it makes the next drag of a picture start at once. "
        "Clearing it never touches the history."
    )
    with st.container(key="card_cache"):
        share = min(1.0, total / limit) if limit else 0.0
        st.progress(share, text=f"{size(total)} of {size(limit)} used, {_entries(entries)}")
        left, right = st.columns(2, gap="large", vertical_alignment="bottom")
        with left:
            field(backend, "cache_gb", "Size limit (GB)")
        with right, st.container(horizontal=True, horizontal_alignment="right"):
            _old(backend, entries)
            _all(backend, entries)
        overruled(("cache_gb",))
    if entries:
        _kinds(backend, entries)
        _each(backend, entries)


def _entries(entries: Sequence[CacheEntry]) -> str:
    return count(len(entries), "entry", "entries")


def _old(backend: Backend, entries: Sequence[CacheEntry]) -> None:
    with st.popover("Clear what is old", disabled=not entries):
        age = st.segmented_control(
            "Not used for", list(AGES), default="a week", required=True, key="cache_age"
        )
        limit = time.time() - AGES[str(age)] * 86400
        old = [e for e in entries if e.used < limit]
        freed = sum(e.bytes for e in old)
        st.button(
            f"Clear {_entries(old)}, {size(freed)}",
            key="cache_clear_old",
            type="primary",
            disabled=not old,
            on_click=_clear,
            args=(backend, [e.key for e in old]),
        )


def _all(backend: Backend, entries: Sequence[CacheEntry]) -> None:
    with st.popover("Clear all", icon=":material/delete:", disabled=not entries):
        st.caption("Everything is computed again when it is needed.")
        st.button(
            "Clear the whole cache",
            key="cache_clear_all",
            type="primary",
            on_click=_clear,
            args=(backend, None),
        )


def _kinds(backend: Backend, entries: Sequence[CacheEntry]) -> None:
    """What kinds of things there are, each with its own clearing."""
    st.subheader("By kind", anchor=False)
    groups: dict[str, list[CacheEntry]] = {}
    for entry in entries:
        groups.setdefault(entry.kind, []).append(entry)
    for kind, found in sorted(groups.items(), key=lambda g: -sum(e.bytes for e in g[1])):
        words, what = KINDS.get(kind, (kind.capitalize(), ""))
        last = datetime.datetime.fromtimestamp(max(e.used for e in found), datetime.UTC)
        with st.container(key=f"line_{kind}", horizontal=True, vertical_alignment="center"):
            with st.container(gap=None):
                st.markdown(f"**{inert(words)}** · {size(sum(e.bytes for e in found))}")
                used = f"last used {when(last.isoformat())}"
                st.caption(" · ".join(p for p in (_entries(found), used, inert(what)) if p))
            st.button(
                "Clear",
                key=f"cache_clear_{kind}",
                help=f"Clear all: {words}",
                on_click=_clear,
                args=(backend, [e.key for e in found]),
            )


def _each(backend: Backend, entries: Sequence[CacheEntry]) -> None:
    """Every entry, to be ticked and cleared one by one."""
    with st.expander("Every entry"):
        rows = [
            {
                "Of": plain(e.label, 60) or "—",
                "Kind": KINDS.get(e.kind, (e.kind, ""))[0],
                "MB": round(e.bytes / 1e6, 2),
                "Last used": datetime.datetime.fromtimestamp(e.used),
                "Made": datetime.datetime.fromtimestamp(e.created),
            }
            for e in entries
        ]
        table = st.dataframe(
            rows,
            key="cache_table",
            hide_index=True,
            on_select="rerun",
            selection_mode="multi-row",
            column_config={
                "Last used": st.column_config.DatetimeColumn(format="D MMM YYYY, HH:mm"),
                "Made": st.column_config.DatetimeColumn(format="D MMM YYYY, HH:mm"),
            },
        )
        ticked = [entries[n] for n in table.selection.rows if n < len(entries)]
        st.button(
            f"Clear {_entries(ticked)}" if ticked else "Clear what is ticked",
            key="cache_clear_ticked",
            disabled=not ticked,
            on_click=_clear,
            args=(backend, [e.key for e in ticked]),
        )


def _clear(backend: Backend, keys: Sequence[str] | None) -> None:
    with guard():
        before = backend.app.cache.size()
        removed = backend.app.cache.clear(keys=keys)
        freed = max(0, before - backend.app.cache.size())
        words = count(removed, "entry", "entries")
        st.toast(f"{words} cleared, {size(freed)} freed.", icon=":material/check:")
