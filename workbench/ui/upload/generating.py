"""A picture from a prompt: ideas, the form, its job, the candidates, and the one that is taken."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any, NoReturn

import streamlit as st

from workbench.core.config import MAX_NEGATIVE, GenerationConfig
from workbench.core.errors import BadInput
from workbench.core.record import JobState
from workbench.core.request import MAX_PROMPT, GenerateTask, ImageAsset, ModelRef
from workbench.storage.history import Store
from workbench.ui.draw import run_panel
from workbench.ui.shell import shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import count, inert, option_grid, option_widget, plain, say
from workbench.ui.shell.shell import guard
from workbench.ui.shell.workspace import ModelFacts, Workspace, made_as

MOST = 8  # candidates that the page offers; the command line makes up to 16
SAMPLERS = {"ddim": "DDIM", "dpm++2m": "DPM++ 2M", "dpm++2m-karras": "DPM++ 2M Karras"}
SHAPES: dict[str, tuple[int, int] | None] = {
    say("upload.square"): (1, 1),
    say("upload.landscape_4_3"): (4, 3),
    "Portrait 3:4": (3, 4),
    say("upload.wide_16_9"): (16, 9),
    say("upload.custom_size"): None,
}
# b1, b2, s1, s2 as FreeU's authors advise for each architecture; the mildest for any other model
FREEU = {
    "sd15": (1.5, 1.6, 0.9, 0.2),
    "sd21-base": (1.4, 1.6, 0.9, 0.2),
    "sd21": (1.4, 1.6, 0.9, 0.2),
}
FREEU_ELSE = (1.3, 1.4, 0.9, 0.2)
FREEU_FIELDS = ("freeu_b1", "freeu_b2", "freeu_s1", "freeu_s2")
_DRAFT = "generate_draft"
_JOB = "generate_job"


def choose(backend: Backend) -> None:
    """Form on the left, progress and candidates on the right."""
    job_id = _job(backend)
    draft = _draft(backend, job_id)
    with st.container(key="halves_generate"):
        left, right = st.columns([2, 3], gap="large")
    with left, st.container(key="card_generate"):
        st.subheader(say("upload.describe_a_picture"), anchor=False)
        _form(backend, draft, running=backend.is_live(job_id))
    with right:
        if backend.knows(job_id):
            _progress_and_gallery(backend, job_id)
        else:
            with st.container(key="card_gallery_empty"):
                st.markdown(say("upload.your_pictures_will_appear_here"))
                st.caption(say("upload.choose_your_favourite_and_drag"))
        run_panel.queue_panel(backend, key="generate_queue", but=job_id)


def _job(backend: Backend) -> str:
    """The generation of this address, else the last one of this session; "" for none."""
    for name in (shell.current("job"), st.session_state.get(_JOB)):
        if name and backend.knows(str(name)) and backend.job(str(name)).kind == "generate":
            return str(name)
    return ""


# --- the form -----------------------------------------------------------------------------------------


def _draft(backend: Backend, job_id: str) -> dict[str, Any]:
    """Values of the form: this session's, else that of the job at hand, else the defaults."""
    kept = st.session_state.get(_DRAFT)
    if isinstance(kept, dict):
        return kept
    draft = {
        "prompt": "", "model": backend.default_model(), "count": 4, "shape": say("upload.square"),
        "config": dataclasses.asdict(GenerationConfig()),
    }  # fmt: skip
    task = backend.job(job_id).payload if job_id else None
    if isinstance(task, GenerateTask):
        draft |= {"prompt": task.prompt, "model": task.model.name, "count": min(MOST, task.count)}
        draft |= {"config": dataclasses.asdict(task.config)}
        draft["shape"] = _shape_of(task.config, backend.facts.of(task.model.name).native)
    st.session_state[_DRAFT] = draft
    return draft


