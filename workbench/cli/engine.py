"""What computing commands share: an App with the options of the command line, progress, stopping."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator

from workbench.app import App
from workbench.cli.parsers import read_settings
from workbench.cli.progress import Progress
from workbench.cli.stopping import stopping
from workbench.core.errors import BadInput, Cancelled, StoreError
from workbench.core.record import JobState, OnStep, StepInfo
from workbench.jobs.job import CancelToken, Job
from workbench.storage.settings import Settings

EDIT = "id of an edit, as 'history list' shows it, or: last"


@contextlib.contextmanager
def opened_app(args: argparse.Namespace | None = None) -> Iterator[App]:
    """An App of this process; `--device`, `--dtype`, `--model` and `--workers` overrule the settings.

    Raises:
        BadInput: when settings or `models.toml` are wrong.
        StoreError: when the history folder cannot be used.
    """
    settings = settings_for(args)
    try:
        app = App(settings)
    except StoreError as exc:
        text = str(exc).rstrip(".")
        raise StoreError(
            f"{text} (it is in {settings.folder}; WORKBENCH_CACHE names another)."
        ) from exc
    try:
        yield app
    finally:
        app.close()


def edit_id(app: App, text: str) -> str:
    """The id that a person means: `last` is the newest edit outside the bin.

    Raises:
        BadInput: when there is no edit yet.
    """
    if text != "last":
        return text
    newest = app.store.records()[:1]
    if not newest:
        raise BadInput("The history is empty, so there is no last edit.")
    return newest[0].id


def settings_for(args: argparse.Namespace | None) -> Settings:
    """The installation's settings with what the command line overrules."""
    names = ("device", "dtype", "model", "workers")
    given = {n: getattr(args, n, None) for n in names} if args is not None else {}
    return dataclasses.replace(read_settings(), **{k: v for k, v in given.items() if v})


@contextlib.contextmanager
def steps(*, quiet: bool = False) -> Iterator[tuple[OnStep, Progress]]:
    """An `OnStep` that shows progress and stops at Ctrl-C or SIGTERM."""
    progress, token = Progress(quiet=quiet), CancelToken()

    def on_step(info: StepInfo) -> None:
        progress(info)
        token.check()

    with stopping(token):
        try:
            yield on_step, progress
        finally:
            progress.close()


def follow(app: App, job_id: str, on_step: OnStep) -> Job:
    """Report the progress of a queued job until it ends; what `on_step` raises cancels it.

    Raises:
        Cancelled: when it was cancelled.
    """
    seen: StepInfo | None = None
    try:
        while True:
            job = app.executor.wait(job_id, 0.1)
            if job.progress is not None and job.progress is not seen:
                seen = job.progress
                on_step(seen)
            if job.state.ended:
                break
    except BaseException:
        app.executor.cancel(job_id)
        app.executor.wait(job_id, 5.0)
        raise
    if job.state is JobState.CANCELLED:
        raise Cancelled("Cancelled.")
    return job
