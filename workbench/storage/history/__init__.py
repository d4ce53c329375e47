"""The history: what a person made, kept for ever, in files that a person can read.

    FORMAT            "1"
    edits/<id>.json   one finished, failed, cancelled or interrupted edit; written once
    pending/<id>.json an edit under way; <pid>-<random>.alive is locked while its process lives
    notes/<id>.json   title, note, favourite, bin: what may change later
    projects/<id>.json  one picture's state in the pages
    images/ masks/ blobs/  pixels and files, named by their content
    thumbs/           small pictures that can be made again
    temp/             files being written

docs/formats.md describes every field.
"""

from workbench.storage.history.blobs import Blobs
from workbench.storage.history.folder import Notes, Pending, Unreadable
from workbench.storage.history.projects import Project, Projects
from workbench.storage.history.store import Store
from workbench.storage.history.upkeep import (
    Problem,
    Verification,
    empty_bin,
    orphans,
    tidy,
    verify,
)

__all__ = [
    "Blobs",
    "Notes",
    "Pending",
    "Problem",
    "Project",
    "Projects",
    "Store",
    "Unreadable",
    "Verification",
    "empty_bin",
    "orphans",
    "tidy",
    "verify",
]
