"""The models: what is there, where, how large, under which licence; fetching and adding."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import streamlit as st

from workbench.core.errors import BadInput, WorkbenchError
from workbench.core.record import JobState
from workbench.diffusion.registry import (
    ModelFiles,
    ModelSpec,
    find_files,
    native_size,
)
from workbench.diffusion.registry.download import Plan, plan
from workbench.jobs.queue import Job
from workbench.ui.draw import run_panel
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.facts import facts_list
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import count, inert, size


@dataclass(frozen=True, slots=True)
class Found:
    """A registered model and what of it is on this machine: its files, or why there are none."""

    spec: ModelSpec
    files: ModelFiles | None
    problem: str = ""

    @property
    def fetchable(self) -> bool:
        """Whether it is missing and the hub has it."""
        return self.files is None and bool(self.spec.hub)


def found(backend: Backend) -> list[Found]:
    """Every registered model, looked for on the disk."""
    registry = backend.app.registry
    out = []
    for spec in registry.specs():
        try:
            out.append(Found(spec, find_files(spec, registry)))
        except WorkbenchError as exc:
            out.append(Found(spec, None, str(exc)))
    return out


def show(backend: Backend) -> None:
    """The whole part."""
    st.caption(
        "The models that can edit a picture. Nothing is fetched until you ask for it; everything "
        "runs on this machine."
    )
    for model in found(backend):
        with st.container(key=f"card_model_{_slug(model.spec.name)}"), guard():
            _card(backend, model)
    with st.expander("Add a model", icon=":material/add:"):
        _add(backend)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _card(backend: Backend, model: Found) -> None:
    spec, default = model.spec, backend.app.settings.model == model.spec.name
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"**{inert(spec.shown, 80)}**")
        if default:
            st.badge("chosen at first", color="blue")
        if model.files is not None:
            st.badge("on this machine", icon=":material/check:", color="green")
        elif spec.hub:
            st.badge("not on this machine", color="gray")
        else:
            st.badge("cannot be used", icon=":material/error:", color="red")
        st.space("stretch")
        if model.files is not None and not default:
            st.button(
                "Choose at first",
                key=f"default_{spec.name}",
                type="tertiary",
                help="New pictures begin with this model.",
                on_click=_make_default,
                args=(backend, spec.name),
            )
        if not spec.builtin:
            st.button(
                "Take off the list",
                key=f"remove_{spec.name}",
                type="tertiary",
                help="Its files stay where they are.",
                on_click=_remove,
                args=(backend, spec.name),
            )
        if model.files is not None:
            with st.popover("Details", key=f"details_{_slug(spec.name)}"):
                facts_list(_facts(model.files))
        elif model.fetchable:
            st.button(
                "Download …",
                key=f"ask_{spec.name}",
                icon=":material/download:",
                help="Shows size and licence first; nothing is fetched before you say so.",
                on_click=_ask,
                args=(spec.name,),
            )
    st.caption(inert(_line(model)))
    if model.fetchable:
        _fetch(backend, spec)
    elif model.problem:
        st.error(inert(model.problem))


def _ask(name: str) -> None:
    st.session_state[f"asked_{name}"] = not st.session_state.get(f"asked_{name}")


def _line(model: Found) -> str:
    spec = model.spec
    parts = [spec.note.rstrip(".")] if spec.note else []
    if model.files is not None:
        parts.append(size(model.files.bytes))
        parts.append(f"made for {native_size(model.files)} px")
    elif spec.native_size:
        parts.append(f"made for {spec.native_size} px")
    parts.append(f"licence: {spec.licence}" if spec.licence else "licence: see where it is from")
    if spec.hub:
        parts.append(spec.hub)
    line = " · ".join(parts)
    return line[:1].upper() + line[1:]


def _facts(files: ModelFiles) -> dict[str, str]:
    spec = files.spec
    prediction = spec.prediction or str(files.config("scheduler").get("prediction_type", "epsilon"))
    rows = {
        "Name": spec.name,
        "Kind": "Stable Diffusion XL" if files.is_sdxl else "Stable Diffusion 1.x or 2.x",
        "Predicts": prediction,
        "Where": str(files.single or files.root),
        "Weights": ", ".join(f"{k} {v or 'plain'}" for k, v in files.variants.items()),
    }
    if spec.vae:
        rows["Autoencoder"] = spec.vae
    if spec.config:
        rows["Configuration from"] = spec.config
    return rows


def _make_default(backend: Backend, name: str) -> None:
    with guard():
        backend.app.change(model=name)


def _remove(backend: Backend, name: str) -> None:
    with guard():
        backend.app.registry.remove(name)
        backend.facts.forget()


# --- fetching -----------------------------------------------------------------------------------------


def _fetch(backend: Backend, spec: ModelSpec) -> None:
    """First size and licence, then the question, then the download with its progress."""
    job = _download_job(backend, spec.name)
    if job is not None and job.state is not JobState.DONE:
        state = run_panel.job_panel(backend, job.id, key=f"fetch_{_slug(spec.name)}")
        if state is not None and not state.ended:
            return
    if st.session_state.get(f"asked_{spec.name}"):
        with guard():
            _question(backend, spec, bool(st.session_state.get(f"full_{spec.name}")))
    st.caption(
        f"Or in a terminal: `python -m workbench models download {spec.name}`. Without a network, "
        "copy the model's folder or file to this machine and add it below."
    )


def _question(backend: Backend, spec: ModelSpec, full: bool) -> None:
    asked = _plan(spec, full)
    free = shutil.disk_usage(backend.app.settings.folder).free
    with st.container(key=f"ask_box_{_slug(spec.name)}"):
        st.markdown(
            f"**{size(asked.bytes)}** in {count(len(asked.files), 'file')}, licence "
            f"**{inert(asked.licence)}**. {size(free)} are free on this disk."
        )
        st.toggle(
            "Full precision (float32)",
            key=f"full_{spec.name}",
            help="Twice as large. Half precision is what a GPU runs; take the full one for a CPU "
            "or to repeat published figures.",
        )
        st.button(
            f"Download {size(asked.bytes)}",
            key=f"fetch_{spec.name}",
            type="primary",
            disabled=asked.bytes > free,
            on_click=_start,
            args=(backend, spec.name, full),
        )


def _plan(spec: ModelSpec, full: bool) -> Plan:
    """What the hub said about a model; asked once per session and choice.

    Raises:
        ModelError: when it cannot be asked.
    """
    key = f"plan_of_{spec.name}_{full}"
    if key not in st.session_state:
        with st.spinner("Asking the hub …"):
            st.session_state[key] = plan(spec, full=full)
    made: Plan = st.session_state[key]
    return made


def _start(backend: Backend, name: str, full: bool) -> None:
    with guard():
        backend.app.submit_download(name, full=full)
        st.session_state.pop(f"asked_{name}", None)


def _download_job(backend: Backend, name: str) -> Job | None:
    """The newest download of a model, if the workbench still knows of it."""
    for job in backend.app.executor.recent():
        payload = job.payload if job.kind == "download" else None
        if isinstance(payload, dict) and payload.get("model") == name:
            return job
    return None


# --- adding -------------------------------------------------------------------------------------------


def _add(backend: Backend) -> None:
    with st.form("add_model", border=False, clear_on_submit=False):
        source = st.text_input(
            "Folder, file or hub id",
            key="model_source",
            placeholder="/models/comic.safetensors  ·  /models/my-diffusers-folder  ·  owner/name",
            help="A diffusers folder or a .safetensors checkpoint on this machine, or the id of a "
            "model on the Hugging Face hub (fetched only when you ask). Pickles (.ckpt, .bin) are "
            "refused: they can run any program.",
        )
        left, right = st.columns(2)
        name = left.text_input(
            "Short name", key="model_name", help="Letters, digits, '.', '_' and '-'."
        )
        title = right.text_input("Title (optional)", key="model_title")
        with st.expander("What the files may not say"):
            a, b, c = st.columns(3)
            config = a.text_input(
                "Configuration from",
                key="model_config",
                help="For a single file: the registered model or folder that lends its "
                "configuration and tokenizer, e.g. sd15, sd21, sd21-base, sdxl.",
            )
            prediction = b.selectbox(
                "Predicts", ["", "epsilon", "v_prediction"], key="model_prediction",
                format_func=lambda p: p or "as the files say",
            )  # fmt: skip
            native = c.number_input(
                "Made for (px)", 0, 4096, 0, 64, key="model_native", help="0: from the files."
            )
            vae = st.text_input("Another autoencoder (folder)", key="model_vae")
        pressed = st.form_submit_button("Add", type="primary")
    if not pressed:
        return
    with guard():
        registry = backend.app.registry
        if not source.strip() or not name.strip():
            raise BadInput("A model needs its place (folder, file or hub id) and a short name.")
        spec = ModelSpec(
            name=name.strip(),
            title=title.strip(),
            config=config.strip(),
            vae=vae.strip(),
            prediction=prediction,
            native_size=int(native),
            **registry.source(source.strip()),
        )
        if spec.path:
            find_files(spec, registry)  # says what is wrong before it is registered
        registry.add(spec)
        backend.facts.forget()
        st.toast(f"{inert(spec.shown, 60)} is on the list.", icon=":material/check:")
        st.rerun()
