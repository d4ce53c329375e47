"""Names inside the zip, for the writer and the reader alike."""

from __future__ import annotations

import re

from workbench.core.keys import TAG
from workbench.storage.history.blobs import SUFFIXES, Kind

FORMAT = 1
KIND = "drag-workbench-history"
MANIFEST = "manifest.json"
INDEX = "index.html"
FOLDERS: dict[Kind, str] = {"images": "images", "masks": "masks", "blobs": "files"}

_ULID = r"[0-7][0-9A-HJKMNP-TV-Z]{25}"
_ID = r"wb1-[0-9a-f]{32}"
_ALLOWED = re.compile(
    rf"index\.html|manifest\.json"
    rf"|edits/{_ULID}/(?:record|arrows|parameters|notes)\.json"
    rf"|layers/[a-z0-9-]{{1,80}}/(?:before|after|mask|change)\.png"
    rf"|(?:images|masks)/{_ID}\.png|files/{_ID}\.(?:{'|'.join(SUFFIXES)})"
)
_FOLDER = re.compile(
    rf"(?:edits|images|masks|files|layers|edits/{_ULID}|layers/[a-z0-9-]{{1,80}})/"
)


def is_allowed(name: str) -> bool:
    """True for a name that the writer may have given to a file."""
    return _ALLOWED.fullmatch(name) is not None


def is_folder(name: str) -> bool:
    """True for a folder entry, as other programs add them when they pack the zip anew."""
    return _FOLDER.fullmatch(name) is not None


def file_name(kind: Kind, name_id: str, suffix: str) -> str:
    """Name of a stored file in the zip."""
    return f"{FOLDERS[kind]}/wb1-{name_id.removeprefix(TAG)}.{suffix}"


def layer_file(edit: str, title: str, what: str) -> str:
    """Name of one of an edit's layers, in a folder that a person finds: before, after, mask, change."""
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60].strip("-") or "picture"
    return f"layers/{words}-{edit[-6:].lower()}/{what}.png"


def edit_file(edit: str, what: str) -> str:
    """Name of one of an edit's JSON files."""
    return f"edits/{edit}/{what}.json"
