"""The Settings page: models, device, cache, LoRAs, defaults, health."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from workbench.canvas.overlay import overlay
from workbench.core.config import METHODS, STRENGTHS
from workbench.core.request import Point, PointPair
from workbench.diffusion.registry import BY_PICTURE
from workbench.ui.draw.drag_form import method_line
from workbench.ui.settings import device, models
from workbench.ui.settings.device import overruled
from workbench.ui.shell import figures, forms, loras
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import say
from workbench.ui.shell.shell import guard
from workbench.ui.shell.workspace import Workspace
from workbench.ui.upload.intake import TRAIN_ON_UPLOAD, WHEN_GPU, WHEN_OPENED, WHEN_RUN

_HERE = Path(__file__).parent
PARTS = (
    say("settings.models"),
    say("settings.device_memory"),
    say("settings.cache"),
    say("common.loras"),
    say("settings.defaults_colours"),
    say("settings.health_check"),
)


def body(backend: Backend, space: Workspace | None) -> None:
    """The whole page below the heading; only the open part is made."""
    st.html(_style())
    parts = st.tabs(PARTS, key="part", on_change="rerun", bind="query-params")
    shows: tuple[Callable[[], None], ...] = (
        lambda: models.show(backend),
        lambda: device.show(backend),
        lambda: device.show_cache(backend),
        lambda: loras.show(backend, space),
        lambda: show_defaults(backend),
        lambda: device.show_health(backend),
    )
    for part, show in zip(parts, shows, strict=True):
        if part.open:
            with part, guard():
                show()


@cache
def _style() -> str:
    return f"<style>{(_HERE / 'settings.css').read_text(encoding='utf-8')}</style>"


_SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "robot-784.png"


def show_defaults(backend: Backend) -> None:
    """The whole part."""
    with st.container(key="halves_defaults"):
        left, right = st.columns(2, gap="large")
    with left, st.container(key="card_defaults"):
        st.subheader(say("settings.defaults_for_new_pictures"), anchor=False)
        _defaults(backend)
    with right, st.container(key="card_colours"):
        st.subheader(say("settings.canvas_colours"), anchor=False)
        _colours(backend)


def _defaults(backend: Backend) -> None:
    settings = backend.app.settings
    models = {BY_PICTURE: say("settings.model_by_picture")}
    models |= {m.name: m.shown for m in backend.models()}
    names = list(dict.fromkeys([*models, settings.model]))
    _choice(backend, "model", say("common.model"), names, {**{n: n for n in names}, **models})
    methods = {name: method_line(name) for name in METHODS}
    _choice(backend, "method", say("common.method"), list(METHODS), methods)
    presets = list(STRENGTHS)
    _choice(
        backend, "preset", say("settings.preset"), presets, {p: p.capitalize() for p in presets}
    )
    overruled(("model", "method"))
    words = {
        WHEN_GPU: say("settings.training_on_a_gpu"),
        WHEN_OPENED: say("settings.training_when_opened"),
        WHEN_RUN: say("settings.training_when_run"),
    }
    now = settings.ui.get(TRAIN_ON_UPLOAD, WHEN_GPU)
    now = {True: WHEN_OPENED, False: WHEN_RUN}.get(now, now)  # a switch in version 1
    st.selectbox(
        say("settings.start_training"),
        list(words),
        index=list(words).index(now) if now in words else 0,
        key="setting_train",
        format_func=words.__getitem__,
        on_change=lambda: _keep(backend, TRAIN_ON_UPLOAD, st.session_state["setting_train"]),
        help=say("settings.start_training_help"),
    )
    st.caption(say("settings.existing_projects_keep_their"))


def _choice(
    backend: Backend, name: str, label: str, options: list[str], words: dict[str, str]
) -> None:
    key = f"setting_{name}"

    def save() -> None:
        with guard():
            backend.app.change(**{name: st.session_state[key]})

    now = getattr(backend.app.settings, name)
    st.selectbox(
        label,
        options,
        index=options.index(now) if now in options else 0,
        key=key,
        format_func=lambda option: words.get(option, option),
        on_change=save,
    )


def _keep(backend: Backend, name: str, value: Any) -> None:
    """Write one of the pages' own settings."""
    with guard():
        backend.app.change(ui={**backend.app.settings.ui, name: value})


def _colours(backend: Backend) -> None:
    now = forms.chosen(backend.app.settings.ui)
    theme = forms.theme_of(now)
    options = [*forms.THEMES, *([say("common.custom")] if theme == say("common.custom") else [])]
    key = f"colour_theme_{theme}"

    def choose() -> None:
        wanted = str(st.session_state[key])
        if wanted in forms.THEMES:
            _keep(backend, forms.ENTRY, forms.THEMES[wanted])

    st.selectbox(
        say("settings.theme"),
        options,
        index=options.index(theme),
        key=key,
        on_change=choose,
        label_visibility="collapsed",
    )
    st.image(_sample(now), width="stretch", alt=say("settings.example_with_mask_and_arrow"))
    form = "_".join(str(v) for v in now.values())
    places = st.columns(3)
    for place, (name, label) in zip(
        places,
        {
            "handle": say("settings.handle"),
            "target": say("settings.target"),
            "arrow": say("settings.arrow"),
        }.items(),
        strict=True,
    ):
        place.color_picker(
            label,
            now[name],
            key=f"colour_{name}_{form}",
            on_change=_recolour,
            args=(backend, now, name, f"colour_{name}_{form}"),
        )
    low, high = forms.LIGHT
    st.slider(
        say("settings.brightness_outside_the_mask"),
        low,
        high,
        float(now["dim"]),
        0.01,
        key=f"colour_dim_{form}",
        on_change=_recolour,
        args=(backend, now, "dim", f"colour_dim_{form}"),
    )


def _recolour(backend: Backend, now: dict[str, Any], name: str, key: str) -> None:
    _keep(backend, forms.ENTRY, {**now, name: st.session_state[key]})


def _sample(now: dict[str, Any]) -> bytes:
    """An example picture with a mask and an arrow, WebP bytes."""
    rgb = figures.fit(figures.decode(_SAMPLE.read_bytes()), 640, 640)[60:500]
    height, width = rgb.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    mask = ((x / width - 0.36) / 0.24) ** 2 + ((y / height - 0.5) / 0.4) ** 2 < 1
    pair = PointPair(Point(0.3 * width, 0.4 * height), Point(0.27 * width, 0.18 * height))
    made = overlay(rgb, mask, [pair], style=forms.style({forms.ENTRY: now}))
    return figures.encode(made)