def _form(backend: Backend, draft: dict[str, Any], *, running: bool) -> None:
    config: dict[str, Any] = draft["config"]
    st.session_state.setdefault("gen_prompt", draft["prompt"])
    draft["prompt"] = st.text_area(
        say("common.prompt"),
        max_chars=MAX_PROMPT,
        key="gen_prompt",
        height=84,
        placeholder=placeholder(draft["model"]),
        help=say("upload.prompt_help"),
    )
    config["negative_prompt"] = st.text_input(
        say("upload.negative_prompt"),
        value=config["negative_prompt"],
        max_chars=MAX_NEGATIVE,
        key="gen_negative",
        placeholder=say("upload.negative_prompt_placeholder"),
        help=say("upload.negative_prompt_help"),
    )
    facts = _model(backend, draft)
    problem = _shape(draft, facts)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        draft["count"] = st.number_input(
            say("upload.pictures"), 1, MOST, draft["count"], key="gen_count", width=120,
            help=say("upload.pictures_help"),
        )  # fmt: skip
        config["seed"] = _seed(config)
    with st.expander(say("upload.more_options")):
        _sampling(draft, config)
    words = facts.problem or problem
    if words:
        st.error(inert(words))
    pressed = st.button(
        say("upload.generating") if running else say("upload.generate"),
        key="generate",
        type="primary",
        width="stretch",
        icon=":material/auto_awesome:",
        disabled=running or bool(words),
    )
    if not words:
        with guard():
            took = backend.generating_seconds(_task(draft))
            if took is not None:
                st.caption(say("upload.about_time", time=took))
    if pressed:
        with guard():
            _start(backend, draft)


def _model(backend: Backend, draft: dict[str, Any]) -> ModelFacts:
    specs = {m.name: m for m in backend.models()}
    names = list(specs) if draft["model"] in specs else [*specs, draft["model"]]
    draft["model"] = st.selectbox(
        say("common.model"),
        names,
        index=names.index(draft["model"]),
        key="gen_model",
        format_func=lambda name: specs[name].shown if name in specs else plain(name, 60),
        help=say("upload.model_help"),
    )
    if draft["model"] == "storybook":
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.caption(
                say("upload.storybook_draws_robots_cats_faces"),
                width=280,
            )
            st.button(
                say("upload.example_prompt"),
                key="gen_idea",
                type="tertiary",
                icon=":material/lightbulb:",
                help=say("upload.example_prompt_help"),
                on_click=_suggest,
                args=(draft["model"],),
            )
    return backend.facts.of(draft["model"])


def _suggest(model: str) -> None:
    now = str(st.session_state.get("gen_prompt", ""))
    st.session_state["gen_prompt"] = next_idea(model, now)


def _shape(draft: dict[str, Any], facts: ModelFacts) -> str:
    """Width and height into the draft; why they are impossible, or ""."""
    config = draft["config"]
    draft["shape"] = st.selectbox(
        say("upload.size"),
        list(SHAPES),
        index=list(SHAPES).index(draft["shape"]),
        key="gen_shape",
        format_func=lambda name: _shape_words(name, facts.native),
        help=say("upload.size_help"),
    )
    ratio = SHAPES[draft["shape"]]
    if ratio is not None:
        config["width"], config["height"] = shape_size(ratio, facts.native)
        return ""
    with st.container(horizontal=True):
        for name in ("width", "height"):
            config[name] = st.number_input(
                f"{name.capitalize()} (px)", 64, 4096, config[name] or facts.native, 8,
                key=f"gen_{name}", help=say("upload.a_multiple_of_8"),
            )  # fmt: skip
    sizes = (config["width"], config["height"])
    if any(side % 8 for side in sizes):
        return say("upload.the_size_is_sizes0_sizes1", sizes0=sizes[0], sizes1=sizes[1])
    if sizes[0] * sizes[1] > 16 * facts.native**2:
        return say(
            "upload.sizes0_sizes1_px_is_too", sizes0=sizes[0], sizes1=sizes[1], native=facts.native
        )
    return ""


def shape_size(ratio: tuple[int, int], native: int) -> tuple[int, int]:
    """(width, height) of a shape whose longest side is the model's own size, multiples of 8."""
    longest = max(ratio)
    width, height = (max(64, round(native * side / longest / 8) * 8) for side in ratio)
    return width, height


