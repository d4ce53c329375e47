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
from workbench.ui.shell.words import say

KINDS = {
    "lora": (say("common.loras"), say("settings.trained_on_your_pictures_they")),
    "inversion": (say("settings.inversions"), say("settings.pictures_converted_to_noise_the")),
    "reference": (
        say("settings.reference_passes"),
        say("settings.recordings_of_the_original_that"),
    ),
    "preview": (say("settings.reconstructions"), say("settings.used_to_check_how_well")),
    "generation": (
        say("settings.generated_pictures"),
        say("settings.their_latents_used_instead_of"),
    ),
    "state": (say("settings.saved_states"), say("settings.for_resuming_a_run")),
}
AGES = {say("settings.a_day"): 1, say("settings.a_week"): 7, say("settings.a_month"): 30}


def show(backend: Backend) -> None:
    """The whole part."""
    cache = backend.app.cache
    if cache.problem:
        st.error(inert(cache.problem))
        return
    entries = cache.entries()
    total = sum(e.bytes for e in entries)
    limit = backend.app.settings.cache_bytes
    st.caption(say("settings.cached_results_that_make_repeat"))
    with st.container(key="card_cache"):
        share = min(1.0, total / limit) if limit else 0.0
        st.progress(
            share,
            text=say(
                "settings.size_of_size_2_used",
                size=size(total),
                size_2=size(limit),
                entries=_entries(entries),
            ),
        )
        left, right = st.columns(2, gap="large", vertical_alignment="bottom")
        with left:
            field(backend, "cache_gb", say("settings.size_limit_gb"))
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
    with st.popover(say("settings.clear_old_entries"), disabled=not entries):
        age = st.segmented_control(
            say("settings.not_used_for"),
            list(AGES),
            default=say("settings.a_week"),
            required=True,
            key="cache_age",
        )
        limit = time.time() - AGES[str(age)] * 86400
        old = [e for e in entries if e.used < limit]
        freed = sum(e.bytes for e in old)
        st.button(
            say("settings.clear_entries_size", entries=_entries(old), size=size(freed)),
            key="cache_clear_old",
            type="primary",
            disabled=not old,
            on_click=_clear,
            args=(backend, [e.key for e in old]),
        )


def _all(backend: Backend, entries: Sequence[CacheEntry]) -> None:
    with st.popover(say("settings.clear_all"), icon=":material/delete:", disabled=not entries):
        st.caption(say("settings.cached_results_are_recomputed_when"))
        st.button(
            say("settings.clear_the_whole_cache"),
            key="cache_clear_all",
            type="primary",
            on_click=_clear,
            args=(backend, None),
        )


def _kinds(backend: Backend, entries: Sequence[CacheEntry]) -> None:
    """What kinds of things there are, each with its own clearing."""
    st.subheader(say("settings.by_kind"), anchor=False)
    groups: dict[str, list[CacheEntry]] = {}
    for entry in entries:
        groups.setdefault(entry.kind, []).append(entry)
    for kind, found in sorted(groups.items(), key=lambda g: -sum(e.bytes for e in g[1])):
        words, what = KINDS.get(kind, (kind.capitalize(), ""))
        last = datetime.datetime.fromtimestamp(max(e.used for e in found), datetime.UTC)
        with st.container(key=f"line_{kind}", horizontal=True, vertical_alignment="center"):
            with st.container(gap=None):
                st.markdown(f"**{inert(words)}** · {size(sum(e.bytes for e in found))}")
                used = say("settings.last_used_isoformat", isoformat=when(last.isoformat()))
                st.caption(" · ".join(p for p in (_entries(found), used, inert(what)) if p))
            st.button(
                say("settings.clear"),
                key=f"cache_clear_{kind}",
                help=say("settings.clear_help", words=words),
                on_click=_clear,
                args=(backend, [e.key for e in found]),
            )


def _each(backend: Backend, entries: Sequence[CacheEntry]) -> None:
    """Every entry, to be ticked and cleared one by one."""
    with st.expander(say("settings.all_entries")):
        rows = [
            {
                say("settings.of"): plain(e.label, 60) or "—",
                say("common.picture"): KINDS.get(e.kind, (e.kind, ""))[0],
                "MB": round(e.bytes / 1e6, 2),
                say("settings.last_used"): datetime.datetime.fromtimestamp(e.used),
                say("common.created"): datetime.datetime.fromtimestamp(e.created),
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
                say("settings.last_used"): st.column_config.DatetimeColumn(
                    format="D MMM YYYY, HH:mm"
                ),
                say("common.created"): st.column_config.DatetimeColumn(format="D MMM YYYY, HH:mm"),
            },
        )
        ticked = [entries[n] for n in table.selection.rows if n < len(entries)]
        st.button(
            say("settings.clear_entries", entries=_entries(ticked))
            if ticked
            else say("settings.clear_selected"),
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
        st.toast(
            say("settings.words_cleared_size_freed", words=words, size=size(freed)),
            icon=":material/check:",
        )
