"""Settings page: device and memory, cache, and the state of the installation."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import streamlit as st

from workbench.core.errors import WorkbenchError
from workbench.core.options import options_of
from workbench.doctor import Finding, examine, verdict
from workbench.storage.cache import CacheEntry
from workbench.storage.settings import ENVIRONMENT, Settings
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import count, describe, inert, option_widget, plain, say, size, when
from workbench.ui.shell.shell import guard

DEVICES = {
    "auto": say("common.automatic"),
    "cpu": "CPU",
    "cuda": say("settings.cuda_first_gpu"),
    "mps": say("settings.apple_gpu_mps"),
    "all": say("settings.use_all_cuda_gpus_one"),
}
PRECISIONS = {
    "auto": say("common.automatic"),
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
}

RUNNING = {
    "low_memory": say("settings.always_use_low_memory_mode"),
    "kept_models": say("settings.models_kept_in_memory"),
    "threads": say("settings.cpu_threads_0_automatic"),
    "queue": say("settings.maximum_queued_jobs"),
    "workers": say("settings.workers"),
}


def show(backend: Backend) -> None:
    """The whole part."""
    with st.container(key="halves_device"):
        left, right = st.columns(2, gap="large")
    with left, st.container(key="card_device"):
        st.subheader(say("settings.compute"), anchor=False)
        _device(backend)
        _precision(backend)
        overruled(("device", "dtype", "threads"))
    with left, st.container(key="card_memory"):
        st.subheader(say("settings.memory"), anchor=False)
        _memory(backend)
    with right, st.container(key="card_running"):
        st.subheader(say("settings.jobs"), anchor=False)
        for name, label in RUNNING.items():
            field(backend, name, label)


def field(backend: Backend, name: str, label: str = "") -> None:
    """One setting's widget; a change is checked and written at once."""
    key = f"setting_{name}"

    def save() -> None:
        with guard():
            backend.app.change(**{name: st.session_state[key]})
            return
        st.session_state[key] = getattr(backend.app.settings, name)

    option_widget(
        Settings, name, getattr(backend.app.settings, name), key=key, on_change=save, label=label
    )


def overruled(names: tuple[str, ...]) -> None:
    """Say which of these settings the environment decides at the next start."""
    for name in names:
        variable = ENVIRONMENT[name]
        if os.environ.get(variable):
            st.caption(
                say(
                    "settings.variable_is_set_to_environ",
                    variable=inert(variable),
                    environ=inert(os.environ[variable], 40),
                )
            )


def _device(backend: Backend) -> None:
    now = backend.app.settings.device
    options = [*DEVICES, *_found(), *([now] if now not in DEVICES else [])]
    key = "setting_device"

    def save() -> None:
        with guard():
            wanted = str(st.session_state[key] or "auto").strip()
            _check(wanted)
            backend.app.change(device=wanted)
            return
        st.session_state[key] = now  # refused: the form shows what counts

    st.selectbox(
        say("settings.device"),
        list(dict.fromkeys(options)),
        index=options.index(now),
        key=key,
        format_func=lambda name: DEVICES.get(name, name),
        accept_new_options=True,
        on_change=save,
        help=describe(options_of(Settings)["device"][2], "auto"),
    )
    if len(backend.app.settings.devices()) > 1:
        st.caption(say("settings.the_number_of_parallel_jobs"))


def _found() -> list[str]:
    """The CUDA devices that torch sees, once it is loaded."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_available():
        return []
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def _check(wanted: str) -> None:
    """See that every named device is there.

    Raises:
        BadInput: naming the one that is not.
    """
    from workbench.diffusion import device

    for name in wanted.split(","):
        if name.strip() not in ("auto", "all"):
            device.devices(name.strip())


def _precision(backend: Backend) -> None:
    key = "setting_dtype"

    def save() -> None:
        with guard():
            backend.app.change(dtype=st.session_state[key])

    st.selectbox(
        say("settings.precision"),
        list(PRECISIONS),
        index=list(PRECISIONS).index(backend.app.settings.dtype),
        key=key,
        format_func=lambda name: PRECISIONS[name],
        on_change=save,
        help=say("settings.precision_help"),
    )


def _memory(backend: Backend) -> None:
    """Free memory of each device, refreshed while the page is open."""

    def panel() -> None:
        if "torch" not in sys.modules:
            st.caption(say("settings.starting"))
            return
        with guard():
            for where in _devices(backend):
                _bar(where)
        loaded = backend.app.loaded()
        if loaded:
            names = ", ".join(f"{inert(name, 60)} on {inert(where)}" for where, name in loaded)
            st.markdown(say("settings.loaded_names", names=names))
            st.button(
                say("settings.unload"),
                key="unload",
                icon=":material/eject:",
                help=say("settings.unload_help"),
                on_click=backend.app.unload,
                disabled=bool(backend.queue()),
            )
        else:
            st.caption(say("settings.no_model_is_loaded_the"))

    st.fragment(panel, run_every=3.0)()


def _devices(backend: Backend) -> list[str]:
    """The devices that the settings mean on this machine."""
    from workbench.diffusion import device

    found: list[str] = []
    for name in backend.app.settings.devices():
        try:
            found += device.devices(name.partition("@")[0])
        except WorkbenchError as exc:
            st.error(inert(str(exc)))
    return list(dict.fromkeys(found))


def _bar(where: str) -> None:
    from workbench.diffusion import device

    memory = device.memory(where)
    name = {"cpu": say("settings.this_machine"), "mps": say("settings.apple_gpu")}.get(where, where)
    used = 1.0 - memory.free / memory.total if memory.total else 0.0
    text = say(
        "settings.name_size_of_size_2", name=name, size=size(memory.free), size_2=size(memory.total)
    )
    st.progress(min(1.0, max(0.0, used)), text=inert(text))


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


def show_cache(backend: Backend) -> None:
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
    """Kinds of cached data, each with its own Clear button."""
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


_SIGNS = {
    "ok": ":green[:material/check_circle:]",
    "warning": ":orange[:material/warning:]",
    "problem": ":red[:material/error:]",
}
_KEPT = "health_findings"
_RANK = ("problem", "warning", "ok")


def show_health(backend: Backend) -> None:
    """The whole part."""
    with st.container(horizontal=True, vertical_alignment="center"):
        quick = st.button(
            say("settings.check"), key="health_check", type="primary", icon=":material/stethoscope:"
        )
        deep = st.button(
            say("settings.check_thoroughly"),
            key="health_deep",
            help=say("settings.check_thoroughly_help"),
        )
        st.caption(say("settings.checks_packages_device_memory_disk"))
    if quick or deep:
        _look(backend, deep)
    found: list[Finding] | None = st.session_state.get(_KEPT)
    if found:
        _list(found)


def _look(backend: Backend, deep: bool) -> None:
    found: list[Finding] = []
    with guard(), st.spinner(say("settings.checking")):
        for finding in examine(backend.app, deep=deep):
            found.append(finding)
    st.session_state[_KEPT] = found


def _list(found: list[Finding]) -> None:
    st.markdown(f"**{inert(verdict(found))}**")
    with st.container(key="card_health", gap="xsmall"):
        for finding in sorted(found, key=lambda f: _RANK.index(f.state)):
            sign = _SIGNS[finding.state]
            st.markdown(f"{sign} **{inert(finding.what)}** — {inert(finding.text, 300)}")
