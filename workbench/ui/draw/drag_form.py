"""Drag settings (method, preset, step limit, every option), and the menu of the mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import streamlit as st

from workbench.canvas import selection
from workbench.canvas.drawing import Drawing
from workbench.core.config import (
    METHODS,
    SPECS,
    STRENGTHS,
    DragConfig,
    InversionConfig,
    with_method,
)
from workbench.core.options import options_of
from workbench.ui.shell import projection
from workbench.ui.shell.area import mask_of, painted_with
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import option_grid, option_widget, say
from workbench.ui.shell.shell import guard
from workbench.ui.shell.workspace import Workspace, strength_of

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
        format_func=method_line,
        on_change=lambda: choose_method(space, st.session_state[method_key]),
    )
    if SPECS[config.method].optimises:
        _strength(space, config, form)
    with st.expander("All options"):
        _options(space, config, form)


def _strength(space: Workspace, config: DragConfig, form: int) -> None:
    now = strength_of(config)
    key = f"strength_{space.id}_{now}"
    st.segmented_control(
        "Preset",
        [*STRENGTHS, *(["custom"] if now == "custom" else [])],
        default=now,
        key=key,
        format_func=str.capitalize,
        wrap=True,  # with "custom" as the fourth there is no room for one line
        required=True,
        on_change=lambda: choose_strength(space, st.session_state[key]),
        help="How many steps at most: half, the method's own number, or two and a half times "
        "as many. Begin with normal; take strong when things do not move far enough.",
    )
    steps_key = f"steps_{space.id}_{form}"
    option_widget(
        DragConfig,
        "steps",
        config.steps,
        key=steps_key,
        label="Step limit (n_pix_steps)",
        default=SPECS[config.method].drag_config().steps,
        on_change=lambda: _save(space, DragConfig, {"steps": st.session_state[steps_key]}),
    )


def method_line(name: str) -> str:
    """A method in one line, for a list of choices."""
    return f"{SPECS[name].label} — {SPECS[name].description}"


def choose_method(space: Workspace, method: str) -> None:
    """Take another method with its own drag and inversion defaults."""
    drag, inversion = with_method(space.drag, space.inversion, method)
    _renew(space, drag=dataclasses.asdict(drag), inversion=dataclasses.asdict(inversion))


def choose_strength(space: Workspace, strength: str) -> None:
    """Take the method's own drag options at a strength; "custom" changes nothing."""
    if strength in STRENGTHS:
        made = SPECS[space.drag.method].drag_config(strength)
        _renew(space, drag=dataclasses.asdict(made))


def _renew(space: Workspace, **settings: Any) -> None:
    """Save settings and make the form show them."""
    space.set(**settings, drag_form=int(space.get("drag_form", 0)) + 1)


def _options(space: Workspace, config: DragConfig, form: int) -> None:
    spec = SPECS[config.method]
    usual = spec.drag_config()
    fields = [n for n in options_of(DragConfig) if n not in _FRONT and spec.reads(n)]
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
        defaults=dataclasses.asdict(spec.inversion_config()),
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
    spec = SPECS[space.drag.method]
    _renew(
        space,
        drag=dataclasses.asdict(spec.drag_config()),
        inversion=dataclasses.asdict(spec.inversion_config()),
        working_size=0,
    )


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


def brush_size(space: Workspace, state: dict[str, Any], brush: int, bounds: tuple[int, int]) -> int:
    """The brush's slider; returns its diameter in canvas px. `state`: the canvas's in this session."""
    key = f"brush_{space.id}_{state.get('brush_keys', 0)}"
    # Always the same value as default and never set through the state: a slider that is told its
    # value in one run only begins at its lower end when the next run overtakes that one.
    with st.container(horizontal=True, vertical_alignment="center", key="brush_size"):
        st.markdown(say("draw.brush_size"), width="content")
        return int(
            st.slider(
                say("draw.brush_size"),
                *bounds,
                value=brush,
                key=key,
                on_change=lambda: space.set(brush=int(st.session_state[key])),
                format="%d px",
                label_visibility="collapsed",
                width=220,
            )
        )