def _shape_of(config: GenerationConfig, native: int) -> str:
    """The name of a generation's shape."""
    size = config.width or native, config.height or native
    named = (n for n, ratio in SHAPES.items() if ratio and shape_size(ratio, native) == size)
    return next(named, say("upload.custom_size"))


def _shape_words(name: str, native: int) -> str:
    ratio = SHAPES[name]
    return name if ratio is None else "{} · {} × {} px".format(name, *shape_size(ratio, native))


def _seed(config: dict[str, Any]) -> int:
    def roll() -> None:
        st.session_state["gen_seed"] = secrets.randbelow(2**31)

    st.session_state.setdefault("gen_seed", min(config["seed"], 2**31 - 1))
    value = st.number_input(
        say("common.seed"), 0, 2**31 - 1, step=1, key="gen_seed",
        help=say("upload.seed_help"),
    )  # fmt: skip
    st.button(say("upload.new_seed"), key="gen_roll", icon=":material/casino:", on_click=roll)
    return int(value)


def _sampling(draft: dict[str, Any], config: dict[str, Any]) -> None:
    option_fields = ("steps", "guidance")

    def nothing() -> None:
        """The widgets' own values are read below."""

    config |= option_grid(
        GenerationConfig, option_fields, config, prefix="gen", on_change=nothing, columns=2
    )
    config["scheduler"] = st.selectbox(
        say("upload.scheduler"),
        list(SAMPLERS),
        index=list(SAMPLERS).index(config["scheduler"]),
        key="gen_scheduler",
        format_func=lambda name: SAMPLERS[name],
        help=say("upload.scheduler_help"),
    )
    is_on = GenerationConfig(**{n: config[n] for n in FREEU_FIELDS}).freeu is not None
    if not st.toggle(
        say("upload.freeu"),
        value=is_on,
        key="gen_freeu",
        help=say("upload.freeu_help"),
    ):
        config |= dict.fromkeys(FREEU_FIELDS, 1.0)
        return
    if not is_on:
        config |= dict(zip(FREEU_FIELDS, FREEU.get(draft["model"], FREEU_ELSE), strict=True))
    for name, column in zip(FREEU_FIELDS, st.columns(4), strict=True):
        with column:
            config[name] = option_widget(
                GenerationConfig, name, config[name], key=f"gen_{name}",
                on_change=nothing, label=name.removeprefix("freeu_"),
            )  # fmt: skip


def _start(backend: Backend, draft: Mapping[str, Any]) -> None:
    # not a disabled button: the click itself is what sends the text that was just typed
    if not draft["prompt"].strip():
        raise BadInput(say("upload.describe_the_picture_in_the"))
    job = backend.submit_generate(_task(draft))
    st.session_state[_JOB] = job
    shell.remember("job", job)
    st.rerun(scope="app")


def _task(draft: Mapping[str, Any]) -> GenerateTask:
    return GenerateTask(
        prompt=draft["prompt"].strip() or "…",
        config=GenerationConfig(**draft["config"]),
        model=ModelRef(name=draft["model"]),
        count=int(draft["count"]),
    )


# --- progress and candidates --------------------------------------------------------------------------


def _progress_and_gallery(backend: Backend, job_id: str) -> None:
    job = backend.job(job_id)
    if job.state is not JobState.DONE:
        with st.container(key="card_generate_job"):
            run_panel.job_panel(backend, job_id, key="generate")
        return
    result = job.result
    if not isinstance(result, Mapping):
        raise BadInput(say("upload.these_pictures_are_no_longer"))
    made = list(result["pictures"])
    st.subheader(
        say("upload.choose_one") if len(made) > 1 else say("upload.use_it_or_generate_another"),
        anchor=False,
    )
    st.caption(
        say(
            "upload.candidates_for_prompt",
            candidates=count(len(made), "candidate"),
            prompt=inert(str(result["prompt"]), 120),
        )
    )
    if result.get("notice"):
        st.caption(f":material/info: {inert(str(result['notice']))}")
    columns = st.columns(2 if len(made) < 5 else 3, gap="small")
    for n, picture in enumerate(made):
        seed = picture["config"]["seed"]
        with columns[n % len(columns)], st.container(key=f"tile_made_{n}", gap="small"), guard():
            st.image(
                backend.shown(picture["image"], 512),
                width="stretch",
                alt=say("upload.generated_picture_seed_seed", seed=seed),
            )
            if st.button(
                say("upload.edit_this_one_seed_seed", seed=seed),
                key=f"take_{job_id}_{n}",
                width="stretch",
            ):
                _enter(take(backend.store, result, n, backend.defaults()))


