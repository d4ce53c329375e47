"""The first page's second way to a picture: form, job, candidates, and a drag from their latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from patience import HANG
from streamlit.testing.v1 import AppTest

from workbench.app import App
from workbench.core.config import GenerationConfig
from workbench.core.record import JobState
from workbench.core.request import GenerateTask, ModelRef, Point, PointPair
from workbench.ui.shell.backend import get_backend
from workbench.ui.shell.forms import inert, say
from workbench.ui.shell.workspace import Workspace, settings_of
from workbench.ui.upload import generating

CONFIG = GenerationConfig(steps=3, guidance=3.0, seed=7, width=64, height=64, negative_prompt="fog")


@pytest.fixture
def prompt_page(visit: Callable[..., AppTest]) -> AppTest:
    page = visit()
    page.segmented_control(key="way").set_value(say("upload.generate")).run()
    return page


def made(app: App, **changes: Any) -> dict[str, Any]:
    """The result of a generation, as the page gets it from the job."""
    task = GenerateTask(prompt="a robot", config=CONFIG, model=ModelRef(name="micro"), count=2)
    result: dict[str, Any] = app.perform("generate", task)
    return result | changes


def test_form_becomes_the_task(
    app: App, prompt_page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[GenerateTask] = []
    monkeypatch.setattr(app, "submit_generate", lambda task, _owner: taken.append(task) or "none")
    page = prompt_page
    page.button(key="generate").click().run()
    assert page.error[0].value == inert(say("upload.describe_the_picture_in_the"))
    assert not taken
    page.text_area(key="gen_prompt").set_value("  a robot ").run()
    page.text_input(key="gen_negative").set_value("fog")
    page.selectbox(key="gen_shape").set_value("Landscape 4:3")
    page.selectbox(key="gen_scheduler").set_value("dpm++2m-karras")
    page.number_input(key="gen_steps").set_value(12)
    page.number_input(key="gen_guidance").set_value(4.5)
    page.number_input(key="gen_seed").set_value(11)
    page.number_input(key="gen_count").set_value(3)
    page.toggle(key="gen_freeu").set_value(True).run()
    page.button(key="generate").click().run()
    assert not page.exception
    (task,) = taken
    assert (task.prompt, task.count, task.model.name) == ("a robot", 3, "micro")
    b1, b2, s1, s2 = generating.FREEU_ELSE
    assert task.config == GenerationConfig(
        negative_prompt="fog", steps=12, guidance=4.5, seed=11, width=64, height=64,
        scheduler="dpm++2m-karras", freeu_b1=b1, freeu_b2=b2, freeu_s1=s1, freeu_s2=s2,
    )  # fmt: skip


def test_a_candidate_is_taken_and_dragged_without_inversion(
    app: App, prompt_page: AppTest, visit: Callable[..., AppTest]
) -> None:
    page = prompt_page
    page.text_area(key="gen_prompt").set_value("a robot").run()
    page.number_input(key="gen_steps").set_value(3)
    page.number_input(key="gen_count").set_value(2)
    page.button(key="generate").click().run()
    job = page.query_params["job"]
    assert app.executor.wait(job, HANG).state is JobState.DONE
    page = visit(job=job)  # found again by its address, in a new session
    assert page.segmented_control(key="way").value == say("upload.generate")
    assert page.text_area(key="gen_prompt").value == "a robot"
    page.button(key=f"take_{job}_1").click().run()
    assert not page.exception
    assert page.title[0].value == say("common.mask_points")  # straight to the canvas
    page = visit(project=page.query_params["project"])
    assert any(s.value == say("upload.generated_here_ready_to_drag") for s in page.success)
    assert not [b for b in page.button if b.key == "train"]
    space = Workspace.open(app.store, page.query_params["project"])
    space.set(drag={"method": "dragdiffusion", "steps": 2})
    request = space.request((PointPair(Point(20, 30), Point(40, 30)),), None)
    assert request.generation is not None
    assert request.generation.seed == 1
    record = app.store.record(app.perform("edit", request))
    assert record.result is not None
    assert "generate" in record.result.cached
    assert not {"lora", "invert"} & set(record.result.seconds)


def test_the_same_candidate_is_the_same_project(app: App) -> None:
    result = made(app)
    first = generating.take(app.store, result, 0)
    assert generating.take(app.store, result, 0).id == first.id
    assert generating.take(app.store, result, 1).id != first.id


def test_another_prompt_or_model_or_the_switch_means_inversion(
    app: App, visit: Callable[..., AppTest]
) -> None:
    space = generating.take(app.store, made(app), 0)
    assert space.generation is not None
    space.change(prompt="a cat")
    assert space.generation is None
    assert space.made_unlike == ("a robot", "micro")
    page = visit(project=space.id)
    page.button(key="made_again").click().run()
    space = Workspace.open(app.store, space.id)
    assert space.project.prompt == "a robot"
    assert space.generation is not None
    page.toggle(key=f"own_latents_{space.id}").set_value(False).run()
    space = Workspace.open(app.store, space.id)
    assert space.generation is None
    assert page.button(key="train") is not None


def test_settings_of_an_edit_keep_how_its_picture_was_made(app: App) -> None:
    space = generating.take(app.store, made(app), 0)
    request = space.request((), None)
    again = Workspace.create(
        app.store, space.image, title="again", prompt="a robot", settings=settings_of(request)
    )
    assert again.generation == request.generation
    result = app.store.put_image(app.store.image(space.image.id)[::-1], "result")
    onward = Workspace.create(
        app.store, result, title="on", prompt="a robot", settings=settings_of(request)
    )
    assert onward.generation is None  # another picture: its latents are others


def test_a_made_picture_is_dragged_at_its_own_size(app: App) -> None:
    """Larger than the model's native size, and no part is cut out: the latents are whole."""
    task = GenerateTask(
        prompt="a robot", model=ModelRef(name="micro"), count=1,
        config=GenerationConfig(steps=3, width=96, height=72),
    )  # fmt: skip
    space = generating.take(app.store, app.perform("generate", task), 0)
    request = space.request((PointPair(Point(20, 30), Point(40, 30)),), None)
    record = app.store.record(app.perform("edit", request))
    assert record.result is not None
    assert app.store.image(record.result.image).shape == (72, 96, 3)


