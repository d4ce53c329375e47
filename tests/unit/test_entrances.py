"""Every entrance builds the same edit from the same wishes: page, command line, batch, sweep, benchmark."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.rows import requests_by_method
from workbench.app import App
from workbench.cli import build_parser
from workbench.cli.batch import read_entries
from workbench.cli.requests import make_request
from workbench.core.config import METHODS, SPECS, STRENGTHS, method_spec
from workbench.core.errors import BadInput
from workbench.core.request import EditRequest, ImageAsset, Point, PointPair
from workbench.storage.settings import Settings
from workbench.sweeps import METHOD, Axis, Plan
from workbench.ui.draw.drag_form import choose_method, choose_strength
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.workspace import Workspace

PAIRS = (PointPair(Point(10, 12), Point(30, 12)),)
PROMPT = "a robot"


@pytest.fixture
def app(own_cache: Path) -> Iterator[App]:
    made = App(Settings.load())
    yield made
    made.close()


@pytest.fixture
def image(app: App) -> ImageAsset:
    return app.store.put_image(np.full((48, 64, 3), 90, np.uint8), "picture")


def without_fingerprint(request: EditRequest) -> EditRequest:
    """Only the entrances that run at once know the model's files."""
    return dataclasses.replace(request, model=dataclasses.replace(request.model, fingerprint=""))


def by_command_line(app: App, image: ImageAsset, *words: str) -> EditRequest:
    args = build_parser().parse_args(["edit", "picture.png", "--prompt", PROMPT, *words])
    return make_request(app, args, image=image, mask=None, pairs=PAIRS)


def by_batch(app: App, image: ImageAsset, folder: Path, **entry: Any) -> EditRequest:
    file = folder / "edits.json"
    line = {"picture": "picture.png", "out": "out.png", "prompt": PROMPT, **entry}
    file.write_text(json.dumps([line]))
    (read,) = read_entries(file)
    args = build_parser().parse_args(["batch", str(file)])
    return make_request(app, read.namespace(args), image=image, mask=None, pairs=PAIRS)


def by_page(app: App, image: ImageAsset, method: str, strength: str = "normal") -> EditRequest:
    space = Workspace.create(app.store, image, title="t", prompt=PROMPT)
    choose_method(space, method)
    choose_strength(space, strength)
    return space.request(PAIRS, None)


def by_settings(app: App, image: ImageAsset, method: str, strength: str) -> EditRequest:
    app.change(method=method, preset=strength)
    space = Workspace.create(
        app.store, image, title="t", prompt=PROMPT, settings=Backend(app).defaults()
    )
    return space.request(PAIRS, None)


def by_sweep(base: EditRequest, method: str) -> EditRequest:
    other = next(m for m in METHODS if m != method)
    plan = Plan(base, (Axis(METHOD, (other, method)),))
    return plan.cells[1].request


@pytest.mark.parametrize("method", METHODS)
def test_all_entrances_build_the_same_request(
    app: App, image: ImageAsset, tmp_path: Path, method: str
) -> None:
    plain = by_page(app, image, "dragdiffusion")
    made = {
        "command line": by_command_line(app, image, "--method", method),
        "batch": by_batch(app, image, tmp_path, method=method),
        "page": by_page(app, image, method),
        "settings": by_settings(app, image, method, "normal"),
        "sweep": by_sweep(plain, method),
        "benchmark": requests_by_method(plain, ["nothing", method])[method],
    }
    spec = SPECS[method]
    wanted = dataclasses.replace(plain, drag=spec.drag_config(), inversion=spec.inversion_config())
    for entrance, request in made.items():
        assert request is not None
        assert without_fingerprint(request) == wanted, entrance


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("method", METHODS)
def test_a_strength_means_the_same_everywhere(
    app: App, image: ImageAsset, tmp_path: Path, method: str, strength: str
) -> None:
    drags = {
        by_command_line(app, image, "--method", method, "--preset", strength).drag,
        by_batch(app, image, tmp_path, method=method, preset=strength).drag,
        by_page(app, image, method, strength).drag,
        by_settings(app, image, method, strength).drag,
    }
    assert drags == {method_spec(method).drag_config(strength)}


def test_gooddrag_is_inverted_deeper_by_default_only() -> None:
    assert SPECS["gooddrag"].inversion_config().inverted_steps == 38
    assert {SPECS[m].inversion_config().inverted_steps for m in METHODS if m != "gooddrag"} == {35}


def test_a_new_method_keeps_what_was_set_by_hand(app: App, image: ImageAsset) -> None:
    space = Workspace.create(app.store, image, title="t", prompt=PROMPT)
    by_hand = dataclasses.replace(space.inversion, steps=20)
    space.set(inversion=dataclasses.asdict(by_hand))
    choose_method(space, "gooddrag")
    assert (space.inversion.steps, space.inversion.strength) == (20, 0.75)
    choose_method(space, "auto")
    assert (space.inversion.steps, space.inversion.strength) == (20, 0.7)
    space.set(inversion=dataclasses.asdict(dataclasses.replace(space.inversion, strength=0.5)))
    choose_method(space, "gooddrag")
    assert space.inversion.strength == 0.5


def test_after_a_method_without_steps_the_strength_is_normal(app: App, image: ImageAsset) -> None:
    through_warp = by_page(app, image, "warp").with_method("auto")
    assert through_warp.drag == SPECS["auto"].drag_config()


def test_an_unknown_method_is_refused_with_the_choices() -> None:
    with pytest.raises(BadInput) as caught:
        method_spec("nonsense")
    assert all(name in str(caught.value) for name in METHODS)
