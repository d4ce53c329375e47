"""The Upload & train page: prompt, training, reconstruction, and the size at which a picture is edited."""

from __future__ import annotations

import dataclasses

import streamlit as st

from workbench.core.config import LORA_PRESETS, LoraConfig, lora_preset
from workbench.core.options import options_of
from workbench.core.record import JobState
from workbench.core.request import MAX_PROMPT
from workbench.ui import components
from workbench.ui.draw import run_panel
from workbench.ui.shell import loras, shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import Guess, inert, option_grid, say
from workbench.ui.shell.loras import begin
from workbench.ui.shell.shell import guard
from workbench.ui.shell.workspace import Workspace, preset_of
from workbench.ui.upload import generating, intake


def prompt_and_lora(backend: Backend, space: Workspace) -> None:
    """Prompt, model, training options, and the Train button."""
    backend.reconstruction(space)  # takes over what the last training came to, before it is shown
    with st.container(key="card_prompt"):
        _prompt(space)
        _model(backend, space)
        if generating.own_latents(space):
            return
        if space.lora_file is None:
            _preset(space)
        loras.lora_choice(backend, space)
        with guard():
            _start(backend, space)


def _prompt(space: Workspace) -> None:
    key = f"prompt_{space.id}"

    def save() -> None:
        space.change(prompt=st.session_state[key])

    st.text_area(
        say("upload.describe_the_picture"),
        value=space.project.prompt,
        max_chars=MAX_PROMPT,
        key=key,
        on_change=save,
        height=84,
        placeholder=say("upload.prompt_placeholder"),
        help=say("upload.describe_the_picture_help"),
    )


def _model(backend: Backend, space: Workspace) -> None:
    models = backend.models()
    names = [m.name for m in models]
    if space.model.name not in names:
        names.append(space.model.name)
    titles = {m.name: m.title for m in models}
    if len(names) < 2:
        return
    key = f"model_{space.id}"

    def save() -> None:
        space.set(model=st.session_state[key])

    st.selectbox(
        say("common.model"),
        names,
        index=names.index(space.model.name),
        key=key,
        on_change=save,
        format_func=lambda name: titles.get(name, name),
        help=say("upload.model_help_2"),
    )


def _preset(space: Workspace) -> None:
    config = space.lora
    now = preset_of(config)
    key = f"lora_preset_{space.id}_{now}"  # a change of the options below changes what is chosen

    def choose() -> None:
        name = st.session_state[key]
        if name in LORA_PRESETS:
            space.set(lora=dataclasses.asdict(lora_preset(name)), lora_form=_form(space) + 1)

    st.segmented_control(
        say("upload.training"),
        [*LORA_PRESETS, *(["custom"] if now == "custom" else [])],
        default=now,
        key=key,
        on_change=choose,
        format_func=str.capitalize,
        required=True,
        help="  \n".join(f"- {p.label}: {p.description}" for p in LORA_PRESETS.values()),
    )
    with st.expander(say("upload.training_options")):
        prefix = f"lora_{space.id}_{_form(space)}"

        def save() -> None:
            names = options_of(LoraConfig)
            values = {n: st.session_state.get(f"{prefix}_{n}", getattr(config, n)) for n in names}
            with guard():
                space.set(lora=dataclasses.asdict(LoraConfig(**values)))

        fields = list(options_of(LoraConfig))
        option_grid(LoraConfig, fields, dataclasses.asdict(config), prefix=prefix, on_change=save)
        _seed(space)


def _form(space: Workspace) -> int:
    """Number of the option form: a preset makes a new one, filled with its values."""
    return int(space.get("lora_form", 0))


def _seed(space: Workspace) -> None:
    key = f"seed_{space.id}"

    def save() -> None:
        space.set(seed=int(st.session_state[key]))

    st.number_input(
        say("common.seed"),
        min_value=0,
        max_value=2**31 - 1,
        value=space.seed,
        step=1,
        key=key,
        on_change=save,
        help=say("upload.seed_help_2"),
    )


def _start(backend: Backend, space: Workspace) -> None:
    """The train button, or what is there already and that one may go on."""
    facts = backend.model_facts(space)
    if facts.problem:
        st.error(inert(facts.problem))
        return
    job_id = str(space.get("train_job") or "")
    running = backend.is_live(job_id)
    if intake.waits_for_part(space, facts.native):
        st.info(say("upload.draw_first"))
        shell.link("drag", say("common.mask_points"), icon=":material/arrow_forward:")
    trained = backend.is_trained(space)
    if space.lora_file is not None:
        loras.in_use(backend, space, running=running)
        return
    if trained:
        st.success(say("upload.already_trained_you_can_start"))
        shell.link("drag", say("common.mask_points"), icon=":material/arrow_forward:")
        loras.train_further(backend, space, running=running)
        loras.to_library(say("upload.manage_loras"))
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button(
            say("upload.training_2") if running else say("upload.train"),
            key="train",
            type="primary",
            icon=":material/school:",
            disabled=running,
            help=say("upload.fine_tunes_the_model_on"),
        )
        st.caption(training_words(space.lora, backend.training_seconds(space)))
    if pressed:
        begin(space, backend.submit_train(space))


def training_words(config: LoraConfig, took: Guess | None) -> str:
    """Estimated training time in one line; `took`: None where nothing is known."""
    if config.steps == 0:
        return say("upload.no_training_the_picture_will")
    if took is None:
        return say("upload.training_steps", steps=config.steps)
    return say("upload.training_about", time=took, steps=config.steps)


def progress(backend: Backend, space: Workspace) -> None:
    """The training that runs, or the last one if it did not go well."""
    job_id = str(space.get("train_job") or "")
    if not backend.knows(job_id):
        return
    state = backend.job(job_id).state
    if state is not JobState.DONE:
        with st.container(key="card_train_job"):
            run_panel.job_panel(backend, job_id, key="train")
    run_panel.queue_panel(backend, key="train_queue", but=job_id)


def reconstruction(backend: Backend, space: Workspace) -> None:
    """Reconstruction check: the picture inverted and denoised again, beside the original."""
    found = backend.reconstruction(space)
    if found is None:
        if space.generation is None and space.lora_file is None and backend.is_trained(space):
            _reconstruct(backend, space)
        return
    st.subheader(say("upload.reconstruction"), anchor=False)
    psnr = found.get("psnr")
    told = say("upload.similarity_psnr_db_psnr_above", psnr=psnr) if psnr else ""
    st.caption(say("upload.left_the_original_right_the", told=told))
    components.viewer(
        [
            (say("upload.original"), backend.shown_part(space.image.id, found.get("crop"), 512)),
            (say("upload.reconstruction"), backend.shown(str(found["reconstruction"]), 512)),
        ],
        key="reconstruction",
        max_height=440,
    )


def _reconstruct(backend: Backend, space: Workspace) -> None:
    """After a training that was part of a run: make the reconstruction, at once on a GPU."""
    running = backend.is_live(str(space.get("train_job") or ""))
    asked = st.button(
        say("common.check_reconstruction"),
        key="check_reconstruction",
        icon=":material/compare:",
        disabled=running,
        help=say("common.check_reconstruction_help"),
    )
    if asked or (backend.has_gpu() and not running):
        begin(space, backend.submit_train(space))