def own_latents(space: Workspace) -> bool:
    """Say of a picture that was made here what its drags start from; whether from its own latents."""
    if space.made_with is None:
        return False
    then = space.made_unlike
    if then is not None:
        st.info(say("upload.this_picture_was_generated_with"))
        st.button(
            say("upload.restore_the_original_prompt_and"),
            key="made_again",
            icon=":material/undo:",
            on_click=lambda: _back_to(space, *then),
        )
        return False
    key = f"own_latents_{space.id}"
    on: bool = st.toggle(
        say("upload.use_the_original_generation_data"),
        value=bool(space.get("own_latents", True)),
        key=key,
        on_change=lambda: space.set(own_latents=bool(st.session_state[key])),
        help=say("upload.use_the_original_generation_data_help"),
    )
    if on:
        st.success(say("upload.generated_here_ready_to_drag"))
        shell.link("drag", say("common.mask_points"), icon=":material/arrow_forward:")
    return on


def _back_to(space: Workspace, prompt: str, model: str) -> None:
    st.session_state.pop(f"prompt_{space.id}", None)
    st.session_state.pop(f"model_{space.id}", None)
    space.change(prompt=prompt)
    space.set(model=model)


def take(
    store: Store, result: Mapping[str, Any], number: int, defaults: Mapping[str, Any] | None = None
) -> Workspace:
    """The project of a candidate: the one there is already, else a new one.

    Args:
        store: the history.
        result: what the generation's job came to.
        number: which of its pictures, from 0.
        defaults: settings with which a new project begins; the model is that of the picture.
    """
    picture = result["pictures"][number]
    model = str(result["model"]["name"])
    made = made_as(picture["image"], str(result["prompt"]), model, picture["config"])
    for project in store.projects.recent():
        if project.image == picture["image"] and project.settings.get("made") == made:
            return Workspace(store, project)
    seed = picture["config"]["seed"]
    title = f"{plain(str(result['prompt']), 40) or say('upload.generated_picture')} · {seed}"
    asset = ImageAsset(
        id=picture["image"], width=picture["width"], height=picture["height"], name=title
    )
    return Workspace.create(
        store,
        asset,
        title=title,
        prompt=str(result["prompt"]),
        settings={**(defaults or {}), "made": made, "model": model},
    )


def _enter(space: Workspace) -> NoReturn:
    for name, value in (("project", space.id), ("job", None), ("edit", None)):
        shell.remember(name, value)
    shell.go("drag")


# The model that ships knows one way of saying things (`demo.scenes`): kind, colours, and the wall's
# name; with other words its pictures get worse.
IDEAS: dict[str, tuple[str, ...]] = {
    "storybook": (
        "a red robot with a raised laser gun, mint wall",
        "an orange cat, blue collar, tail up, lemon wall",
        "a smiling face with long brown hair, tan skin, purple shirt",
        "a landscape with an orange sky, a snowy slate mountain, golden grass",
        "a yellow flower bending left in a blue vase, peach wall",
        "a sailboat with a blue hull and a striped orange sail, blue sky",
        "a blue robot with a lowered laser gun firing, lilac wall",
        "a landscape with a blue sky, a snowy slate mountain, golden grass, a lake",
    )
}
GENERAL = "a red robot holding a laser gun, blue sky, picture book illustration"


def placeholder(model: str) -> str:
    """Placeholder of the prompt field."""
    return IDEAS.get(model, (GENERAL,))[0]


def next_idea(model: str, now: str) -> str:
    """The idea after `now`, else the first; "" for a model without ideas."""
    known = IDEAS.get(model, ())
    if not known:
        return ""
    return known[(known.index(now) + 1) % len(known)] if now in known else known[0]
