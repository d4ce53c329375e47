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
from workbench.ui.shell.words import say

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
    """What is free on each device; looked at again as long as the page is open."""

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
