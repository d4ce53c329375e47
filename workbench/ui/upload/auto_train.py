"""What happens by itself when a picture is opened, where the settings say so. No Streamlit here."""

from __future__ import annotations

from workbench.ui.shell.backend import Backend
from workbench.ui.shell.workspace import Workspace

TRAIN_ON_UPLOAD = "train_on_upload"  # in Settings.ui


def train_if_wished(backend: Backend, space: Workspace) -> str | None:
    """Begin to learn a picture that was just opened; the job's id, or None.

    Not one that is larger than the model knows: of it only the part around the mask is learnt, and
    nothing is painted yet. Not one that is known already.
    """
    if not backend.app.settings.ui.get(TRAIN_ON_UPLOAD):
        return None
    facts = backend.model_facts(space)
    fits = max(space.image.width, space.image.height) <= facts.native
    if facts.problem or not fits or backend.is_trained(space):
        return None
    job = backend.submit_train(space)
    space.set(train_job=job)
    space.add_job(job)
    return job
