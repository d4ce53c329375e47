"""Is this installation in order? The findings of `doctor`, as a list that a person reads."""

from __future__ import annotations

import streamlit as st

from workbench.doctor import Finding, examine, verdict
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import inert
from workbench.ui.shell.words import say

_SIGNS = {
    "ok": ":green[:material/check_circle:]",
    "warning": ":orange[:material/warning:]",
    "problem": ":red[:material/error:]",
}
_KEPT = "health_findings"
_RANK = ("problem", "warning", "ok")


def show(backend: Backend) -> None:
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
