"""Device, precision, threads, memory: what is chosen, what that means here, what is free."""

from __future__ import annotations

import os
import sys
from typing import Any

import streamlit as st

from workbench.core.errors import WorkbenchError
from workbench.core.options import options_of
from workbench.storage.settings import ENVIRONMENT, Settings
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.options_form import describe, option_widget
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import inert, size

DEVICES = {
    "auto": "Automatic",
    "cpu": "CPU",
    "cuda": "CUDA (first GPU)",
    "mps": "Apple GPU (MPS)",
    "all": "All CUDA GPUs, one job each",
}
PRECISIONS = {
    "auto": "Automatic",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
}

RUNNING = {
    "low_memory": "Always in the low-memory mode",
    "kept_models": "Models that stay in memory",
    "threads": "CPU threads (0: automatic)",
    "queue": "Jobs that may wait",
}


def show(backend: Backend) -> None:
    """The whole part."""
    with st.container(key="halves_device"):
        left, right = st.columns(2, gap="large")
    with left, st.container(key="card_device"):
        st.subheader("Where and how it computes", anchor=False)
        _device(backend)
        _precision(backend)
        overruled(("device", "dtype", "threads"))
    with left, st.container(key="card_memory"):
        st.subheader("Memory now", anchor=False)
        _memory(backend)
    with right, st.container(key="card_running"):
        st.subheader("Running", anchor=False)
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
                f":material/info: {inert(variable)} is set to {inert(os.environ[variable], 40)} "
                "in the environment; at the next start that counts again."
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
        "Device",
        list(dict.fromkeys(options)),
        index=options.index(now),
        key=key,
        format_func=lambda name: DEVICES.get(name, name),
        accept_new_options=True,
        on_change=save,
        help=describe(options_of(Settings)["device"][2], "auto"),
    )
    if len(backend.app.settings.workers()) > 1:
        st.caption("The number of jobs at a time changes at the next start.")


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
        "Precision",
        list(PRECISIONS),
        index=list(PRECISIONS).index(backend.app.settings.dtype),
        key=key,
        format_func=lambda name: PRECISIONS[name],
        on_change=save,
        help="float16 halves the memory and is fast on a GPU; float32 is exact and the right one "
        "for a CPU. bfloat16 never overflows, but point tracking loses precision. Automatic takes "
        "float16 on a GPU for large models, float32 otherwise.",
    )


def _memory(backend: Backend) -> None:
    """What is free on each device; looked at again as long as the page is open."""

    def panel() -> None:
        if "torch" not in sys.modules:
            st.caption("The engine is starting …")
            return
        with guard():
            for where in _devices(backend):
                _bar(where)
        loaded = backend.app.loaded()
        if loaded:
            names = ", ".join(f"{inert(name, 60)} on {inert(where)}" for where, name in loaded)
            st.markdown(f"Loaded: {names}")
            st.button(
                "Unload",
                key="unload",
                icon=":material/eject:",
                help="Gives the memory back; the next run loads the model again.",
                on_click=backend.app.unload,
                disabled=bool(backend.queue()),
            )
        else:
            st.caption("No model is loaded; the next run loads one.")

    st.fragment(panel, run_every=3.0)()


def _devices(backend: Backend) -> list[str]:
    """The devices that the settings mean on this machine."""
    from workbench.diffusion import device

    found: list[str] = []
    for name in backend.app.settings.workers():
        try:
            found += device.devices(name)
        except WorkbenchError as exc:
            st.error(inert(str(exc)))
    return list(dict.fromkeys(found))


def _bar(where: str) -> None:
    from workbench.diffusion import device

    memory = device.memory(where)
    name = {"cpu": "This machine", "mps": "Apple GPU"}.get(where, where)
    used = 1.0 - memory.free / memory.total if memory.total else 0.0
    text = f"{name}: {size(memory.free)} of {size(memory.total)} free"
    st.progress(min(1.0, max(0.0, used)), text=inert(text))
