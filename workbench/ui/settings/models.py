"""The models: which are installed, where, how large, under which licence; downloading and adding."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import streamlit as st

from workbench.core.errors import BadInput, WorkbenchError
from workbench.core.record import JobState
from workbench.diffusion.registry import ModelSpec
from workbench.diffusion.registry.download import Plan, plan
from workbench.diffusion.registry.files import ModelFiles, find_files, native_size
from workbench.jobs import Job
from workbench.ui.draw import run_panel
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import count, facts_list, inert, say, size
from workbench.ui.shell.shell import guard


@dataclass(frozen=True, slots=True)
class Found:
    """A registered model and what of it is on this machine: its files, or why there are none."""

    spec: ModelSpec
    files: ModelFiles | None
    problem: str = ""

    @property
    def fetchable(self) -> bool:
        """True if it is missing and the hub has it."""
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
    st.caption(say("settings.models_for_generating_and_editing"))
    for model in found(backend):
        with st.container(key=f"card_model_{_slug(model.spec.name)}"), guard():
            _card(backend, model)
    with st.expander(say("settings.add_a_model"), icon=":material/add:"):
        _add(backend)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _card(backend: Backend, model: Found) -> None:
    spec, default = model.spec, backend.app.settings.model == model.spec.name
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"**{inert(spec.shown, 80)}**")
        if default:
            st.badge(say("settings.default"), color="blue")
        if model.files is not None:
            st.badge(say("settings.installed"), icon=":material/check:", color="green")
        elif spec.hub:
            st.badge(say("settings.not_installed"), color="gray")
        else:
            st.badge(say("settings.unusable"), icon=":material/error:", color="red")
        st.space("stretch")
        if model.files is not None and not default:
            st.button(
                say("settings.make_default"),
                key=f"default_{spec.name}",
                type="tertiary",
                help=say("settings.make_default_help"),
                on_click=_make_default,
                args=(backend, spec.name),
            )
        if not spec.builtin:
            st.button(
                say("settings.remove"),
                key=f"remove_{spec.name}",
                type="tertiary",
                help=say("settings.remove_help_2"),
                on_click=_remove,
                args=(backend, spec.name),
            )
        if model.files is not None:
            with st.popover(say("settings.details"), key=f"details_{_slug(spec.name)}"):
                facts_list(_facts(model.files))
        elif model.fetchable:
            st.button(
                say("settings.download"),
                key=f"ask_{spec.name}",
                icon=":material/download:",
                help=say("settings.download_help"),
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
        parts.append(say("settings.native_size_files_px", files=native_size(model.files)))
    elif spec.native_size:
        parts.append(say("settings.native_size_native_size_px", native_size=spec.native_size))
    parts.append(
        f"licence: {spec.licence}" if spec.licence else say("settings.licence_see_the_models_page")
    )
    if spec.hub:
        parts.append(spec.hub)
    line = " · ".join(parts)
    return line[:1].upper() + line[1:]


def _facts(files: ModelFiles) -> dict[str, str]:
    spec = files.spec
    prediction = spec.prediction or str(files.config("scheduler").get("prediction_type", "epsilon"))
    rows = {
        say("settings.name"): spec.name,
        say("settings.type"): say("settings.stable_diffusion_xl")
        if files.is_sdxl
        else say("settings.stable_diffusion_1_x_or"),
        say("settings.prediction_type"): prediction,
        say("settings.location"): str(files.single or files.root),
        say("settings.weights"): ", ".join(
            f"{k} {v or 'plain'}" for k, v in files.variants.items()
        ),
    }
    if spec.vae:
        rows[say("settings.autoencoder")] = spec.vae
    if spec.config:
        rows[say("settings.configuration_from")] = spec.config
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
    st.caption(say("settings.or_run_python_m_workbench", name=spec.name))


def _question(backend: Backend, spec: ModelSpec, full: bool) -> None:
    asked = _plan(spec, full)
    free = shutil.disk_usage(backend.app.settings.folder).free
    with st.container(key=f"ask_box_{_slug(spec.name)}"):
        st.markdown(
            say(
                "settings.size_in_files_licence_licence",
                size=size(asked.bytes),
                files=count(len(asked.files), "file"),
                licence=inert(asked.licence),
                size_2=size(free),
            )
        )
        st.toggle(
            say("settings.full_precision_float32"),
            key=f"full_{spec.name}",
            help=say("settings.full_precision_float32_help"),
        )
        st.button(
            say("settings.download_size", size=size(asked.bytes)),
            key=f"fetch_{spec.name}",
            type="primary",
            disabled=asked.bytes > free,
            on_click=_start,
            args=(backend, spec.name, full),
        )


def _plan(spec: ModelSpec, full: bool) -> Plan:
    """The hub's answer about a model; asked once per session and choice.

    Raises:
        ModelError: when it cannot be asked.
    """
    key = f"plan_of_{spec.name}_{full}"
    if key not in st.session_state:
        with st.spinner(say("settings.asking_the_hugging_face_hub")):
            st.session_state[key] = plan(spec, full=full)
    made: Plan = st.session_state[key]
    return made


def _start(backend: Backend, name: str, full: bool) -> None:
    with guard():
        backend.submit_download(name, full=full)
        st.session_state.pop(f"asked_{name}", None)


def _download_job(backend: Backend, name: str) -> Job | None:
    """The newest download of a model, if the workbench still knows of it."""
    for job in backend.recent("download"):
        payload = job.payload
        if isinstance(payload, dict) and payload.get("model") == name:
            return job
    return None


# --- adding -------------------------------------------------------------------------------------------


def _add(backend: Backend) -> None:
    with st.form("add_model", border=False, clear_on_submit=False):
        source = st.text_input(
            say("settings.folder_file_or_hub_id"),
            key="model_source",
            placeholder=say("settings.folder_file_or_hub_id_placeholder"),
            help=say("settings.folder_file_or_hub_id_help"),
        )
        left, right = st.columns(2)
        name = left.text_input(
            say("settings.short_name"), key="model_name", help=say("settings.short_name_help")
        )
        title = right.text_input(say("settings.title_optional"), key="model_title")
        with st.expander(say("settings.advanced_only_if_detection_fails")):
            a, b, c = st.columns(3)
            config = a.text_input(
                say("settings.configuration_from"),
                key="model_config",
                help=say("settings.configuration_from_help"),
            )
            prediction = b.selectbox(
                say("settings.predicts"), ["", "epsilon", "v_prediction"], key="model_prediction",
                format_func=lambda p: p or say("common.automatic"),
            )  # fmt: skip
            native = c.number_input(
                say("settings.native_size_px"),
                0,
                4096,
                0,
                64,
                key="model_native",
                help=say("settings.native_size_px_help"),
            )
            vae = st.text_input(say("settings.autoencoder_folder"), key="model_vae")
        pressed = st.form_submit_button(say("settings.add"), type="primary")
    if not pressed:
        return
    with guard():
        registry = backend.app.registry
        if not source.strip() or not name.strip():
            raise BadInput(say("settings.enter_a_folder_file_or"))
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
        st.toast(
            say("settings.shown_was_added", shown=inert(spec.shown, 60)), icon=":material/check:"
        )
        st.rerun()