def test_size_of_one_s_own_is_checked(app: App, prompt_page: AppTest) -> None:
    page = prompt_page
    page.text_area(key="gen_prompt").set_value("a robot")
    page.selectbox(key="gen_shape").set_value(say("upload.custom_size")).run()
    page.number_input(key="gen_width").set_value(100).run()
    assert "multiples of 8" in page.error[0].value
    assert page.button(key="generate").disabled
    page.number_input(key="gen_width").set_value(4096)
    page.number_input(key="gen_height").set_value(4096).run()
    assert "4096" in page.error[0].value


@pytest.mark.parametrize("native", [64, 256, 512, 768, 1024])
def test_shapes_fit_the_model(native: int) -> None:
    for ratio in generating.SHAPES.values():
        if ratio is None:
            continue
        width, height = generating.shape_size(ratio, native)
        assert width % 8 == height % 8 == 0
        assert max(width, height) == native
        wanted = ratio[0] / ratio[1]
        assert native < 256 or abs(width / height / wanted - 1) < 0.04


def test_a_candidate_begins_with_the_settings_of_new_pictures(app: App) -> None:
    backend = get_backend()
    space = generating.take(app.store, made(app), 0, backend.defaults())
    assert space.drag.method == app.settings.method == "auto"
    assert space.model.name == "micro"
    assert space.generation is not None


def test_an_idea_is_written_into_the_prompt(app: App, prompt_page: AppTest) -> None:
    page = prompt_page
    assert not [b for b in page.button if b.key == "gen_idea"]  # none for a model of one's own
    page.selectbox(key="gen_model").set_value("storybook").run()
    seen = []
    for _ in generating.IDEAS["storybook"]:
        page.button(key="gen_idea").click().run()
        seen.append(page.text_area(key="gen_prompt").value)
    assert tuple(seen) == generating.IDEAS["storybook"]
    page.button(key="gen_idea").click().run()
    assert page.text_area(key="gen_prompt").value == seen[0]


def test_ideas_are_in_the_words_that_the_model_was_taught() -> None:
    """Kind by kind, as the captions of its training pictures say them."""
    from training import scenes

    known = {w for s in scenes.sample_batch(400, 5) for w in s.caption.replace(",", "").split()}
    for idea in generating.IDEAS["storybook"]:
        assert set(idea.replace(",", "").split()) <= known


def test_a_made_picture_is_called_by_its_prompt(app: App) -> None:
    """In history and downloads, where only the picture's name is known."""
    space = generating.take(app.store, made(app), 1)
    assert space.title == "a robot · 8"
    assert space.request((), None).image.name == "a robot · 8"
