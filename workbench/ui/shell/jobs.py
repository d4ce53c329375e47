"""The queue as the pages see it: submit, watch and cancel jobs, all of them or one owner's."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from workbench.app import App
from workbench.core.errors import BadInput
from workbench.core.record import JobState
from workbench.core.request import EditRequest, GenerateTask, SweepTask
from workbench.jobs.job import Job


class Jobs:
    """Jobs of the process's `App`; `owner` None sees all of them."""

    def __init__(self, app: App) -> None:
        """Wrap the process's `App`."""
        self.app = app
        self.owner: str | None = None

    def job(self, job_id: str) -> Job:
        """A job as it stands; `BadInput` for an unknown id."""
        return self.app.executor.snapshot(job_id, self.owner)

    def knows(self, job_id: str) -> bool:
        """Whether a job of this id is known here."""
        if not job_id:
            return False
        try:
            self.job(job_id)
        except BadInput:
            return False
        return True

    def is_live(self, job_id: str) -> bool:
        """Whether a job runs or waits."""
        return self.knows(job_id) and not self.job(job_id).state.ended

    def cancel(self, job_id: str) -> JobState:
        """Ask a job to stop."""
        return self.app.executor.cancel(job_id, self.owner)

    def queue(self) -> list[Job]:
        """Jobs that run or wait, in their order."""
        return self.app.executor.queue(self.owner)

    def edit_of(self, job_id: str) -> str | None:
        """The id of the edit that a finished job made, or None."""
        with contextlib.suppress(BadInput):
            job = self.job(job_id)
            if job.kind == "edit" and job.state is JobState.DONE and isinstance(job.result, str):
                return job.result
        return None

    def submit_edit(self, request: EditRequest) -> str:
        """Queue an edit; the same request still under way gives the same job."""
        return self.app.submit_edit(request, self.owner or "")

    def submit_sweep(self, requests: Sequence[EditRequest], label: str) -> str:
        """Queue several edits as one job."""
        return self.app.submit_sweep(SweepTask(tuple(requests), label), self.owner or "")

    def submit_generate(self, task: GenerateTask) -> str:
        """Queue the making of pictures from a prompt."""
        return self.app.submit_generate(task, self.owner or "")

    def submit_replay(self, edit: str) -> str:
        """Queue the recomputing of an edit."""
        return self.app.submit_replay(edit, self.owner or "")

    def submit_download(self, model: str, *, full: bool) -> str:
        """Queue the download of a model."""
        return self.app.submit_download(model, self.owner or "", full=full)

    def recent(self, kind: str) -> list[Job]:
        """The jobs of a kind that this process ran or will run, newest first."""
        return [j for j in self.app.executor.recent(self.owner) if j.kind == kind]
