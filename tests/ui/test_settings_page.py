"""The settings page: models, device, cache, LoRAs, defaults, colours, health."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edit_samples import pixels
from patience import HANG, until
from refusals import refusal
from safetensors.torch import save
from streamlit.testing.v1 import AppTest

from workbench.app import App
from workbench.core.config import DragConfig
from workbench.core.errors import ModelError
from workbench.core.record import JobState
from workbench.core.request import EditRequest
from workbench.diffusion.lora_files import LoraCard, write
from workbench.diffusion.registry.download import Plan
from workbench.doctor import Finding, verdict
from workbench.storage.cache import CacheEntry
from workbench.storage.settings import Settings
from workbench.ui.settings import models
from workbench.ui.shell import forms
from workbench.ui.shell.backend import Backend, get_backend
from workbench.ui.shell.forms import inert, say
from workbench.ui.shell.loras import card_of, take
from workbench.ui.shell.workspace import Workspace
from workbench.ui.upload import intake

Open = Callable[[str], AppTest]


@pytest.fixture
def open_part(app: App, visit: Any, monkeypatch: pytest.MonkeyPatch) -> Open:
    """`open_part("Cache")`: that part of the settings page, no model loaded behind it."""
    monkeypatch.setattr(app, "warm_up", lambda *_: None)

    def go(part: str) -> AppTest:
        page: AppTest = visit()
        page.session_state["part"] = part
        page.switch_page("pages/settings.py").run()
        assert not page.exception
        return page

    return go


def said(page: AppTest) -> str:
    """All text that the page shows, without escapes."""
    parts = [*page.markdown, *page.caption, *page.error, *page.warning, *page.success]
    html = [h.proto.body for h in page.get("html")]
    return "\n".join([*(p.value for p in parts), *html]).replace("\\", "")


def keys(page: AppTest) -> set[str]:
    return {str(b.key) for b in page.button if b.key}


def lora(app: App, *, model: str = "", image: str = "", width: int = 0) -> bytes:
    """A LoRA of one layer of the micro model, or of a layer of another width."""
    unet = app.runtime("micro").unet
    name, module = next((n, m) for n, m in unet.named_modules() if n.endswith("attn1.to_q"))
    inside = width or module.weight.shape[1]
    weights = {
        f"unet.{name}.lora_A.weight": torch.ones(2, inside),
        f"unet.{name}.lora_B.weight": torch.ones(module.weight.shape[0], 2),
    }
    card = LoraCard(model=model, model_name=model[:8], image=image, image_name="that one", rank=2)
    return write(weights, card)


# --- models -------------------------------------------------------------------------------------------


def test_models_are_listed_with_size_licence_state_and_place(app: App, open_part: Open) -> None:
    page = open_part("Models")
    text = said(page)
    for spec in app.models():
        assert spec.shown in text
    assert "Apache-2.0" in text
    assert "35.4 MB" in text
    assert "CreativeML Open RAIL-M" in text
    assert "python -m workbench models download sd15" in text
    assert "ask_sd15" in keys(page)
    assert "ask_micro" not in keys(page)


def test_nothing_is_fetched_before_size_and_licence_were_shown(
    app: App, open_part: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = app.registry.resolve("sd15")
    asked: list[bool] = []
    taken: list[tuple[str, bool]] = []

    def plan(wanted: Any, *, full: bool = False) -> Plan:
        assert wanted == spec
        asked.append(full)
        return Plan(spec, "c0ffee", "openrail-of-the-hub", (("unet/x.safetensors", 1_700_000_000),))

    monkeypatch.setattr(models, "plan", plan)
    monkeypatch.setattr(
        app,
        "submit_download",
        lambda name, _owner, *, full=False: taken.append((name, full)) or "none",
    )
    page = open_part("Models")
    assert asked == []
    page.button(key="ask_sd15").click().run()
    assert asked == [False]
    assert "1.7 GB" in said(page)
    assert "openrail-of-the-hub" in said(page)
    assert taken == []
    page.toggle(key="full_sd15").set_value(True).run()
    page.button(key="fetch_sd15").click().run()
    assert not page.exception
    assert asked == [False, True]
    assert taken == [("sd15", True)]


def test_offline_the_reason_and_the_command_are_said(
    open_part: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*_: Any, **__: Any) -> Plan:
        raise ModelError("The hub could not be asked about it (no network).")

    monkeypatch.setattr(models, "plan", plan)
    page = open_part("Models")
    page.button(key="ask_sd15").click().run()
    assert not page.exception
    assert any("could not be asked" in e.value for e in page.error)
    assert "python -m workbench models download sd15" in said(page)
    assert "fetch_sd15" not in keys(page)


def test_a_running_download_shows_how_far_it_is(
    app: App, open_part: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.core.record import StepInfo
    from workbench.jobs import run_job

    def slow(_app: Any, _payload: Any, *, on_step: Any, **_rest: Any) -> dict[str, Any]:
        while True:
            on_step(StepInfo(stage="download", step=30, total=120))
            time.sleep(0.02)

    monkeypatch.setitem(run_job._KINDS, "download", slow)
    job = app.submit_download("sd15")
    until(lambda: app.executor.snapshot(job).progress is not None)
    page = open_part("Models")
    assert "30 of 120" in said(page)
    app.executor.cancel(job)
    assert app.executor.wait(job, HANG).state is JobState.CANCELLED


def test_a_folder_is_added_chosen_and_taken_off(
    app: App, open_part: Open, micro_sd: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(micro_sd, mine)
    page = open_part("Models")
    page.text_input(key="model_source").set_value(str(mine))
    page.text_input(key="model_name").set_value("comic")
    page.text_input(key="model_title").set_value("Comic style")
    page.button(key="FormSubmitter:add_model-Add").click().run()
    assert not page.exception
    assert "comic" in (app.settings.folder / "models.toml").read_text(encoding="utf-8")
    page.button(key="default_comic").click().run()
    assert Settings.load({"WORKBENCH_CACHE": str(app.settings.folder)}).model == "comic"
    page.button(key="remove_comic").click().run()
    assert "comic" not in app.registry.names()
    assert mine.is_dir()


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        ("", "x", say("settings.enter_a_folder_file_or")),
        ("/no/such/folder", "x", "There is no model at"),
        ("evil/model.ckpt", "x", "pickle"),
        ("somebody/something", "sd15", "built-in"),
        ("somebody/something", "a b", "not a name for a model"),
    ],
)
def test_what_cannot_be_added_says_why(
    app: App, open_part: Open, source: str, name: str, words: str
) -> None:
    before = app.registry.names()
    page = open_part("Models")
    page.text_input(key="model_source").set_value(source)
    page.text_input(key="model_name").set_value(name)
    page.button(key="FormSubmitter:add_model-Add").click().run()
    assert not page.exception
    (error,) = [e.value.replace("\\", "") for e in page.error]
    assert words in error
    assert app.registry.names() == before


def test_a_hub_id_is_added_without_asking_the_hub(app: App) -> None:
    assert app.registry.source("somebody/some-model") == {"hub": "somebody/some-model"}
    with refusal("no-file"):
        app.registry.source("somebody/model.safetensors")


# --- device and memory --------------------------------------------------------------------------------


def test_device_and_precision_are_kept(app: App, open_part: Open) -> None:
    page = open_part("Device & memory")
    page.selectbox(key="setting_device").set_value("cpu").run()
    page.selectbox(key="setting_dtype").set_value("fp32").run()
    page.toggle(key="setting_low_memory").set_value(True).run()
    page.number_input(key="setting_threads").set_value(2).run()
    kept = Settings.load({"WORKBENCH_CACHE": str(app.settings.folder)})
    assert (kept.device, kept.dtype, kept.low_memory, kept.threads) == ("cpu", "fp32", True, 2)
    text = "\n".join(p.proto.text for p in page.get("progress"))
    assert "free" in text


def test_a_device_that_is_not_there_is_refused(app: App, open_part: Open) -> None:
    page = open_part("Device & memory")
    missing = "cuda" if sys.platform == "darwin" else "mps"
    page.selectbox(key="setting_device").set_value(missing).run()
    assert not page.exception
    assert any("is not there" in e.value for e in page.error)
    assert app.settings.device == "auto"
    assert page.selectbox(key="setting_device").value == "auto"  # the form shows what counts


# --- cache --------------------------------------------------------------------------------------------


def fill(app: App) -> None:
    for n, (kind, label) in enumerate(
        (("lora", "Robot"), ("lora", "Boat"), ("inversion", "Robot"), ("reference", "Boat"))
    ):
        app.cache.put(f"wb1:{n}", bytes(1000 * (n + 1)), kind=kind, label=label)


def left(app: App) -> list[tuple[str, str]]:
    return sorted((e.kind, e.label) for e in app.cache.entries())


def test_cache_says_what_is_there_and_clears_one_kind(app: App, open_part: Open) -> None:
    fill(app)
    page = open_part("Cache")
    assert "10.0 kB of 4.0 GB used, 4 entries" in page.get("progress")[0].proto.text
    assert "LoRAs" in said(page)
    page.button(key="cache_clear_lora").click().run()
    assert not page.exception
    assert left(app) == [("inversion", "Robot"), ("reference", "Boat")]
    page.button(key="cache_clear_all").click().run()
    assert left(app) == []


def test_cache_clears_what_is_old_and_what_is_ticked(
    app: App, open_part: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(app)
    real = app.cache.entries

    def aged() -> list[CacheEntry]:
        long_ago = time.time() - 8 * 86400
        return [
            CacheEntry(e.key, e.kind, e.label, e.bytes, e.created, long_ago)
            if e.label == "Boat"
            else e
            for e in real()
        ]

    monkeypatch.setattr(app.cache, "entries", aged)
    page = open_part("Cache")
    page.button(key="cache_clear_old").click().run()
    assert left(app) == [("inversion", "Robot"), ("lora", "Robot")]
    page.number_input(key="setting_cache_gb").set_value(0.5).run()
    assert app.cache.limit_bytes == 500_000_000


# --- LoRAs --------------------------------------------------------------------------------------------


def test_a_trained_lora_gets_a_name_another_name_and_goes(app: App, open_part: Open) -> None:
    raw = save({"unet.a.lora_A.weight": torch.ones(2, 2)}, {"workbench": json.dumps({"rank": 2})})
    app.cache.put("wb1:l", raw, kind="lora", label="Robot")
    page = open_part("LoRAs")
    page.button(key="lora_keep_wb1:l").click().run()
    assert any(inert(say("settings.enter_a_name_then_press")) == e.value for e in page.error)
    page.text_input(key="lora_name_wb1:l").set_value("My robot").run()
    page.button(key="lora_keep_wb1:l").click().run()
    assert app.loras.get("My robot") == raw
    page.text_input(key="lora_rename_My robot").set_value("Old robot").run()
    page.button(key="lora_rename_My robot_do").click().run()
    assert [e.name for e in app.loras.entries()] == ["Old robot"]
    page.button(key="lora_remove_Old robot").click().run()
    assert not page.exception
    assert app.loras.entries() == []


def test_renaming_never_overwrites(app: App) -> None:
    for name in ("a", "b"):
        app.loras.put(name, name.encode())
    with refusal("name-taken"):
        app.loras.rename("a", "b")
    with refusal("bad-name"):
        app.loras.rename("a", "../a")
    assert (app.loras.get("a"), app.loras.get("b")) == (b"a", b"b")


def test_an_imported_lora_that_fits_says_nothing_more(app: App) -> None:
    asset = app.store.put_image(pixels(1), "robot")
    space = Workspace.create(app.store, asset, title="robot")
    raw = lora(app, model=app.model_ref("micro").fingerprint, image=asset.id)
    done = take(get_backend(), raw, "robot", "micro", space)
    assert len(done) == 1
    assert app.loras.get("robot") == raw
    card = card_of(app.loras.path("robot"))
    assert (card.origin.image, card.origin.rank) == (asset.id, 2)


def test_a_lora_of_another_model_picture_or_build_is_warned_about(app: App) -> None:
    backend = get_backend()
    asset = app.store.put_image(pixels(1), "robot")
    space = Workspace.create(app.store, asset, title="robot")
    mark = app.model_ref("micro").fingerprint
    other_model = take(backend, lora(app, model="wb1:elsewhere"), "a", "micro", space)
    assert [n.code for n in other_model[1:]] == ["other-model"]
    other_picture = take(backend, lora(app, model=mark, image="wb1:else"), "b", "micro", space)
    assert [n.code for n in other_picture[1:]] == ["other-picture"]
    other_build = take(backend, lora(app, width=7), "c", "micro", space)
    assert [n.code for n in other_build[1:]] == ["misfit"]
    with refusal("name-taken"):
        take(backend, lora(app), "a", "micro", space)
    with refusal("pickle"):
        take(backend, b"\x80\x04pickle", "d", "micro", space)
    assert [e.name for e in app.loras.entries()] == ["a", "b", "c"]


def test_the_library_shows_a_damaged_file_and_goes_on(app: App, open_part: Open) -> None:
    app.loras.put("broken", b"nothing that is a LoRA")
    page = open_part("LoRAs")
    assert "is not a safetensors file" in said(page)
    assert not page.error


# --- defaults and colours -----------------------------------------------------------------------------


def test_new_pictures_begin_with_the_defaults(app: App, open_part: Open) -> None:
    page = open_part("Defaults & colours")
    page.selectbox(key="setting_method").set_value("gooddrag").run()
    page.selectbox(key="setting_preset").set_value("gentle").run()
    page.selectbox(key="setting_train").set_value(intake.WHEN_OPENED).run()
    assert not page.exception
    kept = Settings.load({"WORKBENCH_CACHE": str(app.settings.folder)})
    assert (kept.method, kept.preset, kept.ui) == (
        "gooddrag", "gentle", {intake.TRAIN_ON_UPLOAD: intake.WHEN_OPENED},
    )  # fmt: skip
    space = opened(get_backend())
    assert space.drag == DragConfig.preset("gooddrag", "gentle")
    assert space.model.name == "micro"


def test_training_begins_by_itself_only_where_wished(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = get_backend()
    monkeypatch.setattr(backend, "submit_train", lambda _space: "01JOB")
    begin, kind = intake.train_if_wished, intake.TRAIN_ON_UPLOAD
    space = opened(backend)
    monkeypatch.setattr(backend, "has_gpu", lambda: False)
    assert begin(backend, space) is None  # on a CPU, a run trains when it needs to
    for wanted in (intake.WHEN_OPENED, True):  # True: as version 1 kept it
        app.change(ui={kind: wanted})
        assert begin(backend, space) == "01JOB"
        assert (space.get("train_job"), space.jobs) == ("01JOB", ["01JOB"])
    assert begin(backend, opened(backend, 200)) is None  # the micro model knows 64 px
    monkeypatch.setattr(backend, "has_gpu", lambda: True)
    for wanted in (intake.WHEN_RUN, False):
        app.change(ui={kind: wanted})
        assert begin(backend, space) is None
    app.change(ui={})
    assert begin(backend, space) == "01JOB"


def opened(backend: Backend, width: int = 48) -> Workspace:
    """The project of an uploaded picture."""
    from workbench.imaging.decode import encode_png, resize

    raw = encode_png(resize(pixels(3), (width, width * 3 // 4)))
    return intake.take(backend, backend.decode(raw, "picture.png"))


def test_canvas_takes_the_chosen_colours(app: App, open_part: Open) -> None:

    page = open_part("Defaults & colours")
    page.selectbox(key="colour_theme_Classic").set_value("Colour-blind safe").run()
    assert not page.exception
    assert app.settings.ui[forms.ENTRY] == forms.THEMES["Colour-blind safe"]
    backend = get_backend()
    colours = backend.canvas_colours()
    assert (colours["handle"], colours["target"], colours["dim"]) == ("#e69f00", "#56b4e9", 0.75)


@pytest.mark.parametrize(
    "kept",
    [None, "red", {"handle": "red"}, {"handle": 7, "dim": 5}, {"target": "#12345", "dim": True}],
)
def test_damaged_colours_are_classic(kept: Any) -> None:
    assert forms.theme_of(forms.chosen({forms.ENTRY: kept})) == "Classic"


def test_a_picked_colour_is_a_theme_of_ones_own(app: App, open_part: Open) -> None:
    page = open_part("Defaults & colours")
    key = next(c.key for c in page.color_picker if str(c.key).startswith("colour_handle"))
    page.color_picker(key=key).set_value("#00ff00").run()
    assert not page.exception
    assert forms.style(app.settings.ui).handle == (0, 255, 0)
    assert [s.value for s in page.selectbox if s.key == "colour_theme_Custom"] == ["Custom"]


# --- health -------------------------------------------------------------------------------------------


def test_health_lists_problems_first(app: App, open_part: Open) -> None:
    name = app.store.begin(EditRequest(image=app.store.put_image(pixels(1)), pairs=()))
    (app.settings.history / "edits" / f"{name}.json").write_text("{", encoding="utf-8")
    page = open_part(say("settings.health_check"))
    page.button(key="health_check").click().run()
    assert not page.exception
    text = said(page)
    assert "1 problem" in text
    assert "torch" in text
    assert text.index("cannot be read") < text.index("diskcache")


def test_verdict() -> None:
    fine, warned, bad = (Finding("x", s, "") for s in ("ok", "warning", "problem"))
    assert verdict([fine]) == "Everything is in order."
    assert verdict([fine, warned, bad, bad]) == "2 problems and 1 warning; the rest is in order."


def test_a_chosen_loras_name_is_that_of_its_file(app: App, open_part: Open) -> None:
    """The name stood empty: its value depended on another widget under a fixed key."""
    page = open_part("LoRAs")
    upload = page.file_uploader(key="lora_import_0")
    upload.upload("my robot.safetensors", lora(app), "application/octet-stream").run()
    (name,) = [t for t in page.text_input if str(t.key).startswith("lora_import_name_")]
    assert name.value == "my robot"
    page.button(key="lora_import_do").click().run()
    assert [e.name for e in app.loras.entries()] == ["my robot"]


def test_who_computes_is_set_here_checked_and_kept(open_part: Open, app: App) -> None:
    page = open_part("Device & memory")
    page.text_input(key="setting_workers").set_value("ray://10.0.0.1:10001").run()
    assert not page.error
    assert app.settings.workers == Settings.load().workers == "ray://10.0.0.1:10001"
    page.text_input(key="setting_workers").set_value("many").run()
    assert len(page.error) == 1
    assert page.text_input(key="setting_workers").value == "ray://10.0.0.1:10001"
    assert app.settings.workers == Settings.load().workers == "ray://10.0.0.1:10001"