def select_size(space: Workspace, again: Callable[[], None]) -> None:
    """How much a click selects; `again` makes the last selection again."""
    key = f"select_grow_{space.id}"

    def save() -> None:
        space.set(select_grow=float(st.session_state[key]))
        again()

    with st.container(horizontal=True, vertical_alignment="center", key="select_size"):
        st.markdown(say("draw.select_grow"), width="content", help=say("draw.select_grow_help"))
        st.select_slider(
            say("draw.select_grow"),
            [round(0.1 * n, 1) for n in range(-10, 11)],
            value=round(float(space.get("select_grow", 0.0)), 1),
            key=key,
            on_change=save,
            format_func=lambda v: f"{100 * v:+.0f} %" if v else "0 %",
            label_visibility="collapsed",
            width=220,
        )


def mask_menu(
    backend: Backend,
    space: Workspace,
    drawing: Drawing,
    state: dict[str, Any],
    change: Callable[[Drawing], None],
    reload: Callable[[], None],
) -> None:
    """Everything that is done to the whole mask, and its colour.

    Args:
        backend: finds areas.
        space: the project.
        drawing: what is drawn now.
        state: the canvas's state in this session.
        change: makes another drawing the present one.
        reload: has the canvas load its shapes again, in another colour.
    """
    width, height = space.image.width, space.image.height

    def reshaped(how: Callable[[Any], Any]) -> Drawing:
        """The mask (or the proposal, where nothing is painted) in another shape."""
        mask = backend.areas.of(space, drawing).mask
        return painted_with(drawing, how(mask)) if mask.any() else drawing

    def attempt(make: Callable[[], Drawing]) -> None:
        with guard():
            change(make())

    def load(file: Any) -> None:
        if file is None:
            return
        state["mask_files"] = int(state.get("mask_files", 0)) + 1  # an empty uploader
        with guard():
            mask = mask_of(file.getvalue(), (width, height), file.name)
            change(painted_with(drawing, mask))

    step = max(1, round(0.006 * (width + height)))
    acts: list[tuple[str, str, Callable[[], Drawing]]] = [
        (
            say("draw.grow"),
            "open_in_full",
            lambda: reshaped(lambda m: selection.grow(m, step)),
        ),
        (
            say("draw.shrink"),
            "close_fullscreen",
            lambda: reshaped(lambda m: selection.grow(m, -step)),
        ),
        (
            say("draw.smooth"),
            "blur_on",
            lambda: reshaped(lambda m: selection.smooth(m, step)),
        ),
        (
            say("draw.invert"),
            "invert_colors",
            lambda: projection.complement(drawing, width, height),
        ),
        (
            say("draw.select_all"),
            "select_all",
            lambda: projection.whole(drawing, width, height),
        ),
        (say("draw.clear_mask"), "layers_clear", drawing.without_mask),
        (say("draw.delete_arrows"), "backspace", drawing.without_arrows),
    ]
    for label, icon, make in acts:
        st.button(
            label,
            key=f"pad_{icon}",
            icon=f":material/{icon}:",
            width="stretch",
            on_click=lambda make=make: attempt(make),
        )
    key = f"mask_file_{space.id}_{state.get('mask_files', 0)}"
    st.file_uploader(
        say("draw.load_mask"),
        type=["png", "jpg", "jpeg", "webp"],
        key=key,
        help=say("draw.load_mask_help"),
        on_change=lambda: load(st.session_state.get(key)),
    )
    colour_key = f"mask_colour_{space.id}"

    def recolour() -> None:
        space.set(mask_colour=st.session_state[colour_key])
        reload()

    names = ["Automatic", *projection.MASK_COLOURS]
    now = str(space.get("mask_colour", "Automatic"))
    st.selectbox(
        say("draw.colour"),
        names,
        index=names.index(now) if now in names else 0,
        key=colour_key,
        on_change=recolour,
        help=say("draw.colour_help"),
    )
