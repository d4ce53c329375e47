"""The composition root: jobs of every kind through the queue, settings, closing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import HANG, until
from refusals import refusal

from workbench import app as composition
from workbench.app import App, close_app, get_app
from workbench.core.config import DragConfig, GenerationConfig, InversionConfig, LoraConfig
from workbench.core.errors import BadInput
from workbench.core.record import EditRecord, JobState
from workbench.core.request import (
    EditRequest,
    GenerateTask,
    ModelRef,
    Point,
    PointPair,
    SweepTask,
    TrainTask,
)
from workbench.jobs import Job, run_job
from workbench.storage.settings import Settings


@pytest.fixture
def app(own_cache: Path, model: Path) -> Iterator[App]:
    made = App(Settings(folder=own_cache, device="cpu", threads=1, model=str(model)))
    yield made
    made.close()


def request(app: App, **more: Any) -> EditRequest:
    y, x = np.mgrid[:64, :64]
    rgb = np.stack([x * 3, y * 4, (x + y) % 256], axis=-1).astype(np.uint8)
    given: dict[str, Any] = {
        "image": app.store.put_image(rgb, "robot.png"),
        "pairs": (PointPair(Point(24, 30), Point(40, 30)),),
        "model": ModelRef(name=app.settings.model),
        "lora": LoraConfig(steps=2, rank=2, batch_size=1),
        "inversion": InversionConfig(steps=4, strength=0.5),
        "drag": DragConfig(steps=2),
        "working_size": 64,
    }
    return EditRequest(**{**given, **more})


def ended(app: App, job: str, state: JobState = JobState.DONE) -> Job:
    found = app.executor.wait(job, HANG)
    assert found.state is state, (found.state, found.error)
    return found


def test_an_edit_through_the_queue(app: App) -> None:
    wanted = app.complete(request(app))
    assert app.prepared(wanted) == (False, False)
    job = app.submit_edit(wanted, "anna")
    assert app.submit_edit(wanted, "anna") == job  # a double click is one job
    done = ended(app, job)
    record = app.store.record(done.result)
    assert record.status is JobState.DONE
    assert app.store.owner(record.id) == "anna"
    assert app.prepared(wanted) == (True, True)
    assert app.lora_of(wanted) is not None
    assert [s.stage for s in done.stages][-4:] == ["drag", "denoise", "decode", "save"]
    assert done.preview is not None
    assert len(done.tracks) == 3
    assert app.loaded() == [("cpu", app.settings.model)]


def test_training_under_a_name_and_a_drag_with_it(app: App) -> None:
    wanted = request(app, pairs=())
    made = ended(app, app.submit_train(TrainTask(request=wanted, name="robot"))).result
    json.dumps(made)
    assert made["library"] == "robot"
    assert app.prepared(wanted) == (True, True)
    lora = app.loras.reference("robot")
    done = ended(app, app.submit_edit(request(app, lora_file=lora)))
    assert app.store.record(done.result).status is JobState.DONE
    assert ended(app, app.submit_train(wanted)).result["cached"] == ["lora", "invert", "reference"]


def test_sweep_goes_on_after_a_failure(app: App) -> None:
    gone = dataclasses.replace(request(app).image, id="wb1:" + "0" * 32)
    sweep = [request(app), request(app, image=gone), request(app, drag=DragConfig(steps=1))]
    job = ended(app, app.submit_sweep(sweep, label="steps"))
    first, second, third = job.result["edits"]
    assert second is None
    assert set(job.result["errors"]) == {"1"}
    steps = [app.store.record(e).request.drag.steps for e in (first, third)]
    assert steps == [2, 1]
    with pytest.raises(BadInput, match="1 to 100"):
        SweepTask(())


def test_sweep_goes_on_after_what_nobody_foresaw(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_job.edit

    def edit(app: App, asked: EditRequest, **options: Any) -> EditRecord:
        if asked.drag.steps == 3:
            raise RuntimeError("a tensor was in the way")
        return whole(app, asked, **options)

    monkeypatch.setitem(run_job._KINDS, "edit", edit)
    sweep = [request(app, drag=DragConfig(steps=n)) for n in (3, 1)]
    job = ended(app, app.submit_sweep(sweep))
    assert job.result["edits"][0] is None
    assert app.store.record(job.result["edits"][1]).status is JobState.DONE
    assert "RuntimeError: a tensor was in the way" in job.result["errors"]["0"]


def test_generate_and_replay_jobs(app: App) -> None:
    config = GenerationConfig(steps=2, width=64, height=64)
    made = ended(app, app.submit_generate(GenerateTask(
        prompt="x", config=config, model=app.model_ref(), count=2
    ))).result  # fmt: skip
    assert len(made["pictures"]) == 2
    edit = ended(app, app.submit_edit(request(app))).result
    again = ended(app, app.submit_replay(edit)).result
    assert again["identical"] is True


def test_failures_are_sentences(app: App) -> None:
    missing = request(app, model=ModelRef(name="sd99"))
    assert "no model 'sd99'" in str(ended(app, app.submit_edit(missing), JobState.FAILED).error)
    with pytest.raises(BadInput):
        app.prepared(missing)
    with refusal("unknown-kind"):
        app.perform("magic", None)


def test_fault_36_cancel_through_the_queue(app: App) -> None:
    job = app.submit_edit(request(app, lora=LoraConfig(steps=2000, rank=2, batch_size=1)))
    until(lambda: getattr(app.executor.snapshot(job).progress, "stage", "") == "lora")
    app.executor.cancel(job)
    ended(app, job, JobState.CANCELLED)
    assert app.store.records()[0].status is JobState.CANCELLED
    ended(app, app.submit_edit(request(app)))


def test_fault_43_settings_may_change_while_a_job_runs(app: App) -> None:
    job = app.submit_edit(request(app))
    app.change(dtype="bf16", cache_gb=1.0, ui={"brush": 9})
    record = app.store.record(ended(app, job).result)
    assert record.status is JobState.DONE
    later = app.store.record(ended(app, app.submit_edit(request(app, seed=5))).result)
    assert later.environment["dtype"] == "bf16"
    assert Settings.load().ui == {"brush": 9}
    for wrong in ({"dtype": "fp8"}, {"colour": 1}, {"folder": Path("/")}):
        with pytest.raises(BadInput):
            app.change(**wrong)
    assert app.settings.dtype == "bf16"


def test_one_load_for_warm_up_and_job(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.diffusion import model as runtime

    loads = []
    real = runtime.load

    def counted(*args: Any, **kwargs: Any) -> Any:
        loads.append(args[0].name)
        return real(*args, **kwargs)

    monkeypatch.setattr(runtime, "load", counted)
    warm = app.warm_up()
    ended(app, app.submit_edit(request(app)))
    warm.join(60)
    assert len(loads) == 1
    app.unload()
    assert app.loaded() == []


def test_only_so_many_models_stay_in_memory(app: App, tiny_model: Any) -> None:
    app.runtime()
    app.runtime(str(tiny_model("sd2")))
    assert len(app.loaded()) == 1
    app.change(kept_models=2)
    app.runtime()
    assert len(app.loaded()) == 2


def test_warm_up_of_a_missing_model_is_no_drama(own_cache: Path) -> None:
    app = App(Settings(folder=own_cache, model="/no/such/model"))
    app.warm_up().join(60)
    with refusal("no-file"):
        app.model_ref()
    app.close()


def test_closing_interrupts_what_runs(own_cache: Path, model: Path) -> None:
    app = App(Settings(folder=own_cache, device="cpu", threads=1, model=str(model)))
    job = app.submit_edit(request(app, lora=LoraConfig(steps=2000, rank=2, batch_size=1)))
    executor = app.executor
    app.close()
    assert executor.snapshot(job).state is JobState.INTERRUPTED
    with refusal("closing"):
        app.submit_edit(request(app))
    app.close()


def test_what_a_dead_process_left_is_recorded(own_cache: Path, model: Path) -> None:
    app = App(Settings(folder=own_cache, model=str(model)))
    edit = app.store.begin(request(app))
    app.close()
    again = App(Settings(folder=own_cache, model=str(model)))
    assert again.store.record(edit).status is JobState.INTERRUPTED
    again.close()


def test_one_app_per_process(own_cache: Path) -> None:
    close_app()
    try:
        assert get_app() is get_app()
        assert get_app().settings.folder == own_cache.resolve()
    finally:
        close_app()
    assert composition._app is None


def test_fault_44_many_edits_leave_no_pile(app: App) -> None:
    """Threads, file handles and kept things stay as they are over a series of edits."""
    import threading

    def counts() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    for i in range(3):
        app.perform("edit", request(app, drag=DragConfig(steps=1), seed=i % 2))
    before = counts()
    for i in range(12):
        app.perform("edit", request(app, drag=DragConfig(steps=1), seed=i % 2))
    after = counts()
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1]
