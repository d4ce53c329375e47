"""How to drag: method, preset, step limit, and every option of the configurations."""

from __future__ import annotations

import dataclasses
from typing import Any

import streamlit as st

from workbench.core.config import METHODS, STRENGTHS, DragConfig, InversionConfig
from workbench.core.options import options_of
from workbench.ui.shell.options_form import option_grid, option_widget
from workbench.ui.shell.shell import guard
from workbench.ui.shell.workspace import Workspace, strength_of

METHOD_WORDS = {
    "dragdiffusion": ("DragDiffusion", "the authors' method, step by step"),
    "gooddrag": ("GoodDrag", "drags and denoises in turn; arrives more often, takes longer"),
    "warp": ("Warp", "one move without optimisation, in a fraction of the time"),
    "auto": ("Auto", "starts from the warp and refines it until the points arrive"),
}
_OWN = {
    "gooddrag": ("drag_rounds", "trackings_per_round", "updates_per_tracking", "no_change_limit")
}
_FRONT = ("method", "steps")


def drag_form(space: Workspace) -> None:
    """Method and preset in front, the rest one click away; every change is saved at once."""
    config = space.drag
    form = int(space.get("drag_form", 0))
    names = list(METHODS)
    method_key = f"method_{space.id}_{form}"
    st.selectbox(
        "Method",
        names,
        index=names.index(config.method),
        key=method_key,
        format_func=lambda name: "{} — {}".format(*METHOD_WORDS[name]),
        on_change=lambda: _choose(space, method=st.session_state[method_key]),
    )
    if config.method != "warp":
        _strength(space, config, form)
    with st.expander("All options"):
        _options(space, config, form)


def _strength(space: Workspace, config: DragConfig, form: int) -> None:
    now = strength_of(config)
    key = f"strength_{space.id}_{now}"
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        st.segmented_control(
            "Preset",
            [*STRENGTHS, *(["custom"] if now == "custom" else [])],
            default=now,
            key=key,
            format_func=str.capitalize,
            wrap=True,  # with "custom" as the fourth there is no room for one line
            required=True,
            on_change=lambda: _choose(space, strength=st.session_state[key]),
            help="How many steps at most: half, the method's own number, or two and a half times "
            "as many. Begin with normal; take strong when things do not move far enough.",
        )
    with right:
        steps_key = f"steps_{space.id}_{form}"
        option_widget(
            DragConfig,
            "steps",
            config.steps,
            key=steps_key,
            label="Step limit (n_pix_steps)",
            default=DragConfig.preset(config.method).steps,
            on_change=lambda: _save(space, DragConfig, {"steps": st.session_state[steps_key]}),
        )


def _choose(space: Workspace, *, method: str = "", strength: str = "") -> None:
    """Another method or preset: its own values, and a form that shows them."""
    now = strength_of(space.drag)
    wanted = strength or (now if now in STRENGTHS else "normal")
    if wanted not in STRENGTHS:
        return
    made = DragConfig.preset(method or space.drag.method, wanted)
    space.set(drag=dataclasses.asdict(made), drag_form=int(space.get("drag_form", 0)) + 1)


def _options(space: Workspace, config: DragConfig, form: int) -> None:
    foreign = {n for m, own in _OWN.items() if m != config.method for n in own}
    usual = DragConfig.preset(config.method)
    fields = [n for n in options_of(DragConfig) if n not in _FRONT and n not in foreign]
    prefix = f"drag_{space.id}_{form}"
    st.markdown("**Drag**")
    option_grid(
        DragConfig,
        fields,
        dataclasses.asdict(config),
        prefix=prefix,
        defaults=dataclasses.asdict(usual),
        on_change=lambda: _from_form(space, DragConfig, fields, prefix),
    )
    st.markdown("**Inversion**")
    inversion = list(options_of(InversionConfig))
    other = f"inversion_{space.id}_{form}"
    option_grid(
        InversionConfig,
        inversion,
        dataclasses.asdict(space.inversion),
        prefix=other,
        on_change=lambda: _from_form(space, InversionConfig, inversion, other),
    )
    key = f"size_{space.id}_{form}"
    st.number_input(
        "Working size (px)",
        min_value=0,
        max_value=4096,
        value=space.working_size,
        step=64,
        key=key,
        on_change=lambda: _size(space, int(st.session_state[key])),
        help="Longest side of the picture while it is edited; 0 takes the model's own. "
        "Larger keeps more detail and needs more time and memory. Possible: 0, or 64 to 4096.",
    )
    st.button(
        "Back to the preset",
        key=f"preset_again_{space.id}",
        on_click=lambda: _reset(space),
        icon=":material/restart_alt:",
    )


def _size(space: Workspace, size: int) -> None:
    space.set(working_size=0 if size == 0 else max(64, size))


def _reset(space: Workspace) -> None:
    space.set(inversion=dataclasses.asdict(InversionConfig()), working_size=0)
    _choose(space, strength="normal")


def _from_form(space: Workspace, cls: type[Any], fields: list[str], prefix: str) -> None:
    held = {n: st.session_state.get(f"{prefix}_{n}") for n in fields}
    _save(space, cls, {n: v for n, v in held.items() if v is not None})


def _save(space: Workspace, cls: type[Any], values: dict[str, Any]) -> None:
    """Check and keep changed options; what is out of range says so and changes nothing."""
    with guard():
        if cls is DragConfig:
            space.set(drag=dataclasses.asdict(dataclasses.replace(space.drag, **values)))
        else:
            changed = dataclasses.replace(space.inversion, **values)
            space.set(inversion=dataclasses.asdict(changed))
