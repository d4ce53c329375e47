"""Training further, named LoRAs and styles on the first page."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from patience import HANG
from PIL import Image
from streamlit.testing.v1 import AppTest

from workbench.app import App
from workbench.core.record import JobState
from workbench.diffusion.lora_files import read
from workbench.ui.shell.backend import Backend, get_backend
from workbench.ui.shell.workspace import Workspace
from workbench.ui.upload import intake

QUICK: dict[str, Any] = {
    "lora": {"steps": 2, "batch_size": 1, "rank": 4},
    "inversion": {"steps": 4, "strength": 0.5},
}


@pytest.fixture
def backend(app: App) -> Backend:
    return get_backend()


@pytest.fixture
def space(backend: Backend) -> Workspace:
    """A picture of the model's own size, with quick settings."""
    rng = np.random.default_rng(1)
    raw = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(raw, "PNG")
    opened = intake.take(backend, backend.decode(raw.getvalue(), "noise.png"))
    opened.change(prompt="noise")
    opened.set(**QUICK)
    return opened


def trained(backend: Backend, space: Workspace) -> Workspace:
    """The picture learnt, by the button's own way."""
    job = backend.submit_train(space)
    space.set(train_job=job)
    assert backend.app.executor.wait(job, HANG).state is JobState.DONE
    return space


def test_train_further_is_what_edits_then_use(
    backend: Backend, space: Workspace, visit: Callable[..., AppTest]
) -> None:
    trained(backend, space)
    page = visit(project=space.id)
    page.button(key="train_further").click().run()
    assert not page.exception
    job = page.query_params["job"]
    assert backend.app.executor.wait(job, HANG).state is JobState.DONE
    page = visit(project=space.id)
    assert any("Trained further, +2 steps" in s.value.replace("\\", "") for s in page.success)
    again = Workspace.open(backend.store, space.id)
    assert again.lora_file is not None
    request = again.request((), None)
    assert request.lora_file == again.lora_file
    assert read(backend.store.blob(request.lora_file.id)).card.steps == 4
    assert backend.reconstruction(again) is not None
    page.button(key="own_lora").click().run()
    again = Workspace.open(backend.store, space.id)
    assert again.lora_file is None
    assert backend.is_trained(again)


def test_a_named_lora_takes_the_place_of_training(
    backend: Backend, space: Workspace, visit: Callable[..., AppTest]
) -> None:
    raw = backend.app.lora_of(trained(backend, space).request((), None))
    assert raw is not None
    backend.app.loras.put("mine", raw)
    space.set(lora={**QUICK["lora"], "steps": 9})
    page = visit(project=space.id)
    assert page.button(key="train") is not None  # nine steps: not this LoRA
    page.selectbox(key=f"lora_file_{space.id}_").set_value("mine").run()
    assert not page.exception
    again = Workspace.open(backend.store, space.id)
    assert again.lora_file is not None
    assert again.lora_file.name == "mine"
    page.slider(key=f"lora_file_{space.id}_{again.lora_file.id}_weight").set_value(0.5).run()
    again = Workspace.open(backend.store, space.id)
    assert again.request((), None).lora_file.weight == 0.5  # type: ignore[union-attr]
    page.button(key="check_lora").click().run()
    assert backend.app.executor.wait(page.query_params["job"], HANG).state is JobState.DONE
    again = Workspace.open(backend.store, space.id)
    assert backend.reconstruction(again) is not None
    assert again.lora_file is not None
    assert again.lora_file.weight == 0.5


def test_a_style_is_stacked_and_learnt_with(
    backend: Backend, space: Workspace, visit: Callable[..., AppTest]
) -> None:
    raw = backend.app.lora_of(trained(backend, space).request((), None))
    assert raw is not None
    backend.app.loras.put("ink", raw)
    page = visit(project=space.id)
    page.selectbox(key=f"style_{space.id}_").set_value("ink").run()
    again = Workspace.open(backend.store, space.id)
    assert again.style is not None
    assert not backend.is_trained(again)  # with a style the picture is learnt anew
    page.slider(key=f"style_{space.id}_{again.style.id}_weight").set_value(0.0).run()
    again = Workspace.open(backend.store, space.id)
    assert backend.is_trained(again)  # a style of weight 0 is none
    trained(backend, again)
    made = backend.job(str(again.get("train_job"))).result["request"]
    assert made["style"]["name"] == "ink"


def test_a_lora_of_another_rank_goes_on_at_its_own(backend: Backend, space: Workspace) -> None:
    raw = backend.app.lora_of(trained(backend, space).request((), None))
    assert raw is not None
    backend.app.loras.put("mine", raw)
    space.set(lora={**QUICK["lora"], "rank": 8}, lora_file=_as_record(backend, "mine"))
    job = backend.submit_further(space)
    done = backend.app.executor.wait(job, 60)
    assert done.state is JobState.DONE, done.error
    assert read(backend.store.blob(done.result["lora_file"]["id"])).rank == 4


def _as_record(backend: Backend, name: str) -> dict[str, Any]:
    ref = backend.app.loras.reference(name)
    return {"id": ref.id, "name": ref.name, "weight": ref.weight}
